"""Measurements for a machine that is at hand for minutes: each row is written as it comes, and what fails is passed over.

The parts run in a process of their own, one after the other. A compilation that does not end would outlast any alarm, as
signals wait for C++ to return; so the process is ended from outside, and another one goes on with the next part.
"""

import dataclasses
import json
import multiprocessing
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from os import PathLike
from pathlib import Path
from typing import Any

import jax

from jaxcolor import files
from jaxcolor.benchmark.workload import Case, Workload, measure
from jaxcolor.errors import UserError
from jaxcolor.runtime.cache import enable_compilation_cache

ROWS, TABLES, ERRORS = 'results.jsonl', 'results.md', 'errors.txt'
Row = dict[str, Any]
# A part that has less than this left is not begun.
LEAST_S = 10.0
# A part that writes no row for so long is ended: on an H100 the slowest steps, of PyTorch's max-autotune, take two minutes.
SILENT_S = 150.0


class Budget:
    """The rows of a folder, and the seconds that are left."""

    def __init__(self, seconds: float, out: str | PathLike, clock: Callable[[], float] = time.monotonic) -> None:
        """Starts the clock.

        Args:
            seconds: that all parts have together.
            out: the folder; rows are appended to those that it has.
            clock: gives the seconds since any moment.

        Raises:
            UserError: the folder cannot be written.
        """
        self.out, self._seconds, self._clock, self._start = Path(out), seconds, clock, clock()
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            (self.out / ROWS).open('a').close()
        except OSError as error:
            raise UserError(f'--out: the results cannot be written to {out} ({error.strerror}).') from None

    def left(self) -> float:
        """The seconds that are left."""
        return self._seconds - (self._clock() - self._start)

    def row(self, part: str, **values: Any) -> None:
        """Writes a row of a part's table, and prints it."""
        row = {'part': part, 'at_s': round(self._clock() - self._start, 1), **values}
        with (self.out / ROWS).open('a', encoding='utf-8') as file:
            file.write(json.dumps(row, default=str) + '\n')
        shown = ', '.join(f'{_heading(name)} {_cell(name, value)}' for name, value in values.items())
        print(f'{row["at_s"]:6.1f} s {part}: {shown}'[:500], flush=True)

    def run(self, parts: Sequence[str], perform: Callable[[str, float], Iterable[Row]]) -> None:
        """Runs parts in order, and writes the tables after each.

        Args:
            parts: their names.
            perform: takes a part's name and the seconds that it has at most, and yields its rows; what it raises becomes a
                row, too.
        """
        for part in parts:
            if self.left() < LEAST_S:
                self.row(part, skipped=f'{max(0, self.left()):.0f} s are left')
            else:
                try:
                    for row in perform(part, self.left()):
                        self.row(**row)
                except Exception as error:
                    self.row(part, failed=f'{type(error).__name__}: {error}')
            files.write_text(self.out / TABLES, markdown(read_rows(self.out)))


@dataclasses.dataclass
class Bench:
    """What a part takes: the case that most parts measure, where its rows go, and how much time it has.

    Attributes:
        out: folder for files beside the rows.
        recipes: (name, whether the extractor's features are cached) of the part `recipes`.
        recipe: the network of most parts.
        batch: photos of a step.
        size: side of the photos in pixels; 0 takes the recipe's.
        ceilings: {precision: `workload.ceilings`} of those that are known.
        send: takes the rows.
        part: that runs.
        until: when it must end, by `time.monotonic`.
    """

    out: Path
    recipes: tuple[tuple[str, bool], ...] = ()
    recipe: str = 'ltbc'
    batch: int = 128
    size: int = 0
    ceilings: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    send: Callable[[Row], Any] = print
    part: str = ''
    until: float = 0.0
    _kept: dict[Case, Workload] = dataclasses.field(default_factory=dict)

    @property
    def on_gpu(self) -> bool:
        """Whether the default device is a GPU."""
        return jax.default_backend() == 'gpu'

    @property
    def is_full(self) -> bool:
        """Whether the photos have the recipes' own size: false where parts are only tried."""
        return not self.size

    @property
    def float32(self) -> str:
        """The precision of float32 that a training has: TF32 on a GPU."""
        return 'tf32' if self.on_gpu else 'f32'

    def row(self, part: str = '', **values: Any) -> None:
        """Sends a row of the running part's table, or of another one."""
        self.send({'part': part or self.part, **values})

    def has(self, seconds: float, what: str) -> bool:
        """Whether that many seconds are left; if not, a row says what is skipped."""
        left = self.until - time.monotonic()
        if left < seconds:
            self.row(skipped=f'{what} may take {seconds:.0f} s, {max(0, left):.0f} s are left')
        return left >= seconds

    def workload(self, **case: Any) -> Workload:
        """The compiled case; fields default to a training step in bfloat16. The two that others compare with are kept."""
        shared: Row = {'recipe': self.recipe, 'batch': self.batch, 'size': self.size, 'precision': 'bf16'}
        wanted = Case(**{**shared, **case})
        if wanted not in self._kept:
            main = [Case(**shared, mode=mode) for mode in ('train', 'infer')]
            for other in [other for other in self._kept if other not in main]:
                self._kept.pop(other).close()
            self._kept[wanted] = Workload(wanted)
        return self._kept[wanted]

    def time(self, more: Callable[[Mapping[str, Any]], Row] = lambda row: {}, **case: Any) -> None:
        """Times a case and sends its row. more: of `measure`'s row, what is added to it."""
        row = measure(self.workload(**case))
        names = ['recipe', 'mode', 'precision', 'batch', 'size', 'data']
        shown = {name: row[name] for name in names} | ({'cached': True} if row['cached'] else {})
        shown |= {'step_ms': 1e3 * row['step_s'], 'spread': row['spread'], 'images_per_s': row['images_per_second']}
        shown['tflops'] = row['flops_per_second'] / 1e12
        if top := self.ceilings.get(row['precision']):
            shown['product_share'] = row['flops_per_second'] / top['flops_per_second']
        shown |= more(row)
        shown |= {'memory_gb': row['memory'] and row['memory'] / 1e9, 'moved_gb': row['bytes'] and row['bytes'] / 1e9}
        self.row(**shown, compile_s=row['compile_s'])


class Worker:
    """A process that runs parts; where it is ended, the next part starts another one."""

    def __init__(self, parts: Mapping[str, Callable[[Bench], None]], bench: Bench, silent_s: float = SILENT_S) -> None:
        """Starts nothing yet.

        Args:
            parts: {name: part}, functions of modules.
            bench: what the parts take; each process has a copy.
            silent_s: seconds that a part may take between two rows.
        """
        self._parts, self._bench, self._silent_s = parts, bench, silent_s
        self._process: Any = None

    def perform(self, part: str, seconds: float) -> Iterator[Row]:
        """Runs a part and yields its rows. Raises RuntimeError where the part was ended or its process broke."""
        if self._process is None:
            context = multiprocessing.get_context('spawn')  # a fork would not survive JAX's threads
            self._pipe, other = context.Pipe()
            self._process = context.Process(target=_serve, args=(other, self._parts, self._bench))
            self._process.start()
            other.close()
        until = time.monotonic() + seconds
        try:
            self._pipe.send((part, seconds))
            while self._pipe.poll(wait := max(0, min(self._silent_s, until - time.monotonic()))):
                if (row := self._pipe.recv()) is None:
                    return
                yield row
            why = f'no row for {wait:.0f} s' if wait == self._silent_s else 'the time is over'
        except (EOFError, OSError):
            self._process.join()
            why = f'its process ended with exit code {self._process.exitcode}'
        self.close()
        raise RuntimeError(why)

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None


def _serve(pipe: Connection, parts: Mapping[str, Callable[[Bench], None]], bench: Bench) -> None:
    """The process of a `Worker`: receives (part, seconds), sends its rows, then None."""
    enable_compilation_cache()
    bench.send = pipe.send
    while True:
        try:
            bench.part, seconds = pipe.recv()
        except EOFError:
            return
        bench.until = time.monotonic() + seconds
        try:
            parts[bench.part](bench)
        except Exception as error:
            bench.row(failed=f'{type(error).__name__}: {error}')
            with (bench.out / ERRORS).open('a', encoding='utf-8') as file:
                file.write(f'{bench.part}\n{traceback.format_exc()}\n')
        pipe.send(None)


def read_rows(out: str | PathLike) -> list[Row]:
    """All rows of a folder, in the order of their writing."""
    return [json.loads(line) for line in (Path(out) / ROWS).read_text(encoding='utf-8').splitlines()]


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as one table for each part, and what failed or was skipped as sentences below it."""
    lines = []
    for part in dict.fromkeys(row['part'] for row in rows):
        of_part = [{k: v for k, v in row.items() if k not in ('part', 'at_s')} for row in rows if row['part'] == part]
        measured = [row for row in of_part if not row.keys() & {'failed', 'skipped'}]
        lines += [f'### {part}', '']
        if names := list(dict.fromkeys(name for row in measured for name in row)):
            aligned = [
                '--:' if any(isinstance(row.get(name), (int, float)) for row in measured) else ':--' for name in names
            ]
            lines += [f'| {" | ".join(map(_heading, names))} |', f'|{"|".join(aligned)}|']
            lines += [f'| {" | ".join(_cell(name, row.get(name)) for name in names)} |' for row in measured]
            lines.append('')
        for row in of_part:
            lines += [f'- {kind}: {row[kind][:400]}'.replace('\n', ' ') for kind in ('failed', 'skipped') if kind in row]
        lines += [''] if lines[-1] else []
    return '\n'.join(lines)


_UNITS = {'s': 's', 'ms': 'ms', 'gb': 'GB', 'mb': 'MB', 'tflops': 'TFLOP/s'}


def _heading(name):
    """'step_ms' -> 'step (ms)', 'images_per_s' -> 'images/s'."""
    what, _, unit = name.rpartition('_')
    if unit in _UNITS and what and not what.endswith('_per'):
        return f'{what} ({_UNITS[unit]})'.replace('_', ' ')
    return _UNITS.get(name, name.replace('_per_', '/').replace('_', ' '))


def _cell(name, value):
    if value is None:
        return ''
    if name.endswith(('_share', 'spread')):
        return f'{100 * value:.1f} %'
    if isinstance(value, float):
        return f'{value:,.0f}' if abs(value) >= 1000 else f'{value:.4g}'
    return str(value).replace('|', '\\|')
