"""Color profiles: conversion to sRGB in 8 and 16 bits. What counts is what a profile says, not its name."""

import contextlib
import functools
import io
import struct
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from jaxcolor.prepare.values import blocks

with contextlib.suppress(ImportError):  # in the extra `formats`
    import imagecodecs

_SRGB = ImageCms.createProfile('sRGB')
_created = ImageCms.ImageCmsProfile(_SRGB).tobytes()
# Without the moment of its creation (ICC.1:2022, 7.2.8), so that a photo's result is the same at any time.
SRGB = _created[:24] + struct.pack('>6H', 2000, 1, 1, 0, 0, 0) + _created[36:]
_ERRORS = (ImageCms.PyCMSError, OSError, ValueError, TypeError)  # of a broken profile


def profile_of(image: Image.Image) -> bytes | None:
    """The ICC profile of a loaded image; of a PNG that has none, but a gamma, one that says it. None of sRGB."""
    info = image.info
    if profile := info.get('icc_profile'):
        return profile
    gamma = info.get('gamma', 0) if image.format == 'PNG' and 'srgb' not in info else 0
    # 1 / 2.2 stands for sRGB (PNG, third edition, 11.3.2.5). Beyond these limits no screen was.
    if not 0.1 < gamma < 10 or abs(gamma * 2.2 - 1) < 0.05:
        return None
    return _with_gamma(1 / gamma)


def _with_gamma(exponent):
    """The profile of sRGB with other curves: linear light = level ** exponent (ICC.1:2022, 10.18)."""
    profile = bytearray(SRGB)
    for at in range(132, 132 + 12 * int.from_bytes(SRGB[128:132], 'big'), 12):
        if SRGB[at : at + 4] in (b'rTRC', b'gTRC', b'bTRC'):
            start = int.from_bytes(SRGB[at + 4 : at + 8], 'big')
            profile[start : start + 16] = b'para' + bytes(8) + struct.pack('>I', round(exponent * 65536))
            profile[at + 8 : at + 12] = struct.pack('>I', 16)
    return bytes(profile)


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


def to_srgb(image: Any, profile: bytes | None, keep_gray: bool = False) -> Any:
    """An L, RGB, CMYK or RGBA image and its ICC profile (bytes or None) -> RGB(A) in sRGB, or L where gray is kept; the
    image itself where it is that already. A broken profile is ignored."""
    if image.mode == 'RGBA':
        alpha = image.getchannel('A')
        red, green, blue = image.convert('RGB').split()
        # Gray that became RGBA may have a profile of gray.
        image = to_srgb(red if red == green == blue else image.convert('RGB'), profile)
        image.putalpha(alpha)
        return image
    if profile:
        with contextlib.suppress(*_ERRORS):
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            is_rgb = _is_of_rgb(profile)
            if is_rgb and image.mode == 'L':
                image = image.convert('RGB')
            if not (is_rgb and _is_srgb(profile)):
                return ImageCms.profileToProfile(image, source, _SRGB, outputMode='RGB')
    # A copy of a large photo is a third of the time that it takes to read it.
    return image if image.mode == 'RGB' or (keep_gray and image.mode == 'L') else image.convert('RGB')


def deep_to_srgb(pixels: np.ndarray, profile: bytes | None) -> np.ndarray:
    """Converts the colors of uint16 (H, W, C), of as many channels as `DeepImage` has; the alpha stays. A broken profile is
    ignored, as in `to_srgb`. The extra `formats` must be there."""
    if profile:
        with contextlib.suppress(*_ERRORS, imagecodecs.CmsError):
            if not (_is_of_rgb(profile) and _is_srgb(profile)):
                return _converted(pixels, profile)
    return pixels


def _converted(pixels, profile):
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
    for rows in blocks(pixels):
        block = np.ascontiguousarray(colors[rows])
        options = {'colorspace': 'gray' if is_gray else 'rgb', 'outcolorspace': 'rgb', 'outdtype': 'uint16'}
        out[rows, ..., :3] = imagecodecs.cms_transform(block, profile, SRGB, **options)
    return out
