"""Films' frames turned upright, and colors carried along their motion."""

import itertools

import cv2
import numpy as np
import pytest

from jaxcolor.video.planes import Turn
from jaxcolor.video.steady import Steady

pytestmark = pytest.mark.video


@pytest.mark.parametrize(
    'matrix', [None, (0, -1, 0, 1, 0), (0, 1, 0, -1, 0), (-1, 0, 0, 0, -1), (-1, 0, 0, 0, 1), (0, 1, 0, 1, 0)]
)
def test_turns(matrix):
    """Against the definition: a stored pixel (x, y) is shown at (a x + c y, b x + d y), moved to where all are positive."""
    stored = np.arange(12).reshape(3, 4)
    turn = Turn.of(matrix)
    a, b, _, c, d = matrix or (1, 0, 0, 0, 1)
    y, x = np.mgrid[:3, :4]
    shown_x, shown_y = a * x + c * y, b * x + d * y
    shown = np.full((np.ptp(shown_y) + 1, np.ptp(shown_x) + 1), -1)
    shown[shown_y - shown_y.min(), shown_x - shown_x.min()] = stored
    np.testing.assert_array_equal(turn.upright(stored), shown)
    np.testing.assert_array_equal(turn.stored(turn.upright(stored)), stored)


def test_carried_colors_flicker_less():
    """Predictions of a moving scene that flicker: what is shown does so by less than a third, and is nearer to the mean."""
    rng = np.random.default_rng(0)
    scene = cv2.GaussianBlur(rng.uniform(0, 255, (128, 400)).astype(np.float32), (0, 0), 3)
    scene = cv2.normalize(scene, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
    truth = np.stack([scene, 255 - scene], axis=-1).astype(np.float32) / 4  # follows the scene
    steady, shown, predicted = Steady(0.95), [], []
    for t in range(24):
        ab = np.ascontiguousarray(truth[::2, 4 * t : 4 * t + 128 : 2]) + rng.normal(0, 5, 2).astype(np.float32)
        predicted.append(ab)
        shown.append(steady(np.ascontiguousarray(scene[:, 4 * t : 4 * t + 128]), lambda ab=ab: ab)[0])

    def flicker(frames):  # the camera moves by 4 pixels of the scene, 2 of the colors
        return np.mean([np.abs(b[:, :-2] - a[:, 2:]).mean() for a, b in itertools.pairwise(frames[8:])])

    def error(frames):
        return np.mean([np.abs(ab - truth[::2, 4 * t : 4 * t + 128 : 2]).mean() for t, ab in enumerate(frames)][8:])

    assert flicker(shown) < flicker(predicted) / 3
    assert error(shown) < error(predicted)


def test_a_fade_is_no_new_scene_and_keeps_its_colors():
    """A picture that comes out of the dark while predictions flicker: the network is not asked for each frame of it."""
    rng = np.random.default_rng(0)
    scene = cv2.GaussianBlur(rng.uniform(0, 255, (128, 224)).astype(np.float32), (0, 0), 3)
    scene = cv2.normalize(scene, None, 0, 255, cv2.NORM_MINMAX)
    steady, shown, predicted, cuts, asked = Steady(0.95), [], [], [], []
    for t, light in enumerate(np.linspace(0.3, 1, 7)):
        ab = np.full((128, 224, 2), rng.normal(0, 10, 2), np.float32)
        predicted.append(ab)
        picture, is_cut = steady((light * scene).astype(np.uint8), lambda ab=ab, t=t: (asked.append(t), ab)[1])
        shown.append(picture)
        cuts.append(is_cut)
    assert cuts == [True] + 6 * [False]
    assert asked == [0]

    def flicker(frames):
        return np.mean([np.abs(b - a).mean() for a, b in itertools.pairwise(frames)])

    assert flicker(shown) < flicker(predicted) / 3
