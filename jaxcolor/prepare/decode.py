"""Decodes a photo file's bytes to an upright sRGB image, or says why it cannot."""

import contextlib
import functools
import io
import os
import threading
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageCms, PngImagePlugin
from PIL.Image import Transpose

from jaxcolor.errors import ordinary_errors
from jaxcolor.prepare.deep import GRAY_MODES, DeepImage, TooDeepError, gray_levels, is_deep, read_deep
from jaxcolor.prepare.file_metadata import Metadata, read_metadata

# Plug-ins of Pillow, in the extra `formats`. They add their formats to Pillow's.
with contextlib.suppress(ImportError):
    import pillow_heif

    pillow_heif.register_heif_opener()
with contextlib.suppress(ImportError):
    import pillow_jxl  # noqa: F401

# The formats of cameras, scanners and the web. Pillow also has formats that start other programs: they are not accepted.
Image.init()
_FORMATS = ('JPEG', 'PNG', 'WEBP', 'TIFF', 'BMP', 'GIF', 'PPM', 'AVIF', 'MPO', 'JPEG2000', 'HEIF', 'JXL')
FORMATS: list[str] = [name for name in _FORMATS if name in Image.OPEN]
# Parts of the names that photos of these formats have.
_SUFFIXES = (
    '.jpg .jpeg .jpe .jfif .mpo .png .apng .webp .tif .tiff .bmp .gif .ppm .pgm .pbm .pnm .avif .avifs'
    ' .jp2 .j2k .jpx .tga .heic .heif .hif .jxl'
)
SUFFIXES = frozenset(_SUFFIXES.split())
# What files start with whose format needs the extra.
_HEIF_BRANDS = (b'heic', b'heix', b'hevc', b'heim', b'heis', b'mif1', b'msf1')
_JXL_STARTS = (b'\xff\x0a', b'\0\0\0\x0cJXL \r\n\x87\n')
# Frames of an MPO file that are no photos of their own: small copies for displays (CIPA DC-007, 5.2.3.3).
_MPO_THUMBNAILS = ('Large Thumbnail (VGA Equivalent)', 'Large Thumbnail (Full HD Equivalent)')

_SRGB = ImageCms.createProfile('sRGB')
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
_PROFILE_ERRORS = (ImageCms.PyCMSError, OSError, ValueError, TypeError)  # of a broken profile


def is_photo(name: str | os.PathLike) -> bool:
    """Whether a file is a photo, by its suffix."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


class RejectedError(Exception):
    """The file cannot be used as a photo. The message is the reason, in a few words."""


_guard, _unguarding = threading.Lock(), 0  # how many threads are in `pillow_unguarded`
_settings = contextlib.ExitStack()


@contextlib.contextmanager
def pillow_unguarded() -> Iterator[None]:
    """Lifts Pillow's own pixel limit, since `open_photo` checks the caller's, and silences Pillow's warnings.

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
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK = limit, text_limit


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
    image = _open(data, max_megapixels)
    with _rejecting_broken():
        # Of colors of 16 bits, Pillow takes the upper 8, and some layouts wrongly.
        if image.format == 'TIFF' and image.mode not in GRAY_MODES and is_deep(image, data):
            with contextlib.suppress(TooDeepError):
                upright = _decode_deep(image, data).in_8_bits()
                upright = upright if keep_alpha or upright.mode == 'RGB' else _on_white(upright)
                size = _shrunk_size(upright, shorter_side)
                return upright.resize(size, Image.Resampling.BOX) if size else upright
        return _decode(image, shorter_side, keep_alpha)


def _shrunk_size(image, shorter_side):
    """The size (w, h) of a photo that is to be shrunk; None of one that is not."""
    if not shorter_side or min(image.size) <= shorter_side:
        return None
    scale = shorter_side / min(image.size)
    return tuple(max(1, round(side * scale)) for side in image.size)


def _on_white(image):
    """RGBA -> RGB"""
    return Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image).convert('RGB')


class Frames(NamedTuple):
    """The pages or frames of a photo file."""

    # Upright, in sRGB; first the one that viewers show. L, RGB or RGBA, all RGBA if one is; what is deeper, as it is.
    images: list[Image.Image | DeepImage]
    total: int  # in the file: some may be missing, small copies or broken ones
    durations: list[float]  # ms, of each; empty where the frames are no animation
    loop: int  # how often an animation is played; 0 for ever
    has_cover: bool  # the first image is shown instead of the animation (PNG)
    format: str  # Pillow's name
    metadata: Metadata  # of the first image
    lost_depth: str  # why a photo of more than 8 bits a channel was read in 8 bits, in a few words


def open_frames(data: bytes, *, max_megapixels: float) -> Frames:
    """Decodes all pages or frames of a photo file, with their transparency. Call it inside `pillow_unguarded()`.

    Args:
        data: the bytes of the file.
        max_megapixels: of all frames together; larger files are rejected before they are unpacked.

    Raises:
        RejectedError: as `open_photo`; frames after the first may be broken.
    """
    image = _open(data, max_megapixels)
    total = _count_frames(image)
    if total * image.width * image.height > max_megapixels * 1e6:
        size = f'{total} frames of {image.width}x{image.height}'
        raise RejectedError(f'{size} are more than {max_megapixels:g} megapixels together')
    lost = []

    def decode():
        """The current frame, in all its bits where the result can hold them."""
        with _rejecting_broken():
            if is_deep(image, data):
                try:
                    return _decode_deep(image, data)
                except TooDeepError as error:
                    lost.append(str(error))
            frame = _decode(image, None, keep_alpha=True, keep_gray=True)
            return frame.copy() if frame is image and total > 1 else frame

    images = [decode()]
    metadata = read_metadata(image)
    is_animation = image.format in ('GIF', 'PNG', 'WEBP', 'AVIF')
    loop = image.info.get('loop', 1 if image.format == 'GIF' else 0)
    durations = [image.info.get('duration', 0)]
    first = image.tell()  # HEIC names the one to show
    for index in (index for index in range(total) if index != first):
        try:
            with _rejecting_broken():
                image.seek(index)
                _check_size(image, max_megapixels)
            frame = decode()
        except Exception:  # a file that is cut short: the frames before it are there
            break
        if image.format == 'MPO' and _is_small_copy(image, index, frame, images[0]):
            continue
        images.append(frame)
        durations.append(image.info.get('duration', 0))
    if any(isinstance(frame, Image.Image) and frame.mode == 'RGBA' for frame in images):
        images = [frame if isinstance(frame, DeepImage) else frame.convert('RGBA') for frame in images]
    frames = Frames(
        images,
        total,
        [float(duration or 0) for duration in durations] if is_animation and len(images) > 1 else [],
        loop if isinstance(loop, int) else 0,
        bool(image.info.get('default_image')),
        str(image.format),
        metadata,
        lost[0] if lost else '',
    )
    for frame in images:
        if isinstance(frame, Image.Image):
            frame.info = {}  # Pillow would write some of it to the result
    return frames


def _count_frames(image):
    """The number of pages or frames; 1 where it cannot be told."""
    try:
        return max(1, int(getattr(image, 'n_frames', 1)))
    except Exception:  # broken files raise anything
        return 1


def _is_small_copy(image, index, frame, first):
    """Whether an MPO's frame is a thumbnail, or a depth or gain map: smaller than the photo."""
    kind = image.mpinfo[0xB002][index]['Attribute']['MPType']
    return kind in _MPO_THUMBNAILS or frame.width * frame.height < first.width * first.height


@contextlib.contextmanager
def _rejecting_broken():
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


def _open(data, max_megapixels) -> Image.Image:
    """Reads a photo's header. Raises RejectedError: not a photo, or too many pixels."""
    try:
        with ordinary_errors():
            image = _open_image(data, [*FORMATS, 'TGA'] if _is_tga(data) else FORMATS)
    except Exception:  # as above
        if (data[4:8] == b'ftyp' and data[8:12] in _HEIF_BRANDS) or data.startswith(_JXL_STARTS):
            raise RejectedError("HEIC and JPEG XL need pip install 'jaxcolor[formats]'") from None
        raise RejectedError('not a photo') from None
    _check_size(image, max_megapixels)
    return image


def _open_image(data, formats):
    try:
        return Image.open(io.BytesIO(data), formats=formats)
    except Exception:  # as above
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


def _check_size(image, max_megapixels):
    width, height = image.size
    if width * height > max_megapixels * 1e6:
        raise RejectedError(f'{width}x{height} is more than {max_megapixels:g} megapixels')


def _decode_deep(image, data):
    """An opened image, at its current frame -> DeepImage. Raises TooDeepError."""
    stored = image.tag_v2.get(ExifTags.Base.Orientation, 1) if image.format == 'TIFF' else None
    if stored is None or image.mode in GRAY_MODES:  # else Pillow would decode it to 8 bits for nothing
        image.load()
    profile, orientation = image.info.get('icc_profile'), _orientation(image)
    with contextlib.suppress(*_PROFILE_ERRORS):
        if profile and _is_of_rgb(profile) and _is_srgb(profile):
            profile = None
    deep, is_turned = read_deep(image, data, profile)
    if stored is not None and not is_turned:
        orientation = stored  # Pillow has turned its own pixels, and forgotten why
    pixels = deep.pixels
    return DeepImage(np.ascontiguousarray(_UPRIGHT_ARRAY[orientation](pixels)) if orientation in _UPRIGHT else pixels)


def _decode(image, shorter_side, keep_alpha, keep_gray=False):
    """An opened image, at its current frame -> RGB(A) in sRGB, upright; L where gray is kept."""
    size = _shrunk_size(image, shorter_side)
    if size:
        # JPEG decodes at 1/2, 1/4, 1/8 of its size, itself an area filter; stay at twice the target or more.
        image.draft(None, (2 * size[0], 2 * size[1]))
    image.load()
    # Only now: Pillow turns TIFFs while it loads them, and PNGs may have their EXIF data behind the pixels.
    profile, orientation = image.info.get('icc_profile'), _orientation(image)
    upright = _to_8_bits(image, keep_alpha)
    if size:
        upright = upright.resize(size, Image.Resampling.BOX)
    upright = _to_srgb(upright, profile, keep_gray)
    return upright.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else upright


def _orientation(image):
    """The EXIF orientation that a loaded image still has to be turned by; 1 if there is none that can be read."""
    if image.format in ('HEIF', 'JXL'):
        return 1  # their decoders turn them; what EXIF says is to be ignored (ISO 23008-12, ISO 18181-2)
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # as in `read_exif`
        return 1


def _to_8_bits(image, keep_alpha):
    """An image of any mode -> L, RGB, CMYK, or RGBA where transparency is kept."""
    if image.mode in GRAY_MODES:
        return Image.fromarray(gray_levels(image, 255))
    if image.mode in ('PA', 'LA', 'La', 'RGBa', 'RGBA') or 'transparency' in image.info:
        is_gray, image = image.mode in ('LA', 'La'), image.convert('RGBA')
        return image if keep_alpha else _on_white(image).convert('L' if is_gray else 'RGB')
    if image.mode in ('L', 'RGB', 'CMYK'):
        return image
    return image.convert('L' if image.mode == '1' else 'RGB')


def _is_of_rgb(profile):
    return ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile.xcolor_space.strip() == 'RGB'


@functools.lru_cache(maxsize=16)
def _is_srgb(profile):
    """Whether an ICC profile (bytes) of RGB gives the colors of sRGB to 2 levels, whatever it is called."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    colors = np.stack(np.meshgrid(levels, levels, levels, indexing='ij'), axis=-1).reshape(len(levels), -1, 3)
    converted = np.asarray(ImageCms.profileToProfile(Image.fromarray(colors), source, _SRGB, outputMode='RGB'))
    return bool(np.abs(converted.astype(int) - colors).max() <= 2)


def _to_srgb(image, profile, keep_gray=False):
    """An L, RGB, CMYK or RGBA image and its ICC profile (bytes or None) -> RGB(A) in sRGB, or L where gray is kept; the
    image itself where it is that already. A broken profile is ignored."""
    if image.mode == 'RGBA':
        alpha = image.getchannel('A')
        red, green, blue = image.convert('RGB').split()
        # Gray that became RGBA may have a profile of gray.
        image = _to_srgb(red if red == green == blue else image.convert('RGB'), profile)
        image.putalpha(alpha)
        return image
    if profile:
        with contextlib.suppress(*_PROFILE_ERRORS):
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            is_rgb = _is_of_rgb(profile)
            if is_rgb and image.mode == 'L':
                image = image.convert('RGB')
            if not (is_rgb and _is_srgb(profile)):
                return ImageCms.profileToProfile(image, source, _SRGB, outputMode='RGB')
    # A copy of a large photo is a third of the time that it takes to read it.
    return image if image.mode == 'RGB' or (keep_gray and image.mode == 'L') else image.convert('RGB')


def is_gray(lab: np.ndarray) -> bool:
    """Whether a photo, uint8 Lab (H, W, 3), has no colors to learn: fewer than 1% of its pixels have a chroma above 4."""
    a, b = (lab[::2, ::2, i].astype(np.int32) - 128 for i in (1, 2))  # every fourth pixel is enough
    return bool(np.mean(a * a + b * b > 16) < 0.01)
