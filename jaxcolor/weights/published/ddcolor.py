"""DDColor's published files (piddnad/DDColor, Apache-2.0): tiny, and the large ones paper, modelscope and artistic."""

from collections.abc import Mapping

import numpy as np

from jaxcolor import config
from jaxcolor.errors import UserError
from jaxcolor.models.ddcolor import VARIANTS, DDColor
from jaxcolor.models.layers import IMAGENET_DEVIATION, IMAGENET_MEAN
from jaxcolor.weights.published.converted import Converted, from_state_dict, variable_shapes
from jaxcolor.weights.published.layers import Names, drop_pixel_axes, layer, order_by_pixel, plain, unet_block

_ERROR = 'it does not fit ddcolor'
_ENCODER, _DECODER = 'encoder.arch', 'decoder.color_decoder'
_UNUSED = (f'{_ENCODER}.norm.weight', f'{_ENCODER}.norm.bias')
_PARTS = ('query', 'key', 'value')  # of an attention's stacked projection
_ROUNDING = 2**-8  # of bfloat16, relative; files in half precision round the input's statistics, too


def convert(arrays: Mapping[str, np.ndarray], network: DDColor | None = None) -> Converted:
    """Converts the arrays of a published file.

    Args:
        arrays: {name: array} of the state dict.
        network: what it is to fit; None tells the variant by the file's layers.

    Raises:
        UserError: the first layer that is missing, has another shape, or is not used.
    """
    arrays = plain(arrays, f'{_DECODER}.query_feat.weight', _ERROR)
    network = network or DDColor(_variant(arrays))
    notes = [f'This is DDColor, {network.variant}.']
    for name, expected in (('mean', IMAGENET_MEAN), ('std', IMAGENET_DEVIATION)):
        found = arrays.pop(name, expected)
        if found.size != 3 or not np.allclose(found.ravel(), expected, rtol=_ROUNDING, atol=0):
            raise UserError(f'{_ERROR}: its {name} of the input is not that of ImageNet.')
    if [arrays.pop(name) for name in _UNUSED if name in arrays]:
        notes.append(f'Its {_ENCODER}.norm was left out: the network does not use it.')
    for i in range(3):
        order_by_pixel(arrays, f'decoder.layers.{i}.shuf.', 2)
    order_by_pixel(arrays, 'decoder.last_shuf.', 4)
    drop_pixel_axes(arrays, ['refine_net.0.0.weight', *(f'{_DECODER}.input_proj.{i}.weight' for i in range(3))])
    for name in ('query_feat', 'query_embed', 'level_embed'):
        if f'{_DECODER}.{name}.weight' in arrays:
            arrays[f'{_DECODER}.{name}.weight'] = arrays[f'{_DECODER}.{name}.weight'].T  # it is no dense layer's
    for name in [name for name in arrays if '.in_proj_' in name]:
        stacked = np.atleast_1d(arrays.pop(name))
        arrays |= {f'{name}.{part}': rows for part, rows in zip(_PARTS, np.array_split(stacked, 3), strict=True)}

    params, model_state = from_state_dict(_names(network), arrays, variable_shapes(network, (1, 32, 32, 1)), _ERROR)
    model = {field: getattr(network, field) for field in ('variant', 'width', 'queries', 'layers')}
    task = config.regression().to_dict() | {'alpha': 0.0}
    return Converted(config.ddcolor().to_dict() | model, task, params, model_state, notes)


def _variant(arrays):
    """The variant whose third stage has as many blocks as the file's."""
    prefix = f'{_ENCODER}.stages.2.'
    depth = len({name.removeprefix(prefix).partition('.')[0] for name in arrays if name.startswith(prefix)})
    for variant, (depths, _) in VARIANTS.items():
        if depth == depths[2]:
            return variant
    expected = ' or '.join(str(depths[2]) for depths, _ in VARIANTS.values())
    raise UserError(f'{_ERROR}: {prefix[:-1]} has {depth} blocks, not {expected}.')


def _names(network: DDColor) -> Names:
    names: Names = {}
    for i, depth in enumerate(VARIANTS[network.variant].depths):
        conv, norm = (0, 1) if i == 0 else (1, 0)
        names |= layer(f'encoder/down_{i}', f'{_ENCODER}.downsample_layers.{i}.{conv}')
        names |= layer(f'encoder/down_norm_{i}', f'{_ENCODER}.downsample_layers.{i}.{norm}', 'scale')
        for j in range(depth):
            names |= _encoder_block(f'encoder/stage_{i}_{j}', f'{_ENCODER}.stages.{i}.{j}')
        names |= layer(f'encoder/norm_{i}', f'{_ENCODER}.norm{i}', 'scale')
    for i in range(3):
        names |= unet_block(f'decoder_{i}', f'decoder.layers.{i}', ['conv'])
    names |= layer('enlarge', 'decoder.last_shuf.conv.0')
    for flax_name, name in (('start', 'query_feat'), ('places', 'query_embed'), ('levels', 'level_embed')):
        names['params', 'color_decoder', flax_name, 'vectors'] = f'{_DECODER}.{name}.weight'
    for i in range(3):
        names |= layer(f'color_decoder/input_{i}', f'{_DECODER}.input_proj.{i}')
        names |= layer(f'color_decoder/color_{i}', f'{_DECODER}.color_embed.layers.{i}')
    for i in range(network.layers):
        names |= _query_layer(f'color_decoder/layer_{i}', i)
    names |= layer('color_decoder/norm', f'{_DECODER}.decoder_norm', 'scale')
    return names | layer('refine', 'refine_net.0.0')


def _encoder_block(path, name):
    names = layer(f'{path}/depthwise', f'{name}.dwconv') | layer(f'{path}/norm', f'{name}.norm', 'scale')
    names |= layer(f'{path}/expand', f'{name}.pwconv1') | layer(f'{path}/project', f'{name}.pwconv2')
    return names | {('params', *path.split('/'), 'gain', 'gain'): f'{name}.gamma'}


def _query_layer(path, i):
    names: Names = {}
    for kind, attention in (('cross', 'multihead_attn'), ('self', 'self_attn')):
        name = f'{_DECODER}.transformer_{kind}_attention_layers.{i}'
        place = ('params', *path.split('/'), kind)
        for part in _PARTS:
            names[*place, part, 'kernel'] = f'{name}.{attention}.in_proj_weight.{part}'
            names[*place, part, 'bias'] = f'{name}.{attention}.in_proj_bias.{part}'
        names |= layer(f'{path}/{kind}/out', f'{name}.{attention}.out_proj')
        names |= layer(f'{path}/{kind}_norm', f'{name}.norm', 'scale')
    name = f'{_DECODER}.transformer_ffn_layers.{i}'
    names |= layer(f'{path}/hidden', f'{name}.linear1') | layer(f'{path}/output', f'{name}.linear2')
    return names | layer(f'{path}/norm', f'{name}.norm', 'scale')
