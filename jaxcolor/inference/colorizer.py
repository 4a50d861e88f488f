"""A trained network as a function that colors photos."""

import contextlib
import copy
import functools
import hashlib
import numbers
import os
import re
import threading

import jax
import numpy as np
from PIL import Image

from jaxcolor import color
from jaxcolor.errors import UserError
from jaxcolor.inference.faithful import Faithful
from jaxcolor.inference.hints import Hints, as_hints, spread
from jaxcolor.inference.recompose import join, resized
from jaxcolor.prepare.deep import DeepImage
from jaxcolor.runtime.parallel import compiler_options
from jaxcolor.weights import runs

# Sides of network inputs are multiples of this many pixels, so that few shapes are compiled.
MULTIPLE = 32
# The largest aspect ratio that the network sees; longer photos are squeezed.
_MAX_ASPECT = 2
_MAX_CHROMA = 10  # as task.chroma_gain
# Photos of one shape per batch on a GPU; CPUs gain nothing from batches.
_GPU_BATCH = 8


class Colorizer:
    """Colors photos with a trained network."""

    def __init__(
        self,
        model: str | os.PathLike[str],
        step: int | None = None,
        size: int = 0,
        *,
        chroma: float = 1.0,
        faithful: bool = False,
        render_factor: int = 0,
        device: str | jax.Device | None = None,
    ) -> None:
        """Loads the network.

        Args:
            model: a run directory, an exported model, a name that `jaxcolor models` lists, or a published file.
            step: of the checkpoint; by default the one with the best validation loss.
            size: pixels of the shorter side of the network's input; 0 takes the size that it was trained on.
            chroma: multiplies the predicted a*b*, in [0, 10].
            faithful: color as the network's authors do (`faithful`), without a size or gain of ours.
            render_factor: of DeOldify, with `faithful`: a sixteenth of the side of the square that it sees; 0 for its own.
            device: 'cpu', 'gpu', 'gpu:1' or one of `jax.devices()`; None for JAX's default.

        Raises:
            UserError: the run, the checkpoint or the device is missing, `size` or `chroma` is outside its range, or
                `faithful` does not fit.
        """
        self.chroma = _checked_chroma(chroma)
        if not isinstance(model, str | os.PathLike):
            raise UserError(f'a model is a name or a path, not {type(model).__name__}.')
        self.device = find_device(device)
        sharding = None if self.device is None else jax.sharding.SingleDeviceSharding(self.device)
        self.config, self.task, self.state = runs.load(os.fspath(model), step, sharding)
        self.size = _checked_size(size) if size else self.config.data.crop
        self.faithful = None
        if faithful:
            if size or chroma != 1:
                raise UserError("--faithful colors as the network's authors do; it takes neither --size nor --chroma.")
            self.faithful = Faithful(self.task, self.state, render_factor, self.config.data.crop // 16)
        elif render_factor:
            raise UserError('--render-factor is for --faithful; --size is what others take.')
        self._folded = self.task.folded(self.state)
        self._predict = jax.jit(self.task.predict, compiler_options=compiler_options())
        self._global_features = jax.jit(self.task.global_features) if hasattr(self.task, 'global_features') else None
        self._compiling, self._compiled = threading.RLock(), set[tuple]()

    def on_device(self) -> contextlib.AbstractContextManager:
        """Within it, this thread computes on the device of `__init__`."""
        return contextlib.nullcontext() if self.device is None else jax.default_device(self.device)

    def adjusted(self, chroma: float | None = None, size: int | None = None) -> 'Colorizer':
        """The same network, with what it has compiled, at another gain or size of its input. None leaves as it is.

        Raises:
            UserError: `chroma` or `size` is outside its range, or this one is `faithful`, which has neither.
        """
        chroma, size = self.chroma if chroma is None else _checked_chroma(chroma), self.size if size is None else size
        if (chroma, size) == (self.chroma, self.size):
            return self
        if self.faithful is not None:
            raise UserError('a faithful network colors as its authors do; it takes neither a chroma nor a size.')
        other = copy.copy(self)
        other.chroma, other.size = chroma, _checked_size(size)
        vars(other).pop('digest', None)
        return other

    def __call__(
        self,
        image: Image.Image,
        style: np.ndarray | None = None,
        variant: int = 0,
        hints: Hints | Image.Image | str | None = None,
    ) -> Image.Image:
        """Colors one photo.

        Args:
            image: RGB or RGBA in sRGB, at least 2x2 pixels; its colors are ignored.
            style: `global_features` of another photo, float32 (1, G), to replace its own.
            variant: seed of the noise, for networks that take noise.
            hints: colors at places: an RGBA picture of strokes, or 'x,y,#rrggbb;x,y,#rrggbb'.

        Returns:
            The colored photo, in the same mode and size.

        Raises:
            UserError: the hints cannot be read, or do not fit the photo.
        """
        hints = None if hints is None else as_hints(hints)
        if self.faithful is not None:
            return self.faithful(image, hints)
        return join(image, self.predict_with_hints(image, self.preprocess(image), style, variant, hints))

    def predict_with_hints(
        self,
        image: Image.Image | DeepImage,
        lightness: np.ndarray,
        style: np.ndarray | None,
        variant: int,
        hints: Hints | None,
    ) -> np.ndarray:
        """Predicts the colors of one photo, changed by hints if there are any.

        Args:
            image: RGB or RGBA.
            lightness: L* of `preprocess(image)`, float32 (1, h, w, 1).
            style, variant: as in `__call__`.
            hints: colors at places of the photo, or None.

        Returns:
            a*b*, float32 (h', w', 2).

        Raises:
            UserError: the hints do not fit the photo.
        """
        if hints is None:
            return self.predict_ab(lightness, style, variant)[0]
        if not getattr(self.task.network, 'takes_hints', False):
            return spread(image, self.predict_ab(lightness, style, variant)[0], hints)
        ab, mask = hints.on_grid(image.size, *lightness.shape[1:3])
        ab = ab / np.float32(max(self.chroma, 0.1))  # the gain follows
        given = np.concatenate([ab, mask[..., None]], axis=-1, dtype=np.float32)[None]
        return np.float32(self.chroma) * self._run(lightness, hints=given)[0]

    def predict_ab(self, lightness: np.ndarray, style: np.ndarray | None = None, variant: int = 0) -> np.ndarray:
        """Predicts the colors of photos of one shape.

        Args:
            lightness: L* of `preprocess`, float32 (B, h, w, 1).
            style: as in `__call__`.
            variant: as in `__call__`.

        Returns:
            a*b* times the gain, float32 (B, h, w, 2).
        """
        features = {} if style is None else {'global_features': np.repeat(style, len(lightness), axis=0)}
        return np.float32(self.chroma) * self._run(lightness, jax.random.PRNGKey(variant), **features)

    def _run(self, lightness, *inputs, **named):
        """Runs the network. Of threads that bring a new shape, one compiles it, and the others wait."""
        key = (lightness.shape, len(inputs), *named)
        with contextlib.nullcontext() if key in self._compiled else self._compiling:
            ab = np.asarray(self._predict(self._folded, lightness, *inputs, **named))
            self._compiled.add(key)
        return ab

    def global_features(self, image: Image.Image) -> jax.Array:
        """The global features of a photo, float32 (1, G). Raises UserError if the network has none."""
        if self._global_features is None:
            raise UserError('--style: this network has no global features.')
        return self._global_features(self._folded, self.preprocess(image))

    def preprocess(self, image: Image.Image | DeepImage, size: int = 0) -> np.ndarray:
        """The network's input: L* of the photo, the shorter side `size` pixels (`self.size`), float32 (1, h, w, 1)."""
        size = size or self.size
        width, height = self.input_size(image.size, size)
        # The same filters as for training photos (prepare.decode, data.augment): sharper or softer inputs are colored
        # worse. Bicubic downscaling cost `ltbc_compact` 0.2 to 0.5 ab RMSE.
        resampling = Image.Resampling.BOX if min(image.size) > size else Image.Resampling.BILINEAR
        return color.rgb_to_lab(np.asarray(resized(image, (width, height), resampling)))[None, ..., :1]

    def input_size(self, photo: tuple[int, int], size: int = 0) -> tuple[int, int]:
        """The network's input (w, h) for a photo (W, H): its shorter side has about `size` pixels (`self.size`)."""
        width, height = (min(side / min(photo), _MAX_ASPECT) * (size or self.size) for side in photo)
        return max(1, round(width / MULTIPLE)) * MULTIPLE, max(1, round(height / MULTIPLE)) * MULTIPLE

    @functools.cached_property
    def digest(self) -> str:
        """Tells apart what colors differently: the network, its weights, its input's size, the gain. 32 hex digits."""
        settings = f'{self.config.model} {self.config.task} {self.size}'
        if self.chroma != 1:  # results of earlier versions have none
            settings += f' chroma {self.chroma}'
        if self.faithful is not None:
            settings += f' faithful {self.faithful.render_factor}'
        digest = hashlib.blake2b(settings.encode(), digest_size=16)
        for array in jax.tree.leaves((self.state.weights(), self.state.ema, self.state.frozen)):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    @property
    def batch_size(self) -> int:
        """Photos of one shape to color together."""
        # Noise depends on the position in the batch; a photo's colors should not.
        platform = jax.default_backend() if self.device is None else self.device.platform
        return 1 if platform == 'cpu' or self.task.takes_noise else _GPU_BATCH


def _checked_size(size):
    if not isinstance(size, numbers.Integral) or size < MULTIPLE:
        raise UserError(f'the size must be a whole number of at least {MULTIPLE} pixels, not {size}.')
    return size


def _checked_chroma(chroma):
    if not isinstance(chroma, numbers.Real) or not 0 <= chroma <= _MAX_CHROMA:
        raise UserError(f'the chroma must lie between 0 and {_MAX_CHROMA}, not {chroma}.')
    return chroma


def find_device(device: str | jax.Device | None) -> jax.Device | None:
    """The device that is called 'cpu', 'gpu', 'tpu', or one of several, 'gpu:1'; or the one that is given itself.

    Raises:
        UserError: there is none, or it is neither a name nor a device.
    """
    if device is None or isinstance(device, jax.Device):
        return device
    parts = re.fullmatch('([a-zA-Z_]+)(?::([0-9]+))?', device) if isinstance(device, str) else None
    try:
        if parts:
            return jax.devices(parts[1])[int(parts[2] or 0)]
    except (RuntimeError, IndexError):
        pass
    there = ', '.join(sorted({each.platform for each in jax.devices()} | {'cpu'}))
    raise UserError(f'there is no device {device!r} here; there is {there}.')
