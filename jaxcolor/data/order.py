"""The endless global order of the training photos and the random numbers of each photo, both determined by the seed.

All of it is 32-bit integer arithmetic with the same results in NumPy and inside jit, so that the host and the device make
the same batches.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_GOLDEN = 0x9E3779B9
_ROUNDS = 6


UInt32 = Any  # an array or scalar of NumPy or JAX (traced, too); results are of the same kind


def _hash(x):
    """A hash of uint32 (`lowbias32` of Wellons, Prospecting for Hash Functions, 2018)."""
    u = np.uint32
    x = (x ^ (x >> u(16))) * u(0x7FEB352D)
    x = (x ^ (x >> u(15))) * u(0x846CA68B)
    return x ^ (x >> u(16))


def _epoch_key(seed, salt, epoch):
    """A key for each epoch (uint32 (N,)) from a seed and a salt, which are ints: uint32 (N,)."""
    start = np.array([(seed + salt * _GOLDEN) % 2**32], np.uint32)
    return _hash(_hash(start) + epoch)


def permute(epoch: UInt32, index: UInt32, length: int, seed: int) -> UInt32:
    """Shuffles: which photo comes at an index of an epoch. Every epoch is a permutation of its own.

    A Feistel network over the next power of four, repeated until the result is below `length` (cycle walking: Black and
    Rogaway, Ciphers with Arbitrary Finite Domains, 2002). No table of the photos is needed.

    Args:
        epoch: uint32 (N,), NumPy or JAX.
        index: uint32 (N,), the position in the epoch, below length.
        length: number of photos, below 2^31.
        seed: of the order.

    Returns:
        The photos, uint32 (N,), below length; NumPy or JAX like `index`.
    """
    half = np.uint32(max(1, ((length - 1).bit_length() + 1) // 2))
    mask = np.uint32((1 << int(half)) - 1)
    keys = [_epoch_key(seed, 1 + i, epoch) for i in range(_ROUNDS)]

    def step(x):
        left, right = x >> half, x & mask
        for key in keys:
            left, right = right, left ^ (_hash(right + key) & mask)
        return (left << half) | right

    if isinstance(index, jax.Array):
        limit = np.uint32(length)
        return jax.lax.while_loop(lambda x: jnp.any(x >= limit), lambda x: jnp.where(x >= limit, step(x), x), step(index))
    x = step(index)
    while (outside := x >= length).any():
        x = np.where(outside, step(x), x)
    return x


def random_bits(epoch: UInt32, index: UInt32, column: int, seed: int) -> UInt32:
    """Random numbers of the photo at an index of an epoch.

    Args:
        epoch, index: uint32 (N,), NumPy or JAX.
        column: which of the photo's numbers.
        seed: of all numbers.

    Returns:
        uint32 (N,), NumPy or JAX like `index`.
    """
    return _hash(_epoch_key(seed, 64 + column, epoch) + index)


def below(bits: UInt32, limit: UInt32) -> UInt32:
    """Random uint32 -> uint32 in [0, limit), limit (uint32) at most 65536; NumPy, JAX, or int."""
    sixteen = 16 if isinstance(bits, int) else np.uint32(16)
    return ((bits >> sixteen) * limit) >> sixteen
