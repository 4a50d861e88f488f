"""jaxcolor's training step and inference side by side with the same networks in PyTorch (`torch_networks.py`).

    theirs = TorchTraining(config, batch, precision='bf16', compile=True)
    theirs.load(state)
    check_same_loss(config, batch)
    paired(ours, lambda: (theirs.step(), theirs.synchronize()), rounds=10)

This module imports PyTorch only where it is used.
"""

import copy
import math
import time
import types
from typing import NamedTuple

import jax
import numpy as np
import optax

from jaxcolor import color, tasks
from jaxcolor.errors import UserError
from jaxcolor.models import extractors
from jaxcolor.runtime.parallel import DataParallel

PRECISIONS = ('f32', 'tf32', 'bf16')


class Ratio(NamedTuple):
    """Time of ours over theirs: the median, least and largest of the rounds; and each side's median seconds."""

    median: float
    least: float
    largest: float
    ours_s: float
    theirs_s: float


def paired(ours, theirs, rounds: int) -> Ratio:
    """Times two calls alternately, A B A B, so that what slows the machine down meets both.

    Args:
        ours, theirs: functions of no arguments that return once the work is done. Each is called once before, untimed.
        rounds: pairs of calls, at least 1.
    """
    for call in (ours, theirs):
        call()
    times = []
    for _ in range(rounds):
        for call in (ours, theirs):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
    a, b = np.reshape(times, (rounds, 2)).T
    ratios = a / b
    return Ratio(*map(float, (np.median(ratios), ratios.min(), ratios.max(), np.median(a), np.median(b))))


class TorchTraining:
    """A training of one of the networks in PyTorch, on one device and one fixed batch that lies on it as uint8 Lab.

    What jaxcolor's step does to the batch is done in the step here, too: normalization, the conversion to YUV, a frozen
    extractor that is not cached. Kernel L2 is the optimizer's weight decay, which has the same gradient at less cost, so
    that `step` returns the loss without it. Batch norm's running variance is unbiased in PyTorch, and the GAN's statistics
    are updated at every pass; neither touches a loss or gradient.
    """

    def __init__(
        self, config, batch, precision: str = 'f32', compile: bool | str = False, channels_last: bool = True, device=''
    ):
        """Builds the network with random weights.

        Args:
            config: a recipe; of it count model, task, optimizer (constant learning rate) and extractor.
            batch: NumPy arrays {'lab': uint8 (B, H, W, 3), 'label': int32 (B,)} and, where the extractor is cached,
                'features': {name: float32 (B, 1000)}.
            precision: 'f32'; 'tf32' (GPU: matrix products and convolutions of float32 in TF32); 'bf16' (autocast).
            compile: whether torch.compile compiles the forward and backward pass; a string is its mode.
            channels_last: memory format of weights and activations.
            device: 'cpu', 'cuda' or '', which takes the GPU where there is one.

        Raises:
            UserError: PyTorch is not installed; a precision, extractor or network that PyTorch's side does not have.
        """
        from jaxcolor.benchmark import torch_networks  # Raises UserError where there is no PyTorch.

        torch = torch_networks.torch
        if precision not in PRECISIONS:
            raise UserError(f'precision {precision!r} is none of {", ".join(PRECISIONS)}.')
        self.torch, self.nets, self.config, self.precision = torch, torch_networks, config, precision
        self.device = torch.device(device or ('cuda' if torch.cuda.is_available() else 'cpu'))
        if self.device.type == 'cuda':
            torch.backends.cudnn.benchmark = True
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.adversarial = config.task.name == 'adversarial'
        self.network = torch_networks.build(config.model).to(self.device, memory_format=self.format)
        self.extractor = None
        name, features = config.extractor.name, ()
        if name and config.extractor.cached:
            features = (batch['features'][name],)
        elif name:
            if name != 'vgg16':
                raise UserError(f"PyTorch's side has no {name}: set extractor.cached.")
            self.extractor = torch_networks.VGG16().to(self.device, memory_format=self.format)
        turn = slice(None, None, -1 if self.network.mirrored else 1)
        lab = np.ascontiguousarray(batch['lab'][:, turn, turn])
        self.lab, self.label, *self.features = (
            torch.from_numpy(np.array(array)).to(self.device) for array in (lab, batch['label'].astype(np.int64), *features)
        )
        self.noises = ()  # z of the two half-steps of a GAN, (B, noise_size) each; empty: drawn
        self.optimizers = {
            part: self._optimizer(getattr(self.network, part) if part else self.network)
            for part in (('discriminator', 'generator') if self.adversarial else ('',))
        }
        # Plain values, which torch.compile sees through.
        self.task, self.activation = types.SimpleNamespace(**config.task), config.model.get('output_activation')
        self._folded = None
        mode = compile if isinstance(compile, str) else None
        # Nothing of an earlier network's, and this one's shapes as they are: what is quickest, and always compiles.
        torch.compiler.reset()
        wrap = (lambda call: torch.compile(call, mode=mode, dynamic=False)) if compile else (lambda call: call)
        self._regression_loss, self._generate, self._discriminator_loss, self._generator_loss, self._infer = map(
            wrap,
            (self._regression_loss, self._generate, self._discriminator_loss, self._generator_loss, self._infer),
        )

    def load(self, state):
        """Takes parameters, batch statistics and extractor of a TrainState of the same config."""
        state = jax.device_get(state)
        self.nets.load_jax(self.network, state.params, state.model_state)
        if self.extractor is not None:
            if state.frozen.flavour != 'keras':
                raise UserError(f"PyTorch's VGG16 preprocesses as Keras does, not as {state.frozen.flavour}.")
            self.nets.load_jax(self.extractor, state.frozen.variables['params'])
        self._folded = None

    def step(self):
        """One training step -> the loss, a scalar tensor on the device (of a GAN: both networks' together)."""
        self._folded = None
        self.network.train()
        if not self.adversarial:
            return self._descend('', self._regression_loss)
        first, second = self.noises or (self._noise(), self._noise())
        with self._precise(), self.torch.no_grad():
            fake = self._generate(first)
        of_discriminator = self._descend('discriminator', self._discriminator_loss, fake)
        # The generator's step needs no gradients of the discriminator's weights.
        self.network.discriminator.requires_grad_(False)
        of_generator = self._descend('generator', self._generator_loss, second)
        self.network.discriminator.requires_grad_(True)
        return of_discriminator + of_generator

    def infer(self):
        """Colors the batch from its L*, with batch norms folded -> a*b* as the network sees photos, (B, 2, H, W)."""
        if self._folded is None:
            self._folded = self.nets.fold_batch_norm(copy.deepcopy(self.network).eval().requires_grad_(False))
        noise = () if not self.adversarial else (self.noises[0] if self.noises else self._noise(),)
        with self.torch.inference_mode(), self._precise():
            return self._infer(self._folded, *noise)

    def colors(self):
        """`infer` as jaxcolor's tasks give it: float32 NumPy (B, H, W, 2), photos not mirrored."""
        ab = self.infer().float().cpu().numpy().transpose(0, 2, 3, 1)
        return ab[:, ::-1, ::-1] if self.network.mirrored else ab

    def set_noises(self, *noises):
        """Fixes a GAN's z of the discriminator's and of the generator's half-step, (B, noise_size) each."""
        self.noises = [self.torch.from_numpy(np.array(noise)).to(self.device) for noise in noises]

    def synchronize(self):
        """Waits until the device has done what it was given."""
        if self.device.type == 'cuda':
            self.torch.cuda.synchronize(self.device)

    def gradients(self):
        """The last step's gradients, {parameter: NumPy array}, kernel L2's included; config.optimizer is SGD with momentum.

        SGD's buffer is the gradient after its first step.
        """
        return {
            name: optimizer.state[parameter]['momentum_buffer'].cpu().numpy()
            for optimizer in self.optimizers.values()
            for name, parameter in self.network.named_parameters()
            if parameter in optimizer.state
        }

    def l2_loss(self) -> float:
        """The loss's term of kernel L2, which `step` leaves out."""
        groups = [group for optimizer in self.optimizers.values() for group in optimizer.param_groups]
        return sum(
            group['weight_decay'] / 2 * parameter.detach().double().square().sum().item()
            for group in groups
            if group.get('of_kernels')
            for parameter in group['params']
        )

    # -- The step's parts ---------------------------------------------------------------------------------------------

    def _precise(self):
        """Sets what float32 means on a GPU, and is the context of a forward pass."""
        torch = self.torch
        if self.device.type == 'cuda':
            tf32 = self.precision != 'f32'
            torch.set_float32_matmul_precision('high' if tf32 else 'highest')
            torch.backends.cudnn.allow_tf32 = tf32
            torch.backends.cudnn.fp32_precision = 'tf32' if tf32 else 'ieee'
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == 'bf16')

    def _descend(self, part, loss_of, *inputs):
        optimizer = self.optimizers[part]
        with self._precise():
            loss = loss_of(*inputs)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def _optimizer(self, module):
        c, torch = self.config.optimizer, self.torch
        parameters = list(module.parameters())
        if not self.adversarial and self.config.task.kernel_l2:
            if c.name == 'adam' and c.weight_decay:
                raise UserError('PyTorch has no optimizer with both task.kernel_l2 and optimizer.weight_decay.')
            excluded = set(self.config.task.kernel_l2_excluded)
            kernels = [
                parameter
                for name, parameter in module.named_parameters()
                if parameter.ndim > 1 and '_'.join(name.split('.')[:2]) not in excluded
            ]
            of_kernels = set(kernels)
            parameters = [parameter for parameter in parameters if parameter not in of_kernels]
            decay = 2 * self.config.task.kernel_l2
            parameters = [{'params': parameters}, {'params': kernels, 'weight_decay': decay, 'of_kernels': True}]
        if c.name == 'adam':
            kind = torch.optim.AdamW if c.weight_decay else torch.optim.Adam
            return kind(parameters, c.learning_rate, (c.beta1, c.beta2), c.eps, weight_decay=c.weight_decay, fused=True)
        if c.name == 'adadelta':
            return torch.optim.Adadelta(parameters, c.learning_rate, c.rho, c.eps, foreach=True)
        if c.name == 'rmsprop':
            return torch.optim.RMSprop(parameters, c.learning_rate, c.rho, c.eps, momentum=c.momentum, foreach=True)
        return torch.optim.SGD(parameters, c.learning_rate, c.momentum, nesterov=c.nesterov, fused=True)

    def _lightness(self):
        """L*/100, (B, 1, H, W)."""
        return self._channels_first(self.lab[..., :1].float() / 255)

    def _channels_first(self, x):
        return x.permute(0, 3, 1, 2).contiguous(memory_format=self.format)

    def _vector(self):
        if self.extractor is None:
            return self.features
        with self.torch.no_grad():
            return [self.extractor(100 * self._lightness())]

    def _regression_loss(self):
        F, task = self.torch.nn.functional, self.task
        ab, logits = self.network(self._lightness(), *self._vector())
        scale, offset = color.AB_RANGE[self.activation]
        ab, target = ab.float(), (self._channels_first(self.lab[..., 1:].float()) - 128 - offset) / scale
        if ab.shape != target.shape:
            if task.loss_resolution == 'output':
                target = F.avg_pool2d(target, 2)
            else:
                ab = self.nets.upsample(ab)
        B = len(ab)
        loss = F.mse_loss(ab, target, reduction='sum') / (B if task.reduction == 'sum' else ab.numel())
        if logits is not None and task.alpha:
            each = F.cross_entropy(logits.float(), self.label, ignore_index=-1, reduction='sum')
            loss = loss + task.alpha * each / B
        return loss

    def _yuv(self):
        """(B, 3, H, W), every channel in [0, 1]."""
        lab = self.lab.float()
        lab = self.torch.cat([lab[..., :1] / 2.55, lab[..., 1:] - 128], dim=-1)
        return self._channels_first(self.nets.rgb_to_yuv(self.nets.lab_to_rgb(lab)))

    def _noise(self):
        return 2 * self.torch.rand(len(self.lab), self.network.noise_size, device=self.device) - 1

    def _generate(self, noise):
        """(B, 3, H, W) photos in generated colors."""
        luma = self._yuv()[:, :1]
        return self.torch.cat([luma, self.network.generator(luma, noise).float()], dim=1)

    def _discriminator_loss(self, fake):
        real_logits = self.network.discriminator(self._yuv()).float()
        fake_logits = self.network.discriminator(fake).float()
        return self._cross_entropy(real_logits, self.task.real_label) + self._cross_entropy(fake_logits, 0.0)

    def _generator_loss(self, noise):
        yuv = self._yuv()
        chroma = self.network.generator(yuv[:, :1], noise).float()
        logits = self.network.discriminator(self.torch.cat([yuv[:, :1], chroma], dim=1)).float()
        loss = self._cross_entropy(logits, 1.0)
        if self.task.l1:
            loss = loss + self.task.l1 * (chroma - yuv[:, 1:]).abs().mean()
        return loss

    def _cross_entropy(self, logits, truth):
        return self.torch.nn.functional.binary_cross_entropy_with_logits(logits, self.torch.full_like(logits, truth))

    def _infer(self, network, noise=None):
        if self.adversarial:
            gray = self.lab[..., :1].float() / 2.55
            gray = self.torch.cat([gray, self.torch.zeros_like(gray), self.torch.zeros_like(gray)], dim=-1)
            luma = self._channels_first(self.nets.rgb_to_yuv(self.nets.lab_to_rgb(gray))[..., :1])
            yuv = self.torch.cat([luma, network.generator(luma, noise).float()], dim=1)
            return self.nets.rgb_to_lab(self.nets.yuv_to_rgb(yuv.permute(0, 2, 3, 1)))[..., 1:].permute(0, 3, 1, 2)
        F = self.torch.nn.functional
        ab = network(self._lightness(), *self._vector())[0].float()
        scale, offset = color.AB_RANGE[self.activation]
        ab = ab * scale + offset
        if ab.shape[2:] == self.lab.shape[1:3]:
            return ab
        if self.task.loss_resolution == 'output':
            return F.interpolate(ab, scale_factor=2, mode='bilinear')
        return self.nets.upsample(ab)


class Same(NamedTuple):
    """Both sides' loss, the relative difference of the two, and that of the gradients (norm of it over theirs)."""

    ours: float
    theirs: float
    loss_error: float
    gradient_error: float


def check_same_loss(
    config, batch, tolerance: float = 1e-4, gradient_tolerance: float = 2e-2, seed: int = 0, **options
) -> Same:
    """Takes one training step of jaxcolor and one of PyTorch, in float32 from the same parameters on the same batch.

    Args:
        config: a recipe; its optimizer is replaced by one whose state after a step is the gradient.
        batch: as TorchTraining takes it.
        tolerance: of the loss, relative.
        gradient_tolerance: of the gradient, relative. Networks without batch norm are within 1e-5; batch norm over few
            photos magnifies rounding (of Flax's one-pass variance most), the more the more alike they are.
        seed: of the parameters; biases and batch norms are random, too.
        options: more of TorchTraining's, such as `compile`.

    Raises:
        UserError: the two do not compute the same.
    """
    config = copy.deepcopy(config)
    config.model.dtype = 'float32'
    config.optimizer.update({'name': 'sgd', 'momentum': 0.9, 'nesterov': False, 'weight_decay': 0.0, 'clip_norm': 0.0})
    config.optimizer.update({'learning_rate': 1e-3, 'schedule': 'constant', 'warmup_steps': 0})
    task = tasks.build(config)
    parallel = DataParallel(devices=jax.devices()[:1])
    state = random_state(task, config, seed)
    theirs = TorchTraining(config, batch, 'f32', **options)
    theirs.load(state)
    if theirs.adversarial:
        keys = jax.random.split(jax.random.fold_in(state.rng, state.step))
        theirs.set_noises(*(task._noise(key, np.arange(len(batch['lab']))) for key in keys))
    l2 = theirs.l2_loss()  # of the parameters before the step
    their_loss = float(theirs.step()) + l2
    # Without this a GPU would multiply in TF32.
    with jax.default_matmul_precision('highest'):
        state, measured = parallel.map(task.train_step)(parallel.replicate(state), parallel.shard(batch))
    our_loss = float(measured['loss'] + measured.get('l1_loss', 0.0))  # the GAN's `loss` is without its L1 term
    if theirs.adversarial:
        gradients = {part: optax.tree_utils.tree_get(own, 'trace') for part, own in state.opt_state.items()}
    else:
        gradients = optax.tree_utils.tree_get(state.opt_state, 'trace')
    ours = theirs.nets.to_torch(theirs.network, gradients)
    a, b = (np.concatenate([grads[name].ravel() for name in sorted(ours)]) for grads in (ours, theirs.gradients()))
    loss_error = abs(our_loss - their_loss) / abs(their_loss)
    same = Same(our_loss, their_loss, loss_error, float(np.linalg.norm(a - b) / np.linalg.norm(b)))
    if not (same.loss_error <= tolerance and same.gradient_error <= gradient_tolerance):
        raise UserError(
            f'{config.name}: PyTorch computes another loss ({same.theirs:.6g}, not {same.ours:.6g}) or gradient '
            f'(off by {same.gradient_error:.1e} of its norm), so that times would compare nothing.'
        )
    return same


def varied_batch(config, size: int, seed: int = 0):
    """A batch of `size` made-up photos of a config's crop that differ in color, contrast and detail: NumPy arrays."""
    rng, side = np.random.default_rng(seed), config.data.crop
    lab = np.empty((size, side, side, 3), np.float32)
    for i, photo in enumerate(lab):
        cells = 2 ** (1 + i % 4)  # on a side
        patches = rng.uniform(-60, 60, (cells, cells, 3)) * (1 + i % 3) / 3 + rng.uniform(40, 215, 3)
        edge = -(-side // cells)
        photo[:] = patches.repeat(edge, 0).repeat(edge, 1)[:side, :side] + rng.normal(0, 4, (side, side, 3))
    classes = max(1, config.model.get('classes', 0))
    batch = {'lab': lab.clip(0, 255).astype(np.uint8), 'label': rng.integers(0, classes, size).astype(np.int32)}
    if config.extractor.cached:
        batch['features'] = {config.extractor.name: rng.standard_normal((size, 1000), np.float32)}
    return batch


def random_state(task, config, seed: int = 0):
    """A TrainState of NumPy arrays at step 0 whose biases and batch norms are random, too; made without compiling.

    With a random extractor, where the config's is not cached.
    """
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        if name == 'kernel':
            values = rng.standard_normal(leaf.shape) * (2 / math.prod(leaf.shape[:-1])) ** 0.5
        else:
            values = rng.uniform(-0.1, 0.1, leaf.shape) + (name in ('scale', 'var'))
        return values.astype(np.float32)

    state = jax.eval_shape(task.init, jax.random.PRNGKey(seed))
    params, model_state = jax.tree_util.tree_map_with_path(draw, (state.params, state.model_state))
    state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state)
    state = state.replace(params=params, model_state=model_state, rng=np.array([0, seed], np.uint32))
    if config.extractor.name and not config.extractor.cached:
        state = state.replace(frozen=extractors.random_extractor(config.extractor.name, seed))
    return state
