"""A discriminator that is trained beside a regression: future work in the report of Jacob and Darcet, section 5.

The sum of both losses, with the photo as the condition of both networks, is that of Isola et al., *Image-to-Image
Translation with Conditional Adversarial Networks*, CVPR 2017.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxcolor.runtime.parallel import mean_over_batch
from jaxcolor.tasks import losses


class Adversary:
    """Tells photos from predictions, both (B, h, w, C): what the regression compares, joined to the lightness.

    Its state, in TrainState.opt_state, is {'params', 'model_state', 'opt_state'}.

    Args:
        weight: of the network's loss for not fooling it.
        network: the discriminator, as `models.build_discriminator` gives it.
        optimizer: Optax's, the same as the network's, with a state of its own.
    """

    def __init__(self, weight: float, network: nn.Module, optimizer: optax.GradientTransformation):
        self.weight, self.network, self.optimizer = weight, network, optimizer

    def init(self, rng: jax.Array, shape: tuple[int, ...]) -> dict[str, Any]:
        """A fresh state. rng: uint32 (2,) key. shape: of a photo with a batch axis, (1, h, w, C)."""
        variables = self.network.init(rng, jnp.zeros(shape), False)
        params, statistics = variables['params'], variables['batch_stats']
        return {'params': params, 'model_state': statistics, 'opt_state': self.optimizer.init(params)}

    def train_step(
        self, state: dict[str, Any], pair_of: Any, batch: Any, accumulation_steps: int
    ) -> tuple[dict[str, Any], dict[str, jax.Array]]:
        """One step of one device on its share of the batch; gradients and statistics are averaged over `parallel.AXIS`.

        Args:
            state: its own.
            pair_of: gives a part of the batch as (photos, predictions), both (B, h, w, C).
            batch: the device's share.
            accumulation_steps: sequential parts of it.

        Returns:
            Its next state, and {name: scalar} of measures.
        """

        def loss_fn(params, pair):
            # Photos and predictions pass one after the other, each normalized by its own statistics.
            real, statistics = self._run(params, state['model_state'], pair[0])
            fake, statistics = self._run(params, statistics, pair[1])
            loss, metrics = losses.discriminator_loss(real, fake)
            return loss, (metrics, statistics)

        def gradients(part):
            (_, aux), grads = jax.value_and_grad(loss_fn, has_aux=True)(state['params'], pair_of(part))
            return grads, aux

        grads, (metrics, statistics) = mean_over_batch(gradients, batch, accumulation_steps)
        updates, opt_state = self.optimizer.update(grads, state['opt_state'], state['params'])
        params = optax.apply_updates(state['params'], updates)
        return {'params': params, 'model_state': statistics, 'opt_state': opt_state}, metrics

    def loss(self, state: dict[str, Any], predictions: jax.Array) -> jax.Array:
        """The network's loss for not fooling it: predictions (B, h, w, C) -> (B,), weighted."""
        logits, _ = self._run(state['params'], state['model_state'], predictions)
        each = losses.fooling_loss(logits)  # (B,), or of each patch
        return self.weight * jnp.mean(each.reshape(each.shape[0], -1), axis=1)

    def _run(self, params, statistics, photos):
        """-> (logits (B, ...), the new statistics), in training mode"""
        variables = {'params': params, 'batch_stats': statistics}
        logits, new = self.network.apply(variables, photos, True, mutable=['batch_stats'])
        return logits, new['batch_stats']
