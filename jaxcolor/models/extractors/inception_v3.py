"""Inception v3 up to its 2048 pooled features, frozen, for the Fréchet Inception distance.

Szegedy, Vanhoucke, Ioffe, Shlens, Wojna: Rethinking the Inception Architecture (CVPR 2016). Two versions are
published, which differ in their pooling: the TensorFlow graph of 2015 that defines FID, converted by `pytorch-fid`, and
torchvision's. Layers have PyTorch's names; parameters are a flat dict by those names, since nothing here is trained.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

SIZE = 299
# Average pooling of the inception blocks, and pooling of the last block, by version.
POOLING = {'fid': ('mean_inside', 'max_same'), 'torchvision': ('mean', 'mean')}
_EPSILON = 1e-3  # of the batch norms
_A, _C, _E = ('Mixed_5b', 'Mixed_5c', 'Mixed_5d'), ('Mixed_6b', 'Mixed_6c', 'Mixed_6d', 'Mixed_6e'), ('Mixed_7b', 'Mixed_7c')


def shapes() -> dict[str, tuple[int, ...]]:
    """The shapes of all parameters by name; kernels are (out, in, height, width)."""
    by_name: dict[str, tuple[int, ...]] = {}

    def conv(inputs, name, outputs, kernel, **_):
        by_name[f'{name}.conv.weight'] = (outputs, inputs, *kernel)
        by_name.update({f'{name}.bn.{field}': (outputs,) for field in ('weight', 'bias', 'running_mean', 'running_var')})
        return outputs

    _network(3, conv, lambda x, *_: x, sum, 'fid')
    return by_name


def features(parameters: Mapping[str, jax.Array], rgb: jax.Array, version: str) -> jax.Array:
    """The pooled features of photos.

    Photos are resized to 299 pixels bilinearly without antialiasing and scaled to [-1, 1], as `pytorch-fid` does.

    Args:
        parameters: {name: array} with the shapes of `shapes`.
        rgb: float (B, H, W, 3) in [0, 1].
        version: key of POOLING.

    Returns:
        float32 (B, 2048).
    """

    def conv(x, name, outputs, kernel, stride=1, padding=(0, 0)):
        del outputs, kernel
        scale = parameters[f'{name}.bn.weight'] / jnp.sqrt(parameters[f'{name}.bn.running_var'] + np.float32(_EPSILON))
        x = lax.conv_general_dilated(
            x,
            parameters[f'{name}.conv.weight'],
            (stride, stride),
            [(p, p) for p in padding],
            dimension_numbers=('NHWC', 'OIHW', 'NHWC'),
        )
        return jax.nn.relu(x * scale + (parameters[f'{name}.bn.bias'] - parameters[f'{name}.bn.running_mean'] * scale))

    x = jax.image.resize(rgb, (rgb.shape[0], SIZE, SIZE, 3), 'bilinear', antialias=False) * 2 - 1
    x = _network(x, conv, _pool, lambda branches: jnp.concatenate(branches, axis=-1), version)  # (B, 8, 8, 2048)
    return jnp.mean(x, axis=(1, 2))


def _pool(x, kind, stride):
    """3x3 pooling: 'max' (VALID), 'max_same', 'mean' over all 9 pixels, 'mean_inside' over those inside the image."""
    same = [(0, 0), (1, 1), (1, 1), (0, 0)]
    window, strides = (1, 3, 3, 1), (1, stride, stride, 1)
    if kind == 'max':
        return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, 'VALID')
    if kind == 'max_same':
        return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, same)
    total = lax.reduce_window(x, 0.0, lax.add, window, strides, same)
    if kind == 'mean':
        return total / 9
    return total / lax.reduce_window(jnp.ones_like(x[:1, :, :, :1]), 0.0, lax.add, window, strides, same)


def _network(x, conv, pool, join, version):
    """Applies the layers in order to x: images, or, to get the shapes, a number of channels.

    The layers are `conv(x, name, outputs, kernel, stride, padding)`, `pool(x, kind, stride)` and `join(branches)`.
    """
    mean, last = POOLING[version]

    def chain(x, name, *layers):
        """Layers (suffix, outputs, kernel[, stride]); without a stride, the size stays; with one, there is no padding."""
        for suffix, outputs, kernel, *stride in layers:
            padding = (0, 0) if stride else tuple(k // 2 for k in kernel)
            x = conv(x, f'{name}{suffix}', outputs, kernel, stride=stride[0] if stride else 1, padding=padding)
        return x

    one, three, wide, tall = (1, 1), (3, 3), (1, 7), (7, 1)
    x = conv(x, 'Conv2d_1a_3x3', 32, three, stride=2)
    x = conv(x, 'Conv2d_2a_3x3', 32, three)
    x = conv(x, 'Conv2d_2b_3x3', 64, three, padding=(1, 1))
    x = pool(x, 'max', 2)  # (B, 73, 73, 64)
    x = conv(x, 'Conv2d_3b_1x1', 80, one)
    x = conv(x, 'Conv2d_4a_3x3', 192, three)
    x = pool(x, 'max', 2)  # (B, 35, 35, 192)
    for name, pooled in zip(_A, (32, 64, 64), strict=True):
        x = join(
            [
                chain(x, f'{name}.branch1x1', ('', 64, one)),
                chain(x, f'{name}.branch5x5', ('_1', 48, one), ('_2', 64, (5, 5))),
                chain(x, f'{name}.branch3x3dbl', ('_1', 64, one), ('_2', 96, three), ('_3', 96, three)),
                chain(pool(x, mean, 1), f'{name}.branch_pool', ('', pooled, one)),
            ]
        )
    x = join(
        [
            chain(x, 'Mixed_6a.branch3x3', ('', 384, three, 2)),
            chain(x, 'Mixed_6a.branch3x3dbl', ('_1', 64, one), ('_2', 96, three), ('_3', 96, three, 2)),
            pool(x, 'max', 2),
        ]
    )  # (B, 17, 17, 768)
    for name, n in zip(_C, (128, 160, 160, 192), strict=True):
        double = (('_1', n, one), ('_2', n, tall), ('_3', n, wide), ('_4', n, tall), ('_5', 192, wide))
        x = join(
            [
                chain(x, f'{name}.branch1x1', ('', 192, one)),
                chain(x, f'{name}.branch7x7', ('_1', n, one), ('_2', n, wide), ('_3', 192, tall)),
                chain(x, f'{name}.branch7x7dbl', *double),
                chain(pool(x, mean, 1), f'{name}.branch_pool', ('', 192, one)),
            ]
        )
    x = join(
        [
            chain(x, 'Mixed_7a.branch3x3', ('_1', 192, one), ('_2', 320, three, 2)),
            chain(x, 'Mixed_7a.branch7x7x3', ('_1', 192, one), ('_2', 192, wide), ('_3', 192, tall), ('_4', 192, three, 2)),
            pool(x, 'max', 2),
        ]
    )  # (B, 8, 8, 1280)
    for name in _E:
        single = chain(x, f'{name}.branch3x3', ('_1', 384, one))
        double = chain(x, f'{name}.branch3x3dbl', ('_1', 448, one), ('_2', 384, three))
        x = join(
            [
                chain(x, f'{name}.branch1x1', ('', 320, one)),
                chain(single, f'{name}.branch3x3', ('_2a', 384, (1, 3))),
                chain(single, f'{name}.branch3x3', ('_2b', 384, (3, 1))),
                chain(double, f'{name}.branch3x3dbl', ('_3a', 384, (1, 3))),
                chain(double, f'{name}.branch3x3dbl', ('_3b', 384, (3, 1))),
                chain(pool(x, last if name == _E[-1] else mean, 1), f'{name}.branch_pool', ('', 192, one)),
            ]
        )
    return x
