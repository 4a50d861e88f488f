"""Decodes all pages or frames of a photo file."""

import contextlib
from typing import NamedTuple

from PIL import Image

from jaxcolor.prepare import tiff
from jaxcolor.prepare.decode import AnyImage, RejectedError, check_size, decode, decode_deep, open_image, rejecting_broken
from jaxcolor.prepare.deep import GRAY_MODES, DeepImage, TooDeepError, gray_values, is_deep, lost_bits
from jaxcolor.prepare.file_metadata import Metadata, read_metadata
from jaxcolor.prepare.values import Limits

# Frames of an MPO file that are no photos of their own: small copies for displays (CIPA DC-007, 5.2.3.3).
_MPO_THUMBNAILS = ('Large Thumbnail (VGA Equivalent)', 'Large Thumbnail (Full HD Equivalent)')
# Formats whose frames may have sizes of their own, and are found without decoding those before them.
_OF_PAGES = ('TIFF', 'MPO', 'HEIF')
# What each of several frames counts at least: a million frames of a pixel would take gigabytes, and hours.
_LEAST_PIXELS = 128 * 128


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
    notes: list[str]  # what was lost or guessed in reading, a clause each


def open_frames(data: bytes, *, max_megapixels: float) -> Frames:
    """Decodes all pages or frames of a photo file, with their transparency. Call it inside `pillow_unguarded()`.

    Smaller copies of pages, such as the steps of a pyramid, and masks are no pages.

    Args:
        data: the bytes of the file.
        max_megapixels: of all frames together, of which each counts as 128x128 pixels at least; larger files are rejected
            before they are unpacked.

    Raises:
        RejectedError: as `open_photo`; frames after the first may be broken.
    """
    image = open_image(data, max_megapixels)
    notes = ['it has more than 8 bits a channel, its result has 8'] if lost_bits(image, data) else []
    pages, first, is_whole = _pages(image, max_megapixels)
    limits = _shared_limits(image, data, pages) if image.format == 'TIFF' and len(pages) > 1 else Limits()

    def decode_page():
        """The current frame, in all its bits where the result can hold them."""
        with rejecting_broken():
            if isinstance(image, tiff.OddTiff) or is_deep(image, data):
                try:
                    return decode_deep(image, data, limits)
                except TooDeepError as error:
                    notes.append(f'it has more than 8 bits a channel, its result has 8 ({error})')
            frame = decode(image, None, keep_alpha=True, keep_gray=True, limits=limits)
            return frame.copy() if frame is image and len(pages) > 1 else frame

    images = [decode_page()]
    metadata = read_metadata(image)
    is_animation = image.format in ('GIF', 'PNG', 'WEBP', 'AVIF')
    loop = image.info.get('loop', 1 if image.format == 'GIF' else 0)
    durations = [image.info.get('duration', 0)]
    for index in (index for index in pages if index != first):
        try:
            with rejecting_broken():
                image.seek(index)
                check_size(image, max_megapixels)
            frame = decode_page()
        except Exception:  # a file that is cut short: the frames before it are there
            break
        if image.format == 'MPO' and _is_small_copy(image, index, frame, images[0]):
            continue
        images.append(frame)
        durations.append(image.info.get('duration', 0))
    if not is_whole:
        notes.append('what comes after its last page could not be read')
    if limits.note:
        notes.append(limits.note)
    if any(isinstance(frame, Image.Image) and frame.mode == 'RGBA' for frame in images):
        images = [frame if isinstance(frame, DeepImage) else frame.convert('RGBA') for frame in images]
    frames = Frames(
        images,
        len(pages),
        [float(duration or 0) for duration in durations] if is_animation and len(images) > 1 else [],
        loop if isinstance(loop, int) else 0,
        bool(image.info.get('default_image')),
        str(image.format),
        metadata,
        list(dict.fromkeys(notes)),
    )
    for frame in images:
        if isinstance(frame, Image.Image):
            frame.info = {}  # Pillow would write some of it to the result
    return frames


def _pages(image: AnyImage, max_megapixels: float) -> tuple[list[int], int, bool]:
    """(the indices of the pages or frames, that of the first one to show, whether the chain of TIFF's pages has its end).

    The image is at the first one afterwards. Raises RejectedError: they have too many pixels together.
    """
    first = 0 if image.format == 'PSD' else image.tell()  # HEIC names the one to show
    if image.format == 'TIFF':
        found, is_whole = _tiff_pages(image)
        pages = [index for index, (_, is_copy) in found.items() if not is_copy] or list(found)
        first = pages[0]
        pixels = sum(found[index][0] for index in pages)
    else:
        pages, is_whole = list(range(_count_frames(image))), True
        pixels = len(pages) * image.width * image.height
        if len(pages) > 1 and image.format in _OF_PAGES:
            pixels = sum(_pixels_at(image, index) for index in pages)
    with contextlib.suppress(Exception):  # what is wrong with it shows when it is decoded
        image.seek(first)
    size = f'{len(pages)} frames of {image.width}x{image.height}' if len(pages) > 1 else f'{image.width}x{image.height}'
    if len(pages) > 1 and pixels < len(pages) * _LEAST_PIXELS:
        pixels, size = len(pages) * _LEAST_PIXELS, f'{size}, which count as {_LEAST_PIXELS} pixels each,'
    if pixels > max_megapixels * 1e6:
        raise RejectedError(f'{size} are more than {max_megapixels:g} megapixels together')
    return pages, first, is_whole


def _tiff_pages(image):
    """({index: (pixels, whether it is a copy or a mask)} of the pages that can be found, whether that is all of them)."""
    found = {}
    while True:
        try:
            image.seek(len(found))
        except EOFError:
            return found, True
        except Exception:  # broken files raise anything
            return found or {0: (0, False)}, False
        found[len(found)] = (image.width * image.height, tiff.is_copy(image))


def _pixels_at(image, index):
    try:
        image.seek(index)
    except Exception:  # as above
        return 0
    return image.width * image.height


def _count_frames(image):
    """The number of pages or frames; 1 where it cannot be told."""
    if image.format == 'PSD':  # Pillow counts layers; what it shows first is all of them together
        return 1
    try:
        return max(1, int(getattr(image, 'n_frames', 1)))
    except Exception:  # broken files raise anything
        return 1


def _shared_limits(image, data, pages):
    """What black and white are among the values of all deep pages. The image is at the first one afterwards."""
    limits = Limits()
    for index in pages:
        try:
            image.seek(index)
            if not isinstance(image, tiff.OddTiff) and image.mode in GRAY_MODES:
                limits.widen(gray_values(image))
            elif isinstance(image, tiff.OddTiff) or is_deep(image, data):
                with tiff.open_tiff(data) as file:
                    limits.widen(tiff.stored_values(file.pages[index])[..., :3])
        except Exception:  # decoding it says what is wrong
            break
    image.seek(pages[0])
    return limits


def _is_small_copy(image, index, frame, first):
    """Whether an MPO's frame is a thumbnail, or a depth or gain map: smaller than the photo."""
    kind = image.mpinfo[0xB002][index]['Attribute']['MPType']
    return kind in _MPO_THUMBNAILS or frame.width * frame.height < first.width * first.height
