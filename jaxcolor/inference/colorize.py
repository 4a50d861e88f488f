"""Command: gray photographs -> coloured ones.

    python -m jaxcolor.colorize PHOTO_OR_FOLDER... [--model=RUN] [--out=DIR]

Each photo keeps its own full-resolution lightness, its transparency and its size in pixels; only its colours (a*, b*)
come from the network. The result is in sRGB, with that profile embedded, 8 bits a channel, upright.
"""

import argparse
import collections
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import ExifTags, Image, ImageCms

from jaxcolor import color
from jaxcolor.runtime import cache
from jaxcolor.weights import export, runs
from jaxcolor.prepare.decode import FORMATS, SUFFIXES, RejectedError, open_photo, pillow_unguarded
from jaxcolor.errors import UserError, one_line_errors
from jaxcolor.runtime.logs import Progress
from jaxcolor.runtime.parallel import compiler_options

# Network inputs have sides that are multiples of this, so that photos of many shapes need few compilations.
_MULTIPLE = 32
# Photos longer than this many times their shorter side are squeezed for the network.
_LONGEST = 2
_MIN_SIDE = 2
# Photos that are read ahead of the network, and as many that are written behind it.
_AHEAD = min(8, os.cpu_count() or 1)
# Photos of one shape that go through the network together, where it is on a GPU: CPUs gain nothing by it.
_GPU_BATCH = 8
# Pixels of the photos that are read ahead, that wait for others of their shape, and that are written: as many each,
# unless one photo has more. It bounds the memory that scans take.
_MOST_PIXELS = 2**27
# Pixels recoloured at a time: always as many, so that it is compiled once.
_CHUNK = 2**16
# Rows recomposed at a time: bounds the memory that a large scan takes.
_STRIP_PIXELS = 2**21
_FORMATS = {'.jpg': 'JPEG', '.jpeg': 'JPEG', '.png': 'PNG', '.webp': 'WEBP', '.tif': 'TIFF', '.tiff': 'TIFF'}
_EXIF_KEPT = [
    ExifTags.Base[name] for name in ('ImageDescription', 'Make', 'Model', 'DateTime', 'Artist', 'Copyright')
]
_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()


class Colorizer:
    """Colours photographs with a trained run.

    Args:
        run: the run directory, or an exported model (`exported.py`).
        step: of the checkpoint; the best by validation loss by default.
        size: pixels of the shorter side at which the network sees a photo; by default what it was trained on.

    Raises:
        UserError: no run, no checkpoint.
    """

    def __init__(self, run, step: int | None = None, size: int = 0):
        self.config, self.task, self.state = runs.load(run, step)
        self.size = size or self.config.data.crop
        self._predict = jax.jit(self.task.predict, compiler_options=compiler_options())
        self._describe = jax.jit(self.task.describe) if hasattr(self.task, 'describe') else None

    def __call__(self, image: Image.Image, style=None, variant: int = 0) -> Image.Image:
        """Colours one photo.

        Args:
            image: RGB or RGBA in sRGB, of any size from 2x2; its own colours are not looked at.
            style: what `describe` gave for another photo, whose global features it is to take.
        """
        return join(image, self.colors(self.look(image), style, variant)[0])

    def colors(self, lightness, style=None, variant: int = 0) -> np.ndarray:
        """The network's answer for photos of one shape: L* as `look` gives it, (B, h, w, 1) -> a*b* float32 (B, h, w, 2)."""
        given = {} if style is None else {'features': np.repeat(style, len(lightness), axis=0)}
        return np.asarray(self._predict(self.state, lightness, jax.random.PRNGKey(variant), **given))

    def describe(self, image: Image.Image):
        """The global features of a photo. Raises UserError where the network has none."""
        if self._describe is None:
            raise UserError('--style: this network joins no features of the whole photo to its pixels.')
        return self._describe(self.state, self.look(image))

    def look(self, image: Image.Image) -> np.ndarray:
        """The photo's L*, float32 (1, h, w, 1), at the network's size."""
        rgb = image.convert('RGB')
        shorter = min(rgb.size)
        size = tuple(
            max(1, round(min(side / shorter, _LONGEST) * self.size / _MULTIPLE)) * _MULTIPLE for side in rgb.size
        )
        # The filters that training's photos went through (data.decode, data.augment): networks take photos that are
        # sharper or softer for others. Bicubic shrinking cost ltbc-compact 0.2 to 0.5 of ab RMSE.
        shrinks = shorter > self.size
        small = rgb.resize(size, Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR)
        return color.rgb_to_lab(np.asarray(small))[None, ..., :1]


def join(image: Image.Image, ab: np.ndarray) -> Image.Image:
    """An RGB or RGBA photo's own L* and transparency with the a*b* (h, w, 2) of a network."""
    colored = recompose(image.convert('RGB'), ab)
    if image.mode == 'RGBA':
        colored.putalpha(image.getchannel('A'))
    return colored


def recompose(rgb: Image.Image, ab: np.ndarray) -> Image.Image:
    """A photo's own L* with the a*b* (h, w, 2) of a network, enlarged to it -> an RGB photo of the same size."""
    W, H = rgb.size
    h, w = ab.shape[:2]
    planes = [Image.fromarray(np.ascontiguousarray(ab[..., i], np.float32)) for i in range(2)]
    out = Image.new('RGB', rgb.size)
    rows = max(1, _STRIP_PIXELS // W)
    for top in range(0, H, rows):
        bottom = min(H, top + rows)
        box = (0, top * h / H, w, bottom * h / H)
        strip = np.asarray(rgb.crop((0, top, W, bottom)))
        enlarged = [plane.resize((W, bottom - top), Image.Resampling.BICUBIC, box=box) for plane in planes]
        out.paste(Image.fromarray(_recolored(strip, np.stack(enlarged, axis=-1))), (0, top))
    return out


def _recolored(rgb, ab):
    """uint8 (H, W, 3) and a*b* (H, W, 2) -> uint8 (H, W, 3) of that L* and these a*b*."""
    shape, rgb, ab = rgb.shape, rgb.reshape(-1, 3), ab.reshape(-1, 2)
    out = np.empty_like(rgb)
    for start in range(0, len(out), _CHUNK):
        part = slice(start, start + _CHUNK)
        missing = ((0, max(0, start + _CHUNK - len(out))), (0, 0))
        made = _recolor(np.pad(rgb[part], missing), np.pad(ab[part], missing))
        out[part] = np.asarray(made)[: len(out) - start]
    return out.reshape(shape)


@jax.jit
def _recolor(rgb, ab):
    lightness = color.rgb_to_lab(rgb)[..., :1]
    return color.to_uint8(color.lab_to_rgb(jnp.concatenate([lightness, ab], axis=-1)))


def read_photo(path, max_megapixels: float) -> Image.Image:
    """A file -> an upright photo in sRGB, RGB or RGBA. Call it inside `pillow_unguarded()`. Raises UserError."""
    try:
        image = open_photo(Path(path).read_bytes(), max_megapixels=max_megapixels, keep_alpha=True)
    except OSError as error:
        raise UserError(f'{path} cannot be read ({error.strerror}).') from None
    except RejectedError as error:
        hint = '; raise --max-megapixels to allow it' if 'megapixels' in str(error) else ''
        raise UserError(f'{path} cannot be coloured: {error}{hint}.') from None
    if min(image.size) < _MIN_SIDE:
        raise UserError(f'{path} cannot be coloured: {image.width}x{image.height} is too small.')
    return image


def write_photo(image: Image.Image, path, exif=None) -> None:
    """Writes a photo, whole or not at all, in the format of its name. Raises UserError."""
    path = Path(path)
    kind = _FORMATS[path.suffix.lower()]
    options = {'quality': 95, 'subsampling': 0} if kind == 'JPEG' else {'quality': 95} if kind == 'WEBP' else {}
    if exif:
        options['exif'] = exif
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(temporary, kind, icc_profile=_SRGB, **options)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f'{path} cannot be written ({error.strerror or error}).') from None


def plan(inputs, out) -> list[tuple[Path, Path]]:
    """Photos and folders -> (photo, where its result goes) for every photo.

    A folder's photos keep their places below it. Formats that are not written here become PNG.

    Raises:
        UserError: a missing input, a folder without photos, two results of one name, a result on top of its photo.
    """
    out, pairs = Path(out), []
    for given in map(Path, inputs):
        if given.is_dir():
            found = sorted(p for p in given.rglob('*') if p.suffix.lower() in SUFFIXES and not p.name.startswith('.'))
            if not found:
                raise UserError(f'the folder {given} holds no photos ({", ".join(sorted(SUFFIXES))}).')
            pairs += [(photo, out / photo.relative_to(given)) for photo in found]
        elif given.exists():
            pairs.append((given, out / given.name))
        else:
            raise UserError(f'{given} does not exist.')
    pairs = [(p, t if t.suffix.lower() in _FORMATS else t.with_name(f'{t.name}.png')) for p, t in pairs]
    source_of = {}
    for photo, target in pairs:
        if target in source_of:
            raise UserError(f'{source_of[target]} and {photo} would both be written to {target}; colour them apart.')
        source_of[target] = photo
        if target.exists() and target.samefile(photo):
            raise UserError(f'{photo} would be written over; name another folder with --out.')
    return pairs


def batch_size_of(colorizer) -> int:
    """How many photos go through a network together."""
    # A photo's noise comes from its place in the batch; its colours should not.
    return 1 if jax.default_backend() == 'cpu' or colorizer.task.takes_noise else _GPU_BATCH


@pillow_unguarded()
def colorize(
    colorizer, pairs, *, style=None, variants=1, max_megapixels=200.0, quiet=False, batch_size=None
) -> list[str]:
    """Colours the photos of `plan`, each independent of the others; returns a sentence for each that failed.

    Several variants of a photo go to NAME-1, NAME-2, ... Photos are read and written in threads beside the network.

    Args:
        batch_size: so many photos of one shape go through the network together, and left-over ones singly.

    Raises:
        UserError: several variants are asked of a network that knows only one.
    """
    if variants > 1 and not colorizer.task.takes_noise:
        raise UserError('--variants: this network gives a photo one answer; a cgan takes noise and gives many.')
    batch_size = batch_size or batch_size_of(colorizer)
    progress = Progress(len(pairs), 'photos', quiet=quiet)
    failures = []
    waiting = collections.defaultdict(list)  # photos by the shape that the network sees them in
    written = _Queue()

    def read(pair):
        image = read_photo(pair[0], max_megapixels)
        return *pair, image, colorizer.look(image)

    def write(photo, target, image, colors):
        for number, ab in enumerate(colors, start=1):
            name = target if variants == 1 else target.with_stem(f'{target.stem}-{number}')
            write_photo(join(image, ab), name, _exif(photo))

    def settle(future):
        """What a thread has made, or None where it failed."""
        try:
            return future.result()
        except UserError as error:
            failures.append(str(error))
            progress.say(f'jaxcolor: error: {error}')
            return None

    def finish(futures):
        for future in futures:
            settle(future)
            progress.update()

    def colour(group):
        lightness = np.concatenate([lightness for *_, lightness in group])
        colors = [colorizer.colors(lightness, style, variant) for variant in range(variants)]
        for i, (photo, target, image, _) in enumerate(group):
            pixels = image.width * image.height
            finish(written.that_make_room_for(pixels))
            written.append((pool.submit(write, photo, target, image, [ab[i] for ab in colors]), pixels))
        group.clear()

    def singly(groups):
        for group in groups.values():
            for photo in group:
                colour([photo])
        groups.clear()

    with ThreadPoolExecutor(_AHEAD) as pool:
        for future in _ahead(pool, read, pairs):
            found = settle(future)
            if found is None:
                progress.update()
                continue
            group = waiting[found[-1].shape]
            group.append(found)
            if len(group) == batch_size:
                colour(group)
            elif sum(image.width * image.height for group in waiting.values() for *_, image, _ in group) > _MOST_PIXELS:
                singly(waiting)
        singly(waiting)
        finish(written.all())
    progress.close()
    return failures


class _Queue(collections.deque):
    """Work under way in threads, oldest first: (future, pixels of its photo)."""

    def that_make_room_for(self, pixels):
        """Takes out and yields futures until one more photo fits."""
        while self and (len(self) >= _AHEAD or sum(size for _, size in self) + pixels > _MOST_PIXELS):
            yield self.popleft()[0]

    def all(self):
        """Takes out and yields every future."""
        while self:
            yield self.popleft()[0]


def _ahead(pool, read, pairs):
    """Futures of reading every photo, in order; some are under way before they are asked for."""
    under_way = _Queue()
    for pair in pairs:
        pixels = _pixels(pair[0])
        yield from under_way.that_make_room_for(pixels)
        under_way.append((pool.submit(read, pair), pixels))
    yield from under_way.all()


def _pixels(path):
    """How many pixels a photo will have, from the head of its file; 0 where that cannot be read."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            return image.width * image.height
    except Exception:  # whatever is wrong with it, reading it will say so
        return 0


def _exif(path):
    """What the photo's EXIF data says of who took it, when and with what; bytes, or None where it says nothing.

    Not the rest: orientation, sizes and offsets would be wrong for the result.
    """
    with Image.open(path, formats=FORMATS) as image:
        of_photo, kept = image.getexif(), Image.Exif()
        kept.update({tag: of_photo[tag] for tag in _EXIF_KEPT if tag in of_photo})
        for directory in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
            if entries := of_photo.get_ifd(directory):
                kept.get_ifd(directory).update(entries)
        return kept.tobytes() if kept else None


@one_line_errors
def main(argv=None):
    """Parses the command line and colours."""
    parser = argparse.ArgumentParser(
        prog='python -m jaxcolor.colorize',
        description='Colours gray photographs. Each keeps its own lightness, transparency and size; results are sRGB.',
    )
    parser.add_argument('photos', nargs='+', metavar='PHOTO', help='a photo, or a folder of photos')
    what = 'a run directory, an exported model, or the name of one that comes with jaxcolor (default: %(default)s)'
    parser.add_argument('--model', default=exported.DEFAULT, metavar='RUN', help=what)
    parser.add_argument('--out', default='colored', metavar='DIR', help='folder of the results (default: %(default)s)')
    parser.add_argument('--style', metavar='PHOTO', help='give all photos the mood (global features) of this one')
    parser.add_argument('--variants', type=int, default=1, metavar='N', help='N colourings of each photo (cgan)')
    parser.add_argument('--size', type=int, default=0, help="pixels of the network's input, shorter side")
    parser.add_argument('--step', type=int, help='of the checkpoint (default: the best by validation loss)')
    parser.add_argument('--max-megapixels', type=float, default=200, help='refuse larger photos (default: %(default)s)')
    args = parser.parse_args(argv)
    if args.size < 0 or 0 < args.size < _MULTIPLE:
        raise UserError(f'--size must be at least {_MULTIPLE}, not {args.size}.')
    if args.variants < 1:
        raise UserError(f'--variants must be at least 1, not {args.variants}.')
    pairs = plan(args.photos, args.out)
    cache.keep_compiled()
    colorizer = Colorizer(args.model, args.step, args.size)
    with pillow_unguarded():
        style = colorizer.describe(read_photo(args.style, args.max_megapixels)) if args.style else None
    failures = colorize(colorizer, pairs, style=style, variants=args.variants, max_megapixels=args.max_megapixels)
    print(f'{len(pairs) - len(failures)} of {len(pairs)} photos coloured, in {args.out}')
    if failures:
        sys.exit(1)


if __name__ == '__main__':
    main()
