"""DDColor in PyTorch, written from its published description; names are its files'. Importing it needs PyTorch.

Activations are (B, C, H, W), those of the color decoder (N, B, C).
"""

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from jaxcolor.benchmark.torch_unet import Shuffle, UNetBlock, conv_relu_norm, spectral

# Blocks and channels of each stage of the encoder.
DEPTHS = {'tiny': (3, 3, 9, 3), 'large': (3, 3, 27, 3)}
DIMS = {'tiny': (96, 192, 384, 768), 'large': (192, 384, 768, 1536)}


class LayerNorm2d(nn.LayerNorm):
    """Of the channels of a map (B, C, H, W)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Block(nn.Module):
    """A block of ConvNeXt."""

    def __init__(self, C: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(C, C, 7, padding=3, groups=C)
        self.norm = nn.LayerNorm(C, eps=1e-6)
        self.pwconv1, self.pwconv2 = nn.Linear(C, 4 * C), nn.Linear(4 * C, C)
        self.gamma = nn.Parameter(torch.ones(C))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.gamma * self.pwconv2(F.gelu(self.pwconv1(y)))
        return x + y.permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    """The normalized maps of its four stages."""

    def __init__(self, depths: Sequence[int], dims: Sequence[int]) -> None:
        super().__init__()
        stem = nn.Sequential(nn.Conv2d(3, dims[0], 4, 4), LayerNorm2d(dims[0], eps=1e-6))
        self.downsample_layers = nn.ModuleList([stem])
        for before, C in itertools.pairwise(dims):
            self.downsample_layers.append(nn.Sequential(LayerNorm2d(before, eps=1e-6), nn.Conv2d(before, C, 2, 2)))
        self.stages = nn.ModuleList(
            nn.Sequential(*(Block(C) for _ in range(depth))) for depth, C in zip(depths, dims, strict=True)
        )
        for i, C in enumerate(dims):
            self.add_module(f'norm{i}', LayerNorm2d(C, eps=1e-6))
        self.norm = nn.LayerNorm(dims[-1], eps=1e-6)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        maps = []
        for i in range(4):
            x = self.stages[i](self.downsample_layers[i](x))
            maps.append(getattr(self, f'norm{i}')(x))
        return maps


class Encoder(nn.Module):
    """Gives the network the name that it has in the files."""

    def __init__(self, depths: Sequence[int], dims: Sequence[int]) -> None:
        super().__init__()
        self.arch = ConvNeXt(depths, dims)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return self.arch(x)


class Attention(nn.Module):
    """Adds what the queries see to them, and normalizes."""

    def __init__(self, name: str, C: int) -> None:
        super().__init__()
        self.add_module(name, nn.MultiheadAttention(C, 8))
        self.norm = nn.LayerNorm(C)
        self.attention = name

    def forward(self, queries: torch.Tensor, at: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        return self.norm(queries + getattr(self, self.attention)(at, keys, values, need_weights=False)[0])


class FeedForward(nn.Module):
    """A hidden layer for each query."""

    def __init__(self, C: int, hidden: int) -> None:
        super().__init__()
        self.linear1, self.linear2, self.norm = nn.Linear(C, hidden), nn.Linear(hidden, C), nn.LayerNorm(C)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x + self.linear2(torch.relu(self.linear1(x))))


class MLP(nn.Module):
    """Three dense layers."""

    def __init__(self, C: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(C, C) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
        return self.layers[-1](x)


def positions(h: int, w: int, C: int) -> torch.Tensor:
    """Sines and cosines of the row and the column of each pixel, row by row: (h * w, C)."""
    m = torch.arange(C // 2)
    wavelengths = 10_000 ** (2 * (m // 2) / (C // 2))

    def encode(n):
        angles = (2 * math.pi * torch.arange(1, n + 1) / (n + 1e-6))[:, None] / wavelengths
        return torch.where(m % 2 == 1, angles.cos(), angles.sin())  # (n, C / 2)

    rows, columns = encode(h)[:, None].expand(-1, w, -1), encode(w)[None].expand(h, -1, -1)
    return torch.cat([rows, columns], dim=-1).reshape(h * w, C)


class ColorDecoder(nn.Module):
    """The maps -> the colors that pixels are mixed from, (B, Q, C)."""

    def __init__(self, inputs: Sequence[int], C: int, queries: int, layers: int) -> None:
        super().__init__()
        self.query_feat, self.query_embed = nn.Embedding(queries, C), nn.Embedding(queries, C)
        self.level_embed = nn.Embedding(3, C)
        self.input_proj = nn.ModuleList(nn.Conv2d(each, C, 1) for each in inputs)
        self.transformer_self_attention_layers = nn.ModuleList(Attention('self_attn', C) for _ in range(layers))
        self.transformer_cross_attention_layers = nn.ModuleList(Attention('multihead_attn', C) for _ in range(layers))
        self.transformer_ffn_layers = nn.ModuleList(FeedForward(C, 8 * C) for _ in range(layers))
        self.decoder_norm = nn.LayerNorm(C)
        self.color_embed = MLP(C)

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        memory, places = [], []
        for i, x in enumerate(maps):
            places.append(positions(x.shape[2], x.shape[3], self.query_feat.weight.shape[1])[:, None])  # (N, 1, C)
            x = self.input_proj[i](x).flatten(2) + self.level_embed.weight[i][None, :, None]
            memory.append(x.permute(2, 0, 1))  # (N, B, C)
        embed = self.query_embed.weight[:, None]
        q = self.query_feat.weight[:, None].repeat(1, maps[0].shape[0], 1)  # (Q, B, C)
        for i in range(len(self.transformer_ffn_layers)):
            seen, place = memory[i % 3], places[i % 3]
            q = self.transformer_cross_attention_layers[i](q, q + embed, seen + place, seen)
            q = self.transformer_self_attention_layers[i](q, q + embed, q + embed, q)
            q = self.transformer_ffn_layers[i](q)
        return self.color_embed(self.decoder_norm(q)).transpose(0, 1)  # (B, Q, C)


class Decoder(nn.Module):
    """The encoder's maps -> how much of each color a pixel has, (B, Q, H, W)."""

    def __init__(self, dims: Sequence[int], wide: int, narrow: int, queries: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        before = dims[3]
        for skip, C in zip(dims[2::-1], (wide, wide, narrow), strict=True):
            self.layers.append(UNetBlock(before, skip, C, {'conv': conv_relu_norm(C + skip, C)}))
            before = C
        self.last_shuf = Shuffle(spectral(narrow, 16 * narrow, bias=True), 4)
        self.color_decoder = ColorDecoder((wide, wide, narrow), narrow, queries, layers)

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        x, outputs = maps[3], []
        for layer, skip in zip(self.layers, maps[2::-1], strict=True):
            x = layer(x, skip)
            outputs.append(x)
        return torch.einsum('bqc,bchw->bqhw', self.color_decoder(outputs), self.last_shuf(x))


class DDColorTwin(nn.Module):
    """Gray RGB (B, 3, H, W) in [0, 1] -> a*b* (B, 2, H, W)."""

    def __init__(self, variant: str = 'tiny', width: float = 1.0, queries: int = 100, layers: int = 9) -> None:
        super().__init__()
        dims = [round(C * width) for C in DIMS[variant]]
        self.encoder = Encoder(DEPTHS[variant], dims)
        self.decoder = Decoder(dims, round(512 * width), round(256 * width), queries, layers)
        self.refine_net = nn.Sequential(nn.Sequential(spectral(queries + 3, 2, bias=True)))
        self.register_buffer('mean', torch.tensor([0.485, 0.456, 0.406]).reshape(1, 3, 1, 1))
        self.register_buffer('std', torch.tensor([0.229, 0.224, 0.225]).reshape(1, 3, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = (x - self.mean) / self.std
        return self.refine_net(torch.cat([self.decoder(self.encoder(x)), x], 1))
