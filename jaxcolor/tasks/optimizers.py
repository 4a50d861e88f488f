"""Optimizers and learning-rate schedules by name, from Optax."""

import math

import jax
import optax
from ml_collections import ConfigDict

from jaxcolor.config import check_section
from jaxcolor.errors import UserError

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
    'cosine': lambda c, peak, steps: optax.cosine_decay_schedule(peak, max(1, steps - c.warmup_steps)),
    'step': lambda c, peak, steps: optax.exponential_decay(peak, max(1, c.decay_every), c.decay_factor, staircase=True),
}


def peak_rate(config: ConfigDict, batch_size: int) -> float:
    """The learning rate of section `optimizer`, scaled to a global batch size. Raises UserError."""
    check_section('optimizer', config)
    scaling = _lookup(SCALINGS, config.scaling, 'optimizer.scaling')
    return config.learning_rate * scaling(batch_size / config.base_batch_size)


def schedule(config: ConfigDict, steps: int, batch_size: int) -> optax.Schedule:
    """The learning rate by step that section `optimizer` describes: a linear warm-up, then the named schedule."""
    peak = peak_rate(config, batch_size)
    rate = _lookup(SCHEDULES, config.schedule, 'optimizer.schedule')(config, peak, steps)
    if config.warmup_steps:
        warmup = optax.linear_schedule(0.0, peak, config.warmup_steps)
        rate = optax.join_schedules([warmup, rate], [config.warmup_steps])
    return jax.numpy_dtype_promotion('standard')(rate)


def build(config: ConfigDict, steps: int, batch_size: int) -> optax.GradientTransformation:
    """The gradient transformation that section `optimizer` describes, for `steps` steps of `batch_size` photos each.

    Raises:
        UserError: no such optimizer or schedule.
    """
    optimizer = _lookup(OPTIMIZERS, config.name, 'optimizer.name')(config, schedule(config, steps, batch_size))
    if config.clip_norm:
        optimizer = optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)
    # Optax mixes dtypes where JAX's strict promotion, which the tests ask for, allows none.
    return optax.GradientTransformation(optimizer.init, jax.numpy_dtype_promotion('standard')(optimizer.update))


def _are_kernels(params):
    """Which parameters LARS and LAMB adapt or decay: all but biases and those of batch norm, as in their papers."""
    return jax.tree.map(lambda x: x.ndim > 1, params)


def _decayed(config, optimizer):
    """Adds decoupled weight decay, scaled by the learning rate, to an optimizer that has none of its own."""
    return optax.chain(optax.add_decayed_weights(config.weight_decay), optimizer) if config.weight_decay else optimizer


def _lookup(table, name, field):
    if name not in table:
        raise UserError(f'{field}: there is no {name!r}; there are {", ".join(sorted(table))}.')
    return table[name]
