"""A trained network as a function from photo to photo."""

from os import PathLike

import jax
import numpy as np
from PIL import Image

from jaxcolor import color
from jaxcolor.errors import UserError
from jaxcolor.inference.recompose import join
from jaxcolor.runtime.parallel import compiler_options
from jaxcolor.weights import runs

# Network inputs have sides that are multiples of this, so that photos of many shapes need few compilations.
MULTIPLE = 32
# Photos longer than this many times their shorter side are squeezed for the network.
_LONGEST = 2
# Photos of one shape that go through the network together, where it is on a GPU: CPUs gain nothing by it.
_GPU_BATCH = 8


class Colorizer:
    """Colors photographs with a trained network.

    Args:
        model: a run directory, an exported model, or the name of one that comes with jaxcolor.
        step: of the checkpoint; the best by validation loss by default.
        size: pixels of the shorter side at which the network sees a photo; by default what it was trained on.

    Raises:
        UserError: no run, no checkpoint.
    """

    def __init__(self, model: str | PathLike, step: int | None = None, size: int = 0):
        self.config, self.task, self.state = runs.load(model, step)
        self.size = size or self.config.data.crop
        self._predict = jax.jit(self.task.predict, compiler_options=compiler_options())
        self._global_features = jax.jit(self.task.global_features) if hasattr(self.task, 'global_features') else None

    def __call__(self, image: Image.Image, style: np.ndarray | None = None, variant: int = 0) -> Image.Image:
        """Colors one photo.

        Args:
            image: RGB or RGBA in sRGB, of any size from 2x2; its own colors are ignored.
            style: `global_features` of another photo, used in place of its own.
            variant: seed of the noise, for networks that take noise.

        Returns:
            The photo in the same mode and size.
        """
        return join(image, self.predict_ab(self.preprocess(image), style, variant)[0])

    def predict_ab(self, lightness: np.ndarray, style: np.ndarray | None = None, variant: int = 0) -> np.ndarray:
        """Predicts for photos of one shape: L* of `preprocess`, (B, h, w, 1) -> a*b* float32 (B, h, w, 2)."""
        given = {} if style is None else {'global_features': np.repeat(style, len(lightness), axis=0)}
        return np.asarray(self._predict(self.state, lightness, jax.random.PRNGKey(variant), **given))

    def global_features(self, image: Image.Image) -> jax.Array:
        """The global features (1, G) of a photo. Raises UserError where the network has none."""
        if self._global_features is None:
            raise UserError('--style: this network joins no features of the whole photo to its pixels.')
        return self._global_features(self.state, self.preprocess(image))

    def preprocess(self, image: Image.Image) -> np.ndarray:
        """The photo's L*, float32 (1, h, w, 1), at the network's size."""
        rgb = image.convert('RGB')
        shorter = min(rgb.size)
        size = tuple(max(1, round(min(side / shorter, _LONGEST) * self.size / MULTIPLE)) * MULTIPLE for side in rgb.size)
        # The filters of the training photos (prepare.decode, data.augment): networks mistake sharper or softer photos.
        # Bicubic shrinking cost ltbc-compact 0.2 to 0.5 of ab RMSE.
        shrinks = shorter > self.size
        small = rgb.resize(size, Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR)
        return color.rgb_to_lab(np.asarray(small))[None, ..., :1]

    @property
    def batch_size(self) -> int:
        """How many photos of one shape go through the network together."""
        # A photo's noise comes from its place in the batch; its colors should not.
        return 1 if jax.default_backend() == 'cpu' or self.task.takes_noise else _GPU_BATCH
