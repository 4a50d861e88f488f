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
    assert (color.denormalize_ab(color.normalize_ab(ab, activation), activation) == ab).all()
    low, high = {'sigmoid': (0, 1), 'relu': (0, 1), 'tanh': (-1, 1), 'linear': (-1, 1)}[activation]
    assert color.normalize_ab(np.float32(-128), activation) == low
    assert color.normalize_ab(np.float32(128), activation) == high


@pytest.mark.parametrize('activation', color.UNIT_RANGE)
def test_unit_normalization_round_trips_exactly(activation):
    channels = np.arange(0, 257, dtype=np.float32) / 256
    output = color.normalize_unit(channels, activation)
    assert (color.denormalize_unit(output, activation) == channels).all()
    # [0, 1] of a channel and [-128, 128] of a*b* are the same outputs.
    assert (color.normalize_ab(256 * channels - 128, activation) == output).all()


@BOTH
def test_yuv_round_trips_and_is_bounded(photos, array):
    yuv = color.rgb_to_yuv(array(photos[0]))
    rounding = 4 * np.finfo(np.float32).eps
    assert -rounding <= float(yuv.min()) <= float(yuv.max()) <= 1 + rounding
    assert (np.asarray(color.to_uint8(color.yuv_to_rgb(yuv))) == photos[0]).all()
    gray = color.rgb_to_yuv(array(np.full((1, 3), 77, np.uint8)))
    np.testing.assert_allclose(np.asarray(gray), [[77 / 255, 0.5, 0.5]], rtol=0, atol=1e-5)
