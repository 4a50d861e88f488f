"""Small films, and a colorizer without a network."""

import struct
from fractions import Fraction

import av
import numpy as np
from av.sidedata.sidedata import Type

from jaxcolor.inference.colorizer import Colorizer

WIDTH, HEIGHT, FRAMES, RATE = 64, 48, 12, 12


class Painter(Colorizer):
    """A colorizer whose a*b* follow from the lightness and the place, without a network."""

    digest, batch_size, faithful = 'painter', 1, None

    def __init__(self, size=32, gain=1.0, fail_after=None):
        self.size, self.gain, self.calls, self.fail_after = size, gain, 0, fail_after

    def predict_ab(self, lightness, style=None, variant=0):
        self.calls += 1
        if self.fail_after is not None and self.calls > self.fail_after:
            raise RuntimeError('the power went out')
        down = np.linspace(-1, 1, lightness.shape[1], dtype=np.float32)[None, :, None]
        a, b = 0.3 * lightness[..., 0] - 10 + 0 * down, 25 * down + 0 * lightness[..., 0]
        return np.float32(self.gain) * np.stack([a, b], axis=-1)


def pictures(count=FRAMES, width=WIDTH, height=HEIGHT, levels=256, shift=2):
    """Gray pictures that move: ramps with a bright square, float (height, width) in [0, 1], of so many levels."""
    y, x = np.mgrid[:height, :width]
    for t in range(count):
        picture = 0.2 + 0.5 * ((x + shift * t) % width) / width + 0.2 * y / height
        picture[height // 4 : height // 2, (width // 4 + shift * t) % width] = 1
        yield np.round(picture * (levels - 1)).astype(np.uint8 if levels == 256 else np.uint16)


def write_film(path, images=None, *, codec='ffv1', pixel_format='gray', pts=None, options=None, audio='', prepare=None):
    """Writes a film of gray pictures as they are, without loss by default.

    Args:
        path: its suffix names the container.
        images: luma planes, uint8 or uint16 (H, W).
        pts: of the frames, in thousandths of a second.
        audio: the codec of a second of sound.
        prepare: what to do with (container, video stream) before the first frame.
    """
    images = list(pictures()) if images is None else images
    pts = [round(1000 * i / RATE) for i in range(len(images))] if pts is None else pts
    with av.open(str(path), 'w') as container:
        stream = container.add_stream(codec, RATE, options=options or {})
        stream.height, stream.width = images[0].shape
        stream.pix_fmt = pixel_format
        stream.codec_context.time_base = Fraction(1, 1000)
        sound = container.add_stream(audio, 8000) if audio else None
        if prepare:
            prepare(container, stream)
        for image, time in zip(images, pts, strict=True):
            frame = av.VideoFrame(image.shape[1], image.shape[0], pixel_format)
            for i, plane in enumerate(frame.planes):
                rows = np.frombuffer(plane, image.dtype).reshape(plane.height, -1)
                rows[:, : plane.width] = image if i == 0 else 1 << (8 * image.itemsize - 1 if image.itemsize == 1 else 9)
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound:
            tone = (3000 * np.sin(np.arange(8000) / 5)).astype(np.int16)[None]
            for start in range(0, 8000, 800):
                frame = av.AudioFrame.from_ndarray(tone[:, start : start + 800], 's16', 'mono')
                frame.sample_rate, frame.pts = 8000, start
                container.mux(sound.encode(frame))
            container.mux(sound.encode())
    return path


def frames_of(path):
    """The decoded frames (`av.VideoFrame`) of a film."""
    with av.open(str(path)) as container:
        return list(container.decode(container.streams.video[0]))


def planes_of(frame, dtype=np.uint8):
    """The planes of a frame, (H, W) each."""
    return [np.frombuffer(p, dtype).reshape(p.height, -1)[:, : p.width].copy() for p in frame.planes]


def packets_of(path, kind):
    """[(bytes, time in seconds)] of the packets of a film's streams of one kind."""
    with av.open(str(path)) as container:
        streams = [stream for stream in container.streams if stream.type == kind]
        packets = container.demux(streams) if streams else []
        return [(bytes(p), float(p.pts * p.time_base)) for p in packets if p.size]


def times_of(path):
    """The timestamps of a film's frames in seconds."""
    return [frame.time for frame in frames_of(path)]


def matrix_of(frame):
    """A frame's display matrix, 9 integers; None without one."""
    found = frame.side_data.get(Type.DISPLAYMATRIX)
    return struct.unpack('=9i', bytes(found)[:36]) if found is not None else None
