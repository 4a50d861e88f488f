"""The networks, pure Flax modules, by name.

Imports only `color`, `config` and `errors`: models know nothing of losses, files or downloads.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxcolor.allowed import check_section
from jaxcolor.errors import UserError
from jaxcolor.models.cgan import CGAN, Discriminator
from jaxcolor.models.ddcolor import DDColor
from jaxcolor.models.deoldify import DeOldify
from jaxcolor.models.eccv16 import ECCV16
from jaxcolor.models.encoder_fusion import DeepColor, VGGFusion
from jaxcolor.models.ensemble import Ensemble
from jaxcolor.models.iizuka import Iizuka
from jaxcolor.models.ltbc import LTBC
from jaxcolor.models.ltbc_lite import LTBCLite
from jaxcolor.models.patch_discriminator import PatchDiscriminator
from jaxcolor.models.siggraph17 import SIGGRAPH17

MODELS: dict[str, type[nn.Module]] = {
    'ltbc': LTBC,
    'ltbc_lite': LTBCLite,
    'deepcolor': DeepColor,
    'vgg_fusion': VGGFusion,
    'cgan': CGAN,
    'ddcolor': DDColor,
    'deoldify': DeOldify,
    'eccv16': ECCV16,
    'iizuka': Iizuka,
    'siggraph17': SIGGRAPH17,
}


def build(config: Mapping[str, Any], axis_name: str | None = None) -> nn.Module:
    """Builds the network of a config's section `model`.

    Args:
        config: `name`, a key of MODELS; `dtype` of the computation, 'float32' or 'bfloat16' (parameters stay float32); and
            the fields of that network.
        axis_name: the mapped axis over which batch norm averages; None for statistics per device.

    Raises:
        UserError: there is no such network or field, or a value is not allowed.
    """
    fields = dict(config)
    name = fields.pop('name')
    if name not in MODELS:
        raise UserError(f'model.name: there is no network {name!r}; there are {", ".join(sorted(MODELS))}.')
    check_section('model', config)
    dtype = fields.pop('dtype')
    members = fields.pop('members', 1) if name == 'ltbc' else 1
    if unknown := sorted(set(fields) - {field.name for field in dataclasses.fields(MODELS[name])}):
        raise UserError(f'model.{unknown[0]}: network {name!r} has no such field.')
    # JSON has no tuples, and Flax cannot hash lists.
    fields = {field: tuple(value) if isinstance(value, list) else value for field, value in fields.items()}
    fields |= {'axis_name': axis_name, 'dtype': jnp.dtype(dtype)}
    if members > 1:
        return Ensemble(tuple(LTBC(**fields) for _ in range(members)))
    return MODELS[name](**fields)


def build_discriminator(config: Mapping[str, Any], axis_name: str | None = None) -> nn.Module:
    """The discriminator for photos of a network's size, width and dtype: DDColor's own, of `cgan` for all others.

    Arguments as for `build`. It maps photos (B, H, W, C) and whether it is trained to logits, (B,) or more for a photo.
    """
    discriminator = PatchDiscriminator if config['name'] == 'ddcolor' else Discriminator
    return discriminator(width=config['width'], axis_name=axis_name, dtype=jnp.dtype(config['dtype']))
