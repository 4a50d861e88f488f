"""What the tasks share whose network maps L* to a*b*: the training step, evaluation and prediction."""

import abc
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from ml_collections import ConfigDict

from jaxcolor import color
from jaxcolor.errors import UserError
from jaxcolor.models.folding import fold_batch_norms, layout
from jaxcolor.models.layers import upsample
from jaxcolor.models.parts import by_photo
from jaxcolor.runtime.parallel import mean_over_batch
from jaxcolor.tasks import losses
from jaxcolor.tasks.degrade import degrade
from jaxcolor.tasks.state import TrainState, update_ema
from jaxcolor.tasks.task import Batch, Task

Outputs = Mapping[str, jax.Array]


class AbTask(Task):
    """Base of `Regression` and `ColorClasses`, which give it `loss_terms` and `decode`.

    The network maps L*/100 (B, H, W, 1), and an extractor's vector where there is one, to {name: output}.

    Args:
        extractor: key of `extractors.NETWORKS`, '' for none.
        cached_features: whether a batch brings the extractor's vectors.
        degradations: the config's section `data`: what `degrade` does to L* in training; None: nothing.
        frozen_layers: the network's layers that the training leaves as they are; it computes no gradients to them.
        others: as for `Task`.
    """

    def __init__(
        self,
        *args: Any,
        extractor: str = '',
        cached_features: bool = False,
        degradations: ConfigDict | None = None,
        frozen_layers: Collection[str] = (),
        **others: Any,
    ):
        super().__init__(*args, **others)
        self.extractor, self.cached_features, self.degradations = extractor, cached_features, degradations
        self.frozen_layers = frozen_layers

    # -- What a task defines ------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def loss_terms(self, outputs: Outputs, batch: Batch, model_state: Mapping[str, Any]) -> dict[str, jax.Array]:
        """The color terms of the loss for each photo, {name: (B,)}."""

    @abc.abstractmethod
    def decode(self, outputs: Outputs, lightness: jax.Array, model_state: Mapping[str, Any]) -> jax.Array:
        """The network's outputs and the L* (B, H, W, 1) that they are for -> a*b* float32 (B, H, W, 2)."""

    agreement_stride = 1  # the training step's agreement is of every such row and column of the network's output

    def init_statistics(self) -> dict[str, Any]:
        """Collections of model_state that the task itself keeps; none by default."""
        return {}

    def update_statistics(
        self, model_state: Mapping[str, Any], outputs: Outputs, batch: Batch, step: jax.Array
    ) -> Mapping[str, Any]:
        """The model_state after a batch; unchanged by default."""
        return model_state

    # -- The interface of a task --------------------------------------------------------------------------------------

    def network_inputs(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """L*/100 and, where there is an extractor, its vector: (1, crop, crop, 1), (1, 1000)."""
        shapes = [(1, self.crop, self.crop, 1), *([(1, 1000)] if self.extractor else [])]
        return tuple(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)

    def init(self, rng: jax.Array) -> TrainState:
        """A fresh state. rng: uint32 (2,) key."""
        init_rng, rng = jax.random.split(rng)
        variables = self.network.init(init_rng, *(jnp.zeros(each.shape) for each in self.network_inputs()))
        params = variables.pop('params')
        model_state = {**variables, **self.init_statistics()}
        state = TrainState(jnp.zeros((), jnp.int32), params, model_state, self.optimizer.init(params), rng)
        return state.replace(ema=state.weights() if self.ema else ())

    def weight_shapes(self) -> dict[str, Any]:
        """As of `Task`."""
        variables = layout(self.network, self.network_inputs()).shapes | jax.eval_shape(self.init_statistics)
        return {'params': variables.pop('params'), 'model_state': variables}

    def train_step(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        """One step of one device on its share of the batch; gradients and batch statistics are averaged over AXIS."""
        return self.network_step(state, batch, lambda outputs, part: {})

    def network_step(
        self, state: TrainState, batch: Batch, further_terms: Callable[[Outputs, Batch], dict[str, jax.Array]]
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """`train_step` with more terms of the loss for each photo of a part of the batch, {name: (B,)}."""

        def loss_fn(params, batch):
            params = {name: lax.stop_gradient(part) if name in self.frozen_layers else part for name, part in params.items()}
            outputs, model_state = self._train_forward(state.replace(params=params), *self._inputs(state, batch, True))
            each = self._all_terms(outputs, batch, state.model_state) | further_terms(outputs, batch)
            terms = {name: jnp.mean(values) for name, values in each.items()}
            model_state = self.update_statistics(model_state, outputs, batch, state.step)
            if self.settings.kernel_l2:
                terms['l2_loss'] = self.settings.kernel_l2 * losses.kernel_l2(params, self.settings.kernel_l2_excluded)
            return sum(terms.values()), ({**terms, **self._accuracies(outputs, batch, state.model_state)}, model_state)

        def gradients(batch):
            (loss, (metrics, model_state)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params, batch)
            return grads, model_state, {'loss': loss, **metrics}

        grads, model_state, metrics = mean_over_batch(gradients, batch, self.accumulation_steps)
        if 'top1' in metrics:
            metrics['top1'] /= metrics.pop('labeled')  # NaN where no photo has a label
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
        metrics |= {'grad_norm': optax.tree.norm(grads), 'learning_rate': jnp.asarray(self.schedule(state.step))}
        state = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            model_state=model_state,
            opt_state=opt_state,
        )
        return state.replace(ema=update_ema(state, self.ema)), metrics

    def eval_step(self, state: TrainState, batch: Batch) -> tuple[dict[str, jax.Array], jax.Array]:
        """Loss terms of each photo and whether its class is found, {name: (B,)}; its a*b*, float32 (B, H, W, 2)."""
        averaged = state.for_inference()
        inputs = self._inputs(averaged, batch)
        outputs = self._forward(averaged, *inputs)
        terms = self._all_terms(outputs, batch, state.model_state)
        metrics = {'loss': sum(terms.values()), **terms}
        if 'logits' in outputs:
            metrics |= {f'top{k}': losses.top_k_accuracy(outputs['logits'], batch['label'], k) for k in (1, 5)}
        ab = self.decode(outputs, inputs[0], averaged.model_state)
        return metrics, self._average_with_mirror_image(self._predict_ab, ab, averaged, *inputs)

    def predict(
        self,
        state: TrainState,
        lightness: jax.Array,
        rng: jax.Array | None = None,
        global_features: jax.Array | None = None,
        hints: jax.Array | None = None,
    ) -> jax.Array:
        """L* (B, H, W, 1) in [0, 100] -> a*b* float32 (B, H, W, 2).

        Args:
            rng: unused: a photo has one prediction here.
            global_features: of other photos, as `global_features` gives them, in place of these photos' own.
            hints: for networks that take hints: a*b* and 1 where there is one, else 0, 0 and 0; float (B, H, W, 3).
        """
        given = global_features if hints is None else hints
        features = self._features(state, lightness) if given is None else (given,)
        averaged = state.for_inference()
        predict_ab = jax.jit(self._predict_ab)  # traced once for the photo and its mirror image
        ab = predict_ab(averaged, lightness, *features)
        return self._average_with_mirror_image(predict_ab, ab, averaged, lightness, *features)

    def folded(self, state: TrainState) -> TrainState:
        """As of `Task`."""
        state = state.for_inference()
        variables = fold_batch_norms(self.network, _variables(state), *self.network_inputs())
        return state.replace(params=variables.pop('params'), model_state=variables)

    def global_features(self, state: TrainState, lightness: jax.Array) -> jax.Array:
        """L* (B, H, W, 1) in [0, 100] -> the vector (B, G) that is joined to every pixel at the fusion.

        Raises:
            UserError: the network has none.
        """
        if self.extractor:
            return state.frozen(lightness, self.network.dtype)
        if not hasattr(self.network, 'global_features'):
            raise UserError(f'{type(self.network).__name__.lower()} has no global features, so it takes no style.')
        variables = _variables(state.for_inference())
        return self.network.apply(variables, color.normalize_l(lightness), method='global_features')[0]

    # -- Steps of these -----------------------------------------------------------------------------------------------

    def _forward(self, state, lightness, *features):
        """-> the network's outputs"""
        return by_photo(_variables(state), color.normalize_l(lightness), *features, function=self.network.apply)

    def _train_forward(self, state, lightness, *features):
        """-> (the network's outputs in training mode, the new model_state)"""
        training = {'train': True, 'rngs': {'dropout': jax.random.fold_in(state.rng, state.step)}}
        inputs = color.normalize_l(lightness), *features
        if not state.model_state:
            return self.network.apply(_variables(state), *inputs, **training), state.model_state
        return self.network.apply(_variables(state), *inputs, **training, mutable=list(state.model_state))

    def _inputs(self, state, batch, training=False):
        """A batch's L* (B, H, W, 1), aged in training, and, where the network takes it, its extractor's vector (B, 1000)."""
        lightness = color.decode_lab(batch['lab'])[..., :1]
        if training and self.degradations is not None:
            lightness = degrade(lightness, jax.random.fold_in(state.rng, state.step), self.degradations)
        if self.cached_features:
            return lightness, batch['features'][self.extractor]
        return lightness, *self._features(state, lightness)

    def _features(self, state, lightness):
        """The network's second input: (the extractor's vector,), or () where the network has global features of its own."""
        return (state.frozen(lightness, self.network.dtype),) if self.extractor else ()

    def _predict_ab(self, averaged, lightness, *features):
        """L* (B, H, W, 1) -> a*b* (B, H, W, 2)"""
        return self.decode(self._forward(averaged, lightness, *features), lightness, averaged.model_state)

    def _average_with_mirror_image(self, predict_ab, ab, averaged, lightness, *features):
        """The mean of ab and of the prediction for the flipped photo, flipped back, where settings.mirror asks for it."""
        if not self.settings.mirror:
            return ab
        flipped = [x[:, :, ::-1] if x.ndim == 4 else x for x in (lightness, *features)]  # not vectors
        return (ab + predict_ab(averaged, *flipped)[:, :, ::-1]) / 2

    def _all_terms(self, outputs, batch, model_state):
        """The loss's terms for each photo, {name: (B,)}."""
        terms = self.loss_terms(outputs, batch, model_state)
        if 'logits' in outputs and self.settings.alpha:
            terms['class_loss'] = self.settings.alpha * losses.cross_entropy(outputs['logits'], batch['label'])
        return terms

    def _accuracies(self, outputs, batch, model_state):
        """Means over a training batch: of `losses.larger_channel_agreement`, at the size of the network's output; and, where
        there is a classifier, the share of photos that have a label and whose class is found, and of those that have one."""
        outputs, every = lax.stop_gradient(outputs), self.agreement_stride
        size = next(x.shape[1:3] for x in outputs.values() if x.ndim == 4)
        truth = resize(color.decode_lab(batch['lab']), size)[:, ::every, ::every]  # (B, h, w, 3)
        some = {name: x[:, ::every, ::every] if x.ndim == 4 else x for name, x in outputs.items()}
        agreement = losses.larger_channel_agreement(self.decode(some, truth[..., :1], model_state), truth[..., 1:])
        shares = {'larger_channel_agreement': jnp.mean(agreement)}
        if 'logits' in outputs:
            found = losses.top_k_accuracy(outputs['logits'], batch['label'], 1)
            labeled = (batch['label'] >= 0).astype(jnp.float32)
            shares |= {'top1': jnp.mean(jnp.nan_to_num(found)), 'labeled': jnp.mean(labeled)}
        return shares


def _variables(state):
    return {'params': state.params, **state.model_state}


def resize(x: jax.Array, size: tuple[int, ...]) -> jax.Array:
    """(B, H, W, C) -> (B, *size, C): whole factors by mean down and by repetition up, others linearly."""
    B, H, W, C = x.shape
    h, w = size
    if (h, w) == (H, W):
        return x
    factor = H // h
    if (factor * h, factor * w) == (H, W):
        return jnp.mean(x.reshape(B, h, factor, w, factor, C), axis=(2, 4))
    if (h, w) == (2 * H, 2 * W):
        return upsample(x)
    return jax.image.resize(x, (B, h, w, C), 'linear')
