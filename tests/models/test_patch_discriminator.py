"""DDColor's discriminator: sizes, spectral norm, patches, and its part in a training step."""

import jax
import numpy as np
import pytest
from helpers import batch_of, small_recipe

from jaxcolor import config as base
from jaxcolor import models, tasks
from jaxcolor.errors import UserError
from jaxcolor.models.cgan import Discriminator
from jaxcolor.models.patch_discriminator import PatchDiscriminator
from jaxcolor.runtime.parallel import DataParallel


def test_parameters_and_patches():
    network = models.build_discriminator(base.ddcolor())
    assert isinstance(network, PatchDiscriminator)
    assert type(models.build_discriminator(base.ltbc())) is Discriminator
    photos = jax.ShapeDtypeStruct((2, 96, 64, 3), np.float32)
    logits, variables = jax.eval_shape(lambda x: network.init_with_output(jax.random.key(0), x, False), photos)
    assert logits.shape == (2, 3, 1)
    # Weights and biases; a 1x1 convolution each of 128 channels for query, key (16) and value, and a gain; no last bias.
    sizes = [
        (3, 64, 4),
        (64, 64, 3),
        (64, 128, 4),
        (128, 128, 3),
        (128, 256, 4),
        (256, 256, 3),
        (256, 512, 4),
        (512, 512, 3),
    ]
    expected = sum(i * o * k * k + o for i, o, k in sizes) + 128 * (16 + 16 + 128) + 1 + 512 * 4 * 4
    assert sum(leaf.size for leaf in jax.tree.leaves(variables['params'])) == expected


@pytest.mark.slow
def test_spectral_norms():
    network = PatchDiscriminator(width=1 / 16)
    photo = np.random.default_rng(0).uniform(size=(1, 64, 64, 3)).astype(np.float32)
    variables = network.init(jax.random.key(0), photo, False)

    @jax.jit
    def step(variables, photo):
        logits, new = network.apply(variables, photo, True, mutable='batch_stats')
        return logits, {**variables, **new}

    for _ in range(30):
        logits, variables = step(variables, photo)
    norms = variables['batch_stats']
    kernel = np.asarray(variables['params']['conv_3']['kernel'])
    sigma = np.linalg.norm(kernel.reshape(-1, kernel.shape[-1]), 2)
    np.testing.assert_allclose(norms['SpectralNorm_3']['conv_3/kernel/sigma'], sigma, rtol=1e-2)
    # Scaled kernels are the same layer, but for biases, which are 0 at first.
    scaled = jax.tree.map(lambda x: 3 * x if x.ndim == 4 else x, variables['params'])
    again = step({**variables, 'params': scaled}, photo)[0]
    np.testing.assert_allclose(again, logits, rtol=1e-3, atol=1e-5)


def test_small_photos_are_refused():
    with pytest.raises(UserError, match="data.crop: ddcolor's discriminator needs 64 pixels"):
        PatchDiscriminator().init(jax.random.key(0), np.zeros((1, 64, 63, 3), np.float32), False)


@pytest.mark.slow
def test_a_step_trains_both():
    config = small_recipe('ddcolor')
    config.task.adversarial, config.data.crop = 0.1, 64
    config.train.cross_device_batch_norm = False
    task, parallel = tasks.build(config), DataParallel(devices=jax.devices()[:1])
    state = parallel.create(task.init, jax.random.PRNGKey(0))
    after, metrics = jax.device_get(parallel.map(task.train_step)(state, parallel.shard(batch_of(2, 64))))
    terms = ('color_loss', 'colorfulness_loss', 'adversarial_loss')
    assert metrics['loss'] == pytest.approx(sum(metrics[term] for term in terms), rel=1e-5)
    assert metrics['adversarial_loss'] > 0 and 0 <= metrics['accuracy_on_photos'] <= 1
    before = jax.device_get(state)
    for part in (lambda each: each.params['refine'], lambda each: each.opt_state['adversary']['params']['conv_0']):
        assert any(np.any(a != b) for a, b in zip(*(jax.tree.leaves(part(each)) for each in (before, after)), strict=True))
