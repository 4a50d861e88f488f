"""The values that config fields may take, and the check of a section of them."""

from collections.abc import Mapping
from typing import Any

from jaxcolor.errors import UserError

# The fields that an optimizer has, with what it was published with; learning rates, where a paper gives none, are what
# PyTorch and Keras start from. Duchi, Hazan, Singer 2011 (adagrad); Zeiler 2012; Tieleman, Hinton 2012 (rmsprop);
# Kingma, Ba 2014; You, Gitman, Ginsburg 2017 (lars); You et al. 2020 (lamb).
OPTIMIZER_DEFAULTS: dict[str, dict[str, Any]] = {
    'adadelta': {'learning_rate': 1.0, 'rho': 0.95, 'eps': 1e-6},
    'adagrad': {'learning_rate': 0.01, 'eps': 1e-8},
    'adam': {'learning_rate': 1e-3, 'beta1': 0.9, 'beta2': 0.999, 'eps': 1e-8},
    'lamb': {'learning_rate': 1e-3, 'beta1': 0.9, 'beta2': 0.999, 'eps': 1e-6},
    'lars': {'learning_rate': 1.0, 'momentum': 0.9, 'nesterov': False, 'eps': 0.0},
    'rmsprop': {'learning_rate': 1e-3, 'rho': 0.9, 'eps': 1e-8, 'momentum': 0.0},
    'sgd': {'learning_rate': 0.01, 'momentum': 0.0, 'nesterov': False},
}
# Fields that None leaves to the optimizer.
OPTIMIZER_FIELDS = sorted({field for defaults in OPTIMIZER_DEFAULTS.values() for field in defaults})

# Of fields that name no registry's key.
CHOICES: dict[str, tuple[str, ...]] = {
    'model.dtype': ('float32', 'bfloat16'),
    'model.output_space': ('lab', 'yuv', 'rgb'),
    'model.encoder_norm': ('trained', 'frozen'),
    'model.decoder': ('nearest', 'deconv'),
    'model.output_activation': ('sigmoid', 'tanh', 'relu', 'linear'),
    'model.padding': ('symmetric', 'SAME'),
    'task.error': ('squared', 'huber', 'absolute'),
    'task.reduction': ('sum', 'mean'),
    'task.loss_resolution': ('output', 'input'),
    'data.placement': ('auto', 'host', 'device'),
    'train.mapping': ('shard_map', 'pmap'),
}
# Fields that count, and are at least 1.
_COUNTS: dict[str, tuple[str, ...]] = {
    'model': ('members', 'vector', 'queries', 'layers'),
    'optimizer': ('base_batch_size',),
    'data': ('crop', 'read_threads', 'prefetch'),
    'train': (
        'steps',
        'epoch_steps',
        'batch_size',
        'accumulation_steps',
        'steps_per_call',
        'heartbeat',
        'log_every',
        'grid_photos',
    ),
}
# Smallest and largest value; None: no limit.
RANGES: dict[str, tuple[float, float | None]] = {
    **{f'{section}.{field}': (1, None) for section, fields in _COUNTS.items() for field in fields},
    'train.eval_every': (1, None),
    'train.checkpoint_every': (1, None),
    **dict.fromkeys(('model.leaky_slope', 'model.batch_norm_momentum'), (0, 1)),
    **dict.fromkeys(('task.rebalance', 'data.resized_crop', 'data.degraded'), (0, 1)),
    'model.global_dropout': (0, 0.99),
    'model.generator_layers': (6, 7),
    'model.batch_norm_eps': (1e-12, 1),
    'task.adversarial': (0, None),
    'task.huber_delta': (1e-3, 1e3),
    'task.colorfulness': (0, None),
    'task.chroma_weight': (0, 1e3),
    'task.chroma_gain': (0, 10),
    'task.sigma': (1, 100),
    'task.temperature': (0.01, 10),
    'task.inference_rebalance': (0.001, 1),  # at 0, classes that never came up would weigh infinitely
    'optimizer.encoder_rate': (0, 1e3),
    'data.rotate': (0, 180),
    'data.shift': (0, 0.5),
    'data.brightness': (0, 10),
    'data.blur': (0, 10),
    'data.exposure': (0, 5),
    'data.vignette': (0, 0.99),
    'data.gamma': (0, 5),
    'data.grain': (0, 50),
    'data.fading': (0, 0.99),
    'data.texture': (0, 50),
    'data.scratches': (0, 20),
    'data.jpeg': (0, 99),
    'data.workers': (0, None),
    'optimizer.warmup_epochs': (0, 1e9),
    'train.epochs': (1e-6, 1e9),
    'train.devices': (0, None),
    'train.eval_every_epochs': (1e-6, 1e9),
}


class FieldError(UserError):
    """A section lacks a field, or has one that its kind does not know."""


def check_section(name: str, section: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> None:
    """Checks the fields of a section by CHOICES and RANGES.

    Args:
        name: 'model', 'task', ...
        section: its fields.
        defaults: a section of that kind with all its fields; None does not ask for them.

    Raises:
        FieldError: `section` lacks a field of `defaults` or has others.
        UserError: a value is not allowed.
    """
    if defaults is not None:
        kind = f' of {section["name"]}' if 'name' in section else ''
        if missing := sorted(set(defaults) - set(section)):
            whole = '; a recipe sets another kind of section whole, not by its name alone' if kind else ''
            raise FieldError(
                f'the section {name}{kind} lacks the field {missing[0]!r} (jaxcolor/config.py lists all){whole}.'
            )
        if unknown := sorted(set(section) - set(defaults)):
            raise FieldError(f'the section {name}{kind} has no field {unknown[0]!r} (jaxcolor/config.py lists all).')
    for field, value in section.items():
        path = f'{name}.{field}'
        if value is None:
            continue
        if path in CHOICES and value not in CHOICES[path]:
            raise UserError(f'{path}: {value!r} is none of {", ".join(CHOICES[path])}.')
        if path in RANGES:
            low, high = RANGES[path]
            if high is None and not value >= low:
                raise UserError(f'{path} must be at least {low}, not {value}.')
            if high is not None and not low <= value <= high:
                raise UserError(f'{path} must lie between {low} and {high}, not {value}.')
