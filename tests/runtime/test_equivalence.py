"""Every recipe, made small, takes the same step on one device, on eight and on two processes, by either mapping."""

import functools
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import FLAGS, ROOT, made_once
from helpers import GLANCE, SMALL, first_gradients, norm

from jaxcolor.models import extractors
from jaxcolor.recipes import recipes_folder
from jaxcolor.runtime.parallel import DataParallel

# The others are nightly: `ltbc` is in test_parallel.py, `ltbc_compact` in test_color_classes.py, a discriminator in
# test_regression.py.
_ALWAYS = ('deepcolor',)
RECIPES = [name if name in _ALWAYS else pytest.param(name, marks=pytest.mark.slow) for name in SMALL]


@pytest.fixture(scope='module', autouse=True)
def glance():
    """The extractor that small recipes ask for; files and steps handle it as any other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(extractors.NETWORKS, 'glance', GLANCE)
        yield


@pytest.fixture(scope='module')
def on_one_device(tmp_path_factory):
    """name -> the step on one device."""
    folder = tmp_path_factory.mktemp('one')
    return functools.cache(lambda name: first_gradients(name, DataParallel(devices=jax.devices()[:1]), folder / name))


@pytest.fixture(scope='session')
def by_two_processes(tmp_path_factory):
    """The folder of what cluster/first_gradients.py writes, by two processes of two devices each."""

    def run(folder):
        folder.mkdir()
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            coordinator = f'127.0.0.1:{free.getsockname()[1]}'
        path = os.pathsep.join(map(str, (ROOT, ROOT / 'tests', os.environ.get('PYTHONPATH', ''))))
        flags = f'{FLAGS} --xla_force_host_platform_device_count=2'
        script, environ = Path(__file__).parent / 'cluster' / 'first_gradients.py', {'XLA_FLAGS': flags, 'PYTHONPATH': path}
        processes = [
            subprocess.Popen([sys.executable, script, coordinator, '2', str(i), folder], env={**os.environ, **environ})
            for i in range(2)
        ]
        assert [process.wait(timeout=1800) for process in processes] == [0, 0]

    return made_once(tmp_path_factory, 'two_processes', run)


def assert_same_step(one, other):
    """Gradients with their scale, statistics, metrics: equal but for rounding."""
    assert one.keys() == other.keys()
    of = {kind: {n: v for n, v in one.items() if n.split('/')[0] == kind} for kind in ('gradients', 'changes')}
    # By norms: single elements jump where rounding takes a pixel across a ReLU's zero.
    whole = norm(of['gradients'].values())
    assert whole > 1e-3
    assert norm(of['changes'].values()) == pytest.approx(1e-3 * whole, rel=1e-2)  # all parameters moved by their gradients
    for name, a in one.items():
        b, kind = other[name], name.split('/')[0]
        if kind == 'gradients':
            assert norm([a - b]) < 0.03 * norm([a]) + 1e-4 * whole, name
        elif kind == 'statistics':
            # Behind a batch norm and a linear layer a mean is 0, but for the rounding of values about 1.
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-3 * np.abs(a).max() + 1e-6, err_msg=name)
        elif kind == 'metrics':
            np.testing.assert_allclose(a, b, rtol=1e-3, err_msg=name)


def test_no_recipe_is_left_out():
    assert set(SMALL) == {path.stem for path in recipes_folder().glob('*.py') if path.stem != '__init__'}


@pytest.mark.parametrize('name', RECIPES)
def test_eight_devices_equal_one(on_one_device, tmp_path, name):
    for mapping in ('shard_map', 'pmap'):
        assert_same_step(on_one_device(name), first_gradients(name, DataParallel(mapping), tmp_path))


def test_deepcolor_penalizes_all_kernels_but_its_encoder_s_last(on_one_device):
    step = on_one_device('deepcolor')
    kernels = [v for n, v in step.items() if n.startswith('before/') and n.endswith('/kernel') and '/encoder_7/' not in n]
    np.testing.assert_allclose(step['metrics/l2_loss'], 0.01 * norm(kernels) ** 2, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('mapping', ['shard_map', 'pmap'])
@pytest.mark.parametrize('name', list(SMALL))
def test_two_processes_of_two_devices_equal_one(on_one_device, by_two_processes, name, mapping):
    with np.load(by_two_processes / f'{name}-{mapping}.npz') as results:
        assert_same_step(on_one_device(name), dict(results))
