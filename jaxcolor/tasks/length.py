"""How long a training is, in optimizer steps and in epochs: the one place that converts between them."""

import math
from fractions import Fraction
from typing import NamedTuple

from ml_collections import ConfigDict

from jaxcolor.errors import UserError


class Length(NamedTuple):
    """Of one training on one shard set.

    steps: optimizer steps in all. steps_per_epoch: training photos / batch size, not always whole, so that an epoch is once
    through the photos; or train.epoch_steps.
    """

    steps: int
    steps_per_epoch: Fraction

    @classmethod
    def of(cls, train: ConfigDict, photos: int) -> 'Length':
        """Of a config's section `train` on a number of training photos.

        Raises:
            UserError: neither train.steps nor train.epochs is set.
        """
        per_epoch = Fraction(train.epoch_steps or Fraction(max(photos, 1), train.batch_size))
        limits = [] if train.steps is None else [train.steps]
        if train.epochs is not None:
            limits.append(max(1, _steps(train.epochs, per_epoch)))
        if not limits:
            raise UserError('train.steps and train.epochs are both unset; set one of them to say how long to train.')
        return cls(min(limits), per_epoch)

    def in_steps(self, epochs: float) -> int:
        """The step at which a number of epochs is completed: 2.5 epochs of 10 steps end at step 25, of 10.5 steps at 27."""
        return _steps(epochs, self.steps_per_epoch)

    def epoch_of(self, step: int) -> float:
        """Epochs done after a step."""
        return float(step / self.steps_per_epoch)

    def is_due(self, step: int, every: int | None, every_epochs: float | None) -> bool:
        """Whether something done every so many steps, or epochs, comes after this step; None is never."""
        if every is not None and step % every == 0:
            return True
        if every_epochs is None:
            return False
        period = _exact(every_epochs) * self.steps_per_epoch
        return step // period > (step - 1) // period


def _steps(epochs, per_epoch):
    return math.ceil(_exact(epochs) * per_epoch)


def _exact(epochs):
    """0.1 -> 1/10, which the float is not."""
    return Fraction(str(epochs))
