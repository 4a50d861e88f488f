"""Photos of more than 8 bits a channel."""

import contextlib
import dataclasses
from typing import Any

import numpy as np
from PIL import Image

from jaxcolor.prepare import tiff
from jaxcolor.prepare.values import BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT, Limits, blocks, levels

with contextlib.suppress(ImportError):  # in the extra `formats`
    import imagecodecs

# Pillow's modes of gray images of more than 8 bits; it has none for colors.
GRAY_MODES = ('I;16', 'I;16B', 'I;16L', 'I;16N', 'I', 'F')


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
        for rows in blocks(self.pixels):
            out[rows] = (self.pixels[rows].astype(np.uint32) + 128) // 257
        return Image.fromarray(out[..., 0] if out.shape[2] == 1 else out)


def gray_values(image: Image.Image) -> np.ndarray:
    """The stored values of a gray image, (H, W): of a mode of GRAY_MODES, or signed ones of 8 bits."""
    values, tags = np.asarray(image), getattr(image, 'tag_v2', {})
    kind = tags.get(SAMPLE_FORMAT, (1,))
    if values.dtype == np.int32 and kind == (1,) and tags.get(BITS_PER_SAMPLE) == (32,):
        return values.view(np.uint32)  # Pillow knows signed ones only
    if kind == (2,) and values.dtype in (np.uint8, np.uint16):
        return values.view(f'i{values.dtype.itemsize}')  # and of these unsigned ones only
    return values


def is_signed(image: Image.Image) -> bool:
    """Whether a gray image of 8 bits holds signed values, which Pillow takes for unsigned ones."""
    return image.mode == 'L' and getattr(image, 'tag_v2', {}).get(SAMPLE_FORMAT) == (2,)


def gray_levels(image: Image.Image, top: int, limits: Limits | None = None) -> np.ndarray:
    """A gray image, as for `gray_values` -> its levels from 0 to `top`: uint8 (H, W), or uint16 where `top` is 65535."""
    values, tags = gray_values(image), getattr(image, 'tag_v2', {})
    if image.format in ('PNG', 'PPM', 'JPEG2000') and values.dtype.kind != 'f':
        return levels(values, 0.0, 65535.0, top)  # Pillow scales what has fewer bits
    black, white = (limits or Limits()).of(values, tags)
    if tags.get(PHOTOMETRIC) == 0:  # white is zero; Pillow turns this round for 8 bits alone
        black, white = white, black
    return levels(values, black, white, top)


class TooDeepError(Exception):
    """A photo of more than 8 bits can be read in 8 bits only. The message says why, in a few words."""


def is_deep(image: Image.Image, data: bytes) -> bool:
    """Whether an opened image has more than 8 bits a channel: a gray one of any format, or PNG and TIFF in color."""
    if image.format == 'PNG':
        return data[24:25] == b'\x10'  # its header always comes first
    bits: Any = getattr(image, 'tag_v2', {}).get(BITS_PER_SAMPLE, ())
    return image.mode in GRAY_MODES or (image.mode in ('RGB', 'RGBA', 'RGBX', 'CMYK') and set(bits) == {16})


def lost_bits(image: Any, data: bytes) -> bool:
    """Whether an opened image in color has more than 8 bits a channel, which are read in 8: of no TIFF or PNG.

    Call it before the image is loaded.
    """
    if image.mode in GRAY_MODES:
        return False
    if image.format == 'PPM':
        return max((size for size in image.tile[0][3] if isinstance(size, int)), default=0) > 255
    if image.format == 'JPEG2000':  # the precision of its first component (ISO 15444-1, A.5.1)
        start = data.find(b'\xff\x4f\xff\x51')
        return start >= 0 and (data[start + 42] & 127) + 1 > 8
    return image.info.get('bit_depth', 8) > 8  # HEIC


def read_deep(image: Any, data: bytes, limits: Limits) -> tuple[np.ndarray, bool]:
    """Reads the current frame of a loaded image for which `is_deep` holds.

    Args:
        image: loaded by Pillow.
        data: the bytes of its file.
        limits: of the file.

    Returns:
        (uint16 (H, W, C), as `DeepImage` has, in the photo's own color space; whether Pillow has turned it already where
        the file says so).

    Raises:
        TooDeepError: it cannot be read in all its bits.
    """
    if 'imagecodecs' not in globals():
        raise TooDeepError("for 16, pip install 'jaxcolor[formats]'")
    if image.mode in GRAY_MODES and 'transparency' not in image.info:
        return gray_levels(image, 65535, limits)[..., None], True
    try:
        if image.format == 'PNG':
            if getattr(image, 'n_frames', 1) > 1:
                raise TooDeepError('animations are read in 8')
            pixels = imagecodecs.png_decode(data)  # with an alpha where one color is transparent
            pixels = pixels if pixels.ndim == 3 else pixels[..., None]
        else:
            with tiff.open_tiff(data) as file:
                pixels = tiff.read_page(file.pages[image.tell()], image.tag_v2, limits)[0]
    except TooDeepError:
        raise
    except tiff.LayoutError as error:
        raise TooDeepError(str(error)) from None
    except Exception as error:  # the libraries raise anything on broken files
        raise TooDeepError(f'{type(error).__name__}: {error}'.rstrip(': ')) from None
    if pixels.shape[:2] != (image.height, image.width) and pixels.shape[:2] != (image.width, image.height):
        raise TooDeepError('its size is unclear')
    return pixels, False


def encode_png(image: DeepImage) -> bytes:
    """A PNG file of 16 bits a channel."""
    return bytes(imagecodecs.png_encode(image.pixels))
