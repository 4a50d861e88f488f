"""A peer's `ltbc_pytorch` against PyTorch itself: its files, outputs and a step of Adam."""

import argparse
import collections
import functools
import pathlib

import jax
import numpy as np
import optax
import pytest
from torch_helpers import TOLERANCE, assert_close, channels_last, randomize

from jaxcolor import color, models, tasks
from jaxcolor import config as base
from jaxcolor.errors import UserError
from jaxcolor.models.layers import upsample
from jaxcolor.runtime.parallel import DataParallel
from jaxcolor.weights.ltbc_pytorch import import_ltbc

pytestmark = pytest.mark.torch
torch = pytest.importorskip('torch')
nn = torch.nn
safetensors_torch = pytest.importorskip('safetensors.torch')

WIDTH = 1 / 8


class ConvModule(nn.Module):
    def __init__(self, inputs, outputs, stride=1, kernel=3, activation=nn.ReLU):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)
        self.activation = activation()

    def forward(self, x):
        return self.activation(self.conv(x))


class FCModule(nn.Module):
    def __init__(self, inputs, outputs, activation=nn.ReLU):
        super().__init__()
        self.fc = nn.Linear(inputs, outputs)
        self.activation = activation()

    def forward(self, x):
        return self.activation(self.fc(x))


class Part(nn.Module):
    """Its layers by name, one after the other; dense ones see their input flattened, channels first."""

    def __init__(self, **layers):
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)


class Peer(nn.Module):
    """Let there be Color! as its PyTorch reimplementation has it: no batch norm, x2 at the end inside the network."""

    def __init__(self, width=WIDTH, classes=365, classifier_width=400):
        super().__init__()

        def w(features):
            return max(1, round(features * width))

        def convs(*steps):
            return {f'conv{i}': ConvModule(a, b, stride) for i, (a, b, stride) in enumerate(steps, 1)}

        self.low = Part(
            **convs(
                (1, w(64), 2),
                (w(64), w(128), 1),
                (w(128), w(128), 2),
                (w(128), w(256), 1),
                (w(256), w(256), 2),
                (w(256), w(512), 1),
            )
        )
        self.mid = Part(**convs((w(512), w(512), 1), (w(512), w(256), 1)))
        d = w(512)
        self.glob = Part(
            **convs((d, d, 2), (d, d, 1), (d, d, 2), (d, d, 1)),
            fc1=FCModule(49 * d, w(1024)),
            fc2=FCModule(w(1024), d),
            fc3=FCModule(d, w(256)),
        )
        # Out of order: the last layer's convolution is registered first.
        self.color = Part(
            conv5=ConvModule(w(32), 2, activation=nn.Sigmoid),
            **convs((w(256), w(128), 1), (w(128), w(64), 1), (w(64), w(64), 1), (w(64), w(32), 1)),
            fusion=ConvModule(w(256) + w(256), w(256), kernel=1),
        )
        self.classif = Part(fc1=FCModule(d, w(classifier_width)), fc2=FCModule(w(classifier_width), classes, nn.Identity))

    def forward(self, x):
        up = nn.Upsample(scale_factor=2)
        for i in range(1, 7):
            x = getattr(self.low, f'conv{i}')(x)
        g = x
        for i in range(1, 5):
            g = getattr(self.glob, f'conv{i}')(g)
        described = self.glob.fc2(self.glob.fc1(g.flatten(1)))
        logits = self.classif.fc2(self.classif.fc1(described))
        g = self.glob.fc3(described)
        x = self.mid.conv2(self.mid.conv1(x))
        x = torch.cat([x, g[:, :, None, None].expand(-1, -1, *x.shape[2:])], 1)
        x = up(self.color.conv1(self.color.fusion(x)))
        x = up(self.color.conv3(self.color.conv2(x)))
        return up(self.color.conv5(self.color.conv4(x))), logits


@pytest.fixture(scope='module')
def peer():
    return randomize(Peer())


def build(**changes):
    config = {'name': 'ltbc', 'dtype': 'float32', 'width': WIDTH, 'batch_norm': False, 'classes': 365}
    return models.build({**config, 'classifier_width': 400, **changes})


def save(state_dict, kind, path):
    if kind == 'safetensors':
        safetensors_torch.save_file(state_dict, path)
    elif kind == 'lightning':
        # What Lightning puts beside the state dict, older versions with their own classes.
        torch.save(
            {
                'epoch': 14,
                'global_step': 3,
                'state_dict': collections.OrderedDict((f'model.{name}', tensor) for name, tensor in state_dict.items()),
                'optimizer_states': [{'state': {0: {'step': 3, 'exp_avg': torch.zeros(3)}}, 'param_groups': [{'lr': 1}]}],
                'hyper_parameters': argparse.Namespace(alpha=0.005),
                'path': pathlib.PurePosixPath('epoch=14.ckpt'),
                'best': np.float64(0.5),
            },
            path,
        )
    else:
        torch.save(state_dict, path, _use_new_zipfile_serialization=kind == 'zip')


@pytest.mark.parametrize('kind', ['legacy', 'safetensors', 'lightning'])
def test_peers_checkpoint_is_the_same_in_each_format(peer, tmp_path, kind):
    save(peer.state_dict(), 'zip', tmp_path / 'zip.pth')
    save(peer.state_dict(), kind, tmp_path / 'other.ckpt')
    one, other = (import_ltbc(tmp_path / name, build()) for name in ('zip.pth', 'other.ckpt'))
    assert jax.tree.all(jax.tree.map(np.array_equal, one, other))


def test_peers_outputs_and_adam_step(tmp_path):
    """The outputs, the loss, the gradients and the parameters after one step of the task `regression`."""
    peer = randomize(Peer())
    config = base.get_config()
    config.model.update({'width': WIDTH, 'batch_norm': False, 'classes': 365, 'classifier_width': 400})
    config.task.update({'reduction': 'mean', 'loss_resolution': 'input', 'alpha': 0.005})
    config.optimizer.update({'name': 'adam', 'learning_rate': 1e-4, 'eps': 1e-8})
    task = tasks.build(config)
    rng = np.random.default_rng(0)
    batch = {
        'lab': rng.integers(0, 256, (2, 224, 224, 3), np.uint8),
        'label': np.array([3, 364], np.int32),
    }

    def imported(tensors):
        torch.save(dict(tensors), tmp_path / 'peer.pth')
        return import_ltbc(tmp_path / 'peer.pth', task.network)

    before = imported(peer.state_dict())
    lab = color.decode_lab(batch['lab'])
    lightness, target = color.normalize_l(lab[..., :1]), color.normalize(lab[..., 1:], 'lab', 'sigmoid')
    ab, logits = peer(torch.from_numpy(lightness.transpose(0, 3, 1, 2).copy()))
    outputs = task.network.apply({'params': before}, lightness)
    assert_close(upsample(outputs['ab']), channels_last(ab))
    assert_close(outputs['logits'], logits.detach().numpy())

    loss = nn.functional.mse_loss(ab, torch.from_numpy(target.transpose(0, 3, 1, 2).copy()))
    loss += 0.005 * nn.functional.cross_entropy(logits, torch.from_numpy(batch['label']).long())
    loss.backward()
    torch.optim.Adam(peer.parameters(), lr=1e-4).step()
    expected_grads = imported((name, parameter.grad) for name, parameter in peer.named_parameters())
    expected = imported(peer.state_dict())
    state = jax.eval_shape(task.init, jax.random.PRNGKey(0))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state)
    parallel = DataParallel(devices=jax.devices()[:1])
    state = parallel.replicate(zeros.replace(params=before))
    state, measured = parallel.map(task.train_step)(state, parallel.shard(batch))
    assert abs(measured['loss'] - loss.item()) <= TOLERANCE * loss.item()
    grads = jax.tree.map(lambda mean: mean / 0.1, optax.tree_utils.tree_get(state.opt_state, 'mu'))
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        of = [key.key for key in path]
        old, new, reference, reference_grad = (
            functools.reduce(dict.__getitem__, of, tree) for tree in (before, state.params, expected, expected_grads)
        )
        # A ReLU whose input is 0 but for rounding is open in one framework and closed in the other.
        assert np.abs(grad - reference_grad).max() <= 10 * TOLERANCE * np.abs(reference_grad).max()
        assert np.linalg.norm(new - reference) <= TOLERANCE * np.linalg.norm(reference)
        # Adam's first step is the gradient's sign; it is compared where rounding does not decide it.
        clear = np.abs(reference_grad) > 0.01 * np.abs(reference_grad).max()
        np.testing.assert_allclose((new - old)[clear], (reference - old)[clear], atol=0.01 * 1e-4)


def test_classifier_is_left_out_for_a_network_without(peer, tmp_path):
    torch.save(peer.state_dict(), tmp_path / 'peer.pth')
    params = import_ltbc(tmp_path / 'peer.pth', build(classes=0))
    assert not [name for name in params if name.startswith('classifier')]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == sum(
        p.numel() for name, p in peer.named_parameters() if not name.startswith('classif')
    )


def test_checkpoint_that_does_not_fit_is_refused(peer, tmp_path):
    file = tmp_path / 'peer.pth'
    torch.save(peer.state_dict(), file)
    with pytest.raises(UserError, match=r'classif.fc2.fc.weight .*: of shape \(365, 50\), not .* \(205, 50\)'):
        import_ltbc(file, build(classes=205))
    with pytest.raises(UserError, match=r'differs is low.conv1.conv.weight .*: of shape \(8, 1, 3, 3\)'):
        import_ltbc(file, build(width=0.25))
    for change in ({'batch_norm': True}, {'decoder': 'deconv'}):
        with pytest.raises(UserError, match=r"set model.batch_norm to False and model.decoder to 'nearest'"):
            import_ltbc(file, build(**change))
    torch.save({k: v for k, v in peer.state_dict().items() if 'mid.conv2' not in k}, file)
    with pytest.raises(UserError, match=r"its part 'mid' has 1 layers, not 2: \['mid.conv1.conv'\]"):
        import_ltbc(file, build())
