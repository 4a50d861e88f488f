"""The interface of a task, and what every one is made of."""

import abc
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from jaxcolor.tasks.state import TrainState

Batch = Mapping[str, Any]
Metrics = dict[str, jax.Array]


class Task(abc.ABC):
    """A task knows nothing of devices, files or loops.

    Args:
        settings: the config's section `task`.
        network: a Flax module.
        optimizer: Optax's.
        schedule: the learning rate by step; only reported.
        crop: pixels, side of the training photos.
        accumulation_steps: sequential parts of a device's batch.
        ema: decay of the moving average of the weights, 0 for none.

    Attributes:
        takes_noise: whether the rng of `predict` matters: a photo has several predictions.
    """

    takes_noise = False

    def __init__(
        self,
        settings: ConfigDict,
        network: nn.Module,
        optimizer: optax.GradientTransformation,
        schedule: Callable[[Any], Any],
        *,
        crop: int,
        accumulation_steps: int = 1,
        ema: float = 0.0,
    ):
        self.settings, self.network, self.optimizer, self.schedule = settings, network, optimizer, schedule
        self.crop, self.accumulation_steps, self.ema = crop, accumulation_steps, ema

    @abc.abstractmethod
    def network_inputs(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shapes and dtypes of what the network takes of one training photo, (1, ...) each."""

    @abc.abstractmethod
    def init(self, rng: jax.Array) -> TrainState:
        """A fresh state. rng: uint32 (2,) key."""

    def weight_shapes(self) -> dict[str, Any]:
        """The shapes of `TrainState.weights` (`jax.ShapeDtypeStruct`): what an exported model holds."""
        return jax.eval_shape(self.init, jax.ShapeDtypeStruct((2,), np.uint32)).weights()

    @abc.abstractmethod
    def train_step(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """One step of one device on its share of the batch; gradients and statistics are averaged over `parallel.AXIS`.

        Args:
            batch: {'lab': uint8 (B, H, W, 3) of `color.encode_lab`, 'label': int32 (B,), -1 where there is none} and, where
                they are cached, 'features': {name of the extractor: float (B, 1000)}.

        Returns:
            The next state; {name: scalar} with 'loss' and 'learning_rate'.
        """

    @abc.abstractmethod
    def eval_step(self, state: TrainState, batch: Batch) -> tuple[Metrics, jax.Array]:
        """Metrics of each photo of a batch, {name: (B,)} with 'loss', and its predicted a*b*, float32 (B, H, W, 2)."""

    def folded(self, state: TrainState) -> TrainState:
        """The state for `predict` alone: the moving average where one is kept, batch norms folded into the layers before."""
        return state.for_inference()

    @abc.abstractmethod
    def predict(self, state: TrainState, lightness: jax.Array, rng: jax.Array) -> jax.Array:
        """L* (B, H, W, 1) in [0, 100] -> a*b* float32 (B, H, W, 2); rng, uint32 (2,), matters where `takes_noise`."""
