"""Batches made on the device, and where the photos lie."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_pipeline import assert_same, settings, take

from jaxcolor.data import augment, device, pipeline
from jaxcolor.errors import UserError
from jaxcolor.prepare import bundled, prepare


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
    return prepare(bundled.PHOTOS, tmp_path_factory.mktemp('set') / 'shards', size=48, shard_photos=7, quiet=True)


@pytest.mark.parametrize('crop', [40, 60])
def test_device_makes_the_same_batches_as_the_host(prepared, crop):
    data = settings(crop=crop, flip_vertical=True)
    dataset = device.to_device(prepared, 'train', data)
    step = jax.jit(lambda dataset, **indices: device.gather(dataset, **indices, data=data, seed=7))
    host = take(pipeline.train_batches(prepared, batch_size=6, data=data, seed=7), 8)
    for i, expected in enumerate(host):
        epoch, index = device.epoch_and_index(6 * i, len(dataset.label))
        batch = step(dataset, epoch=epoch, index=index, offsets=jnp.arange(6, dtype=jnp.uint32))
        assert batch['lab'].dtype == jnp.uint8 and batch['label'].dtype == jnp.int32
        assert_same([jax.device_get(batch)], [device.flip(expected)])


@pytest.mark.parametrize('crop', [24, 40])
@pytest.mark.parametrize('changes', [{'resized_crop': 0.2}, {'resized_crop': 0.6, 'brightness': 0.3, 'flip_vertical': True}])
def test_device_resizes_and_brightens_as_the_host_does(prepared, crop, changes):
    """Boxes of up to twice the crop. Pillow chooses which pass comes first and rounds between them: two levels apart."""
    data = settings(crop=crop, **changes)
    dataset = device.to_device(prepared, 'train', data)
    step = jax.jit(lambda dataset, **indices: device.gather(dataset, **indices, data=data, seed=7)['lab'])
    host = take(pipeline.train_batches(prepared, batch_size=6, data=data, seed=7), 8)
    differences = []
    for i, expected in enumerate(host):
        epoch, index = device.epoch_and_index(6 * i, len(dataset.label))
        lab = step(dataset, epoch=epoch, index=index, offsets=jnp.arange(6, dtype=jnp.uint32))
        assert lab.dtype == jnp.uint8
        differences.append(np.abs(np.asarray(lab, np.int32) - np.asarray(device.flip(expected)['lab'])))
    assert np.max(differences) <= 2
    assert np.mean(differences) < 0.02  # a box that is moved by one pixel is off by whole levels


def test_device_boxes_reach_every_size_that_the_host_s_do():
    """The same boxes in float32 as in float64, at any size of photo."""
    data, rng = settings(crop=40, resized_crop=0.2), np.random.default_rng(0)
    height, width = rng.integers(40, 500, (2, 20_000))
    units = {draw: rng.integers(2**32, size=20_000) / 2**32 for draw in augment.BOX_DRAWS}
    host = np.stack(augment.random_box(height, width, units, data, np))
    single = {draw: jnp.asarray(unit, jnp.float32) for draw, unit in units.items()}
    sizes = jnp.asarray(height, jnp.float32), jnp.asarray(width, jnp.float32)
    here = np.stack(jax.jit(lambda *x: augment.random_box(*x, data, jnp))(*sizes, single))
    assert np.abs(host - here).max() <= 1 and np.mean(host != here) < 1e-4
    top, left, box_height, box_width = host
    assert (box_height >= 40).all() and (box_width >= 40).all() and (top >= 0).all() and (left >= 0).all()
    assert (top + box_height <= height).all() and (left + box_width <= width).all()
    area = box_height * box_width / (height * width)
    assert np.quantile(area, 0.05) > 0.2 and np.quantile(area, 0.95) > 0.8


class Gpu:
    """What is asked of a device with so many bytes."""

    platform = 'gpu'

    def __init__(self, size):
        self._size = size

    def memory_stats(self):
        return {'bytes_limit': self._size}


def test_the_device_holds_the_photos_where_it_has_room(prepared, monkeypatch):
    size = device.to_device(prepared, 'train', settings()).pixels.nbytes

    def chosen(where, **changes):
        return device.choose_placement(prepared, 'train', settings(**changes), where)

    assert chosen(Gpu(6 * size)) == 'device' and chosen(Gpu(4 * size)) == 'host'
    assert chosen(Gpu(6 * size), crop=80) == 'host'  # photos are enlarged
    assert chosen(Gpu(6 * size), shift=0.1) == 'host' and chosen(Gpu(6 * size), resized_crop=0.3) == 'device'
    assert chosen(jax.devices()[0]) == 'host'
    assert chosen(Gpu(10), placement='device') == 'device' and chosen(Gpu(6 * size), placement='host') == 'host'
    monkeypatch.setattr(device, 'MAX_PIXELS', size // 6)
    assert chosen(Gpu(6 * size)) == 'host'


def test_device_placement_refuses_other_augmentation(prepared):
    with pytest.raises(UserError, match=r'data\.rotate'):
        device.to_device(prepared, 'train', settings(rotate=5.0))
