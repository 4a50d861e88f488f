"""Compares jaxcolor's steps with the same networks in PyTorch: first that both compute the same, then their speed.

PyTorch is imported by the functions that need it.
"""

import copy
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from jaxcolor import tasks
from jaxcolor.benchmark.timing import paired
from jaxcolor.benchmark.workload import Workload
from jaxcolor.errors import UserError
from jaxcolor.models import extractors
from jaxcolor.runtime.parallel import DataParallel
from jaxcolor.tasks.state import TrainState
from jaxcolor.weights.published.library import SIDES

if TYPE_CHECKING:
    from jaxcolor.benchmark.torch_published import PublishedInference
    from jaxcolor.benchmark.torch_training import TorchTraining


# Of networks whose batch norms follow ReLUs: rounding moves values across a ReLU's zero, more of them from layer to layer.
_GRADIENT_TOLERANCES = {'eccv16': 0.2}


class LossComparison(NamedTuple):
    """The loss of jaxcolor (ours) and of PyTorch (theirs), its relative error, and the gradient's (norm over norm)."""

    ours: float
    theirs: float
    loss_error: float
    gradient_error: float


def time_beside_torch(workload: Workload, rounds: int, compiled_alone: bool = False) -> dict[str, dict[str, float]]:
    """Times a workload's step in turns with PyTorch's, after `check_same_loss` for training steps.

    For inference of published networks, after `check_same_colors`.

    Args:
        workload: the compiled step, without the aging of photos, which PyTorch's side lacks.
        rounds: of each, at least 0.3 s long.
        compiled_alone: whether to leave out PyTorch without torch.compile.

    Returns:
        {'eager': fields of a `timing.Ratio`, 'compiled': the same}.

    Raises:
        UserError: PyTorch is not installed or computes something else.
    """
    case, config = workload.case, workload.config
    batch = varied_batch(config, case.batch)
    is_published = case.mode == 'infer' and config.model.name in SIDES
    if case.mode == 'train':
        check_same_loss(_less_chaotic(config), batch, gradient_tolerance=_GRADIENT_TOLERANCES.get(config.model.name, 2e-2))
    steps = workload.steps_that_take(0.3)
    ratios = {}
    for name, is_compiled in [('eager', False), ('compiled', True)][compiled_alone:]:
        theirs: Any
        if is_published:
            theirs = published_inference(config, np.array(workload.batch['lightness']), case.precision, is_compiled)
            check_same_colors(workload, theirs)
        else:
            theirs = torch_training(config, batch, case.precision, is_compiled)
        step = theirs.step if case.mode == 'train' else theirs.infer

        def run(theirs=theirs, step=step):
            for _ in range(steps):
                step()
            theirs.synchronize()

        ratio = paired(lambda: workload.run(steps), run, rounds)
        ratios[name] = ratio._replace(ours_s=ratio.ours_s / steps, theirs_s=ratio.theirs_s / steps)._asdict()
    return ratios


def _less_chaotic(config):
    """For comparing gradients: sixteen blocks of batch statistics amplify float32's rounding to a tenth of them."""
    config = copy.deepcopy(config)
    if config.model.name == 'ltbc_lite':
        config.model.encoder_norm = 'frozen'
    return config


def torch_training(*args: Any, **options: Any) -> 'TorchTraining':
    """A `TorchTraining` of these arguments. Raises UserError if PyTorch is not installed."""
    try:
        from jaxcolor.benchmark.torch_training import TorchTraining
    except ImportError as error:
        raise UserError("the comparison needs PyTorch: pip install 'jaxcolor[torch]'.") from error
    return TorchTraining(*args, **options)


def published_inference(*args: Any, **options: Any) -> 'PublishedInference':
    """A `PublishedInference` of these arguments. Raises UserError if PyTorch is not installed."""
    try:
        from jaxcolor.benchmark.torch_published import PublishedInference
    except ImportError as error:
        raise UserError("the comparison needs PyTorch: pip install 'jaxcolor[torch]'.") from error
    return PublishedInference(*args, **options)


def check_same_colors(workload: Workload, theirs: 'PublishedInference', tolerance: float = 1e-3) -> float:
    """Gives a workload of inference PyTorch's weights and compares the a*b* of both.

    Args:
        workload: of a published network.
        theirs: of its config and batch.
        tolerance: of the largest value; float32 is within 1e-4, but thousands of products differ on a GPU; half precision
            is not compared.

    Returns:
        The largest difference over the largest value.

    Raises:
        UserError: they differ.
    """
    converted = theirs.converted()
    state = workload.state.replace(params=converted.params, model_state=converted.model_state)
    workload.state = workload.parallel.replicate(workload.task.folded(state))
    workload.run(1)
    ours, their_ab = np.asarray(workload.result, np.float32), theirs.predict_ab()
    error = float(np.abs(ours - their_ab).max() / np.abs(their_ab).max())
    if workload.case.precision == 'f32' and not error <= tolerance:
        raise UserError(
            f'{workload.config.name}: PyTorch predicts other colors (relative error {error:.1e}), so comparing times would '
            'be meaningless.'
        )
    return error


def check_same_loss(
    config: ConfigDict,
    batch: Mapping[str, Any],
    tolerance: float = 1e-4,
    gradient_tolerance: float = 2e-2,
    seed: int = 0,
    **options: Any,
) -> LossComparison:
    """Takes one training step in jaxcolor and one in PyTorch, in float32, with the same parameters and batch.

    Args:
        config: a recipe; its optimizer is replaced by one whose state after a step is the gradient.
        batch: as in `TorchTraining`.
        tolerance: relative, of the loss.
        gradient_tolerance: relative, of the gradient. Networks without batch norm are within 1e-5; batch norm over few
            photos amplifies rounding (above all in Flax's one-pass variance), the more the more similar they are.
        seed: of the parameters, including biases and batch norms.
        **options: of `TorchTraining`, e.g. `compile`.

    Raises:
        UserError: PyTorch is not installed, or the losses or gradients differ.
    """
    config = copy.deepcopy(config)
    config.model.dtype = 'float32'
    config.optimizer.update({'name': 'sgd', 'momentum': 0.9, 'nesterov': False, 'weight_decay': 0.0, 'clip_norm': 0.0})
    config.optimizer.update({'learning_rate': 1e-3, 'schedule': 'constant', 'warmup_steps': 0})
    config.data.degraded = 0.0  # aging is random
    task: Any = tasks.build(config)
    parallel = DataParallel(devices=jax.devices()[:1])
    state = random_state(task, config, seed)
    theirs = torch_training(config, batch, 'f32', **options)
    theirs.load(state)
    if theirs.adversarial:
        keys = jax.random.split(jax.random.fold_in(state.rng, state.step))
        theirs.set_noise(*(task._noise(key, np.arange(len(batch['lab']))) for key in keys))
    l2 = theirs.l2_loss()  # of the parameters before the step
    their_loss = float(theirs.step()) + l2
    # By default a GPU multiplies in TF32.
    with jax.default_matmul_precision('highest'):
        state, metrics = parallel.map(task.train_step)(parallel.replicate(state), parallel.shard(batch))
    our_loss = float(metrics['loss'] + metrics.get('l1_loss', 0.0))  # the GAN's `loss` excludes its L1 term
    if theirs.adversarial:
        gradients = {name: optax.tree_utils.tree_get(opt, 'trace') for name, opt in state.opt_state.items()}
    else:
        gradients = optax.tree_utils.tree_get(state.opt_state, 'trace')
    ours, their_gradients = theirs.convert(gradients), theirs.gradients()
    # Of frozen layers PyTorch has none, and jaxcolor's are zeros.
    zeros = {name: np.zeros_like(array) for name, array in ours.items()}
    a, b = (np.concatenate([(zeros | arrays)[name].ravel() for name in sorted(ours)]) for arrays in (ours, their_gradients))
    loss_error = abs(our_loss - their_loss) / abs(their_loss)
    comparison = LossComparison(our_loss, their_loss, loss_error, float(np.linalg.norm(a - b) / np.linalg.norm(b)))
    if not (comparison.loss_error <= tolerance and comparison.gradient_error <= gradient_tolerance):
        raise UserError(
            f'{config.name}: PyTorch computes another loss ({their_loss:.6g}, not {our_loss:.6g}) or gradient (relative '
            f'error {comparison.gradient_error:.1e}), so comparing times would be meaningless.'
        )
    return comparison


def varied_batch(config: ConfigDict, size: int, seed: int = 0) -> dict[str, Any]:
    """A batch of random photos that differ in color, contrast and detail.

    Args:
        config: a recipe.
        size: photos of the batch.
        seed: of the photos.

    Returns:
        NumPy arrays {'lab': uint8 (B, crop, crop, 3), 'label': int32 (B,)} and, if the extractor is cached, 'features':
        {name: float32 (B, 1000)}.
    """
    rng, side = np.random.default_rng(seed), config.data.crop
    lab = np.empty((size, side, side, 3), np.float32)
    for i, photo in enumerate(lab):
        cells = 2 ** (1 + i % 4)  # per side
        patches = rng.uniform(-60, 60, (cells, cells, 3)) * (1 + i % 3) / 3 + rng.uniform(40, 215, 3)
        edge = -(-side // cells)
        photo[:] = patches.repeat(edge, 0).repeat(edge, 1)[:side, :side] + rng.normal(0, 4, (side, side, 3))
    classes = max(1, config.model.get('classes', 0))
    batch: dict[str, Any] = {
        'lab': lab.clip(0, 255).astype(np.uint8),
        'label': rng.integers(0, classes, size).astype(np.int32),
    }
    if config.extractor.cached:
        batch['features'] = {config.extractor.name: rng.standard_normal((size, 1000), np.float32)}
    return batch


def random_state(task: Any, config: ConfigDict, seed: int = 0) -> TrainState:
    """A state at step 0 with random parameters, including biases and batch norms, made without compiling.

    Args:
        task: of `config`.
        config: a recipe; an extractor that is not cached gets random weights, too.
        seed: of the parameters.

    Returns:
        A TrainState of NumPy arrays.
    """
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        if name == 'kernel':
            values = rng.standard_normal(leaf.shape) * (2 / math.prod(leaf.shape[:-1])) ** 0.5
        elif name == 'share':  # of the color classes, adding up to 1
            values = rng.dirichlet(np.ones(leaf.size))
        else:
            values = rng.uniform(-0.1, 0.1, leaf.shape) + (name in ('scale', 'var'))
        return values.astype(np.float32)

    state = jax.eval_shape(task.init, jax.random.PRNGKey(seed))
    params, model_state = jax.tree_util.tree_map_with_path(draw, (state.params, state.model_state))
    state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state)
    state = state.replace(params=params, model_state=model_state, rng=np.array([0, seed], np.uint32))
    if state.ema:
        state = state.replace(ema=state.weights())
    if config.extractor.name and not config.extractor.cached:
        state = state.replace(frozen=extractors.random_extractor(config.extractor.name, seed))
    return state
