"""Colors that do not flicker: what was predicted before is carried along the motion and blended with what is predicted now.

After Lai et al., *Learning Blind Video Temporal Consistency*, ECCV 2018, section 3.2: what flickers is the error of warping
by optical flow, weighted by how well the flow explains the picture. Here, a recursive filter takes their network's place.
"""

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np

# Chosen on other clips than those of README.md.
_FLOW_ERROR = 3.0  # pixels of the gray picture by which the flow there and back may miss
_GRAY_ERROR = 30.0  # steps of 255 by which the picture and the carried one may differ
_SMOOTHED = 5  # pixels over which the gray pictures' difference is averaged
# The network is asked every so many frames, and where the carried picture explains less than this share: asked for every
# frame, it gave neither less flicker nor less error.
_EVERY, _ASK_TRUST = 8, 0.7
# A cut: the carried picture explains less than this share, and the pictures differ by this many steps of 255 on average.
_CUT_TRUST, _CUT_DIFFERENCE = 0.4, 12.0
# A fade or a flash: a gain, up to this one, and an offset leave at most this share of the pictures' difference.
_FADE_SHARE, _MAX_GAIN = 0.7, 2.0


class State(NamedTuple):
    """What is carried from frame to frame."""

    gray: np.ndarray  # uint8 (H, W)
    ab: np.ndarray  # float32 (h, w, 2), what was shown
    goal: np.ndarray  # float32 (h, w, 2), the last prediction, carried along, too
    age: np.ndarray  # float32 (h, w), for how many frames a pixel has been seen
    since: int = 0  # frames since the network was asked


class Steady:
    """Blends predictions of frames, one after the other.

    Args:
        strength: how much of the carried color stays from frame to frame, in [0, 1): 0.95 follows a change of the prediction
            in about 20 frames, 0 shows every frame as it was predicted.
        state: of the frame before; None at a film's start.
    """

    def __init__(self, strength: float, state: State | None = None) -> None:
        self.strength, self.state = strength, state
        self._flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
        self._flow.setFinestScale(1)  # half the side of the gray picture, which is small already
        self._flow.setVariationalRefinementIterations(2)  # 5, the preset's, take a quarter longer and change little here

    def __call__(self, gray: np.ndarray, predict: Callable[[], np.ndarray]) -> tuple[np.ndarray, bool]:
        """The next frame.

        Args:
            gray: the picture, uint8 (H, W), of the aspect of a*b*.
            predict: gives its a*b*, float32 (h, w, 2); it is asked where they are needed.

        Returns:
            (what to show, float32 (h, w, 2); whether a scene starts here).
        """
        before = self.state
        if before is not None:
            gain, lit = _in_the_light_of(before.gray, gray)
            flow, trust = self._motion(lit, gray)
            difference = float(cv2.absdiff(gray, before.gray).mean())
            share = float(trust.mean())
            if share >= _CUT_TRUST or difference <= _CUT_DIFFERENCE:
                h, w = before.age.shape
                flow = cv2.resize(flow, (w, h), interpolation=cv2.INTER_AREA)
                flow *= np.array([w / gray.shape[1], h / gray.shape[0]], np.float32)
                trust = cv2.resize(trust, (w, h), interpolation=cv2.INTER_AREA)
                age = carry(before.age, flow) * trust * np.float32(min(1, 1 / gain))  # more light shows more
                both = carry(np.concatenate([before.ab, before.goal], axis=-1), flow, cv2.INTER_CUBIC)
                carried, goal = both[..., :2], both[..., 2:]
                is_asked = before.since + 1 >= _EVERY or share < _ASK_TRUST
                if is_asked:
                    goal = predict()
                # A prediction is approached in all frames up to the next one; at once, colors would pulse.
                keep = np.minimum(age / (age + 1), np.float32(self.strength)) * trust
                ab = goal + keep[..., None] * (carried - goal)
                self.state = State(gray, ab, goal, age + 1, 0 if is_asked else before.since + 1)
                return ab, False
        ab = predict()
        self.state = State(gray, ab, ab, np.ones(ab.shape[:2], np.float32))
        return ab, True

    def _motion(self, before, gray):
        """(flow to the picture before, (H, W, 2); how far to trust it, in [0, 1], (H, W))."""
        back, forth = self._flow.calc(gray, before, None), self._flow.calc(before, gray, None)
        x, y = cv2.split(back + carry(forth, back))
        miss = x * x + y * y
        change = cv2.absdiff(gray, carry(before, back))
        change = cv2.blur(change.astype(np.float32), (_SMOOTHED, _SMOOTHED))
        trust = np.exp(-miss / np.float32(_FLOW_ERROR**2) - np.square(change / np.float32(_GRAY_ERROR)))
        return back, trust * _is_inside(back)


def _in_the_light_of(before, gray):
    """(gain, the picture before); in fades and flashes, that is made as bright and as rich in contrast as the one now."""
    (mean, deviation), (mean_before, deviation_before) = ((float(each.mean()), float(each.std())) for each in (gray, before))
    gain = min(max(deviation / max(deviation_before, 1e-3), 1 / _MAX_GAIN), _MAX_GAIN)
    levels = np.arange(256) * gain + (mean - gain * mean_before)
    lit = cv2.LUT(before, np.clip(np.rint(levels), 0, 255).astype(np.uint8))
    is_fade = cv2.absdiff(gray, lit).mean() < _FADE_SHARE * cv2.absdiff(gray, before).mean()
    return (gain, lit) if is_fade else (1.0, before)


def carry(picture: np.ndarray, flow: np.ndarray, interpolation: int = cv2.INTER_LINEAR) -> np.ndarray:
    """A picture (H, W, ...) as it looks after the motion; `flow`, float32 (H, W, 2), leads to where pixels were."""
    x, y = _places(flow)
    return cv2.remap(picture, x, y, interpolation, borderMode=cv2.BORDER_REPLICATE)


def _places(flow):
    """Where each pixel was: x and y, float32 (H, W) each."""
    height, width = flow.shape[:2]
    return flow[..., 0] + np.arange(width, dtype=np.float32), flow[..., 1] + np.arange(height, dtype=np.float32)[:, None]


def _is_inside(flow):
    """Whether pixels were in the picture, float32 (H, W)."""
    (x, y), (height, width) = _places(flow), flow.shape[:2]
    return ((x > -1) & (x < width) & (y > -1) & (y < height)).astype(np.float32)
