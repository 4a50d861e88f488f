"""Speed and memory of preparing and streaming, beside the usual way in PyTorch. Prints Markdown tables.

    jaxcolor benchmark --of=stream PHOTOS      photos/s of the training stream, by encoding
    jaxcolor benchmark --of=prepare PHOTOS     photos/s of preparing
    jaxcolor benchmark --of=encodings PHOTOS   size, speed and error of each encoding, on one core
    jaxcolor benchmark --of=memory             peak memory at 1,000, 10,000 and 100,000 photos

Alternatives are measured in turns; tables give medians, with the range in brackets. PHOTOS is a folder of photos. `stream`
and `prepare` need PyTorch and scikit-image.
"""

import argparse
import functools
import importlib.util
import io
import itertools
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxcolor import color
from jaxcolor import config as fields
from jaxcolor.benchmark.timing import take_turns
from jaxcolor.data import shards
from jaxcolor.data.pipeline import train_batches
from jaxcolor.errors import UserError
from jaxcolor.prepare import prepare
from jaxcolor.prepare.decode import open_photo
from jaxcolor.prepare.sources import folder

SIZE, CROP, BATCH = 256, 224, 32
# (threads, worker processes) that read shards.
_READING = [(1, 0), (2, 0), (4, 0), (1, 2)]


def _files_of(photos):
    """The bytes of the photos in a folder."""
    for photo in folder(Path(photos), 10**9):
        if not photo.rejected and isinstance(data := photo.read(10**9), bytes):
            yield data


def write_jpegs(photos: str | PathLike, out: Path, side: int = SIZE, count: int | None = None) -> list[Path]:
    """Writes photos as JPEG files.

    Args:
        photos: a folder.
        out: folder of the files.
        side: of the shorter side in pixels.
        count: takes the first so many; None takes all.

    Returns:
        The files.

    Raises:
        UserError: there are no photos.
    """
    paths: list[Path] = []
    for data in itertools.islice(_files_of(photos), count):
        image = open_photo(data, max_megapixels=200)
        scale = side / min(image.size)
        path = out / f'{len(paths):06}.jpg'
        image.resize((round(image.width * scale), round(image.height * scale))).save(path, quality=92)
        paths.append(path)
    if not paths:
        raise UserError(f'there are no photos in {photos}')
    return paths


def print_rates(rates: Mapping[str, Sequence[float]], baseline: str, unit: str = 'photos/s') -> None:
    """Prints {name: rates} as a Markdown table, with the median over rounds of the ratio to the baseline."""
    print(f'| method | {unit} | speedup |\n| --- | ---: | ---: |')
    for name, values in rates.items():
        ratio = statistics.median(a / b for a, b in zip(values, rates[baseline], strict=True))
        print(f'| {name} | {statistics.median(values):,.0f} ({min(values):,.0f}-{max(values):,.0f}) | {ratio:.1f} |')


# -- Streaming --------------------------------------------------------------------------------------------------------


class LabFolder:
    """The usual PyTorch data set for colorization: JPEG -> crop, flip -> scikit-image's Lab -> float32 (3, H, W)."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Keeps the paths of the JPEG files."""
        self.paths = paths

    def __len__(self) -> int:
        """Number of photos."""
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        """A photo, float32 tensor (3, crop, crop)."""
        import torch
        from skimage.color import rgb2lab

        rgb = np.asarray(Image.open(self.paths[index]).convert('RGB'))
        top, left = (int(torch.randint(side - CROP + 1, ())) for side in rgb.shape[:2])
        rgb = rgb[top : top + CROP, left : left + CROP]
        if torch.rand(()) < 0.5:
            rgb = rgb[:, ::-1]
        return torch.from_numpy(rgb2lab(rgb).astype(np.float32).transpose(2, 0, 1))


def stream_rate(batches: Iterator[Any], seconds: float, clock: Callable[[], float] = time.perf_counter) -> float:
    """Photos/s of an endless iterator over so many seconds, after a warm-up; by `time.process_time`, per CPU second."""
    for _ in range(4):
        next(batches)
    start, count = clock(), 0
    while (elapsed := clock() - start) < seconds:
        next(batches)
        count += BATCH
    return count / elapsed


def torch_rate(paths: Sequence[Path], workers: int, seconds: float, clock: Callable[[], float] = time.perf_counter) -> float:
    """Photos/s of PyTorch's `DataLoader` over JPEG files; as `stream_rate`."""
    import torch

    loader = torch.utils.data.DataLoader(
        LabFolder(paths),
        BATCH,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
        persistent_workers=workers > 0,
        multiprocessing_context='spawn' if workers else None,
    )
    return stream_rate(itertools.chain.from_iterable(itertools.repeat(loader)), seconds, clock)


def random_crops(path: str | PathLike, crop: int, read_threads: int = 2, workers: int = 0) -> Any:
    """`train_batches` of a shard set, with random crops and flips."""
    data = fields.data()
    data.update({'crop': crop, 'read_threads': read_threads, 'workers': workers})
    return train_batches(shards.open_shards(path), batch_size=BATCH, data=data, seed=0)


def shard_rate(
    path: str | PathLike, seconds: float, read_threads: int, workers: int, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Photos/s of `train_batches`; as `stream_rate`."""
    batches = random_crops(path, CROP, read_threads, workers)
    try:
        return stream_rate(batches, seconds, clock)
    finally:
        batches.close()


def benchmark_streaming(args: argparse.Namespace) -> None:
    """Prints the table of `--of=stream`."""
    with tempfile.TemporaryDirectory() as folder_name:
        work = Path(folder_name)
        (work / 'jpegs').mkdir()
        paths = write_jpegs(args.photos, work / 'jpegs', count=args.count)
        if len(paths) < BATCH:
            raise UserError(
                f'--of=stream needs at least {BATCH} photos, the size of a batch; {args.photos} has {len(paths)}.'
            )
        methods = {}
        clock = time.process_time if args.cpu else time.perf_counter
        for workers in [0] if args.cpu else args.torch_workers:
            name = f'PyTorch DataLoader, JPEG files, {workers} workers'
            methods[name] = functools.partial(torch_rate, paths, workers, args.seconds, clock)
        baseline = max(take_turns(methods, 1).items(), key=lambda item: item[1][0])[0]  # the fastest
        methods = {baseline: methods[baseline]}
        for encoding in shards.ENCODINGS:
            out = work / encoding
            prepare(work / 'jpegs', out, size=SIZE, encoding=encoding, split='train:1', keep_gray=True, quiet=True)
            for threads, workers in [(threads, workers) for threads, workers in _READING if not (args.cpu and workers)]:
                name = f'{encoding}, ' + (f'{workers} worker processes' if workers else f'{threads} threads')
                methods[name] = functools.partial(shard_rate, out, args.seconds, threads, workers, clock)
        print(f'{len(paths)} photos, shorter side {SIZE}, crop {CROP}, flip, batch {BATCH}, {os.cpu_count()} cores')
        print_rates(take_turns(methods, args.rounds), baseline, 'photos/CPU second' if args.cpu else 'photos/s')


# -- Preparing --------------------------------------------------------------------------------------------------------


def prepare_usual(path: Path, out: Path) -> None:
    """Prepares a photo the usual way: Pillow, scikit-image's Lab, a .npy file."""
    from skimage.color import rgb2lab

    image = Image.open(path).convert('RGB')
    scale = SIZE / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BOX)
    lab = np.round(rgb2lab(np.asarray(image)) * [2.55, 1, 1] + [0, 128, 128])
    np.save(out / f'{path.stem}.npy', lab.astype(np.uint8))


def benchmark_preparing(args: argparse.Namespace) -> None:
    """Prints the table of `--of=prepare`."""
    with tempfile.TemporaryDirectory() as folder_name:
        work = Path(folder_name)
        (work / 'jpegs').mkdir()
        paths = write_jpegs(args.photos, work / 'jpegs', args.side, args.count)
        runs = itertools.count()

        def usual():
            out = work / f'usual{next(runs)}'
            out.mkdir()
            start = time.perf_counter()
            with multiprocessing.get_context('spawn').Pool(args.workers) as pool:
                pool.map(functools.partial(prepare_usual, out=out), paths, chunksize=32)
            return len(paths) / (time.perf_counter() - start)

        def ours(encoding):
            out = work / f'ours{next(runs)}'
            start = time.perf_counter()
            prepare(
                work / 'jpegs',
                out,
                size=SIZE,
                encoding=encoding,
                split='train:1',
                keep_gray=True,
                quiet=True,
                workers=args.workers,
                shard_photos=256,
            )
            return len(paths) / (time.perf_counter() - start)

        print(f'{len(paths)} JPEG files, shorter side {args.side} -> {SIZE}, {args.workers} processes')
        baseline = 'Pillow + scikit-image, one .npy per photo'
        methods = {baseline: usual} | {name: functools.partial(ours, name) for name in shards.ENCODINGS}
        print_rates(take_turns(methods, args.rounds), baseline)


# -- Encodings --------------------------------------------------------------------------------------------------------


def benchmark_encodings(args: argparse.Namespace) -> None:
    """Prints the table of `--of=encodings`."""
    photos = list(_files_of(args.photos))
    count = min(args.count or 200, len(photos))
    photos = photos[:: len(photos) // count][:count]
    rgb = [np.asarray(open_photo(data, shorter_side=SIZE, max_megapixels=200)) for data in photos]
    exact = [color.rgb_to_lab(image) for image in rgb]
    stored = [color.encode_lab(lab) for lab in exact]
    pixels = np.mean([lab.shape[0] * lab.shape[1] for lab in stored])
    print(f'{len(stored)} photos of {pixels / 1000:.1f} thousand pixels on average, one core')
    print('| encoding | KB per photo | photos/s written | photos/s read | ΔE mean | ΔE max | PSNR of the RGB |')
    print('| --- | ---: | ---: | ---: | ---: | ---: | ---: |')
    with tempfile.TemporaryDirectory() as work:
        files = {name: Path(work) / f'{name}.arrayrecord' for name in shards.ENCODINGS}

        def write(name):
            start = time.perf_counter()
            shards.write_shard(files[name], (shards.encode_record('x', 0, lab, name) for lab in stored), name)
            return len(stored) / (time.perf_counter() - start)

        def read(name):
            records = shards.Records([files[name]], [len(stored)])
            start = time.perf_counter()
            for i in range(len(stored)):
                records[i]['lab'].copy()
            return len(stored) / (time.perf_counter() - start)

        write_rates = take_turns({name: functools.partial(write, name) for name in files}, args.rounds)
        read_rates = take_turns({name: functools.partial(read, name) for name in files}, args.rounds)
        for name, file in files.items():
            records = shards.Records([file], [len(stored)])
            decoded = [color.decode_lab(records[i]['lab']) for i in range(len(stored))]
            delta = [np.sqrt(((a - b) ** 2).sum(axis=-1)) for a, b in zip(decoded, exact, strict=True)]
            error = [np.mean((color.lab_to_rgb(a) - b / 255) ** 2) for a, b in zip(decoded, rgb, strict=True)]
            rates = f'{statistics.median(write_rates[name]):,.0f} | {statistics.median(read_rates[name]):,.0f}'
            worst, mean = max(d.max() for d in delta), np.mean([d.mean() for d in delta])
            size = file.stat().st_size / len(stored) / 1000
            psnr = -10 * np.log10(np.mean(error))
            print(f'| {name} | {size:.1f} | {rates} | {mean:.2f} | {worst:.1f} | {psnr:.1f} dB |')


# -- Memory -----------------------------------------------------------------------------------------------------------


def write_tiny_photos(path: str | PathLike, count: int) -> None:
    """Writes a tar of `count` tiny JPEGs with different names."""
    rng = np.random.default_rng(0)
    files = []
    for _ in range(64):
        small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8)).resize((64, 64), Image.Resampling.BICUBIC)
        file = io.BytesIO()
        small.save(file, 'JPEG')
        files.append(file.getvalue())
    with tarfile.open(path, 'w') as tar:
        for i in range(count):
            member = tarfile.TarInfo(f'{i % 10}/{i:07}.jpg')
            member.size = len(files[i % 64])
            tar.addfile(member, io.BytesIO(files[i % 64]))
            # Or this process would grow, and with it the peak of its children.
            tar.members.clear()  # type: ignore[attr-defined]


def peak_memory(code: str, *arguments: Any) -> list[float]:
    """Runs Python code in a new process -> peak memory in MB of that process and of its largest child."""
    tail = '\nimport resource, json\nprint(json.dumps([resource.getrusage(who).ru_maxrss / 1024 for who in (0, -1)]))'
    line = [sys.executable, '-c', f'import sys\nif __name__ == "__main__":\n {code}{tail}', *map(str, arguments)]
    output = subprocess.run(line, check=True, capture_output=True, text=True).stdout
    return json.loads(output.splitlines()[-1])


def benchmark_memory(args: argparse.Namespace) -> None:
    """Prints the table of `--of=memory`."""
    options = 'size=64, workers=2, split="train:1", quiet=True'
    preparing = f'from jaxcolor.prepare import prepare; prepare(*sys.argv[1:], {options})'
    streaming = 'from jaxcolor.benchmark.input_pipeline import stream_photos; stream_photos(*sys.argv[1:])'
    print('| photos | preparing: main process | preparing: a worker | streaming |\n| ---: | ---: | ---: | ---: |')
    for count in args.counts:
        with tempfile.TemporaryDirectory() as work:
            write_tiny_photos(f'{work}/photos.tar', count)
            main_mb, worker_mb = peak_memory(preparing, f'{work}/photos.tar', f'{work}/out')
            stream_mb, _ = peak_memory(streaming, f'{work}/out', count)
        print(f'| {count:,} | {main_mb:,.0f} MB | {worker_mb:,.0f} MB | {stream_mb:,.0f} MB |')


def stream_photos(path: str | PathLike, count: int | str) -> None:
    """Streams `count` photos of a shard set, but at least 10,000, so that small sets do the same work."""
    batches = random_crops(path, 56)
    for _ in range(max(int(count), 10_000) // BATCH):
        next(batches)
    batches.close()


BENCHMARKS = {
    'stream': benchmark_streaming,
    'prepare': benchmark_preparing,
    'encodings': benchmark_encodings,
    'memory': benchmark_memory,
}
# Optional packages that they need.
_PACKAGES = {'stream': ('torch', 'skimage'), 'prepare': ('skimage',)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `run`, except --rounds and PHOTOS."""
    group = parser.add_argument_group('for --of=stream, prepare, encodings, memory')
    add = group.add_argument
    add('--of', default='steps', choices=['steps', *BENCHMARKS], help='what to time (%(default)s)')
    add('--seconds', type=float, default=4, help='of streaming per round (%(default)s)')
    add('--cpu', action='store_true', help='stream: photos per second of CPU time, in this process; for a busy machine')
    add('--torch-workers', type=int, nargs='+', default=[0, 1, 2, 4], metavar='N', help="processes of PyTorch's DataLoader")
    add('--workers', type=int, default=os.cpu_count(), help='processes that prepare (%(default)s)')
    add('--side', type=int, default=SIZE, help='shorter side of the JPEG files to prepare (%(default)s)')
    add('--count', type=int, metavar='N', help='number of photos (all; encodings: 200)')
    add(
        '--counts',
        type=int,
        nargs='+',
        default=[1_000, 10_000, 100_000],
        metavar='N',
        help='photos, for memory',
    )


def run(args: argparse.Namespace) -> None:
    """Runs the benchmark `args.of`. Raises UserError."""
    if args.of != 'memory' and not args.photos:
        raise UserError(f'--of={args.of} needs PHOTOS, a folder of photos.')
    for package in _PACKAGES.get(args.of, ()):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"--of={args.of} needs PyTorch and scikit-image: pip install 'jaxcolor[torch]' scikit-image.")
    # For both sides: BLAS threads only slow down worker processes.
    os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')
    BENCHMARKS[args.of](args)
