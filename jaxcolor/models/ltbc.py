"""Let there be Color! (Iizuka, Simo-Serra, Ishikawa, SIGGRAPH 2016, section 3 and table 1), and its reimplementations."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcolor.models.layers import ConvBlock, DeconvBlock, DenseBlock, Fusion, pad_to_multiple, scaled


class LTBC(nn.Module):
    """Global and local features of a photograph's lightness, fused, give its colors and (optionally) its class.

    42,169,826 parameters at the defaults with classes=0 and batch_norm=False.

    Fields are those of `jaxcolor/config.py`, section model; `axis_name` names the devices' axis over which batch norm
    takes its statistics together, None for each device by itself.
    """

    width: float = 1.0
    batch_norm: bool = True
    classes: int = 205
    classifier_width: int = 256
    dense_widths: tuple[int, ...] = (1024, 512, 256)
    decoder: str = 'nearest'
    output_activation: str = 'sigmoid'
    global_size: int = 224
    global_dropout: float = 0.0
    padding: str = 'symmetric'
    color_classes: int = 0
    axis_name: str | None = None
    dtype: Any = jnp.float32

    def setup(self):
        shared = {'batch_norm': self.batch_norm, 'axis_name': self.axis_name, 'dtype': self.dtype}

        def conv(features, strides=1, upsampled=False):
            features = scaled(features, self.width)
            return ConvBlock(features, strides, padding=self.padding, upsampled=upsampled, **shared)

        def dense(features):
            return DenseBlock(scaled(features, self.width), **shared)

        self.low = [conv(64, 2), conv(128), conv(128, 2), conv(256), conv(256, 2), conv(512)]
        self.mid = [conv(512), conv(256)]
        self.global_conv = [conv(512, 2), conv(512), conv(512, 2), conv(512)]
        self.global_dense = [dense(features) for features in self.dense_widths]
        self.fusion = Fusion(scaled(256, self.width), self.dtype)
        if self.color_classes:
            # A pixel's classes are told apart by twice the paper's channels, at a quarter of the photo's size (Zhang 2016).
            self.color = [conv(128), conv(128, upsampled=True), conv(128)]
            self.output = ConvBlock(self.color_classes, kernel=1, activation='linear', dtype=self.dtype)
        elif self.decoder == 'deconv':
            widths = [(128, 1), (64, 2), (64, 1), (32, 2)]
            self.color = [DeconvBlock(scaled(features, self.width), strides, **shared) for features, strides in widths]
            self.output = DeconvBlock(2, 2, **shared | {'activation': self.output_activation})
        else:
            self.color = [conv(128), conv(64, upsampled=True), conv(64), conv(32, upsampled=True)]
            self.output = ConvBlock(2, activation=self.output_activation, padding=self.padding, dtype=self.dtype)
        if self.classes:
            self.classifier_hidden = DenseBlock(scaled(self.classifier_width, self.width), **shared)
            self.classifier = DenseBlock(self.classes, activation='linear', dtype=self.dtype)

    def __call__(self, lightness, global_features=None, *, train: bool = False):
        """Colors a batch.

        Args:
            lightness: float (B, H, W, 1), L*/100; any H and W.
            global_features: float (B, G) of `global_features`, to give these photos the mood of others (section 3.4 of the
                paper, "style transfer"); None takes their own.
            train: whether batch norm uses and updates the batch's statistics.

        Returns:
            {'ab': float32 (B, H/2, W/2, 2) in the range of `output_activation`, H/2 and W/2 rounded up, or (B, H, W, 2)
            from the 'deconv' decoder; or, where the network has `color_classes`,
            'color_logits': float32 (B, H/4, W/4, color_classes), H/4 and W/4 rounded up;
            'logits': float32 (B, classes), where the network has a classifier and its global branch ran}.
        """
        H, W = lightness.shape[1:3]
        logits = None
        low = _run(self.low, pad_to_multiple(lightness.astype(self.dtype), 8), train)  # (B, H/8, W/8, 512)
        if global_features is None:
            # At its own size the photo's low-level features serve both branches (section 3.1).
            own_size = (self.global_size, self.global_size) == (H, W)
            global_features, logits = self.global_features(lightness, low if own_size else None, train=train)
        x = _run(self.mid, low, train)  # (B, H/8, W/8, 256)
        x = nn.relu(self.fusion(x, global_features))
        if self.color_classes:
            x = self.output(_run(self.color, x, train), train)  # (B, H/4, W/4, color_classes)
            H, W = -(-H // 4), -(-W // 4)
        elif self.decoder == 'deconv':
            x = self.output(_run(self.color, x, train), train)  # (B, H, W, 2)
        else:
            x = self.color[0](x, train)  # (B, H/8, W/8, 128)
            x = self.color[2](self.color[1](x, train), train)  # (B, H/4, W/4, 64)
            x = self.output(self.color[3](x, train), train)  # (B, H/2, W/2, 2)
            H, W = -(-H // 2), -(-W // 2)
        colors = {'color_logits' if self.color_classes else 'ab': x.astype(jnp.float32)[:, :H, :W]}  # without the padding's
        return colors if logits is None else colors | {'logits': logits}

    def global_features(self, lightness, low=None, *, train: bool = False):
        """Global features of a batch: float (B, H, W, 1), L*/100 -> (B, 256 * width), and class logits or None.

        `low` are low-level features already computed from `global_size` x `global_size` photos.
        """
        if low is None:
            B, G = lightness.shape[0], self.global_size
            copy = jax.image.resize(lightness, (B, G, G, 1), 'linear').astype(self.dtype)
            low = _run(self.low, copy, train)  # (B, 28, 28, 512)
        x = _run(self.global_conv, low, train)  # (B, 7, 7, 512)
        x = x.reshape(x.shape[0], -1)
        for layer in self.global_dense[:2]:
            x = self._dropped(layer(x, train), lightness, train)  # (B, 1024), then (B, 512)
        logits = None
        if self.classes:
            logits = self.classifier(self.classifier_hidden(x, train), train).astype(jnp.float32)
        return self.global_dense[2](x, train), logits

    def _dropped(self, x, lightness, train):
        """Dropout (Srivastava et al., JMLR 2014) of (B, D) in training.

        What is dropped comes from the photo and the step's key, so that the number of devices changes nothing.
        """
        if not (train and self.global_dropout):
            return x
        keep, rng = 1 - self.global_dropout, self.make_rng('dropout')
        seeds = jnp.sum(jnp.round(255 * lightness).astype(jnp.uint32), axis=(1, 2, 3), dtype=jnp.uint32)
        kept = jax.vmap(lambda seed: jax.random.bernoulli(jax.random.fold_in(rng, seed), keep, x.shape[1:]))(seeds)
        return jnp.where(kept, x / keep, 0).astype(x.dtype)


def _run(layers, x, train):
    for layer in layers:
        x = layer(x, train)
    return x
