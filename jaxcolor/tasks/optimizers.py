"""Optimizers and learning-rate schedules by name, from Optax."""

import math
from collections.abc import Collection

import jax
import optax
from ml_collections import ConfigDict

from jaxcolor.allowed import OPTIMIZER_DEFAULTS, OPTIMIZER_FIELDS, check_section
from jaxcolor.errors import UserError
from jaxcolor.tasks.length import Length

OPTIMIZERS = {
    'adam': lambda c, rate: optax.adamw(rate, b1=c.beta1, b2=c.beta2, eps=c.eps, weight_decay=c.weight_decay),
    'adadelta': lambda c, rate: optax.adadelta(rate, rho=c.rho, eps=c.eps, weight_decay=c.weight_decay),
    'adagrad': lambda c, rate: _decayed(c, optax.adagrad(rate, eps=c.eps)),
    'rmsprop': lambda c, rate: _decayed(c, optax.rmsprop(rate, decay=c.rho, eps=c.eps, momentum=c.momentum or None)),
    'sgd': lambda c, rate: _decayed(c, optax.sgd(rate, momentum=c.momentum or None, nesterov=c.nesterov)),
    'lars': lambda c, rate: optax.lars(
        rate,
        c.weight_decay,
        _are_kernels,
        eps=c.eps,
        trust_ratio_mask=_are_kernels,
        momentum=c.momentum,
        nesterov=c.nesterov,
    ),
    'lamb': lambda c, rate: optax.lamb(
        rate, b1=c.beta1, b2=c.beta2, eps=c.eps, weight_decay=c.weight_decay, mask=_are_kernels
    ),
}

# The factor on the learning rate, by how many times base_batch_size a batch is.
SCALINGS = {
    'none': lambda times: 1.0,
    'linear': lambda times: times,  # Goyal et al., Accurate, Large Minibatch SGD, 2017: for SGD and LARS
    'sqrt': math.sqrt,  # Krizhevsky, One weird trick, 2014; You et al., Large Batch Optimization, 2020: for Adam and LAMB
}

SCHEDULES = {
    'constant': lambda c, peak, steps: optax.constant_schedule(peak),
    'cosine': lambda c, peak, steps: optax.cosine_decay_schedule(peak, max(1, steps)),
    'step': lambda c, peak, steps: optax.exponential_decay(peak, max(1, c.decay_every), c.decay_factor, staircase=True),
}


def resolve(config: ConfigDict) -> ConfigDict:
    """Section `optimizer` with the named optimizer's own values for None, and None for fields that it does not have.

    Raises:
        UserError: no such optimizer, or a value out of its range.
    """
    check_section('optimizer', config)
    defaults = _lookup(OPTIMIZER_DEFAULTS, config.name, 'optimizer.name')
    resolved = config.copy_and_resolve_references()
    for field in OPTIMIZER_FIELDS:
        if field not in defaults or resolved[field] is None:
            resolved[field] = defaults.get(field)
    return resolved


def peak_rate(config: ConfigDict, batch_size: int) -> float:
    """The learning rate of section `optimizer`, scaled to a global batch size. Raises UserError."""
    scaling = _lookup(SCALINGS, config.scaling, 'optimizer.scaling')
    return resolve(config).learning_rate * scaling(batch_size / config.base_batch_size)


def schedule(config: ConfigDict, length: Length, batch_size: int) -> optax.Schedule:
    """The learning rate by step that section `optimizer` describes: a linear warm-up, then the named schedule.

    Args:
        config: section `optimizer`.
        length: of the training; 'cosine' ends with it, and a warm-up may be counted in epochs.
        batch_size: photos a step, over all devices.

    Raises:
        UserError: no such optimizer, scaling or schedule.
    """
    peak = peak_rate(config, batch_size)
    warmup_steps = max(config.warmup_steps, length.in_steps(config.warmup_epochs))
    rate = _lookup(SCHEDULES, config.schedule, 'optimizer.schedule')(config, peak, length.steps - warmup_steps)
    if warmup_steps:
        rate = optax.join_schedules([optax.linear_schedule(0.0, peak, warmup_steps), rate], [warmup_steps])
    return jax.numpy_dtype_promotion('standard')(rate)


def build(
    config: ConfigDict, rate: optax.ScalarOrSchedule, encoder: Collection[str] = ('encoder',)
) -> optax.GradientTransformation:
    """The gradient transformation that section `optimizer` describes, at a learning rate by step, as `schedule` gives it.

    encoder: the layers that the field encoder_rate is for, by name.

    Raises:
        UserError: no such optimizer.
    """
    config = resolve(config)
    optimizer = OPTIMIZERS[config.name](config, rate)
    if config.encoder_rate != 1:
        optimizer = optax.chain(optimizer, _scale_encoder(config.encoder_rate, encoder))
    if config.clip_norm:
        optimizer = optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)
    # Optax mixes dtypes where JAX's strict promotion, which the tests ask for, allows none.
    return optax.GradientTransformation(optimizer.init, jax.numpy_dtype_promotion('standard')(optimizer.update))


def _are_kernels(params):
    """Which parameters LARS and LAMB adapt or decay: all but biases and those of batch norm, as in their papers."""
    return jax.tree.map(lambda x: x.ndim > 1, params)


def _scale_encoder(factor, encoder):
    """Multiplies the updates of the network's encoder, as another learning rate would."""

    def are_encoder(params):
        return {name: jax.tree.map(lambda _, slow=name in encoder: slow, part) for name, part in params.items()}

    return optax.masked(optax.scale(factor), are_encoder)


def _decayed(config, optimizer):
    """Adds decoupled weight decay, scaled by the learning rate, to an optimizer that has none of its own."""
    return optax.chain(optax.add_decayed_weights(config.weight_decay), optimizer) if config.weight_decay else optimizer


def _lookup(table, name, field):
    if name not in table:
        raise UserError(f'{field}: there is no {name!r}; there are {", ".join(sorted(table))}.')
    return table[name]
