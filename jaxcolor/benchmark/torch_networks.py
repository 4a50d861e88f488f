"""The networks in PyTorch, written as a careful PyTorch user would, to time jaxcolor against. Importing it needs PyTorch.

Layers are named like jaxcolor's parameters, so that `torch_weights.load_jax` can load them. H and W are multiples of a
network's total stride.

`rotated` networks: their strided convolutions pad below and to the right, as TensorFlow does, but PyTorch pads above and to
the left. With kernels rotated by 180 degrees it is the same network on photos rotated by 180 degrees, at no cost; explicit
padding would copy the input of every layer.
"""

import itertools

import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from ml_collections import ConfigDict
from torch import nn

from jaxcolor import models
from jaxcolor.benchmark.torch_layers import ACTIVATIONS, Fusion, conv, deconv, dense, lab_to_rgb, upsample
from jaxcolor.benchmark.torch_lite import LTBCLite
from jaxcolor.benchmark.torch_zhang import TrainedECCV16
from jaxcolor.errors import UserError
from jaxcolor.models import cgan, encoder_fusion, ltbc
from jaxcolor.models.encoder_fusion import DEEPCOLOR
from jaxcolor.models.extractors import vgg16
from jaxcolor.models.layers import EPSILON, MOMENTUM, scaled


def build(config: ConfigDict) -> nn.Module:
    """The network of a config's section `model`, with random weights, on the CPU.

    Raises:
        UserError: the network or a field is unknown, or the PyTorch side lacks it.
    """
    networks = {
        **{'ltbc': LTBC, 'iizuka': LTBC, 'ltbc_lite': LTBCLite, 'eccv16': TrainedECCV16},
        **{'deepcolor': DeepColor, 'vgg_fusion': VGGFusion, 'cgan': CGAN},
    }
    if config.name not in networks:
        raise UserError(f'the PyTorch side does not train {config.name}; it trains {", ".join(networks)}.')
    return networks[config.name](models.build(config))


def _require(net, **values):
    for field, value in values.items():
        if getattr(net, field) != value:
            raise UserError(f'the PyTorch network needs model.{field}={value}.')


class LTBC(nn.Module):
    """Let there be Color!"""

    def __init__(self, net: ltbc.LTBC) -> None:
        """Builds the network with the fields of jaxcolor's. Raises UserError for combinations that PyTorch lacks."""
        super().__init__()
        _require(net, output_space='lab', residual=False)
        self.rotated = net.padding == 'SAME'
        if (net.decoder == 'deconv') != self.rotated:
            raise UserError("the PyTorch network needs both model.decoder='deconv' and model.padding='SAME', or neither.")
        self.global_size = net.global_size

        def w(features):
            return scaled(features, net.width)

        def chain(layer, *steps):
            normalize = net.batch_norm and (layer is not dense or net.batch_norm_dense)
            return nn.Sequential(*(layer(*step, batch_norm=normalize) for step in steps))

        self.low = chain(
            conv,
            (1, w(64), 2),
            (w(64), w(128)),
            (w(128), w(128), 2),
            (w(128), w(256)),
            (w(256), w(256), 2),
            (w(256), w(512)),
        )
        self.mid = chain(conv, (w(512), w(512)), (w(512), w(256)))
        d, side = w(512), net.global_size // 32
        self.global_conv = chain(conv, (d, d, 2), (d, d), (d, d, 2), (d, d))
        first, second, third = map(w, net.dense_widths)
        self.global_dense = chain(dense, (side * side * d, first), (first, second), (second, third))
        self.fusion = Fusion(w(256), third, w(256), net.batch_norm and net.batch_norm_fusion)
        normalize_output = net.batch_norm and net.batch_norm_output
        self.color_classes = net.color_classes
        if net.color_classes:
            self.color = chain(conv, (w(256), w(128)), (w(128), w(128)), (w(128), w(128)))
            self.output = conv(w(128), net.color_classes, 1, 1, normalize_output, 'linear')
        elif net.decoder == 'deconv':
            self.color = chain(deconv, (w(256), w(128)), (w(128), w(64), 2), (w(64), w(64)), (w(64), w(32), 2))
            self.output = deconv(w(32), 2, 2, normalize_output, net.output_activation)
        else:
            self.color = chain(conv, (w(256), w(128)), (w(128), w(64)), (w(64), w(64)), (w(64), w(32)))
            self.output = conv(w(32), 2, batch_norm=normalize_output, activation=net.output_activation)
        self.classes = net.classes
        if net.classes:
            (self.classifier_hidden,) = chain(dense, (second, w(net.classifier_width)))
            self.classifier = dense(w(net.classifier_width), net.classes, activation='linear')
        self.flattened = {'global_dense.0.dense.weight': (side, side, d)}

    def forward(self, lightness: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """L*/100 (B, 1, H, W) -> (ab (B, 2, H, W) or half that size, or color logits (B, Q, H/4, W/4); class logits
        (B, classes) in training)."""
        G = self.global_size
        low = self.low(lightness)  # (B, 512, H/8, W/8)
        own_size = tuple(lightness.shape[2:]) == (G, G)
        x = low if own_size else self.low(F.interpolate(lightness, size=(G, G), mode='bilinear', antialias=True))
        x = self.global_dense[:2](self.global_conv(x).flatten(1))
        logits = self.classifier(self.classifier_hidden(x)) if self.classes and self.training else None
        x = self.fusion(self.mid(low), self.global_dense[2](x))
        if self.rotated:
            return self.output(self.color(x)), logits  # (B, 2, H, W)
        x = self.color[1:3](upsample(self.color[0](x)))  # (B, 64, H/4, W/4), of color classes 128
        if self.color_classes:
            return self.output(x), logits
        return self.output(self.color[3](upsample(x))), logits  # (B, 2, H/2, W/2)


class DeepColor(nn.Module):
    """DeepColor."""

    rotated = True

    def __init__(self, net: encoder_fusion.DeepColor) -> None:
        """Builds the network with the fields of jaxcolor's. Raises UserError without `use_features`."""
        super().__init__()
        _require(net, use_features=True)
        encoder, fusion, decoder = DEEPCOLOR[net.variant]
        channels = 1
        layers: list[nn.Module] = []
        for layer in encoder:
            features, stride = (int(layer[:-2]), 2) if isinstance(layer, str) else (layer, 1)
            layers.append(conv(channels, channels := scaled(features, net.width), stride))
        self.encoder = nn.Sequential(*layers)
        layers = [Fusion(channels, 1000, channels := scaled(fusion[0], net.width))]
        for features in fusion[1:]:
            layers.append(conv(channels, channels := scaled(features, net.width), kernel=1))
        self.fusion = nn.ModuleList(layers)
        layers = []
        for layer in decoder:
            if layer == 'up':
                layers.append(nn.Upsample(scale_factor=2))
            else:
                layers.append(conv(channels, channels := scaled(int(layer), net.width)))
        self.decoder = nn.Sequential(*layers)
        self.output = conv(channels, 2, activation=net.output_activation)

    def forward(self, lightness: torch.Tensor, features: torch.Tensor) -> tuple[torch.Tensor, None]:
        """L*/100 (B, 1, H, W) and features (B, 1000) -> (ab (B, 2, H/2, W/2), None)."""
        x = self.fusion[0](self.encoder(lightness), features)
        for layer in self.fusion[1:]:
            x = layer(x)
        return self.output(self.decoder(x)), None


class VGGFusion(nn.Module):
    """The network of the VGG16-fusion report."""

    rotated = True

    def __init__(self, net: encoder_fusion.VGGFusion) -> None:
        """Builds the network with the fields of jaxcolor's. Raises UserError without `use_features`."""
        super().__init__()
        _require(net, use_features=True)
        channels, layers = 1, []
        for features in net.encoder_widths:
            layers.append(conv(channels, channels := scaled(features, net.width), 2))
        self.encoder = nn.Sequential(*layers)
        self.encoder_norm = nn.BatchNorm2d(scaled(net.encoder_widths[2], net.width))
        self.fusion = Fusion(channels, 1000, channels := scaled(512, net.width))
        layers = []
        for features, stride in ((512, 1), (256, 2), (256, 2), (128, 2), (128, 2), (64, 2), (32, 2)):
            layers.append(deconv(channels, channels := scaled(features, net.width), stride))
        self.decoder = nn.Sequential(*layers)
        self.decoder_norm = nn.BatchNorm2d(scaled(128, net.width))
        self.output = nn.Conv2d(channels, 2, 1)
        self.activation = ACTIVATIONS[net.output_activation]()

    def forward(self, lightness: torch.Tensor, features: torch.Tensor) -> tuple[torch.Tensor, None]:
        """L*/100 (B, 1, H, W) and features (B, 1000) -> (ab (B, 2, H, W), None)."""
        x = self.encoder[3:](self.encoder_norm(self.encoder[:3](lightness)))  # (B, 512, H/64, W/64)
        x = self.decoder_norm(self.decoder[:4](self.fusion(x, features)))
        return self.activation(self.output(self.decoder[4:](x))), None


class VGG16(nn.Module):
    """VGG16 with Keras' preprocessing, the frozen extractor of `vgg_fusion`."""

    rotated = True
    flattened = {'fc1.weight': (7, 7, 512)}  # noqa: RUF012

    def __init__(self) -> None:
        """Builds the network."""
        super().__init__()
        channels = 3
        for b, (features, count) in enumerate(vgg16.BLOCKS, 1):
            for i in range(1, count + 1):
                self.add_module(f'block{b}_conv{i}', nn.Conv2d(channels, channels := features, 3, padding=1))
        inputs = 7 * 7 * channels
        for name, features in vgg16.DENSE:
            self.add_module(name, nn.Linear(inputs, inputs := features))
        mean = np.array(vgg16.preprocess_keras(jnp.zeros(3))).reshape(3, 1, 1)
        self.register_buffer('mean', torch.from_numpy(mean), persistent=False)
        self.eval().requires_grad_(False)

    def forward(self, lightness: torch.Tensor) -> torch.Tensor:
        """L* (B, 1, H, W) in [0, 100] -> logits (B, 1000)."""
        gray = torch.cat([lightness, torch.zeros_like(lightness), torch.zeros_like(lightness)], dim=1)
        rgb = lab_to_rgb(gray.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = F.interpolate(rgb, size=(vgg16.SIZE, vgg16.SIZE), mode='bilinear', antialias=True)
        x = x.flip(1) * 255 + self.mean
        for b, (_, count) in enumerate(vgg16.BLOCKS, 1):
            for i in range(1, count + 1):
                x = F.relu(self.get_submodule(f'block{b}_conv{i}')(x), inplace=True)
            x = F.max_pool2d(x, 2)
        return self.predictions(F.relu(self.fc2(F.relu(self.fc1(x.flatten(1))))))


class CGAN(nn.Module):
    """The conditional GAN: generator and discriminator."""

    rotated = True

    def __init__(self, net: cgan.CGAN) -> None:
        """Builds the network with the fields of jaxcolor's. Raises UserError for those that PyTorch lacks."""
        super().__init__()
        _require(net, output_activation='sigmoid', generator_layers=7, leaky_slope=0.2)
        _require(net, batch_norm_momentum=MOMENTUM, batch_norm_eps=EPSILON)
        self.noise_size = net.noise_size
        self.generator = Generator(net)
        self.discriminator = Discriminator(net)
        side, features = net.size // 16, scaled(512, net.width)
        self.flattened = {'discriminator.hidden.weight': (side, side, features)}
        self.planes = {f'generator.noise.{name}': (net.size, net.size) for name in ('weight', 'bias')}


class Generator(nn.Module):
    """Convolutions of stride 1; each also gets Y, the first three the noise."""

    def __init__(self, net: cgan.CGAN) -> None:
        """Builds the network with the fields of jaxcolor's."""
        super().__init__()
        self.noise = nn.Linear(net.noise_size, net.size * net.size)
        channels, layers = 0, []
        for i, (features, kernel) in enumerate([(128, 7), (64, 5), (64, 5), (64, 5), (64, 5), (32, 5)]):
            inputs = channels + (2 if i < 3 else 1)
            layers.append(conv(inputs, channels := scaled(features, net.width), kernel=kernel, batch_norm=True))
        self.conv = nn.ModuleList(layers)
        self.output = conv(channels + 1, 2, kernel=5, activation='sigmoid')

    def forward(self, luma: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Y (B, 1, size, size) in [0, 1] and z (B, noise_size) -> U and V (B, 2, size, size) in [0, 1]."""
        plane = self.noise(noise).view(luma.shape)
        luma = luma.to(plane.dtype)  # concatenated in float32, autocast would convert each layer's whole input
        x = self.conv[0](torch.cat([luma, plane], dim=1))
        for i, layer in enumerate(self.conv[1:], start=1):
            x = layer(torch.cat([x, luma, plane] if i < 3 else [x, luma], dim=1))
        return self.output(torch.cat([x, luma], dim=1))


class Discriminator(nn.Module):
    """Four convolutions of stride 2 with batch norm and leaky ReLU, then two dense layers without activation."""

    def __init__(self, net: cgan.CGAN) -> None:
        """Builds the network with the fields of jaxcolor's."""
        super().__init__()
        channels = [3, *(scaled(features, net.width) for features in (64, 128, 256, 512))]
        pairs = list(itertools.pairwise(channels))
        self.conv = nn.ModuleList(nn.Conv2d(inputs, features, 5, 2, 2) for inputs, features in pairs)
        self.norm = nn.ModuleList(nn.BatchNorm2d(features) for _, features in pairs)
        hidden = scaled(net.hidden_width, net.width)
        self.hidden = nn.Linear((net.size // 16) ** 2 * channels[-1], hidden)
        self.logit = nn.Linear(hidden, 1)

    def forward(self, yuv: torch.Tensor) -> torch.Tensor:
        """YUV (B, 3, size, size) in [0, 1] -> logits of being a true photo, (B,)."""
        x = yuv
        for conv_, norm in zip(self.conv, self.norm, strict=True):
            x = F.leaky_relu(norm(conv_(x)), 0.2, inplace=True)
        return self.logit(self.hidden(x.flatten(1)))[:, 0]
