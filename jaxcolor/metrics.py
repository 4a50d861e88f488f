"""Measures of a colorized photo against the true one. Each returns one float32 per photo, (B,); callers take the means.

a*b* arrays are (B, H, W, 2), RGB arrays (B, H, W, 3), float in [0, 1].
"""

import jax.numpy as jnp


def ab_squared_error(prediction, target):
    """Mean over pixels and both channels of the squared a*b* error. The root of its mean is the table's ab RMSE."""
    return jnp.mean(jnp.square(prediction - target), axis=(1, 2, 3))


def psnr(prediction, target):
    """Peak signal-to-noise ratio in dB of RGB in 8 bits: 10 log10(255^2 / mean squared error over pixels and channels)."""
    error = jnp.round(prediction * 255.0) - jnp.round(target * 255.0)
    # Equal photos would be at infinity: the floor caps them at 98 dB, where one channel in 10 pixels is off by one step.
    mean_square = jnp.maximum(jnp.mean(jnp.square(error), axis=(1, 2, 3)), 1e-5)
    return 20 * jnp.log10(255.0) - 10 * jnp.log10(mean_square)


def larger_channel_agreement(prediction, target):
    """Share of pixels at which the larger of (a*, b*) is the same channel in both, in [0, 1].

    What Keras computes as 'accuracy' for an output of two channels, and what the DeepColor and LTBC reports print under
    that name. It measures no colour: a photo with a* and b* swapped in sign can score 1.
    """
    same = jnp.argmax(prediction, axis=-1) == jnp.argmax(target, axis=-1)
    return jnp.mean(same.astype(jnp.float32), axis=(1, 2))


def colorfulness(rgb):
    """Hasler and Suesstrunk 2003, eq. 7: sigma_rgyb + 0.3 mu_rgyb, of signed opponent differences in 8-bit units."""
    r, g, b = (255.0 * rgb[..., i] for i in range(3))
    rg, yb = r - g, 0.5 * (r + g) - b
    sigma = jnp.sqrt(jnp.var(rg, axis=(1, 2)) + jnp.var(yb, axis=(1, 2)))
    mu = jnp.sqrt(jnp.square(jnp.mean(rg, axis=(1, 2))) + jnp.square(jnp.mean(yb, axis=(1, 2))))
    return sigma + 0.3 * mu
