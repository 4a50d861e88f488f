"""Regression of colors, with or without classification of the scene: the task of all reports but the GAN's."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxcolor import color
from jaxcolor.errors import UserError
from jaxcolor.tasks import losses
from jaxcolor.tasks.ab_task import AbTask, Batch, Outputs, resize
from jaxcolor.tasks.adversary import Adversary
from jaxcolor.tasks.state import TrainState


class Regression(AbTask):
    """Error of a*b* (squared by default) + alpha * cross entropy of the class + kernel L2 (Iizuka et al. 2016, eq. 5).

    A network with another `output_space` is compared in that space. With an adversary, each step trains it first, then the
    network, whose loss gets the term `adversarial_loss`; the loss of an evaluation is without it, as a discriminator that
    learns, too, measures no progress.

    Args:
        adversary: a discriminator to fool, or None.
        others: as for `AbTask`.
    """

    def __init__(self, *args: Any, adversary: Adversary | None = None, **others: Any):
        super().__init__(*args, **others)
        self.adversary, self.activation = adversary, self.network.output_activation
        self.space = getattr(self.network, 'output_space', 'lab')
        self.output, self.channels = color.OUTPUT_SPACES[self.space]
        if getattr(self.network, 'color_classes', 0):
            raise UserError('model.color_classes is for task.name=color_classes; set it to 0 for a regression.')

    def init(self, rng: jax.Array) -> TrainState:
        """A fresh state. rng: uint32 (2,) key."""
        state = super().init(rng)
        if self.adversary is None:
            return state
        batch = {'lab': jnp.zeros((1, self.crop, self.crop, 3), jnp.uint8)}
        outputs = {self.output: jnp.zeros((1, *self._output_size(state), self.channels))}
        shape = jax.eval_shape(self._photos_and_predictions, outputs, batch)[0].shape
        adversary = self.adversary.init(jax.random.fold_in(rng, 1), shape)
        # Neither inference nor another training that starts from this one needs it: so it is no part of the weights.
        return state.replace(opt_state={'network': state.opt_state, 'adversary': adversary})

    def loss_terms(self, outputs: Outputs, batch: Batch, model_state: Mapping[str, Any]) -> dict[str, jax.Array]:
        """{'color_loss': (B,)}, and 'colorfulness_loss' where it has a weight."""
        lab = color.decode_lab(batch['lab'])
        prediction, target = self._comparable(outputs[self.output], color.encode_output(lab, self.space, self.activation))
        terms = {'color_loss': self._color_error(prediction, target, lab[..., 1:])}
        if self.settings.colorfulness:
            lightness = resize(lab[..., :1], prediction.shape[1:3])
            ab = color.decode_output(prediction, lightness, self.space, self.activation)
            rgb = color.lab_to_rgb(color.join_lab(lightness, ab))
            terms['colorfulness_loss'] = self.settings.colorfulness * losses.colorfulness_loss(rgb)
        return terms

    def _color_error(self, prediction, target, ab):
        """(B, h, w, C) each, in the network's range, and the true a*b* (B, H, W, 2) -> (B,)"""
        delta = weight = None
        if self.settings.error == 'huber':
            delta = self.settings.huber_delta / color.AB_RANGE[self.activation][0]
        if self.settings.chroma_weight:
            chroma = jnp.linalg.norm(resize(ab, target.shape[1:3]), axis=-1)
            weight = 1 + self.settings.chroma_weight / 100 * chroma
        absolute = self.settings.error == 'absolute'
        return losses.color_error(prediction, target, self.settings.reduction, delta, weight, absolute)

    def decode(self, outputs: Outputs, lightness: jax.Array, model_state: Mapping[str, Any]) -> jax.Array:
        """The network's output at the size of the lightness (B, H, W, 1), as a*b* times the gain."""
        output, size = outputs[self.output], lightness.shape[1:3]
        if self.settings.loss_resolution == 'output':
            output = jax.image.resize(output, (output.shape[0], *size, self.channels), 'linear')
        else:
            output = resize(output, size)
        return color.decode_output(output, lightness, self.space, self.activation) * self.settings.chroma_gain

    def train_step(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        """One step of one device on its share of the batch; gradients and batch statistics are averaged over AXIS."""
        adversary = self.adversary
        if adversary is None:
            return super().train_step(state, batch)

        def pair_of(part):
            outputs, _ = self._train_forward(state, *self._inputs(state, part))
            return lax.stop_gradient(self._photos_and_predictions(outputs, part))

        def further_terms(outputs, part):
            _, predictions = self._photos_and_predictions(outputs, part)
            return {'adversarial_loss': adversary.loss(of_adversary, predictions)}

        of_adversary, measured = adversary.train_step(state.opt_state['adversary'], pair_of, batch, self.accumulation_steps)
        state, metrics = self.network_step(state.replace(opt_state=state.opt_state['network']), batch, further_terms)
        state = state.replace(opt_state={'network': state.opt_state, 'adversary': of_adversary})
        return state, {**metrics, **measured}

    def _comparable(self, prediction, target):
        """Brings both, (B, h, w, C) and (B, H, W, C), to the size at which the loss is taken."""
        if self.settings.loss_resolution == 'output':
            return prediction, resize(target, prediction.shape[1:3])
        return resize(prediction, target.shape[1:3]), target

    def _photos_and_predictions(self, outputs, batch):
        """What the adversary tells apart: L*/100 joined to the truth, and to the prediction, both (B, h, w, 1 + C)."""
        lab = color.decode_lab(batch['lab'])
        prediction, target = self._comparable(outputs[self.output], color.encode_output(lab, self.space, self.activation))
        lightness = resize(color.normalize_l(lab[..., :1]), target.shape[1:3])
        return tuple(jnp.concatenate([lightness, colors], axis=-1) for colors in (target, prediction))

    def _output_size(self, state):
        """(h, w) of the network's output for a training photo."""
        vector = (jnp.zeros((1, 1000)),) if self.extractor else ()
        outputs = jax.eval_shape(self._forward, state, jnp.zeros((1, self.crop, self.crop, 1)), *vector)
        return outputs[self.output].shape[1:3]
