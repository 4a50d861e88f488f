"""Color spaces against scikit-image; round trips."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage.color import lab2rgb, rgb2lab

from jaxcolor import color

# What float32 costs: f(X) and f(Y), both up to 1, are off by some 16 roundings when log2 and exp2 have powered twice, and a*
# is 500 times their difference.
ROUNDING = 500 * 16 * float(np.finfo(np.float32).eps)
BOTH = pytest.mark.parametrize('array', [np.asarray, jnp.asarray], ids=['numpy', 'jax'])


@BOTH
def test_lab_agrees_with_scikit_image_on_photos(photos, array):
    for photo in photos[::4]:
        ours = np.asarray(color.rgb_to_lab(array(photo)))
        assert ours.dtype == np.float32
        assert np.abs(ours - rgb2lab(photo)).max() < ROUNDING


@BOTH
def test_rgb_agrees_with_scikit_image_to_half_a_gray_level(photos, array):
    for photo in photos[::4]:
        lab = rgb2lab(photo).astype(np.float32)
        ours = np.asarray(color.lab_to_rgb(array(lab)))
        assert np.abs(ours - lab2rgb(lab)).max() < 0.5 / 255
        assert (np.asarray(color.to_uint8(array(ours))) == photo).all()


def test_rgb_lab_round_trip_of_every_gray_and_corner():
    grays = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    corners = np.array([[r, g, b] for r in (0, 255) for g in (0, 255) for b in (0, 255)], np.uint8)
    for rgb in (grays, corners):
        assert (color.to_uint8(color.lab_to_rgb(color.rgb_to_lab(rgb))) == rgb).all()
    lab = color.rgb_to_lab(grays)
    assert np.abs(lab[:, 1:]).max() < 0.005 + ROUNDING  # gray has no color, but for the digits of the standard's matrix
    assert abs(lab[255, 0] - 100) < ROUNDING


def test_jit_gives_the_same_values(photos):
    photo = photos[0]
    np.testing.assert_allclose(jax.jit(color.rgb_to_lab)(photo), color.rgb_to_lab(photo), rtol=0, atol=ROUNDING)


def test_uint8_lab_rounding_error_is_as_documented(photos):
    lab = color.rgb_to_lab(photos[0])
    stored = color.encode_lab(lab)
    assert stored.dtype == np.uint8
    error = np.abs(color.decode_lab(stored) - lab)
    # Half a step of each, 100 / 255 and 1.
    assert error[..., 0].max() <= 50 / 255 + ROUNDING
    assert error[..., 1:].max() <= 0.5 + ROUNDING
    assert (color.encode_lab(color.decode_lab(stored)) == stored).all()


def test_every_uint8_lab_value_round_trips():
    every = np.stack([np.arange(256, dtype=np.uint8)] * 3, axis=-1)
    assert (color.encode_lab(color.decode_lab(every)) == every).all()


@pytest.mark.parametrize('activation', color.AB_RANGE)
def test_ab_normalization_round_trips_exactly(activation):
    # Powers of two scale without rounding, so equality is exact.
    ab = np.arange(-128, 128, 0.25, dtype=np.float32)
    assert (color.denormalize(color.normalize(ab, 'lab', activation), 'lab', activation) == ab).all()
    low, high = {'sigmoid': (0, 1), 'relu': (0, 1), 'tanh': (-1, 1), 'linear': (-1, 1)}[activation]
    assert color.normalize(np.float32(-128), 'lab', activation) == low
    assert color.normalize(np.float32(128), 'lab', activation) == high


@pytest.mark.parametrize('activation', color.UNIT_RANGE)
def test_unit_normalization_round_trips_exactly(activation):
    channels = np.arange(0, 257, dtype=np.float32) / 256
    output = color.normalize(channels, 'rgb', activation)
    assert (color.denormalize(output, 'rgb', activation) == channels).all()
    # [0, 1] of a channel and [-128, 128] of a*b* are the same outputs.
    assert (color.normalize(256 * channels - 128, 'lab', activation) == output).all()


@BOTH
@pytest.mark.parametrize('activation', color.UNIT_RANGE)
@pytest.mark.parametrize('space', color.OUTPUT_SPACES)
def test_output_spaces_round_trip(photos, space, activation, array):
    """With the photo's own lightness, its colors come back; measured at most 0.003 units of a*b* beside rounding."""
    corners = np.array([[r, g, b] for r in (0, 255) for g in (0, 255) for b in (0, 255)], np.uint8)
    for rgb in (photos[3], corners):
        lab = color.rgb_to_lab(array(rgb))
        output = color.encode_output(lab, space, activation)
        assert output.shape == (*rgb.shape[:-1], color.OUTPUT_SPACES[space][1])
        assert output.dtype == np.float32
        ab = np.asarray(color.decode_output(output, lab[..., :1], space, activation))
        assert np.abs(ab - lab[..., 1:]).max() < 0.01 + ROUNDING
        low = -1 if activation in ('tanh', 'linear') else 0
        assert low - 1e-5 <= float(output.min()) <= float(output.max()) <= 1 + 1e-5


def test_output_spaces_by_hand():
    """sRGB (200, 120, 40): its RGB, and U = 0.492 (B - Y), V = 0.877 (R - Y), scaled by twice their largest values."""
    lab = color.rgb_to_lab(np.array([200, 120, 40], np.uint8))
    r, g, b = np.array([200, 120, 40]) / 255
    y = 0.299 * r + 0.587 * g + 0.114 * b
    uv = [0.5 + 0.492 * (b - y) / 0.872, 0.5 + 0.877 * (r - y) / 1.23]
    np.testing.assert_allclose(color.encode_output(lab, 'rgb', 'sigmoid'), [r, g, b], rtol=0, atol=1e-4)
    np.testing.assert_allclose(color.encode_output(lab, 'rgb', 'tanh'), [2 * r - 1, 2 * g - 1, 2 * b - 1], rtol=0, atol=2e-4)
    np.testing.assert_allclose(color.encode_output(lab, 'yuv', 'sigmoid'), uv, rtol=0, atol=1e-3)
    np.testing.assert_allclose(color.encode_output(lab, 'lab', 'tanh'), lab[1:] / 128, rtol=0, atol=1e-6)


def test_u_and_v_mean_a_color_of_the_given_lightness():
    """The same U and V at other lightnesses, as far as sRGB has such colors."""
    output = np.tile(np.float32([0.45, 0.55]), (5, 1))
    lightness = np.linspace(30, 80, 5, dtype=np.float32)[:, None]
    ab = color.decode_output(output, lightness, 'yuv', 'sigmoid')
    uv = color.rgb_to_yuv(color.lab_to_rgb(color.join_lab(lightness, ab)))[..., 1:]
    np.testing.assert_allclose(uv, output, rtol=0, atol=1e-4)


@pytest.mark.parametrize('space', color.OUTPUT_SPACES)
def test_output_spaces_have_gradients(space):
    """Everywhere finite, outside of sRGB, too; where the color lies inside, they are the slope."""
    rng, channels = np.random.default_rng(0), color.OUTPUT_SPACES[space][1]
    output = jnp.asarray(rng.uniform(-1.5, 1.5, (4096, channels)), 'float32')
    lightness = jnp.asarray(rng.uniform(0, 100, (4096, 1)), 'float32')
    decode = jax.jit(lambda output, lightness: color.decode_output(output, lightness, space, 'tanh'))
    slopes = jax.jit(jax.grad(lambda output, lightness: decode(output, lightness).sum()))
    assert np.isfinite(decode(output, lightness)).all()
    assert np.isfinite(slopes(output, lightness)).all()
    lab = color.rgb_to_lab(jnp.asarray([[0.6, 0.4, 0.3]]))
    inside, step = color.encode_output(lab, space, 'tanh'), 1e-2
    moved = (decode(inside + step, lab[:, :1]) - decode(inside - step, lab[:, :1])).sum() / (2 * step)
    np.testing.assert_allclose(slopes(inside, lab[:, :1]).sum(), moved, rtol=0.01)


@BOTH
def test_yuv_round_trips_and_is_bounded(photos, array):
    yuv = color.rgb_to_yuv(array(photos[0]))
    rounding = 4 * np.finfo(np.float32).eps
    assert -rounding <= float(yuv.min()) <= float(yuv.max()) <= 1 + rounding
    assert (np.asarray(color.to_uint8(color.yuv_to_rgb(yuv))) == photos[0]).all()
    gray = color.rgb_to_yuv(array(np.full((1, 3), 77, np.uint8)))
    np.testing.assert_allclose(np.asarray(gray), [[77 / 255, 0.5, 0.5]], rtol=0, atol=1e-5)


@BOTH
def test_fitted_colors_keep_lightness_and_hue_and_lie_in_srgb(array):
    rng = np.random.default_rng(0)
    lab = (rng.uniform(-1, 1, (20_000, 3)) * [50, 128, 128] + [50, 0, 0]).astype(np.float32)
    fitted = np.asarray(color.fit_chroma(array(lab)))
    chroma, given = (np.linalg.norm(x[:, 1:], axis=1) for x in (fitted, lab))
    # In float64, by scikit-image's matrices.
    rgb = lab2rgb(np.clip(fitted, [0, -128, -128], [100, 128, 128]).astype(np.float64))
    back = rgb2lab(rgb)
    assert np.abs(back[:, 0] - fitted[:, 0]).max() < 0.1  # of 100; clipping alone moves it by up to 40
    assert np.abs(back - fitted)[chroma > 1].max() < 0.5
    np.testing.assert_allclose(fitted[:, 0], lab[:, 0], rtol=0, atol=0)
    cross = fitted[:, 1] * lab[:, 2] - fitted[:, 2] * lab[:, 1]
    assert np.abs(cross).max() <= 4 * np.finfo(np.float32).eps * (chroma * given).max()
    # A 1/128 of the given chroma more would be outside, and what was inside is as it was.
    moved = chroma < given * (1 - 1e-6)
    assert 0.5 < moved.mean() < 0.95
    more = lab2rgb((lab * np.stack([np.ones(len(lab)), *2 * [chroma / given + 1 / 128]], axis=1))[moved].astype(np.float64))
    assert np.all(np.any((more <= 0) | (more >= 1), axis=1))
    np.testing.assert_array_equal(fitted[~moved], lab[~moved])


def test_photos_are_inside_srgb_as_they_are(photos):
    lab = color.rgb_to_lab(photos[0])
    np.testing.assert_array_equal(color.fit_chroma(lab), lab)


def test_planes_are_the_same_conversions(photos):
    rgb = photos[0].astype(np.float32) / 255
    lab, linear = color.rgb_to_lab(rgb), color.srgb_to_linear(rgb)
    planes = [linear[..., i] for i in range(3)]
    tolerance = {'rtol': 0, 'atol': 1e-4}  # of 100: float32, and sums in another order
    np.testing.assert_allclose(color.y_to_lightness(color.linear_planes_to_y(planes)), lab[..., 0], **tolerance)
    np.testing.assert_allclose(color.y_to_lightness(planes[0]), color.rgb_to_lab(rgb[..., [0] * 3])[..., 0], **tolerance)
    back = np.stack(color.lab_planes_to_linear(*(lab[..., i] for i in range(3))), axis=-1)
    np.testing.assert_allclose(back, linear, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(color.to_integer(rgb, np.dtype(np.uint16)), photos[0].astype(np.uint16) * 257)
