"""Work in parts: the same values and gradients as all at once, whatever the parts."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcolor.models import parts
from jaxcolor.models.cpu_kernels import CPU_KERNELS, only_cpu_kernels
from jaxcolor.models.layers import ConvBlock
from jaxcolor.models.ltbc import LTBC

# Of the largest value: the same sums, by convolutions of other sizes, which may add their terms in another order.
TOLERANCE = 64 * float(np.finfo(np.float32).eps)


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def at_once_and_by_parts(function, *inputs):
    """What the function gives without the kernels of this file and with them, of which one must be used."""

    def program(kernels):
        with only_cpu_kernels(kernels):
            return jax.jit(lambda *inputs: function(*inputs)).lower(*inputs)

    at_once, by_parts = program(set(CPU_KERNELS) - {'parts', 'bands'}), program(CPU_KERNELS)
    assert by_parts.as_text().count('stablehlo.while') > at_once.as_text().count('stablehlo.while')
    return at_once.compile()(*inputs), by_parts.compile()(*inputs)


def assert_close(expected, found):
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE * np.abs(a).max())


class Encoder(nn.Module):
    """Three convolutions, two of them of stride 2, and one that is added to its input."""

    padding: str = 'symmetric'
    kernel: int = 3

    def setup(self):
        shared = {'kernel': self.kernel, 'padding': self.padding, 'batch_norm': True}
        self.blocks = [ConvBlock(4, 2, **shared), ConvBlock(4, residual=True, **shared), ConvBlock(6, 2, **shared)]

    def __call__(self, x):
        return parts.run_by_parts(self.blocks, x)


@pytest.mark.parametrize('padding', ['symmetric', 'SAME'])
@pytest.mark.parametrize(
    ('shape', 'largest'),
    [
        ((1, 128, 12), 800),  # two bands
        ((1, 200, 12), 800),  # three, whose rows do not divide the photo's
        ((2, 100, 20), 1000),  # of two photos
        ((3, 16, 12), 200),  # single photos
        ((5, 8, 8), 150),  # two photos, the last two of five with one that was done before
    ],
)
def test_runs_of_blocks(shape, largest, padding, monkeypatch):
    monkeypatch.setattr(parts, '_VALUES', largest)
    network, x = Encoder(padding), random(*shape, 1)
    variables = network.init(jax.random.key(0), x)
    variables = jax.tree.map(lambda v: np.abs(v + random(*v.shape) / 4), variables)  # biases and statistics, too
    assert_close(*at_once_and_by_parts(network.apply, variables, x))


@pytest.mark.parametrize('shape', [(1, 24, 100), (1, 130, 12), (1, 60, 12)])
def test_thin_bands_and_odd_sizes_are_left_as_they_are(shape, monkeypatch):
    """What bands would see beyond their own rows is no small part; no whole number of strides; small enough."""
    monkeypatch.setattr(parts, '_VALUES', 800)
    network, x = Encoder(), random(*shape, 1)
    program = jax.jit(network.apply).lower(network.init(jax.random.key(0), x), x).as_text()
    assert 'stablehlo.while' not in program


@pytest.mark.parametrize('shape', [(1, 256, 128, 1), (3, 72, 56, 1)])
def test_ltbc(shape, monkeypatch):
    monkeypatch.setattr(parts, '_VALUES', 2**14)
    network = LTBC(width=0.125, classes=3, global_size=64)
    lightness = np.random.default_rng(0).uniform(size=shape).astype(np.float32)
    variables = network.init(jax.random.key(0), lightness)
    assert_close(*at_once_and_by_parts(network.apply, variables, lightness))


def test_gradients(monkeypatch):
    monkeypatch.setattr(parts, '_VALUES', 800)
    network, x = Encoder(), random(1, 128, 12, 1)
    variables = network.init(jax.random.key(0), x)
    assert_close(*at_once_and_by_parts(jax.grad(lambda *inputs: jnp.sum(network.apply(*inputs) ** 2), (0, 1)), variables, x))


def test_training_is_not_done_in_parts(monkeypatch):
    monkeypatch.setattr(parts, '_VALUES', 2**10)
    network = LTBC(width=0.0625, classes=3, global_size=64)
    lightness = random(2, 64, 64, 1)
    variables = network.init(jax.random.key(0), lightness)

    def train(variables, lightness):
        return network.apply(variables, lightness, train=True, mutable=['batch_stats'])

    assert 'stablehlo.while' not in jax.jit(train).lower(variables, lightness).as_text()


@pytest.mark.parametrize('size', [(64, 48), (6, 1100), (37, 80), (3, 5)])
def test_by_pixel(size):
    def mix(x, kernel, mixed):
        hidden = jnp.maximum(x @ kernel, 0)
        return (hidden.reshape(2, -1, 9) @ mixed).reshape(*hidden.shape[:3], 3)

    def value_and_gradients(*inputs):
        value, pullback = jax.vjp(lambda *arrays: parts.by_pixel(*arrays, function=mix), *inputs)
        return value, pullback(jnp.ones_like(value))

    assert_close(*at_once_and_by_parts(value_and_gradients, random(2, *size, 4), random(4, 9), random(2, 9, 3)))
