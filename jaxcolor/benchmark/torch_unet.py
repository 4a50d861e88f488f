"""What DDColor and DeOldify share, in PyTorch, written from their published description; names are their files'.

Importing it needs PyTorch. Activations are (B, C, H, W).
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn


def spectral(in_channels: int, out_channels: int, kernel: int = 1, bias: bool = False) -> nn.Module:
    """A convolution of stride 1 with spectral norm, which keeps the size."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=bias)
    return nn.utils.spectral_norm(conv, n_power_iterations=1)


def conv_relu_norm(in_channels: int, out_channels: int) -> nn.Sequential:
    """A 3x3 convolution with spectral norm, ReLU, batch norm."""
    return nn.Sequential(spectral(in_channels, out_channels, 3), nn.ReLU(), nn.BatchNorm2d(out_channels))


class Shuffle(nn.Module):
    """Pixel shuffle of a 1x1 convolution's outputs, then a blur."""

    def __init__(self, conv: nn.Module, ratio: int, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.conv = nn.Sequential(conv, *([] if norm is None else [norm]))
        self.ratio = ratio

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.pixel_shuffle(torch.relu(self.conv(x)), self.ratio)
        # torch.compile of PyTorch 2.13 fails on this as padding and pooling behind the shuffle.
        x = x + torch.cat([x[:, :, :1], x[:, :, :-1]], dim=2)
        return (x + torch.cat([x[..., :1], x[..., :-1]], dim=3)) / 4


class UNetBlock(nn.Module):
    """Enlarges a map, joins a skip and mixes both. mixes: {name: module}; skip, shuffled: channels."""

    def __init__(self, in_channels: int, skip: int, shuffled: int, mixes: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.shuf = Shuffle(spectral(in_channels, 4 * shuffled), 2, nn.BatchNorm2d(4 * shuffled))
        self.bn = nn.BatchNorm2d(skip)
        self.mixes = list(mixes)
        for name, module in mixes.items():
            self.add_module(name, module)
        self.resized = False

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        x = self.shuf(x)
        self.resized = x.shape[2:] != skip.shape[2:]
        if self.resized:
            x = F.interpolate(x, skip.shape[2:], mode='nearest')
        x = torch.relu(torch.cat([x, self.bn(skip)], 1))
        for name in self.mixes:
            x = getattr(self, name)(x)
        return x
