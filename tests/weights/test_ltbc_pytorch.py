"""Imports against PyTorch itself: its files, its VGG16 and Inception-ResNet-v2, and a peer's `ltbc_pytorch`."""

import argparse
import collections
import functools
import pathlib

import jax
import numpy as np
import optax
import pytest

from jaxcolor import color, models, tasks
from jaxcolor import config as base
from jaxcolor.errors import UserError
from jaxcolor.models.extractors import NETWORKS
from jaxcolor.models.layers import upsample
from jaxcolor.runtime.parallel import DataParallel
from jaxcolor.weights.imagenet import import_extractor
from jaxcolor.weights.ltbc_pytorch import import_ltbc
from jaxcolor.weights.weight_files import read_weights

pytestmark = pytest.mark.torch
torch = pytest.importorskip('torch')
nn = torch.nn
safetensors_torch = pytest.importorskip('safetensors.torch')

TOLERANCE = 1e-4  # of the largest value


def assert_close(given, expected):
    expected = np.asarray(expected)
    assert given.shape == expected.shape
    assert np.abs(given - expected).max() <= TOLERANCE * np.abs(expected).max()


def channels_last(x):
    return x.detach().numpy().transpose(0, 2, 3, 1)


def randomize(network):
    """Weights under which no layer's output fades and batch norms matter."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_uniform_(module.weight, nonlinearity='relu')
            if module.bias is not None:
                nn.init.uniform_(module.bias, -0.2, 0.2)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.8, 1.2)
            nn.init.uniform_(module.bias, -0.2, 0.2)
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.eval()


def assert_extractor_equals(extractor, network, size, layer, torch_layer):
    """Logits and the output of one inner layer, on random images."""
    image = np.random.default_rng(0).normal(size=(2, size, size, 3)).astype(np.float32)
    inner = []
    torch_layer.register_forward_hook(lambda _module, _inputs, output: inner.append(output))
    with torch.no_grad():
        logits = network(torch.from_numpy(image.transpose(0, 3, 1, 2).copy())).numpy()
    assert np.abs(logits[0] - logits[1]).max() > 100 * TOLERANCE * np.abs(logits).max()
    module = NETWORKS[extractor.name].module()
    given, state = jax.jit(
        lambda variables: module.apply(variables, image, capture_intermediates=True, mutable='intermediates')
    )(extractor.variables)
    assert_close(given, logits)
    assert_close(state['intermediates'][layer]['__call__'][0], channels_last(inner[0]))


# -- Extractors -------------------------------------------------------------------------------------------------------


class VGG16(nn.Module):
    """As torchvision names and numbers it."""

    def __init__(self):
        super().__init__()
        layers, channels = [], 3
        for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
            for _ in range(count):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(7)
        self.classifier = nn.Sequential(
            nn.Linear(25088, 4096),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(4096, 4096),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(4096, 1000),
        )

    def forward(self, x):
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


def test_vgg16_of_torchvision_in_each_format(tmp_path):
    network = randomize(VGG16())
    torch.save(network.state_dict(), tmp_path / 'vgg16.pth')
    extractor = import_extractor('vgg16', tmp_path / 'vgg16.pth')
    assert (extractor.flavor, extractor.source) == ('torchvision', 'vgg16.pth')
    assert_extractor_equals(extractor, network, 224, 'block3_conv3', network.features[14])
    # The format of the published file, which is from 2017.
    torch.save(network.state_dict(), tmp_path / 'vgg16.pth', _use_new_zipfile_serialization=False)
    legacy = import_extractor('vgg16', tmp_path / 'vgg16.pth')
    assert jax.tree.all(jax.tree.map(np.array_equal, legacy.variables, extractor.variables))
    (tmp_path / 'vgg16.pth').unlink()
    safetensors_torch.save_file(network.state_dict(), tmp_path / 'vgg16.safetensors')
    safe = import_extractor('vgg16', tmp_path / 'vgg16.safetensors')
    (tmp_path / 'vgg16.safetensors').unlink()
    assert safe.flavor == 'torchvision'
    assert jax.tree.all(jax.tree.map(np.array_equal, safe.variables, extractor.variables))


class ConvBN(nn.Module):
    def __init__(self, inputs, outputs, kernel, stride=1, padding=0):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x):
        return self.bn(self.conv(x)).relu()


class Branches(nn.Module):
    """Each branch a list of ConvBN's arguments but the first, or a pooling; with `scale` a residual block."""

    def __init__(self, inputs, *branches, scale=None, relu=True):
        super().__init__()
        self.count, self.scale, self.relu, outputs = len(branches), scale, relu, 0
        for b, branch in enumerate(branches):
            layers, channels = [], inputs
            for layer in branch:
                layers.append(layer if isinstance(layer, nn.Module) else ConvBN(channels, *layer))
                channels = channels if isinstance(layer, nn.Module) else layer[0]
            setattr(self, f'branch{b}', nn.Sequential(*layers) if len(layers) > 1 else layers[0])
            outputs += channels
        if scale is not None:
            self.conv2d = nn.Conv2d(outputs, inputs, 1)

    def forward(self, x):
        y = torch.cat([getattr(self, f'branch{b}')(x) for b in range(self.count)], 1)
        if self.scale is None:
            return y
        y = self.conv2d(y) * self.scale + x
        return y.relu() if self.relu else y


class InceptionResNetV2(nn.Module):
    """As timm names it."""

    def __init__(self):
        super().__init__()
        self.conv2d_1a = ConvBN(3, 32, 3, 2)
        self.conv2d_2a = ConvBN(32, 32, 3)
        self.conv2d_2b = ConvBN(32, 64, 3, 1, 1)
        self.maxpool_3a = nn.MaxPool2d(3, 2)
        self.conv2d_3b = ConvBN(64, 80, 1)
        self.conv2d_4a = ConvBN(80, 192, 3)
        self.maxpool_5a = nn.MaxPool2d(3, 2)
        average = nn.AvgPool2d(3, 1, 1, count_include_pad=False)
        self.mixed_5b = Branches(
            192, [(96, 1)], [(48, 1), (64, 5, 1, 2)], [(64, 1), (96, 3, 1, 1), (96, 3, 1, 1)], [average, (64, 1)]
        )
        block35 = ([(32, 1)], [(32, 1), (32, 3, 1, 1)], [(32, 1), (48, 3, 1, 1), (64, 3, 1, 1)])
        self.repeat = nn.Sequential(*(Branches(320, *block35, scale=0.17) for _ in range(10)))
        three = [(256, 1), (256, 3, 1, 1), (384, 3, 2)]
        self.mixed_6a = Branches(320, [(384, 3, 2)], three, [nn.MaxPool2d(3, 2)])
        block17 = ([(192, 1)], [(128, 1), (160, (1, 7), 1, (0, 3)), (192, (7, 1), 1, (3, 0))])
        self.repeat_1 = nn.Sequential(*(Branches(1088, *block17, scale=0.1) for _ in range(20)))
        three = [(256, 1), (288, 3, 1, 1), (320, 3, 2)]
        self.mixed_7a = Branches(1088, [(256, 1), (384, 3, 2)], [(256, 1), (288, 3, 2)], three, [nn.MaxPool2d(3, 2)])
        block8 = ([(192, 1)], [(192, 1), (224, (1, 3), 1, (0, 1)), (256, (3, 1), 1, (1, 0))])
        self.repeat_2 = nn.Sequential(*(Branches(2080, *block8, scale=0.2) for _ in range(9)))
        self.block8 = Branches(2080, *block8, scale=1.0, relu=False)
        self.conv2d_7b = ConvBN(2080, 1536, 1)
        self.classif = nn.Linear(1536, 1000)

    def forward(self, x):
        for name, layer in self.named_children():
            x = layer(x.mean((2, 3)) if name == 'classif' else x)
        return x


def test_inception_resnet_v2_of_timm_in_each_format(tmp_path):
    network = randomize(InceptionResNetV2())
    safetensors_torch.save_file(network.state_dict(), tmp_path / 'model.safetensors')
    extractor = import_extractor('inception_resnet_v2', tmp_path / 'model.safetensors')
    assert extractor.flavor == 'timm'
    assert_extractor_equals(extractor, network, 299, 'block17_10', network.repeat_1[9])
    torch.save({f'module.{k}': v for k, v in network.state_dict().items()}, tmp_path / 'model.pth')
    pickled = import_extractor('inception_resnet_v2', tmp_path / 'model.pth')
    assert jax.tree.all(jax.tree.map(np.array_equal, pickled.variables, extractor.variables))


# -- Pickles ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('zipped', [True, False])
def test_tensors_of_every_kind_are_read(tmp_path, zipped):
    base = torch.arange(24.0).reshape(2, 3, 4)
    tensors = {
        'whole': base,
        'view': base[1, :, 1:3],  # shares the storage, with an offset and strides
        'transposed': base.permute(2, 0, 1),
        'parameter': nn.Parameter(torch.ones(3)),
        'scalar': torch.tensor(7),
        'empty': torch.zeros(0, 3),
        **{str(t): torch.arange(5).to(t) for t in (torch.float64, torch.float16, torch.int32, torch.uint8, torch.bool)},
    }
    torch.save(tensors, tmp_path / 'tensors.pth', _use_new_zipfile_serialization=zipped)
    read = read_weights(tmp_path / 'tensors.pth').arrays
    assert list(read) == list(tensors)
    for name, tensor in tensors.items():
        expected = tensor.detach().numpy()
        assert read[name].dtype == expected.dtype
        np.testing.assert_array_equal(read[name], expected)


@pytest.mark.parametrize('format_', ['zip', 'legacy', 'safetensors'])
def test_bfloat16_is_read(tmp_path, format_):
    tensors = {'a': torch.tensor([1.5, -2.25], dtype=torch.bfloat16)}
    if format_ == 'safetensors':
        safetensors_torch.save_file(tensors, tmp_path / 'a.pth')
    else:
        torch.save(tensors, tmp_path / 'a.pth', _use_new_zipfile_serialization=format_ == 'zip')
    np.testing.assert_array_equal(read_weights(tmp_path / 'a.pth').arrays['a'].astype(np.float32), [1.5, -2.25])


@pytest.mark.parametrize('zipped', [True, False])
def test_whole_network_is_refused(tmp_path, zipped):
    torch.save(nn.Sequential(nn.Linear(2, 2)), tmp_path / 'model.pth', _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r'it asks for torch.nn.modules.container.Sequential, .*state_dict'):
        read_weights(tmp_path / 'model.pth')


# -- A peer's ltbc_pytorch --------------------------------------------------------------------------------------------

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
    lightness, target = color.normalize_l(lab[..., :1]), color.normalize_ab(lab[..., 1:], 'sigmoid')
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
