"""Training and inference of the networks in PyTorch. Importing it needs PyTorch.

theirs = TorchTraining(config, batch, precision='bf16', compile=True)
theirs.load(state)
theirs.step()
"""

import copy
import types
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import torch
import torch.nn.functional as F
from ml_collections import ConfigDict
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from jaxcolor import color
from jaxcolor.benchmark import torch_networks
from jaxcolor.benchmark.torch_layers import lab_to_rgb, rgb_to_lab, rgb_to_yuv, upsample, yuv_to_rgb
from jaxcolor.benchmark.torch_losses import ColorClasses, color_error
from jaxcolor.benchmark.torch_weights import fold_batch_norm, load_jax, to_torch
from jaxcolor.errors import UserError
from jaxcolor.tasks import optimizers
from jaxcolor.tasks.state import TrainState

PRECISIONS = ('f32', 'tf32', 'bf16')


class TorchTraining:
    """Trains a network in PyTorch, on one device and one fixed batch that stays there as uint8 Lab.

    Like jaxcolor's, its step normalizes the batch, converts it to YUV and runs a frozen extractor that is not cached.
    Kernel L2 is the optimizer's weight decay, which has the same gradient at lower cost, so that `step` returns the loss
    without it. PyTorch's running variance of batch norms is unbiased, and the GAN's statistics are updated in every pass;
    neither affects a loss or gradient.
    """

    def __init__(
        self,
        config: ConfigDict,
        batch: Mapping[str, Any],
        precision: str = 'f32',
        compile: bool | str = False,
        channels_last: bool = True,
        device: str = '',
    ) -> None:
        """Builds the network with random weights.

        Args:
            config: a recipe; its model, task, optimizer (with a constant learning rate), extractor and train.ema are used.
            batch: NumPy arrays {'lab': uint8 (B, H, W, 3), 'label': int32 (B,)} and, if the extractor is cached,
                'features': {name: float32 (B, 1000)}.
            precision: 'f32'; 'tf32' (on a GPU, float32 matrix products and convolutions in TF32); 'bf16' (autocast).
            compile: whether torch.compile compiles the forward and backward pass, or its mode.
            channels_last: memory format of weights and activations.
            device: 'cpu', 'cuda' or '' for the GPU if there is one.

        Raises:
            UserError: the PyTorch side lacks the precision, extractor or network.
        """
        if precision not in PRECISIONS:
            raise UserError(f'precision {precision!r} is none of {", ".join(PRECISIONS)}.')
        for field in ('adversarial', 'colorfulness'):
            if config.task.get(field):
                raise UserError(f'the PyTorch side needs task.{field}=0.')
        self.config, self.precision = config, precision
        self.device = torch.device(device or ('cuda' if torch.cuda.is_available() else 'cpu'))
        if self.device.type == 'cuda':
            torch.backends.cudnn.benchmark = True
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.adversarial = config.task.name == 'adversarial'
        self.network = torch_networks.build(config.model).to(self.device, memory_format=self.format)
        self.extractor = None
        name = config.extractor.name
        cached: tuple[np.ndarray, ...] = ()
        if name and config.extractor.cached:
            cached = (batch['features'][name],)
        elif name:
            if name != 'vgg16':
                raise UserError(f'the PyTorch side has no {name}; set extractor.cached.')
            self.extractor = torch_networks.VGG16().to(self.device, memory_format=self.format)
        turn = slice(None, None, -1 if self.network.rotated else 1)
        lab = np.ascontiguousarray(batch['lab'][:, turn, turn])
        self.lab, self.label, *self._cached_features = (
            torch.from_numpy(np.array(array)).to(self.device) for array in (lab, batch['label'].astype(np.int64), *cached)
        )
        self._fixed_noise: Sequence[torch.Tensor] = ()
        parts = ('discriminator', 'generator') if self.adversarial else ('',)
        self._optimizers = {part: self._optimizer(getattr(self.network, part) if part else self.network) for part in parts}
        self._average: AveragedModel | None = None
        if config.train.ema:
            average = get_ema_multi_avg_fn(config.train.ema)
            self._average = AveragedModel(self.network, multi_avg_fn=average, use_buffers=True)
        # Plain values, which torch.compile can trace.
        self._task, self._activation = types.SimpleNamespace(**config.task), config.model.get('output_activation')
        self._classes: ColorClasses | None = None
        if config.task.name == 'color_classes':
            self._classes = ColorClasses(config.model.color_classes, self._task).to(self.device)
        self._folded = None
        # Forget what was compiled for another network; static shapes are fastest and always compile.
        torch.compiler.reset()
        mode = compile if isinstance(compile, str) else None
        maybe_compile = (lambda call: torch.compile(call, mode=mode, dynamic=False)) if compile else (lambda call: call)
        self._network_loss = maybe_compile(self._compute_network_loss)
        self._generate = maybe_compile(self._compute_fake)
        self._discriminator_loss = maybe_compile(self._compute_discriminator_loss)
        self._generator_loss = maybe_compile(self._compute_generator_loss)
        self._predict = maybe_compile(self._compute_ab)

    def load(self, state: TrainState) -> None:
        """Copies the parameters, batch statistics and extractor of a state of the same config. Raises UserError."""
        state = jax.device_get(state)
        load_jax(self.network, state.params, state.model_state)
        if self._classes is not None:
            self._classes.share.copy_(torch.from_numpy(np.array(state.model_state['color_prior']['share'])))
        if self.extractor is not None:
            if state.frozen.flavor != 'keras':
                raise UserError(f"PyTorch's VGG16 preprocesses as Keras does, not as {state.frozen.flavor}.")
            load_jax(self.extractor, state.frozen.variables['params'])
        self._folded = None

    def step(self) -> torch.Tensor:
        """Takes a training step -> the loss, a scalar on the device (for a GAN, the sum of both losses)."""
        self._folded = None
        self.network.train()
        if not self.adversarial:
            loss = self._descend('', self._network_loss)
            if self._average is not None:
                self._average.update_parameters(self.network)
            return loss
        first, second = self._fixed_noise or (self._noise(), self._noise())
        with self._forward_context(), torch.no_grad():
            fake = self._generate(first)
        discriminator_loss = self._descend('discriminator', self._discriminator_loss, fake)
        # The generator's step needs no gradients of the discriminator's weights.
        self.network.discriminator.requires_grad_(False)
        generator_loss = self._descend('generator', self._generator_loss, second)
        self.network.discriminator.requires_grad_(True)
        return discriminator_loss + generator_loss

    def infer(self) -> torch.Tensor:
        """Predicts a*b* from the batch's L*, with folded batch norms -> (B, 2, H, W) on the device, as the network sees
        photos (`rotated`)."""
        if self._folded is None:
            self._folded = fold_batch_norm(copy.deepcopy(self.network).eval().requires_grad_(False))
        noise: tuple[torch.Tensor, ...] = ()
        if self.adversarial:
            noise = (self._fixed_noise[0] if self._fixed_noise else self._noise(),)
        with torch.inference_mode(), self._forward_context():
            return self._predict(self._folded, *noise)

    def predict_ab(self) -> np.ndarray:
        """`infer` as a task's `predict` returns it: float32 (B, H, W, 2), photos upright."""
        ab = self.infer().float().cpu().numpy().transpose(0, 2, 3, 1)
        return ab[:, ::-1, ::-1] if self.network.rotated else ab

    def set_noise(self, discriminator: Any, generator: Any = None) -> None:
        """Fixes a GAN's noise in the discriminator's (and inference's) and in the generator's step, (B, noise_size)."""
        given = [noise for noise in (discriminator, generator) if noise is not None]
        self._fixed_noise = [torch.from_numpy(np.array(noise)).to(self.device) for noise in given]

    def synchronize(self) -> None:
        """Waits until the device is idle."""
        if self.device.type == 'cuda':
            torch.cuda.synchronize(self.device)

    def features(self) -> list[torch.Tensor]:
        """The extractor's features of the batch, [(B, 1000)], cached or computed; [] without an extractor."""
        if self.extractor is None:
            return self._cached_features
        with torch.no_grad():
            return [self.extractor(100 * self._lightness())]

    def convert(self, tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """`torch_weights.to_torch` for this network: jaxcolor's parameters or gradients by PyTorch's names."""
        return to_torch(self.network, tree)

    def gradients(self) -> dict[str, np.ndarray]:
        """The gradients of the first step, including kernel L2's, {parameter: array}; needs SGD with momentum.

        After its first step, SGD's momentum buffer is the gradient.
        """
        return {
            name: optimizer.state[parameter]['momentum_buffer'].cpu().numpy()
            for optimizer in self._optimizers.values()
            for name, parameter in self.network.named_parameters()
            if parameter in optimizer.state
        }

    def l2_loss(self) -> float:
        """The kernel L2 term of the loss, which `step` leaves out."""
        groups = [group for optimizer in self._optimizers.values() for group in optimizer.param_groups]
        return sum(
            group['weight_decay'] / 2 * parameter.detach().double().square().sum().item()
            for group in groups
            if group.get('is_kernel_l2')
            for parameter in group['params']
        )

    # -- Steps --------------------------------------------------------------------------------------------------------

    def _forward_context(self):
        """The context of a forward pass: autocast; on a GPU it also sets the precision of float32."""
        if self.device.type == 'cuda':
            tf32 = self.precision != 'f32'
            torch.set_float32_matmul_precision('high' if tf32 else 'highest')
            torch.backends.cudnn.allow_tf32 = tf32
            torch.backends.cudnn.fp32_precision = 'tf32' if tf32 else 'ieee'
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == 'bf16')

    def _descend(self, part, loss_function, *inputs):
        optimizer = self._optimizers[part]
        with self._forward_context():
            loss = loss_function(*inputs)
        loss.backward()
        if self.config.optimizer.clip_norm:
            nn.utils.clip_grad_norm_(self._parameters_of(optimizer), self.config.optimizer.clip_norm, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def _parameters_of(self, optimizer):
        return [parameter for group in optimizer.param_groups for parameter in group['params']]

    def _optimizer(self, module):
        c = optimizers.resolve(self.config.optimizer)
        encoder_rate = c.learning_rate * c.encoder_rate if c.encoder_rate != 1 else None
        parameters = self._groups(module, encoder_rate, c.weight_decay if c.name == 'adam' else 0.0)
        if c.name == 'adam':
            adam = torch.optim.AdamW if c.weight_decay else torch.optim.Adam
            return adam(parameters, c.learning_rate, (c.beta1, c.beta2), c.eps, weight_decay=c.weight_decay, fused=True)
        if c.name == 'adadelta':
            return torch.optim.Adadelta(parameters, c.learning_rate, c.rho, c.eps, foreach=True)
        if c.name == 'rmsprop':
            return torch.optim.RMSprop(parameters, c.learning_rate, c.rho, c.eps, momentum=c.momentum, foreach=True)
        if c.name != 'sgd':
            raise UserError(f'the PyTorch side has no optimizer {c.name!r}; it has adadelta, adam, rmsprop and sgd.')
        return torch.optim.SGD(parameters, c.learning_rate, c.momentum, nesterov=c.nesterov, fused=True)

    def _groups(self, module, encoder_rate, weight_decay):
        """Groups of parameters: kernels whose L2 is in the loss, the pretrained encoder with a rate of its own, all else."""
        task, excluded = self.config.task, set(self.config.task.get('kernel_l2_excluded', ()))
        has_l2 = not self.adversarial and task.kernel_l2 > 0
        if has_l2 and weight_decay:
            raise UserError('the PyTorch side cannot combine task.kernel_l2 and optimizer.weight_decay.')
        groups: dict[tuple[bool, bool], list[torch.Tensor]] = {}
        for name, parameter in module.named_parameters():
            is_kernel = has_l2 and parameter.ndim > 1 and '_'.join(name.split('.')[:2]) not in excluded
            is_encoder = encoder_rate is not None and name.startswith('encoder.')
            parameter.requires_grad_(not is_encoder or encoder_rate != 0)
            groups.setdefault((is_kernel, is_encoder), []).append(parameter)
        l2 = {'weight_decay': 2 * task.kernel_l2, 'is_kernel_l2': True} if has_l2 else {}
        return [
            {'params': parameters} | (l2 if is_kernel else {}) | ({'lr': encoder_rate} if is_encoder else {})
            for (is_kernel, is_encoder), parameters in groups.items()
        ]

    def _lightness(self):
        """L*/100, (B, 1, H, W)."""
        return self._channels_first(self.lab[..., :1].float() / 255)

    def _channels_first(self, x):
        return x.permute(0, 3, 1, 2).contiguous(memory_format=self.format)

    def _compute_network_loss(self):
        task = self._task
        output, logits = self.network(self._lightness(), *self.features())
        ab = self._channels_first(self.lab[..., 1:].float()) - 128
        loss = self._compute_regression_loss(output, ab) if self._classes is None else self._classes(output, ab)
        if logits is not None and task.alpha:
            class_loss = F.cross_entropy(logits.float(), self.label, ignore_index=-1, reduction='sum')
            loss = loss + task.alpha * class_loss / len(self.lab)
        return loss

    def _compute_regression_loss(self, output, ab):
        scale, offset = color.AB_RANGE[self._activation]
        output, target = output.float(), (ab - offset) / scale
        if output.shape != target.shape:
            if self._task.loss_resolution == 'output':
                target = F.avg_pool2d(target, 2)
            else:
                output = upsample(output)
        return color_error(output, target, self._task, self._activation)

    def _yuv(self):
        """(B, 3, H, W) in [0, 1]."""
        lab = self.lab.float()
        lab = torch.cat([lab[..., :1] / 2.55, lab[..., 1:] - 128], dim=-1)
        return self._channels_first(rgb_to_yuv(lab_to_rgb(lab)))

    def _noise(self):
        return 2 * torch.rand(len(self.lab), self.network.noise_size, device=self.device) - 1

    def _compute_fake(self, noise):
        """Photos in generated colors, YUV (B, 3, H, W)."""
        luma = self._yuv()[:, :1]
        return torch.cat([luma, self.network.generator(luma, noise).float()], dim=1)

    def _compute_discriminator_loss(self, fake):
        real_logits = self.network.discriminator(self._yuv()).float()
        fake_logits = self.network.discriminator(fake).float()
        return _cross_entropy(real_logits, self._task.real_label) + _cross_entropy(fake_logits, 0.0)

    def _compute_generator_loss(self, noise):
        yuv = self._yuv()
        uv = self.network.generator(yuv[:, :1], noise).float()
        logits = self.network.discriminator(torch.cat([yuv[:, :1], uv], dim=1)).float()
        loss = _cross_entropy(logits, 1.0)
        if self._task.l1:
            loss = loss + self._task.l1 * (uv - yuv[:, 1:]).abs().mean()
        return loss

    def _compute_ab(self, network, noise=None):
        if self.adversarial:
            gray = self.lab[..., :1].float() / 2.55
            gray = torch.cat([gray, torch.zeros_like(gray), torch.zeros_like(gray)], dim=-1)
            luma = self._channels_first(rgb_to_yuv(lab_to_rgb(gray))[..., :1])
            yuv = torch.cat([luma, network.generator(luma, noise).float()], dim=1)
            return rgb_to_lab(yuv_to_rgb(yuv.permute(0, 2, 3, 1)))[..., 1:].permute(0, 3, 1, 2)
        ab = network(self._lightness(), *self.features())[0].float()
        if self._classes is not None:
            return self._classes.decode(ab, self.lab.shape[1:3])
        scale, offset = color.AB_RANGE[self._activation]
        ab = ab * scale + offset
        if ab.shape[2:] == self.lab.shape[1:3]:
            return ab
        if self._task.loss_resolution == 'output':
            return F.interpolate(ab, scale_factor=2, mode='bilinear')
        return upsample(ab)


def _cross_entropy(logits, label):
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))
