"""The networks in PyTorch are jaxcolor's: the same outputs, losses and gradients from the same parameters."""

import sys

import jax
import numpy as np
import pytest

from configs import cgan, deepcolor, ltbc, ltbc_deconv, ltbc_pytorch, vgg_fusion
from jaxcolor import benchmark, color, tasks
from jaxcolor.benchmark import against
from jaxcolor.errors import UserError


def small(config, crop, **model):
    config.model.update({'width': 0.125, **model})
    config.data.crop = crop
    config.extractor.cached = bool(config.extractor.name)
    return config


CONFIGS = {
    'ltbc': lambda: small(ltbc.get_config(), 64, global_size=64),
    'ltbc_pytorch': lambda: small(ltbc_pytorch.get_config(), 64, global_size=64),
    'ltbc_pytorch_smaller_copy': lambda: small(ltbc_pytorch.get_config(), 64, global_size=32),
    'ltbc_deconv': lambda: small(ltbc_deconv.get_config(), 64, global_size=64),
    'deepcolor': lambda: small(deepcolor.get_config('base'), 64),
    'vgg_fusion': lambda: small(vgg_fusion.get_config(), 128),
    'cgan': lambda: small(cgan.get_config('stable'), 32, size=32),
}


@pytest.mark.torch
@pytest.mark.parametrize('name', CONFIGS)
def test_same_loss_and_gradients(name):
    config = CONFIGS[name]()
    batch = against.varied_batch(config, 4)
    batch['label'][1] = -1  # a photo without a class
    same = against.check_same_loss(config, batch)
    assert same.ours > 0
    assert same.loss_error <= 1e-4
    # Where batch norms follow dense layers, rounding decides more of the gradient.
    assert same.gradient_error <= (1e-2 if name in ('ltbc', 'ltbc_deconv') else 1e-4)


@pytest.mark.torch
@pytest.mark.parametrize('name', CONFIGS)
def test_same_colors(name):
    """`infer`, with its folded batch norms, is the tasks' `predict`."""
    config = CONFIGS[name]()
    batch = against.varied_batch(config, 2)
    task = tasks.build(config)
    state = against.random_state(task, config)
    theirs = against.TorchTraining(config, batch)
    theirs.load(state)
    keywords = {}
    if name == 'cgan':
        rng = jax.random.PRNGKey(3)
        theirs.set_noises(task._noise(rng, np.arange(2)))
        keywords['rng'] = rng
    elif config.extractor.name:
        keywords['features'] = batch['features'][config.extractor.name]
    lightness = color.decode_lab(batch['lab'])[..., :1]
    ours = np.asarray(jax.jit(task.predict)(state, lightness, **keywords))
    assert np.ptp(ours) > 1
    assert np.abs(theirs.colors() - ours).max() <= 1e-4 * np.abs(ours).max()


@pytest.mark.torch
def test_same_vgg16():
    """The frozen extractor inside the step: the same vector from the same photo."""
    config = CONFIGS['vgg_fusion']()
    config.extractor.cached = False
    batch = against.varied_batch(config, 1)
    state = against.random_state(tasks.build(config), config)
    theirs = against.TorchTraining(config, batch)
    theirs.load(state)
    ours = np.asarray(jax.jit(lambda state, x: state.frozen(x))(state, color.decode_lab(batch['lab'])[..., :1]))
    assert np.abs(theirs._vector()[0].numpy() - ours).max() <= 1e-4 * np.abs(ours).max()


@pytest.mark.torch
@pytest.mark.parametrize('name', ['deepcolor', 'cgan'])
def test_steps_train_in_bfloat16(name):
    config = CONFIGS[name]()
    config.task.kernel_l2 = 0.0
    config.optimizer.learning_rate = 1e-3
    training = against.TorchTraining(config, against.varied_batch(config, 2), 'bf16', channels_last=False)
    losses = [float(training.step()) for _ in range(8)]
    assert all(map(np.isfinite, losses))
    assert losses[-1] < losses[0] or name == 'cgan'  # whose two losses pull against each other
    assert len(set(losses)) == 8
    assert np.isfinite(training.colors()).all()


@pytest.mark.torch
def test_another_network_is_refused():
    config = CONFIGS['deepcolor']()
    state = against.random_state(tasks.build(config), config)
    config.model.width = 0.25
    with pytest.raises(UserError, match='they differ in decoder.0.conv.bias'):
        against.TorchTraining(config, against.varied_batch(config, 1)).load(state)
    with pytest.raises(UserError, match='fp8'):
        against.TorchTraining(config, against.varied_batch(config, 1), precision='fp8')


@pytest.mark.torch
def test_another_loss_is_noticed(monkeypatch):
    config = CONFIGS['deepcolor']()
    config.task.kernel_l2 = 0.0
    decode = color.decode_lab
    monkeypatch.setattr(color, 'decode_lab', lambda lab: decode(lab) + np.float32(0.1))
    with pytest.raises(UserError, match='deepcolor-base: PyTorch computes another loss'):
        against.check_same_loss(config, against.varied_batch(config, 1))


def test_pairs_alternate():
    calls = []
    ratio = against.paired(lambda: calls.append('a'), lambda: calls.append('b'), rounds=3)
    assert ''.join(calls) == 'ab' * 4
    assert 0 < ratio.least <= ratio.median <= ratio.largest


def test_without_pytorch_one_sentence_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, 'torch', None)
    monkeypatch.delitem(sys.modules, 'jaxcolor.benchmark.torch_networks', raising=False)
    monkeypatch.delattr(benchmark, 'torch_networks', raising=False)
    config = CONFIGS['deepcolor']()
    with pytest.raises(UserError, match=r"pip install 'jaxcolor\[torch\]'"):
        against.TorchTraining(config, against.varied_batch(config, 1))
