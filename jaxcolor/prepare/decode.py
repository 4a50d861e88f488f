"""Decodes a photo file's bytes to an upright sRGB image, or says why it cannot."""

import contextlib
import ctypes
import io
import logging
import os
import threading
import warnings
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
from PIL import ExifTags, Image, PngImagePlugin
from PIL.Image import Transpose

from jaxcolor.errors import ordinary_errors
from jaxcolor.prepare import tiff
from jaxcolor.prepare.deep import GRAY_MODES, DeepImage, TooDeepError, gray_levels, is_deep, is_signed, read_deep
from jaxcolor.prepare.profiles import deep_to_srgb, profile_of, to_srgb
from jaxcolor.prepare.values import Limits

# Plug-ins of Pillow, in the extra `formats`. They add their formats to Pillow's.
with contextlib.suppress(ImportError):
    import pillow_heif

    pillow_heif.register_heif_opener()
with contextlib.suppress(ImportError):
    import pillow_jxl  # noqa: F401

# The formats of cameras, scanners and the web. Pillow also has formats that start other programs: they are not accepted.
Image.init()
_FORMATS = 'JPEG PNG WEBP TIFF BMP GIF PPM AVIF MPO JPEG2000 HEIF JXL PSD PCX SGI'
FORMATS: list[str] = [name for name in _FORMATS.split() if name in Image.OPEN]
# Parts of the names that photos of these formats have.
_SUFFIXES = (
    '.jpg .jpeg .jpe .jfif .mpo .png .apng .webp .tif .tiff .bmp .gif .ppm .pgm .pbm .pnm .avif .avifs'
    ' .jp2 .j2k .j2c .jpc .jpf .jpx .tga .dib .heic .heif .heics .heifs .hif .jxl .psd .pcx .sgi'
)
SUFFIXES = frozenset(_SUFFIXES.split())
# What files start with whose format needs the extra.
_HEIF_BRANDS = (b'heic', b'heix', b'hevc', b'heim', b'heis', b'mif1', b'msf1')
_JXL_STARTS = (b'\xff\x0a', b'\0\0\0\x0cJXL \r\n\x87\n')
# What photos start with, beside TIFFs: JPEG, PNG, GIF, BMP, Photoshop, JPEG 2000.
_STARTS = (
    b'\xff\xd8\xff',
    b'\x89PNG',
    b'GIF8',
    b'BM',
    b'8BPS',
    b'\0\0\0\x0cjP',
    b'\xffO\xffQ',
)
AnyImage: TypeAlias = Any  # Image.Image, or the `tiff.OddTiff` that stands for one

# EXIF orientation -> the transposition that turns the photo upright.
_UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
# The same for arrays (H, W, C).
_UPRIGHT_ARRAY = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


def is_photo(name: str | os.PathLike) -> bool:
    """Whether a file is a photo, by its suffix."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


class RejectedError(Exception):
    """The file cannot be used as a photo. The message is the reason, in a few words."""


# Libraries that report what is odd in a file; what it comes to is one sentence of ours.
_LOGGERS = [logging.getLogger(name) for name in ('PIL', 'tifffile', 'imagecodecs')]
_guard, _unguarding = threading.Lock(), 0  # how many threads are in `pillow_unguarded`
_settings = contextlib.ExitStack()


@contextlib.contextmanager
def pillow_unguarded() -> Iterator[None]:
    """Lifts Pillow's own pixel limit, since `open_photo` checks the caller's, and silences what Pillow, libtiff and tifffile
    say of odd files.

    It also lets a PNG's text or profile unpack to 64 MB: Pillow rejects photos for more than one.
    All settings are process-wide: they hold from when the first thread enters until the last one leaves. Enter the context
    before starting threads that decode, leave it after they have ended.
    """
    global _unguarding
    with _guard:
        if not _unguarding:
            _settings.enter_context(_pillow_settings())
        _unguarding += 1
    try:
        yield
    finally:
        with _guard:
            _unguarding -= 1
            if not _unguarding:
                _settings.close()


@contextlib.contextmanager
def _pillow_settings():
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    text_limit, PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
    levels = [logger.level for logger in _LOGGERS]
    for logger in _LOGGERS:
        logger.setLevel(logging.CRITICAL)
    with warnings.catch_warnings(), _quiet_libtiff():
        warnings.simplefilter('ignore')
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK = limit, text_limit
            for logger, level in zip(_LOGGERS, levels, strict=True):
                logger.setLevel(level)


@contextlib.contextmanager
def _quiet_libtiff():
    """Takes away libtiff's handler of errors, which prints them; Pillow takes away that of warnings alone.

    Where Pillow's own module does not lead to its libtiff, it goes on printing.
    """
    try:
        set_handler = ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler
    except (OSError, AttributeError, TypeError):
        yield
        return
    set_handler.restype, set_handler.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    handler = set_handler(None)
    try:
        yield
    finally:
        set_handler(handler)


def open_photo(
    data: bytes, *, shorter_side: int | None = None, max_megapixels: float, keep_alpha: bool = False
) -> Image.Image:
    """Decodes a photo. Call it inside `pillow_unguarded()`, or Pillow's own pixel limit applies, too.

    Args:
        data: the bytes of its file.
        shorter_side: in pixels; larger photos are shrunk to it by an area filter, smaller ones keep their size.
        max_megapixels: larger photos are rejected before they are unpacked.
        keep_alpha: returns RGBA where the photo has transparency, instead of compositing it on white.

    Returns:
        An RGB (or RGBA) image in sRGB, turned upright by its EXIF orientation.

    Raises:
        RejectedError: not a photo, truncated or broken, too many pixels.
    """
    image = open_image(data, max_megapixels)
    with rejecting_broken():
        # Of colors of 16 bits, Pillow takes the upper 8, and some layouts wrongly.
        is_odd = isinstance(image, tiff.OddTiff)
        if is_odd or (image.format == 'TIFF' and image.mode not in GRAY_MODES and is_deep(image, data)):
            with contextlib.suppress(TooDeepError):
                found = decode_deep(image, data, Limits())
                upright = found.in_8_bits() if isinstance(found, DeepImage) else found
                upright = upright.convert('RGBA' if upright.mode[-1] == 'A' else 'RGB')
                upright = upright if keep_alpha or upright.mode == 'RGB' else _on_white(upright)
                size = _shrunk_size(upright, shorter_side)
                return upright.resize(size, Image.Resampling.BOX) if size else upright
        return decode(image, shorter_side, keep_alpha)


def _shrunk_size(image, shorter_side):
    """The size (w, h) of a photo that is to be shrunk; None of one that is not."""
    if not shorter_side or min(image.size) <= shorter_side:
        return None
    scale = shorter_side / min(image.size)
    return tuple(max(1, round(side * scale)) for side in image.size)


def _on_white(image):
    """RGBA -> RGB"""
    return Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image).convert('RGB')


@contextlib.contextmanager
def rejecting_broken() -> Iterator[None]:
    """Raises RejectedError where decoding fails."""
    try:
        with ordinary_errors():
            yield
    except RejectedError:
        raise
    except (OSError, EOFError) as error:
        raise RejectedError('truncated' if 'truncated' in str(error) else f'broken: {error}') from None
    # Pillow's decoders raise more on broken files: struct.error, ZeroDivisionError, ...
    except Exception as error:
        raise RejectedError(f'broken: {type(error).__name__}: {error}') from None


def open_image(data: bytes, max_megapixels: float) -> AnyImage:
    """Reads a photo's header, of a TIFF that of its first page. Raises RejectedError: not a photo, or too many pixels."""
    try:
        with ordinary_errors():
            image = _open_image(data, [*FORMATS, 'TGA'] if _is_tga(data) else FORMATS)
            if image.format == 'TIFF' and (not tiff.seek_photo(image) or tiff.is_odd(image)):
                image = tiff.OddTiff(data)
                tiff.seek_photo(image)
        clear = image.info.get('transparency')
        if image.format == 'PNG' and image.mode == 'L' and isinstance(clear, int) and data[24] in (2, 4):
            # Pillow scales grays of 2 and 4 bits, but not which of them is transparent.
            image.info['transparency'] = clear % 2 ** data[24] * (255 // (2 ** data[24] - 1))
    except tiff.LayoutError as error:
        raise RejectedError(str(error)) from None
    except Exception:  # as above
        needs_extra = {'HEIF': data[4:8] == b'ftyp' and data[8:12] in _HEIF_BRANDS, 'JXL': data.startswith(_JXL_STARTS)}
        if any(is_kind and name not in FORMATS for name, is_kind in needs_extra.items()):
            raise RejectedError("HEIC and JPEG XL need pip install 'jaxcolor[formats]'") from None
        is_known = tiff.is_tiff(data) or data.startswith(_STARTS)
        raise RejectedError('broken, or of a kind that cannot be read' if is_known else 'not a photo') from None
    check_size(image, max_megapixels)
    return image


def _open_image(data, formats):
    try:
        return Image.open(io.BytesIO(data), formats=formats)
    except Exception:  # as above
        if tiff.is_tiff(data):
            return tiff.OddTiff(data)
        # While Pillow opens a JPEG it takes the resolution from EXIF, and gives up where that is odd. So EXIF comes after.
        start = data.find(b'Exif\0\0', 0, 2**16)
        if start < 0 or not data.startswith(b'\xff\xd8'):
            raise
        image = Image.open(io.BytesIO(data[:start] + b'exif' + data[start + 4 :]), formats=formats)
        image.info['exif'] = data[start : start - 2 + int.from_bytes(data[start - 2 : start], 'big')]
        return image


def _is_tga(data):
    """Whether a file can be a TGA, which has no signature: by the fields of its header that have few values."""
    return len(data) > 18 and data[1] in (0, 1) and data[2] in (1, 2, 3, 9, 10, 11) and data[16] in (8, 15, 16, 24, 32)


def check_size(image: AnyImage, max_megapixels: float) -> None:
    """Raises RejectedError: an opened image, at its current frame, has too many pixels."""
    width, height = image.size
    if width * height > max_megapixels * 1e6:
        raise RejectedError(f'{width}x{height} is more than {max_megapixels:g} megapixels')


def decode_deep(image: AnyImage, data: bytes, limits: Limits) -> DeepImage | Image.Image:
    """Decodes the current frame of an opened image that is an `OddTiff`, or for which `is_deep` holds.

    Args:
        image: the opened image.
        data: the bytes of its file.
        limits: of the file.

    Returns:
        The frame in sRGB, upright; of 8 bits where the file has no more.

    Raises:
        TooDeepError: it cannot be read in all its bits.
        RejectedError: an `OddTiff` cannot be read.
    """
    stored = image.tag_v2.get(ExifTags.Base.Orientation, 1) if image.format == 'TIFF' else None
    if stored is None or image.mode in GRAY_MODES:  # else Pillow would decode it to 8 bits for nothing
        image.load()
    orientation, bits = _orientation(image), 16
    if isinstance(image, tiff.OddTiff):
        try:
            (pixels, bits), is_turned = image.decoded(limits), False
        except tiff.LayoutError as error:
            raise RejectedError(str(error)) from None
    else:
        pixels, is_turned = read_deep(image, data, limits)
    pixels = deep_to_srgb(pixels, profile_of(image))
    if stored is not None and not is_turned:
        orientation = stored  # Pillow has turned its own pixels, and forgotten why
    if orientation in _UPRIGHT_ARRAY:
        pixels = np.ascontiguousarray(_UPRIGHT_ARRAY[orientation](pixels))
    if bits > 8:
        return DeepImage(pixels)
    upright = DeepImage(pixels).in_8_bits()
    return upright.convert('RGBA') if upright.mode == 'LA' else upright


def decode(
    image: Image.Image,
    shorter_side: int | None,
    keep_alpha: bool,
    keep_gray: bool = False,
    limits: Limits | None = None,
) -> Image.Image:
    """An opened image, at its current frame -> RGB(A) in sRGB, upright; L where gray is kept. See `open_photo`."""
    size = _shrunk_size(image, shorter_side)
    if size:
        # JPEG decodes at 1/2, 1/4, 1/8 of its size, itself an area filter; stay at twice the target or more.
        image.draft(None, (2 * size[0], 2 * size[1]))
    image.load()
    # Only now: Pillow turns TIFFs while it loads them, and PNGs may have their EXIF data behind the pixels.
    profile, orientation = profile_of(image), _orientation(image)
    upright = _to_8_bits(image, keep_alpha, limits)
    if size:
        upright = upright.resize(size, Image.Resampling.BOX)
    upright = to_srgb(upright, profile, keep_gray)
    return upright.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else upright


def _orientation(image):
    """The EXIF orientation that a loaded image still has to be turned by; 1 if there is none that can be read."""
    if image.format in ('HEIF', 'JXL'):
        return 1  # their decoders turn them; what EXIF says is to be ignored (ISO 23008-12, ISO 18181-2)
    try:
        exif = image.getexif()
        if image.format == 'AVIF':  # Pillow writes how it is turned into EXIF, but without that it takes what XMP says
            exif = Image.Exif()
            exif.load(image.info.get('exif', b''))
        return int(exif.get(ExifTags.Base.Orientation, 1))
    except Exception:  # as in `read_exif`
        return 1


def _to_8_bits(image, keep_alpha, limits):
    """An image of any mode -> L, RGB, CMYK, or RGBA where transparency is kept."""
    if image.mode in GRAY_MODES or is_signed(image):
        gray, clear = Image.fromarray(gray_levels(image, 255, limits)), image.info.get('transparency')
        if not isinstance(clear, int):
            return gray
        alpha = Image.fromarray(np.uint8(255) * (np.asarray(image) != clear))
        image = Image.merge('RGBA', [gray, gray, gray, alpha])
        return image if keep_alpha else _on_white(image).convert('L')
    if image.format == 'TGA' and image.mode == 'RGBA' and not image.getchannel('A').getbbox():
        return image.convert('RGB')  # many programs leave the fourth channel empty
    if image.mode in ('PA', 'LA', 'La', 'RGBa', 'RGBA') or 'transparency' in image.info:
        is_gray = image.mode in ('LA', 'La')
        image = (image.convert('LA') if image.mode == 'La' else image).convert('RGBA')
        return image if keep_alpha else _on_white(image).convert('L' if is_gray else 'RGB')
    if image.mode in ('L', 'RGB', 'CMYK'):
        return image
    return image.convert('L' if image.mode == '1' else 'RGB')


def is_gray(lab: np.ndarray) -> bool:
    """Whether a photo, uint8 Lab (H, W, 3), has no colors to learn: fewer than 1% of its pixels have a chroma above 4."""
    a, b = (lab[::2, ::2, i].astype(np.int32) - 128 for i in (1, 2))  # every fourth pixel is enough
    return bool(np.mean(a * a + b * b > 16) < 0.01)
