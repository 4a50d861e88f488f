"""Optimizers and learning-rate schedules by name, from Optax."""

import jax
import optax

from jaxcolor.errors import UserError

OPTIMIZERS = {
    'adam': lambda c, rate: optax.adamw(rate, b1=c.beta1, b2=c.beta2, eps=c.eps, weight_decay=c.weight_decay),
    'adadelta': lambda c, rate: optax.adadelta(rate, rho=c.rho, eps=c.eps, weight_decay=c.weight_decay),
    'rmsprop': lambda c, rate: _decayed(c, optax.rmsprop(rate, decay=c.rho, eps=c.eps, momentum=c.momentum or None)),
    'sgd': lambda c, rate: _decayed(c, optax.sgd(rate, momentum=c.momentum or None, nesterov=c.nesterov)),
}

SCHEDULES = {
    'constant': lambda c, steps: optax.constant_schedule(c.learning_rate),
    'cosine': lambda c, steps: optax.cosine_decay_schedule(c.learning_rate, max(1, steps - c.warmup_steps)),
    'step': lambda c, steps: optax.exponential_decay(
        c.learning_rate, max(1, c.decay_every), c.decay_factor, staircase=True
    ),
}


def schedule(config, steps: int):
    """The learning rate by step that section `optimizer` describes: a linear warm-up, then the named schedule."""
    rate = _lookup(SCHEDULES, config.schedule, 'optimizer.schedule')(config, steps)
    if config.warmup_steps:
        warmup = optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps)
        rate = optax.join_schedules([warmup, rate], [config.warmup_steps])
    return jax.numpy_dtype_promotion('standard')(rate)


def build(config, steps: int):
    """The gradient transformation that section `optimizer` describes, for a training of `steps` steps.

    Raises:
        UserError: no such optimizer or schedule.
    """
    optimizer = _lookup(OPTIMIZERS, config.name, 'optimizer.name')(config, schedule(config, steps))
    if config.clip_norm:
        optimizer = optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)
    # Optax mixes dtypes where JAX's strict promotion, which the tests ask for, allows none.
    return optax.GradientTransformation(optimizer.init, jax.numpy_dtype_promotion('standard')(optimizer.update))


def _decayed(config, optimizer):
    """Adds decoupled weight decay, scaled by the learning rate, to an optimizer that has none of its own."""
    return optax.chain(optax.add_decayed_weights(config.weight_decay), optimizer) if config.weight_decay else optimizer


def _lookup(table, name, field):
    if name not in table:
        raise UserError(f'{field}: there is no {name!r}; there are {", ".join(sorted(table))}.')
    return table[name]
