"""What a network is trained for, by name: losses, optimizers, the state, and the steps. `task.py` says what a task is."""

from fractions import Fraction

from ml_collections import ConfigDict

from jaxcolor import config as fields
from jaxcolor import models
from jaxcolor.allowed import check_section
from jaxcolor.errors import UserError
from jaxcolor.runtime.parallel import AXIS
from jaxcolor.tasks import degrade, optimizers
from jaxcolor.tasks.adversarial import Adversarial
from jaxcolor.tasks.adversary import Adversary
from jaxcolor.tasks.color_classes import ColorClasses
from jaxcolor.tasks.length import Length
from jaxcolor.tasks.regression import Regression
from jaxcolor.tasks.task import Task

TASKS = {
    'regression': Regression,
    'adversarial': Adversarial,
    'color_classes': ColorClasses,
}


def build(config: ConfigDict, length: Length | None = None) -> Task:
    """The task of a config's section `task`, with the network of its section `model`.

    Args:
        config: the whole config.
        length: of the training, where learning rates depend on it; None without one: train.steps, if set.

    Raises:
        allowed.FieldError: the section `task` or `optimizer` lacks a field or has an unknown one.
        UserError: no such task, network or optimizer, or a value that one of them refuses.
    """
    name, train = config.task.name, config.train
    if name not in TASKS:
        raise UserError(f'task.name: there is no task {name!r}; there are {", ".join(sorted(TASKS))}.')
    check_section('task', config.task, fields.TASK_SECTIONS[name]())
    check_section('optimizer', config.optimizer, fields.optimizer())
    axis_name = AXIS if train.cross_device_batch_norm else None
    network = models.build(config.model, axis_name)
    length = length or Length(train.steps or 1, Fraction(1))
    schedule = optimizers.schedule(config.optimizer, length, train.batch_size)
    encoder = getattr(network, 'encoder_layers', ('encoder',))
    optimizer = optimizers.build(config.optimizer, schedule, encoder)
    shared = {'crop': config.data.crop, 'accumulation_steps': train.accumulation_steps, 'ema': train.ema}
    if name != 'adversarial':
        shared |= {'extractor': config.extractor.name, 'cached_features': config.extractor.cached}
        shared['degradations'] = config.data
        shared['frozen_layers'] = () if config.optimizer.encoder_rate else encoder
    elif degrade.is_degrading(config.data):
        raise UserError('task.name=adversarial does not age photos; set data.blur, data.grain and the like to 0.')
    if config.task.get('adversarial'):
        discriminator = models.build_discriminator(config.model, axis_name)
        shared['adversary'] = Adversary(config.task.adversarial, discriminator, optimizer)
    return TASKS[name](config.task, network, optimizer, schedule, **shared)
