"""Encoders: which one, in which pixel format, at which quality; and frames with colors, as it takes them."""

import io
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import av
import av.error
import numpy as np
from PIL import Image

from jaxcolor.errors import UserError
from jaxcolor.video.planes import FULL, LIMITED, MATRIX_709, UNSPECIFIED, Layout, has_own_luma, matrix_of, paint, view
from jaxcolor.video.source import Source

# Containers by suffix, as FFmpeg names them. Not AVI: it has no timestamps.
CONTAINERS = {
    '.m2ts': 'mpegts',
    '.m4v': 'mp4',
    '.mkv': 'matroska',
    '.mov': 'mov',
    '.mp4': 'mp4',
    '.mts': 'mpegts',
    '.nut': 'nut',
    '.ts': 'mpegts',
    '.webm': 'webm',
}
# What MPEG transport streams have a type for. FFmpeg writes anything to them, but players do not find what it is.
TRANSPORTED = {
    *('mpeg1video', 'mpeg2video', 'mpeg4', 'h264', 'hevc', 'vc1', 'cavs', 'dirac'),
    *('mp2', 'mp3', 'aac', 'aac_latm', 'ac3', 'eac3', 'dts', 'truehd', 's302m', 'opus', 'pcm_bluray'),
    *('dvb_subtitle', 'dvb_teletext', 'hdmv_pgs_subtitle', 'hdmv_text_subtitle', 'arib_caption'),
}
# What `--quality` means, by encoder: its constant rate factor, lower is better; our defaults lose nothing that is seen.
QUALITIES = {'libx264': 17, 'libx265': 19, 'libvpx-vp9': 24, 'libsvtav1': 24}
_WORST = {'libx264': 51, 'libx265': 51}  # of quality; of the others 63
_OPTIONS = {
    'libx264': {'preset': 'veryfast'},
    'libx265': {'preset': 'fast', 'x265-params': 'log-level=error'},
    'libvpx-vp9': {'b': '0', 'deadline': 'good', 'cpu-used': '4', 'row-mt': '1'},
    'libsvtav1': {'preset': '8', 'svtav1-params': 'lp=0'},
}
# Encoders that want even sizes where chroma is halved.
_EVEN = ('libx264', 'libx265', 'mpeg4', 'mpeg2video')
_SUBSAMPLINGS = {(1, 1): '420', (1, 0): '422', (0, 0): '444'}
KEY_FRAME_EVERY = 250  # frames
# H.273's codes of matrices -> swscale's.
_SWSCALE = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}


class Encoding(NamedTuple):
    """How a film is encoded."""

    codec: str  # FFmpeg's name of the encoder
    pixel_format: str
    options: dict[str, str]
    layout: Layout

    @property
    def as_json(self) -> list[Any]:
        """What tells it from others."""
        return [self.codec, self.pixel_format, self.options, list(self.layout)]


def choose(source: Source, suffix: str, codec: str, quality: float | None, options: Mapping[str, str]) -> Encoding:
    """How a film is to be encoded; what cannot be kept is noted in `source.notes`.

    Args:
        source: the film.
        suffix: of the result, such as '.mkv'.
        codec: FFmpeg's name of an encoder; '' for the default of the container and depth.
        quality: its constant rate factor; None for ours.
        options: further ones of the encoder.

    Raises:
        UserError: there is no such container, encoder or quality.
    """
    if suffix not in CONTAINERS:
        raise UserError(
            f'{suffix or "a name without suffix"} is no container that films are written to: {", ".join(CONTAINERS)}.'
        )
    first = source.first
    depth = max(8, *(each.bits for each in first.format.components))
    if not codec and suffix == '.webm':
        codec = 'libvpx-vp9' if depth == 8 else 'libsvtav1'
    codec = codec or ('libx264' if depth == 8 else 'libx265')  # players know H.264 of 8 bits alone
    try:
        formats = [each.name for each in av.Codec(codec, 'w').video_formats or ()]
    except ValueError:
        raise UserError(f'{codec} is no encoder that this FFmpeg has; libx264, libx265, libsvtav1 or ffv1 are.') from None
    if not is_taken(CONTAINERS[suffix], codec):
        raise UserError(f'{suffix} does not take what {codec} encodes; .mkv takes most.')
    os.environ.setdefault('SVT_LOG', '1')  # libsvtav1 prints what it does, unless told otherwise
    is_even = codec not in _EVEN or not (first.width % 2 or first.height % 2)
    name, kept = _pixel_format(first.format, depth, formats, is_even)
    if not name:
        there = ', '.join(formats) or 'none'
        raise UserError(f'{codec} takes none of the pixel formats that films in color have; it has {there}.')
    if kept < depth:
        source.notes.append(f'{source.path} has {depth} bits; {codec} keeps {kept}.')
    if not is_even:
        source.notes.append(f'{source.path} has an odd size, which {codec} takes with chroma in full only.')
    has_alpha_apart = ('alpha_mode', '1') in {
        (key.lower(), value) for key, value in source.stream.metadata.items()
    }  # VP8, VP9
    if has_alpha_apart or any(each.is_alpha for each in first.format.components):
        source.notes.append(f'{source.path} has transparency, which is not kept.')
    if quality is not None and codec not in QUALITIES:
        raise UserError(f'--quality is for {", ".join(QUALITIES)}; set what {codec} has by --option.')
    if quality is not None and not 0 <= quality <= _WORST.get(codec, 63):
        raise UserError(f'--quality of {codec} is from 0 to {_WORST.get(codec, 63)}, not {quality:g}.')
    chosen = dict(_OPTIONS.get(codec, {}))
    if codec in QUALITIES:
        chosen['crf'] = f'{QUALITIES[codec] if quality is None else quality:g}'
    if first.interlaced_frame and codec in ('libx264', 'mpeg2video', 'mpeg4'):
        chosen['flags'] = '+ildct+ilme'
    return Encoding(codec, name, {**chosen, **options}, _layout(first, kept))


def is_taken(container: str, codec: str) -> bool:
    """Whether a container, by FFmpeg's name, takes what an encoder makes."""
    if container == 'mpegts' and av.Codec(codec, 'w').canonical_name not in TRANSPORTED:
        return False
    with av.open(io.BytesIO(), 'w', format=container) as probe:
        try:
            probe.add_stream(codec)
        except ValueError:
            return False
    return True


def _pixel_format(source, depth, formats, is_even):
    """The planar YUV format of an encoder that is nearest to a source's, and its depth; ('', 0) if there is none."""
    if len(source.components) < 3 and not source.has_palette:
        wanted = '420'  # gray
    elif source.is_rgb or source.has_palette:
        wanted = '444'
    else:
        halves = (source.chroma_width(16) == 8, source.chroma_height(16) == 8)
        wanted = _SUBSAMPLINGS.get((int(halves[0]), int(halves[1])), '420')
    order = {'420': ('420', '422', '444'), '422': ('422', '444', '420'), '444': ('444', '422', '420')}[wanted]
    if not is_even:
        order = ('444',)
    depths = sorted((8, 10, 12, 14, 16), key=lambda bits: (bits < depth, abs(bits - depth)))
    for bits in depths:
        for sampling in order:
            name = f'yuv{sampling}p' + ('' if bits == 8 else f'{bits}le')
            if name in formats:
                return name, bits
    return '', 0


def _layout(frame, depth):
    """How the result's planes hold numbers: as the source's, where it has luma."""
    if not _has_luma(frame.format):
        return Layout(depth, False, MATRIX_709)
    is_gray = len(frame.format.components) < 3  # FFmpeg takes gray formats as full where a stream says nothing
    is_full = frame.color_range == FULL or frame.format.name.startswith('yuvj') or (is_gray and frame.color_range != LIMITED)
    return Layout(depth, is_full, matrix_of(int(frame.colorspace), frame.height))


def _has_luma(pixel_format):
    """Whether a format holds luma, rather than R, G, B, numbers of a palette, or bits."""
    return pixel_format.components[0].is_luma and not pixel_format.has_palette and not pixel_format.is_bit_stream


def luma_of(frame: Any, encoding: Encoding) -> tuple[Any, np.ndarray]:
    """A frame whose luma is the result's, if need be converted, and its luma.

    Args:
        frame: decoded.
        encoding: of the result.

    Returns:
        (frame, whose planes may be shared; luma, uint8 or uint16 (H, W)). The frame has a format of its own where only its
        chroma is another: `painted` makes the rest.
    """
    depth, layout = encoding.layout.depth, encoding.layout
    if not (has_own_luma(frame.format) and frame.format.components[0].bits == depth):
        to = {'dst_colorspace': _SWSCALE.get(layout.matrix, 5), 'dst_color_range': FULL if layout.is_full else LIMITED}
        if _has_luma(frame.format):  # nothing but the depth and the places of numbers change
            to |= {'src_colorspace': to['dst_colorspace'], 'src_color_range': to['dst_color_range']}
        frame = frame.reformat(format=encoding.pixel_format, **to)
    return frame, view(frame.planes[0], depth)


def painted(frame: Any, encoding: Encoding, small: Image.Image, ab: np.ndarray, source: Source) -> Any:
    """A frame (`av.VideoFrame`) with colors, ready to be encoded.

    Args:
        frame: of `luma_of`; may be changed.
        encoding: of the result.
        small: `planes.gray` of it.
        ab: float32 (h, w, 2), upright.
        source: the film.
    """
    depth = encoding.layout.depth
    if frame.format.name == encoding.pixel_format:
        frame.make_writable()  # with all side data: captions, mastering display
    else:
        gray, frame = frame, av.VideoFrame(frame.width, frame.height, encoding.pixel_format)
        frame.pts, frame.time_base = gray.pts, gray.time_base
        frame.color_primaries, frame.color_trc = gray.color_primaries, gray.color_trc
        view(frame.planes[0], depth)[:] = view(gray.planes[0], depth)
    paint([view(plane, depth) for plane in frame.planes[:3]], small, ab, encoding.layout, source.turn)
    frame.colorspace = encoding.layout.matrix
    frame.color_range = FULL if encoding.layout.is_full else LIMITED
    frame.pict_type = 0  # the encoder's own choice
    return frame


def add_stream(container: Any, source: Source, encoding: Encoding) -> Any:
    """The stream (`av.VideoStream`) of a container that encodes a film.

    Raises:
        UserError: the encoder does not take it.
    """
    first, layout = source.first, encoding.layout
    stream = container.add_stream(encoding.codec, source.rate, options=dict(encoding.options))
    stream.width, stream.height, stream.pix_fmt = first.width, first.height, encoding.pixel_format
    context = stream.codec_context
    context.time_base = source.stream.time_base
    context.gop_size = KEY_FRAME_EVERY
    context.thread_type = 'AUTO'
    if source.stream.sample_aspect_ratio:
        context.sample_aspect_ratio = source.stream.sample_aspect_ratio
    context.colorspace, context.color_range = layout.matrix, FULL if layout.is_full else LIMITED
    for name in ('color_primaries', 'color_trc'):
        if getattr(first, name) != UNSPECIFIED:
            setattr(context, name, getattr(first, name))
    try:
        context.open()
    except (av.error.FFmpegError, ValueError) as error:
        size = f'{first.width}x{first.height}'
        reason = getattr(error, 'strerror', None) or error
        raise UserError(f'{encoding.codec} does not take this film ({size}, {encoding.options}: {reason}).') from None
    if unknown := [name for name in encoding.options if name in context.options]:
        raise UserError(f'{encoding.codec} has no option {unknown[0]}.')
    return stream
