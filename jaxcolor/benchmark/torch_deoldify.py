"""DeOldify in PyTorch, written from its published description; names are its files'. Importing it needs PyTorch.

Activations are (B, C, H, W).
"""

from collections.abc import Sequence

import torch
from torch import nn

from jaxcolor.benchmark.torch_unet import Shuffle, UNetBlock, conv_relu_norm, spectral


class BasicBlock(nn.Module):
    """A residual block of two 3x3 convolutions."""

    expansion = 1

    def __init__(self, before: int, C: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, C, 3, stride, 1, bias=False), nn.BatchNorm2d(C)
        self.conv2, self.bn2 = nn.Conv2d(C, C, 3, 1, 1, bias=False), nn.BatchNorm2d(C)
        self.downsample = _downsample(before, C, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """A residual block of convolutions of 1x1, 3x3 and 1x1."""

    expansion = 4

    def __init__(self, before: int, C: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, C, 1, bias=False), nn.BatchNorm2d(C)
        self.conv2, self.bn2 = nn.Conv2d(C, C, 3, stride, 1, bias=False), nn.BatchNorm2d(C)
        self.conv3, self.bn3 = nn.Conv2d(C, 4 * C, 1, bias=False), nn.BatchNorm2d(4 * C)
        self.downsample = _downsample(before, 4 * C, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(torch.relu(self.bn2(self.conv2(y)))))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


def _downsample(before, after, stride):
    if before == after and stride == 1:
        return None
    return nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))


def resnet(block: type[BasicBlock] | type[Bottleneck], depths: Sequence[int], width: float) -> nn.Sequential:
    """A ResNet without its last layers."""
    C = round(64 * width)
    layers = [nn.Conv2d(3, C, 7, 2, 3, bias=False), nn.BatchNorm2d(C), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    before = C
    for i, depth in enumerate(depths):
        C, blocks = round(64 * 2**i * width), []
        for j in range(depth):
            blocks.append(block(before, C, 2 if i and not j else 1))
            before = C * block.expansion
        layers.append(nn.Sequential(*blocks))
    return nn.Sequential(*layers)


class SelfAttention(nn.Module):
    """Each pixel adds what it sees of all others, times a gain."""

    def __init__(self, C: int) -> None:
        super().__init__()
        self.query, self.key = (_conv1d(C, max(1, C // 8)) for _ in range(2))
        self.value = _conv1d(C, C)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pixels = x.flatten(2)  # (B, C, N)
        beta = torch.softmax(self.query(pixels).transpose(1, 2) @ self.key(pixels), dim=1)
        return (self.gamma * (self.value(pixels) @ beta) + pixels).reshape(x.shape)


def _conv1d(in_channels, out_channels):
    return nn.utils.spectral_norm(nn.Conv1d(in_channels, out_channels, 1, bias=False))


class WeightNormConv(nn.Module):
    """A 1x1 convolution whose kernels are directions and lengths."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.weight_v = nn.Parameter(torch.randn(out_channels, in_channels, 1, 1))
        self.weight_g = nn.Parameter(1 + torch.rand(out_channels, 1, 1, 1))
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        length = torch.linalg.vector_norm(self.weight_v, dim=(1, 2, 3), keepdim=True)
        return nn.functional.conv2d(x, self.weight_v * self.weight_g / length, self.bias)


class Residual(nn.Module):
    """Two 3x3 convolutions beside the identity."""

    def __init__(self, C: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(spectral(C, C, 3, bias=True), nn.ReLU()) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers[1](self.layers[0](x))


class DeOldifyTwin(nn.Module):
    """Gray RGB as ImageNet's networks expect it (B, 3, H, W) -> RGB of that kind."""

    def __init__(self, variant: str = 'artistic', width: float = 1.0) -> None:
        super().__init__()
        is_deep = variant == 'artistic'
        body = resnet(BasicBlock, (3, 4, 6, 3), width) if is_deep else resnet(Bottleneck, (3, 4, 23, 3), width)
        before = round(512 * width) * (1 if is_deep else 4)
        middle = nn.Sequential(conv_relu_norm(before, 2 * before), conv_relu_norm(2 * before, before))
        blocks = []
        expansion = 1 if is_deep else 4
        skips = [round(C * width) * expansion for C in (256, 128, 64)] + [round(64 * width)]
        shuffled, widths = (256, 384, 384, 336), (768, 768, 672, 300)
        if not is_deep:
            shuffled = widths = (512, 512, 512, 256)
        for i in range(4):
            up, C = round(shuffled[i] * width), round(widths[i] * width)
            last = conv_relu_norm(C if is_deep else up + skips[i], C)
            if i == 1:
                last.append(SelfAttention(C))
            mixes = {'conv1': conv_relu_norm(up + skips[i], C), 'conv2': last} if is_deep else {'conv': last}
            blocks.append(UNetBlock(before, skips[i], up, mixes))
            before = C
        self.layers = nn.ModuleList(
            [
                body,
                nn.BatchNorm2d(middle[0][0].in_channels),
                nn.ReLU(),
                middle,
                *blocks,
                Shuffle(WeightNormConv(before, 4 * before), 2),
                nn.Identity(),
                Residual(before + 3),
                nn.Sequential(spectral(before + 3, 3, bias=True)),
            ]
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        body, norm, relu, middle, *blocks, up, _, residual, last = self.layers
        x, skips = image, []
        for i, layer in enumerate(body):
            x = layer(x)
            if i in (2, 4, 5, 6):
                skips.append(x)
        x = middle(relu(norm(x)))
        for block in blocks:
            x = block(x, skips.pop())
        x = residual(torch.cat([up(x), image], 1))
        return 6 * torch.sigmoid(last(x)) - 3
