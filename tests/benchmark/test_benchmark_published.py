"""The published networks in the benchmark: inference by name, and beside PyTorch with the same weights."""

import argparse

import jax
import numpy as np
import pytest
from conftest import assert_one_sentence

from jaxcolor import tasks
from jaxcolor.benchmark import command, published, torch_comparison, workload
from jaxcolor.errors import UserError
from jaxcolor.weights.published import PUBLISHED

NARROW = {
    'eccv16': {'width': 0.125},
    'siggraph17': {'width': 0.125},
    'ddcolor-paper-tiny': {'width': 0.0625, 'queries': 5, 'layers': 3},
    'deoldify-artistic': {'width': 0.0625},
    'deoldify-stable': {'width': 0.0625},
    'iizuka-places': {'width': 0.0625},
}


@pytest.mark.parametrize('name', [*NARROW, pytest.param('ddcolor-paper', marks=pytest.mark.slow)])
def test_every_published_network_has_a_config(name):
    config = published.load_config(name)
    task = tasks.build(config)
    state = jax.eval_shape(task.init, jax.random.PRNGKey(0))
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    # Without the layers that nothing follows from; eccv16's colors are the paper's; Iizuka's are of whole millions.
    expected = PUBLISHED[name].parameters
    assert count == pytest.approx(expected, **({'rel': 5e-3} if expected % 10**6 else {'abs': 5e5}))


@pytest.fixture
def narrow(monkeypatch):
    """Makes the published networks narrow."""
    load = published.load_config

    def load_narrow(name):
        config = load(name)
        config.model.update(NARROW[name])
        return config

    monkeypatch.setattr(published, 'load_config', load_narrow)


def test_inference_by_name(narrow):
    timed = workload.Workload(workload.Case('siggraph17', mode='infer', batch=2, size=32))
    row = workload.measure(timed, rounds=1, seconds=0)
    assert (row['recipe'], row['size'], timed.result.shape) == ('siggraph17', 32, (2, 32, 32, 2))
    assert row['memory'] > 4 * row['parameters']


def test_they_are_not_trained_by_name(cli):
    code, _, err = cli('benchmark', '--config=deoldify-stable', '--size=32')
    assert_one_sentence(code, err, 'no recipe', 'deoldify-stable')


@pytest.mark.torch
@pytest.mark.parametrize('name', sorted(NARROW.keys() - {'deoldify-stable'}))  # its 101 layers take a minute
def test_pytorch_predicts_the_same_colors(narrow, name, monkeypatch):
    timed = workload.Workload(workload.Case(name, mode='infer', batch=2, size=64))
    # torch.compile takes a minute.
    inference = torch_comparison.published_inference
    monkeypatch.setattr(
        torch_comparison, 'published_inference', lambda config, x, precision, compiled: inference(config, x, precision)
    )
    ratios = torch_comparison.time_beside_torch(timed, rounds=1)
    assert set(ratios) == {'eager', 'compiled'}
    assert np.ptp(timed.result) > 1
    theirs = inference(timed.config, np.array(timed.batch['lightness']))
    assert torch_comparison.check_same_colors(timed, theirs) <= 1e-4
    theirs.lightness = theirs.lightness + 1
    with pytest.raises(UserError, match=f'{name}: PyTorch predicts other colors'):
        torch_comparison.check_same_colors(timed, theirs, tolerance=1e-4)


def test_the_command_takes_their_names():
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    (case,) = command.cases(parser.parse_args(['--config=ddcolor-paper', '--mode=infer', '--size=512', '--batch=1']))
    assert (case.recipe, case.size) == ('ddcolor-paper', 512)
