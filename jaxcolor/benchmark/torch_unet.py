"""PyTorch twins of what DDColor and DeOldify share, written from their published description; names are their files'."""

import pytest

torch = pytest.importorskip('torch')
nn, F = torch.nn, torch.nn.functional
SpectralNorm = pytest.importorskip('torch.nn.utils.spectral_norm').SpectralNorm


def spectral(in_channels, out_channels, kernel=1, bias=False):
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=bias)
    return nn.utils.spectral_norm(conv, n_power_iterations=1)


def conv_relu_norm(in_channels, out_channels):
    return nn.Sequential(spectral(in_channels, out_channels, 3), nn.ReLU(), nn.BatchNorm2d(out_channels))


class Shuffle(nn.Module):
    """Pixel shuffle of a 1x1 convolution's outputs, then a blur."""

    def __init__(self, conv, ratio, norm=None):
        super().__init__()
        self.conv = nn.Sequential(conv, *([] if norm is None else [norm]))
        self.ratio = ratio

    def forward(self, x):
        x = F.pixel_shuffle(torch.relu(self.conv(x)), self.ratio)
        return F.avg_pool2d(F.pad(x, (1, 0, 1, 0), mode='replicate'), 2, stride=1)


class UNetBlock(nn.Module):
    """mixes: {name: module}"""

    def __init__(self, in_channels, skip, shuffled, mixes):
        super().__init__()
        self.shuf = Shuffle(spectral(in_channels, 4 * shuffled), 2, nn.BatchNorm2d(4 * shuffled))
        self.bn = nn.BatchNorm2d(skip)
        self.mixes = list(mixes)
        for name, module in mixes.items():
            self.add_module(name, module)
        self.resized = False

    def forward(self, x, skip):
        x = self.shuf(x)
        self.resized = x.shape[2:] != skip.shape[2:]
        if self.resized:
            x = F.interpolate(x, skip.shape[2:], mode='nearest')
        x = torch.relu(torch.cat([x, self.bn(skip)], 1))
        for name in self.mixes:
            x = getattr(self, name)(x)
        return x


def randomize(network, last_of_a_block='gamma'):
    """Weights under which nothing fades, statistics that matter, u and v after three power iterations.

    last_of_a_block: the ending of the name of what scales a residual block's output.
    """
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv1d | nn.Linear):
            weight = getattr(module, 'weight_orig', module.weight)
            nn.init.kaiming_uniform_(weight.data, nonlinearity='relu')
            if module.bias is not None:
                nn.init.uniform_(module.bias, -0.2, 0.2)
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.8, 1.2)
            nn.init.uniform_(module.bias, -0.2, 0.2)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 1.0, 3.0)
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, SpectralNorm):
                for _ in range(3):
                    hook.compute_weight(module, do_power_iteration=True)
    for name, parameter in network.named_parameters():
        if name.endswith(('gamma', last_of_a_block)):
            nn.init.uniform_(parameter, 0.2, 0.5)  # what residual blocks add
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


def channels_last(x):
    return x.detach().numpy().transpose(0, 2, 3, 1) if x.ndim == 4 else x.detach().numpy()


def arrays_of(network):
    """The state dict as the reader of weights files gives it."""
    return {name: tensor.numpy() for name, tensor in network.state_dict().items()}
