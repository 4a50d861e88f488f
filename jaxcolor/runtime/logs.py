"""What a run tells: progress, metrics as JSON lines and TensorBoard events, curves."""

import json
import os
import sys
import time
from pathlib import Path

import tqdm

from jaxcolor import files
from jaxcolor.errors import UserError


class Progress:
    """Progress with rate and time left: a bar on a terminal, a plain line now and then in a log file.

    Args:
        total: units of the whole work.
        unit: its name, in the plural ('steps', 'photos').
        start: units done already.
        items_per_unit, item: what the rate is told in, where that is not `unit`: images a step, say.
        seconds: time between plain lines.
    """

    def __init__(self, total, unit, *, start=0, items_per_unit=1, item=None, seconds=10.0, quiet=False, file=None):
        self.total, self.unit, self.done, self.start = total, unit, start, start
        self.items_per_unit, self.item, self.seconds = items_per_unit, item or unit, seconds
        self.file = file or sys.stderr
        self.quiet = quiet
        self.began = self.told = time.monotonic()
        self.note = ''
        self.bar = None
        if self.file.isatty() and not quiet:
            self.bar = tqdm.tqdm(total=total, initial=start, unit=f' {unit}', file=self.file, dynamic_ncols=True)

    def restart_clock(self):
        """Forgets the time so far, so that the rate leaves out compilation."""
        self.began = self.told = time.monotonic()
        self.start = self.done

    def update(self, units=1, note=None):
        """Counts units as done; `note` is shown behind the rate from now on."""
        self.done += units
        self.note = self.note if note is None else note
        if self.bar is not None:
            self.bar.set_postfix_str(f'{self.rate:.4g} {self.item}/s {self.note}', refresh=False)
            self.bar.update(units)
        elif not self.quiet and time.monotonic() - self.told > self.seconds:
            self.told = time.monotonic()
            self.say(self.line())

    @property
    def rate(self):
        """Items a second since the clock was started."""
        return (self.done - self.start) * self.items_per_unit / max(1e-9, time.monotonic() - self.began)

    def line(self):
        """Where the work stands, in one line."""
        left = (self.total - self.done) * self.items_per_unit / self.rate if self.rate else float('inf')
        left = '?' if left == float('inf') else tqdm.tqdm.format_interval(left)
        share = 100 * self.done // max(1, self.total)
        return f'{self.done}/{self.total} {self.unit} ({share}%), {self.rate:.4g} {self.item}/s, {left} left {self.note}'

    def say(self, text):
        """Prints a line without tearing the bar."""
        if self.quiet:
            return
        if self.bar is not None:
            self.bar.write(text, file=self.file)
        else:
            print(text.rstrip(), file=self.file, flush=True)

    def close(self):
        """Ends the bar."""
        if self.bar is not None:
            self.bar.close()


class MetricsLog:
    """Appends `{"step": ..., name: value}` lines to a run's metrics.jsonl, and to TensorBoard where asked for.

    Args:
        run: the run directory.
        resume_step: lines after this step are dropped: a resumed run writes them again.
    """

    def __init__(self, run, resume_step=0, tensorboard=False):
        self.path = Path(run) / 'metrics.jsonl'
        kept = [row for row in read_metrics(run) if row['step'] <= resume_step]
        files.write_text(self.path, ''.join(json.dumps(row) + '\n' for row in kept))
        self.file = open(self.path, 'a', encoding='utf-8')  # noqa: SIM115
        self.events = _tensorboard(run, resume_step) if tensorboard else None

    def write(self, step, values):
        """Writes one line; it is in the file when this returns."""
        values = {name: float(value) for name, value in values.items()}
        self.file.write(json.dumps({'step': int(step), **values}) + '\n')
        self.file.flush()
        if self.events is not None:
            for name, value in values.items():
                self.events.add_scalar(name, value, int(step))

    def close(self):
        """Closes the files."""
        self.file.close()
        if self.events is not None:
            self.events.close()


def _tensorboard(run, resume_step):
    try:
        import tensorboardX
    except ImportError:
        raise UserError("train.tensorboard needs tensorboardX: pip install 'jaxcolor[tensorboard]'.") from None
    return tensorboardX.SummaryWriter(os.fspath(Path(run) / 'tensorboard'), purge_step=resume_step + 1)


def read_metrics(run) -> list[dict]:
    """The lines of a run's metrics.jsonl; a last line that was cut short is left out."""
    path = Path(run) / 'metrics.jsonl'
    rows = []
    for line in path.read_text(encoding='utf-8').splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def draw_curves(run):
    """Draws curves.png from metrics.jsonl: loss of training and evaluation, PSNR, chroma, learning rate."""
    from matplotlib.figure import Figure

    rows = read_metrics(run)
    panels = {
        'loss': lambda name: name.rsplit('/')[-1] == 'loss' or name.endswith('_loss'),
        'PSNR (dB)': lambda name: 'psnr' in name,
        "chroma, part of the truth's": lambda name: name.endswith('/chroma_kept'),
        'learning rate': lambda name: name.startswith('learning_rate'),
    }
    names = list(dict.fromkeys(name for row in rows for name in row))
    figure = Figure(figsize=(5 * len(panels), 4), layout='constrained')
    for axes, (title, belongs) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for name in filter(belongs, names):
            points = [(row['step'], row[name]) for row in rows if name in row]
            axes.plot(*zip(*points, strict=True), label=name, marker='o' if '/' in name else None, markersize=3)
        axes.set(xlabel='step', title=title)
        if title == 'loss' and axes.lines:
            axes.set_yscale('log')
        if axes.lines:
            axes.legend(fontsize='small')
    with files.atomic(Path(run) / 'curves.png') as temporary:
        figure.savefig(temporary, dpi=100, format='png')
