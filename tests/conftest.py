"""Every test runs on 8 host devices and under strict dtype promotion; with `-m gpu` on the GPUs that there are."""

import gc
import importlib.util
import itertools
import os
import sys
import tempfile

# pytest's workers inherit it.
if ('-m', 'gpu') in itertools.pairwise(sys.argv):
    os.environ.setdefault('JAXCOLOR_TESTS_ON', 'gpu')
TESTS_ON = os.environ.get('JAXCOLOR_TESTS_ON', 'cpu')

# Flags from outside are kept, such as another instruction set (--xla_cpu_max_isa=AVX2); pytest's workers inherit them.
FLAGS = ' '.join(flag for flag in os.environ.get('XLA_FLAGS', '').split() if 'host_platform_device_count' not in flag)
# Most of the suite's time is XLA's: unoptimized code compiles in half of it.
if 'backend_optimization_level' not in FLAGS:
    FLAGS = f'{FLAGS} --xla_backend_optimization_level=0'.strip()
os.environ['XLA_FLAGS'] = f'{FLAGS} --xla_force_host_platform_device_count=8'
if TESTS_ON == 'cpu':
    os.environ['JAX_PLATFORMS'] = 'cpu'
else:
    os.environ['XLA_PYTHON_CLIENT_PREALLOCATE'] = 'false'  # two workers share a GPU
os.environ['MPLBACKEND'] = 'agg'
# Tests (and the commands that they run) share what has been compiled, too.
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    os.environ['JAX_COMPILATION_CACHE_DIR'] = tempfile.mkdtemp(prefix='jaxcolor-tests-')
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.3'

import shutil
import subprocess
from pathlib import Path

import filelock
import jax
import numpy as np
import pytest
from absl import flags
from PIL import Image

jax.config.update('jax_numpy_dtype_promotion', 'strict')
# Traces are many objects; by default the collector walks through them all the time.
gc.set_threshold(100_000, 50, 100)
# Grain's worker processes read absl flags.
flags.FLAGS.mark_as_parsed()

ROOT = Path(__file__).parent.parent
PHOTOS = ROOT / 'jaxcolor' / 'data' / 'photos'
# The extra [video] is not part of [test].
has_video = importlib.util.find_spec('av') is not None and importlib.util.find_spec('cv2') is not None
collect_ignore = [] if has_video else ['video/test_containers.py', 'video/test_film.py', 'video/test_steady.py']


@pytest.fixture(scope='session')
def photos():
    """The bundled photos as uint8 RGB arrays of their own sizes, in order of their names."""
    return [np.asarray(Image.open(path).convert('RGB')) for path in sorted(PHOTOS.rglob('*.jpg'))]


def made_once(tmp_path_factory, name, make):
    """A folder that the first test process to ask for it makes, for all of them."""
    base = tmp_path_factory.getbasetemp()
    if 'PYTEST_XDIST_WORKER' in os.environ:
        base = base.parent
    with filelock.FileLock(base / f'{name}.lock'):
        if not (base / f'{name}.made').exists():
            make(base / name)
            (base / f'{name}.made').touch()
    return base / name


@pytest.fixture(scope='session')
def shards(tmp_path_factory):
    """The folder of a shard set of the bundled photos at 74 pixels: 20 train, 4 validation."""
    from jaxcolor.prepare import prepare

    return made_once(tmp_path_factory, 'shards', lambda folder: prepare(PHOTOS, folder, size=74, quiet=True))


def small_config(shards):
    """The quickstart's recipe made smaller still: 64 pixels, an eighth of the width, one 8-photo batch a step."""
    from jaxcolor.recipes import load_recipe

    config = load_recipe('ltbc:quickstart')
    config.model.update({'width': 0.125, 'global_size': 32})
    config.data.update({'shards': str(shards), 'crop': 64})
    config.train.update({'batch_size': 8, 'steps': 4, 'log_every': 1, 'eval_every': 1000, 'checkpoint_every': 1000})
    config.train.update({'grid_photos': 2, 'eval_splits': ('validation', 'train')})
    return config


@pytest.fixture
def tiny_config(shards):
    """`small_config` for one test to change."""
    return small_config(shards)


@pytest.fixture(scope='session')
def trained(tmp_path_factory, shards):
    """The run directory of 4 steps of `small_config`; tests that change it take a copy."""
    from jaxcolor.train import train

    return made_once(tmp_path_factory, 'trained', lambda folder: train(small_config(shards), folder))


@pytest.fixture(scope='session')
def colorizer(trained):
    """The network of `trained`."""
    from jaxcolor.inference.colorizer import Colorizer

    return Colorizer(trained)


@pytest.fixture(scope='session')
def slurm(tmp_path_factory):
    """A cluster of 2 nodes, this test process's own."""
    from slurm_cluster import Slurm

    missing = [name for name in ('slurmctld', 'slurmd', 'munged', 'mpirun', 'ip') if shutil.which(name) is None]
    assert os.getuid() == 0 and not missing, f'needs root and {missing}'
    with Slurm(tmp_path_factory.mktemp('slurm'), 2) as cluster:
        yield cluster


@pytest.fixture(scope='session')
def undisturbed(slurm, tmp_path_factory):
    """The run directory of a training over 2 nodes that nothing happened to."""
    from slurm_cluster import train_undisturbed

    return made_once(tmp_path_factory, 'undisturbed', lambda run: train_undisturbed(slurm, run))


@pytest.fixture(scope='session')
def command():
    """Runs `jaxcolor COMMAND ARGS...` (or `python -m jaxcolor.main`) as a user would, on one device -> (exit code, stdout,
    stderr)."""

    def run(name, *args, **kwargs):
        environment = {**os.environ, 'XLA_FLAGS': FLAGS, **kwargs.pop('env', {})}
        module = ['jaxcolor.main'] if name == 'main' else ['jaxcolor', name]
        done = subprocess.run(
            [sys.executable, '-m', *module, *map(str, args)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=environment,
            timeout=600,
            **kwargs,
        )
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.fixture
def cli(capsys):
    """Runs `jaxcolor COMMAND ARGS...` in this process -> (exit code, stdout, stderr)."""
    from jaxcolor.cli import main

    def run(*args):
        code = 0
        capsys.readouterr()
        try:
            main([str(word) for word in args])
        except SystemExit as end:
            code = end.code or 0
        return code, *capsys.readouterr()

    return run


def assert_one_sentence(code, stderr, *parts):
    """A command refused its input: non-zero exit, one line for the user that has all the parts, and no traceback."""
    lines = [line for line in stderr.splitlines() if line.startswith('jaxcolor: error: ')]
    assert code != 0
    assert 'Traceback' not in stderr, stderr
    assert len(lines) == 1, stderr
    for part in parts:
        assert str(part) in lines[0], lines[0]
