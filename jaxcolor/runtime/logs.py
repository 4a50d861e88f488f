"""What a run reports: progress, and metrics as JSON lines and TensorBoard events."""

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import tqdm

from jaxcolor import files
from jaxcolor.errors import UserError


class Progress:
    """Progress with rate and time left: a bar on a terminal, a line every few seconds in a log file.

    Args:
        total: units of work.
        unit: name of the unit, plural ('steps', 'photos').
        start: units that are done already.
        items_per_unit: items in a unit (images in a step); the rate is given in items.
        item: name of an item, plural; `unit` by default.
        seconds: between lines in a log file.
        quiet: print nothing.
        file: stderr by default.
    """

    def __init__(
        self,
        total: int,
        unit: str,
        *,
        start: int = 0,
        items_per_unit: int = 1,
        item: str | None = None,
        seconds: float = 10.0,
        quiet: bool = False,
        file: TextIO | None = None,
    ) -> None:
        self.total, self.unit, self.done, self.start = total, unit, start, start
        self.items_per_unit, self.item, self.seconds = items_per_unit, item or unit, seconds
        self.file = file or sys.stderr
        self.quiet = quiet
        self.note = ''
        self._start_time = self._print_time = time.monotonic()
        self.bar = None
        if self.file.isatty() and not quiet:
            self.bar = tqdm.tqdm(total=total, initial=start, unit=f' {unit}', file=self.file, dynamic_ncols=True)

    def restart_clock(self) -> None:
        """Measures the rate from now on, to leave out compilation."""
        self._start_time = self._print_time = time.monotonic()
        self.start = self.done

    def update(self, units: int = 1, note: str | None = None) -> None:
        """Counts units as done. `note` is shown after the rate from now on."""
        self.done += units
        self.note = self.note if note is None else note
        if self.bar is not None:
            self.bar.set_postfix_str(f'{self.rate:.4g} {self.item}/s {self.note}', refresh=False)
            self.bar.update(units)
        elif not self.quiet and time.monotonic() - self._print_time > self.seconds:
            self._print_time = time.monotonic()
            self.say(self.line())

    @property
    def rate(self) -> float:
        """Items per second since the clock was started."""
        return (self.done - self.start) * self.items_per_unit / max(1e-9, time.monotonic() - self._start_time)

    def line(self) -> str:
        """The progress in one line."""
        left = '?'
        if self.rate:
            left = tqdm.tqdm.format_interval((self.total - self.done) * self.items_per_unit / self.rate)
        share = 100 * self.done // max(1, self.total)
        return f'{self.done}/{self.total} {self.unit} ({share}%), {self.rate:.4g} {self.item}/s, {left} left {self.note}'

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        if self.quiet:
            return
        if self.bar is not None:
            self.bar.write(text, file=self.file)
        else:
            print(text.rstrip(), file=self.file, flush=True)

    def close(self) -> None:
        """Closes the bar."""
        if self.bar is not None:
            self.bar.close()


class MetricsLog:
    """Appends lines {"step": ..., "epoch": ..., name: value} to a run's metrics.jsonl; TensorBoard's events if asked for.

    Args:
        run: the run directory.
        steps_per_epoch: steps in which every training photo is seen once; a line's epoch is its step / this.
        resume_step: lines after this step are dropped; the resumed run writes them again.
        tensorboard: whether to write events to RUN/tensorboard, too.

    Raises:
        UserError: tensorboardX is not installed.
    """

    def __init__(
        self, run: str | os.PathLike, steps_per_epoch: float, resume_step: int = 0, tensorboard: bool = False
    ) -> None:
        path = _metrics_path(run)
        kept = [row for row in read_metrics(run) if row['step'] <= resume_step]
        files.write_text(path, ''.join(json.dumps(row) + '\n' for row in kept))
        self._steps_per_epoch = steps_per_epoch
        self._file = open(path, 'a', encoding='utf-8')  # noqa: SIM115
        self._events = _open_tensorboard(run, resume_step) if tensorboard else None

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes one line of scalars and flushes the file."""
        values = {'epoch': step / self._steps_per_epoch, **{name: float(value) for name, value in values.items()}}
        self._file.write(json.dumps({'step': int(step), **values}) + '\n')
        self._file.flush()
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(name, value, int(step))

    def close(self) -> None:
        """Closes the files."""
        self._file.close()
        if self._events is not None:
            self._events.close()


def read_metrics(run: str | os.PathLike) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, up to the first incomplete one; none if there is no file."""
    path = _metrics_path(run)
    rows = []
    for line in path.read_text(encoding='utf-8').splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def _metrics_path(run):
    return Path(run) / 'metrics.jsonl'


def _open_tensorboard(run, resume_step):
    try:
        import tensorboardX
    except ImportError:
        raise UserError("train.tensorboard needs tensorboardX: pip install 'jaxcolor[tensorboard]'.") from None
    return tensorboardX.SummaryWriter(os.fspath(Path(run) / 'tensorboard'), purge_step=resume_step + 1)
