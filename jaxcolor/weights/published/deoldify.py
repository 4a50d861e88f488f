"""DeOldify's published files (jantic/DeOldify, MIT): ColorizeArtistic_gen, ColorizeStable_gen, ColorizeVideo_gen."""

from collections.abc import Mapping

import numpy as np

from jaxcolor import config
from jaxcolor.errors import UserError
from jaxcolor.models.deoldify import ATTENTIVE, VARIANTS, DeOldify
from jaxcolor.weights.published.converted import Converted, from_state_dict, variable_shapes
from jaxcolor.weights.published.layers import (
    Names,
    batch_norm,
    conv_norm,
    drop_pixel_axes,
    layer,
    order_by_pixel,
    plain,
    unet_block,
)

_ERROR = 'it does not fit deoldify'
_BLOCKS = range(4, 8)  # the U-net blocks among the layers


def convert(arrays: Mapping[str, np.ndarray], network: DeOldify | None = None) -> Converted:
    """Converts the arrays of a published file.

    Args:
        arrays: {name: array} of the state dict.
        network: what it is to fit; None tells artistic from the others, which are one network, by the file's layers.

    Raises:
        UserError: the first layer that is missing, has another shape, or is not used.
    """
    arrays = plain(arrays, 'layers.11.0.bias', _ERROR)
    network = network or DeOldify(_variant(arrays))
    names = _names(network)
    for i in _BLOCKS:
        order_by_pixel(arrays, f'layers.{i}.shuf.', 2)
    order_by_pixel(arrays, 'layers.8.', 2)
    drop_pixel_axes(arrays, [name for path, name in names.items() if 'attention' in path and path[-1] == 'kernel'])
    params, model_state = from_state_dict(names, arrays, variable_shapes(network, (1, 32, 32, 1)), _ERROR)
    model = config.deoldify().to_dict() | {field: getattr(network, field) for field in ('variant', 'width', 'encoder_norm')}
    task = config.regression().to_dict() | {'alpha': 0.0}
    kind = 'artistic' if network.variant == 'artistic' else 'stable or video, which are of one network'
    return Converted(model, task, params, model_state, [f'This is DeOldify, {kind}.'])


def _variant(arrays):
    """Artistic has two convolutions in each U-net block, the others one."""
    for variant, conv in (('artistic', 'conv1'), ('stable', 'conv')):
        if any(name.startswith(f'layers.{_BLOCKS[0]}.{conv}.') for name in arrays):
            return variant
    block = f'layers.{_BLOCKS[0]}'
    raise UserError(f'{_ERROR}: it has neither {block}.conv1 of artistic nor {block}.conv of stable and video.')


def _names(network: DeOldify) -> Names:
    depths, is_bottleneck, _, widths = VARIANTS[network.variant]
    names = conv_norm('encoder/stem', 'layers.0.0', 'layers.0.1')
    for i, depth in enumerate(depths):
        for j in range(depth):
            path, name = f'encoder/stage_{i}_{j}', f'layers.0.{4 + i}.{j}'
            for k in range(1, 4 if is_bottleneck else 3):
                names |= conv_norm(f'{path}/conv_{k}', f'{name}.conv{k}', f'{name}.bn{k}')
            if j == 0 and (i or is_bottleneck):
                names |= conv_norm(f'{path}/down', f'{name}.downsample.0', f'{name}.downsample.1')
    names |= batch_norm('middle/norm', 'layers.1')
    for i in range(2):
        names |= conv_norm(f'middle/mix_{i}', f'layers.3.{i}.0', f'layers.3.{i}.2')
    for i in range(len(_BLOCKS)):
        mixes = [f'conv{k + 1}' for k in range(len(widths[i]))] if len(widths[i]) > 1 else ['conv']
        names |= unet_block(f'decoder_{i}', f'layers.{_BLOCKS[i]}', mixes)
        if i == ATTENTIVE:
            attention = f'layers.{_BLOCKS[i]}.{mixes[-1]}.3'
            for part in ('query', 'key', 'value'):
                names |= layer(f'attention/{part}', f'{attention}.{part}', bias=False)
            names['params', 'attention', 'gain', 'gain'] = f'{attention}.gamma'
    names |= layer('enlarge', 'layers.8.conv.0')
    for i in range(2):
        names |= layer(f'refine_{i}', f'layers.10.layers.{i}.0')
    return names | layer('output', 'layers.11.0')
