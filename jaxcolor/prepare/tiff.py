"""TIFFs that Pillow cannot read, or not in all their bits: by tifffile, of the extra `formats`."""

import contextlib
import io
from typing import Any

import numpy as np
from PIL import Image, TiffImagePlugin

from jaxcolor.prepare.values import Limits, blocks, levels

with contextlib.suppress(ImportError):
    import tifffile

_STARTS = (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')
_COMPRESSION, _WIDTH, _HEIGHT = 259, 256, 257
# Bits of NewSubfileType: a smaller copy of another page, and a mask of transparency.
_NEW_SUBFILE_TYPE, _NO_PHOTO = 254, 1 | 4
_INFO = {34675: 'icc_profile', 700: 'xmp'}  # Pillow's names
_MAX_CHANNELS = 8
# Compressions that Pillow's library is built without: JPEG 2000 (four numbers), JPEG XL, WebP.
_NOT_PILLOWS = (33003, 33004, 33005, 34712, 50002, 52546, 50001)
_GRAYS, _RGB, _YCBCR, _LABS = (0, 1), 2, 6, (8, 9)
# CIE XYZ relative to D50 -> linear sRGB, by the adaptation of Bradford; the white is folded in (brucelindbloom.com, "RGB/XYZ
# Matrices").
_RGB_FROM_XYZ = np.array(
    [[3.1338561, -1.6168667, -0.4906146], [-0.9787684, 1.9161415, 0.0334540], [0.0719453, -0.2289914, 1.4052427]]
) * np.array([0.96422, 1.0, 0.82521])


class LayoutError(Exception):
    """A page of a kind that is not read. The message says why, in a few words."""


def open_tiff(data: bytes) -> Any:
    """tifffile's TiffFile of a file's bytes; a context. Raises anything if the file is broken."""
    return tifffile.TiffFile(io.BytesIO(data))


class OddTiff:
    """A TIFF that Pillow cannot read, at one of its pages, with what the decoder uses of Pillow's images.

    Raises:
        LayoutError: it needs the extra.
        Exception: any, if the file is no TIFF or broken.
    """

    format = 'TIFF'
    mode = 'RGB'  # whatever its pixels are

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._order, is_big = data[:2], 43 in (data[2], data[3])
        # Pillow knows BigTIFF by its little-endian start alone; the byte order can be told.
        self._head = b'II+\0' + data[4:16] if is_big else data[:8]
        self._starts = [self._directory().next]  # of the directories that were found
        self.seek(0)
        if 'tifffile' not in globals():
            raise LayoutError("a TIFF of this kind needs pip install 'jaxcolor[formats]'")

    def _directory(self):
        return TiffImagePlugin.ImageFileDirectory_v2(self._head, self._order)

    @property
    def width(self) -> int:
        """In pixels."""
        return self.size[0]

    @property
    def height(self) -> int:
        """In pixels."""
        return self.size[1]

    def tell(self) -> int:
        """The index of the page."""
        return self._index

    def seek(self, index: int) -> None:
        """Goes to a page. Raises EOFError behind the last one."""
        while True:
            at = min(index, len(self._starts) - 1)
            directory = self._directory()
            file = io.BytesIO(self._data)
            file.seek(self._starts[at])
            directory.load(file)
            if at == index:
                break
            if not directory.next or directory.next in self._starts:
                raise EOFError
            self._starts.append(directory.next)
        self._index, self.tag_v2 = index, directory
        self.size = int(directory[_WIDTH]), int(directory[_HEIGHT])
        self.info = {name: directory[code] for code, name in _INFO.items() if code in directory}

    def load(self) -> None:
        """As of Pillow's images; there is nothing to do."""

    def getexif(self) -> Image.Exif:
        """The fields of the first page."""
        exif = Image.Exif()
        exif.load(self._data)
        return exif

    def decoded(self, limits: Limits) -> tuple[np.ndarray, int]:
        """(the page in its own color space, as `read_page`, its bits a channel)."""
        with open_tiff(self._data) as file:
            return read_page(file.pages[self._index], self.tag_v2, limits)


def is_odd(image: Any) -> bool:
    """Whether Pillow opens a TIFF, but cannot decode it."""
    return image.format == 'TIFF' and (image.mode == 'LAB' or image.tag_v2.get(_COMPRESSION) in _NOT_PILLOWS)


def is_copy(image: Any) -> bool:
    """Whether the current page of an opened TIFF is a smaller copy of another one, or a mask."""
    kind = image.tag_v2.get(_NEW_SUBFILE_TYPE, 0)
    return isinstance(kind, int) and bool(kind & _NO_PHOTO)


def seek_photo(image: Any) -> bool:
    """Goes to the first page of an opened TIFF that is no copy: thumbnails may come first. Without one it stays.

    Returns whether the pages could be read.
    """
    first = index = image.tell()
    while is_copy(image):
        index += 1
        try:
            image.seek(index)
        except Exception as error:  # of broken files any
            image.seek(first)
            return isinstance(error, EOFError)
    return True


def is_tiff(data: bytes) -> bool:
    """Whether a file starts as TIFFs do."""
    return data[:4] in _STARTS


def stored_values(page: Any) -> np.ndarray:
    """The stored values of a page of tifffile's, (H, W, C)."""
    if page.size > _MAX_CHANNELS * page.imagewidth * page.imagelength:
        raise LayoutError('its layout is not that of a photo')
    pixels = page.asarray()
    if pixels.ndim == 3 and int(page.planarconfig) == 2:
        pixels = np.moveaxis(pixels, 0, -1)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.ndim != 3 or pixels.dtype.kind not in 'uif':
        raise LayoutError('its layout is not that of a photo')
    return pixels


def read_page(page: Any, tags: Any, limits: Limits) -> tuple[np.ndarray, int]:
    """Reads a page: gray, RGB or CIE L*a*b*, with alpha or without.

    Args:
        page: tifffile's.
        tags: Pillow's directory of it.
        limits: of the file.

    Returns:
        (uint16 (H, W, C), as `deep.DeepImage` has them, not turned; L*a*b* in sRGB, the rest in the page's own color space;
        its bits a channel).

    Raises:
        LayoutError: it is of another kind.
        Exception: any, if the file is broken.
    """
    pixels, space = stored_values(page), int(page.photometric)
    channels = 1 if space in _GRAYS else 3
    if space not in (*_GRAYS, _RGB, _YCBCR, *_LABS) or pixels.shape[2] < channels:
        raise LayoutError('its layout is not RGB')
    kinds = [int(kind) for kind in page.extrasamples]
    bits = 8 * pixels.dtype.itemsize
    colors = np.ascontiguousarray(pixels[..., :channels])
    alpha, full = None, _full(page, pixels.dtype)
    if kinds[:1] in ([1], [2]) and pixels.shape[2] > channels:
        alpha = levels(pixels[..., channels : channels + 1], 0.0, full, 65535)
    if space in _LABS:
        colors = _lab_to_srgb(colors, space)
    else:
        black, white = limits.of(colors, tags) if pixels.dtype != np.uint8 else (0.0, full)
        colors = levels(colors, *((white, black) if space == 0 else (black, white)), 65535)
    if alpha is None:
        return colors, bits
    if kinds[0] == 1:  # the colors are multiplied by it
        share = np.maximum(alpha, 1) / np.float32(65535)
        colors = np.round(np.minimum(colors / share, 65535)).astype(np.uint16)
    return np.concatenate([colors, alpha], axis=2), bits


def _full(page: Any, dtype: np.dtype) -> float:
    """The largest value of the page's bits a sample."""
    if dtype.kind == 'f':
        return 1.0
    return float(np.iinfo(dtype).max) if dtype.kind == 'i' else 2.0 ** int(page.bitspersample) - 1


def _lab_to_srgb(values, space):
    """CIELab (8) or ICCLab (9) of 8 or 16 bits, (H, W, 3) -> sRGB, uint16 (H, W, 3). Other colors are clipped.

    TIFF 6.0, section 23, and Adobe's technical note 3 to TIFF: a* and b* are signed, or in ICCLab offset.
    """
    bits = 8 * values.dtype.itemsize
    if values.dtype.kind != 'u' or bits > 16:
        raise LayoutError('its L*a*b* are not of 8 or 16 bits')
    out = np.empty(values.shape, np.uint16)
    for rows in blocks(values):
        block = values[rows]
        scale = 2.0 ** (bits - 8)  # of a* and b*
        if space == 8:
            lightness = block[..., 0] * (100.0 / (2**bits - 1))
            ab = block[..., 1:].view(f'i{values.dtype.itemsize}') / scale
        else:
            lightness = block[..., 0] * (100.0 / (255 * scale))
            ab = block[..., 1:] / scale - 128.0
        fy = (lightness + 16) / 116
        f = np.stack([fy + ab[..., 0] / 500, fy, fy - ab[..., 1] / 200], axis=-1)
        linear = np.where(f > 6 / 29, f**3, (f - 16 / 116) * (3 * (6 / 29) ** 2)) @ _RGB_FROM_XYZ.T
        linear = np.clip(linear, 0, 1)
        srgb = np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)
        out[rows] = np.round(65535 * srgb)
    return out
