"""The curves of a training."""

import os
from pathlib import Path

from jaxcolor import files
from jaxcolor.runtime.logs import read_metrics

# The panels: a title, and which metrics go there.
_PANELS = {
    'loss': lambda name: name.rsplit('/')[-1] == 'loss' or name.endswith('_loss'),
    'PSNR (dB)': lambda name: 'psnr' in name,
    'chroma, relative to the photo': lambda name: name.endswith('/chroma_kept'),
    'learning rate': lambda name: name.startswith('learning_rate'),
}


def draw_curves(run: str | os.PathLike) -> None:
    """Draws curves.png of a run from its metrics.jsonl: loss of training and evaluation, PSNR, chroma, learning rate."""
    from matplotlib.figure import Figure

    rows = read_metrics(run)
    names = list(dict.fromkeys(name for row in rows for name in row))
    figure = Figure(figsize=(5 * len(_PANELS), 4), layout='constrained')
    for axes, (title, belongs) in zip(figure.subplots(1, len(_PANELS)), _PANELS.items(), strict=True):
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
