"""What a network is trained for, by name.

A task is built from a whole config and has this interface; it knows nothing of devices, files or loops:

    init(rng) -> TrainState
    train_step(state, batch) -> (TrainState, {name: scalar})           per device, averaged over `parallel.AXIS`
    eval_step(state, batch) -> {name: (B,)}, ab                        per photo
    predict(state, lightness, rng) -> ab                               (B, H, W, 1) L* -> (B, H, W, 2) a*b*
    takes_noise                                                        whether predict's rng matters

`batch` is {'lab': uint8 (B, H, W, 3) of `color.encode_lab`, 'label': int32 (B,), -1 where there is none} and, where they
are cached, 'features': {name of the extractor: float (B, 1000)}.
"""

from jaxcolor.errors import UserError
from jaxcolor.tasks.adversarial import Adversarial
from jaxcolor.tasks.color_classes import ColorClasses
from jaxcolor.tasks.regression import Regression

TASKS = {
    'regression': Regression,
    'adversarial': Adversarial,
    'color_classes': ColorClasses,
}


class MissingFieldError(UserError):
    """A config is of another task or of another version of jaxcolor."""


def build(config):
    """The task that a config's section `task` names, with the network of its section `model`.

    Raises:
        UserError: no such task, or a field that the task, network or optimizer refuses or that is missing.
    """
    if config.task.name not in TASKS:
        raise UserError(f'task.name: there is no task {config.task.name!r}; there are {", ".join(sorted(TASKS))}.')
    try:
        return TASKS[config.task.name](config)
    except (KeyError, AttributeError) as error:
        field = str(error).strip('"').split('\n')[0]
        message = f'the task {config.task.name} misses a field of its own: {field} (see configs/base.py).'
        raise MissingFieldError(message) from None
