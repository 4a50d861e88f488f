"""Let there be Color! with the inputs and outputs of its authors' published network (Iizuka et al., SIGGRAPH 2016)."""

import jax
import jax.numpy as jnp

from jaxcolor import color
from jaxcolor.models.layers import upsample
from jaxcolor.models.ltbc import LTBC

AB_LIMIT = 100.0  # units of a*b*: the published network's 0 and 1 mean minus this and this


class Iizuka(LTBC):
    """`LTBC` that sees the luma of the gray photo, not its lightness, and whose a*b* lie in [-100, 100].

    The fields are explained in `jaxcolor/config.py`, section model; it is a regression with a sigmoid.
    """

    luma_mean: float = 0.0
    encoder_norm: str = 'trained'
    repeat_output: bool = False

    def __call__(
        self, lightness: jax.Array, global_features: jax.Array | None = None, *, train: bool = False
    ) -> dict[str, jax.Array]:
        """As `LTBC`; 'ab' is 0.5 plus a*b* / 256, as `color.AB_RANGE` has it for a sigmoid."""
        outputs = super().__call__(lightness, global_features, train=train)
        return {**outputs, 'ab': 0.5 + AB_LIMIT / 128 * (outputs['ab'] - 0.5)}

    def published(self, luma: jax.Array, global_luma: jax.Array) -> jax.Array:
        """The published network itself.

        Args:
            luma: of the photo in [0, 1] minus the mean, float (B, H, W, 1); H and W are multiples of 8.
            global_luma: the same of the photo at (B, 224, 224, 1).

        Returns:
            (a*b* / 100 + 1) / 2, float32 (B, H/2, W/2, 2), or (B, H, W, 2) with `repeat_output`.
        """
        vector, _ = self.global_features(global_luma, self._low(global_luma, False))
        ab = self._colors(self._low(luma, False), vector, False).astype(jnp.float32)
        return upsample(ab) if self.repeat_output else ab

    def _input(self, lightness):
        return color.gray_luma(100 * lightness) - self.luma_mean
