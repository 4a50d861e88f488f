"""What a network is trained for, by name.

A task knows nothing of devices, files or loops. It has this interface:

    init(rng) -> TrainState
    train_step(state, batch) -> (TrainState, {name: scalar})           per device, averaged over `parallel.AXIS`
    eval_step(state, batch) -> ({name: (B,)}, ab)                      per photo
    predict(state, lightness, rng) -> ab                               (B, H, W, 1) L* -> (B, H, W, 2) a*b*
    takes_noise                                                        whether predict's rng matters

`batch` is {'lab': uint8 (B, H, W, 3) of `color.encode_lab`, 'label': int32 (B,), -1 where there is none} and, where they
are cached, 'features': {name of the extractor: float (B, 1000)}.
"""

from ml_collections import ConfigDict

from jaxcolor import config as fields
from jaxcolor import models
from jaxcolor.errors import UserError
from jaxcolor.runtime.parallel import AXIS
from jaxcolor.tasks import optimizers
from jaxcolor.tasks.adversarial import Adversarial
from jaxcolor.tasks.color_classes import ColorClasses
from jaxcolor.tasks.regression import Regression

TASKS = {
    'regression': Regression,
    'adversarial': Adversarial,
    'color_classes': ColorClasses,
}


def build(config: ConfigDict) -> Regression | ColorClasses | Adversarial:
    """The task of a config's section `task`, with the network of its section `model`.

    Raises:
        config.FieldError: the section `task` or `optimizer` lacks a field or has an unknown one.
        UserError: no such task, network or optimizer, or a value that one of them refuses.
    """
    name, train = config.task.name, config.train
    if name not in TASKS:
        raise UserError(f'task.name: there is no task {name!r}; there are {", ".join(sorted(TASKS))}.')
    fields.check_section('task', config.task, fields.TASK_SECTIONS[name]())
    fields.check_section('optimizer', config.optimizer, fields.optimizer())
    network = models.build(config.model, AXIS if train.cross_device_batch_norm else None)
    schedule = optimizers.schedule(config.optimizer, train.steps, train.batch_size)
    optimizer = optimizers.build(config.optimizer, train.steps, train.batch_size)
    shared = {'crop': config.data.crop, 'accumulation_steps': train.accumulation_steps, 'ema': train.ema}
    if name != 'adversarial':
        shared |= {'extractor': config.extractor.name, 'cached_features': config.extractor.cached}
    return TASKS[name](config.task, network, optimizer, schedule, **shared)
