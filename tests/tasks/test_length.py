"""Epochs and steps: on sets of several sizes, whatever the batch."""

from fractions import Fraction

import pytest

from jaxcolor import config as base
from jaxcolor.errors import UserError
from jaxcolor.tasks.length import Length


def train(**fields):
    config = base.train()
    config.update(fields)
    return config


@pytest.mark.parametrize(
    ('fields', 'photos', 'steps'),
    [
        ({'epochs': 14, 'batch_size': 32}, 292_000, 127_750),  # Jacob, Darcet
        ({'epochs': 14, 'batch_size': 32}, 1_000, 438),  # 437.5
        ({'epochs': 2_500, 'batch_size': 5}, 15_000, 7_500_000),  # DeepColor
        ({'epochs': 2_000, 'batch_size': 32}, 9_500, 593_750),  # Pradhan, Gupta, Gaurav
        ({'epochs': 200, 'batch_size': 50, 'epoch_steps': 100}, 1_000, 20_000),  # Jain, whatever the size of the set
        ({'epochs': 200, 'batch_size': 50, 'epoch_steps': 100}, 7, 20_000),
        ({'epochs': 0.1, 'batch_size': 10}, 1_000, 10),  # 0.1 as a float is a little more than a tenth
        ({'epochs': 1, 'batch_size': 128}, 20, 1),
        ({'epochs': 3, 'batch_size': 10, 'steps': 7}, 1_000, 7),  # whichever comes first
        ({'epochs': 3, 'batch_size': 10, 'steps': 700}, 1_000, 300),
        ({'steps': 7, 'batch_size': 10}, 1_000, 7),
    ],
)
def test_epochs_in_steps(fields, photos, steps):
    length = Length.of(train(**fields), photos)
    assert length.steps == steps
    if 'steps' not in fields:
        assert length.epoch_of(steps - 1) < fields['epochs'] <= length.epoch_of(steps) or photos < fields['batch_size']


def test_evaluations_come_where_an_epoch_ends():
    length = Length(100, Fraction(21, 2))
    assert [step for step in range(1, 101) if length.is_due(step, None, 1)] == [11, 21, 32, 42, 53, 63, 74, 84, 95]
    assert [step for step in range(1, 40) if length.is_due(step, None, 0.5)] == [6, 11, 16, 21, 27, 32, 37]
    assert [step for step in range(1, 101) if length.is_due(step, 30, 4)] == [30, 42, 60, 84, 90]
    assert not any(length.is_due(step, None, None) for step in range(1, 101))
    assert [length.in_steps(epochs) for epochs in (0, 1, 2, 2.5)] == [0, 11, 21, 27]


def test_without_an_end_it_is_refused():
    with pytest.raises(UserError, match=r'train\.steps and train\.epochs are both unset'):
        Length.of(train(), 100)
