"""Losses and accuracies, one float32 per photo, (B,).

Their mean over any number of equal devices is the mean over the global batch.
"""

from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import optax


def color_error(
    prediction: jax.Array,
    target: jax.Array,
    reduction: str,
    delta: float | None = None,
    weight: jax.Array | None = None,
    absolute: bool = False,
) -> jax.Array:
    """Error of colors, both (B, H, W, C) in the network's range -> (B,).

    Args:
        reduction: 'mean' over pixels and channels, with which alpha = 1/300 makes "the two losses ... of similar magnitude"
            (Jacob, Darcet, section 2.2); 'sum' is, of squared errors, the squared Frobenius norm of Iizuka et al. (2016,
            eq. 5).
        delta: None squares errors; otherwise twice Huber's loss (1964): e^2 up to delta, 2 delta |e| - delta^2 beyond.
        weight: of each pixel, (B, H, W); None for 1.
        absolute: takes absolute errors, neither squared nor Huber's.
    """
    reduce = {'sum': jnp.sum, 'mean': jnp.mean}[reduction]
    if absolute:
        each = jnp.abs(prediction - target)
    else:
        each = jnp.square(prediction - target) if delta is None else 2 * optax.huber_loss(prediction, target, delta=delta)
    if weight is not None:
        each *= weight[..., None]
    return reduce(each, axis=(1, 2, 3))


def colorfulness_loss(rgb: jax.Array) -> jax.Array:
    """DDColor's colorfulness loss (Kang et al., ICCV 2023, section 3.4), as its published code has it.

    1 - (sigma + 0.3 mu), where sigma and mu are the norms of the deviations and of the means of the absolute red-green and
    yellow-blue of the pixels (`evaluation.metrics.colorfulness_absolute`, but of RGB in [0, 1]).

    Args:
        rgb: float (B, H, W, 3) in [0, 1].

    Returns:
        (B,).
    """
    r, g, b = (rgb[..., i] for i in range(3))
    opponents = jnp.stack([jnp.abs(r - g), jnp.abs((r + g) / 2 - b)])  # (2, B, H, W)
    # Below an 8-bit step; a gray photo would have no gradient otherwise.
    tiny = 1e-8
    sigma = jnp.sqrt(jnp.sum(jnp.var(opponents, axis=(2, 3)), axis=0) + tiny)
    mu = jnp.sqrt(jnp.sum(jnp.square(jnp.mean(opponents, axis=(2, 3))), axis=0) + tiny)
    return 1 - (sigma + 0.3 * mu)


def discriminator_loss(
    real_logits: jax.Array, fake_logits: jax.Array, real_label: float = 1.0
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Cross entropy of a GAN's discriminator (Goodfellow et al. 2014), from its logits of photos and of fakes, (B,).

    real_label: the target for photos; 0.9 is one-sided label smoothing.
    Returns: (the loss, {name: measure}), all scalars.
    """
    real = jnp.mean(optax.sigmoid_binary_cross_entropy(real_logits, jnp.full(real_logits.shape, real_label)))
    fake = jnp.mean(optax.sigmoid_binary_cross_entropy(fake_logits, jnp.zeros(fake_logits.shape)))
    return real + fake, {
        'discriminator_loss': real + fake,
        'accuracy_on_photos': share(real_logits > 0),
        'accuracy_on_generated': share(fake_logits < 0),
    }


def fooling_loss(logits: jax.Array) -> jax.Array:
    """Cross entropy of a generator, from a discriminator's logits of its fakes (B,) -> (B,); the non-saturating one."""
    return optax.sigmoid_binary_cross_entropy(logits, jnp.ones(logits.shape))


def share(is_so: jax.Array) -> jax.Array:
    """The share of True, a scalar."""
    return jnp.mean(is_so.astype(jnp.float32))


def absolute_error(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """Mean over pixels and channels of the absolute error, both (B, H, W, C) -> (B,)."""
    return jnp.mean(jnp.abs(prediction - target), axis=(1, 2, 3))


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Softmax cross entropy: logits (B, classes), labels int32 (B,) -> (B,); 0 for a photo without a label (-1)."""
    each = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
    return jnp.where(labels >= 0, each, 0.0)


def kernel_l2(params: Any, excluded: Collection[str] = ()) -> jax.Array:
    """Sum of the squares of all kernels (not of biases or batch norm) -> a scalar, to be weighted and added to a loss.

    excluded: names; a kernel whose path holds one of them is left out.
    """
    total = jnp.zeros((), jnp.float32)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = [key.key for key in path]
        if names[-1] == 'kernel' and not set(excluded) & set(names):
            total += jnp.vdot(leaf, leaf, precision='highest')  # a product: CPUs would write the squares out first
    return total


def top_k_accuracy(logits: jax.Array, labels: jax.Array, k: int) -> jax.Array:
    """Whether the true class is among the k likeliest, (B,): logits (B, classes), labels int32 (B,) -> 1 or 0; NaN for a
    photo without a label (-1)."""
    above = jnp.sum(logits > jnp.take_along_axis(logits, jnp.maximum(labels, 0)[:, None], axis=1), axis=1)
    return jnp.where(labels < 0, jnp.nan, (above < k).astype(jnp.float32))


def larger_channel_agreement(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """Share of pixels whose larger channel of (a*, b*) is the same in both -> (B,) in [0, 1].

    Keras computes this as 'accuracy' of a two-channel output. DeepColor prints it under that name, and Jain's report plots
    it. It says little about color: a photo whose a* and b* both have the wrong sign can score 1.
    """
    same = jnp.argmax(prediction, axis=-1) == jnp.argmax(target, axis=-1)
    return jnp.mean(same.astype(jnp.float32), axis=(1, 2))
