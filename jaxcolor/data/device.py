"""A small set dataset on the device as a whole: batches are gathered, cropped and flipped inside the jitted step.

The batches are the ones that `pipeline.train_batches` makes with the same seed, to the byte.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxcolor.config import check_section
from jaxcolor.data import order
from jaxcolor.data.augment import Draw, enlarge_to
from jaxcolor.errors import UserError

MOST_PIXELS = 2**31 - 1  # that an int32 can number: 6.4 GB


@struct.dataclass
class DeviceDataset:
    """The photos of a split, laid end to end. A pytree: pass it to the step as an argument, not by closure."""

    pixels: jax.Array  # uint8 (pixels of all photos, 3), Lab
    start: jax.Array  # int32 (N,), where each photo's pixels begin
    height: jax.Array  # int32 (N,)
    width: jax.Array  # int32 (N,)
    label: jax.Array  # int32 (N,)


def to_device(shards, split, data, sharding=None):
    """Reads a split whole and puts it on the device(s).

    Args:
        shards: a `shards.ShardSet`.
        split: which of its splits.
        data: the config's `data` section; photos smaller than `data.crop` are enlarged.
        sharding: of the arrays, normally replicated; None means JAX's default device.

    Returns:
        A `DeviceDataset`.

    Raises:
        UserError: the split is empty or too large, or `data` asks for more than crops and flips.
    """
    check_section('data', data)
    if unsupported := [name for name in ('resized_crop', 'rotate', 'shift', 'brightness') if getattr(data, name)]:
        raise UserError(f'data.placement=device only crops and flips; set data.{unsupported[0]}=0 or use the host')
    records = shards.records(split)
    photos, labels, total = [], [], 0
    for i in range(len(records)):
        photo = records[i]
        photos.append(enlarge_to(photo['lab'], data.crop))
        labels.append(photo['label'])
        total += photos[-1].shape[0] * photos[-1].shape[1]
        if total > MOST_PIXELS:
            raise UserError(f'the split {split!r} of {shards.path} has too many pixels for data.placement=device')
    height, width = np.array([photo.shape[:2] for photo in photos], np.int32).T
    start = (np.cumsum(height.astype(np.int64) * width) - height.astype(np.int64) * width).astype(np.int32)
    pixels = np.concatenate([photo.reshape(-1, 3) for photo in photos])
    return jax.device_put(DeviceDataset(pixels, start, height, width, np.array(labels, np.int32)), sharding)


def position(first, length):
    """A place in the endless global order (a Python int of any size) -> what `gather` takes: (epoch, place), uint32."""
    return tuple(np.uint32(x) for x in divmod(first, length))


class DeviceBatches:
    """Says which photos of a dataset set come next: the device's counterpart of `pipeline.train_batches`.

    Yields {epoch, place, offsets: uint32 (B,)}, what `gather` takes, an entry a photo of this process; get_state and
    set_state are those of the host's iterator, so that a run may change from one to the other.
    """

    def __init__(self, dataset, *, batch_size, process_index=0, process_count=1):
        self._length, self._next = len(dataset.label), 0
        self._global_batch_size = batch_size * process_count
        self._offsets = (process_index * batch_size + np.arange(batch_size)).astype(np.uint32)

    def __next__(self):
        epoch, place = position(self._next, self._length)
        self._next += self._global_batch_size
        here = np.ones_like(self._offsets)
        return {'epoch': epoch * here, 'place': place * here, 'offsets': self._offsets}

    def get_state(self):
        return {'global_next_index': self._next}

    def set_state(self, state):
        self._next = int(state['global_next_index'])


def gather(dataset, epoch, place, offsets, *, data, seed):
    """A training batch, for use inside jit.

    Args:
        dataset: a `DeviceDataset` of N photos.
        epoch, place: uint32 scalars of `position`, or (B,) of them: where this step's global batch begins.
        offsets: uint32 (B,), which of the photos from there on this device gets: of device d, d * B + arange(B).
        data: the config's `data` section: crop, flip, flip_vertical.
        seed: a Python int, as for `pipeline.train_batches`.

    Returns:
        {lab: uint8 (B, crop, crop, 3), label: int32 (B,)}
    """
    length, crop = dataset.label.shape[0], data.crop
    place = place + offsets  # (B,)
    epoch = epoch + place // np.uint32(length)
    place = place % np.uint32(length)
    photo = order.permute(epoch, place, length, seed).astype(jnp.int32)

    def bits(column):
        return order.random_bits(epoch, place, column, seed)

    height, width = dataset.height[photo], dataset.width[photo]
    top = order.below(bits(Draw.TOP), (height - np.int32(crop - 1)).astype(jnp.uint32)).astype(jnp.int32)
    left = order.below(bits(Draw.LEFT), (width - np.int32(crop - 1)).astype(jnp.uint32)).astype(jnp.int32)
    rows = columns = jnp.broadcast_to(jnp.arange(crop, dtype=jnp.int32), (len(offsets), crop))
    if data.flip_vertical:
        rows = _reversed_where(bits(Draw.FLIP_VERTICAL), rows)
    if data.flip:
        columns = _reversed_where(bits(Draw.FLIP), columns)
    rows = dataset.start[photo][:, None] + (top[:, None] + rows) * width[:, None]  # (B, crop), where each row begins
    columns = left[:, None] + columns  # (B, crop)
    return {'lab': dataset.pixels[rows[:, :, None] + columns[:, None, :]], 'label': dataset.label[photo]}


def _reversed_where(bits, index):
    """Reverses the rows of (B, n) whose random bits say so."""
    return jnp.where((bits < np.uint32(2**31))[:, None], index[:, ::-1], index)
