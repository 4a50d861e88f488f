"""Inference of the published networks in PyTorch. Importing it needs PyTorch.

theirs = PublishedInference(config, lightness, compile=True)
converted = theirs.converted()  # the same weights as jaxcolor's
theirs.infer()
"""

import copy
import itertools
import math
from collections.abc import Callable

import flax
import numpy as np
import torch
import torch.nn.functional as F
from ml_collections import ConfigDict
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.nn.utils.spectral_norm import SpectralNorm

from jaxcolor import color, models
from jaxcolor.benchmark import torch_networks
from jaxcolor.benchmark.torch_ddcolor import DDColorTwin
from jaxcolor.benchmark.torch_deoldify import DeOldifyTwin
from jaxcolor.benchmark.torch_layers import lab_to_rgb, rgb_to_lab
from jaxcolor.benchmark.torch_weights import fold_batch_norm, load_jax
from jaxcolor.benchmark.torch_zhang import ECCV16, SIGGRAPH17
from jaxcolor.errors import UserError
from jaxcolor.models.layers import IMAGENET_DEVIATION, IMAGENET_MEAN
from jaxcolor.weights.published import CONVERTERS, Converted
from jaxcolor.weights.published.converted import variable_shapes

NETWORKS: dict[str, Callable[[ConfigDict], nn.Module]] = {
    'eccv16': lambda model: ECCV16(model.width),
    'siggraph17': lambda model: SIGGRAPH17(model.width),
    'ddcolor': lambda model: DDColorTwin(model.variant, model.width, model.queries, model.layers),
    'deoldify': lambda model: DeOldifyTwin(model.variant, model.width),
    'iizuka': torch_networks.build,
}


class PublishedInference:
    """Predicts a*b* from the L* of a fixed batch, as the task of the same config does in jaxcolor, on one device.

    Sides of photos are multiples of 32. Spectral norms and the batch norms that follow a convolution are folded into it.
    """

    def __init__(
        self, config: ConfigDict, lightness: np.ndarray, precision: str = 'f32', compile: bool = False, device: str = ''
    ) -> None:
        """Builds the network with random weights.

        Args:
            config: of a published network.
            lightness: L*, float32 (B, H, W, 1) in [0, 100].
            precision: 'f32'; 'tf32' (on a GPU, float32 products in TF32); 'bf16' (autocast).
            compile: whether torch.compile compiles the prediction.
            device: 'cpu', 'cuda' or '' for the GPU if there is one.

        Raises:
            UserError: the PyTorch side lacks the network.
        """
        name = config.model.name
        if name not in NETWORKS:
            raise UserError(f'the PyTorch side has no {name}; it has {", ".join(NETWORKS)}.')
        self.name, self.model, self.precision = name, config.model, precision
        self.device = torch.device(device or ('cuda' if torch.cuda.is_available() else 'cpu'))
        self.network = randomize(NETWORKS[name](config.model))
        if name == 'iizuka':  # whose files are no state dicts
            self._converted = random_variables(config)
            load_jax(self.network, self._converted.params, self._converted.model_state)
        if name == 'eccv16':  # whose classes are of the paper's colors
            centers = torch.from_numpy(color.zhang_class_centers().T / 110)
            self.network.model_out.weight.data = centers[..., None, None].float()
        fold = fold_batch_norm if name == 'iizuka' else fold_norms
        folded = fold(copy.deepcopy(self.network)).requires_grad_(False)
        self._folded = folded.to(self.device, memory_format=torch.channels_last)
        x = torch.from_numpy(lightness.transpose(0, 3, 1, 2).copy()).to(self.device)
        self.lightness = x.contiguous(memory_format=torch.channels_last)
        self._mean, self._deviation = (
            torch.from_numpy(values.reshape(3, 1, 1)).to(self.device) for values in (IMAGENET_MEAN, IMAGENET_DEVIATION)
        )
        torch.compiler.reset()
        self._predict = torch.compile(self._compute_ab, dynamic=False) if compile else self._compute_ab

    def converted(self) -> Converted:
        """The network's weights as jaxcolor's, by the reader of the published files, where those are of PyTorch."""
        if self.name == 'iizuka':
            return self._converted
        arrays = {name: tensor.numpy() for name, tensor in self.network.state_dict().items()}
        network = models.build(self.model)
        return CONVERTERS[self.name](arrays, network.width if self.name in ('eccv16', 'siggraph17') else network)

    def infer(self) -> torch.Tensor:
        """a*b* (B, 2, H, W), on the device."""
        if self.device.type == 'cuda':
            tf32 = self.precision != 'f32'
            torch.set_float32_matmul_precision('high' if tf32 else 'highest')
            torch.backends.cudnn.allow_tf32 = tf32
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == 'bf16'):
            return self._predict(self.lightness)

    def predict_ab(self) -> np.ndarray:
        """`infer` as a task's `predict` returns it: float32 (B, H, W, 2)."""
        return self.infer().float().cpu().numpy().transpose(0, 2, 3, 1)

    def synchronize(self) -> None:
        """Waits until the device is idle."""
        if self.device.type == 'cuda':
            torch.cuda.synchronize(self.device)

    def _compute_ab(self, lightness):
        if self.name == 'eccv16':
            return self._folded(lightness)[0]
        zeros = torch.zeros_like(lightness)
        if self.name == 'siggraph17':
            return self._folded(lightness, torch.cat([zeros, zeros], dim=1), zeros)[0]
        rgb = lab_to_rgb(torch.cat([lightness, zeros, zeros], dim=1).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        if self.name == 'ddcolor':
            return self._folded(rgb)
        if self.name == 'iizuka':
            values = self._folded(rgb[:, :1] - self.model.luma_mean)[0]  # (B, 2, H/2, W/2)
            return F.interpolate(200 * (values - 0.5), scale_factor=2, mode='bilinear')
        rgb = self._folded((rgb - self._mean) / self._deviation) * self._deviation + self._mean
        return rgb_to_lab(rgb.clamp(0, 1).permute(0, 2, 3, 1))[..., 1:].permute(0, 3, 1, 2)


def random_variables(config: ConfigDict) -> Converted:
    """Random weights and statistics of a config's network, as a converter gives them."""
    rng = np.random.default_rng(0)
    params: dict[tuple[str, ...], np.ndarray] = {}
    model_state: dict[tuple[str, ...], np.ndarray] = {}
    for path, shape in variable_shapes(models.build(config.model), (1, 32, 32, 1)).items():
        if path[-1] == 'kernel':
            array = rng.standard_normal(shape, np.float32) * np.float32((2 / math.prod(shape[:-1])) ** 0.5)
        else:
            array = rng.uniform(-0.1, 0.1, shape).astype(np.float32) + np.float32(path[-1] in ('scale', 'var'))
        if path[0] == 'params':
            params[path[1:]] = array
        else:
            model_state[path] = array
    unflatten = flax.traverse_util.unflatten_dict
    return Converted(config.model.to_dict(), config.task.to_dict(), unflatten(params), unflatten(model_state), [])


def fold_norms(network: nn.Module) -> nn.Module:
    """Folds spectral norms, and batch norms that directly follow a convolution, in place -> the network, in eval mode."""
    network.eval()
    for module in network.modules():
        if any(isinstance(hook, SpectralNorm) for hook in module._forward_pre_hooks.values()):
            nn.utils.remove_spectral_norm(module)
    for module in list(network.modules()):
        for (name, conv), (norm_name, norm) in itertools.pairwise(list(module.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, name, fuse_conv_bn_eval(conv, norm))
                setattr(module, norm_name, nn.Identity())
    return network


def randomize(network: nn.Module, last_of_a_block: str = 'gamma') -> nn.Module:
    """Gives a network weights under which nothing fades, statistics that matter, u and v after three power iterations.

    Args:
        network: it is changed.
        last_of_a_block: the ending of the name of what scales a residual block's output.

    Returns:
        The network, in eval mode.
    """
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv1d | nn.ConvTranspose2d | nn.Linear):
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
