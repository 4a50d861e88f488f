"""Regression of a* and b*, with or without classification of the scene: the task of all reports but the GAN's."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxcolor import color
from jaxcolor.errors import UserError
from jaxcolor.tasks import losses
from jaxcolor.tasks.ab_task import AbTask, Batch, Outputs, resize


class Regression(AbTask):
    """Error of a*b* (squared by default) + alpha * cross entropy of the class + kernel L2 (Iizuka et al. 2016, eq. 5)."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.activation = self.network.output_activation
        if getattr(self.network, 'color_classes', 0):
            raise UserError('model.color_classes is for task.name=color_classes; set it to 0 for a regression.')

    def loss_terms(self, outputs: Outputs, batch: Batch, model_state: Mapping[str, Any]) -> dict[str, jax.Array]:
        """{'color_loss': (B,)}"""
        target = color.normalize_ab(color.decode_lab(batch['lab'])[..., 1:], self.activation)
        ab = outputs['ab']
        if self.settings.loss_resolution == 'output':
            target = resize(target, ab.shape[1:3])
        else:
            ab = resize(ab, target.shape[1:3])
        return {'color_loss': self._color_error(ab, target)}

    def _color_error(self, ab, target):
        """(B, H, W, 2) each, in the network's range -> (B,)"""
        delta = weight = None
        if self.settings.error == 'huber':
            delta = self.settings.huber_delta / color.AB_RANGE[self.activation][0]
        if self.settings.chroma_weight:
            chroma = jnp.linalg.norm(color.denormalize_ab(target, self.activation), axis=-1)
            weight = 1 + self.settings.chroma_weight / 100 * chroma
        return losses.color_error(ab, target, self.settings.reduction, delta, weight)

    def decode(self, outputs: Outputs, size: tuple[int, int], model_state: Mapping[str, Any]) -> jax.Array:
        """The network's output times the gain -> a*b* (B, *size, 2)."""
        ab = color.denormalize_ab(outputs['ab'], self.activation) * self.settings.chroma_gain
        if self.settings.loss_resolution == 'output':
            return jax.image.resize(ab, (ab.shape[0], *size, 2), 'linear')
        return resize(ab, size)
