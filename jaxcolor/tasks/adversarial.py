"""A generator of colors against a discriminator of photos, in YUV (Kraev, Safarani, Meyer; after arXiv:1702.06674)."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxcolor import color
from jaxcolor.errors import UserError
from jaxcolor.runtime.parallel import AXIS, mean_over_batch
from jaxcolor.tasks import losses
from jaxcolor.tasks.state import TrainState, update_ema
from jaxcolor.tasks.task import Batch, Metrics, Task


class Adversarial(Task):
    """Cross-entropy GAN loss, plus an L1 term for the generator where settings.l1 asks for it.

    Here a "yuv" is Y in [0, 1], joined to U and V in the range of the generator's output: photos are scaled to it.
    A step trains the discriminator on the batch's photos and on colors generated for them, then the generator against
    the updated discriminator, with fresh noise. State: params, model_state (batch statistics) and opt_state are
    {'generator': ..., 'discriminator': ...}.
    """

    takes_noise = True  # other noise, other colors

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.network.size != self.crop:
            raise UserError(f'model.size is {self.network.size}, data.crop {self.crop}: the GAN needs both the same.')
        self.activation = self.network.output_activation

    def network_inputs(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Y and z: (1, size, size, 1), (1, noise_size)."""
        size, noise_size = self.network.size, self.network.noise_size
        return tuple(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in [(1, size, size, 1), (1, noise_size)])

    def init(self, rng: jax.Array) -> TrainState:
        """A fresh state. rng: uint32 (2,) key."""
        init_rng, rng = jax.random.split(rng)
        variables = self.network.init(init_rng, *(jnp.zeros(each.shape) for each in self.network_inputs()))
        params, statistics = variables['params'], variables['batch_stats']
        opt_state = {name: self.optimizer.init(params[name]) for name in params}
        state = TrainState(jnp.zeros((), jnp.int32), params, statistics, opt_state, rng)
        return state.replace(ema=state.weights() if self.ema else ())

    def train_step(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """One half-step of the discriminator, one of the generator, of one device on its share of the batch."""
        yuv = self._photos(batch['lab'])
        # A photo's noise comes from its index in the global batch, so that the number of devices changes nothing.
        indices = lax.axis_index(AXIS) * len(yuv) + jnp.arange(len(yuv))
        keys = jax.random.split(jax.random.fold_in(state.rng, state.step))
        first, second = (self._noise(key, indices) for key in keys)
        state, discriminator_metrics = self.discriminator_step(state, yuv, first)
        state, generator_metrics = self.generator_step(state, yuv, second, color.decode_lab(batch['lab'])[..., 1:])
        metrics = {**discriminator_metrics, **generator_metrics}
        metrics['loss'] = metrics['discriminator_loss'] + metrics['generator_loss']
        metrics['learning_rate'] = jnp.asarray(self.schedule(state.step))
        state = state.replace(step=state.step + 1)
        return state.replace(ema=update_ema(state, self.ema)), metrics

    def discriminator_step(self, state: TrainState, yuv: jax.Array, noise: jax.Array) -> tuple[TrainState, Metrics]:
        """Trains the discriminator alone to tell yuv (B, H, W, 3) from the generator's output for its Y and noise (B, Z)."""

        def loss_fn(own, yuv, noise):
            # The generator is in its training mode, as when it is trained, but its statistics are not kept.
            chroma, _ = self._run(state.params, state.model_state, 'generate', yuv[..., :1], noise)
            fake = lax.stop_gradient(jnp.concatenate([yuv[..., :1], chroma], axis=-1))
            params = {**state.params, 'discriminator': own}
            # Photos and fakes pass one after the other, each normalized by its own statistics.
            real_logits, statistics = self._run(params, state.model_state, 'discriminate', yuv)
            fake_logits, statistics = self._run(params, statistics, 'discriminate', fake)
            loss, metrics = losses.discriminator_loss(real_logits, fake_logits, self.settings.real_label)
            return loss, (metrics, statistics['discriminator'])

        return self._update(state, 'discriminator', loss_fn, yuv, noise)

    def generator_step(
        self, state: TrainState, yuv: jax.Array, noise: jax.Array, ab: jax.Array
    ) -> tuple[TrainState, Metrics]:
        """Trains the generator alone to fool the discriminator, for the Y of yuv (B, H, W, 3) and noise (B, Z).

        ab: the photos' a*b* (B, H, W, 2), to measure it; not computed from yuv, where rounding would decide equal channels.
        """

        def loss_fn(own, yuv, noise, ab):
            params = {**state.params, 'generator': own}
            chroma, statistics = self._run(params, state.model_state, 'generate', yuv[..., :1], noise)
            fake = jnp.concatenate([yuv[..., :1], chroma], axis=-1)
            logits, _ = self._run(params, state.model_state, 'discriminate', fake)
            loss = jnp.mean(losses.fooling_loss(logits))
            agreement = losses.larger_channel_agreement(self._ab(lax.stop_gradient(fake)), ab)
            metrics = {
                'generator_loss': loss,
                'generator_fools': losses.share(logits > 0),
                'larger_channel_agreement': jnp.mean(agreement),
            }
            if self.settings.l1:
                metrics['l1_loss'] = self.settings.l1 * jnp.mean(self._uv_error(chroma, yuv[..., 1:]))
                loss += metrics['l1_loss']
            return loss, (metrics, statistics['generator'])

        return self._update(state, 'generator', loss_fn, yuv, noise, ab)

    def eval_step(self, state: TrainState, batch: Batch) -> tuple[Metrics, jax.Array]:
        """Metrics of each photo, {name: (B,)}, and its generated a*b*, float32 (B, H, W, 2).

        `loss` is the mean absolute error in U and V: a GAN's own losses do not measure its progress.
        """
        state, yuv = state.for_inference(), self._photos(batch['lab'])
        # A photo's noise is seeded by its pixels, so that the batch that it comes in changes nothing.
        seeds = jnp.sum(batch['lab'].astype(jnp.uint32), axis=(1, 2, 3), dtype=jnp.uint32)
        chroma = self._generate(state, yuv[..., :1], self._noise(state.rng, seeds))
        fake = jnp.concatenate([yuv[..., :1], chroma], axis=-1)
        real_logits, fake_logits = (self._discriminate(state, x) for x in (yuv, fake))
        each = {
            'loss': self._uv_error(chroma, yuv[..., 1:]),
            'accuracy_on_photos': (real_logits > 0).astype(jnp.float32),
            'accuracy_on_generated': (fake_logits < 0).astype(jnp.float32),
        }
        return each, self._ab(fake)

    def predict(self, state: TrainState, lightness: jax.Array, rng: jax.Array) -> jax.Array:
        """L* (B, H, W, 1) in [0, 100] -> a*b* float32 (B, H, W, 2); rng, uint32 (2,), decides the noise."""
        luma = color.gray_luma(lightness)
        chroma = self._generate(state.for_inference(), luma, self._noise(rng, jnp.arange(lightness.shape[0])))
        return self._ab(jnp.concatenate([luma, chroma], axis=-1))

    def _photos(self, lab):
        """uint8 Lab (B, H, W, 3) -> yuv (B, H, W, 3)."""
        yuv = _yuv(lab)
        return jnp.concatenate([yuv[..., :1], color.normalize(yuv[..., 1:], 'yuv', self.activation)], axis=-1)

    def _ab(self, yuv):
        """yuv (B, H, W, 3) -> the a*b* (B, H, W, 2) of that color."""
        yuv = jnp.concatenate([yuv[..., :1], color.denormalize(yuv[..., 1:], 'yuv', self.activation)], axis=-1)
        return color.rgb_to_lab(color.yuv_to_rgb(yuv))[..., 1:]

    def _uv_error(self, prediction, target):
        """Mean absolute error of U and V (B, H, W, 2), in units of [0, 1] whatever their range -> (B,)."""
        return color.UNIT_RANGE[self.activation][0] * losses.absolute_error(prediction, target)

    def _noise(self, rng, seeds):
        """z for photos of these seeds (B,) -> (B, noise_size), uniform in [-1, 1]."""

        def draw(seed):
            return jax.random.uniform(jax.random.fold_in(rng, seed), (self.network.noise_size,), minval=-1.0)

        return jax.vmap(draw)(seeds)

    def _discriminate(self, state, yuv) -> Any:
        return self.network.apply(_variables(state), yuv, method='discriminate')

    def _generate(self, state, luma, noise) -> Any:
        return self.network.apply(_variables(state), luma, noise, method='generate')

    def _run(self, params, statistics, method, *inputs):
        """A network in its training mode -> (its output, both networks' statistics)."""
        variables = {'params': params, 'batch_stats': statistics}
        output, new = self.network.apply(variables, *inputs, method=method, train=True, mutable=['batch_stats'])
        return output, {**statistics, **new['batch_stats']}

    def _update(self, state, name, loss_fn, *batch):
        """One optimizer step of one of the two networks; gradients and statistics are averaged over AXIS."""

        def gradients(part):
            (_, (metrics, statistics)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params[name], *part)
            return grads, metrics, statistics

        grads, metrics, statistics = mean_over_batch(gradients, batch, self.accumulation_steps)
        updates, opt_state = self.optimizer.update(grads, state.opt_state[name], state.params[name])
        state = state.replace(
            params={**state.params, name: optax.apply_updates(state.params[name], updates)},
            model_state={**state.model_state, name: statistics},
            opt_state={**state.opt_state, name: opt_state},
        )
        return state, metrics


def _variables(state):
    return {'params': state.params, 'batch_stats': state.model_state}


def _yuv(lab):
    """uint8 Lab (B, H, W, 3) -> YUV (B, H, W, 3), every channel in [0, 1]."""
    return color.rgb_to_yuv(color.lab_to_rgb(color.decode_lab(lab)))
