"""Reads optimized HLO, XLA's text of a compiled program: its kernels, what they compute and move, and a roofline of them.

XLA's own cost analysis of a program for a GPU counts nothing of what it gives to libraries, so it is done here.
"""

import collections
import math
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

_BYTES = {'pred': 1, 's8': 1, 'u8': 1, 'f8e4m3fn': 1, 'f8e5m2': 1, 's16': 2, 'u16': 2, 'f16': 2, 'bf16': 2}
_BYTES |= {'s32': 4, 'u32': 4, 'f32': 4, 's64': 8, 'u64': 8, 'f64': 8, 'c64': 8}
_ARRAY = re.compile(rf'\b({"|".join(_BYTES)})\[([\d,]*)\]')
_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$')
_INSTRUCTION = re.compile(r'^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([a-z][a-z\-]*)\((.*)$')
# What is no work of the device's: names for what is there, and ends of what was counted at its start.
_FREE = {'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'after-all', 'partition-id', 'replica-id'}
_COLLECTIVES = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute')


class Array(NamedTuple):
    """dtype as in HLO: 'f32', 'bf16'; the shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return math.prod(self.shape) * _BYTES[self.dtype]


class Instruction(NamedTuple):
    """A line of a computation."""

    name: str
    arrays: tuple[Array, ...]  # its results
    opcode: str
    operands: tuple[str, ...]  # names of instructions; NAME#2 is the third result of one
    attributes: str

    def find(self, pattern: str) -> str:
        """The first group of a pattern in the attributes; '' where it is not."""
        found = re.search(pattern, self.attributes)
        return found.group(1) if found else ''


class Program(NamedTuple):
    """computations: by name, {name: instruction} each. entry: the name of the one that is run."""

    computations: dict[str, dict[str, Instruction]]
    entry: str


class Kernel(NamedTuple):
    """A unit of work of the device.

    kind: 'convolution', 'matrix product', 'reduction', 'transposition', 'elementwise', a collective, or the HLO opcode.
    runs: how often it is run. flops: multiplications and additions of a run, of convolutions and matrix products; else 0.
    moved: bytes that a run reads and writes, each operand once. dtype: of what is multiplied, else of the result.
    operation: of the Python program, as JAX names it.
    """

    name: str
    kind: str
    runs: int
    flops: int
    moved: int
    dtype: str
    operation: str
    instruction: Instruction


def parse(text: str) -> Program:
    """The computations of optimized HLO. Raises ValueError if the text has no entry."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = '', None
    for line in text.splitlines():
        if found := _COMPUTATION.match(line):
            current = computations.setdefault(found.group(2), {})
            entry = found.group(2) if found.group(1) else entry
        elif current is not None and (found := _INSTRUCTION.match(line)):
            name, shape, opcode, rest = found.groups()
            end = _end_of_operands(rest)
            operands = tuple(re.findall(r'%([\w.\-]+(?:#\d+)?)', rest[:end]))
            current[name] = Instruction(name, _arrays(shape), opcode, operands, rest[end:])
    if not entry:
        raise ValueError('no optimized HLO: it has no ENTRY')
    return Program(computations, entry)


def _end_of_operands(rest):
    depth = 1
    for i, letter in enumerate(rest):
        depth += (letter == '(') - (letter == ')')
        if depth == 0:
            return i
    return len(rest)


def _arrays(text):
    return tuple(Array(dtype, tuple(int(n) for n in sides.split(',') if n)) for dtype, sides in _ARRAY.findall(text))


def kernels(program: Program) -> list[Kernel]:
    """All kernels of a program; those in loops with the number of their runs, of branches the longest one's."""
    return list(_kernels(program, program.entry, 1))


def _kernels(program, name, count):
    instructions = program.computations[name]
    for each in instructions.values():
        if each.opcode in _FREE or each.opcode.endswith('-done'):
            continue
        if each.opcode == 'while':
            trips = int(each.find(r'"known_trip_count":\{"n":"(\d+)"') or 1)
            yield from _kernels(program, each.find(r'body=%?([\w.\-]+)'), count * trips)
        elif each.opcode in ('call', 'async-start'):
            yield from _kernels(program, each.find(r'(?:to_apply|calls|called_computation)=%?([\w.\-]+)'), count)
        elif each.opcode == 'conditional':
            branches = re.findall(r'%([\w.\-]+)', each.find(r'branch_computations=\{([^}]*)\}'))
            yield from max((list(_kernels(program, branch, count)) for branch in branches), key=len, default=[])
        else:
            yield _kernel(program, instructions, each, count)


def _kernel(program, instructions, each, count):
    read = [_results(instructions, name) for name in dict.fromkeys(each.operands)]
    moved = sum(array.nbytes for arrays in (each.arrays, *read) for array in arrays if not _is_workspace(array))
    parts = list(_parts(program, instructions, each))
    flops, dtype, kind = 0, each.arrays[0].dtype if each.arrays else '', _kind(each, [part for part, _ in parts[1:]])
    for part, around in parts:
        if found := _flops(part, around):
            flops += found
            dtype = _results(around, part.operands[0])[0].dtype
    return Kernel(each.name, kind, count, flops, moved, dtype, each.find(r'op_name="([^"]*)"'), each)


def _parts(program, instructions, each):
    """An instruction, and those of a fusion, which may hold others (on TPUs), each with the instructions around it."""
    yield each, instructions
    if each.opcode == 'fusion':
        inside = program.computations.get(each.find(r'calls=%?([\w.\-]+)'), {})
        for part in inside.values():
            yield from _parts(program, inside, part)


def _results(instructions, operand):
    """The arrays that an operand stands for."""
    name, _, index = operand.partition('#')
    arrays = instructions[name].arrays
    return arrays[int(index) : int(index) + 1] if index else arrays


def _is_workspace(array):
    """Whether a result is memory that a library asked for, in bytes, rather than a value."""
    return array.dtype in ('s8', 'u8') and len(array.shape) == 1


def _kind(each, inside):
    target, opcodes = each.find(r'custom_call_target="([^"]*)"'), {part.opcode for part in inside} | {each.opcode}
    if 'conv' in target or 'convolution' in opcodes:
        return 'convolution'
    if 'gemm' in target or 'matmul' in target or 'dot' in opcodes or '__triton_gemm' in each.attributes:
        return 'matrix product'
    for collective in _COLLECTIVES:
        if each.opcode.startswith(collective):
            return collective
    if opcodes & {'reduce', 'reduce-window'}:
        return 'reduction'
    if 'transpose' in opcodes:
        return 'transposition'
    return 'elementwise' if each.opcode in ('fusion', 'copy', 'convert') else target or each.opcode


def _flops(each, instructions):
    """Multiplications and additions of a convolution or a matrix product, 0 for all else."""
    shapes = [arrays[0].shape for arrays in (_results(instructions, name) for name in each.operands) if arrays]
    target, out = each.find(r'custom_call_target="([^"]*)"'), each.arrays[0].shape if each.arrays else ()
    if each.opcode == 'convolution':
        return _convolution_flops(each, *shapes[:2], out)
    if 'conv' in target:
        of_kernel = each.find(r'dim_labels=\w+?_(\w+)->')
        image, kernel = shapes[:2]
        # The side with the output's features, and the kernel, of the forward convolution.
        if target.endswith('BackwardInput'):
            per_pixel = image
        elif target.endswith('BackwardFilter'):
            per_pixel, kernel = kernel, out
        else:
            per_pixel = out
        taps = math.prod(side for side, label in zip(kernel, of_kernel, strict=True) if label != 'o')
        return 2 * math.prod(per_pixel) * taps
    if each.opcode == 'dot' or 'gemm' in target or 'matmul' in target:
        contracted = each.find(r'lhs_contracting_dims=\{([\d,]*)\}') or each.find(
            r'"lhs_contracting_dimensions":\[([^\]]*)\]'
        )
        axes = [int(n) for n in re.findall(r'\d+', contracted)]
        return 2 * math.prod(out) * math.prod(shapes[0][axis] for axis in axes)
    return 0


def _convolution_flops(each, image, kernel, out):
    """Of the taps that meet a pixel: XLA also writes products as convolutions of which most meet padding or holes."""
    of_image, of_kernel, of_out = re.search(r'dim_labels=(\w+?)_(\w+)->(\w+)', each.attributes).groups()
    axes = [label for label in of_out if label.isdigit()]

    def sides(name, default):
        found = each.find(rf'{name}=([-\dx_]+)')
        return [int(side.split('_')[0]) for side in found.split('x')] if found else [default] * len(axes)

    meetings = kernel[of_kernel.index('i')] * math.prod(
        length for length, label in zip(out, of_out, strict=True) if not label.isdigit()
    )
    windows = zip(axes, sides('stride', 1), sides('pad', 0), sides('lhs_dilate', 1), sides('rhs_dilate', 1), strict=True)
    for axis, stride, pad, hole, gap in windows:
        of_taps = gap * np.arange(kernel[of_kernel.index(axis)])
        at = stride * np.arange(out[of_out.index(axis)])[:, None] + of_taps - pad  # in the image with its holes
        pixel, is_hole = np.divmod(at, hole)
        meetings *= int(np.sum((is_hole == 0) & (pixel >= 0) & (pixel < image[of_image.index(axis)])))
    return 2 * meetings


class Roofline(NamedTuple):
    """What a program takes at least: each kernel the longer of its computing and its moving, one after the other.

    seconds, flops, moved (bytes): of a run. kernels: number of them, runs of loops counted. collectives: {kind: number}.
    """

    seconds: float
    flops: int
    moved: int
    kernels: int
    collectives: dict[str, int]


def seconds(kernel: Kernel, peaks: Mapping[str, float], bandwidth: float, efficiency: float) -> float:
    """Of one run of a kernel.

    Args:
        peaks: multiplications and additions a second, by HLO dtype.
        bandwidth: bytes a second.
        efficiency: part of the peak that convolutions and matrix products reach.
    """
    computing = kernel.flops / (efficiency * peaks[kernel.dtype]) if kernel.flops else 0.0
    return max(computing, kernel.moved / bandwidth)


def roofline(found: Iterable[Kernel], peaks: Mapping[str, float], bandwidth: float, efficiency: float = 0.75) -> Roofline:
    """Sums the kernels of a program. The arguments are those of `seconds`."""
    found = list(found)
    collectives = collections.Counter[str]()
    for kernel in found:
        if kernel.kind in _COLLECTIVES:
            collectives[kernel.kind] += kernel.runs
    return Roofline(
        sum(kernel.runs * seconds(kernel, peaks, bandwidth, efficiency) for kernel in found),
        sum(kernel.runs * kernel.flops for kernel in found),
        sum(kernel.runs * kernel.moved for kernel in found),
        sum(kernel.runs for kernel in found),
        dict(collectives),
    )


# -- Facts ------------------------------------------------------------------------------------------------------------


def windows(found: Iterable[Kernel]) -> list[tuple[int, ...]]:
    """The sides of every convolution's window, in pixels."""
    sizes = (kernel.instruction.find(r'window=\{size=([\dx]+)') for kernel in found if kernel.kind == 'convolution')
    return [tuple(int(n) for n in size.split('x')) for size in sizes if size]


def layouts(found: Iterable[Kernel]) -> dict[str, int]:
    """{order of axes: number of convolutions}: 'b01f' is NHWC, as XLA labels it."""
    return dict(
        collections.Counter(
            kernel.instruction.find(r'dim_labels=(\w+?)_') for kernel in found if kernel.kind == 'convolution'
        )
    )
