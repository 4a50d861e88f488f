"""Parameters of jaxcolor's networks in PyTorch's layout. Importing it needs PyTorch."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from jaxcolor.benchmark.torch_layers import Fusion
from jaxcolor.benchmark.torch_lite import ConvBN
from jaxcolor.errors import UserError


def load_jax(module: nn.Module, params: Mapping[str, Any], model_state: Mapping[str, Any] | None = None) -> None:
    """Loads jaxcolor's parameters and batch statistics.

    Args:
        module: of `torch_networks`.
        params: the parameters of jaxcolor's network with the same fields.
        model_state: TrainState.model_state, with the batch statistics; None keeps the module's.

    Raises:
        UserError: names or shapes differ.
    """
    state = module.state_dict()
    arrays = to_torch(module, params)
    if model_state:
        arrays |= to_torch(module, model_state.get('batch_stats', model_state))
    wrong = sorted(name for name, array in arrays.items() if name not in state or state[name].shape != array.shape)
    missing = sorted(name for name, _ in module.named_parameters() if name not in arrays)
    if wrong or missing:
        raise UserError(f'the parameters are not of this PyTorch network: they differ in {(wrong + missing)[0]}.')
    module.load_state_dict(state | {name: torch.from_numpy(array.copy()) for name, array in arrays.items()})


def to_torch(module: nn.Module, tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Converts parameters, gradients or batch statistics of jaxcolor's network.

    Kernels HWIO become OIHW (transposed convolutions IOHW), dense ones (in, out) become (out, in); the input of a dense
    layer after flattening goes from (H, W, C) to (C, H, W).

    Args:
        module: of `torch_networks`, the same network.
        tree: nested arrays of jaxcolor's network.

    Returns:
        {name in `module`: float32 array}.
    """
    turn = (slice(None, None, -1),) * 2
    rotate = turn if module.rotated else ()
    names = {'kernel': 'weight', 'scale': 'weight', 'mean': 'running_mean', 'var': 'running_var'}
    arrays = {}
    for path, array in _leaves(tree):
        array = np.asarray(array, np.float32)
        layer = re.sub(r'_(\d+)', r'.\1', '.'.join(path[:-1]))
        name = f'{layer}.{names.get(path[-1], path[-1])}'
        if path[-1] == 'kernel' and array.ndim == 4:
            if path[-2] in ('deconv', *getattr(module, 'transposed', ())):
                # PyTorch's transposed convolution rotates its kernel itself.
                array = (array if module.rotated else array[turn]).transpose(2, 3, 0, 1)
            else:
                array = array[rotate].transpose(3, 2, 0, 1)
        elif path[-1] == 'kernel':
            if name in getattr(module, 'flattened', {}):
                array = array.reshape(*module.flattened[name], -1)[rotate].transpose(2, 0, 1, 3).reshape(array.shape)
            array = array.T
        if name in getattr(module, 'planes', {}):  # (H * W, in) or (H * W,)
            array = array.reshape(*module.planes[name], *array.shape[1:])[rotate].reshape(array.shape)
        arrays[name] = array
    return dict(pair for name, array in arrays.items() for pair in _split_fusion(module, name, array))


def _split_fusion(module, name, array):
    """Splits the kernel (F, C + G, 1, 1) and the bias of a fusion into the two layers of `Fusion`."""
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


def fold_batch_norm(module: nn.Module) -> nn.Module:
    """Folds batch norms into the layers before them, in place -> the module, which must be in eval mode."""
    for block in module.modules():
        if isinstance(block, ConvBN):
            folded = fuse_conv_bn_eval(block, block.norm)
            block.weight, block.bias, block.norm = folded.weight, folded.bias, nn.Identity()
        elif isinstance(block, nn.Sequential) and hasattr(block, 'norm'):
            name = next(iter(block._modules))
            if name == 'dense':
                folded = fuse_linear_bn_eval(block.dense, block.norm)
            else:
                folded = fuse_conv_bn_eval(block._modules[name], block.norm, transpose=name == 'deconv')
            setattr(block, name, folded)
            block.norm = nn.Identity()
    return module
