"""Shards -> batches: shuffle, repeat, augment, share by process, batch, prefetch, resume.

The order of the photos and every random choice follow from the seed and the index in the endless global order
(`order.py`), which is then divided among processes, threads and workers. So their numbers do not change what a global
batch holds. Grain reads ahead, in threads or in worker processes.
"""

import math
import sys
import threading
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import grain
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from jaxcolor.allowed import check_section
from jaxcolor.data import augment, order
from jaxcolor.data.shards import Records, ShardSet
from jaxcolor.errors import UserError

Batch = dict[str, Any]  # of arrays (B, ...) by name

# The state of an iterator before its first batch.
INITIAL_STATE = {'global_next_index': 0}
_GROUP = 16  # batches whose random numbers are drawn together, since a call of NumPy costs more than its work


class _Buffers:
    """Arrays for batches, used again once nobody holds them: the system clears new memory, a quarter of a photo's time.

    Whoever has one, or a view of it, holds a reference; so does JAX until it has copied it, or for as long as it shares it.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self._all: list[np.ndarray] = []
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return _Buffers, (self._shape,)

    def take(self) -> np.ndarray:
        """An array uint8 that nobody else holds, of any content."""
        with self._lock:
            for i in range(len(self._all)):
                if sys.getrefcount(self._all[i]) == _UNUSED:
                    return self._all[i]
            self._all.append(np.empty(self._shape, np.uint8))
            return self._all[-1]


_ALONE = [object()]
_UNUSED = sys.getrefcount(_ALONE[0])  # what it counts of an object that a list alone holds


class _TrainBatches:
    """Batch k of this process, for every k: Grain's data source, read in any order and from several threads.

    An element is a whole batch: with single photos as elements, Grain's own overhead was half of the time.
    """

    def __init__(
        self,
        records: Records,
        data: ConfigDict,
        seed: int,
        batch_size: int,
        process_index: int,
        process_count: int,
        first: int,
    ) -> None:
        """first: index in the global order that batch 0 of all processes starts at."""
        self._records, self._seed, self._batch_size = records, seed, batch_size
        self._data = types.SimpleNamespace(**data)  # whose fields are read without a call
        self._process_index, self._process_count, self._first = process_index, process_count, first
        self._groups: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._buffers = _Buffers((batch_size, data.crop, data.crop, 3))

    def __len__(self) -> int:
        return sys.maxsize // (self._batch_size * self._process_count) - self._first

    def _draw(self, group):
        """The photos (_GROUP, B) and random bits (_GROUP, B, len(Draw)) of a group of batches."""
        if group not in self._groups:
            if len(self._groups) > 4:
                self._groups.clear()
            batches = np.arange(_GROUP, dtype=np.int64)[:, None] + group * _GROUP
            shares = batches * self._process_count + self._process_index  # (_GROUP, 1), among those of all processes
            indices = (self._first + shares * self._batch_size + np.arange(self._batch_size)).reshape(-1)
            epoch, index = (x.astype(np.uint32) for x in np.divmod(indices, len(self._records)))
            photos = order.permute(epoch, index, len(self._records), self._seed)
            bits = [order.random_bits(epoch, index, column, self._seed) for column in augment.Draw]
            shape = (_GROUP, self._batch_size)
            self._groups[group] = photos.reshape(shape), np.stack(bits, -1).reshape(*shape, -1)
        return self._groups[group]

    def __getitem__(self, index: int) -> Batch:
        group, row = divmod(index, _GROUP)
        photos, bits = (x[row] for x in self._draw(group))
        lab = self._buffers.take()
        fields = []
        for i, number in enumerate(photos.tolist()):
            photo = self._records.borrow(number)
            augment.augment(photo.pop('lab'), bits[i], self._data, lab[i])
            fields.append(photo)
        flips = {'flip': augment.is_flipped(bits)} if self._data.flip else {}
        return {'lab': lab, **_stack(fields, ('label', 'features')), **flips}


def _stack(photos, keys):
    """Stacks the fields of photos that are among the keys: list of {key: (...)} -> {key: (B, ...)}."""
    batch = {}
    for key in keys:
        if key in photos[0]:
            values = [photo[key] for photo in photos]
            batch[key] = _stack(values, values[0]) if isinstance(values[0], dict) else np.stack(values)
    return batch


class TrainIterator(grain.DatasetIterator):
    """Endless batches. The state is the number of photos that all processes have taken.

    Args:
        make_iterator: index in the global order -> iterator of the batches from there on.
        global_batch_size: photos of all processes in a batch.
    """

    def __init__(self, make_iterator: Callable[[int], Any], global_batch_size: int) -> None:
        super().__init__()
        self._make_iterator, self._global_batch_size = make_iterator, global_batch_size
        self._next = 0
        self._iterator: Any = None

    def __next__(self) -> Batch:
        if self._iterator is None:
            self._iterator = self._make_iterator(self._next)
        batch = next(self._iterator)
        self._next += self._global_batch_size
        return batch

    def get_state(self) -> dict[str, int]:
        """The number of photos taken."""
        return {'global_next_index': self._next}

    def set_state(self, state: Mapping[str, int]) -> None:
        """Continues from a state of `get_state`."""
        self.close()
        self._next = int(state['global_next_index'])

    def close(self) -> None:
        """Stops the threads and worker processes; the next batch starts them again."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None


def train_batches(
    shards: ShardSet,
    *,
    split: str = 'train',
    batch_size: int,
    data: ConfigDict,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> TrainIterator:
    """Endless batches of random crops, determined by the seed.

    Args:
        shards: the shard set.
        split: its name.
        batch_size: photos of this process in a batch.
        data: the config's `data` section (jaxcolor/config.py).
        seed: of the order and of the augmentation.
        process_index: which consecutive share of each global batch this process gets. The shares of all processes,
            joined in order, are the batch of a single process.
        process_count: number of shares.

    Returns:
        An iterator of {lab: uint8 (B, crop, crop, 3), label: int32 (B,)}; with data.flip, flip: bool (B,), the photos that
        `device.flip` is to mirror; and, where the records have them, features: {name: (B, ...)}. Its state is a small dict
        of ints, the same on every process; from a state it continues with the very next photo, also on another number of
        processes or workers.

    Raises:
        UserError: the split is empty, or a field of `data` is out of range; while reading: a shard is damaged.
    """
    check_section('data', data)
    records = shards.records(split)
    read_options = grain.ReadOptions(data.read_threads, max(data.prefetch, data.read_threads))
    if data.workers and not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain passes absl's flags to its workers; only absl's own programs parse them

    def make_iterator(first):
        batches = _TrainBatches(records, data, seed, batch_size, process_index, process_count, first)
        dataset = grain.MapDataset.source(batches).to_iter_dataset(read_options)
        if data.workers:
            dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(data.workers, data.prefetch))
        return iter(dataset)

    return TrainIterator(make_iterator, batch_size * process_count)


class _EvalBatches:
    """Batch k of this process: center crops of its share of the photos, padded after the last one."""

    def __init__(self, records: Records, batch_size: int, crop: int, process_index: int, process_count: int) -> None:
        self._records, self._batch_size, self._crop = records, batch_size, crop
        self._process_index, self._process_count = process_index, process_count

    def __len__(self) -> int:
        return math.ceil(len(self._records) / (self._batch_size * self._process_count))

    def __getitem__(self, index: int) -> Batch:
        lab = np.zeros((self._batch_size, self._crop, self._crop, 3), np.uint8)
        mask = np.zeros(self._batch_size, bool)
        photos: list[dict[str, Any]] = []
        for i in range(self._batch_size):
            number = (index * self._batch_size + i) * self._process_count + self._process_index
            mask[i] = number < len(self._records)
            if mask[i]:
                photos.append(self._records[number])
                lab[i] = augment.center_crop(photos[-1].pop('lab'), self._crop)
            else:
                template = photos[0] if photos else self._records[0]  # for the shapes of its fields
                photos.append({**template, 'label': np.int32(-1), 'name': ''})
        names = [photo['name'] for photo in photos]
        return {'lab': lab, 'mask': mask, 'name': names, **_stack(photos, ('label', 'features'))}


def eval_batches(
    shards: ShardSet, split: str, *, batch_size: int, crop: int, process_index: int = 0, process_count: int = 1
) -> Iterator[Batch]:
    """The center crop of every photo of a split once, in order. Photos smaller than the crop are enlarged.

    Args:
        shards: the shard set.
        split: its name.
        batch_size: photos of this process in a batch.
        crop: pixels, the side of the crop.
        process_index: this process.
        process_count: the number of processes that share the photos.

    Yields:
        {lab: uint8 (B, crop, crop, 3), label: int32 (B,), mask: bool (B,), name: list of B str} and, where the records
        have them, features: {name: (B, ...)}. Rows after the last photo are padding: mask False, lab 0, label -1, name ''.
        Every process yields the same number of batches of the same shape.

    Raises:
        UserError: the split is empty, or a size is below 1; while reading: a shard is damaged.
    """
    if crop < 1 or batch_size < 1:
        raise UserError(f'evaluation needs a batch size and a crop of at least 1, not {batch_size} and {crop}')
    batches = _EvalBatches(shards.records(split), batch_size, crop, process_index, process_count)
    return iter(grain.MapDataset.source(batches).to_iter_dataset(grain.ReadOptions(2, 4)))
