"""The networks written afresh in PyTorch, as a careful PyTorch user would write them, to be timed against.

Layers carry the names of jaxcolor's parameters, so that `load_jax` can fill them. Tensors are (B, C, H, W); H and W are
multiples of what a network halves them by. Needs the extra [torch]; importing this without it raises UserError.

`mirrored`: networks whose convolutions of stride 2 pad as TensorFlow does (below and to the right) are built with
PyTorch's own paddings, which pad above and to the left. With kernels turned by 180 degrees that is the same network on
photos turned by 180 degrees, at no cost; a faithful padding would copy every layer's input.
"""

import collections
import itertools
import re

import numpy as np

from jaxcolor import color, models
from jaxcolor.errors import UserError
from jaxcolor.models.encoder_fusion import DEEPCOLOR
from jaxcolor.models.extractors import vgg16
from jaxcolor.models.layers import scaled

try:
    import torch
    import torch.nn.functional as F
    from torch import nn
    from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
except ImportError as error:
    raise UserError("PyTorch is not installed, and this compares with it: pip install 'jaxcolor[torch]'.") from error


def build(config):
    """The network of a config's section `model` -> an nn.Module of random weights, on the CPU.

    Raises:
        UserError: no such network or field, or none that PyTorch's side has.
    """
    network = models.build(config)
    return {'ltbc': LTBC, 'deepcolor': DeepColor, 'vgg_fusion': VGGFusion, 'cgan': CGAN}[config.name](network)


# -- Layers -----------------------------------------------------------------------------------------------------------

ACTIVATIONS = {'relu': lambda: nn.ReLU(inplace=True), 'sigmoid': nn.Sigmoid, 'tanh': nn.Tanh, 'linear': nn.Identity}


def conv(inputs, features, stride=1, kernel=3, batch_norm=False, activation='relu'):
    """Convolution, optional batch norm, activation."""
    layers = {'conv': nn.Conv2d(inputs, features, kernel, stride, kernel // 2)}
    if batch_norm:
        layers['norm'] = nn.BatchNorm2d(features)
    return nn.Sequential(collections.OrderedDict(layers, activation=ACTIVATIONS[activation]()))


def deconv(inputs, features, stride=1, batch_norm=False, activation='relu'):
    """Transposed 3x3 convolution, optional batch norm, activation."""
    layers = {'deconv': nn.ConvTranspose2d(inputs, features, 3, stride, padding=1, output_padding=stride - 1)}
    if batch_norm:
        layers['norm'] = nn.BatchNorm2d(features)
    return nn.Sequential(collections.OrderedDict(layers, activation=ACTIVATIONS[activation]()))


def dense(inputs, features, batch_norm=False, activation='relu'):
    """Dense layer, optional batch norm, activation."""
    layers = {'dense': nn.Linear(inputs, features)}
    if batch_norm:
        layers['norm'] = nn.BatchNorm1d(features)
    return nn.Sequential(collections.OrderedDict(layers, activation=ACTIVATIONS[activation]()))


def upsample(x):
    """Nearest-neighbor x2."""
    return F.interpolate(x, scale_factor=2)


class Fusion(nn.Module):
    """A vector joined to every pixel and both mixed by a 1x1 convolution, the vector's part once a photo; then ReLU."""

    def __init__(self, channels, vector, features):
        super().__init__()
        self.local = nn.Conv2d(channels, features, 1, bias=False)
        self.vector = nn.Linear(vector, features)

    def forward(self, local, vector):
        return F.relu(self.local(local) + self.vector(vector)[:, :, None, None])


# -- Networks ---------------------------------------------------------------------------------------------------------


class LTBC(nn.Module):
    """Let there be Color!; fields as in `jaxcolor.models.ltbc.LTBC`, whose instance `net` is."""

    def __init__(self, net):
        super().__init__()
        self.mirrored = net.padding == 'SAME'
        if (net.decoder == 'deconv') != self.mirrored:
            raise UserError("The PyTorch network has decoder 'deconv' with padding 'SAME', or neither; set both so.")
        self.global_size = net.global_size

        def w(features):
            return scaled(features, net.width)

        def chain(layer, *steps):
            return nn.Sequential(*(layer(*step, batch_norm=net.batch_norm) for step in steps))

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
        self.fusion = Fusion(w(256), third, w(256))
        if net.decoder == 'deconv':
            self.color = chain(deconv, (w(256), w(128)), (w(128), w(64), 2), (w(64), w(64)), (w(64), w(32), 2))
            self.output = deconv(w(32), 2, 2, net.batch_norm, net.output_activation)
        else:
            self.color = chain(conv, (w(256), w(128)), (w(128), w(64)), (w(64), w(64)), (w(64), w(32)))
            self.output = conv(w(32), 2, activation=net.output_activation)
        self.classes = net.classes
        if net.classes:
            self.classifier_hidden = dense(second, w(net.classifier_width), net.batch_norm)
            self.classifier = dense(w(net.classifier_width), net.classes, activation='linear')
        self.flattened = {'global_dense.0.dense.weight': (side, side, d)}

    def forward(self, lightness):
        """(B, 1, H, W), L*/100 -> (ab, class logits or None); no logits outside training."""
        G = self.global_size
        low = self.low(lightness)  # (B, 512, H/8, W/8)
        own_size = tuple(lightness.shape[2:]) == (G, G)
        x = low if own_size else self.low(F.interpolate(lightness, size=(G, G), mode='bilinear', antialias=True))
        x = self.global_dense[:2](self.global_conv(x).flatten(1))
        logits = self.classifier(self.classifier_hidden(x)) if self.classes and self.training else None
        x = self.fusion(self.mid(low), self.global_dense[2](x))
        if self.mirrored:
            return self.output(self.color(x)), logits  # (B, 2, H, W)
        x = self.color[1:3](upsample(self.color[0](x)))  # (B, 64, H/4, W/4)
        return self.output(self.color[3](upsample(x))), logits  # (B, 2, H/2, W/2)


class DeepColor(nn.Module):
    """DeepColor; fields as in `jaxcolor.models.encoder_fusion.DeepColor`."""

    mirrored = True

    def __init__(self, net):
        super().__init__()
        encoder, fusion, decoder = DEEPCOLOR[net.variant]
        channels, layers = 1, []
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
                layers.append(conv(channels, channels := scaled(layer, net.width)))
        self.decoder = nn.Sequential(*layers)
        self.output = conv(channels, 2, activation=net.output_activation)

    def forward(self, lightness, features):
        """(B, 1, H, W), L*/100, and (B, 1000) -> (ab (B, 2, H/2, W/2), None)."""
        x = self.fusion[0](self.encoder(lightness), features)
        for layer in self.fusion[1:]:
            x = layer(x)
        return self.output(self.decoder(x)), None


class VGGFusion(nn.Module):
    """The VGG16-fusion report's network; fields as in `jaxcolor.models.encoder_fusion.VGGFusion`."""

    mirrored = True

    def __init__(self, net):
        super().__init__()
        if not net.use_features:
            raise UserError('model.use_features must be True for the comparison with PyTorch.')
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

    def forward(self, lightness, features):
        """(B, 1, H, W), L*/100, and (B, 1000) -> (ab (B, 2, H, W), None)."""
        x = self.encoder[3:](self.encoder_norm(self.encoder[:3](lightness)))  # (B, 512, H/64, W/64)
        x = self.decoder_norm(self.decoder[:4](self.fusion(x, features)))
        return self.activation(self.output(self.decoder[4:](x))), None


class VGG16(nn.Module):
    """The frozen extractor of `vgg_fusion`, with Keras' preprocessing."""

    mirrored = True
    flattened = {'fc1.weight': (7, 7, 512)}  # noqa: RUF012

    def __init__(self):
        super().__init__()
        channels = 3
        for b, (features, count) in enumerate(vgg16.BLOCKS, 1):
            for i in range(1, count + 1):
                self.add_module(f'block{b}_conv{i}', nn.Conv2d(channels, channels := features, 3, padding=1))
        inputs = 7 * 7 * channels
        for name, features in vgg16.DENSE:
            self.add_module(name, nn.Linear(inputs, inputs := features))
        mean = vgg16.preprocess_keras(np.zeros(3, np.float32)).reshape(3, 1, 1)
        self.register_buffer('mean', torch.from_numpy(mean), persistent=False)
        self.eval().requires_grad_(False)

    def forward(self, lightness):
        """L* (B, 1, H, W) in [0, 100] -> (B, 1000) before the softmax."""
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
    """Generator and discriminator; fields as in `jaxcolor.models.cgan.CGAN`."""

    mirrored = True

    def __init__(self, net):
        super().__init__()
        self.noise_size = net.noise_size
        self.generator = Generator(net)
        self.discriminator = Discriminator(net)
        side, features = net.size // 16, scaled(512, net.width)
        self.flattened = {'discriminator.hidden.weight': (side, side, features)}
        self.planes = {f'generator.noise.{name}': (net.size, net.size) for name in ('weight', 'bias')}


class Generator(nn.Module):
    """Convolutions of stride 1, each seeing Y again, the first three the noise, too."""

    def __init__(self, net):
        super().__init__()
        self.noise = nn.Linear(net.noise_size, net.size * net.size)
        channels, layers = 0, []
        for i, (features, kernel) in enumerate([(128, 7), (64, 5), (64, 5), (64, 5), (64, 5), (32, 5)]):
            inputs = channels + (2 if i < 3 else 1)
            layers.append(conv(inputs, channels := scaled(features, net.width), kernel=kernel, batch_norm=True))
        self.conv = nn.ModuleList(layers)
        self.output = conv(channels + 1, 2, kernel=5, activation='sigmoid')

    def forward(self, luma, noise):
        """Y (B, 1, H, W) in [0, 1], z (B, noise_size) -> U and V (B, 2, H, W) in [0, 1]; H and W are the network's."""
        plane = self.noise(noise).view(luma.shape)
        luma = luma.to(plane.dtype)  # joined in float32, autocast would convert each layer's whole input
        x = self.conv[0](torch.cat([luma, plane], dim=1))
        for i, layer in enumerate(self.conv[1:], start=1):
            x = layer(torch.cat([x, luma, plane] if i < 3 else [x, luma], dim=1))
        return self.output(torch.cat([x, luma], dim=1))


class Discriminator(nn.Module):
    """Four convolutions of stride 2 with batch norm and leaky ReLU, two dense layers without activation."""

    def __init__(self, net):
        super().__init__()
        channels = [3, *(scaled(features, net.width) for features in (64, 128, 256, 512))]
        pairs = list(itertools.pairwise(channels))
        self.conv = nn.ModuleList(nn.Conv2d(inputs, features, 5, 2, 2) for inputs, features in pairs)
        self.norm = nn.ModuleList(nn.BatchNorm2d(features) for _, features in pairs)
        hidden = scaled(net.hidden_width, net.width)
        self.hidden = nn.Linear((net.size // 16) ** 2 * channels[-1], hidden)
        self.logit = nn.Linear(hidden, 1)

    def forward(self, yuv):
        """YUV (B, 3, size, size) in [0, 1] -> (B,), the logit that it is a true photo."""
        x = yuv
        for conv_, norm in zip(self.conv, self.norm, strict=True):
            x = F.leaky_relu(norm(conv_(x)), 0.2, inplace=True)
        return self.logit(self.hidden(x.flatten(1)))[:, 0]


# -- Colors ----------------------------------------------------------------------------------------------------------


# Rows of the matrices; as floats they are constants of compiled code. A matrix product would fall under autocast and TF32.
_TO_XYZ, _FROM_XYZ, _TO_LAB, _TO_YUV, _FROM_YUV = (
    matrix.T.tolist() for matrix in (color._TO_XYZ, color._FROM_XYZ, color._TO_LAB, color._TO_YUV, color._FROM_YUV)
)
_UV_MAX = color._UV_MAX.tolist()
_F_KNEE, _F_SLOPE, _F_OFFSET = (constant.item() for constant in (color._F_KNEE, color._F_SLOPE, color._F_OFFSET))


def lab_to_rgb(lab):
    """As `color.lab_to_rgb`: float L*a*b* (..., 3) -> sRGB (..., 3) in [0, 1]."""
    fy = (lab[..., 0] + 16) / 116
    f = torch.stack([fy + lab[..., 1] / 500, fy, fy - lab[..., 2] / 200], dim=-1)
    xyz = torch.where(f > 6 / 29, f * f * f, (f - _F_OFFSET) / _F_SLOPE)
    linear = _mix(xyz, _FROM_XYZ).clamp(0, 1)
    curve = 1.055 * linear.clamp_min(0.003) ** (1 / 2.4) - 0.055
    return torch.where(linear > 0.0031308, curve, linear * 12.92)


def rgb_to_lab(rgb):
    """As `color.rgb_to_lab`: sRGB (..., 3) in [0, 1] -> L*a*b* (..., 3)."""
    linear = torch.where(rgb > 0.04045, ((rgb.clamp_min(0.04) + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    xyz = _mix(linear, _TO_XYZ)
    f = torch.where(xyz > _F_KNEE, xyz.clamp_min(1e-4) ** (1 / 3), xyz * _F_SLOPE + _F_OFFSET)
    lightness, a, b = _mix(f, _TO_LAB).unbind(-1)
    return torch.stack([lightness - 16, a, b], dim=-1)


def rgb_to_yuv(rgb):
    """As `color.rgb_to_yuv`: sRGB (..., 3) in [0, 1] -> YUV (..., 3), every channel in [0, 1]."""
    y, u, v = _mix(rgb, _TO_YUV).unbind(-1)
    return torch.stack([y, u / (2 * _UV_MAX[0]) + 0.5, v / (2 * _UV_MAX[1]) + 0.5], dim=-1)


def yuv_to_rgb(yuv):
    """As `color.yuv_to_rgb`: YUV (..., 3), every channel in [0, 1] -> sRGB (..., 3), clipped to [0, 1]."""
    y, u, v = yuv.unbind(-1)
    return _mix(torch.stack([y, (u - 0.5) * (2 * _UV_MAX[0]), (v - 0.5) * (2 * _UV_MAX[1])], dim=-1), _FROM_YUV).clamp(0, 1)


def _mix(x, rows):
    x, y, z = x.unbind(-1)
    return torch.stack([a * x + b * y + c * z for a, b, c in rows], dim=-1)


# -- Weights ----------------------------------------------------------------------------------------------------------


def load_jax(module, params, model_state=None):
    """Fills a network of this module with jaxcolor's parameters and batch statistics.

    Args:
        module: of `build`, or a VGG16.
        params: the parameter tree of jaxcolor's network with the same fields.
        model_state: TrainState.model_state, with batch statistics; None leaves the module's own.

    Raises:
        UserError: the two are not the same network.
    """
    state = module.state_dict()
    given = to_torch(module, params)
    if model_state:
        given |= to_torch(module, model_state.get('batch_stats', model_state))
    wrong = sorted(name for name, array in given.items() if name not in state or state[name].shape != array.shape)
    missing = sorted(name for name, _ in module.named_parameters() if name not in given)
    if wrong or missing:
        raise UserError(f'The PyTorch network is another than the parameters: they differ in {(wrong + missing)[0]}.')
    module.load_state_dict(state | {name: torch.from_numpy(array.copy()) for name, array in given.items()})


def to_torch(module, tree):
    """Arrays of jaxcolor's network (parameters, gradients, batch statistics) -> {name in `module`: array as it has it}.

    Kernels HWIO become OIHW (transposed ones IOHW), dense ones (in, out) become (out, in); the input of a dense layer
    behind a flattening goes from (H, W, C) to (C, H, W).
    """
    # Torch's transposed convolution turns its kernel itself.
    turn = (slice(None, None, -1),) * 2 if module.mirrored else ()
    names = {'kernel': 'weight', 'scale': 'weight', 'mean': 'running_mean', 'var': 'running_var'}
    arrays = {}
    for path, array in _leaves(tree):
        array = np.asarray(array, np.float32)
        layer = re.sub(r'_(\d+)', r'.\1', '.'.join(path[:-1]))
        name = f'{layer}.{names.get(path[-1], path[-1])}'
        if path[-1] == 'kernel' and array.ndim == 4:
            transposed = path[-2] == 'deconv'
            array = (array if transposed else array[turn]).transpose((2, 3, 0, 1) if transposed else (3, 2, 0, 1))
        elif path[-1] == 'kernel':
            if name in getattr(module, 'flattened', {}):
                array = array.reshape(*module.flattened[name], -1)[turn].transpose(2, 0, 1, 3).reshape(array.shape)
            array = array.T
        if name in getattr(module, 'planes', {}):  # (H * W, in) or (H * W,)
            array = array.reshape(*module.planes[name], *array.shape[1:])[turn].reshape(array.shape)
        arrays[name] = array
    return dict(pair for name, array in arrays.items() for pair in _split_fusion(module, name, array))


def _split_fusion(module, name, array):
    """A fusion's one kernel (F, C + G, 1, 1) and its bias are two layers here."""
    layer, _, kind = name.rpartition('.')
    fusion = dict(module.named_modules()).get(layer)
    if not isinstance(fusion, Fusion):
        return [(name, array)]
    if kind == 'bias':
        return [(f'{layer}.vector.bias', array)]
    C = fusion.local.in_channels
    return [(f'{layer}.local.weight', array[:, :C]), (f'{layer}.vector.weight', array[:, C:, 0, 0])]


def _leaves(tree, path=()):
    for name, value in tree.items():
        if hasattr(value, 'items'):
            yield from _leaves(value, (*path, name))
        else:
            yield (*path, name), value


def fold_batch_norm(module):
    """Folds batch norms into the layers ahead of them, in place, for inference: module must be in eval mode."""
    for block in module.modules():
        if isinstance(block, nn.Sequential) and hasattr(block, 'norm'):
            name = next(iter(block._modules))
            if name == 'dense':
                folded = fuse_linear_bn_eval(block.dense, block.norm)
            else:
                folded = fuse_conv_bn_eval(block._modules[name], block.norm, transpose=name == 'deconv')
            setattr(block, name, folded)
            block.norm = nn.Identity()
    return module
