"""Measures flicker and errors of colored films, with and without carried colors: `python -m jaxcolor.video.measure FILE...`.

Photos become films of known motion (a pan, a zoom, an object that moves over another photo, a cut); films are taken as they
are, and their motion is found by another algorithm (Farnebäck's) than the one that carries colors.
"""

import argparse
import itertools
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import av
import cv2
import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from PIL import Image

from jaxcolor import color
from jaxcolor.errors import UserError, one_line_errors
from jaxcolor.inference.colorizer import Colorizer
from jaxcolor.runtime.cache import enable_compilation_cache
from jaxcolor.video.encode import choose
from jaxcolor.video.film import color_film
from jaxcolor.video.planes import MATRIX_601, Layout, view
from jaxcolor.video.source import Source
from jaxcolor.video.steady import carry

_WIDTH, _HEIGHT, _FRAMES = 480, 270, 48  # of the films made of photos
_CUT_STEP = 20.0  # change of the gray levels that is a cut, where no motion explains it
_SWSCALE_601 = 5  # BT.601 of swscale, and of H.273
_MISS = 1.0  # pixels by which the flow there and back may miss, where flicker is measured


class Clip(NamedTuple):
    """A film in color, and its motion."""

    name: str
    frames: list[np.ndarray]  # uint8 (H, W, 3)
    flows: list[np.ndarray | None]  # to the frame before, float32 (H, W, 2), not a number where there is none; None: a cut


class Figures(NamedTuple):
    """Of a colored clip."""

    flicker: np.ndarray  # (T,) mean of |ab_t - carried ab_t-1|, in units of a*b*; not a number at cuts
    error: float  # mean distance of a*b* from the true ones
    after_cut: list[np.ndarray]  # a*b* of the first frames of scenes, (H, W, 2)


def clips_of(paths: Sequence[str | os.PathLike[str]], limit: int) -> Iterator[Clip]:
    """Yields the clips of films, of `limit` frames at most, and those made of photos.

    Raises:
        UserError: a file is neither.
    """
    photos = []
    for path in map(Path, paths):
        try:
            photos.append((path.stem, np.asarray(Image.open(path).convert('RGB'))))
        except OSError:
            yield _film(path, limit)
    for i, (name, photo) in enumerate(photos):
        yield _moving(f'{name}, pan', photo, lambda t: (1.5, 0.15 + 0.7 * t, 0.5))
        yield _moving(f'{name}, zoom', photo, lambda t: (1.1 + 0.9 * t, 0.5, 0.5))
        yield _object(f'{name}, object', photo, photos[i - 1][1])
    if len(photos) > 1:
        pans = [_moving('', photo, lambda t: (1.5, 0.15 + 0.7 * t, 0.5)) for _, photo in photos[:2]]
        half = _FRAMES // 2
        frames = pans[0].frames[:half] + pans[1].frames[:half]
        yield Clip('a cut', frames, [*pans[0].flows[:half], None, *pans[1].flows[1:half]])


def _film(path, limit):
    """A film as a clip, with the motion that Farnebäck's algorithm finds."""
    frames = []
    try:
        with av.open(os.fspath(path)) as container:
            for frame in container.decode(container.streams.video[0]):
                frames.append(frame.to_ndarray(format='rgb24'))
                if len(frames) == limit:
                    break
    except (av.error.FFmpegError, IndexError):
        raise UserError(f'{path} is neither a photo nor a film.') from None
    if frames[0].shape[1] > 2 * _WIDTH:  # flicker is measured at a moderate size
        height = round(frames[0].shape[0] * _WIDTH / frames[0].shape[1]) // 2 * 2
        frames = [cv2.resize(frame, (_WIDTH, height), interpolation=cv2.INTER_AREA) for frame in frames]
    grays = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    flows: list[np.ndarray | None] = [None]
    for before, gray in itertools.pairwise(grays):
        back, forth = (
            cv2.calcOpticalFlowFarneback(*pair, None, 0.5, 5, 21, 3, 7, 1.5, 0) for pair in ((gray, before), (before, gray))
        )
        change = cv2.absdiff(gray, carry(before, back)).mean()
        miss = np.sqrt(np.square(back + carry(forth, back)).sum(axis=-1))
        back[miss > _MISS] = np.nan
        flows.append(None if change > _CUT_STEP else back)
    return Clip(path.stem, frames, flows)


def _grid():
    """The pixels' places, float32 (H, W) each, from -0.5 to 0.5 of the height from the middle."""
    y, x = np.mgrid[:_HEIGHT, :_WIDTH].astype(np.float32)
    return (x + 0.5 - _WIDTH / 2) / _HEIGHT, (y + 0.5 - _HEIGHT / 2) / _HEIGHT


def _window(photo, zoom, at_x, at_y):
    """(x, y) of the window of a photo: how its pixels' places become the photo's, as (scale, offset) each."""
    height, width = photo.shape[:2]
    scale = min(height, width * _HEIGHT / _WIDTH) / zoom  # pixels of the photo a height of the window
    half_x, half_y = scale * _WIDTH / _HEIGHT / 2, scale / 2
    return [(scale, half + at * (side - 2 * half)) for half, at, side in ((half_x, at_x, width), (half_y, at_y, height))]


def _moving(name, photo, camera):
    """A film of a camera over a photo; camera: time in [0, 1] -> (zoom, x, y)."""
    x, y = _grid()
    frames, flows, before = [], [None], None
    for t in range(_FRAMES):
        (scale, left), (_, top) = window = _window(photo, *camera(t / (_FRAMES - 1)))
        frames.append(_sampled(photo, x * scale + left, y * scale + top))
        if before is not None:
            places = [
                (place * scale + at - at_before) / scale_before
                for place, (_, at), (scale_before, at_before) in zip((x, y), window, before, strict=True)
            ]
            flows.append(_flow([place - own for place, own in zip(places, (x, y), strict=True)], (x, y)))
        before = window
    return Clip(name, frames, flows)


def _object(name, photo, behind):
    """A disk of a photo that moves on a bow over another, which stands still."""
    x, y = _grid()
    (scale, left), (_, top) = _window(photo, 1.2, 0.5, 0.5)
    (scale_behind, left_behind), (_, top_behind) = _window(behind, 1.2, 0.5, 0.5)
    back = _sampled(behind, x * scale_behind + left_behind, y * scale_behind + top_behind)
    frames, flows, mask_before, at_before = [], [None], None, None
    for t in np.linspace(0, 1, _FRAMES):
        at = (0.9 * t - 0.45, 0.3 * t * t - 0.1)
        moved = x - np.float32(at[0]), y - np.float32(at[1])
        mask = np.hypot(*moved) < 0.3
        disk = _sampled(photo, moved[0] * scale + left, moved[1] * scale + top)
        frames.append(np.where(mask[..., None], disk, back))
        if mask_before is not None:
            shift = [np.where(mask, np.float32(b - a), 0) for a, b in zip(at, at_before, strict=True)]
            flow = _flow(shift, (x, y))
            flow[~mask & mask_before] = np.nan  # what the disk hid
            flows.append(flow)
        mask_before, at_before = mask, at
    return Clip(name, frames, flows)


def _sampled(photo, x, y):
    """The photo's colors at places in pixels, uint8 (H, W, 3)."""
    step = max(1.0, float(x[0, 1] - x[0, 0]))  # pixels of the photo a pixel of the film: without a filter it would alias
    soft = cv2.GaussianBlur(photo, (0, 0), 0.45 * step) if step > 1 else photo
    places = (x - 0.5).astype(np.float32), (y - 0.5).astype(np.float32)
    return cv2.remap(soft, *places, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)


def _flow(shift, places):
    """Motion in heights -> in pixels, (H, W, 2), not a number where it comes from outside."""
    flow = np.stack(shift, axis=-1).astype(np.float32) * np.float32(_HEIGHT)
    outside = [
        np.abs(place + move) > limit for place, move, limit in zip(places, shift, (_WIDTH / _HEIGHT / 2, 0.5), strict=True)
    ]
    flow[outside[0] | outside[1]] = np.nan
    return flow


def figures_of(clip: Clip, ab: Sequence[np.ndarray]) -> Figures:
    """What the colors of a clip's frames, float32 (H, W, 2) each, are worth."""
    flicker, after_cut = [], []
    for t, flow in enumerate(clip.flows):
        if flow is None:
            after_cut.append(ab[t])
            flicker.append(np.nan)
            continue
        known = np.isfinite(flow[..., 0])
        change = ab[t] - carry(np.ascontiguousarray(ab[t - 1]), np.nan_to_num(flow))
        flicker.append(np.sqrt(np.square(change).sum(axis=-1))[known].mean() if known.any() else np.nan)
    misses = [
        np.sqrt(np.square(x - color.rgb_to_lab(frame)[..., 1:]).sum(axis=-1)).mean()
        for x, frame in zip(ab, clip.frames, strict=True)
    ]
    return Figures(np.array(flicker), float(np.mean(misses)), after_cut)


def write(clip: Clip, path: Path, pixel_format: str, codec: str = 'ffv1', options: dict[str, str] | None = None) -> None:
    """Writes a clip as a film of BT.601; its sides are even. By default without loss."""
    with av.open(os.fspath(path), 'w') as container:
        stream = container.add_stream(codec, 25, options=options or {})
        stream.height, stream.width = clip.frames[0].shape[:2]
        stream.pix_fmt = pixel_format
        stream.codec_context.colorspace = _SWSCALE_601
        for frame in clip.frames:
            picture = av.VideoFrame.from_ndarray(frame, 'rgb24').reformat(format=pixel_format, dst_colorspace=_SWSCALE_601)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def colors_of(path: Path) -> list[np.ndarray]:
    """a*b* of a film's frames, as `write` makes it, float32 (H, W, 2) each."""
    found = []
    with av.open(os.fspath(path)) as container:
        for frame in container.decode(container.streams.video[0]):
            layout = Layout(frame.format.components[0].bits, False, MATRIX_601)
            (black, white), (neutral, swing), (kr, kb) = layout.black_and_white, layout.neutral_and_swing, layout.weights
            planes = [view(plane, layout.depth).astype(np.float32) for plane in frame.planes]
            luma, cb, cr = (cv2.resize(plane, (frame.width, frame.height)) for plane in planes)
            own = (luma - black) / (white - black)
            red, blue = (own + 2 * (1 - k) * (plane - neutral) / swing for k, plane in ((kr, cr), (kb, cb)))
            green = (own - kr * red - kb * blue) / (1 - kr - kb)
            rgb = np.clip(np.stack([red, green, blue], axis=-1), 0, 1).astype(np.float32)
            found.append(color.rgb_to_lab(rgb)[..., 1:])
    return found


def measure(colorizer: Colorizer, clip: Clip, temporal: float | None, codec: str = 'ffv1') -> Figures:
    """Colors a clip as `jaxcolor video` does, and measures what comes out.

    Args:
        colorizer: the network.
        clip: a film.
        temporal: as of `color_film`; None leaves the true colors, and encodes them in the same way.
        codec: an encoder of `jaxcolor video`. 'ffv1' gets 10 bits and full chroma, so that rounding does not count as
            flicker; others get 8 bits and halved chroma, as most films have.
    """
    with tempfile.TemporaryDirectory() as folder:
        film, out = Path(folder) / 'film.mkv', Path(folder) / 'colored.mkv'
        write(clip, film, 'yuv444p10le' if codec == 'ffv1' else 'yuv420p')
        if temporal is None:
            encoding = choose(Source(film), '.mkv', codec, None, {})
            write(clip, out, encoding.pixel_format, codec, encoding.options)
        else:
            color_film(colorizer, film, out, temporal=temporal, codec=codec, quiet=True)
        return figures_of(clip, colors_of(out))


def draw(flicker: dict[str, tuple[np.ndarray, np.ndarray]], path: str | os.PathLike[str]) -> None:
    """Draws flicker over time, {clip: (frame by frame, carried)}."""
    matplotlib.use('agg')
    rows = -(-len(flicker) // 4)
    figure, axes = plt.subplots(rows, 4, figsize=(12, 1.8 * rows), squeeze=False, layout='constrained')
    for axis in axes.flat[len(flicker) :]:
        axis.set_axis_off()
    for axis, (name, (alone, carried)) in zip(axes.flat, flicker.items(), strict=False):
        axis.plot(alone, color='tab:red', linewidth=0.9, label='frame by frame')
        axis.plot(carried, color='tab:blue', linewidth=1.2, label='carried')
        axis.set_title(name, fontsize=9)
        axis.set_ylim(0)
        axis.tick_params(labelsize=7)
    axes[0, 0].legend(fontsize=7)
    figure.supylabel('flicker (a*b*)', fontsize=9)
    figure.supxlabel('frame', fontsize=9)
    figure.savefig(path, dpi=80)
    plt.close(figure)
    Image.open(path).convert('RGB').quantize(32).save(path, optimize=True)  # a third of the bytes


@one_line_errors
def main() -> None:
    """Prints a table of all clips, and draws flicker over time."""
    parser = argparse.ArgumentParser('jaxcolor.video.measure', description='Measures flicker and errors of colored films.')
    parser.add_argument('files', nargs='+', metavar='FILE', help='photos and films, in color')
    parser.add_argument('--model', default='ltbc-lite', metavar='RUN_OR_NAME')
    parser.add_argument('--temporal', type=float, default=0.95, metavar='SHARE', help='as of `jaxcolor video` (%(default)s)')
    parser.add_argument('--codec', default='ffv1', metavar='NAME', help='as of `jaxcolor video` (%(default)s)')
    parser.add_argument('--frames', type=int, default=150, metavar='N', help='of a film at most (%(default)s)')
    parser.add_argument('--picture', default='flicker.png', metavar='FILE', help='flicker over time (%(default)s)')
    args = parser.parse_args()
    enable_compilation_cache()
    colorizer, lines, ratios = Colorizer(args.model), {}, []
    heads = ['clip', 'frames', 'flicker: in truth', 'frame by frame', 'carried', 'ratio', 'error: frame by frame', 'carried']
    heads.append('at cuts')
    print(f'| {" | ".join(heads)} |\n{"|---" * len(heads)}|')
    for clip in clips_of(args.files, args.frames):
        truth, alone, carried = (measure(colorizer, clip, share, args.codec) for share in (None, 0, args.temporal))
        means = [np.nanmean(each.flicker) for each in (truth, alone, carried)]
        ratios.append(means[2] / means[1])
        ghosts = [np.abs(a - b).mean() for a, b in zip(alone.after_cut, carried.after_cut, strict=True)][1:]
        cells = [*means, ratios[-1], alone.error, carried.error, *([max(ghosts)] if ghosts else [])]
        words = [clip.name, str(len(clip.frames)), *(f'{cell:.2f}' for cell in cells), *([] if ghosts else [''])]
        print(f'| {" | ".join(words)} |', flush=True)
        lines[clip.name] = (alone.flicker, carried.flicker)
    print(f'\nThe mean of the ratios is {np.mean(ratios):.2f}.')
    draw(lines, args.picture)


if __name__ == '__main__':
    main()
