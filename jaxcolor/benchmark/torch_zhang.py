"""Zhang et al.'s networks in PyTorch: layers and names as their files have them, but for `TrainedECCV16`.

Importing it needs PyTorch. Activations are (B, C, H, W).
"""

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from jaxcolor.errors import UserError
from jaxcolor.models import eccv16
from jaxcolor.models.layers import scaled


def crb(*sizes: int, strides: int = 1, dilation: int = 1, norm: bool = True) -> list[nn.Module]:
    """3x3 convolutions, each with a ReLU, the last with the stride; then batch norm."""
    layers = []
    for i, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        stride = strides if i == len(sizes) - 2 else 1
        layers += [nn.Conv2d(inputs, outputs, 3, stride, dilation, dilation), nn.ReLU()]
    return layers + ([nn.BatchNorm2d(sizes[-1])] if norm else [])


class Encoder(nn.Module):
    """The seven blocks that both networks begin with."""

    def __init__(self, inputs: int, strides: int, width: float) -> None:
        super().__init__()
        a, b, c, d = (round(width * features) for features in (64, 128, 256, 512))
        self.model1 = nn.Sequential(*crb(inputs, a, a, strides=strides))
        self.model2 = nn.Sequential(*crb(a, b, b, strides=strides))
        self.model3 = nn.Sequential(*crb(b, c, c, c, strides=strides))
        self.model4 = nn.Sequential(*crb(c, d, d, d))
        self.model5 = nn.Sequential(*crb(d, d, d, d, dilation=2))
        self.model6 = nn.Sequential(*crb(d, d, d, d, dilation=2))
        self.model7 = nn.Sequential(*crb(d, d, d, d))

    def blocks(self) -> list[nn.Module]:
        """The blocks, in order."""
        return [getattr(self, f'model{i}') for i in range(1, 8)]


class ECCV16(Encoder):
    """Colorful Image Colorization."""

    def __init__(self, width: float = 1.0) -> None:
        super().__init__(1, 2, width)
        c, d = (round(width * features) for features in (256, 512))
        up = [nn.ConvTranspose2d(d, c, 4, 2, 1), nn.ReLU()]
        self.model8 = nn.Sequential(*up, *crb(c, c, c, norm=False), nn.Conv2d(c, 313, 1))
        self.model_out = nn.Conv2d(313, 2, 1, bias=False)

    def forward(self, lightness: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """L* -> a*b*, and what comes out of each block."""
        x, seen = (lightness - 50) / 100, []
        for block in [*self.blocks(), self.model8]:
            x = block(x)
            seen.append(x)
        ab = self.model_out(torch.softmax(x, dim=1))
        return 110 * nn.functional.interpolate(ab, scale_factor=4, mode='bilinear', align_corners=False), seen


class SIGGRAPH17(Encoder):
    """The network of local hints."""

    def __init__(self, width: float = 1.0) -> None:
        super().__init__(4, 1, width)
        a, b, c, d = (round(width * features) for features in (64, 128, 256, 512))
        self.model8up = nn.Sequential(nn.ConvTranspose2d(d, c, 4, 2, 1))
        self.model3short8 = nn.Sequential(nn.Conv2d(c, c, 3, 1, 1))
        self.model8 = nn.Sequential(nn.ReLU(), *crb(c, c, c))
        self.model9up = nn.Sequential(nn.ConvTranspose2d(c, b, 4, 2, 1))
        self.model2short9 = nn.Sequential(nn.Conv2d(b, b, 3, 1, 1))
        self.model9 = nn.Sequential(nn.ReLU(), *crb(b, b))
        self.model10up = nn.Sequential(nn.ConvTranspose2d(b, b, 4, 2, 1))
        self.model1short10 = nn.Sequential(nn.Conv2d(a, b, 3, 1, 1))
        self.model10 = nn.Sequential(nn.ReLU(), nn.Conv2d(b, b, 3, 1, 1), nn.LeakyReLU(0.2))
        self.model_class = nn.Sequential(nn.Conv2d(c, 529, 1))
        self.model_out = nn.Sequential(nn.Conv2d(b, 2, 1), nn.Tanh())

    def forward(
        self, lightness: torch.Tensor, ab: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """L*, the hints' a*b*, where they are -> a*b*, and what comes out of each block."""
        x, seen = torch.cat([(lightness - 50) / 100, ab / 110, mask], dim=1), []
        for i, block in enumerate(self.blocks()):
            x = block(x)
            seen.append(x)
            x = x[:, :, ::2, ::2] if i < 3 else x
        ups = (
            (self.model8up, self.model3short8, self.model8),
            (self.model9up, self.model2short9, self.model9),
            (self.model10up, self.model1short10, self.model10),
        )
        for (up, short, block), skip in zip(ups, (seen[2], seen[1], seen[0]), strict=True):
            x = block(up(x) + short(skip))
            seen.append(x)
        return 110 * self.model_out(x), seen


class Convs(nn.Module):
    """What `crb` makes, with the layers' names of jaxcolor's parameters."""

    def __init__(self, *sizes: int, strides: int = 1, dilation: int = 1, norm: bool = True) -> None:
        super().__init__()
        layers = crb(*sizes, strides=strides, dilation=dilation, norm=norm)
        self.conv = nn.ModuleList(layer for layer in layers if isinstance(layer, nn.Conv2d))
        self.norm = layers[-1] if norm else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, the last of `sizes`, H/strides, W/strides)."""
        for conv in self.conv:
            x = F.relu(conv(x), inplace=True)
        return self.norm(x)


# Of each of the seven blocks.
_ENCODER: list[dict[str, Any]] = [*[{'strides': 2}] * 3, {}, *[{'dilation': 2}] * 2, {}]


class TrainedECCV16(nn.Module):
    """Colorful Image Colorization with the layers' names of jaxcolor's parameters, up to the likelihoods."""

    rotated = False
    transposed = ('up',)

    def __init__(self, net: eccv16.ECCV16) -> None:
        """Builds the network with the fields of jaxcolor's. Raises UserError without `color_classes`."""
        super().__init__()
        if not net.color_classes or net.encoder_norm != 'trained':
            raise UserError("the PyTorch network needs model.color_classes and model.encoder_norm='trained'.")
        a, b, c, d = (scaled(features, net.width) for features in (64, 128, 256, 512))
        sizes = [(1, a, a), (a, b, b), (b, c, c, c), (c, d, d, d), (d, d, d, d), (d, d, d, d), (d, d, d, d)]
        self.block = nn.ModuleList(Convs(*each, **_ENCODER[i]) for i, each in enumerate(sizes))
        self.up = nn.ConvTranspose2d(d, c, 4, 2, 1)
        self.last = Convs(c, c, c, norm=False)
        self.classes = nn.Conv2d(c, net.color_classes, 1)

    def forward(self, lightness: torch.Tensor) -> tuple[torch.Tensor, None]:
        """L*/100 (B, 1, H, W) -> (color logits (B, classes, H/4, W/4), None)."""
        x = lightness - 0.5
        for block in self.block:
            x = block(x)
        return self.classes(self.last(torch.relu(self.up(x)))), None
