"""What a training is at one step: everything that a checkpoint must hold of it, but for the data iterator."""

from typing import Any

import jax
from flax import struct


@struct.dataclass
class TrainState:
    """A pytree; every leaf is an array.

    step: int32 (), the steps done. params: the trained float32 parameters. model_state: the networks' other collections
    (batch statistics). opt_state: Optax's state. rng: uint32 (2,), the key that each step's randomness is folded from.
    frozen: an `extractors.Extractor` or (); never trained, and no part of checkpoints: the run directory holds it once.
    """

    step: jax.Array
    params: Any
    model_state: Any
    opt_state: Any
    rng: jax.Array
    frozen: Any = ()
