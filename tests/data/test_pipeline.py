"""Order, augmentation, batches from the host and from the device."""

import json

import jax
import numpy as np
import pytest

from jaxcolor import color, config, files
from jaxcolor.data import augment, device, order, pipeline, shards
from jaxcolor.errors import UserError
from jaxcolor.prepare import bundled, prepare


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
    return prepare(bundled.PHOTOS, tmp_path_factory.mktemp('set') / 'shards', size=48, shard_photos=7, quiet=True)


def settings(**changes):
    data = config.data()
    data.update({'crop': 40, 'prefetch': 2, **changes})
    return data


EVERYTHING = {'flip_vertical': True, 'resized_crop': 0.3, 'rotate': 20.0, 'shift': 0.1, 'brightness': 0.3}


def take(iterator, count):
    batches = [next(iterator) for _ in range(count)]
    iterator.close()
    return batches


def assert_same(batches, others):
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for key in batch:
            np.testing.assert_array_equal(batch[key], other[key])


# Order.


@pytest.mark.parametrize('length', [1, 2, 5, 20, 1000])
def test_every_epoch_is_a_permutation_and_they_differ(length):
    index = np.arange(length, dtype=np.uint32)
    epochs = [order.permute(np.full_like(index, epoch), index, length, seed=3) for epoch in range(4)]
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(length))
    if length >= 20:
        for epoch in epochs[1:]:
            assert np.mean(epoch == epochs[0]) < 0.3


def test_order_and_random_bits_are_the_same_under_jit():
    epoch, index = np.repeat(np.arange(3, dtype=np.uint32), 50), np.tile(np.arange(50, dtype=np.uint32), 3)
    host = order.permute(epoch, index, 50, 9), order.random_bits(epoch, index, 2, 9)
    jitted = jax.jit(lambda e, i: (order.permute(e, i, 50, 9), order.random_bits(e, i, 2, 9)))(epoch, index)
    for a, b in zip(host, jitted, strict=True):
        np.testing.assert_array_equal(a, b)


def test_random_bits_are_uniform_and_uncorrelated():
    index = np.arange(20_000, dtype=np.uint32)
    columns = np.stack([order.random_bits(np.full_like(index, 5), index, column, 1) for column in range(3)]) / 2**32
    assert np.abs(columns.mean(axis=1) - 0.5).max() < 0.01
    assert np.abs(np.corrcoef(columns) - np.eye(3)).max() < 0.03
    assert np.abs(np.corrcoef(columns[0, 1:], columns[0, :-1])[0, 1]) < 0.03
    drawn = order.below((columns[0] * 2**32).astype(np.uint32), np.uint32(7))
    np.testing.assert_allclose(np.bincount(drawn) / len(index), 1 / 7, atol=0.01)


# Training batches.


def test_shapes_and_dtypes_of_batches(prepared):
    batch = take(pipeline.train_batches(prepared, batch_size=6, data=settings(), seed=0), 1)[0]
    assert batch.keys() == {'lab', 'label', 'flip'}
    assert batch['flip'].shape == (6,) and batch['flip'].dtype == bool
    assert batch['lab'].shape == (6, 40, 40, 3) and batch['lab'].dtype == np.uint8
    assert batch['label'].shape == (6,) and batch['label'].dtype == np.int32


class Recorded:
    """A shard set that records the names of the photos read."""

    def __init__(self, shards):
        self._records, self.names = shards.records('train'), []

    def records(self, split):
        return self

    def __len__(self):
        return len(self._records)

    def borrow(self, index):
        photo = self._records.borrow(index)
        self.names.append(photo['name'])
        return photo


def test_each_epoch_shows_every_photo_once(prepared):
    recorded = Recorded(prepared)
    take(pipeline.train_batches(recorded, batch_size=10, data=settings(read_threads=1, prefetch=1), seed=0), 4)
    epochs = [recorded.names[:20], recorded.names[20:40]]
    assert all(len(set(epoch)) == 20 for epoch in epochs) and epochs[0] != epochs[1]


@pytest.mark.parametrize('changes', [{}, EVERYTHING], ids=['crop', 'everything'])
def test_threads_and_worker_processes_change_no_batch(prepared, changes):
    expected = take(pipeline.train_batches(prepared, batch_size=4, data=settings(**changes), seed=7), 8)
    assert not np.array_equal(expected[0]['lab'], expected[5]['lab'])  # the second epoch is another one
    for reading in ({'read_threads': 5, 'prefetch': 6}, *([] if changes else [{'workers': 1}]), {'workers': 4}):
        batches = pipeline.train_batches(prepared, batch_size=4, data=settings(**changes, **reading), seed=7)
        assert_same(take(batches, 8), expected)


def test_seeds_differ(prepared):
    one, other = (take(pipeline.train_batches(prepared, batch_size=4, data=settings(), seed=s), 1)[0] for s in (1, 2))
    assert not np.array_equal(one['lab'], other['lab'])


def test_resume_gives_the_very_next_batch(prepared):
    iterator = pipeline.train_batches(prepared, batch_size=3, data=settings(), seed=7)
    for _ in range(9):  # in the middle of the second epoch
        next(iterator)
    state = iterator.get_state()
    assert state == {'global_next_index': 27}
    expected = take(iterator, 5)
    resumed = pipeline.train_batches(prepared, batch_size=3, data=settings(), seed=7)
    next(resumed)
    resumed.set_state(state)
    assert_same(take(resumed, 5), expected)


def test_resume_on_another_number_of_processes(prepared):
    single = pipeline.train_batches(prepared, batch_size=8, data=settings(), seed=7)
    next(single)
    state = single.get_state()
    expected = take(single, 2)
    for count in (2, 4):
        parts = []
        for index in range(count):
            part = pipeline.train_batches(
                prepared, batch_size=8 // count, data=settings(), seed=7, process_index=index, process_count=count
            )
            part.set_state(state)
            parts.append(take(part, 2))
        for i, batch in enumerate(expected):
            np.testing.assert_array_equal(np.concatenate([part[i]['lab'] for part in parts]), batch['lab'])


def test_resuming_on_other_numbers_of_processes_shows_every_photo_once_an_epoch(tmp_path):
    """2 processes, then 1, then 4, each resuming where the previous ones stopped."""
    packed = [shards.encode_record(str(i), i, np.full((8, 8, 3), i, np.uint8)) for i in range(24)]
    shards.write_shard(tmp_path / 'train-00000.arrayrecord', packed, 'raw')
    size = (tmp_path / 'train-00000.arrayrecord').stat().st_size
    shard = {'file': 'train-00000.arrayrecord', 'split': 'train', 'photos': 24, 'bytes': size}
    meta = {'version': shards.VERSION, 'counts': {'train': 24}, 'classes': [str(i) for i in range(24)], 'shards': [shard]}
    files.write_json(tmp_path / 'dataset.json', meta)
    opened = shards.open_shards(tmp_path)

    def stream(count, index):
        share = {'batch_size': 4 // count, 'process_index': index, 'process_count': count}
        return pipeline.train_batches(opened, data=settings(crop=8), seed=5, **share)

    whole, position, seen = stream(1, 0), None, []
    for count in (2, 1, 4):
        streams = [stream(count, index) for index in range(count)]
        for one in streams:
            if position:
                one.set_state(json.loads(position))
        for _ in range(4):
            labels = np.concatenate([next(one)['label'] for one in streams])
            np.testing.assert_array_equal(labels, next(whole)['label'])
            seen.append(labels)
        positions = {json.dumps(one.get_state()) for one in streams}
        assert len(positions) == 1
        position = positions.pop()
    for epoch in np.concatenate(seen).reshape(2, 24):
        assert sorted(epoch) == list(range(24))


def test_a_batch_s_memory_is_used_again_only_when_nobody_holds_it(prepared):
    iterator = pipeline.train_batches(prepared, batch_size=4, data=settings(), seed=0)
    held = [next(iterator) for _ in range(12)]
    copies = [batch['lab'].copy() for batch in held]
    on_device = [jax.device_put(batch['lab']) for batch in held]  # on a CPU it may share the memory
    places = {batch['lab'].ctypes.data for batch in held}
    assert len(places) == 12
    del held
    later = [next(iterator)['lab'].ctypes.data for _ in range(40)]
    iterator.close()
    assert len(set(later)) < 40
    for array, copy in zip(on_device, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_photos_smaller_than_the_crop_are_enlarged(prepared):
    batch = take(pipeline.train_batches(prepared, batch_size=4, data=settings(crop=60), seed=0), 1)[0]
    assert batch['lab'].shape == (4, 60, 60, 3) and batch['lab'][..., 0].std() > 10


def test_features_pass_through(tmp_path):
    packed = [
        shards.encode_record(str(i), i, np.full((8, 8, 3), i, np.uint8), features={'f': np.full(3, i, np.float16)})
        for i in range(5)
    ]
    shards.write_shard(tmp_path / 'train-00000.arrayrecord', packed, 'raw')
    size = (tmp_path / 'train-00000.arrayrecord').stat().st_size
    shard = {'file': 'train-00000.arrayrecord', 'split': 'train', 'photos': 5, 'bytes': size}
    meta = {'version': shards.VERSION, 'counts': {'train': 5}, 'classes': list('abcde'), 'shards': [shard]}
    files.write_json(tmp_path / 'dataset.json', meta)
    opened = shards.open_shards(tmp_path)
    batch = take(pipeline.train_batches(opened, batch_size=4, data=settings(crop=8), seed=0), 1)[0]
    np.testing.assert_array_equal(batch['features']['f'], np.repeat(batch['label'][:, None], 3, 1).astype(np.float16))
    np.testing.assert_array_equal(batch['lab'][:, 0, 0, 0], batch['label'])
    last = list(pipeline.eval_batches(opened, 'train', batch_size=4, crop=8))[-1]
    assert last['features']['f'].shape == (4, 3) and last['mask'].tolist() == [True, False, False, False]


@pytest.mark.parametrize(
    'changes', [{'resized_crop': 2}, {'rotate': -1}, {'brightness': -0.1}, {'crop': 0}, {'read_threads': 0}]
)
def test_fields_out_of_range_are_refused(prepared, changes):
    with pytest.raises(UserError, match=rf'data\.{next(iter(changes))}'):
        pipeline.train_batches(prepared, batch_size=4, data=settings(**changes), seed=0)


# Augmentation.


def bits_with(**columns):
    """Random bits with the given columns set to fractions of 2^32; 0.5 means no rotation, shift or change."""
    bits = np.full(len(augment.Draw), 2**31, np.uint32)
    for name, part in columns.items():
        bits[augment.Draw[name]] = round(part * (2**32 - 1))
    return bits


def augmented(lab, bits, **changes):
    data = settings(**changes)
    out = np.empty((data.crop, data.crop, 3), np.uint8)
    augment.augment(lab, bits, data, out)
    return out


def picture(height=60, width=70):
    """A smooth image with three equal channels, to detect a channel that moves by itself."""
    y, x = np.mgrid[:height, :width]
    plane = (100 + 60 * np.sin(y / 9) * np.cos(x / 11) + x).astype(np.uint8)
    return np.stack([plane] * 3, axis=-1)


def test_flips_mirror_the_crop():
    lab, center = picture(), {'TOP': 0.5, 'LEFT': 0.5}
    plain = augmented(lab, bits_with(**center), crop=40)
    np.testing.assert_array_equal(plain, lab[10:50, 15:55])
    flip = augment.is_flipped(np.stack([bits_with(FLIP=0.1), bits_with(FLIP=0.9)]))
    flipped = device.flip({'lab': np.stack([plain, plain]), 'flip': flip})
    assert flipped.keys() == {'lab'}
    np.testing.assert_array_equal(flipped['lab'], [plain[:, ::-1], plain])
    vertical = augmented(lab, bits_with(**center, FLIP_VERTICAL=0.1), crop=40, flip_vertical=True)
    np.testing.assert_array_equal(vertical, plain[::-1])


def test_lightness_and_color_stay_aligned_through_every_change():
    rng = np.random.default_rng(0)
    for _ in range(20):
        bits = rng.integers(2**32, size=len(augment.Draw), dtype=np.uint32)
        out = augmented(picture(), bits, crop=40, **{**EVERYTHING, 'brightness': 0.0})
        np.testing.assert_array_equal(out[..., 0], out[..., 1])
        np.testing.assert_array_equal(out[..., 0], out[..., 2])


def test_shift_moves_by_the_drawn_fraction():
    lab = picture(60, 60)
    out = augmented(lab, bits_with(SHIFT_DOWN=1.0, SHIFT_RIGHT=0.0), crop=60, shift=0.1)
    np.testing.assert_allclose(out[6:, :-6].astype(int), lab[:-6, 6:].astype(int), atol=1)
    np.testing.assert_allclose(out[:6, :-6].astype(int), lab[:6, 6:][::-1].astype(int), atol=1)  # mirrored in


def test_rotation_by_90_degrees_is_exact():
    lab = picture(60, 60)
    out = augmented(lab, bits_with(ROTATE=1.0), crop=60, rotate=90.0)
    assert min(np.abs(out.astype(int) - np.rot90(lab, k).astype(int)).max() for k in (1, 3)) <= 1


def test_resized_crop_of_the_whole_photo():
    lab = picture(60, 60)
    out = augmented(lab, bits_with(AREA=1.0, ASPECT=0.5), crop=60, resized_crop=0.5)
    assert np.abs(out.astype(int) - lab).max() <= 1


def test_resized_crop_enlarges_nothing():
    lab = picture(60, 70)
    out = augmented(lab, bits_with(AREA=0.0, ASPECT=0.3, TOP=0.5, LEFT=0.2), crop=40, resized_crop=0.01)
    np.testing.assert_array_equal(out, lab[10:50, 6:46])


@pytest.mark.parametrize('part', [0.0, 0.2, 0.8])
def test_brightness_multiplies_linear_light(part):
    """Compared with the same in RGB, for colors that stay inside sRGB."""
    rng = np.random.default_rng(0)
    rgb = rng.uniform(0.25, 0.75, (40, 40, 3)).astype(np.float32)
    factor = 1.5 ** (2 * part - 1)
    linear = color.srgb_to_linear(rgb) * np.float32(factor)
    expected = color.rgb_to_lab(color.linear_to_srgb(linear))
    out = augmented(color.encode_lab(color.rgb_to_lab(rgb)), bits_with(BRIGHTNESS=part), crop=40, brightness=0.5)
    assert np.abs(color.decode_lab(out) - expected).max() < 1.5


# Evaluation batches.


@pytest.mark.parametrize(('batch_size', 'processes'), [(4, 1), (3, 1), (3, 2), (1, 3), (30, 1), (2, 5)])
def test_evaluation_shows_every_photo_once(prepared, batch_size, processes):
    names, lengths = [], set()
    for index in range(processes):
        batches = list(
            pipeline.eval_batches(
                prepared, 'train', batch_size=batch_size, crop=40, process_index=index, process_count=processes
            )
        )
        lengths.add(len(batches))
        for batch in batches:
            assert batch['lab'].shape == (batch_size, 40, 40, 3) and batch['mask'].dtype == bool
            assert not batch['lab'][~batch['mask']].any() and (batch['label'][~batch['mask']] == -1).all()
            assert [bool(name) for name in batch['name']] == batch['mask'].tolist()
            names += [name for name in batch['name'] if name]
    assert len(lengths) == 1
    records = prepared.records('train')
    assert sorted(names) == sorted(records[i]['name'] for i in range(20))


def test_evaluation_crops_the_center(prepared):
    first = next(iter(pipeline.eval_batches(prepared, 'validation', batch_size=1, crop=40)))
    lab = prepared.records('validation')[0]['lab']
    top, left = (lab.shape[0] - 40) // 2, (lab.shape[1] - 40) // 2
    np.testing.assert_array_equal(first['lab'][0], lab[top : top + 40, left : left + 40])
