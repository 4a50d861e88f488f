"""Photos of more than 8 bits a channel: their values, and what white is among them."""

import contextlib
import dataclasses
import io
import logging
import struct
from typing import Any

import numpy as np
from PIL import Image, ImageCms

with contextlib.suppress(ImportError):  # in the extra `formats`
    import imagecodecs
    import tifffile

    logging.getLogger('tifffile').addHandler(logging.NullHandler())  # what is wrong with a file is one sentence of ours

_created = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
# Without the moment of its creation (ICC.1:2022, 7.2.8), so that a photo's result is the same at any time.
SRGB = _created[:24] + struct.pack('>6H', 2000, 1, 1, 0, 0, 0) + _created[36:]
# Pillow's modes of gray images of more than 8 bits; it has none for colors.
GRAY_MODES = ('I;16', 'I;16B', 'I;16L', 'I;16N', 'I', 'F')
# Tags of TIFF.
BITS_PER_SAMPLE, PHOTOMETRIC, _MAX_SAMPLE_VALUE, _S_MAX_SAMPLE_VALUE = 258, 262, 281, 341
_MIN_SAMPLE_VALUE, _S_MIN_SAMPLE_VALUE, _SAMPLE_FORMAT = 280, 340, 339
_OVERSHOOT = 1.1  # how far values may lie above white: resampled floats do
_BLOCK = 2**21  # pixels that are converted together; bounds the memory that this takes


@dataclasses.dataclass(frozen=True, eq=False)
class DeepImage:
    """A photo of 16 bits a channel. Like Pillow's images it has a size and a mode."""

    pixels: np.ndarray  # uint16 (H, W, C): gray, gray and alpha, RGB, or RGBA, in sRGB

    @property
    def width(self) -> int:
        """In pixels."""
        return self.pixels.shape[1]

    @property
    def height(self) -> int:
        """In pixels."""
        return self.pixels.shape[0]

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.width, self.height

    @property
    def mode(self) -> str:
        """Pillow's mode of `in_8_bits`."""
        return ('L', 'LA', 'RGB', 'RGBA')[self.pixels.shape[2] - 1]

    def in_8_bits(self) -> Image.Image:
        """The photo in 8 bits a channel, of mode L, LA, RGB or RGBA."""
        out: np.ndarray = np.empty(self.pixels.shape, np.uint8)
        for rows in _blocks(self.pixels):
            out[rows] = (self.pixels[rows].astype(np.uint32) + 128) // 257
        return Image.fromarray(out[..., 0] if out.shape[2] == 1 else out)


def _blocks(values):
    """Slices of rows, of about _BLOCK pixels each."""
    step = max(1, _BLOCK // values.shape[1])
    return [slice(top, top + step) for top in range(0, values.shape[0], step)]


def gray_levels(image: Image.Image, top: int) -> np.ndarray:
    """A gray image of a mode of GRAY_MODES -> its levels from 0 to `top`: uint8 (H, W), or uint16 where `top` is 65535."""
    values, tags = np.asarray(image), getattr(image, 'tag_v2', {})
    if values.dtype == np.int32 and tags.get(_SAMPLE_FORMAT, (1,)) == (1,) and tags.get(BITS_PER_SAMPLE) == (32,):
        values = values.view(np.uint32)  # Pillow knows signed ones only
    white = _white(values, image.format, tags)
    black = _black(values, white, tags)
    if tags.get(PHOTOMETRIC) == 0:  # white is zero; Pillow turns this round for 8 bits alone
        black, white = white, black
    return _levels(values, black, white, top)


def _levels(values, black, white, top):
    """Values of any type -> unsigned integers from 0 (black) to `top` (white). What is no number is black."""
    dtype = np.uint16 if top > 255 else np.uint8
    if values.dtype == dtype and (black, white) == (0, top):
        return values
    out = np.empty(values.shape, dtype)
    for rows in _blocks(values):
        block = values[rows].astype(np.float64)
        block[~np.isfinite(block)] = 0
        out[rows] = np.round(np.clip((block - black) * (top / (white - black)), 0, top))
    return out


def _white(values, file_format, tags):
    """The value of white: what the file says, else the smallest usual one that the values do not exceed."""
    is_float = values.dtype.kind == 'f'
    if file_format in ('PNG', 'PPM', 'JPEG2000') and not is_float:
        return 65535.0  # Pillow scales what has fewer bits
    largest = float(np.max(values, where=np.isfinite(values), initial=0) if is_float else values.max())
    for tag in (_MAX_SAMPLE_VALUE, _S_MAX_SAMPLE_VALUE):
        with contextlib.suppress(TypeError, ValueError, IndexError):
            told = float(np.max(tags.get(tag, 0)))
            if 0 < told < np.inf and told >= largest / _OVERSHOOT:
                return told
    if is_float:  # white lies anywhere: a usual one is taken where they nearly reach it, and 1 where they lie below it
        near = next((white for white in (255.0, 65535.0) if white / 2 < largest <= white * _OVERSHOOT), largest)
        return 1.0 if largest <= _OVERSHOOT else near
    bits = int(np.max(tags.get(BITS_PER_SAMPLE, 16)))
    if tags.get(_SAMPLE_FORMAT) == (2,) and bits <= 16:  # signed
        return 2.0 ** (bits - 1) - 1
    return next((white for white in (255.0, 1023.0, 4095.0, 16383.0, 65535.0) if largest <= white * _OVERSHOOT), largest)


def _black(values, white, tags):
    """The value of black: what the file says; else 0, or the smallest where values lie far below it."""
    smallest = float(np.min(values, where=np.isfinite(values), initial=0))
    for tag in (_MIN_SAMPLE_VALUE, _S_MIN_SAMPLE_VALUE):
        with contextlib.suppress(TypeError, ValueError, IndexError):
            told = float(np.min(tags[tag])) if tag in tags else 0.0
            if -np.inf < told < 0 and told <= smallest:
                return told
    return smallest if smallest < -0.1 * white else 0.0


class TooDeepError(Exception):
    """A photo of more than 8 bits can be read in 8 bits only. The message says why, in a few words."""


def is_deep(image: Image.Image, data: bytes) -> bool:
    """Whether an opened image has more than 8 bits a channel: a gray one of any format, or PNG and TIFF in color."""
    if image.format == 'PNG':
        return data[24:25] == b'\x10'  # its header always comes first
    bits: Any = getattr(image, 'tag_v2', {}).get(BITS_PER_SAMPLE, ())
    return image.mode in GRAY_MODES or (image.mode in ('RGB', 'RGBA', 'RGBX') and set(bits) == {16})


def read_deep(image: Image.Image, data: bytes, profile: bytes | None) -> tuple[DeepImage, bool]:
    """Reads the current frame of a loaded image for which `is_deep` holds.

    Args:
        image: loaded by Pillow.
        data: the bytes of its file.
        profile: its ICC profile, if it is another than sRGB; a broken one is ignored.

    Returns:
        (the image in sRGB, whether Pillow has turned it already where the file says so).

    Raises:
        TooDeepError: it cannot be read in all its bits.
    """
    if 'imagecodecs' not in globals():
        raise TooDeepError("for 16, pip install 'jaxcolor[formats]'")
    if image.mode in GRAY_MODES:
        pixels, is_turned = gray_levels(image, 65535)[..., None], True
    else:
        try:
            pixels, is_turned = _read_png(image, data) if image.format == 'PNG' else _read_tiff(image, data), False
        except TooDeepError:
            raise
        except Exception as error:  # the libraries raise anything on broken files
            raise TooDeepError(f'{type(error).__name__}: {error}'.rstrip(': ')) from None
        if pixels.shape[:2] != (image.height, image.width) and pixels.shape[:2] != (image.width, image.height):
            raise TooDeepError('its size is unclear')
    if profile:
        with contextlib.suppress(ImageCms.PyCMSError, OSError, ValueError, TypeError, imagecodecs.CmsError):
            pixels = _in_srgb(pixels, profile)
    return DeepImage(pixels), is_turned


def _read_png(image, data):
    """uint16 (H, W, C)."""
    if 'transparency' in image.info or getattr(image, 'n_frames', 1) > 1:
        raise TooDeepError('transparent colors and animations are read in 8')
    return imagecodecs.png_decode(data)


def _read_tiff(image, data):
    """uint16 (H, W, 3 or 4), not turned."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages[image.tell()]
        pixels = page.asarray()
        if int(page.planarconfig) == 2:
            pixels = np.moveaxis(pixels, 0, -1)
        kinds = [int(kind) for kind in page.extrasamples]
    if pixels.dtype != np.uint16 or pixels.ndim != 3 or pixels.shape[2] < 3 or int(page.photometric) != 2:
        raise TooDeepError('its layout is not RGB')
    colors, alpha = pixels[..., :3], pixels[..., 3:4] if kinds[:1] in ([1], [2]) else None
    colors = _levels(colors, 0.0, _white(colors, 'TIFF', image.tag_v2), 65535)
    if alpha is None:
        return np.ascontiguousarray(colors)
    if kinds[0] == 1:  # the colors are multiplied by it
        share = np.maximum(alpha, 1) / np.float32(65535)
        colors = np.round(np.minimum(colors / share, 65535)).astype(np.uint16)
    return np.concatenate([colors, alpha], axis=2)


def _in_srgb(pixels, profile):
    """Converts the colors of uint16 (H, W, C); the alpha stays."""
    space = ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile.xcolor_space.strip()
    channels = pixels.shape[2]
    if space not in ('RGB', 'GRAY') or (space == 'GRAY') != (channels < 3):
        if space != 'RGB':
            return pixels  # as Pillow does with profiles of another kind of image
        pixels = np.concatenate([np.repeat(pixels[..., :1], 3, axis=2), pixels[..., 1:]], axis=2)
    is_gray = space == 'GRAY'
    colors = pixels[..., 0] if is_gray else pixels[..., :3]
    out = np.empty((*pixels.shape[:2], 3 + (pixels.shape[2] in (2, 4))), np.uint16)
    if out.shape[2] == 4:
        out[..., 3] = pixels[..., -1]
    for rows in _blocks(pixels):
        block = np.ascontiguousarray(colors[rows])
        options = {'colorspace': 'gray' if is_gray else 'rgb', 'outcolorspace': 'rgb', 'outdtype': 'uint16'}
        out[rows, ..., :3] = imagecodecs.cms_transform(block, profile, SRGB, **options)
    return out


def encode_png(image: DeepImage) -> bytes:
    """A PNG file of 16 bits a channel."""
    return bytes(imagecodecs.png_encode(image.pixels))
