"""What the tests that compare with PyTorch share."""

import numpy as np
import pytest

torch = pytest.importorskip('torch')
nn = torch.nn

TOLERANCE = 1e-4  # of the largest value


def assert_close(given, expected):
    expected = np.asarray(expected)
    assert given.shape == expected.shape
    assert np.abs(given - expected).max() <= TOLERANCE * np.abs(expected).max()


def channels_last(x):
    return x.detach().numpy().transpose(0, 2, 3, 1) if x.ndim == 4 else x.detach().numpy()


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


def outputs_of(network, image, modules):
    """(the output, {name: the output of that module}) for an image (B, H, W, C); maps are (B, H, W, C), too."""
    found = {}

    def keep(name):
        return lambda _module, _inputs, output: found.update({name: output})

    hooks = [network.get_submodule(name).register_forward_hook(keep(name)) for name in modules]
    with torch.no_grad():
        output = network(torch.from_numpy(image.transpose(0, 3, 1, 2).copy()))
    for hook in hooks:
        hook.remove()
    return channels_last(output), {name: channels_last(each) for name, each in found.items()}


def arrays_of(network):
    """The state dict as the reader of weights files gives it."""
    return {name: tensor.numpy() for name, tensor in network.state_dict().items()}
