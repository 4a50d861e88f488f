"""Color hints: the colors that a user wants at places of a photo, and how they spread over what a network predicts.

Networks that take hints get them (`Hints.on_grid` at the size of their input). For all others `spread` solves for the change
of the predicted a*b* after Levin, Lischinski, Weiss, *Colorization using Optimization*, SIGGRAPH 2004: neighbors of similar
lightness change alike. Here each change is the weighted mean of its neighbors' and, with a small weight, of none: the paper
colors a whole photo by its strokes, a hint here changes the surface that it lies on.
"""

import hashlib
import math
import operator
import os
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from jaxcolor import color
from jaxcolor.errors import UserError
from jaxcolor.inference.photos import read_photo
from jaxcolor.inference.recompose import resized
from jaxcolor.prepare.deep import DeepImage

_POINT = re.compile(r'\s*(\d+(?:\.\d+)?)\s*,\s*(\d+(?:\.\d+)?)\s*,\s*#?([0-9a-fA-F]{6})\s*')
_MIN_ALPHA = 128  # of 255, of a stroke
_STROKE_PIXELS = 2**20  # that are converted together; bounds the memory that large pictures take
_MAX_ASPECT_ERROR = 0.02  # of strokes beside the photo's
# A point is a disc of this radius, a part of the shorter side, at least one cell.
_POINT_RADIUS = 0.01
_MAX_CELLS = 3 * 2**15  # of the grid on which hints spread; 256x384
# Chosen on the bundled photos, with hints of the true colors where ltbc-lite errs; the README has figures of others.
_SIMILAR = 1.5  # units of L*, standard deviation: neighbors of this difference still change much alike
_LEAST_WEIGHT = 1e-6  # between neighbors, so that the system has one solution
_REACH = 0.8  # shorter sides over which a hint fades on an even surface
_NEIGHBORS = ((0, 1), (1, 0), (1, 1), (1, -1))  # (rows, columns), the other four by symmetry


class Point(NamedTuple):
    """A color at a place: pixels from the left and from the top of the photo, and 8-bit sRGB."""

    x: float
    y: float
    rgb: tuple[int, int, int]


class Hints(NamedTuple):
    """Colors that a user wants at places of a photo.

    points: later ones count where discs overlap, and above the strokes.
    strokes: RGBA, transparent but for the strokes, of the photo's size or scaled; or None.
    """

    points: tuple[Point, ...] = ()
    strokes: Image.Image | None = None

    @property
    def digest(self) -> str:
        """Tells hints apart; 32 hex digits."""
        digest = hashlib.blake2b(repr(self.points).encode(), digest_size=16)
        if self.strokes is not None:
            digest.update(f'{self.strokes.size}'.encode() + self.strokes.tobytes())
        return digest.hexdigest()

    def on_grid(self, size: tuple[int, int], height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """The hints on a grid of cells that covers a photo.

        Args:
            size: (W, H) of the photo.
            height, width: cells; strokes narrower than a cell count as one.

        Returns:
            a*b*, float32 (height, width, 2), the mean of a cell's strokes, 0 where there is no hint; and where there is one,
            bool (height, width).

        Raises:
            UserError: a point is outside the photo, or the strokes have another aspect.
        """
        ab, mask = np.zeros((height, width, 2), np.float32), np.zeros((height, width), bool)
        if self.strokes is not None:
            _check_aspect(self.strokes.size, size)
            ab, mask = _strokes_on_grid(self.strokes, height, width)
        W, H = size
        rows, columns = np.mgrid[:height, :width]
        radius = max(1.0, _POINT_RADIUS * min(height, width))
        for x, y, rgb in self.points:
            if not (x < W and y < H):
                raise UserError(f'--hints: the point {x:g},{y:g} lies outside the photo, which has {W}x{H} pixels.')
            row, column = int(y * height / H), int(x * width / W)
            disc = np.square(rows - row) + np.square(columns - column) <= radius**2
            ab[disc], mask[disc] = color.rgb_to_lab(np.array(rgb, np.uint8))[1:], True
        return ab, mask


def _check_aspect(strokes, photo):
    (w, h), (W, H) = strokes, photo
    if abs(w * H / (h * W) - 1) > _MAX_ASPECT_ERROR:
        raise UserError(f'--hints: the strokes have {w}x{h} pixels, the photo {W}x{H}: their aspects differ.')


def _strokes_on_grid(strokes, height, width):
    enlarged = tuple(max(pair) for pair in zip(strokes.size, (width, height), strict=True))
    rgba = np.asarray(strokes.resize(enlarged, Image.Resampling.NEAREST))  # no cell without a pixel
    H, W = rgba.shape[:2]
    count, total = np.zeros(height * width), np.zeros((2, height * width))
    step = max(1, _STROKE_PIXELS // W)
    for top in range(0, H, step):
        part = rgba[top : top + step]
        y, x = np.nonzero(part[..., 3] >= _MIN_ALPHA)
        cell = ((top + y) * height // H) * width + x * width // W
        colors = color.rgb_to_lab(part[y, x, :3])[:, 1:]
        count += np.bincount(cell, minlength=height * width)
        total += [np.bincount(cell, colors[:, i], height * width) for i in range(2)]
    ab = (total / np.maximum(count, 1)).T
    return ab.reshape(height, width, 2).astype(np.float32), count.reshape(height, width) > 0


def read_points(text: str) -> tuple[Point, ...] | None:
    """The points of `x,y,#rrggbb;x,y,#rrggbb`; None of any other text."""
    parts = [part for part in text.split(';') if part.strip()]
    matches = [match for match in map(_POINT.fullmatch, parts) if match]
    if not parts or len(matches) < len(parts):
        return None
    return tuple(Point(float(x), float(y), (*bytes.fromhex(rgb),)) for x, y, rgb in (match.groups() for match in matches))


def read_hints(texts: Sequence[str], max_megapixels: float = 200.0) -> Hints:
    """Reads hints as a user writes them. Call it inside `pillow_unguarded()` if files may be large.

    Args:
        texts: each is `x,y,#rrggbb`, several of them with semicolons between, or the path of a picture with strokes.
        max_megapixels: refuses larger pictures.

    Raises:
        UserError: a text is neither, there are two pictures, or one cannot be read, has no transparency or no strokes.
    """
    points: list[Point] = []
    strokes = None
    for text in texts:
        if (found := read_points(text)) is not None:
            points += found
        elif strokes is not None:
            raise UserError(f'--hints={text}: only one picture with strokes can be taken.')
        elif not os.path.isfile(text):
            raise UserError(f'--hints={text} is neither a file nor points, which are written x,y,#rrggbb;x,y,#rrggbb.')
        else:
            strokes = _check_strokes(read_photo(text, max_megapixels), f'--hints={text}')
    return Hints(tuple(points), strokes)


def as_hints(hints: 'Hints | Image.Image | str | os.PathLike[str]') -> Hints:
    """Hints from what Python callers give: `Hints`, an RGBA image with strokes, or text or a path as for `read_hints`.

    Raises:
        UserError: they are something else, a point is outside its range, or as `read_hints`.
    """
    if isinstance(hints, Hints):
        if hints.strokes is not None and not isinstance(hints.strokes, Image.Image):
            raise UserError(f'strokes are a Pillow image, not {type(hints.strokes).__name__}.')
        strokes = None if hints.strokes is None else _check_strokes(hints.strokes, 'the image of strokes')
        return Hints(tuple(map(_check_point, hints.points)), strokes)
    if isinstance(hints, Image.Image):
        return Hints(strokes=_check_strokes(hints, 'hints'))
    if not isinstance(hints, (str, os.PathLike)):
        kinds = "text ('x,y,#rrggbb;x,y,#rrggbb'), the path of a picture with strokes, or such a Pillow image"
        raise UserError(f'hints are {kinds}, not {type(hints).__name__}.')
    return read_hints([os.fspath(hints)])


def _check_point(point):
    try:
        x, y, rgb = point
        channels = tuple(map(operator.index, rgb))
        is_valid = x >= 0 and y >= 0 and len(channels) == 3 and min(channels) >= 0 and max(channels) <= 255
    except (TypeError, ValueError):
        is_valid = False
    if not is_valid:
        raise UserError(f'a point is (x, y, (red, green, blue)), with colors from 0 to 255, not {point!r}.')
    return Point(x, y, channels)


def _check_strokes(image, name):
    if not image.has_transparency_data:
        raise UserError(f'{name} has no transparency, so it is all strokes; erase all but them.')
    image = image.convert('RGBA')
    if image.getchannel('A').getextrema()[1] < _MIN_ALPHA:
        raise UserError(f'{name} holds no strokes: it is transparent everywhere.')
    return image


def spread(image: Image.Image | DeepImage, ab: np.ndarray, hints: Hints) -> np.ndarray:
    """Changes predicted colors by hints.

    Args:
        image: the photo.
        ab: predicted a*b*, float32 (h, w, 2), at any size.
        hints: which it has at these places exactly.

    Returns:
        a*b*, float32 (h', w', 2), of at most _MAX_CELLS cells.

    Raises:
        UserError: as `Hints.on_grid`.
    """
    scale = min(1.0, math.sqrt(_MAX_CELLS / (image.width * image.height)))
    width, height = (max(1, round(side * scale)) for side in image.size)
    wanted, mask = hints.on_grid(image.size, height, width)
    small = resized(image, (width, height), Image.Resampling.BOX)
    lightness = color.rgb_to_lab(np.asarray(small))[..., 0]
    planes = [Image.fromarray(np.ascontiguousarray(ab[..., i], np.float32)) for i in range(2)]
    ab = np.stack([np.asarray(plane.resize((width, height), Image.Resampling.BILINEAR)) for plane in planes], axis=-1)
    return (ab + _solve(lightness, mask, np.where(mask[..., None], wanted - ab, 0))).astype(np.float32)


def _solve(lightness, mask, change):
    """The change (h, w, 2) of all cells, given that of the hinted ones, mask (h, w), and L* (h, w)."""
    import scipy.sparse  # imported late: it takes 0.2 s, and few photos have hints
    import scipy.sparse.linalg

    height, width = mask.shape
    index = np.arange(mask.size).reshape(mask.shape)
    weights = scipy.sparse.csr_array((mask.size, mask.size))
    for down, right in _NEIGHBORS:
        here = (slice(None, height - down), slice(max(0, -right), width - max(0, right)))
        there = (slice(down, None), slice(max(0, right), width + min(0, right)))
        difference = lightness[here].astype(np.float64) - lightness[there]
        weight = np.exp(-np.square(difference) / (2 * _SIMILAR**2)) / math.hypot(down, right) + _LEAST_WEIGHT
        places = index[here].ravel(), index[there].ravel()
        weights += scipy.sparse.coo_array((weight.ravel(), places), weights.shape).tocsr()
    weights = weights + weights.T
    drawn_to_none = 1 / (_REACH * min(mask.shape)) ** 2
    system = scipy.sparse.diags_array(weights.sum(axis=1) + drawn_to_none) - weights
    free, fixed = np.flatnonzero(~mask), np.flatnonzero(mask)
    change = change.reshape(-1, 2).astype(np.float64)
    if free.size and fixed.size:
        rows = system.tocsr()[free]
        # It is symmetric and positive definite: no pivoting.
        solver = scipy.sparse.linalg.splu(
            rows[:, free].tocsc(), permc_spec='MMD_AT_PLUS_A', diag_pivot_thresh=0.0, options={'SymmetricMode': True}
        )
        change[free] = solver.solve(-(rows[:, fixed] @ change[fixed]))
    return change.reshape(height, width, 2)
