"""PyTorch's own files; VGG16, Inception-ResNet-v2 and EfficientNet-Lite as torchvision, timm and its package define them."""

import jax
import numpy as np
import pytest
from torch_helpers import TOLERANCE, assert_close, channels_last, randomize

from jaxcolor.errors import UserError
from jaxcolor.models.extractors import NETWORKS
from jaxcolor.weights.imagenet import import_extractor
from jaxcolor.weights.weight_files import read_weights

pytestmark = pytest.mark.torch
torch = pytest.importorskip('torch')
nn = torch.nn
safetensors_torch = pytest.importorskip('safetensors.torch')


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


@pytest.mark.parametrize('variant', ['lite0', 'lite2'])
def test_efficientnet_lite_of_its_package(tmp_path, variant):
    package = pytest.importorskip(
        'efficientnet_lite_pytorch', reason="needs efficientnet-lite-pytorch, of the extra 'torch'"
    )
    # Without an image size its padding is TensorFlow's for every size.
    network = randomize(package.EfficientNet.from_name(f'efficientnet-{variant}', image_size=None))
    torch.save(network.state_dict(), tmp_path / 'model.pth')
    extractor = import_extractor(f'efficientnet_{variant}', tmp_path / 'model.pth')
    assert extractor.flavor == 'tensorflow'
    module = NETWORKS[extractor.name].module()
    outputs = jax.jit(
        lambda variables, image: (module.apply(variables, image), module.apply(variables, image, method='features'))
    )
    blocks = []
    for block in network._blocks:
        block.register_forward_hook(lambda _module, _inputs, output: blocks.append(channels_last(output)))
    for size in ((75, 101), (64, 66)):
        image = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
        blocks.clear()
        with torch.no_grad():
            logits = network(torch.from_numpy(image.transpose(0, 3, 1, 2).copy())).numpy()
        assert np.abs(logits[0] - logits[1]).max() > 100 * TOLERANCE * np.abs(logits).max()
        found, features = outputs(extractor.variables, image)
        assert_close(found, logits)
        # The last block of each size.
        last = {block.shape[1]: block for block in blocks}
        assert len(features) == len(last) == 5
        for found, expected in zip(features.values(), last.values(), strict=True):
            assert_close(found, expected)


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
