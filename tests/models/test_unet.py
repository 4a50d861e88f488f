"""The layers that DDColor and DeOldify share; weights/test_ddcolor_torch and test_deoldify_torch compare with PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxcolor.models.unet import UNetBlock, blur, shuffle


def test_shuffle_moves_channels_to_pixels():
    x = np.random.default_rng(0).normal(size=(2, 3, 5, 12)).astype(np.float32)
    shuffled = np.asarray(shuffle(jnp.asarray(x), 2))
    assert shuffled.shape == (2, 6, 10, 3)
    for row, column in np.ndindex(2, 2):
        first = 3 * (2 * row + column)
        np.testing.assert_array_equal(shuffled[:, row::2, column::2], x[..., first : first + 3])


def test_blur_is_the_mean_of_four_pixels_with_repeated_edges():
    x = np.random.default_rng(0).normal(size=(2, 4, 5, 3)).astype(np.float32)
    blurred = np.asarray(blur(jnp.asarray(x)))
    for i, j in np.ndindex(4, 5):
        above, left = max(i - 1, 0), max(j - 1, 0)
        expected = (x[:, i, j] + x[:, above, j] + x[:, i, left] + x[:, above, left]) / 4
        np.testing.assert_allclose(blurred[:, i, j], expected, rtol=0, atol=1e-6)


def test_a_block_has_the_size_of_its_skip_even_if_that_is_odd():
    block = UNetBlock(8, (4, 6))
    coarse, skip = jnp.zeros((2, 3, 2, 5)), jnp.zeros((2, 5, 3, 7))
    output, variables = jax.eval_shape(lambda: block.init_with_output(jax.random.key(0), coarse, skip, True))
    assert output.shape == (2, 5, 3, 6)
    kernels = {name: layer['conv']['kernel'].shape for name, layer in variables['params'].items() if 'conv' in layer}
    assert kernels == {'enlarge': (1, 1, 5, 32), 'mix_0': (3, 3, 15, 4), 'mix_1': (3, 3, 4, 6)}
