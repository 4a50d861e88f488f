"""The curves of a training."""

import os
from pathlib import Path

from jaxcolor import files
from jaxcolor.evaluation.metrics import METRICS
from jaxcolor.runtime.logs import read_metrics


def _named(metric):
    return lambda name: name.rpartition('/')[2] == metric


# The panels: a title, and which metrics go there. Names without a split are of the training's own steps.
_PANELS = {
    'loss': lambda name: name.rpartition('/')[2] == 'loss' or name.endswith('_loss'),
    f"{METRICS['larger_channel_agreement'].title} (Keras's accuracy)": _named('larger_channel_agreement'),
    f'class, {METRICS["top1"].title}': _named('top1'),
    "the discriminator's accuracy": lambda name: name.rpartition('/')[2].startswith('accuracy_on_'),
    METRICS['psnr'].title: lambda name: 'psnr' in name,
    'chroma, relative to the photo': _named('chroma_kept'),
    'learning rate': lambda name: name.startswith('learning_rate'),
}


def draw_curves(run: str | os.PathLike) -> None:
    """Draws curves.png of a run from its metrics.jsonl, by step (below) and epoch (above): loss and accuracies of training
    and evaluation, PSNR, chroma, learning rate. Panels without a figure are left out."""
    from matplotlib.figure import Figure

    rows = read_metrics(run)
    names = list(dict.fromkeys(name for row in rows for name in row))
    panels = {title: chosen for title, belongs in _PANELS.items() if (chosen := list(filter(belongs, names)))}
    # Runs of earlier versions have no epochs.
    per_epoch = next((row['step'] / row['epoch'] for row in rows if row.get('epoch')), None)
    height = 1 if len(panels) <= 4 else 2
    columns = max(1, -(-len(panels) // height))
    figure = Figure(figsize=(5 * columns, 4 * height), layout='constrained')
    for axes, (title, chosen) in zip(figure.subplots(height, columns, squeeze=False).flat, panels.items(), strict=False):
        for name in chosen:
            points = [(row['step'], row[name]) for row in rows if name in row]
            split, _, metric = name.rpartition('/')
            label = f'{split or "training"}: {METRICS[metric].title if metric in METRICS else metric.replace("_", " ")}'
            axes.plot(*zip(*points, strict=True), label=label, marker='o' if split else None, markersize=3)
        axes.set(xlabel='step', title=title, xlim=(0, 1.02 * rows[-1]['step']))
        if title == 'loss':
            axes.set_yscale('log')
        axes.legend(fontsize='small')
        if per_epoch:
            above = axes.secondary_xaxis('top', functions=(lambda step: step / per_epoch, lambda epoch: epoch * per_epoch))
            above.set_xlabel('epoch')
    for axes in figure.axes[len(panels) :]:
        axes.remove()
    with files.atomic(Path(run) / 'curves.png') as temporary:
        figure.savefig(temporary, dpi=100, format='png')
