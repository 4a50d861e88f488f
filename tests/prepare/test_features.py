"""Cached extractor features equal those computed in the step, leave the photos untouched, and are checked."""

import argparse
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import PHOTOS, assert_one_sentence, small_config
from flax import struct
from PIL import Image

from jaxcolor import config as base
from jaxcolor import files
from jaxcolor.data.shards import open_shards
from jaxcolor.errors import UserError
from jaxcolor.models.extractors import NETWORKS
from jaxcolor.prepare import command, features, prepare
from jaxcolor.runtime import logs
from jaxcolor.train import train
from jaxcolor.weights import runs


@struct.dataclass
class Means:
    """Stands in for an ImageNet network: 1000 weighted means of the photo, which differ from photo to photo."""

    name: str = struct.field(pytree_node=False, default='vgg16')
    flavor: str = struct.field(pytree_node=False, default='keras')
    source: str = struct.field(pytree_node=False, default='means.h5')

    def __call__(self, lightness, dtype=jnp.float32):
        x = jax.image.resize(lightness, (lightness.shape[0], 10, 100, 1), 'linear')
        return x.reshape(len(x), 1000) / 50.0 - 1.0


@pytest.fixture(scope='module')
def squares(tmp_path_factory):
    """A shard set of 12 square photos of 64 pixels, without features."""
    folder = tmp_path_factory.mktemp('squares')
    for split, count in (('train', 10), ('validation', 2)):
        (folder / 'photos' / split).mkdir(parents=True)
        for path in sorted((PHOTOS / split).iterdir())[:count]:
            Image.open(path).resize((64, 64)).save(folder / 'photos' / split / f'{path.stem}.png')
    prepare(folder / 'photos', folder / 'shards', size=64, shard_photos=4, quiet=True)
    return folder / 'shards'


@pytest.fixture
def config(squares):
    config = small_config(squares)
    config.model = base.vgg_fusion()
    config.model.width = 0.0625
    config.extractor.name = 'vgg16'
    config.task.update({'loss_resolution': 'input', 'alpha': 0.0})
    config.data.flip = False
    return config


@pytest.mark.slow
def test_cached_training_equals_training_on_the_fly(squares, config, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, 'load_extractor', lambda run, config: Means())
    before = [open_shards(squares).records('train')[i] for i in range(10)]
    train(config, tmp_path / 'fly')
    features.add_features(open_shards(squares), Means(), quiet=True)
    after = [open_shards(squares).records('train')[i] for i in range(10)]
    for a, b in zip(before, after, strict=True):
        assert a['name'] == b['name']
        assert (a['lab'] == b['lab']).all()
        assert b['features']['vgg16'].shape == (1000,)
    config.extractor.cached = True
    train(config, tmp_path / 'cached')
    rows = [logs.read_metrics(tmp_path / run) for run in ('fly', 'cached')]
    for a, b in zip(*rows, strict=True):
        assert a.keys() == b.keys()
        for name in {'loss', 'grad_norm', 'validation/loss'} & a.keys():
            assert a[name] == pytest.approx(b[name], rel=1e-4)
    # Adding them again changes nothing; other weights are refused.
    files = {file.name: file.stat().st_mtime_ns for file in squares.iterdir()}
    features.add_features(open_shards(squares), Means(), quiet=True)
    assert {file.name: file.stat().st_mtime_ns for file in squares.iterdir()} == files
    with pytest.raises(UserError, match=r'weights means.h5, not other.h5'):
        features.add_features(open_shards(squares), Means(source='other.h5'), quiet=True)
    monkeypatch.setattr(runs, 'load_extractor', lambda run, config: Means(source='other.h5'))
    with pytest.raises(UserError, match=r'weights means.h5, not other.h5'):
        train(config, tmp_path / 'other')


def test_interruption_leaves_the_set_whole(shards, tmp_path, monkeypatch):
    prepare(PHOTOS, tmp_path / 'set', size=32, shard_photos=8, quiet=True)
    names = [photo['name'] for photo in map(open_shards(tmp_path / 'set').records('train').__getitem__, range(20))]
    monkeypatch.setattr(files, 'write_json', lambda path, value: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        features.add_features(open_shards(tmp_path / 'set'), Means(), quiet=True)
    monkeypatch.undo()
    assert 'features' not in json.loads((tmp_path / 'set' / 'dataset.json').read_text())
    features.add_features(open_shards(tmp_path / 'set'), Means(), quiet=True)
    whole = open_shards(tmp_path / 'set')
    assert [whole.records('train')[i]['name'] for i in range(20)] == names
    assert {f.name for f in whole.path.glob('*.arrayrecord*')} == {s['file'] for s in whole.meta['shards']}
    expected = Means()(np.full((1, 32, 32, 1), 30, np.float32)).shape[1:]
    assert whole.records('validation')[3]['features']['vgg16'].shape == expected


def test_cached_without_features_is_refused(config, tmp_path, monkeypatch, shards):
    monkeypatch.setattr(runs, 'load_extractor', lambda run, config: Means())
    config.extractor.cached = True
    config.data.shards = str(shards)
    with pytest.raises(UserError, match='holds no features of vgg16'):
        train(config, tmp_path / 'run')


def test_command_offers_every_extractor():
    parser = argparse.ArgumentParser()
    command.add_prepare_arguments(parser)
    choices = next(action.choices for action in parser._actions if action.dest == 'features')
    assert set(choices) == set(NETWORKS)


def test_missing_weights_are_one_sentence(cli, tmp_path):
    code, _, stderr = cli(
        'prepare', PHOTOS, f'--out={tmp_path / "set"}', '--features=vgg16', f'--extractor-weights={tmp_path / "no.h5"}'
    )
    assert_one_sentence(code, stderr, tmp_path / 'no.h5')
    assert not (tmp_path / 'set').exists()
