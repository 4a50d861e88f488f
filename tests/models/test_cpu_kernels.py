"""CPU kernels: the values and gradients of the plain operations, and taken where a program is lowered for CPUs only."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from jaxcolor.models import depthwise, layers, parts
from jaxcolor.models.cpu_kernels import CPU_KERNELS, only_cpu_kernels

# Of the largest value: sums of up to a thousand products, regrouped; bfloat16 has 2^-8, and several roundings.
TOLERANCE = {'float32': 128 * float(np.finfo(np.float32).eps), 'bfloat16': 8 * 2**-8}


def random(*shape, dtype='float32', seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def value_and_gradients(function, kernels=CPU_KERNELS):
    """A fresh function of the same inputs: the value, and the gradients to every input."""

    def both(*inputs):
        with only_cpu_kernels(kernels):
            outputs, pullback = jax.vjp(function, *inputs)
            return outputs, pullback(jax.tree.map(lambda y: random(*y.shape, dtype=y.dtype, seed=1), outputs))

    return jax.jit(both)


def assert_close(expected, found, tolerance):
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(a).max())


def assert_same_with_kernels(function, *inputs):
    plain, by_kernels = value_and_gradients(function, ()), value_and_gradients(function)
    assert operations(plain.lower(*inputs).as_text()) != operations(by_kernels.lower(*inputs).as_text())
    assert_close(plain(*inputs), by_kernels(*inputs), TOLERANCE[inputs[0].dtype.name])


def assert_same_layer(layer, x, params):
    assert_same_with_kernels(lambda x, params: layer.apply({'params': params}, x), x, params)


def operations(program):
    """The numbers of convolutions, of those among them of NHWC with HWIO, of matrix products, and of sums that share a loop
    with another one, in StableHLO."""
    shared = program.count(' init: ') - program.count('stablehlo.reduce(')
    convolutions = program.count('stablehlo.convolution'), program.count('[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]')
    return *convolutions, program.count('stablehlo.dot_general'), shared


@pytest.mark.parametrize('kernel', [1, 2, 3])
@pytest.mark.parametrize('side', [1, 2])
def test_strided_on_one_or_two_pixels(side, kernel):
    padding = ((kernel // 2, kernel // 2),) * 2

    def conv(x, kernel):
        return layers.conv2d(x, kernel, strides=2, padding=padding)

    inputs = random(2, side, side, 3), random(kernel, kernel, 3, 4)
    expected, found = value_and_gradients(conv, ())(*inputs), value_and_gradients(conv)(*inputs)
    assert_close(expected, found, TOLERANCE['float32'])


@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('size', [(8, 8), (7, 9), (6, 11)])
class TestValues:
    @pytest.mark.parametrize('kernel', [3, 5])
    @pytest.mark.parametrize('padding', ['symmetric', 'SAME'])
    def test_strided(self, size, dtype, kernel, padding):
        layer = layers.Conv(4, 2, kernel, padding, dtype=dtype)
        params = {'kernel': random(kernel, kernel, 3, 4), 'bias': random(4)}
        assert_same_layer(layer, random(2, *size, 3, dtype=dtype), params)

    def test_upsampled(self, size, dtype):
        layer = layers.Conv(4, upsampled=True, dtype=dtype)
        params = {'kernel': random(3, 3, 3, 4), 'bias': random(4)}
        assert_same_layer(layer, random(2, *size, 3, dtype=dtype), params)

    def test_transposed(self, size, dtype):
        layer = layers.ConvTranspose(4, 2, dtype=dtype)
        params = {'kernel': random(3, 3, 3, 4), 'bias': random(4)}
        assert_same_layer(layer, random(2, *size, 3, dtype=dtype), params)

    def test_batch_norm(self, size, dtype):
        layer = layers.BatchNorm(train=True, dtype=dtype)
        params = {'scale': random(3), 'bias': random(3)}
        statistics = {'mean': random(3), 'var': jnp.ones(3)}

        def outputs_and_statistics(x, params):
            return layer.apply({'params': params, 'batch_stats': statistics}, x, mutable=['batch_stats'])

        assert_same_with_kernels(outputs_and_statistics, random(2, *size, 3, dtype=dtype), params)


@pytest.mark.parametrize(('size', 'features'), [((32, 32), 256), ((31, 35), 256), ((31, 35), 128)])
def test_winograd(size, features):
    """With 128 channels the gradients are plain."""
    layer = layers.Conv(features)
    params = {'kernel': random(3, 3, 128, features) / 34, 'bias': random(features)}
    assert_same_layer(layer, random(2, *size, 128), params)


@pytest.mark.parametrize('taps', [(3, 3), (5, 5), (7, 3)])
@pytest.mark.parametrize(('channels', 'features'), [(5, 2), (2, 5)])
def test_narrow(channels, features, taps):
    """To few channels; or from few, so that the gradient to the image is one to few."""
    padding = tuple((n // 2, n // 2) for n in taps)
    inputs = random(2, 7, 9, channels), random(*taps, channels, features)
    assert_same_with_kernels(lambda x, kernel: layers.conv2d(x, kernel, strides=1, padding=padding), *inputs)


@pytest.mark.parametrize('rows', [17, 74])
def test_moments_of_numbers_of_rows_with_a_large_prime(rows):
    assert_same_with_kernels(layers.channel_moments, random(rows, 3))


@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('rows', [1, 30, 17, 2 * 11 * 13])
def test_sums_to_biases(rows, dtype):
    """Of numbers of rows that 32 does not divide, too; bfloat16 is summed in float32."""
    inputs = random(rows, 3, dtype=dtype), random(3, dtype=dtype)
    plain = value_and_gradients(layers.add_bias, ())(*(x.astype(jnp.float32) for x in inputs))
    found = value_and_gradients(layers.add_bias)(*inputs)
    assert_close(jax.tree.map(lambda x: x.astype(dtype), plain), found, TOLERANCE[dtype])


@pytest.mark.parametrize('dilation', [2, 3])
@pytest.mark.parametrize(('size', 'features'), [((12, 12), (4, 5)), ((7, 10), (4, 5)), ((33, 40), (128, 256))])
def test_dilated(size, features, dilation):
    """The wide ones by Winograd's transform."""
    kernel = random(3, 3, *features) / features[0] ** 0.5
    inputs = random(2, *size, features[0]), kernel
    assert_same_with_kernels(lambda x, kernel: layers.dilated_conv2d(x, kernel, dilation=dilation), *inputs)


@pytest.mark.parametrize('dtype', TOLERANCE)
def test_attention(dtype):
    inputs = (random(2, n, 12, dtype=dtype, seed=n) for n in (5, 9, 9))
    with jax.numpy_dtype_promotion('standard'):  # JAX's own attention needs it in half precision
        assert_same_with_kernels(lambda *arrays: layers.attention(*arrays, heads=3), *inputs)


# Each kernel's operation, forward and backward; its `operations`, plain and on CPUs. Where a phase of a kernel is a single
# pixel, its gradients are products; the two sums of batch norm share two loops forward (72 rows) and three backward (2048).
SAME = ((1, 1), (1, 1))
CASES = {
    'strided': (lambda x, kernel: layers.conv2d(x, kernel, strides=2, padding=SAME), (3, 1, 0, 0), (5, 5, 1, 0)),
    'winograd': (lambda x, kernel: layers.conv2d(x, kernel, strides=1, padding=SAME), (3, 1, 0, 0), (0, 0, 16 + 32, 0)),
    'narrow': (
        lambda x, kernel: layers.conv2d(x, kernel[..., :3], strides=1, padding=SAME),
        (3, 1, 0, 0),
        (0, 0, 3, 0),
    ),
    'dilated': (lambda x, kernel: layers.dilated_conv2d(x, kernel, dilation=2), (3, 2, 0, 0), (3, 3, 0, 0)),
    'gradients': (lambda x, kernel: layers.conv2d(x, kernel, strides=1, padding=SAME), (3, 1, 0, 0), (3, 3, 0, 0)),
    'upsampled': (layers.upsample_conv2d, (3, 1, 0, 0), (0, 0, 12, 0)),
    'transposed': (lambda x, kernel: layers.conv_transpose2d(x, kernel, strides=2), (3, 2, 0, 0), (10, 10, 2, 0)),
    'depthwise': (
        lambda x, kernel: depthwise.depthwise_conv2d(x, kernel[:, :, :1], strides=1, padding=SAME),
        (0, 0, 0, 0),
        (0, 0, 0, 8),
    ),
    # Queries (2, 8, 32) and keys (2, 32, 32); 2 products a head, 1 of them again backward, and 4 for the gradients.
    'attention': (
        lambda x, kernel: layers.attention(x[:, 0].swapaxes(1, 2), x[:, 1].swapaxes(1, 2), x[:, 2].swapaxes(1, 2), heads=4),
        (0, 0, 7, 0),
        (0, 0, 28, 0),
    ),
    # One product in a loop; and both gradients.
    'bands': (lambda x, kernel: parts.by_pixel(x, kernel[0, 0], function=jnp.matmul), (0, 0, 3, 0), (0, 0, 3, 0)),
    'photos': (
        lambda x, kernel: parts.by_photo(kernel[0, 0], x, function=lambda weights, x: x @ weights),
        (0, 0, 3, 0),
        (0, 0, 3, 0),
    ),
    'parts': (
        lambda x, kernel: parts.by_parts(kernel[0, 0], x, function=lambda w, x: x @ w, strides=1, reach=0, values=8),
        (0, 0, 3, 0),
        (0, 0, 3, 0),
    ),
    'sums': (
        lambda x, kernel: layers.scale_and_shift(x, *layers.channel_moments(kernel)),
        (0, 0, 0, 0),
        (0, 0, 0, 5),
    ),
}


@pytest.fixture(params=CPU_KERNELS)
def case(request):
    """A kernel's operation with its inputs, and its operations, plain and on CPUs."""
    function, plain, on_cpus = CASES[request.param]
    return function, inputs_of(request.param), plain, on_cpus


def inputs_of(kernel):
    C, features = (128, 256) if kernel == 'winograd' else (8, 8)
    side = 384 if kernel in ('photos', 'parts') else 32
    return random(2, side, side, C), random(3, 3, C, features) / 34


def test_programs_for_cpus_have_the_kernels_alone(case):
    function, inputs, _, on_cpus = case
    lowered = value_and_gradients(function).lower(*inputs)
    assert operations(lowered.as_text()) == on_cpus
    assert 'conditional(' not in lowered.compile().as_text()


def test_programs_for_gpus_are_plain_wherever_they_are_lowered(case):
    function, inputs, plain, _ = case
    assert jax.default_backend() == 'cpu'
    program = export.export(value_and_gradients(function), platforms=['cuda'])(*inputs).mlir_module()
    assert operations(program) == plain


def test_the_default_backend_does_not_matter(case, monkeypatch):
    function, inputs, _, on_cpus = case
    step = value_and_gradients(function)
    monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
    program = export.export(step, platforms=['cpu'])(*inputs).mlir_module()
    assert operations(program) == on_cpus


def test_one_program_serves_several_platforms(case):
    function, inputs, *_ = case
    exported = export.export(value_and_gradients(function), platforms=['cpu', 'cuda'])(*inputs)
    assert exported.platforms == ('cpu', 'cuda')
    assert_close(value_and_gradients(function, ())(*inputs), exported.call(*inputs), TOLERANCE['float32'])


@pytest.mark.parametrize('name', CPU_KERNELS)
def test_only_the_kernels_named_are_used(name):
    function, plain, on_cpus = CASES[name]
    inputs = inputs_of(name)
    counted = {each: operations(value_and_gradients(function, [each]).lower(*inputs).as_text()) for each in CPU_KERNELS}
    assert counted.pop(name) == on_cpus
    if name == 'attention':  # whose backward pass by itself computes the scores again
        plain = (0, 0, 6, 0)
    for part in ('gradients', 'strided'):  # other operations are made of these
        counted.pop(part, None)
    assert set(counted.values()) == {plain}


@pytest.mark.parametrize(
    ('taps', 'strides', 'padding'),
    [
        (1, 1, ((0, 0), (0, 0))),
        (1, 2, ((0, 0), (0, 0))),
        (1, 1, ((1, 0), (0, 1))),
        (3, 1, ((0, 2), (3, 0))),
        (4, 2, ((1, 1), (1, 1))),
        (7, 3, ((3, 2), (0, 1))),
    ],
)
@pytest.mark.parametrize('features', [2, 4])
def test_gradients_of_convolutions(taps, strides, padding, features):
    def convolve(x, kernel):
        return layers.conv2d(x, kernel, strides=strides, padding=padding)

    inputs = random(2, 12, 13, 3), random(taps, taps, 3, features)
    plain, by_kernel = value_and_gradients(convolve, ()), value_and_gradients(convolve, ['gradients'])
    assert_close(plain(*inputs), by_kernel(*inputs), TOLERANCE['float32'])


@pytest.mark.parametrize('name', ['gradients', 'dilated'])
def test_convolutions_inside_a_loop_are_of_the_fast_arrangement(name):
    """XLA rearranges the others only outside of loops, and computes them many times as slowly inside."""

    def total(xs, kernel):
        return jax.lax.scan(lambda sum_, x: (sum_ + CASES[name][0](x, kernel).sum(), None), 0.0, xs)[0]

    program = jax.jit(jax.grad(total, (0, 1))).lower(random(3, 2, 32, 32, 8), random(3, 3, 8, 8)).compile().as_text()
    assert 'while(' in program
    arrangements = set(re.findall(r'dim_labels=(\w+->\w+)', program))
    assert arrangements == {'b01f_01io->b01f'}
