"""A small dataset in device memory: batches are gathered, cropped and flipped inside the jitted step.

They are byte for byte the batches of `pipeline.train_batches` with the same seed.
"""

from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from ml_collections import ConfigDict

from jaxcolor.config import check_section
from jaxcolor.data import order
from jaxcolor.data.augment import Draw, enlarge_to
from jaxcolor.data.order import UInt32
from jaxcolor.data.shards import ShardSet
from jaxcolor.errors import UserError

Array = jax.Array | np.ndarray
MAX_PIXELS = 2**31 - 1  # their indices are int32; 6.4 GB


@struct.dataclass
class DeviceDataset:
    """The photos of a split, one after the other. A pytree: pass it to the step as an argument, not by closure."""

    pixels: Array  # uint8 (pixels of all photos, 3), Lab
    start: Array  # int32 (N,), the index of each photo's first pixel
    height: Array  # int32 (N,)
    width: Array  # int32 (N,)
    label: Array  # int32 (N,)


def to_device(
    shards: ShardSet, split: str, data: ConfigDict, sharding: jax.sharding.Sharding | None = None
) -> DeviceDataset:
    """Reads a whole split and puts it into device memory.

    Args:
        shards: the shard set.
        split: its name.
        data: the config's `data` section; photos smaller than `data.crop` are enlarged.
        sharding: of the arrays, normally replicated; None means JAX's default device.

    Raises:
        UserError: the split is empty or too large, or `data` asks for other augmentation than crops and flips.
    """
    check_section('data', data)
    if unsupported := [name for name in ('resized_crop', 'rotate', 'shift', 'brightness') if getattr(data, name)]:
        raise UserError(
            f'data.placement=device only crops and flips; set data.{unsupported[0]}=0 or use data.placement=host'
        )
    records = shards.records(split)
    photos, labels, total = [], [], 0
    for i in range(len(records)):
        photo = records[i]
        photos.append(enlarge_to(photo['lab'], data.crop))
        labels.append(photo['label'])
        total += photos[-1].shape[0] * photos[-1].shape[1]
        if total > MAX_PIXELS:
            raise UserError(f'the split {split!r} of {shards.path} has too many pixels for data.placement=device')
    height, width = np.array([photo.shape[:2] for photo in photos], np.int32).T
    start = (np.cumsum(height.astype(np.int64) * width) - height.astype(np.int64) * width).astype(np.int32)
    pixels = np.concatenate([photo.reshape(-1, 3) for photo in photos])
    return jax.device_put(DeviceDataset(pixels, start, height, width, np.array(labels, np.int32)), sharding)


def epoch_and_index(global_index: int, length: int) -> tuple[np.uint32, np.uint32]:
    """An index into the endless global order of `length` photos -> (epoch, index in the epoch), as `gather` takes them."""
    epoch, index = divmod(global_index, length)
    return np.uint32(epoch), np.uint32(index)


class DeviceBatches(Iterator[dict[str, np.ndarray]]):
    """Yields the arguments of `gather` for one batch after the other; the counterpart of `pipeline.train_batches`.

    They are {epoch, index, offsets: uint32 (B,)}, for the B photos of this process. The state is that of
    `pipeline.TrainIterator`, so that a run may resume with the other placement.

    Args:
        dataset: the photos.
        batch_size: photos of this process in a batch.
        process_index: of this process.
        process_count: of all processes.
    """

    def __init__(self, dataset: DeviceDataset, *, batch_size: int, process_index: int = 0, process_count: int = 1) -> None:
        self._length, self._next = len(dataset.label), 0
        self._global_batch_size = batch_size * process_count
        self._offsets = (process_index * batch_size + np.arange(batch_size)).astype(np.uint32)

    def __next__(self) -> dict[str, np.ndarray]:
        epoch, index = epoch_and_index(self._next, self._length)
        self._next += self._global_batch_size
        ones = np.ones_like(self._offsets)
        return {'epoch': epoch * ones, 'index': index * ones, 'offsets': self._offsets}

    def get_state(self) -> dict[str, int]:
        """The number of photos that all processes have taken."""
        return {'global_next_index': self._next}

    def set_state(self, state: Mapping[str, int]) -> None:
        """Continues from a state of `get_state`."""
        self._next = int(state['global_next_index'])


def gather(
    dataset: DeviceDataset,
    epoch: UInt32,
    index: UInt32,
    offsets: UInt32,
    *,
    data: ConfigDict,
    seed: int,
) -> dict[str, jax.Array]:
    """Gathers a training batch, inside jit.

    Args:
        dataset: N photos.
        epoch, index: uint32 scalars or (B,), where the step's global batch begins (`epoch_and_index`).
        offsets: uint32 (B,), the photos of this device counted from there: d * B + arange(B) for device d.
        data: the config's `data` section: crop, flip, flip_vertical.
        seed: as for `pipeline.train_batches`.

    Returns:
        {lab: uint8 (B, crop, crop, 3), label: int32 (B,)}
    """
    length, crop = dataset.label.shape[0], data.crop
    index = index + offsets  # (B,)
    epoch = epoch + index // np.uint32(length)
    index = index % np.uint32(length)
    photo = order.permute(epoch, index, length, seed).astype(jnp.int32)

    def bits(column):
        return order.random_bits(epoch, index, column, seed)

    height, width = dataset.height[photo], dataset.width[photo]
    top = order.below(bits(Draw.TOP), (height - np.int32(crop - 1)).astype(jnp.uint32)).astype(jnp.int32)
    left = order.below(bits(Draw.LEFT), (width - np.int32(crop - 1)).astype(jnp.uint32)).astype(jnp.int32)
    rows = columns = jnp.broadcast_to(jnp.arange(crop, dtype=jnp.int32), (len(offsets), crop))
    if data.flip_vertical:
        rows = _randomly_reversed(bits(Draw.FLIP_VERTICAL), rows)
    if data.flip:
        columns = _randomly_reversed(bits(Draw.FLIP), columns)
    # The index of the first pixel of each row, (B, crop).
    rows = dataset.start[photo][:, None] + (top[:, None] + rows) * width[:, None]
    columns = left[:, None] + columns  # (B, crop)
    return {'lab': dataset.pixels[rows[:, :, None] + columns[:, None, :]], 'label': dataset.label[photo]}


def _randomly_reversed(bits, indices):
    """Reverses each row of (B, n) with a probability of 1/2, by its random bits (B,)."""
    return jnp.where((bits < np.uint32(2**31))[:, None], indices[:, ::-1], indices)
