"""The stored values of photos of more than 8 bits a channel: what black and white are among them."""

import contextlib
from collections.abc import Mapping
from typing import Any

import numpy as np

# Tags of TIFF.
BITS_PER_SAMPLE, PHOTOMETRIC, _MAX_SAMPLE_VALUE, _S_MAX_SAMPLE_VALUE = 258, 262, 281, 341
_MIN_SAMPLE_VALUE, _S_MIN_SAMPLE_VALUE, SAMPLE_FORMAT = 280, 340, 339
_OVERSHOOT = 1.1  # how far values may lie above white: resampled floats do
_BLOCK = 2**21  # pixels that are converted together; bounds the memory that this takes


class Limits:
    """What black and white are among the values of a file's pages.

    Pages of one type share them: what no field says is taken from all that were looked at.
    """

    def __init__(self) -> None:
        self._found: dict[str, tuple[float, float]] = {}  # by type: the smallest and the largest value
        self.note = ''  # what was guessed, a sentence without its beginning

    def widen(self, values: np.ndarray) -> tuple[float, float]:
        """Looks at the values of a page -> the smallest and the largest of all pages of this type."""
        finite = np.isfinite(values) if values.dtype.kind == 'f' else True
        smallest, largest = self._found.get(values.dtype.str[1:], (0.0, 0.0))
        smallest = min(smallest, float(np.min(values, where=finite, initial=0)))
        largest = max(largest, float(np.max(values, where=finite, initial=0)))
        self._found[values.dtype.str[1:]] = smallest, largest
        return smallest, largest

    def of(self, values: np.ndarray, tags: Mapping[int, Any]) -> tuple[float, float]:
        """(black, white) of a page: what its TIFF tags say, else the smallest usual white that no value exceeds."""
        smallest, largest = self.widen(values)
        white = self._white(values.dtype, largest, tags)
        for tag in (_MIN_SAMPLE_VALUE, _S_MIN_SAMPLE_VALUE):
            with contextlib.suppress(TypeError, ValueError, IndexError):
                told = float(np.min(tags[tag])) if tag in tags else 0.0
                if -np.inf < told < 0 and told <= smallest:
                    return told, white
        return (smallest if smallest < -0.1 * white else 0.0), white

    def _white(self, dtype, largest, tags):
        for tag in (_MAX_SAMPLE_VALUE, _S_MAX_SAMPLE_VALUE):
            with contextlib.suppress(TypeError, ValueError, IndexError):
                told = float(np.max(tags.get(tag, 0)))
                if 0 < told < np.inf and told >= largest / _OVERSHOOT:
                    return told
        bits = int(np.max(tags.get(BITS_PER_SAMPLE, 8 * dtype.itemsize)))
        if dtype.kind == 'f':  # a usual one is taken where values nearly reach it, and 1 where they lie below it
            natural = 1.0
            near = next((white for white in (255.0, 65535.0) if white / 2 < largest <= white * _OVERSHOOT), largest)
            white = 1.0 if largest <= _OVERSHOOT else near
        elif bits not in (16, 32, 64) or (dtype.kind == 'i' and bits <= 16):
            return 2.0 ** (bits - (dtype.kind == 'i')) - 1
        else:
            natural = 2.0 ** (bits - (dtype.kind == 'i')) - 1
            # Integers of 16 bits are as they were measured; others may have been resampled.
            overshoot = 1.0 if bits == 16 else _OVERSHOOT
            usual = (255.0, 1023.0, 4095.0, 16383.0, 65535.0)
            white = next((white for white in usual if largest <= white * overshoot), largest)
            white = natural if largest > natural / 2 else white
        if white != natural and not self.note:
            self.note = f'no field says what white is; {white:.7g} was taken, since the brightest value is {largest:.7g}'
        return white


def levels(values: np.ndarray, black: float, white: float, top: int) -> np.ndarray:
    """Values of any type -> unsigned integers from 0 (black) to `top` (white). What is no number is black."""
    dtype = np.uint16 if top > 255 else np.uint8
    if values.dtype == dtype and (black, white) == (0, top):
        return values
    out = np.empty(values.shape, dtype)
    for rows in blocks(values):
        block = values[rows].astype(np.float64)
        block[~np.isfinite(block)] = 0
        out[rows] = np.round(np.clip((block - black) * (top / (white - black)), 0, top))
    return out


def blocks(values: np.ndarray) -> list[slice]:
    """Slices of rows, of about _BLOCK pixels each."""
    step = max(1, _BLOCK // values.shape[1])
    return [slice(top, top + step) for top in range(0, values.shape[0], step)]
