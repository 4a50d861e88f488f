"""What a training is at one step: everything that a checkpoint must hold of it, but for the data iterator."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class TrainState:
    """A pytree; every leaf is an array.

    step: int32 (), the steps done. params: the trained float32 parameters. model_state: the networks' other collections
    (batch statistics). opt_state: Optax's state. rng: uint32 (2,), the key that each step's randomness is folded from.
    frozen: an `extractors.Extractor` or (); never trained, and no part of checkpoints: the run directory holds it once.
    ema: the moving average of `averages`, or () where none is kept.
    """

    step: jax.Array
    params: Any
    model_state: Any
    opt_state: Any
    rng: jax.Array
    frozen: Any = ()
    ema: Any = ()

    def averages(self):
        """What moving averages are kept of: the parameters, and the batch statistics that belong to them."""
        return {'params': self.params, 'model_state': self.model_state}

    def averaged(self):
        """The state that is the moving average, where one is kept: what evaluates and colours."""
        return self.replace(**self.ema, ema=()) if self.ema else self


def moving_average(state, decay: float):
    """The average after a step, from the state after it: a tree like `averages`, () where none is kept.

    Early on it forgets sooner, at (1 + step) / (10 + step), so that the first parameters do not linger.
    """
    if not state.ema:
        return ()
    step = state.step.astype(jnp.float32)
    kept = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda old, new: old * kept + new * (1 - kept), state.ema, state.averages())
