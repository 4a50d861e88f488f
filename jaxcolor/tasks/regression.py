"""Regression of a* and b*, with or without classification of the scene: the task of all reports but the GAN's."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import optax

from jaxcolor import color, models
from jaxcolor.evaluation import metrics
from jaxcolor.tasks import losses, optimizers
from jaxcolor.errors import UserError
from jaxcolor.models.blocks import upsample
from jaxcolor.runtime.parallel import AXIS, mean_over_batch
from jaxcolor.tasks.state import TrainState, moving_average


class Regression:
    """Error of a*b* (squared by default) + alpha * cross entropy of the class + kernel L2 (Iizuka et al. 2016, eq. 5)."""

    takes_noise = False  # a photo has one answer
    # Of fields of the config's section `task`.
    choices: ClassVar = {'error': ('squared', 'huber'), 'reduction': ('sum', 'mean'), 'loss_resolution': ('output', 'input')}
    ranges: ClassVar = {'huber_delta': (1e-3, 1e3), 'chroma_weight': (0, 1e3), 'chroma_gain': (0, 10)}

    def __init__(self, config):
        self.loss = config.task
        self.activation = config.model.output_activation
        self.crop = config.data.crop
        self.extractor, self.cached = config.extractor.name, config.extractor.cached
        for field, choices in self.choices.items():
            if self.loss[field] not in choices:
                raise UserError(f'task.{field}: {self.loss[field]!r} is none of {", ".join(choices)}.')
        for field, (low, high) in self.ranges.items():
            if not low <= self.loss[field] <= high:
                raise UserError(f'task.{field} must lie between {low} and {high}, not {self.loss[field]}.')
        if self.activation not in color.AB_RANGE:
            raise UserError(f'model.output_activation: {self.activation!r} is none of {", ".join(color.AB_RANGE)}.')
        if config.model.get('color_classes') and config.task.name == 'regression':
            raise UserError('model.color_classes is for task.name=color_classes; set it to 0 for a regression.')
        self.network = models.build(config.model, AXIS if config.train.cross_device_batch_norm else None)
        self.schedule = optimizers.schedule(config.optimizer, config.train.steps, config.train.batch_size)
        self.optimizer = optimizers.build(config.optimizer, config.train.steps, config.train.batch_size)
        self.parts, self.ema = config.train.accumulation_steps, config.train.ema
        self.mirror = self.loss.get('mirror', False)  # runs of before this field have none

    def init(self, rng) -> TrainState:
        """A fresh state. rng: uint32 (2,) key."""
        init_rng, rng = jax.random.split(rng)
        vector = (jnp.zeros((1, 1000)),) if self.extractor else ()
        variables = self.network.init(init_rng, jnp.zeros((1, self.crop, self.crop, 1)), *vector)
        params = variables.pop('params')
        state = TrainState(jnp.zeros((), jnp.int32), params, variables, self.optimizer.init(params), rng)
        return state.replace(ema=state.averages() if self.ema else ())

    def train_step(self, state: TrainState, batch):
        """One step of one device on its share of the batch; gradients and batch statistics are averaged over AXIS."""

        def loss_of(params, batch):
            outputs, model_state = self._apply(state.replace(params=params), batch, train=True)
            terms = {name: jnp.mean(each) for name, each in self._terms(outputs, batch, state.model_state).items()}
            model_state = self._observed(model_state, outputs, batch, state.step)
            if self.loss.kernel_l2:
                terms['l2_loss'] = self.loss.kernel_l2 * losses.kernel_l2(params, self.loss.kernel_l2_excluded)
            return sum(terms.values()), (terms, model_state)

        def of_part(batch):
            (loss, (terms, model_state)), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params, batch)
            return grads, model_state, {'loss': loss, **terms}

        grads, model_state, measured = mean_over_batch(of_part, batch, self.parts)
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
        measured |= {'grad_norm': optax.tree.norm(grads), 'learning_rate': jnp.asarray(self.schedule(state.step))}
        state = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            model_state=model_state,
            opt_state=opt_state,
        )
        return state.replace(ema=moving_average(state, self.ema)), measured

    def eval_step(self, state: TrainState, batch):
        """Loss terms of each photo, and whether its class is found, {name: (B,)}; its a*b*, float32 (B, H, W, 2)."""
        averaged = state.averaged()
        outputs, _ = self._apply(averaged, batch, train=False)
        terms = self._terms(outputs, batch, state.model_state)
        found = {}
        if 'logits' in outputs:
            found = {f'top{k}': metrics.top_k(outputs['logits'], batch['label'], k) for k in (1, 5)}
        ab = self._colors(outputs, batch['lab'].shape[1:3], averaged.model_state)
        if self.mirror:
            lightness, *vector = self._inputs(averaged, batch)
            ab = (ab + self._of_mirror_image(averaged, lightness, vector)) / 2
        return {'loss': sum(terms.values()), **terms, **found}, ab

    def predict(self, state: TrainState, lightness, rng=None, features=None):
        """L* (B, H, W, 1) in [0, 100] -> a*b* float32 (B, H, W, 2).

        rng is unused: a photo has one answer here. features: what `describe` gave for other photos, in place of what
        these photos' own would be.
        """
        del rng
        vector = self._vector(state, lightness) if features is None else (features,)
        averaged = state.averaged()
        ab = self._answer(averaged, lightness, vector)
        return (ab + self._of_mirror_image(averaged, lightness, vector)) / 2 if self.mirror else ab

    def describe(self, state: TrainState, lightness):
        """L* (B, H, W, 1) in [0, 100] -> the vector (B, G) that is joined to every pixel at the fusion."""
        if self.extractor:
            return state.frozen(lightness, self.network.dtype)
        return self.network.apply(_variables(state.averaged()), color.normalize_l(lightness), method='describe')[0]

    def _apply(self, state, batch, train):
        """-> (the network's outputs, the new model_state)"""
        lightness, *vector = self._inputs(state, batch)
        lightness = color.normalize_l(lightness)
        training = {'train': train, 'rngs': {'dropout': jax.random.fold_in(state.rng, state.step)} if train else None}
        if train and state.model_state:
            training |= {'mutable': list(state.model_state)}
            return self.network.apply(_variables(state), lightness, *vector, **training)
        return self.network.apply(_variables(state), lightness, *vector, **training), state.model_state

    def _inputs(self, state, batch):
        """A batch's L* (B, H, W, 1) and, where the network takes it, its vector (B, 1000)."""
        lightness = color.decode_lab(batch['lab'])[..., :1]
        return lightness, *((batch['features'][self.extractor],) if self.cached else self._vector(state, lightness))

    def _answer(self, averaged, lightness, vector):
        """L* (B, H, W, 1) -> a*b* (B, H, W, 2)"""
        outputs = self.network.apply(_variables(averaged), color.normalize_l(lightness), *vector)
        return self._colors(outputs, lightness.shape[1:3], averaged.model_state)

    def _of_mirror_image(self, averaged, lightness, vector):
        """What is answered for the photo flipped left to right, flipped back."""
        return self._answer(averaged, lightness[:, :, ::-1], vector)[:, :, ::-1]

    def _observed(self, model_state, outputs, batch, step):
        """The model_state, with what a task itself keeps of the batches it is trained on."""
        del outputs, batch, step
        return model_state

    def _vector(self, state, lightness):
        """What the network takes beside the photo: (the extractor's vector,), or () to let it find its own."""
        return (state.frozen(lightness, self.network.dtype),) if self.extractor else ()

    def _terms(self, outputs, batch, model_state):
        """The loss's terms for each photo, {name: (B,)}."""
        terms = {'color_loss': self._color_loss(outputs, batch, model_state)}
        if 'logits' in outputs and self.loss.alpha:
            terms['class_loss'] = self.loss.alpha * losses.cross_entropy(outputs['logits'], batch['label'])
        return terms

    def _color_loss(self, outputs, batch, model_state):
        """Of each photo, (B,)."""
        del model_state
        target = color.normalize_ab(color.decode_lab(batch['lab'])[..., 1:], self.activation)
        ab = outputs['ab']
        if self.loss.loss_resolution == 'output':
            target = resize(target, ab.shape[1:3])
        else:
            ab = resize(ab, target.shape[1:3])
        return self._color_error(ab, target)

    def _color_error(self, ab, target):
        """(B, H, W, 2) each, in the network's range -> (B,)"""
        delta = weight = None
        if self.loss.error == 'huber':
            delta = self.loss.huber_delta / color.AB_RANGE[self.activation][0]
        if self.loss.chroma_weight:
            chroma = jnp.linalg.norm(color.denormalize_ab(target, self.activation), axis=-1)
            weight = 1 + self.loss.chroma_weight / 100 * chroma
        return losses.color_error(ab, target, self.loss.reduction, delta, weight)

    def _colors(self, outputs, size, model_state):
        """The network's output -> a*b* (B, H, W, 2) at the photo's size."""
        del model_state
        ab = color.denormalize_ab(outputs['ab'], self.activation) * self.loss.chroma_gain
        if self.loss.loss_resolution == 'output':
            return jax.image.resize(ab, (ab.shape[0], *size, 2), 'linear')
        return resize(ab, size)


def _variables(state):
    return {'params': state.params, **state.model_state}


def resize(x, size):
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
