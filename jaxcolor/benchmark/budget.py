"""Measurements for a machine that is at hand for minutes: each row is written as it comes, and what fails is passed over."""

import contextlib
import json
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from jaxcolor import files
from jaxcolor.errors import UserError

ROWS, TABLES, ERRORS = 'results.jsonl', 'results.md', 'errors.txt'
# A part that has less than this left is not begun.
LEAST_S = 10.0


class Budget:
    """Runs parts one after the other, and writes their rows to a folder, until the seconds are over."""

    def __init__(self, seconds: float, out: str | PathLike, clock: Callable[[], float] = time.monotonic) -> None:
        """Starts the clock.

        Args:
            seconds: that all parts have together.
            out: the folder; rows are appended to those that it has.
            clock: gives the seconds since any moment.

        Raises:
            UserError: the folder cannot be written.
        """
        self.out, self._seconds, self._clock, self._start, self._part = Path(out), seconds, clock, clock(), ''
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            (self.out / ROWS).open('a').close()
        except OSError as error:
            raise UserError(f'--out: the results cannot be written to {out} ({error.strerror}).') from None

    def left(self) -> float:
        """The seconds that are left."""
        return self._seconds - (self._clock() - self._start)

    def has(self, seconds: float, what: str = '') -> bool:
        """Whether that many seconds are left; if not, a row says what is skipped."""
        if self.left() >= seconds:
            return True
        self.row(skipped=f'{what or "the part"} may take {seconds:.0f} s, {max(0, self.left()):.0f} s are left')
        return False

    def row(self, part: str = '', **values: Any) -> None:
        """Writes a row of the running part, or of another table, and prints it."""
        row = {'part': part or self._part, 'at_s': round(self._clock() - self._start, 1), **values}
        with (self.out / ROWS).open('a', encoding='utf-8') as file:
            file.write(json.dumps(row, default=str) + '\n')
        shown = ', '.join(f'{_heading(name)} {_cell(name, value)}' for name, value in values.items())
        print(f'{row["at_s"]:6.1f} s {row["part"]}: {shown}'[:500], flush=True)

    def run(self, parts: Mapping[str, Callable[[], None]]) -> None:
        """Runs {name: part} in order, then writes the tables. What a part raises becomes a row and a traceback in a file."""
        try:
            for self._part, part in parts.items():
                if not self.has(LEAST_S):
                    continue
                try:
                    part()
                except Exception as error:
                    self.row(failed=f'{type(error).__name__}: {error}'[:600])
                    with (self.out / ERRORS).open('a', encoding='utf-8') as file:
                        file.write(f'{self._part}\n{traceback.format_exc()}\n')
        finally:
            tables = markdown(read_rows(self.out))
            files.write_text(self.out / TABLES, tables)
            print(f'\n{tables}', flush=True)


@contextlib.contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raises TimeoutError inside after that many seconds; where there are no such signals, never."""

    def ring(number, frame):
        raise TimeoutError('the time is over')

    if not hasattr(signal, 'setitimer'):
        yield
        return
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def read_rows(out: str | PathLike) -> list[dict[str, Any]]:
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
            lines += [f'- {kind}: {row[kind]}'.replace('\n', ' ') for kind in ('failed', 'skipped') if kind in row]
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
