"""Real-Time User-Guided Image Colorization with Learned Deep Priors (Zhang, Zhu, Isola et al., SIGGRAPH 2017).

The network of local hints, as the published PyTorch code has it.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcolor.models.layers import Conv, pad_to_multiple, scaled
from jaxcolor.models.zhang_layers import AB_SCALE, ENCODER, Convs, Doubling, encoder

MULTIPLE = 8  # pixels, the coarsest stride: sides are padded to multiples of it


def _leaky_relu(x):
    return nn.leaky_relu(x, 0.2)


class SIGGRAPH17(nn.Module):
    """a*b* from the lightness and colors that are given at some pixels; a U-net. 34,051,074 parameters.

    The published file has a further layer, 529 classes of colors that nothing follows from; it is left out.

    The fields are explained in `jaxcolor/config.py`, section model. `axis_name` is the mapped axis over which batch norm
    averages; None for statistics per device.
    """

    width: float = 1.0
    encoder_norm: str = 'trained'
    axis_name: str | None = None
    dtype: Any = jnp.float32

    decoder = 'nearest'  # what the tasks ask of a network of this kind
    output_space = 'lab'
    output_activation = 'tanh'
    takes_hints = True
    encoder_layers = ENCODER

    def setup(self) -> None:
        shared: dict[str, Any] = {'axis_name': self.axis_name, 'dtype': self.dtype}
        wide, narrow = scaled(256, self.width), scaled(128, self.width)
        self.block = encoder(self.width, 1, **shared)
        self.up_8, self.up_9, self.up_10 = (Doubling(features, self.dtype) for features in (wide, narrow, narrow))
        self.skip_8, self.skip_9, self.skip_10 = (
            Conv(features, kernel_init=nn.initializers.he_normal(), dtype=self.dtype) for features in (wide, narrow, narrow)
        )
        self.block_8, self.block_9 = Convs(wide, 2, **shared), Convs(narrow, 1, **shared)
        self.block_10 = Convs(narrow, 1, batch_norm=False, activation=_leaky_relu, **shared)
        self.output = Conv(2, kernel=1, dtype=self.dtype)

    def __call__(self, lightness: jax.Array, hints: jax.Array | None = None, *, train: bool = False) -> dict[str, jax.Array]:
        """Colorizes a batch.

        Args:
            lightness: L*/100, float (B, H, W, 1); any H and W.
            hints: float (B, H, W, 3): a* and b*, 0 where there is no hint, and 1 where there is one, else 0; None: no hints.
            train: training mode: batch norm uses and updates the batch's statistics.

        Returns:
            {'ab': float32 (B, H, W, 2) in (-110/128, 110/128), in units of 128}
        """
        H, W = lightness.shape[1:3]
        hints = jnp.zeros((*lightness.shape[:3], 3), lightness.dtype) if hints is None else hints
        x = jnp.concatenate([lightness - 0.5, hints[..., :2] / AB_SCALE, hints[..., 2:]], axis=-1)
        ab = self._ab(pad_to_multiple(x, MULTIPLE), train)
        return {'ab': AB_SCALE / 128 * ab[:, :H, :W]}  # cuts the padding off

    def published(self, lightness: jax.Array, hints: jax.Array, mask: jax.Array) -> jax.Array:
        """The published network itself.

        Args:
            lightness: L*, float (B, H, W, 1); H and W are multiples of 8.
            hints: a*b*, float (B, H, W, 2), 0 where there is no hint.
            mask: 1 where there is a hint, else 0; float (B, H, W, 1).

        Returns:
            a*b*, float32 (B, H, W, 2).
        """
        x = jnp.concatenate([(lightness - 50) / 100, hints / AB_SCALE, mask], axis=-1)
        return AB_SCALE * self._ab(x, False)

    def _ab(self, x, train):
        """(B, H, W, 4) -> float32 (B, H, W, 2) in (-1, 1); H and W are multiples of MULTIPLE."""
        x, maps = x.astype(self.dtype), []
        for i, block in enumerate(self.block):
            # (B, H, W, 64), (B, H/2, W/2, 128), (B, H/4, W/4, 256), then (B, H/8, W/8, 512)
            x = block(x, train and self.encoder_norm == 'trained')
            if i < 3:
                maps.append(x)
                x = x[:, ::2, ::2]
        x = nn.relu(self.up_8(x) + self.skip_8(maps[2]))  # (B, H/4, W/4, 256)
        x = self.block_8(x, train)
        x = nn.relu(self.up_9(x) + self.skip_9(maps[1]))  # (B, H/2, W/2, 128)
        x = self.block_9(x, train)
        x = nn.relu(self.up_10(x) + self.skip_10(maps[0]))  # (B, H, W, 128)
        x = self.block_10(x, train)
        return jnp.tanh(self.output(x).astype(jnp.float32))
