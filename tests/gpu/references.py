"""What a CPU computes, kept in references.npz for machines that have a GPU.

    PYTHONPATH=.:tests python tests/gpu/references.py

writes it anew.
"""

import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import PHOTOS
from helpers import GLANCE, SMALL, first_gradients
from PIL import Image

import jaxcolor
from jaxcolor.models import extractors
from jaxcolor.runtime.parallel import DataParallel

FILE = Path(__file__).parent / 'references.npz'
_PROJECTIONS = 8


def sketch(array):
    """Products of an array with 8 fixed random vectors: the sketch of a difference is about as long as the difference."""
    flat = np.ravel(np.asarray(array, np.float64))
    rng = np.random.default_rng(flat.size)
    return np.array([flat @ rng.standard_normal(flat.size) for _ in range(_PROJECTIONS)]) / _PROJECTIONS**0.5


def step_of(name, folder, **model):
    """A step of a small recipe on the first device, with fields of its model changed -> {'gradients/NAME': sketch,
    'metrics/NAME': number}."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(extractors.NETWORKS, 'glance', GLANCE)
        step = first_gradients(name, DataParallel(devices=jax.devices()[:1]), folder, **model)
    kinds = {'gradients': sketch, 'metrics': np.asarray}
    return {key: kinds[kind](value) for key, value in step.items() if (kind := key.partition('/')[0]) in kinds}


def colored():
    """A bundled photo of 72 pixels, colored by the model that comes with the package: uint8 (H, W, 3)."""
    image = Image.open(PHOTOS / 'validation' / 'monuments-petra.jpg').convert('RGB')
    image.thumbnail((72, 72), Image.Resampling.BOX)
    return np.asarray(jaxcolor.load()(np.asarray(image)))


def read():
    """The file's content -> ({name of a recipe: as `step_of`}, what `colored` gives)."""
    with np.load(FILE) as file:
        steps = {name: dict(zip(file[f'{name}:keys'].tolist(), file[name], strict=True)) for name in SMALL}
        for step in steps.values():
            step.update({key: value[0] for key, value in step.items() if key.startswith('metrics')})
        return steps, file['colored']


def write():
    """Writes the file."""
    arrays = {'colored': colored()}
    with tempfile.TemporaryDirectory() as folder:
        for name in SMALL:
            step = step_of(name, Path(folder) / name)
            arrays[f'{name}:keys'] = np.array(sorted(step))  # an entry for each would take more space than the numbers
            arrays[name] = np.array([np.broadcast_to(step[key], _PROJECTIONS) for key in sorted(step)], np.float32)
    np.savez_compressed(FILE, **arrays)


if __name__ == '__main__':
    write()
