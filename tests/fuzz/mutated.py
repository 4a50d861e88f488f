"""Reads mutated files: every one becomes a result or one sentence, nothing is written outside the folder of results.

    python tests/fuzz/mutated.py TARGET [--files=10000] [--seed=0]

TARGET is colorize, prepare, a kind of weight files (torch_zip, torch_stream, torch7, safetensors, keras), or a published
network, whose files are read and converted: their arrays or modules are changed, and half of the files as bytes, too.
A crash ends with a traceback; the file at fault is kept, and named.
"""

import argparse
import csv
import faulthandler
import functools
import hashlib
import os
import resource
import shutil
import sys
import tempfile
import types
from pathlib import Path

import numpy as np
from fuzz_seeds import photo_seeds, weight_seeds
from PIL import Image

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent.parent / 'weights')]

BATCH = 250  # files that are made and read together
SECONDS = 300  # a batch may take
MEMORY = 8 * 2**30  # bytes beside those that are in use when it starts


INTERESTING = [
    bytes(4),
    b'\xff\xff\xff\xff',
    b'\x7f\xff\xff\xff',
    b'\xff\xff\xff\x7f',
    b'\1\0\0\0',
    b'\0\0\0\1',
    b'\0\1\0\0',
]


def mutated(data, others, generator):
    """A file with one to four changes: of bytes, numbers and blocks, cut off, or mixed with another file."""
    data = bytearray(data)
    for _ in range(generator.integers(1, 5)):
        if len(data) < 8:
            break
        # The beginning, where the structure is, is hit as often as all the rest.
        end = len(data) if generator.random() < 0.5 else min(len(data), 300)
        at, length = int(generator.integers(end)), int(generator.integers(1, 64))
        kind = generator.integers(8)
        if kind < 2:
            data[at] = generator.integers(256)
        elif kind == 2:
            data[at] ^= 1 << int(generator.integers(8))
        elif kind == 3:
            data[at : at + 4] = INTERESTING[generator.integers(len(INTERESTING))]
        elif kind == 4:
            del data[at : at + length]
        elif kind == 5:
            data[at:at] = data[at : at + length]
        elif kind == 6:
            other = others[generator.integers(len(others))]
            start = int(generator.integers(len(other)))
            data[at : at + length] = other[start : start + length]
        elif generator.random() < 0.3:
            del data[at:]
    return bytes(data)


def files_of(seeds, count, generator):
    """Yields (name, file)."""
    everything = [(suffix, data) for suffix, files in seeds.items() for data in files]
    others = [data for _, data in everything]
    for number in range(count):
        suffix, data = everything[generator.integers(len(everything))]
        if generator.random() < 0.05:  # under another format's name
            suffix = everything[generator.integers(len(everything))][0]
        yield f'{number:05}{suffix}', mutated(data, others, generator)


def network_files(network, count, generator):
    """Yields (name, file) of a narrow published network, with changes of what the file holds."""
    make = torch7_files() if network == 'iizuka' else functools.partial(array_files, network_arrays(network))
    everything = []
    for number in range(count):
        suffix, data = make(generator)
        everything = [*everything[-9:], data]
        yield f'{number:05}{suffix}', mutated(data, everything, generator) if generator.random() < 0.5 else data


def network_arrays(network):
    """The arrays of a file; the converter is that of the narrow network from then on, and computes shapes once."""
    import published_files
    import pytest
    from zhang_files import state_dict

    from jaxcolor.weights import published
    from jaxcolor.weights.published import converted, ddcolor, deoldify, zhang

    for module in (ddcolor, deoldify, zhang):
        module.variable_shapes = functools.cache(converted.variable_shapes)
    patch, width = pytest.MonkeyPatch(), 1 / 32
    published.CONVERTERS[network] = published_files.small_converter(network, patch, width)
    if network in published_files.CONVERTERS:
        return published_files.state_dict(published_files.small_network(network, patch, width))
    return state_dict(network, width)


def array_files(arrays, generator):
    """(suffix, file) with up to two of the arrays left out, renamed, of another shape or type, or with other values."""
    import safetensors.numpy
    from torch_files import write_torch_stream, write_torch_zip

    arrays, names = dict(arrays), list(arrays)
    for _ in range(generator.integers(3)):
        name = names[generator.integers(len(names))]
        array = arrays.pop(name, np.zeros(3, np.float32))
        match generator.integers(7):
            case 0:
                pass
            case 1:
                arrays[names[generator.integers(len(names))]] = array
            case 2:
                arrays[f'{name}{generator.choice(["", ".0", "_orig", "_v", "_u", ".weight"])}'] = array[..., None]
            case 3:
                arrays[name] = array[: generator.integers(max(1, len(array)))] if array.ndim else array
            case 4:
                arrays[name] = array.T
            case 5:
                arrays[name] = array * np.float32(generator.choice([0, np.nan, np.inf, 1e30, -1]))
            case 6:
                arrays[name] = np.zeros([(), (0,), (1,), (3, 0), (1,) * 5][generator.integers(5)], np.float32)
    kind = generator.integers(3)
    with tempfile.TemporaryDirectory() as folder, np.errstate(all='ignore'):
        path = Path(folder) / 'a'
        if kind == 0:
            kept = {name: np.array(array, generator.choice(['f4', 'f2', 'f8', 'i8'])) for name, array in arrays.items()}
            return '.safetensors', safetensors.numpy.save(kept)
        wrapping = ('', 'params', 'params_ema', 'model', 'state_dict')[generator.integers(5)]
        arrays = {name: np.asarray(array, np.float32) for name, array in arrays.items()}
        content = {wrapping: arrays, 'opt': {}} if wrapping else arrays
        (write_torch_zip if kind == 1 else write_torch_stream)(content, path)
        return '.pth', path.read_bytes()


def torch7_files():
    """A function that makes (suffix, file) of Iizuka's network, with up to two entries of its tables changed."""
    from iizuka_files import graph_of
    from test_iizuka import CLASSES, VALUES, network_of, tables_of, variables_of
    from torch7_files import write_torch7

    from jaxcolor.weights.published import converted, iizuka

    iizuka.variable_shapes = functools.cache(converted.variable_shapes)
    variables = variables_of(network_of(width=1 / 64, dense_widths=(64, 64, 64), global_size=32, classes=3))

    def make(generator):
        options = ('matrix', 'inverse', 'copied', 'global_first', 'vector_first', 'up')
        root = graph_of(variables, **{name: bool(generator.integers(2)) for name in options})
        for _ in range(generator.integers(3)):
            tables = tables_of(root)
            changed = tables[generator.integers(len(tables))]
            key = list(changed)[generator.integers(len(changed))]
            match generator.integers(4):
                case 0:
                    del changed[key]
                case 1:
                    changed.class_name = str(generator.choice(CLASSES))
                case _:
                    changed[key] = VALUES[generator.integers(len(VALUES))]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / 'a'
            write_torch7(root, path)
            return '.t7', path.read_bytes()

    return make


# What reads them. Each takes a folder of files and an empty one, and returns how many files became something.


def stub_colorizer():
    """A colorizer whose network is a fixed pattern of colors."""
    from jaxcolor.inference.colorizer import Colorizer

    class Stub(Colorizer):
        digest, batch_size, task, faithful = 'f' * 32, 1, types.SimpleNamespace(takes_noise=False), None

        def __init__(self):
            self.size = 32

        def predict_ab(self, lightness, style=None, variant=0):
            return np.concatenate([lightness - 50, 50 - lightness], axis=-1)

    return Stub()


def run_colorize(folder, out):
    from jaxcolor.inference.colorize import colorize
    from jaxcolor.inference.plan import plan_outputs

    count = len(list(folder.iterdir()))
    summary = colorize(stub_colorizer(), plan_outputs([folder], out), quiet=True, max_megapixels=4)
    assert summary.colored + len(summary.failures) == count, (summary.colored, len(summary.failures), count)
    for sentence in summary.failures + summary.notes:
        assert '\n' not in sentence and len(sentence) < 1000, sentence
    results = [path for path in out.rglob('*') if path.is_file()]
    assert len(results) == summary.colored, 'there are other files than results'
    for path in results:
        with Image.open(path) as image:
            image.load()
    return summary.colored


def run_prepare(folder, out):
    from jaxcolor.prepare import prepare

    count = len(list(folder.iterdir()))
    made = prepare(folder, out, size=32, quiet=True, keep_gray=True, min_size=1, max_megapixels=4, split='train:1')
    photos = sum(made.counts.values())
    with open(out / 'rejected.csv', encoding='utf-8', newline='') as file:
        rejected = len(list(csv.reader(file))) - 1
    assert photos + rejected == count, (photos, rejected, count)
    return photos


def run_reader(read, folder, out):
    from jaxcolor.errors import UserError

    count = 0
    for path in sorted(folder.iterdir()):
        try:
            read(path)
        except UserError as error:
            assert str(path) in str(error) and '\n' not in str(error) and len(str(error)) < 2500, str(error)[:500]
        else:
            count += 1
    return count


def run_weights(folder, out):
    from jaxcolor.weights.weight_files import read_weights

    return run_reader(read_weights, folder, out)


def run_networks(folder, out):
    from jaxcolor.weights import published

    return run_reader(published.convert, folder, out)


# Makes files, (count, generator) -> (name, file); reads them.
TARGETS = {
    'colorize': (lambda: functools.partial(files_of, photo_seeds()), run_colorize),
    'prepare': (lambda: functools.partial(files_of, photo_seeds()), run_prepare),
    **{
        kind: (lambda kind=kind: functools.partial(files_of, weight_seeds(kind)), run_weights)
        for kind in ('torch_zip', 'torch_stream', 'torch7', 'safetensors', 'keras')
    },
    **{
        network: (lambda network=network: functools.partial(network_files, network), run_networks)
        for network in ('eccv16', 'siggraph17', 'ddcolor', 'deoldify', 'iizuka')
    },
}


def contents(folder):
    """{path: digest} of the files below a folder."""
    return {path: hashlib.sha256(path.read_bytes()).digest() for path in folder.rglob('*') if path.is_file()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('target', choices=TARGETS)
    parser.add_argument('--files', type=int, default=10_000)
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    prepare, read = TARGETS[args.target]
    make_files, done, used = prepare(), 0, 0
    status = Path('/proc/self/statm')
    if status.exists():
        in_use = int(status.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (in_use + MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    while done < args.files:
        count = min(BATCH, args.files - done)
        work = Path(tempfile.mkdtemp(prefix='jaxcolor-fuzz-'))
        folder, out = work / 'in', work / 'out'
        folder.mkdir()
        for name, data in make_files(count, np.random.default_rng((args.seed, done))):
            (folder / name).write_bytes(data)
        before = contents(work)
        os.chdir(work)  # what is written to a relative path is seen
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        print(f'{args.target}: files {done} to {done + count}, in {work}', file=sys.stderr, flush=True)
        used += read(folder, out)
        faulthandler.cancel_dump_traceback_later()
        after = {path: digest for path, digest in contents(work).items() if not path.is_relative_to(out)}
        assert after == before, 'files outside the folder of results have changed'
        os.chdir('/')
        shutil.rmtree(work)
        done += count
    print(f'{args.target}: {done} mutated files, {used} could be read')


if __name__ == '__main__':
    main()
