"""Layers and color conversions in PyTorch. Importing it needs PyTorch. Activations are (B, C, H, W)."""

import collections

import torch
import torch.nn.functional as F
from torch import nn

from jaxcolor import color

ACTIVATIONS = {'relu': lambda: nn.ReLU(inplace=True), 'sigmoid': nn.Sigmoid, 'tanh': nn.Tanh, 'linear': nn.Identity}


def conv(
    inputs: int, features: int, stride: int = 1, kernel: int = 3, batch_norm: bool = False, activation: str = 'relu'
) -> nn.Sequential:
    """Convolution, batch norm if asked for, activation."""
    layers = {'conv': nn.Conv2d(inputs, features, kernel, stride, kernel // 2)}
    if batch_norm:
        layers['norm'] = nn.BatchNorm2d(features)
    return nn.Sequential(collections.OrderedDict(layers, activation=ACTIVATIONS[activation]()))


def deconv(inputs: int, features: int, stride: int = 1, batch_norm: bool = False, activation: str = 'relu') -> nn.Sequential:
    """Transposed 3x3 convolution, batch norm if asked for, activation."""
    layers = {'deconv': nn.ConvTranspose2d(inputs, features, 3, stride, padding=1, output_padding=stride - 1)}
    if batch_norm:
        layers['norm'] = nn.BatchNorm2d(features)
    return nn.Sequential(collections.OrderedDict(layers, activation=ACTIVATIONS[activation]()))


def dense(inputs: int, features: int, batch_norm: bool = False, activation: str = 'relu') -> nn.Sequential:
    """Dense layer, batch norm if asked for, activation."""
    layers = {'dense': nn.Linear(inputs, features)}
    if batch_norm:
        layers['norm'] = nn.BatchNorm1d(features)
    return nn.Sequential(collections.OrderedDict(layers, activation=ACTIVATIONS[activation]()))


def upsample(x: torch.Tensor) -> torch.Tensor:
    """Nearest neighbor, (B, C, H, W) -> (B, C, 2H, 2W)."""
    return F.interpolate(x, scale_factor=2)


class Fusion(nn.Module):
    """A 1x1 convolution of the features of every pixel and of the whole photo, batch norm if asked for, then ReLU.

    The part of the photo's features is computed once per photo.
    """

    def __init__(self, channels: int, vector: int, features: int, batch_norm: bool = False) -> None:
        """Builds the layer: `channels` per pixel and `vector` global features in, `features` out."""
        super().__init__()
        self.local = nn.Conv2d(channels, features, 1, bias=False)
        self.vector = nn.Linear(vector, features)
        self.norm = nn.BatchNorm2d(features) if batch_norm else nn.Identity()

    def forward(self, local: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
        """(B, channels, H, W) and (B, vector) -> (B, features, H, W)."""
        return F.relu(self.norm(self.local(local) + self.vector(vector)[:, :, None, None]))


# -- Colors -----------------------------------------------------------------------------------------------------------

# Rows of the matrices as floats, constants of compiled code. Autocast and TF32 would affect a matrix product.
_TO_XYZ, _FROM_XYZ, _TO_LAB, _TO_YUV, _FROM_YUV = (
    matrix.T.tolist() for matrix in (color._TO_XYZ, color._FROM_XYZ, color._TO_LAB, color._TO_YUV, color._FROM_YUV)
)
_UV_MAX = color._UV_MAX.tolist()
_F_KNEE, _F_SLOPE, _F_OFFSET = (constant.item() for constant in (color._F_KNEE, color._F_SLOPE, color._F_OFFSET))


def lab_to_rgb(lab: torch.Tensor) -> torch.Tensor:
    """As `color.lab_to_rgb`: float L*a*b* (..., 3) -> sRGB (..., 3) in [0, 1]."""
    fy = (lab[..., 0] + 16) / 116
    f = torch.stack([fy + lab[..., 1] / 500, fy, fy - lab[..., 2] / 200], dim=-1)
    return _linear_to_srgb(_mix(_f_inverse(f), _FROM_XYZ).clamp(0, 1))


def gray_luma(lightness: torch.Tensor) -> torch.Tensor:
    """As `color.gray_luma`: L* -> the sRGB level in [0, 1] of that gray, of the same shape."""
    return _linear_to_srgb(_f_inverse((lightness + 16) / 116))


def rgb_to_lab(rgb: torch.Tensor) -> torch.Tensor:
    """As `color.rgb_to_lab`: sRGB (..., 3) in [0, 1] -> L*a*b* (..., 3)."""
    linear = torch.where(rgb > 0.04045, ((rgb.clamp_min(0.04) + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    xyz = _mix(linear, _TO_XYZ)
    f = torch.where(xyz > _F_KNEE, xyz.clamp_min(1e-4) ** (1 / 3), xyz * _F_SLOPE + _F_OFFSET)
    lightness, a, b = _mix(f, _TO_LAB).unbind(-1)
    return torch.stack([lightness - 16, a, b], dim=-1)


def rgb_to_yuv(rgb: torch.Tensor) -> torch.Tensor:
    """As `color.rgb_to_yuv`: sRGB (..., 3) in [0, 1] -> YUV (..., 3), every channel in [0, 1]."""
    y, u, v = _mix(rgb, _TO_YUV).unbind(-1)
    return torch.stack([y, u / (2 * _UV_MAX[0]) + 0.5, v / (2 * _UV_MAX[1]) + 0.5], dim=-1)


def yuv_to_rgb(yuv: torch.Tensor) -> torch.Tensor:
    """As `color.yuv_to_rgb`: YUV (..., 3), every channel in [0, 1] -> sRGB (..., 3), clipped to [0, 1]."""
    y, u, v = yuv.unbind(-1)
    return _mix(torch.stack([y, (u - 0.5) * (2 * _UV_MAX[0]), (v - 0.5) * (2 * _UV_MAX[1])], dim=-1), _FROM_YUV).clamp(0, 1)


def _f_inverse(f):
    return torch.where(f > 6 / 29, f * f * f, (f - _F_OFFSET) / _F_SLOPE)


def _linear_to_srgb(linear):
    curve = 1.055 * linear.clamp_min(0.003) ** (1 / 2.4) - 0.055
    return torch.where(linear > 0.0031308, curve, linear * 12.92)


def _mix(x, rows):
    x, y, z = x.unbind(-1)
    return torch.stack([a * x + b * y + c * z for a, b, c in rows], dim=-1)
