"""Encoder, fusion with the output of a frozen classifier, decoder: DeepColor and the VGG16-fusion report.

Both follow Deep Koalarization (Baldassarre, Morin, Rodes-Guirao 2017), which replaces LTBC's global branch by a network
trained on ImageNet.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcolor.errors import UserError
from jaxcolor.models.layers import (
    ACTIVATIONS,
    BatchNorm,
    ConvBlock,
    DeconvBlock,
    Fusion,
    check_variant,
    pad_to_multiple,
    scaled,
)

# DeepColor's figures 4 to 11: the encoder's 3x3 convolutions ('64/2': 64 filters at stride 2), the 1x1 convolutions of the
# fusion, and the decoder up to its output. Architecture 1's listing has one stride 2 more, which gives 14x14 features; those
# here give 28x28, as in the others. Architecture 3 follows its summary, which its listing contradicts. 'koalarization' is
# Deep Koalarization itself (its table 1), with an extractor's 1000 outputs in place of the 1001 of its TF-Slim network,
# which has one for the background.
DEEPCOLOR: dict[str, tuple[tuple[int | str, ...], tuple[int, ...], tuple[int | str, ...]]] = {
    'base': (('64/2', 128, '128/2', 256, '256/2', 512, 512, 256), (256, 256), (128, 'up', 64, 'up', 32, 16)),
    '1': (('64/2', '128/2', '128/2', 256, 256, 512, 256), (256, 256), (128, 'up', 64, 'up', 32, 16)),
    '2': (('64/2', '64/2', '64/2', 128, 256), (256, 256), (128, 'up', 64, 'up', 32, 16)),
    '3': (('64/2', '64/2', '32/2', 64, 64), (64,), (64, 'up', 32, 'up', 32, 16)),
    'koalarization': (('64/2', 128, '128/2', 256, '256/2', 512, 512, 256), (256,), (128, 'up', 64, 64, 'up', 32)),
}


class DeepColor(nn.Module):
    """DeepColor (section 3, figures 4 to 11): 6,606,994 parameters for 'base', without the extractor.

    Output activation 'relu' is read as (ab + 128) / 256: the report, whose listings end in it, says nothing of how a*b* are
    scaled, and a*b* of both signs need an offset.

    The fields are explained in `jaxcolor/config.py`, section model.
    """

    variant: str = 'base'
    width: float = 1.0
    output_activation: str = 'tanh'
    use_features: bool = True
    axis_name: str | None = None
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        check_variant('deepcolor', self.variant, DEEPCOLOR)
        super().__post_init__()

    @nn.compact
    def __call__(self, lightness: jax.Array, features: jax.Array, *, train: bool = False) -> dict[str, jax.Array]:
        """Predicts a*b* at half the size of the photo.

        Args:
            lightness: L*/100, float (B, H, W, 1).
            features: the extractor's output, float (B, 1000).
            train: training mode.

        Returns:
            {'ab': float32 (B, H/2, W/2, 2), rounded up, in the range of `output_activation`}.
        """
        H, W = lightness.shape[1:3]
        encoder, fusion, decoder = DEEPCOLOR[self.variant]
        x = pad_to_multiple(lightness.astype(self.dtype), 8)
        for i, layer in enumerate(encoder):
            if isinstance(layer, str):
                x = self._conv(int(layer.removesuffix('/2')), f'encoder_{i}', strides=2)(x, train)
            else:
                x = self._conv(layer, f'encoder_{i}')(x, train)
        # (B, H/8, W/8, 256)
        if not self.use_features:
            features = jnp.zeros_like(features)
        x = nn.relu(Fusion(scaled(fusion[0], self.width), self.dtype, name='fusion_0')(x, features))
        for i, filters in enumerate(fusion[1:], start=1):
            x = self._conv(filters, f'fusion_{i}', kernel=1)(x, train)
        for i, layer in enumerate(decoder):
            if not isinstance(layer, str):
                x = self._conv(layer, f'decoder_{i}', upsampled=i > 0 and decoder[i - 1] == 'up')(x, train)
        ab = ConvBlock(2, activation=self.output_activation, padding='SAME', dtype=self.dtype, name='output')(x, train)
        return {'ab': ab.astype(jnp.float32)[:, : -(-H // 2), : -(-W // 2)]}

    def _conv(self, features, name, strides=1, kernel=3, upsampled=False):
        return ConvBlock(
            scaled(features, self.width), strides, kernel, padding='SAME', upsampled=upsampled, dtype=self.dtype, name=name
        )


class VGGFusion(nn.Module):
    """The VGG16-fusion report (Pradhan, Gupta, Gaurav, section 3): 7,726,882 parameters, without VGG16 and batch norm.

    The report's table of encoder widths is missing; those here give its shapes. The fields are explained in
    `jaxcolor/config.py`, section model.
    """

    width: float = 1.0
    encoder_widths: tuple[int, ...] = (64, 128, 128, 256, 256, 512)
    output_activation: str = 'tanh'
    use_features: bool = True
    axis_name: str | None = None
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        if len(self.encoder_widths) != 6:
            raise UserError(f'model.encoder_widths: {len(self.encoder_widths)} widths for the six convolutions.')
        super().__post_init__()

    @nn.compact
    def __call__(self, lightness: jax.Array, features: jax.Array, *, train: bool = False) -> dict[str, jax.Array]:
        """As `DeepColor`, but 'ab' has the size of the photo: float32 (B, H, W, 2)."""
        H, W = lightness.shape[1:3]
        x = pad_to_multiple(lightness.astype(self.dtype), 64)
        for i, layer in enumerate(self.encoder_widths):
            x = ConvBlock(scaled(layer, self.width), 2, padding='SAME', dtype=self.dtype, name=f'encoder_{i}')(x, train)
            if i == 2:
                x = BatchNorm(train, self.axis_name, self.dtype, name='encoder_norm')(x)
        # (B, H/64, W/64, 512)
        if not self.use_features:
            features = jnp.zeros_like(features)
        x = nn.relu(Fusion(scaled(512, self.width), self.dtype, name='fusion')(x, features))
        for i, (layer, strides) in enumerate([(512, 1), (256, 2), (256, 2), (128, 2), (128, 2), (64, 2), (32, 2)]):
            x = DeconvBlock(scaled(layer, self.width), strides, dtype=self.dtype, name=f'decoder_{i}')(x, train)
            if i == 3:
                x = BatchNorm(train, self.axis_name, self.dtype, name='decoder_norm')(x)
        # (B, H, W, 32)
        x = nn.ConvTranspose(2, (1, 1), dtype=self.dtype, name='output')(x)
        return {'ab': ACTIVATIONS[self.output_activation](x).astype(jnp.float32)[:, :H, :W]}
