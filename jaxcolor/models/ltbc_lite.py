"""`ltbc_lite`: the fusion of local and global features on a pretrained encoder that is small enough for CPUs.

The idea is that of Iizuka, Simo-Serra, Ishikawa (SIGGRAPH 2016, section 3): one vector that says what the photo shows joins
the local features of every pixel. Here an EfficientNet-Lite (`efficientnet_lite.py`) that has seen ImageNet in color takes
the place of the branches that the paper trains from nothing; its maps of strides 32, 16, 8, 4 (and 2) are joined on the way
up, as in a feature pyramid (Lin et al., CVPR 2017, section 3).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcolor import color
from jaxcolor.models.efficientnet_lite import EfficientNetLite, preprocess
from jaxcolor.models.layers import ConvBlock, DenseBlock, Fusion, pad_to_multiple, scaled

MULTIPLE = 32  # pixels, the coarsest stride of the encoder: sides are padded to multiples of it


class Join(nn.Module):
    """Enlarges a coarse map twofold, adds a finer one, and mixes both by a 3x3 convolution.

    (B, H, W, C), (B, 2H, 2W, S) -> (B, 2H, 2W, features)
    """

    features: int
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, coarse: jax.Array, fine: jax.Array, train: bool) -> jax.Array:
        shared: dict[str, Any] = {'batch_norm': True, 'axis_name': self.axis_name, 'dtype': self.dtype}
        x = ConvBlock(self.features, upsampled=True, activation='linear', **shared, name='coarse')(coarse, train)
        x += ConvBlock(self.features, kernel=1, activation='linear', **shared, name='fine')(fine, train)
        return ConvBlock(self.features, **shared, name='mix')(nn.relu(x), train)


class LTBCLite(nn.Module):
    """4,018,436 parameters at the defaults with 260 color classes, 2,958,848 of them the encoder's.

    The fields are explained in `jaxcolor/config.py`, section model. `axis_name` is the mapped axis over which batch norm
    averages; None for statistics per device.
    """

    variant: str = 'lite0'
    width: float = 1.0
    vector: int = 128
    encoder_norm: str = 'trained'
    output_activation: str = 'tanh'
    color_classes: int = 0
    axis_name: str | None = None
    dtype: Any = jnp.float32

    decoder = 'nearest'  # what the tasks ask of a network of this kind
    output_space = 'lab'

    def setup(self) -> None:
        shared: dict[str, Any] = {'axis_name': self.axis_name, 'dtype': self.dtype}
        wide, narrow = scaled(128, self.width), scaled(64, self.width)
        self.encoder = EfficientNetLite(self.variant, **shared)
        self.dense = DenseBlock(self.vector, dtype=self.dtype)
        self.top = ConvBlock(wide, kernel=1, batch_norm=True, **shared)
        self.fusion = Fusion(wide, self.dtype)
        self.join_16, self.join_8, self.join_4 = (Join(wide, **shared) for _ in range(3))
        if self.color_classes:
            self.output = ConvBlock(self.color_classes, kernel=1, activation='linear', dtype=self.dtype)
        else:
            self.join_2 = Join(narrow, **shared)
            self.output = ConvBlock(2, activation=self.output_activation, dtype=self.dtype)

    def __call__(
        self, lightness: jax.Array, global_features: jax.Array | None = None, *, train: bool = False
    ) -> dict[str, jax.Array]:
        """Colorizes a batch.

        Args:
            lightness: L*/100, float (B, H, W, 1); any H and W.
            global_features: float (B, vector) of `global_features` of other photos (style transfer); None for their own.
            train: training mode: batch norm uses and updates the batch's statistics.

        Returns:
            A dict of a float32 array, sizes rounded up: 'ab', (B, H/2, W/2, 2) in the range of `output_activation`, or, if
            the network has `color_classes`, 'color_logits', (B, H/4, W/4, color_classes).
        """
        scales = self._encode(lightness, train)
        if global_features is None:
            global_features = self._describe(scales, train)
        x = self.top(scales[32], train)  # (B, H/32, W/32, 128)
        x = self.join_16(x, scales[16], train)  # (B, H/16, W/16, 128)
        x = self.join_8(x, scales[8], train)  # (B, H/8, W/8, 128)
        x = nn.relu(self.fusion(x, global_features, train))
        x = self.join_4(x, scales[4], train)  # (B, H/4, W/4, 128)
        name, stride = 'color_logits', 4
        if not self.color_classes:
            x = self.join_2(x, scales[2], train)  # (B, H/2, W/2, 64)
            name, stride = 'ab', 2
        x = self.output(x, train).astype(jnp.float32)
        H, W = (-(-side // stride) for side in lightness.shape[1:3])
        return {name: x[:, :H, :W]}  # cuts the padding off

    def global_features(self, lightness: jax.Array, *, train: bool = False) -> tuple[jax.Array, None]:
        """L*/100 (B, H, W, 1) -> the vector (B, vector) that is joined to every pixel; None: there is no classifier."""
        return self._describe(self._encode(lightness, train), train), None

    def _encode(self, lightness, train):
        """The encoder's maps by stride, of the photo in gray."""
        lightness = pad_to_multiple(lightness.astype(jnp.float32), MULTIPLE)
        image = preprocess(jnp.repeat(color.gray_luma(100 * lightness), 3, axis=-1))  # (B, H, W, 3)
        return self.encoder.features(image, train and self.encoder_norm == 'trained')

    def _describe(self, scales, train):
        """The mean of the coarsest map through a dense layer: (B, vector)."""
        pooled = jnp.mean(scales[32].astype(jnp.float32), axis=(1, 2))  # (B, 320)
        return self.dense(pooled, train)
