"""`ltbc_lite` in PyTorch, as a careful PyTorch user would write it. Importing it needs PyTorch.

Layers are named like jaxcolor's parameters; activations are (B, C, H, W), sides multiples of 32.
"""

import torch
import torch.nn.functional as F
from torch import nn

from jaxcolor.benchmark.torch_layers import Fusion, conv, dense, gray_luma, upsample
from jaxcolor.models import ltbc_lite
from jaxcolor.models.efficientnet_lite import STEM, blocks
from jaxcolor.models.layers import scaled


class ConvBN(nn.Conv2d):
    """Convolution without a bias, batch norm, and ReLU6 if asked for."""

    def __init__(
        self, inputs: int, features: int, kernel: int = 1, stride: int = 1, depthwise: bool = False, relu6: bool = True
    ) -> None:
        """Builds the layer; depthwise: each channel has a kernel of its own."""
        super().__init__(inputs, features, kernel, stride, kernel // 2, groups=inputs if depthwise else 1, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(features, eps=1e-3, momentum=0.01)
        self.relu6 = relu6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, inputs, H, W) -> (B, features, H/stride, W/stride)."""
        x = self.norm(super().forward(x))
        return F.relu6(x, inplace=True) if self.relu6 else x


class Bottleneck(nn.Module):
    """1x1 convolution to more channels, depthwise, 1x1 to fewer, with the identity beside it where the shape stays."""

    def __init__(self, inputs: int, features: int, kernel: int, stride: int, expansion: int) -> None:
        """Builds the block: `expansion` times the channels inside, 1 without the first convolution."""
        super().__init__()
        inside = expansion * inputs
        if expansion != 1:
            self.expand = ConvBN(inputs, inside)
        self.depthwise = ConvBN(inside, inside, kernel, stride, depthwise=True)
        self.project = ConvBN(inside, features, relu6=False)
        self.stride, self.is_expanded, self.keeps_shape = stride, expansion != 1, stride == 1 and features == inputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, inputs, H, W) -> (B, features, H/stride, W/stride)."""
        y = self.project(self.depthwise(self.expand(x) if self.is_expanded else x))
        return x + y if self.keeps_shape else y


class Encoder(nn.Module):
    """EfficientNet-Lite without its head."""

    def __init__(self, variant: str) -> None:
        """Builds the network; variant: a key of models.efficientnet_lite.VARIANTS."""
        super().__init__()
        self.stem = ConvBN(3, STEM, 3, 2)
        channels, stride, made = STEM, 2, []
        self.channels: dict[int, int] = {}  # of the last output of each stride
        for block in blocks(variant):
            made.append(Bottleneck(channels, block.features, block.kernel, block.strides, block.expansion))
            channels, stride = block.features, stride * block.strides
            self.channels[stride] = channels
        self.blocks = nn.ModuleList(made)

    def forward(self, image: torch.Tensor) -> dict[int, torch.Tensor]:
        """Preprocessed image (B, 3, H, W) -> {stride: (B, C, H/stride, W/stride)}."""
        x, stride, scales = self.stem(image), 2, {}
        for block in self.blocks:
            stride *= block.stride
            x = scales[stride] = block(x)
        return scales


class Join(nn.Module):
    """Enlarges a coarse map twofold, adds a finer one, and mixes both by a 3x3 convolution."""

    def __init__(self, coarse: int, fine: int, features: int) -> None:
        """Builds the layer from the channels of both maps."""
        super().__init__()
        self.coarse = conv(coarse, features, batch_norm=True, activation='linear')
        self.fine = conv(fine, features, kernel=1, batch_norm=True, activation='linear')
        self.mix = conv(features, features, batch_norm=True)

    def forward(self, coarse: torch.Tensor, fine: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) and (B, S, 2H, 2W) -> (B, features, 2H, 2W)."""
        return self.mix(F.relu(self.coarse(upsample(coarse)) + self.fine(fine)))


class LTBCLite(nn.Module):
    """Let there be Color!'s fusion on an EfficientNet-Lite."""

    rotated = True

    def __init__(self, net: ltbc_lite.LTBCLite) -> None:
        """Builds the network with the fields of jaxcolor's."""
        super().__init__()
        wide, narrow = scaled(128, net.width), scaled(64, net.width)
        self.encoder, self.frozen_norms = Encoder(net.variant), net.encoder_norm != 'trained'
        channels = self.encoder.channels
        self.dense = dense(channels[32], net.vector)
        self.top = conv(channels[32], wide, kernel=1, batch_norm=True)
        self.fusion = Fusion(wide, net.vector, wide)
        self.join = nn.ModuleDict({str(stride): Join(wide, channels[stride], wide) for stride in (16, 8, 4)})
        if net.color_classes:
            self.output = conv(wide, net.color_classes, kernel=1, activation='linear')
        else:
            self.join['2'] = Join(wide, channels[2], narrow)
            self.output = conv(narrow, 2, activation=net.output_activation)

    def train(self, mode: bool = True) -> 'LTBCLite':
        """As of `nn.Module`; frozen batch norms keep their statistics."""
        super().train(mode)
        self.encoder.train(mode and not self.frozen_norms)
        return self

    def forward(self, lightness: torch.Tensor) -> tuple[torch.Tensor, None]:
        """L*/100 (B, 1, H, W) -> (color logits (B, classes, H/4, W/4) or ab (B, 2, H/2, W/2), None)."""
        image = (255 * gray_luma(100 * lightness) - 127) / 128  # as efficientnet_lite.preprocess
        scales = self.encoder(image.expand(-1, 3, -1, -1))
        x = self.join['8'](self.join['16'](self.top(scales[32]), scales[16]), scales[8])  # (B, 128, H/8, W/8)
        x = self.fusion(x, self.dense(scales[32].mean(dim=(2, 3))))
        x = self.join['4'](x, scales[4])  # (B, 128, H/4, W/4)
        if '2' in self.join:
            x = self.join['2'](x, scales[2])  # (B, 64, H/2, W/2)
        return self.output(x), None
