"""Sorting pixels into classes of colours, in place of regression (Zhang, Isola, Efros, *Colorful Image Colorization*, 2016).

A regression of a*b* answers with the mean of what a pixel may be, which is grayer than any of it. Here the network says how
likely each colour is, rare ones weigh more in training, and the answer is a mean drawn towards the likeliest.
"""

import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcolor import color
from jaxcolor.evaluation import metrics
from jaxcolor.errors import UserError
from jaxcolor.tasks.regression import Regression, resize


@functools.cache
def centers() -> np.ndarray:
    """The a*b* of every class, float32 (Q, 2): the squares of Zhang's grid that a colour of sRGB lies in.

    Looked for are colours whose 8-bit channels are multiples of 5. No square is reached only by colours so near its edge
    that rounding decides (see the tests), so every machine counts 260; all of sRGB reaches one more. The paper, which does
    not say how it counted, has 313.
    """
    levels = np.arange(0, 256, 5, dtype=np.uint8)
    rgb = np.stack(np.meshgrid(levels, levels, levels, indexing='ij'), axis=-1).reshape(-1, 3)
    reached = np.unique(np.asarray(metrics.color_class(color.rgb_to_lab(rgb)[..., 1:])))
    return metrics.class_centers()[reached]


def _rebalanced(share, part):
    """What classes weigh, by how common they are: eq. 4, not normalised."""
    return 1 / ((1 - part) * share + part / len(share))


class ColorClasses(Regression):
    """Rebalanced cross entropy of each pixel's colour (eqs. 2-4) + alpha * cross entropy of the photo's class + kernel L2.

    How common each class is (the paper's prior, from all of ImageNet) is the running mean over the batches trained on, a
    collection `color_prior` of the state's model_state; at first all are alike. So losses of different steps are weighted
    a little differently.
    """

    choices: ClassVar = {}
    ranges: ClassVar = {'rebalance': (0, 1), 'sigma': (1, 100), 'temperature': (0.01, 10), 'chroma_gain': (0, 10)}
    ranges |= {'answer_rebalance': (0.001, 1)}  # at 0, classes that never came up would weigh infinitely

    def __init__(self, config):
        classes = len(centers())
        if config.model.get('color_classes') != classes or config.model.decoder != 'nearest':
            raise UserError(
                f'task.name=color_classes is for the network ltbc with model.color_classes={classes}, model.decoder=nearest.'
            )
        super().__init__(config)

    def init(self, rng):
        """A fresh state. rng: uint32 (2,) key."""
        state = super().init(rng)
        classes = len(centers())
        prior = {'share': jnp.full((classes,), 1 / classes, jnp.float32)}
        state = state.replace(model_state={**state.model_state, 'color_prior': prior})
        return state.replace(ema=state.averages() if self.ema else ())

    def _observed(self, model_state, outputs, batch, step):
        share = jnp.mean(self._soft_classes(outputs, batch), axis=(0, 1, 2))
        seen = model_state['color_prior']['share']
        return {**model_state, 'color_prior': {'share': seen + (share - seen) / (step.astype(jnp.float32) + 2)}}

    def _soft_classes(self, outputs, batch):
        """How far the truth belongs to each class, (B, h, w, Q), adding up to 1: a Gaussian about it.

        The paper takes the five nearest classes, which at its sigma of 5 hold at least 93 % of it.
        """
        ab = resize(color.decode_lab(batch['lab'])[..., 1:], outputs['color_logits'].shape[1:3])
        # -|ab - c|^2 / (2 sigma^2), but for |ab|^2, which a softmax does not see
        nearness = jnp.dot(ab, 2 * centers().T, precision='highest') - np.square(centers()).sum(axis=1)
        return jax.nn.softmax(nearness / (2 * self.loss.sigma**2))

    def _color_loss(self, outputs, batch, model_state):
        soft = self._soft_classes(outputs, batch)
        share = model_state['color_prior']['share']
        weights = _rebalanced(share, self.loss.rebalance)
        weights /= jnp.sum(share * weights)  # 1 in the mean over pixels
        each = weights[jnp.argmax(soft, axis=-1)] * optax.softmax_cross_entropy(outputs['color_logits'], soft)
        return jnp.mean(each, axis=(1, 2))

    def _colors(self, outputs, size, model_state):
        """The annealed mean (eq. 5) times the gain, (B, *size, 2).

        Before, likelihoods are rebalanced as the loss may be, at no cost to the training (logit adjustment: Menon et al.,
        *Long-tail learning via logit adjustment*, ICLR 2021, section 4).
        """
        weights = _rebalanced(model_state['color_prior']['share'], self.loss.answer_rebalance)
        likely = jax.nn.softmax((outputs['color_logits'] + jnp.log(weights)) / self.loss.temperature)
        ab = jnp.dot(likely, centers(), precision='highest') * self.loss.chroma_gain
        return jax.image.resize(ab, (ab.shape[0], *size, 2), 'linear')
