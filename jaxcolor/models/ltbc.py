"""Let there be Color! (Iizuka, Simo-Serra, Ishikawa, SIGGRAPH 2016, section 3 and table 1), and its reimplementations."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcolor.color import OUTPUT_SPACES
from jaxcolor.models.layers import ConvBlock, DeconvBlock, DenseBlock, Fusion, pad_to_multiple, scaled
from jaxcolor.models.parts import run_by_parts


class LTBC(nn.Module):
    """Fuses global and local features of the lightness to predict the colors and, optionally, the scene class.

    42,169,826 parameters at the defaults with classes=0 and batch_norm=False.

    The fields are explained in `jaxcolor/config.py`, section model. `axis_name` is the mapped axis over which batch norm
    averages; None for statistics per device.
    """

    width: float = 1.0
    batch_norm: bool = True
    batch_norm_dense: bool = True
    batch_norm_fusion: bool = False
    batch_norm_output: bool = False
    classes: int = 205
    classifier_width: int = 256
    dense_widths: tuple[int, ...] = (1024, 512, 256)
    decoder: str = 'nearest'
    output_activation: str = 'sigmoid'
    output_space: str = 'lab'
    residual: bool = False
    global_size: int = 224
    global_dropout: float = 0.0
    padding: str = 'symmetric'
    color_classes: int = 0
    axis_name: str | None = None
    dtype: Any = jnp.float32

    encoder_norm = 'trained'  # batch norm of the low-level and global features, in training; of `Iizuka`, a field
    encoder_layers = tuple(
        f'{part}_{i}' for part, count in {'low': 6, 'global_conv': 4, 'global_dense': 3}.items() for i in range(count)
    )

    def setup(self) -> None:
        shared: dict[str, Any] = {'batch_norm': self.batch_norm, 'axis_name': self.axis_name, 'dtype': self.dtype}
        normalize_dense, normalize_fusion, normalize_output = (
            self.batch_norm and each for each in (self.batch_norm_dense, self.batch_norm_fusion, self.batch_norm_output)
        )

        def conv(features, strides=1, upsampled=False):
            features = scaled(features, self.width)
            return ConvBlock(features, strides, padding=self.padding, upsampled=upsampled, residual=self.residual, **shared)

        def dense(features):
            return DenseBlock(scaled(features, self.width), **shared | {'batch_norm': normalize_dense})

        self.low = [conv(64, 2), conv(128), conv(128, 2), conv(256), conv(256, 2), conv(512)]
        self.mid = [conv(512), conv(256)]
        self.global_conv = [conv(512, 2), conv(512), conv(512, 2), conv(512)]
        self.global_dense = [dense(features) for features in self.dense_widths]
        self.fusion = Fusion(scaled(256, self.width), self.dtype, normalize_fusion, self.axis_name)
        _, channels = OUTPUT_SPACES[self.output_space]
        last = shared | {'batch_norm': normalize_output, 'activation': self.output_activation}
        if self.color_classes:
            # Color classes (Zhang 2016) need twice the paper's channels, and a quarter of the photo's size is enough.
            self.color = [conv(128), conv(128, upsampled=True), conv(128)]
            last |= {'activation': 'linear'}
            self.output: nn.Module = ConvBlock(self.color_classes, kernel=1, **last)
        elif self.decoder == 'deconv':
            widths = [(128, 1), (64, 2), (64, 1), (32, 2)]
            self.color = [
                DeconvBlock(scaled(features, self.width), strides, residual=self.residual, **shared)
                for features, strides in widths
            ]
            self.output = DeconvBlock(channels, 2, **last)
        else:
            self.color = [conv(128), conv(64, upsampled=True), conv(64), conv(32, upsampled=True)]
            self.output = ConvBlock(channels, padding=self.padding, **last)
        if self.classes:
            self.classifier_hidden = dense(self.classifier_width)
            self.classifier = DenseBlock(self.classes, activation='linear', dtype=self.dtype)

    def __call__(
        self, lightness: jax.Array, global_features: jax.Array | None = None, *, train: bool = False
    ) -> dict[str, jax.Array]:
        """Colorizes a batch.

        Args:
            lightness: L*/100, float (B, H, W, 1); any H and W.
            global_features: float (B, G) of `global_features` of other photos (style transfer, section 3.4 of the paper);
                None for the photos' own.
            train: training mode: batch norm uses and updates the batch's statistics, and dropout is on.

        Returns:
            A dict of float32 arrays, sizes rounded up:
            'ab': (B, H/2, W/2, 2) in the range of `output_activation`; (B, H, W, 2) with the 'deconv' decoder;
            'uv' or 'rgb' of 3 channels in its place with another `output_space`; or, if the network has `color_classes`,
            'color_logits': (B, H/4, W/4, color_classes); and
            'logits': (B, classes), if the network has a classifier and `global_features` is None.
        """
        H, W = lightness.shape[1:3]
        logits = None
        low = self._low(pad_to_multiple(self._input(lightness), 8), train)  # (B, H/8, W/8, 512)
        if global_features is None:
            # At the size of the global branch, both branches share the low-level features (section 3.1).
            is_global_size = (self.global_size, self.global_size) == (H, W)
            global_features, logits = self.global_features(lightness, low if is_global_size else None, train=train)
        x = self._colors(low, global_features, train)
        stride = 4 if self.color_classes else 1 if self.decoder == 'deconv' else 2
        H, W = -(-H // stride), -(-W // stride)
        name = 'color_logits' if self.color_classes else OUTPUT_SPACES[self.output_space][0]
        outputs = {name: x.astype(jnp.float32)[:, :H, :W]}  # cuts the padding off
        return outputs if logits is None else outputs | {'logits': logits}

    def global_features(
        self, lightness: jax.Array, low: jax.Array | None = None, *, train: bool = False
    ) -> tuple[jax.Array, jax.Array | None]:
        """Runs the global branch.

        Args:
            lightness: L*/100, float (B, H, W, 1).
            low: low-level features (B, G/8, G/8, 512) of the photos at G = `global_size`, if they are computed already.
            train: training mode.

        Returns:
            Global features (B, 256 * width), and class logits (B, classes) or None.
        """
        if low is None:
            B, G = lightness.shape[0], self.global_size
            resized = jax.image.resize(self._input(lightness), (B, G, G, 1), 'linear')
            low = self._low(resized, train)  # (B, G/8, G/8, 512)
        x = _run(self.global_conv, low, self._trains_norms(train))  # (B, G/32, G/32, 512)
        x = x.reshape(x.shape[0], -1)
        for layer in self.global_dense[:2]:
            x = layer(x, self._trains_norms(train))  # (B, 1024), then (B, 512)
            if train and self.global_dropout:
                x = dropout_by_photo(x, lightness, self.make_rng('dropout'), self.global_dropout)
        logits = None
        if self.classes:
            logits = self.classifier(self.classifier_hidden(x, train), train).astype(jnp.float32)
        return self.global_dense[2](x, self._trains_norms(train)), logits

    def _trains_norms(self, train):
        return train and self.encoder_norm == 'trained'

    def _input(self, lightness):
        """L*/100 (B, H, W, 1) -> what the first convolution sees, of the same shape."""
        return lightness

    def _low(self, x, train):
        """(B, H, W, 1), sides that are multiples of 8 -> low-level features (B, H/8, W/8, 512)."""
        x = x.astype(self.dtype)
        if train:
            return _run(self.low, x, self._trains_norms(train))
        x = run_by_parts(self.low[:3], x)  # (B, H/4, W/4, 128)
        x = run_by_parts(self.low[3:5], x)  # (B, H/8, W/8, 256)
        return self.low[5](x, False)

    def _colors(self, low, global_features, train):
        """Low-level features (B, H/8, W/8, 512) and the vector (B, 256) -> the output, at the size that `__call__` names."""
        x = _run(self.mid, low, train)  # (B, H/8, W/8, 256)
        x = nn.relu(self.fusion(x, global_features, train))
        if self.color_classes or self.decoder == 'deconv':
            return self.output(_run(self.color, x, train), train)  # (B, H/4, W/4, color_classes); (B, H, W, 2)
        x = self.color[0](x, train)  # (B, H/8, W/8, 128)
        x = self.color[2](self.color[1](x, train), train)  # (B, H/4, W/4, 64)
        return self.output(self.color[3](x, train), train)  # (B, H/2, W/2, 2)


def dropout_by_photo(x: jax.Array, lightness: jax.Array, rng: jax.Array, rate: float) -> jax.Array:
    """Dropout (Srivastava et al., JMLR 2014) whose mask depends on the photo and the key, not on the batch.

    So the number of devices does not change which values are dropped.

    Args:
        x: (B, D).
        lightness: L*/100 of the photos, float (B, H, W, 1).
        rng: key of the step.
        rate: probability of dropping a value, in (0, 1).

    Returns:
        (B, D); kept values are divided by 1 - rate.
    """
    seeds = jnp.sum(jnp.round(255 * lightness).astype(jnp.uint32), axis=(1, 2, 3), dtype=jnp.uint32)
    keep = 1 - rate
    mask = jax.vmap(lambda seed: jax.random.bernoulli(jax.random.fold_in(rng, seed), keep, x.shape[1:]))(seeds)
    return jnp.where(mask, x / keep, 0).astype(x.dtype)


def _run(layers, x, train):
    for layer in layers:
        x = layer(x, train)
    return x
