"""Colorful Image Colorization (Zhang, Isola, Efros, ECCV 2016, section 2), as its published PyTorch code has it."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcolor import color
from jaxcolor.errors import UserError
from jaxcolor.models.layers import Conv, scaled
from jaxcolor.models.zhang_layers import AB_SCALE, ENCODER, Convs, Doubling, encoder

CLASSES = len(color.zhang_class_centers())
TEMPERATURE = 0.38  # of the annealed mean: the paper's T (section 2.3); the published file has it in its last kernel


class ECCV16(nn.Module):
    """How likely each of 313 colors is, at every fourth pixel. 32,235,385 parameters; without `color_classes` 626 more.

    The fields are explained in `jaxcolor/config.py`, section model. `axis_name` is the mapped axis over which batch norm
    averages; None for statistics per device.
    """

    width: float = 1.0
    color_classes: int = CLASSES
    encoder_norm: str = 'trained'
    axis_name: str | None = None
    dtype: Any = jnp.float32

    decoder = 'nearest'  # what the tasks ask of a network of this kind
    output_space = 'lab'
    output_activation = 'linear'
    encoder_layers = ENCODER

    def setup(self) -> None:
        shared: dict[str, Any] = {'axis_name': self.axis_name, 'dtype': self.dtype}
        self.block = encoder(self.width, 2, **shared)
        self.up = Doubling(scaled(256, self.width), self.dtype)
        self.last = Convs(scaled(256, self.width), 2, batch_norm=False, **shared)
        self.classes = Conv(self.color_classes or CLASSES, kernel=1, dtype=self.dtype)
        if not self.color_classes:
            self.colors = nn.Conv(2, (1, 1), use_bias=False, precision='highest')

    def __call__(self, lightness: jax.Array, *, train: bool = False) -> dict[str, jax.Array]:
        """Colorizes a batch.

        Args:
            lightness: L*/100, float (B, H, W, 1); any H and W.
            train: training mode: batch norm uses and updates the batch's statistics.

        Returns:
            A dict of a float32 array, sizes rounded up: 'color_logits', (B, H/4, W/4, color_classes), or, without
            `color_classes`, 'ab' in units of 128, (B, H/4, W/4, 2): the mean of the learned colors of the classes.
        """
        logits = self._logits(lightness - 0.5, train)
        H, W = (-(-side // 4) for side in lightness.shape[1:3])
        if self.color_classes:
            return {'color_logits': logits[:, :H, :W]}
        return {'ab': AB_SCALE / 128 * self.colors(jax.nn.softmax(logits))[:, :H, :W]}

    def published(self, lightness: jax.Array) -> jax.Array:
        """The published network itself: (L* - 50) / 100, float (B, H, W, 1) -> a*b*, float32 (B, H', W', 2).

        H' and W' are H and W, rounded up to multiples of 8. Raises UserError if the classes are not the paper's.
        """
        if self.color_classes not in (0, CLASSES):
            raise UserError(f"model.color_classes={self.color_classes}: the published network's is {CLASSES}, or 0.")
        logits = self._logits(lightness, False)
        if self.color_classes:
            likelihood = jax.nn.softmax(logits / TEMPERATURE)
            ab = jnp.dot(likelihood, color.zhang_class_centers(), precision='highest')
        else:
            ab = AB_SCALE * self.colors(jax.nn.softmax(logits))
        B, h, w, _ = ab.shape
        return jax.image.resize(ab, (B, 4 * h, 4 * w, 2), 'linear')

    def _logits(self, x, train):
        """(L* - 50) / 100 (B, H, W, 1) -> float32 (B, 2 H/8, 2 W/8, classes), H/8 and W/8 rounded up."""
        x = x.astype(self.dtype)
        for block in self.block:
            # (B, H/2, W/2, 64), (B, H/4, W/4, 128), (B, H/8, W/8, 256), then 512
            x = block(x, train and self.encoder_norm == 'trained')
        x = nn.relu(self.up(x))  # (B, H/4, W/4, 256)
        x = self.last(x, train)  # (B, H/4, W/4, 256)
        return self.classes(x).astype(jnp.float32)  # (B, H/4, W/4, 313)
