"""What each degradation does to lightness; that it hits training alone, and does not depend on the batch."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import small_recipe
from PIL import Image

from jaxcolor import color, config, tasks
from jaxcolor.errors import UserError
from jaxcolor.runtime.parallel import DataParallel
from jaxcolor.tasks import degrade

SIDE = 64
FIELDS = [each.field for each in degrade.Degradation]


@pytest.fixture(scope='module')
def photos():
    """Eight photos with a slope, a wave, an edge and fine detail: L*, float32 (8, SIDE, SIDE, 1) in [5, 95]."""
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    rng = np.random.default_rng(0)
    planes = [
        50 + 20 * np.sin(9 * x + i) * np.cos(7 * y) + 20 * (x > 0.3 + i / 20) + 4 * rng.normal(size=x.shape)
        for i in range(8)
    ]
    return np.clip(planes, 5, 95).astype(np.float32)[..., None]


def flat(level, count=8):
    """Flat photos: that they are equal is harmless, as each call has another key."""
    return np.full((count, SIDE, SIDE, 1), level, np.float32)


def aged(lightness, key=0, degraded=1.0, **strengths):
    data = config.data()
    data.update({'degraded': degraded, **strengths})
    return np.asarray(degrade.degrade(jnp.asarray(lightness), jax.random.PRNGKey(key), data))


def over_keys(lightness, count=12, **strengths):
    """(count, H, W): the first photo with other keys."""
    data = config.data()
    data.update({'degraded': 1.0, **strengths})
    one = jax.jit(lambda x, key: degrade.degrade(x, key, data))
    return np.stack([one(jnp.asarray(lightness[:1]), jax.random.PRNGKey(key))[0, ..., 0] for key in range(count)])


def test_nothing_changes_by_default(photos):
    np.testing.assert_array_equal(aged(photos), photos)
    np.testing.assert_array_equal(aged(photos, degraded=0.0, **degrade.STRONG), photos)
    assert degrade.STRONG.keys() == set(FIELDS)


@pytest.mark.parametrize('field', FIELDS)
def test_each_stays_in_range_and_varies_with_key_and_photo(photos, field):
    strength = {field: degrade.STRONG[field]}
    one, other = aged(photos, 0, **strength), aged(photos, 1, **strength)
    assert one.shape == photos.shape and one.dtype == np.float32
    assert one.min() >= 0 and one.max() <= 100
    assert np.mean([np.abs(a - b).max() > 0.01 for a, b in zip(one, other, strict=True)]) > 0.7
    np.testing.assert_array_equal(one, aged(photos, 0, **strength))


def test_it_does_not_depend_on_the_batch(photos):
    whole, turned = aged(photos, **degrade.STRONG), aged(np.roll(photos, -3, axis=0)[:5], **degrade.STRONG)
    np.testing.assert_allclose(np.roll(whole, -3, axis=0)[:5], turned, atol=1e-3)


def test_a_field_changes_nothing_of_another_one(photos):
    """What `blur` draws is the same with `scratches` as without."""
    blurred, both = aged(photos, blur=2.0), aged(photos, blur=2.0, scratches=1)
    assert np.mean(np.isclose(blurred, both, atol=1e-3)) > 0.85


def test_a_share_of_the_photos_is_hit(photos):
    many = np.concatenate([photos] * 8) + np.arange(64, dtype=np.float32)[:, None, None, None] / 20
    changed = np.abs(aged(many, degraded=0.3, gamma=1.0) - many).max(axis=(1, 2, 3)) > 1e-3
    assert 0.1 < changed.mean() < 0.55


def test_blur_spreads_a_point_and_keeps_its_light():
    point = flat(0.0)
    point[:, SIDE // 2, SIDE // 2] = 100
    y = np.arange(SIDE) - SIDE // 2
    widths = []
    for blurred in over_keys(point, blur=2.0):
        np.testing.assert_allclose(blurred.sum(), 100, rtol=1e-4)
        widths.append(np.sqrt((blurred.sum(axis=1) * y**2).sum() / 100))
    assert max(widths) <= 2.0 and max(widths) > 1.2 and min(widths) < 0.8


def test_exposure_multiplies_linear_light(photos):
    middle = np.clip(photos, 30, 60)
    stops = []
    for exposed in over_keys(middle, exposure=1.0):
        light, before = (
            np.asarray(color.srgb_to_linear(color.lab_to_rgb(color.gray_lab(x)))) for x in (exposed[..., None], middle[0])
        )
        ratio = light / before
        np.testing.assert_allclose(ratio, ratio.mean(), rtol=0.02)
        stops.append(np.log2(ratio.mean()))
    assert -1.01 < min(stops) < -0.3 and 0.3 < max(stops) < 1.01


def test_gamma_is_a_power(photos):
    powers = []
    for changed in over_keys(photos, gamma=0.8):
        power = np.log(changed / 100) / np.log(photos[0, ..., 0] / 100)
        np.testing.assert_allclose(power, power.mean(), rtol=1e-3)
        powers.append(power.mean())
    assert 1 / 1.8 < min(powers) < 0.8 and 1.25 < max(powers) < 1.8


def test_a_vignette_darkens_the_corners():
    lost = []
    for dark in over_keys(flat(70.0), vignette=0.8):
        assert dark.max() <= 70.001
        center = np.unravel_index(dark.argmax(), dark.shape)
        assert all(SIDE / 4 - 1 <= place <= SIDE * 3 / 4 for place in center)
        corners = dark[[0, 0, -1, -1], [0, -1, 0, -1]]
        assert corners.max() <= dark.max()
        lost.append(1 - ((corners.min() + 16) / 86) ** 3)
    assert max(lost) < 0.81 and max(lost) > 0.5 and min(lost) < 0.3


def test_grain_is_strongest_in_mid_gray_and_has_a_size():
    noise = over_keys(flat(50.0), grain=6.0) - 50
    deviations = noise.std(axis=(1, 2))
    assert deviations.max() < 6.5 and deviations.max() > 3.5 and deviations.min() < 2
    assert np.abs(noise.mean(axis=(1, 2))).max() < 0.5
    neighbors = [np.corrcoef(each[:, 1:].ravel(), each[:, :-1].ravel())[0, 1] for each in noise]
    assert min(neighbors) < 0.15 and max(neighbors) > 0.35
    dark = over_keys(flat(20.0), grain=6.0) - 20
    assert dark.std(axis=(1, 2)).mean() < 0.9 * deviations.mean()


def test_fading_raises_blacks_and_lowers_whites(photos):
    losses = []
    for faded in over_keys(photos, fading=0.5):
        slope, black = np.polyfit(photos[0].ravel(), faded.ravel(), 1)
        np.testing.assert_allclose(faded.ravel(), slope * photos[0].ravel() + black, atol=1e-2)
        assert black >= -1e-2 and 100 * slope + black <= 100.01
        assert black >= 0.4 * 100 * (1 - slope) - 1e-2
        losses.append(1 - slope)
    assert max(losses) < 0.5 and max(losses) > 0.3 and min(losses) < 0.2


def test_texture_is_smooth():
    noise = over_keys(flat(50.0), texture=5.0) - 50
    deviations = noise.std(axis=(1, 2))
    assert 1 < deviations.max() < 9 and deviations.min() < 1.5
    assert min(np.corrcoef(each[:, 1:].ravel(), each[:, :-1].ravel())[0, 1] for each in noise) > 0.5


def test_scratches_cover_few_pixels():
    changes = over_keys(flat(50.0), scratches=3) - 50
    shares = (np.abs(changes) > 1).mean(axis=(1, 2))
    assert max(shares) < 0.2 and max(shares) > 0.01 and min(shares) < 0.03
    assert changes.max() > 25 and changes.min() < -25  # white ones and black ones


@pytest.mark.parametrize('quality', [10, 35, 50, 80])
def test_jpeg_is_pillow_s(photos, quality):
    levels = np.round(photos[0, ..., 0] * 2.55)
    file = io.BytesIO()
    Image.fromarray(levels.astype(np.uint8)).save(file, 'JPEG', quality=quality)
    expected = np.asarray(Image.open(file), np.float32)
    ours = np.round(degrade.jpeg(jnp.asarray(levels), float(quality)))
    lost, difference = np.abs(expected - levels), np.abs(ours - expected)
    # Pillow computes in integers: a coefficient near a half may fall elsewhere, which moves a block by a level or two.
    assert np.median(difference) == 0 and np.mean(difference <= 1) > 0.85
    assert difference.mean() < 0.3 * lost.mean()


def test_jpeg_blocks_lie_anywhere():
    """The slope's steps from block to block, at different columns for different keys."""
    slope = np.broadcast_to(np.linspace(20, 80, SIDE, dtype=np.float32)[None, None, :, None], (1, SIDE, SIDE, 1))
    coarse = over_keys(slope, 40, jpeg=98.0)
    steps = np.abs(np.diff(coarse, axis=2)).sum(axis=1)  # (keys, SIDE - 1)
    rough = [each for each in steps if each.max() > 2.5 * np.median(each)]
    assert len({int(each.argmax()) % 8 for each in rough}) > 4


# In training.


def recipe(**data):
    made = small_recipe('ltbc_pytorch')
    made.model.classes = 0
    made.task.update({'alpha': 0.0})
    made.data.update({'degraded': 1.0, **data})
    return made


def test_training_sees_aged_photos_and_evaluation_does_not(photos):
    plain, aging = (tasks.build(recipe(**data)) for data in ({}, {'gamma': 2.0, 'fading': 0.9}))
    parallel = DataParallel(devices=jax.devices()[:1])
    state = jax.device_get(parallel.create(plain.init, jax.random.PRNGKey(0)))
    lab = color.encode_lab(np.concatenate([photos[:4, :32, :32], np.full((4, 32, 32, 2), 20, np.float32)], axis=-1))
    batch = {'lab': lab, 'label': np.full(4, -1, np.int32)}
    inputs = [task._inputs(state, {'lab': jnp.asarray(lab)}, True)[0] for task in (plain, aging)]
    np.testing.assert_array_equal(inputs[0], color.decode_lab(lab)[..., :1])
    assert np.abs(inputs[1] - inputs[0]).mean() > 5
    state = parallel.replicate(state)
    losses = [parallel.map(task.train_step)(state, parallel.shard(batch))[1]['loss'] for task in (plain, aging)]
    assert abs(float(losses[0]) - float(losses[1])) > 1e-6
    results = [jax.jit(task.eval_step)(state, jax.tree.map(jnp.asarray, batch)) for task in (plain, aging)]
    jax.tree.map(np.testing.assert_array_equal, *results)


@pytest.mark.slow
def test_devices_change_nothing(photos):
    config = recipe(**degrade.STRONG)
    config.train.cross_device_batch_norm = True
    task = tasks.build(config)
    lab = color.encode_lab(np.concatenate([photos[:, :32, :32], np.full((8, 32, 32, 2), 20, np.float32)], axis=-1))
    losses = []
    for devices in (1, 4):
        parallel = DataParallel(devices=jax.devices()[:devices])
        state = parallel.create(task.init, jax.random.PRNGKey(0))
        batch = parallel.shard({'lab': lab, 'label': np.full(8, -1, np.int32)})
        losses.append(float(parallel.map(task.train_step)(state, batch)[1]['loss']))
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


def test_the_adversarial_task_refuses():
    made = small_recipe('cgan')
    made.data.grain = 3.0
    with pytest.raises(UserError, match=r'data\.grain'):
        tasks.build(made)
