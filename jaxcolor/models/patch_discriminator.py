"""The discriminator that DDColor was trained against (Kang et al., ICCV 2023, section 3.4), as its published code has it.

It judges patches of a photo (Isola, Zhu, Zhou, Efros: *Image-to-Image Translation with Conditional Adversarial Networks*,
CVPR 2017, section 3.2.2), under spectral norm (Miyato, Kataoka, Koyama, Yoshida, ICLR 2018), and comes from DeOldify's.
"""

import itertools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcolor.errors import UserError
from jaxcolor.models.deoldify import SelfAttention
from jaxcolor.models.layers import scaled

LEAST_SIZE = 64  # pixels, for which there is one patch


class PatchDiscriminator(nn.Module):
    """Photos (B, H, W, C) -> logits of their patches, float32 (B, H/16 - 3, W/16 - 3): whether they are real.

    5,919,617 parameters for three channels. Spectral norm keeps its vectors among the batch statistics.
    """

    width: float = 1.0
    axis_name: str | None = None  # nothing is averaged over devices
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, photo: jax.Array, train: bool) -> jax.Array:
        """train: whether the vectors take a step of power iteration."""
        if min(photo.shape[1:3]) < LEAST_SIZE:
            raise UserError(f"data.crop: ddcolor's discriminator needs {LEAST_SIZE} pixels; or set task.adversarial to 0.")

        numbers = itertools.count()

        def conv(x, features, kernel, strides, padding=1, use_bias=True):
            name, size = f'conv_{next(numbers)}', (kernel, kernel)
            layer = nn.Conv(features, size, strides, padding, use_bias=use_bias, dtype=self.dtype, name=name)
            return nn.SpectralNorm(layer)(x, update_stats=train)

        features = scaled(64, self.width)
        x = nn.relu(conv(photo.astype(self.dtype), features, 4, 2))  # (B, H/2, W/2, 64)
        for i in range(3):
            x = nn.relu(conv(x, features, 3, 1))
            features *= 2
            x = nn.relu(conv(x, features, 4, 2))  # (B, H/4, W/4, 128), then /8 and 256, /16 and 512
            if i == 0:
                x = SelfAttention(self.dtype, name='attention')(x)
        x = nn.relu(conv(x, features, 3, 1))
        return conv(x, 1, 4, 1, padding=0, use_bias=False)[..., 0].astype(jnp.float32)
