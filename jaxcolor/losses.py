"""Losses, one float32 per photo, (B,): their mean over any number of equal devices is the mean over the global batch."""

import jax
import jax.numpy as jnp
import optax


def squared_error(prediction, target, reduction: str):
    """Squared error of a* and b*, both (B, H, W, 2) in the network's range -> (B,).

    reduction: 'sum' over pixels and channels is the squared Frobenius norm (Iizuka et al. 2016, eq. 5); 'mean' is what
    the reimplementations take.
    """
    reduce = {'sum': jnp.sum, 'mean': jnp.mean}[reduction]
    return reduce(jnp.square(prediction - target), axis=(1, 2, 3))


def absolute_error(prediction, target):
    """Mean over pixels and channels of the absolute error, both (B, H, W, C) -> (B,)."""
    return jnp.mean(jnp.abs(prediction - target), axis=(1, 2, 3))


def cross_entropy(logits, labels):
    """Softmax cross entropy: logits (B, classes), labels int32 (B,) -> (B,); 0 for a photo without a label (-1)."""
    each = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
    return jnp.where(labels >= 0, each, 0.0)


def kernel_l2(params, excluded=()):
    """Sum of the squares of all kernels (not of biases or batch norm) -> a scalar, to be weighted and added to a loss.

    excluded: names; a kernel whose path holds one of them is left out.
    """
    total = jnp.zeros((), jnp.float32)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = [key.key for key in path]
        if names[-1] == 'kernel' and not set(excluded) & set(names):
            total += jnp.sum(jnp.square(leaf))
    return total
