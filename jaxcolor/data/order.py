"""The endless global order of training photos, and the random numbers of each: both follow from the seed alone.

Everything here is 32-bit integer arithmetic that gives the same in NumPy and inside jit, so that a batch made on the
host and one gathered on the device are the same batch.
"""

import jax
import jax.numpy as jnp
import numpy as np

_GOLDEN = 0x9E3779B9
_ROUNDS = 6


def _mix(x):
    """A hash of uint32, bit by bit close to random (`lowbias32` of Wellons, Prospecting for Hash Functions, 2018)."""
    u = np.uint32
    x = (x ^ (x >> u(16))) * u(0x7FEB352D)
    x = (x ^ (x >> u(15))) * u(0x846CA68B)
    return x ^ (x >> u(16))


def _keyed(seed, salt, epoch):
    """uint32 of a seed and a salt (ints) and of epochs (uint32 (N,)): one key for each."""
    start = np.array([(seed + salt * _GOLDEN) % 2**32], np.uint32)
    return _mix(_mix(start) + epoch)


def permute(epoch, place, length, seed):
    """Which photo comes at a place of an epoch: every epoch holds every photo once, each in an order of its own.

    A Feistel network over the next power of four, walked on until it lands below `length` (Black and Rogaway, Ciphers
    with Arbitrary Finite Domains, 2002), so that no list of the photos is needed.

    Args:
        epoch, place: uint32 (N,), NumPy or JAX; place < length.
        length: photos, a Python int below 2^31.
        seed: a Python int.

    Returns:
        uint32 (N,) below length.
    """
    half = np.uint32(max(1, ((length - 1).bit_length() + 1) // 2))
    mask = np.uint32((1 << int(half)) - 1)
    keys = [_keyed(seed, 1 + i, epoch) for i in range(_ROUNDS)]

    def step(x):
        left, right = x >> half, x & mask
        for key in keys:
            left, right = right, left ^ (_mix(right + key) & mask)
        return (left << half) | right

    if isinstance(place, jax.Array):
        limit = np.uint32(length)
        return jax.lax.while_loop(lambda x: jnp.any(x >= limit), lambda x: jnp.where(x >= limit, step(x), x), step(place))
    x = step(place)
    while (outside := x >= length).any():
        x = np.where(outside, step(x), x)
    return x


def random_bits(epoch, place, column, seed):
    """The random number in `column` of the photo at a place of an epoch: uint32 (N,)."""
    return _mix(_keyed(seed, 64 + column, epoch) + place)


def below(bits, limit):
    """Random uint32 -> integers in [0, limit), limit (uint32) at most 65536."""
    return ((bits >> np.uint32(16)) * limit) >> np.uint32(16)
