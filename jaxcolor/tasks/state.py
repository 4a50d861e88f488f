"""The state of a training at one step: everything that a checkpoint must hold of it, but for the data iterator."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct


class TrainState(struct.PyTreeNode):
    """A pytree; every leaf is an array.

    step: int32 (), the steps done. params: the trained float32 parameters. model_state: the networks' other collections
    (batch statistics). opt_state: Optax's state, and what else training alone needs. rng: uint32 (2,), the key that each
    step's randomness is folded from.
    frozen: an `extractors.Extractor` or (); never trained, and no part of checkpoints: the run directory holds it once.
    ema: the moving average of `weights`, or () where none is kept.
    """

    step: jax.Array
    params: Any
    model_state: Any
    opt_state: Any
    rng: jax.Array
    frozen: Any = ()
    ema: Any = ()

    def weights(self) -> dict[str, Any]:
        """What inference needs, and what `ema` averages: the parameters and the statistics that belong to them."""
        return {'params': self.params, 'model_state': self.model_state}

    def for_inference(self) -> 'TrainState':
        """The state with the moving average as its weights, where one is kept."""
        return self.replace(**self.ema, ema=()) if self.ema else self


def update_ema(state: TrainState, decay: float) -> Any:
    """The moving average after a step, from the state after it: a tree like `weights`, () where none is kept.

    Early on the decay is lower, (1 + step) / (10 + step), so that the first parameters do not linger.
    """
    if not state.ema:
        return ()
    step = state.step.astype(jnp.float32)
    kept = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda old, new: old * kept + new * (1 - kept), state.ema, state.weights())
