"""A photograph's file bytes -> an upright sRGB image, or the reason why it is none."""

import contextlib
import io
import warnings

import numpy as np
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError
from PIL.Image import Transpose

# What cameras, scanners and the web give out. Pillow knows formats that run other programs; they have no business here.
Image.init()
FORMATS = [name for name in ('JPEG', 'PNG', 'WEBP', 'TIFF', 'BMP', 'GIF', 'PPM', 'AVIF') if name in Image.OPEN]
SUFFIXES = frozenset(['.jpg', '.jpeg', '.jpe', '.png', '.webp', '.tif', '.tiff', '.bmp', '.gif', '.ppm', '.avif'])


class RejectedError(Exception):
    """The file gives no photo that can be used; the message says why, in a few words."""


@contextlib.contextmanager
def pillow_unguarded():
    """Lifts Pillow's own limit of pixels, since `open_photo` checks the caller's, and silences its remarks.

    Both are the whole process's: enter it before threads start that decode, and leave it after they have ended.
    """
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def open_photo(data, *, shorter_side=None, max_megapixels, keep_alpha=False):
    """Decodes a photo; call it inside `pillow_unguarded()`, or Pillow raises on large ones by a limit of its own.

    Args:
        data: the bytes of its file.
        shorter_side: shrinks it so that its shorter side has this many pixels (area filter); smaller photos stay.
        max_megapixels: refuses photos of more pixels, before they are unpacked.
        keep_alpha: gives RGBA where the photo has transparency, instead of putting it on white.

    Returns:
        An RGB `PIL.Image` in sRGB, turned upright as its EXIF says, transparent parts white.

    Raises:
        RejectedError: not a photo, truncated or broken, too many pixels.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, EOFError):
        raise RejectedError('not a photo') from None
    width, height = image.size
    if width * height > max_megapixels * 1e6:
        raise RejectedError(f'{width}x{height} is more than {max_megapixels:g} megapixels')
    try:
        profile, orientation = image.info.get('icc_profile'), image.getexif().get(ExifTags.Base.Orientation)
        if shorter_side and min(width, height) > shorter_side:
            scale = shorter_side / min(width, height)
            size = (max(1, round(width * scale)), max(1, round(height * scale)))
            # JPEG can be unpacked at 1/2, 1/4, 1/8 of its size, itself an area filter; stay at twice the size or more.
            image.draft(None, (2 * size[0], 2 * size[1]))
            image = _to_8_bits(image, keep_alpha).resize(size, Image.Resampling.BOX)
        else:
            image = _to_8_bits(image, keep_alpha)
        image = _to_srgb(image, profile)
        return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image
    except (OSError, EOFError) as error:
        raise RejectedError('truncated' if 'truncated' in str(error) else f'broken: {error}') from None
    # Whatever else Pillow's decoders stumble over (struct.error, ZeroDivisionError, ...) is the file's fault.
    except Exception as error:
        raise RejectedError(f'broken: {type(error).__name__}: {error}') from None


# EXIF orientation -> what turns the photo upright.
_UPRIGHT = dict(
    zip(
        range(2, 9),
        (
            Transpose[name]
            for name in (
                'FLIP_LEFT_RIGHT',
                'ROTATE_180',
                'FLIP_TOP_BOTTOM',
                'TRANSPOSE',
                'ROTATE_270',
                'TRANSVERSE',
                'ROTATE_90',
            )
        ),
        strict=True,
    )
)


def _to_8_bits(image, keep_alpha):
    """Any mode -> L, RGB, CMYK, or RGBA where transparency is to be kept."""
    if image.mode in ('I;16', 'I;16B', 'I;16L', 'I;16N', 'I', 'F'):
        values = np.asarray(image).astype(np.float64)
        top = 1 if image.mode == 'F' and values.max() <= 1 else 65535
        return Image.fromarray(np.clip(values * (255 / top), 0, 255).astype(np.uint8))
    if image.mode in ('PA', 'LA', 'La', 'RGBa', 'RGBA') or 'transparency' in image.info:
        image = image.convert('RGBA')
        if keep_alpha:
            return image
        return Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image).convert('RGB')
    if image.mode in ('L', 'RGB', 'CMYK'):
        return image
    return image.convert('L' if image.mode == '1' else 'RGB')


_SRGB = ImageCms.createProfile('sRGB')


def _to_srgb(image, profile):
    """L, RGB, CMYK or RGBA, and its ICC profile (bytes) or None -> RGB(A) in sRGB. A broken profile counts as none."""
    if image.mode == 'RGBA':
        alpha = image.getchannel('A')
        image = _to_srgb(image.convert('RGB'), profile)
        image.putalpha(alpha)
        return image
    if profile:
        with contextlib.suppress(ImageCms.PyCMSError, OSError, ValueError, TypeError):
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if 'sRGB' not in ImageCms.getProfileDescription(source):
                return ImageCms.profileToProfile(image, source, _SRGB, outputMode='RGB')
    return image.convert('RGB')


def is_gray(lab):
    """uint8 Lab (H, W, 3) -> whether fewer than 1% of its pixels have a chroma above 4: no colors to learn."""
    a, b = (lab[::2, ::2, i].astype(np.int32) - 128 for i in (1, 2))  # a quarter of them tells
    return bool(np.mean(a * a + b * b > 16) < 0.01)
