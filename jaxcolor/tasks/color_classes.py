"""Per-pixel color classification in place of regression (Zhang, Isola, Efros, *Colorful Image Colorization*, 2016).

A regression of a*b* predicts the mean of what a pixel may be, which is grayer than any of it. Here the network predicts how
likely each color is, rare colors weigh more in training, and the result is a mean drawn towards the likeliest color.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcolor import color
from jaxcolor.errors import UserError
from jaxcolor.tasks.ab_task import AbTask, Batch, Outputs, resize

ZHANG_CLASSES = len(color.zhang_class_centers())


@functools.cache
def class_centers(classes: int = 260) -> np.ndarray:
    """The a*b* of every class, float32 (classes, 2): the squares of Zhang's grid that hold a color of sRGB, or his 313.

    Searched are colors whose 8-bit channels are multiples of 5. No square is reached only by colors so near its edge that
    rounding decides (see the tests), so every machine counts 260; all of sRGB reaches one more. The paper, which does not
    say how it counted, has 313; those are `color.zhang_class_centers`.
    """
    if classes == ZHANG_CLASSES:
        return color.zhang_class_centers()
    levels = np.arange(0, 256, 5, dtype=np.uint8)
    rgb = np.stack(np.meshgrid(levels, levels, levels, indexing='ij'), axis=-1).reshape(-1, 3)
    reached = np.unique(np.asarray(color.ab_bin(color.rgb_to_lab(rgb)[..., 1:])))
    return color.ab_bin_centers()[reached]


def _class_weights(share, lam):
    """Weights of classes by how common they are: eq. 4, not normalized."""
    return 1 / ((1 - lam) * share + lam / len(share))


class ColorClasses(AbTask):
    """Rebalanced cross entropy of each pixel's color (eqs. 2-4) + alpha * cross entropy of the photo's class + kernel L2.

    How common each class is (the paper's prior, from all of ImageNet) is the running mean over the training batches, kept
    in the collection `color_prior` of model_state; at first all classes count alike. So losses of different steps are
    weighted a little differently.
    """

    agreement_stride = 4  # decoding all of the output would cost another softmax of its size

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        classes, known = getattr(self.network, 'color_classes', 0), (len(class_centers()), ZHANG_CLASSES)
        if classes not in known or self.network.decoder != 'nearest':
            raise UserError(
                'task.name=color_classes is for the networks ltbc, ltbc_lite and eccv16 with model.color_classes='
                f'{known[0]} or {known[1]}, model.decoder=nearest.'
            )
        self.centers = class_centers(classes)
        if self.network.output_space != 'lab':
            raise UserError('model.output_space: color classes are classes of a*b*; set it to lab.')

    def init_statistics(self) -> dict[str, Any]:
        """{'color_prior': {'share': float32 (Q,)}}, adding up to 1."""
        classes = len(self.centers)
        return {'color_prior': {'share': jnp.full((classes,), 1 / classes, jnp.float32)}}

    def update_statistics(
        self, model_state: Mapping[str, Any], outputs: Outputs, batch: Batch, step: jax.Array
    ) -> Mapping[str, Any]:
        """Moves the prior's running mean by the batch's share of each class."""
        soft = self._soft_classes(outputs, batch).reshape(-1, len(self.centers))
        # Their mean, as a product: CPUs take several times as long for the sum.
        share = jnp.dot(jnp.full(len(soft), 1 / len(soft), soft.dtype), soft, precision='highest')
        prior = model_state['color_prior']['share']
        return {**model_state, 'color_prior': {'share': prior + (share - prior) / (step.astype(jnp.float32) + 2)}}

    def loss_terms(self, outputs: Outputs, batch: Batch, model_state: Mapping[str, Any]) -> dict[str, jax.Array]:
        """{'color_loss': (B,)}"""
        soft, logits = self._soft_classes(outputs, batch), outputs['color_logits']
        each = jax.nn.logsumexp(logits, axis=-1) - jnp.sum(soft * logits, axis=-1)  # the cross entropy
        if self.settings.rebalance != 1:  # else all weights are 1
            share = model_state['color_prior']['share']
            weights = _class_weights(share, self.settings.rebalance)
            weights /= jnp.sum(share * weights)  # 1 in the mean over pixels
            each *= weights[jnp.argmax(soft, axis=-1)]
        return {'color_loss': jnp.mean(each, axis=(1, 2))}

    def decode(self, outputs: Outputs, lightness: jax.Array, model_state: Mapping[str, Any]) -> jax.Array:
        """The annealed mean (eq. 5) times the gain, a*b* at the size of the lightness (B, H, W, 1).

        Likelihoods are rebalanced first, as the loss may be, at no cost to the training (logit adjustment: Menon et al.,
        *Long-tail learning via logit adjustment*, ICLR 2021, section 4).
        """
        weights = _class_weights(model_state['color_prior']['share'], self.settings.inference_rebalance)
        likelihood = jax.nn.softmax((outputs['color_logits'] + jnp.log(weights)) / self.settings.temperature)
        ab = jnp.dot(likelihood, self.centers, precision='highest') * self.settings.chroma_gain
        return jax.image.resize(ab, (*lightness.shape[:3], 2), 'linear')

    def _soft_classes(self, outputs, batch):
        """The soft encoding of the truth, (B, h, w, Q), adding up to 1: a Gaussian about its color.

        The paper takes the five nearest classes, which at its sigma of 5 hold at least 93 % of it.
        """
        ab = resize(color.decode_lab(batch['lab'])[..., 1:], outputs['color_logits'].shape[1:3])
        # -|ab - c|^2 / (2 sigma^2), but for |ab|^2, which a softmax does not see
        nearness = jnp.dot(ab, 2 * self.centers.T, precision='highest') - np.square(self.centers).sum(axis=1)
        return jax.nn.softmax(nearness / (2 * self.settings.sigma**2))
