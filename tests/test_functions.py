"""`jaxcolor.train`, `prepare` and `evaluate` as functions, and what they and `load` refuse."""

import inspect
import sys

import pytest
from conftest import PHOTOS
from ml_collections import ConfigDict

import jaxcolor
from jaxcolor.errors import UserError


@pytest.mark.slow
def test_the_functions_of_commands(trained, shards, tmp_path):
    """`train` and `prepare` are modules that can be called; `evaluate` is a function."""
    import jaxcolor.prepare
    import jaxcolor.train

    assert inspect.ismodule(jaxcolor.train) and inspect.ismodule(jaxcolor.prepare)
    assert jaxcolor.train.__doc__.startswith('Trains as `jaxcolor train` does')
    assert jaxcolor.train.train is sys.modules['jaxcolor.train'].train
    assert list(inspect.signature(jaxcolor.train).parameters) == ['config', 'workdir', 'data', 'fields']
    made = jaxcolor.prepare(PHOTOS / 'validation', tmp_path / 'set', size=74, split='train:0.5,validation:0.5', quiet=True)
    assert sum(len(made.records(split)) for split in ('train', 'validation')) == 4
    (tmp_path / 'names.txt').write_text('none-of-these*\n')
    few = {'split': 'train:1', 'limit': 1, 'quiet': True}
    assert len(jaxcolor.prepare(PHOTOS / 'validation', tmp_path / 'few', **few).records('train')) == 1
    with pytest.raises(UserError, match='no photo of none-of-these'):
        jaxcolor.prepare(PHOTOS / 'validation', tmp_path / 'all', leave_out=tmp_path / 'names.txt', quiet=True)
    with pytest.raises(UserError, match='none is selected'):
        jaxcolor.prepare(PHOTOS / 'validation', tmp_path / 'none', classes='bird,cat', quiet=True)
    small = {'model.width': 0.125, 'model.global_size': 32, 'data.crop': 64, 'train.batch_size': 8, 'train.steps': 2}
    results = jaxcolor.train('ltbc:quickstart', tmp_path / 'run', data=shards, fields=small)
    assert results and (tmp_path / 'run' / 'curves.png').exists()
    config = jaxcolor.load(tmp_path / 'run').config
    assert config.data.shards == str(shards) and config.train.steps == 2
    with pytest.raises(UserError, match='fields are for recipes'):
        jaxcolor.train(config, tmp_path / 'run', fields=small)
    measured = jaxcolor.evaluate(trained, data=shards, splits='validation', grid_photos=1)
    assert measured['validation']['network']['psnr'] > 0


def test_the_functions_of_commands_refuse_in_a_sentence(tmp_path):
    for call, sentence in [
        (lambda: jaxcolor.train('ltbx'), "no recipe 'ltbx'"),
        (lambda: jaxcolor.train('ltbc', fields={'train.stepz': 1}), 'no field'),
        (lambda: jaxcolor.prepare(tmp_path, tmp_path / 'a', sise=4), "no argument 'sise'"),
        (lambda: jaxcolor.prepare(tmp_path / 'none', tmp_path / 'a'), 'none'),
        (lambda: jaxcolor.evaluate('ltbc-lite', protocol='val5k'), 'needs a folder'),
        (lambda: jaxcolor.train(None), 'config is a path'),
        (lambda: jaxcolor.train(ConfigDict()), 'the config has no data'),
        (lambda: jaxcolor.train('ltbc', fields=['train.steps=1']), 'fields are a dictionary'),
        (lambda: jaxcolor.prepare(None, tmp_path / 'a'), 'photos is a path'),
        (lambda: jaxcolor.prepare(PHOTOS, tmp_path / 'a', size='64'), "--size must be a whole number, not '64'"),
        (lambda: jaxcolor.prepare(PHOTOS, tmp_path / 'a', fraction='1'), '--fraction must be a number'),
        (lambda: jaxcolor.prepare(PHOTOS, tmp_path / 'a', split={'train': 1}), '--split must be a text'),
        (lambda: jaxcolor.prepare(PHOTOS, tmp_path / 'a', features='vgg'), "no extractor 'vgg'"),
        (lambda: jaxcolor.prepare(PHOTOS, tmp_path / 'a', workers='2'), 'workers'),
        (lambda: jaxcolor.prepare(PHOTOS, tmp_path / 'a', classes=3), 'classes is a list'),
        (lambda: jaxcolor.prepare(PHOTOS, tmp_path / 'a', leave_out=tmp_path / 'none'), 'none cannot be read'),
        (lambda: jaxcolor.evaluate(None), 'model is a path'),
        (lambda: jaxcolor.evaluate('ltbc-lite', PHOTOS, protocol='native', data=tmp_path), 'not of both'),
        (lambda: jaxcolor.evaluate('ltbc-lite', PHOTOS, protocol='native', compare='none'), 'none is no run directory'),
        (lambda: jaxcolor.evaluate('ltbc-lite', data=tmp_path, splits=[]), 'splits names none'),
        (lambda: jaxcolor.load('ltbx'), 'ltbx'),
        (lambda: jaxcolor.load(size=16), 'at least 32'),
        (lambda: jaxcolor.load(size='128'), 'whole number'),
        (lambda: jaxcolor.load(max_megapixels=-1), 'max_megapixels must be'),
    ]:
        with pytest.raises(UserError, match=sentence):
            call()
    with pytest.raises(AttributeError, match='no attribute'):
        jaxcolor.paint  # noqa: B018
