"""Coloring from Python: photos of any kind in, the same kind out. `jaxcolor.load` makes a `PhotoColorizer`."""

import collections
import numbers
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, TypeVar, Unpack, overload

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from jaxcolor.errors import UserError
from jaxcolor.inference.agreement import Agreement, measure
from jaxcolor.inference.colorize import settings_digest
from jaxcolor.inference.colorizer import MULTIPLE, Colorizer
from jaxcolor.inference.hints import Hints, as_hints
from jaxcolor.inference.photos import PhotoFile, encode_photo, read_frames, read_photo
from jaxcolor.inference.plan import result_name
from jaxcolor.inference.recompose import join
from jaxcolor.inference.tags import Tag
from jaxcolor.prepare.decode import pillow_unguarded
from jaxcolor.prepare.deep import GRAY_MODES, DeepImage, gray_levels

Photo = str | os.PathLike[str] | bytes | Image.Image | np.ndarray | jax.Array
Seen = TypeVar('Seen', str, os.PathLike[str], Image.Image)

# What a result of bytes is called where nothing else says its format.
_SUFFIXES = {'JPEG': '.jpg', 'MPO': '.jpg', 'PNG': '.png', 'WEBP': '.webp', 'TIFF': '.tif'}
_DEEP = 65535  # white, of 16 bits


class Options(TypedDict, total=False):
    """What `PhotoColorizer` takes beside photos, all by name. Its `__call__` says what each is."""

    style: Photo | None
    hints: Hints | Image.Image | str | os.PathLike[str] | None
    chroma: float | None
    size: int | None


class ColoredFile(NamedTuple):
    """The result of a photo's file: what `jaxcolor colorize` writes."""

    data: bytes
    name: str  # a path's last part; its suffix says the format
    notes: tuple[str, ...]  # a sentence each on what it does not keep


class PhotoColorizer:
    """Colors photos of any kind with a trained network. Threads may share one."""

    def __init__(self, network: Colorizer, max_megapixels: float = 200.0) -> None:
        """Wraps a network.

        Args:
            network: what predicts.
            max_megapixels: refuses larger photos, where they are read from files or bytes.

        Raises:
            UserError: `max_megapixels` is not above 0.
        """
        if not isinstance(max_megapixels, (int, float)) or not max_megapixels > 0:
            raise UserError(f'max_megapixels must be a number above 0, not {max_megapixels}.')
        self.network = network
        self.max_megapixels = max_megapixels

    @property
    def config(self) -> ConfigDict:
        """Of the network's training."""
        return self.network.config

    @property
    def size(self) -> int:
        """Pixels of the shorter side of the network's input."""
        return self.network.size

    @overload
    def __call__(self, image: str | os.PathLike[str] | Image.Image, **options: Unpack[Options]) -> Image.Image: ...
    @overload
    def __call__(self, image: bytes, **options: Unpack[Options]) -> bytes: ...
    @overload
    def __call__(self, image: np.ndarray, **options: Unpack[Options]) -> np.ndarray: ...
    @overload
    def __call__(self, image: jax.Array, **options: Unpack[Options]) -> jax.Array: ...
    @overload
    def __call__(self, image: list[Seen], **options: Unpack[Options]) -> list[Image.Image]: ...
    @overload
    def __call__(self, image: list[bytes], **options: Unpack[Options]) -> list[bytes]: ...
    @overload
    def __call__(self, image: list[np.ndarray], **options: Unpack[Options]) -> list[np.ndarray]: ...
    @overload
    def __call__(self, image: list[jax.Array], **options: Unpack[Options]) -> list[jax.Array]: ...
    @overload
    def __call__(
        self, image: Photo | Sequence[Photo], *, variants: int = 1, agreement: bool = False, **options: Unpack[Options]
    ) -> Any: ...

    def __call__(
        self,
        image: Photo | Sequence[Photo],
        *,
        style: Photo | None = None,
        hints: Hints | Image.Image | str | os.PathLike[str] | None = None,
        chroma: float | None = None,
        variants: int = 1,
        size: int | None = None,
        agreement: bool = False,
    ) -> Any:
        """Colors a photo, or several of any sizes and kinds. What has colors is taken as if it were gray.

        Args:
            image: a photo, or a list or tuple of them. A photo is
                - a path (str or PathLike); of several frames the first is colored;
                - the bytes of a file, of any format and number of frames that `jaxcolor colorize` reads;
                - a Pillow image of any mode, in sRGB, as it lies: its EXIF orientation is not applied, but kept; of modes of
                  more than 8 bits, white is the smallest usual one that no value exceeds, as in files (README);
                - an array of NumPy or JAX, (H, W), (H, W, 1), (H, W, 3) or, with alpha, (H, W, 4), in sRGB: uint8 in [0,
                  255], uint16 in [0, 65535], or float16, float32 or float64 in [0, 1], whose colors are those of 16 bits.
                H and W are at least 2.
            style: another photo, whose global features (the mood) replace the photo's own; for networks that have them.
            hints: colors at places of all photos: 'x,y,#rrggbb;x,y,#rrggbb', an RGBA image of strokes, its path, or `Hints`.
            chroma: multiplies the predicted a*b*, in [0, 10]; None for what `load` was given.
            variants: how many results; more than 1 for networks that take noise (cgan).
            size: pixels of the shorter side of the network's input, at least 32; None for what `load` was given.
            agreement: also says where predictions for several sizes differ (of several frames, in the first).

        Returns:
            Of a path, a Pillow image, RGB or RGBA of 8 bits in sRGB, upright; of bytes, those of the file that
            `jaxcolor colorize` writes, of the same format where it can be written (README), else PNG; of a Pillow image, one
            of mode RGB, or RGBA where it has transparency; of an array, (H, W, 3) or (H, W, 4) of its dtype and range.
            With `variants` above 1, a list of so many; with `agreement`, the pair (result, `Agreement`). Of a list of
            photos, a list.

        Raises:
            UserError: a photo cannot be read or is of another kind; an argument is out of its range; the hints do not fit a
                photo; the network has no global features, takes no noise, or is `faithful` and takes only hints.
        """
        network = self.network.adjusted(chroma, size)
        _check(network, variants, style, agreement)
        images = list(image) if isinstance(image, (list, tuple)) else [image]
        with pillow_unguarded(), network.on_device():
            work = _Work(network, self._features(network, style), None if hints is None else as_hints(hints), variants)
            results = work.color([self._take(each) for each in images], agreement)
        return results if isinstance(image, (list, tuple)) else results[0]

    def color_file(
        self,
        data: bytes,
        name: str,
        *,
        style: Photo | None = None,
        hints: Hints | Image.Image | str | os.PathLike[str] | None = None,
        chroma: float | None = None,
        size: int | None = None,
    ) -> ColoredFile:
        """Colors the bytes of a photo's file, as `jaxcolor colorize NAME` does, to the byte.

        Args:
            data: of the file.
            name: of the file: its suffix says what the result's is, and sentences call it so.
            style, hints, chroma, size: as of `__call__`.

        Raises:
            UserError: as `__call__`.
        """
        network = self.network.adjusted(chroma, size)
        _check(network, 1, style, False)
        with pillow_unguarded(), network.on_device():
            work = _Work(network, self._features(network, style), None if hints is None else as_hints(hints), 1)
            file = read_frames(name, self.max_megapixels, data)
            taken = _Taken(file.images, file, result_name(data, Path(name).name or 'photo'))
            (result,) = work.color([taken], False)
            return ColoredFile(result, taken.name, tuple(file.notes))

    def ab(self, lightness: np.ndarray | jax.Array) -> np.ndarray:
        """The network's own prediction, for a photo of the size at which it is to see it.

        Args:
            lightness: L* in [0, 100], of a floating type: (H, W), (H, W, 1) or (B, H, W, 1). Where H and W are multiples of
                32, the network sees just that; else it is resampled linearly to the nearest, and a*b* are, back.

        Returns:
            a*b* times the chroma, about [-110, 110], float32 (H, W, 2) or (B, H, W, 2).

        Raises:
            UserError: another type, shape or range.
        """
        if not isinstance(lightness, (np.ndarray, jax.Array)) or lightness.dtype.kind != 'f':
            raise UserError('ab takes L* as an array of floats.')
        lightness = np.asarray(lightness)
        planes = lightness[..., None] if lightness.ndim == 2 else lightness
        planes = planes[None] if planes.ndim == 3 else planes
        if planes.ndim != 4 or planes.shape[3] != 1 or not planes.size:
            raise UserError(f'ab takes L* of shape (H, W), (H, W, 1) or (B, H, W, 1), not {lightness.shape}.')
        if not (planes.min() >= 0 and planes.max() <= 100):  # false of NaN, too
            raise UserError('ab takes L* from 0 to 100; there are other values.')
        H, W = planes.shape[1:3]
        h, w = (max(1, round(side / MULTIPLE)) * MULTIPLE for side in (H, W))
        with self.network.on_device():
            ab = self.network.predict_ab(_resampled(planes.astype(np.float32), h, w))
        return _resampled(ab, H, W).reshape(*lightness.shape[: 3 if lightness.ndim == 4 else 2], 2)

    def _features(self, network, style):
        """Global features of a style photo, float32 (1, G)."""
        return None if style is None else np.asarray(network.global_features(self._take(style).images[0]))

    def _take(self, photo):
        """A photo of any kind -> _Taken. Raises UserError."""
        if isinstance(photo, bytes):
            file = read_frames('the photo', self.max_megapixels, photo)
            suffix = _SUFFIXES.get(file.frames.format, '.png')
            return _Taken(file.images, file, result_name(photo, f'photo{suffix}'))
        if isinstance(photo, (str, os.PathLike)):
            image: Image.Image | DeepImage = read_photo(photo, self.max_megapixels)
        elif isinstance(photo, Image.Image):
            image = _from_pillow(photo)
        elif isinstance(photo, (np.ndarray, jax.Array)):
            image = _from_array(np.asarray(photo))
        else:
            raise UserError(f'a photo is a path, bytes, a Pillow image or an array, not {type(photo).__name__}.')
        if min(image.size) < 2:
            raise UserError(f'a photo of {image.width}x{image.height} pixels is too small to be colored.')
        if isinstance(photo, (np.ndarray, jax.Array)):
            return _Taken([image], photo.dtype, on_device=isinstance(photo, jax.Array))
        return _Taken([image], None, exif=photo.info.get('exif', b'') if isinstance(photo, Image.Image) else b'')


class _Taken(NamedTuple):
    """A photo of any kind, as the network takes it, and what its result is to be."""

    images: list[Image.Image | DeepImage]  # its frames
    kind: PhotoFile | np.dtype | None  # bytes of a file, an array, or a Pillow image
    name: str = ''  # of the file
    on_device: bool = False  # an array of JAX
    exif: bytes = b''  # of a Pillow image


class _Work(NamedTuple):
    """How photos are colored."""

    network: Colorizer
    style: np.ndarray | None
    hints: Hints | None
    variants: int

    def color(self, photos: list[_Taken], agreement: bool) -> list[Any]:
        """The results of photos, of the kinds that they have."""
        colored = self._colored(photos)
        results: list[Any] = []
        for photo, variants in zip(photos, colored, strict=True):
            given = [self._given(photo, frames) for frames in variants]
            result = given[0] if self.variants == 1 else given
            results.append((result, measure(self.network, photo.images[0])) if agreement else result)
        return results

    def _colored(self, photos):
        """The frames of each variant of each photo, colored."""
        network = self.network
        if network.faithful:
            return [[[network.faithful(image, self.hints) for image in photo.images]] for photo in photos]
        inputs = [[network.preprocess(image) for image in photo.images] for photo in photos]
        ab = self._predicted_together(inputs) if self.hints is None else {}
        return [
            [
                [
                    join(
                        image,
                        ab[i, variant]
                        if (i, variant) in ab
                        else network.predict_with_hints(image, lightness, self.style, variant, self.hints),
                    )
                    for image, lightness in zip(photo.images, inputs[i], strict=True)
                ]
                for variant in range(self.variants)
            ]
            for i, photo in enumerate(photos)
        ]

    def _predicted_together(self, inputs):
        """a*b* of photos of one frame that fill a batch of one shape, by (index, variant)."""
        groups = collections.defaultdict(list)
        for i, frames in enumerate(inputs):
            if len(frames) == 1:
                groups[frames[0].shape].append(i)
        found, count = {}, self.network.batch_size
        for group in groups.values() if count > 1 else ():
            for start in range(0, len(group) - count + 1, count):
                batch = group[start : start + count]
                lightness = np.concatenate([inputs[i][0] for i in batch])
                for variant in range(self.variants):
                    ab = self.network.predict_ab(lightness, self.style, variant)
                    found |= {(i, variant): ab[n] for n, i in enumerate(batch)}
        return found

    def _given(self, photo, frames):
        """Colored frames as the kind that the photo was."""
        if isinstance(photo.kind, PhotoFile):
            tag = Tag(photo.kind.digest, settings_digest(self.network, self.style, self.hints, self.variants))
            return encode_photo(photo.kind, frames, Path(photo.name).suffix, tag)
        (image,) = frames
        if photo.kind is None:
            image = image.in_8_bits() if isinstance(image, DeepImage) else image
            if photo.exif:
                image.info['exif'] = photo.exif
            return image
        pixels = image.pixels if isinstance(image, DeepImage) else np.asarray(image)
        pixels = pixels / np.float64(_DEEP) if photo.kind.kind == 'f' else pixels
        return (jnp.asarray if photo.on_device else np.asarray)(pixels.astype(photo.kind, copy=False))


def _check(network, variants, style, agreement):
    if not isinstance(variants, numbers.Integral) or variants < 1:
        raise UserError(f'variants must be a number of at least 1, not {variants}.')
    if network.faithful and (variants > 1 or style is not None or agreement):
        raise UserError('a faithful network colors as its authors do: it takes no style, variants or agreement.')
    if variants > 1 and not network.task.takes_noise:
        raise UserError('variants: this network has one result per photo; only a cgan takes noise and has several.')


def _from_pillow(image):
    """An image of any mode -> L, RGB, RGBA, or of 16 bits."""
    try:
        image.load()
    except (OSError, SyntaxError, ValueError) as error:  # what was not read before, from a broken or a closed file
        raise UserError(f'an image of Pillow cannot be read ({error}).') from None
    if image.mode in GRAY_MODES:
        return DeepImage(gray_levels(image, _DEEP)[..., None])
    if image.mode == 'La':  # premultiplied, which Pillow converts to LA alone
        image = image.convert('LA')
    if image.has_transparency_data:
        return image.convert('RGBA')
    return image if image.mode in ('L', 'RGB') else image.convert('L' if image.mode == '1' else 'RGB')


def _from_array(array):
    """An array, as `PhotoColorizer.__call__` takes it -> L, RGB, RGBA, or of 16 bits. Raises UserError."""
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))) or not array.size:
        raise UserError(f'an array of a photo has the shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), not {array.shape}.')
    pixels = array[..., None] if array.ndim == 2 else array
    if pixels.dtype == np.uint8:
        return Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))
    if pixels.dtype.kind == 'f':
        if not (pixels.min() >= 0 and pixels.max() <= 1):  # false of NaN, too
            raise UserError('an array of floats has values from 0 to 1; there are others.')
        pixels = np.round(pixels.astype(np.float64) * _DEEP).astype(np.uint16)
    if pixels.dtype.newbyteorder('=') != np.uint16:
        raise UserError(f'an array of a photo is of uint8, uint16 or floats, not of {array.dtype}.')
    return DeepImage(np.ascontiguousarray(pixels, np.uint16))


def _resampled(planes, height, width):
    """Float32 (B, H, W, C) -> (B, height, width, C), linearly, antialiased; by Pillow, which compiles nothing for a size."""
    if planes.shape[1:3] == (height, width):
        return planes
    resized = np.empty((len(planes), height, width, planes.shape[3]), np.float32)
    for photo, channel in np.ndindex(len(planes), planes.shape[3]):
        plane = Image.fromarray(np.ascontiguousarray(planes[photo, ..., channel]))
        resized[photo, ..., channel] = plane.resize((width, height), Image.Resampling.BILINEAR)
    return resized


__all__ = ['Agreement', 'ColoredFile', 'Options', 'Photo', 'PhotoColorizer']
