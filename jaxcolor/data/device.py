"""A small dataset in device memory: batches are gathered, cropped and augmented inside the jitted step.

They are the batches of `pipeline.train_batches` with the same seed: byte for byte, or, with `resized_crop` or `brightness`,
to two levels of 255, as Pillow rounds between its passes, and its version decides which comes first.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from ml_collections import ConfigDict

from jaxcolor.allowed import check_section
from jaxcolor.data import order
from jaxcolor.data.augment import ASPECT, BOX_DRAWS, Draw, brighten, enlarge_to, random_box
from jaxcolor.data.order import UInt32
from jaxcolor.data.shards import ShardSet
from jaxcolor.errors import UserError

Array = jax.Array | np.ndarray
MAX_PIXELS = 2**31 - 1  # their indices are int32; 6.4 GB
_PIXEL_BYTES = 3
_PART_OF_MEMORY = 0.2  # of a device, that photos may take without being asked for; the rest is for training
_UNSUPPORTED = ('rotate', 'shift')  # fields of `data`
_LANCZOS = 3  # lobes of Pillow's filter to either side


@struct.dataclass
class DeviceDataset:
    """The photos of a split, one after the other. A pytree: pass it to the step as an argument, not by closure."""

    pixels: Array  # uint8 (pixels of all photos, 3), Lab
    start: Array  # int32 (N,), the index of each photo's first pixel
    height: Array  # int32 (N,)
    width: Array  # int32 (N,)
    label: Array  # int32 (N,)
    window: tuple[int, int] = struct.field(pytree_node=False)  # height and width that hold any box and what its filter sees


def choose_placement(shards: ShardSet, split: str, data: ConfigDict, device: jax.Device) -> str:
    """What `data.placement` 'auto' stands for: 'device', or 'host' where the photos cannot or should not be held.

    On CPUs that is 'host': cropping inside the step takes longer there than reading ahead does.

    Args:
        shards: the shard set.
        split: its name.
        data: the config's `data` section.
        device: any of those that are to hold the photos, which are alike.
    """
    if data.placement != 'auto':
        return data.placement
    memory = (device.memory_stats() or {}).get('bytes_limit', 0) if device.platform != 'cpu' else 0
    room = min(MAX_PIXELS * _PIXEL_BYTES, memory * _PART_OF_MEMORY)
    if not room or any(getattr(data, name) for name in _UNSUPPORTED):
        return 'host'
    return 'device' if _estimated_bytes(shards.records(split), data.crop) <= room else 'host'


def _estimated_bytes(records, crop):
    """The bytes that all photos take in memory, by the sizes of some, evenly spread, with a tenth to spare."""
    some = np.unique(np.linspace(0, len(records) - 1, 64).astype(int))
    pixels = [math.prod(enlarge_to(records[int(i)]['lab'], crop).shape[:2]) for i in some]
    return 1.1 * _PIXEL_BYTES * np.mean(pixels) * len(records)


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
        UserError: the split is empty or too large, or `data` asks for `rotate` or `shift`.
    """
    check_section('data', data)
    if unsupported := [name for name in _UNSUPPORTED if getattr(data, name)]:
        raise UserError(f'data.placement=device has no data.{unsupported[0]}; set it to 0 or use data.placement=host')
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
    dataset = DeviceDataset(pixels, start, height, width, np.array(labels, np.int32), _window(height, width, data.crop))
    return jax.device_put(dataset, sharding)


def flip(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Mirrors, inside the step, the photos that `pipeline.train_batches` marks: a host takes as long for it as for the rest.

    Args:
        batch: {lab: uint8 (B, H, W, 3), flip: bool (B,), ...}; without `flip`, nothing is done.

    Returns:
        The batch without `flip`.
    """
    batch = dict(batch)
    if 'flip' in batch:
        chosen = jnp.asarray(batch.pop('flip'))[:, None, None, None]
        batch['lab'] = jnp.where(chosen, batch['lab'][:, :, ::-1], batch['lab'])
    return batch


def _window(height, width, crop):
    """(height, width) of the largest box of photos of these sizes (N,), with the pixels around it that its filter sees."""
    longest = np.sqrt(height.astype(np.float64) * width * ASPECT[1])  # the side of the largest box at the extreme aspect
    sides = []
    for side in (height, width):
        box = np.minimum(side, np.maximum(crop, np.ceil(longest)))
        sides.append(int(np.max(np.minimum(side, box + 2 * (np.ceil(_LANCZOS * box / crop) + 1)))))
    return sides[0], sides[1]


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
        data: the config's `data` section: crop, resized_crop, brightness, flip, flip_vertical.
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

    def unit(column):
        return bits(column).astype(jnp.float32) / np.float32(2**32)

    rows = columns = jnp.broadcast_to(jnp.arange(crop, dtype=jnp.int32), (len(offsets), crop))
    if data.flip_vertical:
        rows = _randomly_reversed(bits(Draw.FLIP_VERTICAL), rows)
    if data.flip:
        columns = _randomly_reversed(bits(Draw.FLIP), columns)
    if data.resized_crop:
        lab = _resized(dataset, photo, rows, columns, {draw: unit(draw) for draw in BOX_DRAWS}, data)
    else:
        lab = _at_scale(dataset, photo, rows, columns, bits)
    if data.brightness:
        levels = brighten(lab.astype(jnp.float32), unit(Draw.BRIGHTNESS)[:, None, None, None], data, jnp)
        lab = levels.astype(jnp.uint8)
    return {'lab': lab, 'label': dataset.label[photo]}


def _randomly_reversed(bits, indices):
    """Reverses each row of (B, n) with a probability of 1/2, by its random bits (B,)."""
    return jnp.where((bits < np.uint32(2**31))[:, None], indices[:, ::-1], indices)


def _at_scale(dataset, photo, rows, columns, bits):
    """The given rows and columns (B, crop) of a crop at a random place: uint8 (B, crop, crop, 3)."""
    height, width, last = dataset.height[photo], dataset.width[photo], np.int32(rows.shape[1] - 1)
    top = order.below(bits(Draw.TOP), (height - last).astype(jnp.uint32)).astype(jnp.int32)
    left = order.below(bits(Draw.LEFT), (width - last).astype(jnp.uint32)).astype(jnp.int32)
    return _pixels(dataset, photo, top[:, None] + rows, left[:, None] + columns)


def _pixels(dataset, photo, rows, columns):
    """Pixels of photos (B,) at rows (B, h) and columns (B, w): uint8 (B, h, w, 3)."""
    first = dataset.start[photo][:, None] + rows * dataset.width[photo][:, None]  # (B, h), of each row
    return dataset.pixels[first[:, :, None] + columns[:, None, :]]


def _resized(dataset, photo, rows, columns, units, data):
    """The given rows and columns (B, crop) of a box of random size and aspect that is resized to the crop.

    Two passes of matrices of weights, across and then down, with rounding between them, as Pillow resizes most photos.
    """
    height, width = dataset.height[photo], dataset.width[photo]
    whole = random_box(height.astype(jnp.float32), width.astype(jnp.float32), units, data, jnp)
    top, left, box_height, box_width = (x.astype(jnp.int32) for x in whole)
    window_height, window_width = dataset.window
    down, window_rows = _weights(rows, top, box_height, height, window_height, data.crop)
    across, window_columns = _weights(columns, left, box_width, width, window_width, data.crop)
    x = _pixels(dataset, photo, window_rows, window_columns).astype(jnp.float32)  # (B, window, window, 3)
    x = _to_levels(jnp.einsum('bow,bhwc->bhoc', across, x, precision=jax.lax.Precision.HIGHEST))
    x = _to_levels(jnp.einsum('boh,bhwc->bowc', down, x, precision=jax.lax.Precision.HIGHEST))
    return x.astype(jnp.uint8)  # (B, crop, crop, 3)


def _to_levels(x):
    return jnp.round(jnp.clip(x, 0, 255))


def _weights(places, first, length, side, window, crop):
    """The Lanczos weights that make places (B, crop) in [0, crop) of pixels `first` to `first + length` (B,) of photos of a
    side (B,): float32 (B, crop, window), 0 beyond the photos; and the indices of the window's pixels, int32 (B, window)."""
    scale = length.astype(jnp.float32) / crop  # at least 1
    margin = jnp.ceil(_LANCZOS * scale).astype(jnp.int32) + np.int32(1)
    start = jnp.maximum(first - margin, np.int32(0))
    indices = start[:, None] + jnp.arange(window, dtype=jnp.int32)  # (B, window)
    center = (first - start).astype(jnp.float32)[:, None] + (places.astype(jnp.float32) + 0.5) * scale[:, None]  # (B, crop)
    offset = jnp.arange(window, dtype=jnp.float32) + 0.5 - center[..., None]  # (B, crop, window)
    x = offset / scale[:, None, None]
    weights = jnp.where(jnp.abs(x) < _LANCZOS, jnp.sinc(x) * jnp.sinc(x / _LANCZOS), 0.0)
    weights = jnp.where((indices < side[:, None])[:, None, :], weights, 0.0)
    return weights / jnp.sum(weights, axis=-1, keepdims=True), jnp.minimum(indices, side[:, None] - np.int32(1))
