"""The networks by name."""

import dataclasses

import jax.numpy as jnp

from jaxcolor.config import check_section
from jaxcolor.errors import UserError
from jaxcolor.models.cgan import CGAN
from jaxcolor.models.encoder_fusion import DeepColor, VGGFusion
from jaxcolor.models.ensemble import Ensemble
from jaxcolor.models.ltbc import LTBC

MODELS = {
    'ltbc': LTBC,
    'deepcolor': DeepColor,
    'vgg_fusion': VGGFusion,
    'cgan': CGAN,
}


def build(config, axis_name: str | None = None):
    """The network that a config's section `model` describes.

    Args:
        config: mapping with `name`, a key of MODELS, `dtype` ('float32' or 'bfloat16': the type that layers compute in;
            parameters stay float32), and the network's own fields.
        axis_name: the devices' axis for batch norm across devices, or None.

    Raises:
        UserError: no such network, field, dtype.
    """
    fields = dict(config)
    name = fields.pop('name')
    if name not in MODELS:
        raise UserError(f'model.name: there is no network {name!r}; there are {", ".join(sorted(MODELS))}.')
    check_section('model', config)
    dtype = fields.pop('dtype')
    members = fields.pop('members', 1) if name == 'ltbc' else 1
    known = {field.name for field in dataclasses.fields(MODELS[name])}
    unknown = sorted(set(fields) - known)
    if unknown:
        raise UserError(f'model.{unknown[0]}: network {name!r} has no such field.')
    # JSON gives tuples back as lists, which Flax would not hash.
    fields = {field: tuple(value) if isinstance(value, list) else value for field, value in fields.items()}
    fields |= {'axis_name': axis_name, 'dtype': jnp.dtype(dtype)}
    if members > 1:
        return Ensemble(tuple(MODELS[name](**fields) for _ in range(members)))
    return MODELS[name](**fields)
