"""Shards -> batches: shuffle, repeat, augment, shard by process, batch, prefetch, resume.

Which photo comes when, and every random choice about it, follows from the seed and its place in the endless global
order (`order.py`), before that order is dealt out to processes, threads and workers. So none of their counts changes
what a global batch holds. Grain reads ahead, in threads or in worker processes.
"""

import math
import sys

import grain
import numpy as np
from absl import flags

from jaxcolor.config import check_section
from jaxcolor.data import augment, order
from jaxcolor.errors import UserError

_GROUP = 16  # batches that are planned together, since NumPy's cost is by the call


class _Batches:
    """Batch k of this process, for every k: what Grain reads, in any order and from several threads at once.

    A batch is made as a whole: element by element, Grain's own overhead was half of the time.
    """

    def __init__(self, records, data, seed, batch_size, process_index, process_count, first):
        self._records, self._data, self._seed, self._batch_size = records, data, seed, batch_size
        self._process_index, self._process_count, self._first = process_index, process_count, first
        self._plans = {}

    def __len__(self):
        return sys.maxsize // (self._batch_size * self._process_count) - self._first

    def _plan(self, group):
        """Photos (G, B) and their random bits (G, B, len(Draw)) of a group of batches."""
        plan = self._plans.get(group)
        if plan is None:
            if len(self._plans) > 4:
                self._plans.clear()
            batches = np.arange(_GROUP, dtype=np.int64)[:, None] + group * _GROUP
            part = batches * self._process_count + self._process_index  # (G, 1), of the parts of all processes
            places = (self._first + part * self._batch_size + np.arange(self._batch_size)).reshape(-1)
            epoch, place = (x.astype(np.uint32) for x in np.divmod(places, len(self._records)))
            photos = order.permute(epoch, place, len(self._records), self._seed)
            bits = [order.random_bits(epoch, place, column, self._seed) for column in augment.Draw]
            shape = (_GROUP, self._batch_size)
            plan = self._plans[group] = (photos.reshape(shape), np.stack(bits, -1).reshape(*shape, -1))
        return plan

    def __getitem__(self, index):
        group, row = divmod(index, _GROUP)
        photos, bits = (x[row] for x in self._plan(group))
        crop = self._data.crop
        lab = np.empty((self._batch_size, crop, crop, 3), np.uint8)
        rest = []
        for i, photo in enumerate(photos.tolist()):
            photo = self._records[photo]
            augment.augment(photo.pop('lab'), bits[i], self._data, lab[i])
            rest.append(photo)
        return {'lab': lab, **_stack(rest, ('label', 'features'))}


def _stack(photos, keys):
    """Fields of photos -> fields of a batch, for those of the keys that they have."""
    batch = {}
    for key in keys:
        if key in photos[0]:
            values = [photo[key] for photo in photos]
            batch[key] = _stack(values, values[0]) if isinstance(values[0], dict) else np.stack(values)
    return batch


# The state of an iterator that has given no batch yet.
START = {'global_next_index': 0}


class TrainIterator(grain.DatasetIterator):
    """Endless batches whose state is the number of photos that all processes together have been through."""

    def __init__(self, make_iterator, global_batch_size):
        super().__init__()
        self._make_iterator, self._global_batch_size = make_iterator, global_batch_size
        self._next, self._iterator = 0, None

    def __next__(self):
        if self._iterator is None:
            self._iterator = self._make_iterator(self._next)
        batch = next(self._iterator)
        self._next += self._global_batch_size
        return batch

    def get_state(self):
        return {'global_next_index': self._next}

    def set_state(self, state):
        self.close()
        self._next = int(state['global_next_index'])

    def close(self):
        """Ends the threads and worker processes; they start again with the next batch."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None


def train_batches(shards, *, split='train', batch_size, data, seed, process_index=0, process_count=1):
    """Endless batches of random crops, the same for the same seed whatever reads them.

    Args:
        shards: a `shards.ShardSet`.
        split: which of its splits.
        batch_size: photos a batch of this process.
        data: the config's `data` section (jaxcolor/config.py).
        seed: of the order and of every augmentation.
        process_index, process_count: this process gets the process_index-th of process_count runs of neighbors of
            each global batch: joined in the order of the processes they are the batch of a single one.

    Returns:
        A `grain.DatasetIterator` of {lab: uint8 (B, crop, crop, 3), label: int32 (B,)} and, where the records have
        them, features: {name: (B, ...)}. `get_state()` is a small dict of ints, the same on every process; `set_state`
        goes on with the very next photo, also on another number of processes or workers.

    Raises:
        UserError: the split is empty, a field of `data` makes no sense; while reading: a shard is damaged.
    """
    check_section('data', data)
    records = shards.records(split)
    read_options = grain.ReadOptions(data.read_threads, max(data.prefetch, data.read_threads))
    if data.workers and not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain hands absl's flags to its workers; a program without absl has none

    def make_iterator(first):
        batches = _Batches(records, data, seed, batch_size, process_index, process_count, first)
        dataset = grain.MapDataset.source(batches).to_iter_dataset(read_options)
        if data.workers:
            dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(data.workers, data.prefetch))
        return iter(dataset)

    return TrainIterator(make_iterator, batch_size * process_count)


class _EvalBatches:
    """Batch k of this process: center crops of its share of the photos, blanks after the last one."""

    def __init__(self, records, batch_size, crop, process_index, process_count):
        self._records, self._batch_size, self._crop = records, batch_size, crop
        self._process_index, self._process_count = process_index, process_count

    def __len__(self):
        return math.ceil(len(self._records) / (self._batch_size * self._process_count))

    def __getitem__(self, index):
        lab = np.zeros((self._batch_size, self._crop, self._crop, 3), np.uint8)
        mask = np.zeros(self._batch_size, bool)
        photos = []
        for i in range(self._batch_size):
            place = (index * self._batch_size + i) * self._process_count + self._process_index
            mask[i] = place < len(self._records)
            if mask[i]:
                photos.append(self._records[place])
                lab[i] = augment.center_crop(photos[-1].pop('lab'), self._crop)
            else:
                blank = photos[0] if photos else self._records[0]  # for its fields and their shapes
                photos.append({**blank, 'label': np.int32(-1), 'name': ''})
        names = [photo['name'] for photo in photos]
        return {'lab': lab, 'mask': mask, 'name': names, **_stack(photos, ('label', 'features'))}


def eval_batches(shards, split, *, batch_size, crop, process_index=0, process_count=1):
    """Every photo of a split once, in order, as its center crop; photos smaller than the crop are enlarged.

    Yields:
        {lab: uint8 (B, crop, crop, 3), label: int32 (B,), mask: bool (B,), name: list of B str} and, where the records
        have them, features. Where the photos run out, mask is False, lab 0, label -1 and name ''. Every process yields
        the same number of batches of the same shape.

    Raises:
        UserError: the split is empty; while reading: a shard is damaged.
    """
    if crop < 1 or batch_size < 1:
        raise UserError(f'evaluation needs a batch size and a crop of at least 1, not {batch_size} and {crop}')
    batches = _EvalBatches(shards.records(split), batch_size, crop, process_index, process_count)
    return iter(grain.MapDataset.source(batches).to_iter_dataset(grain.ReadOptions(2, 4)))
