"""The curves of a training: by step and epoch, of new runs and of old ones."""

import json

import pytest
from matplotlib.figure import Figure

from jaxcolor.evaluation import curves
from jaxcolor.runtime import logs


@pytest.fixture
def drawn(monkeypatch):
    """Draws the curves of a run -> the figure."""
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, 'savefig', lambda self, *args, **kwargs: (figures.append(self), save(self, *args, **kwargs)))

    def draw(run):
        curves.draw_curves(run)
        assert (run / 'curves.png').stat().st_size > 1000
        return {axes.get_title(): axes for axes in figures[-1].axes}

    return draw


def epochs_of(axes):
    return [child for child in axes.child_axes if child.get_xlabel() == 'epoch']


def test_loss_and_accuracies_by_step_and_epoch(tmp_path, drawn):
    log = logs.MetricsLog(tmp_path, steps_per_epoch=2.5)
    for step in range(1, 11):
        log.write(step, {'loss': 1 / step, 'larger_channel_agreement': 0.5 + step / 100, 'top1': step / 10})
        if step % 5 == 0:
            figures = {'loss': 1.0, 'larger_channel_agreement': 0.6, 'top1': 0.3, 'psnr': 20.0}
            log.write(step, {f'validation/{name}': value for name, value in figures.items()})
    log.close()
    assert [row['epoch'] for row in logs.read_metrics(tmp_path) if 'validation/loss' in row] == [2.0, 4.0]
    panels = drawn(tmp_path)
    assert len(panels) == 4  # no learning rate, no chroma
    for title, metric in [('loss', 'loss'), ('agreement', 'larger_channel_agreement'), ('top-1', 'top1')]:
        axes = next(axes for name, axes in panels.items() if title in name)
        lines = {line.get_label().split(':')[0]: line.get_xydata() for line in axes.lines}
        assert set(lines) == {'training', 'validation'} and len(lines['training']) == 10
        assert lines['validation'][:, 0].tolist() == [5, 10], metric
        (above,) = epochs_of(axes)
        assert above.get_xlim() == pytest.approx([step / 2.5 for step in axes.get_xlim()])


def test_runs_of_earlier_versions_have_no_epochs(tmp_path, drawn):
    rows = [{'step': 1, 'loss': 2.0}, {'step': 2, 'loss': 1.0, 'learning_rate': 0.1}, {'step': 2, 'validation/loss': 1.5}]
    (tmp_path / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    panels = drawn(tmp_path)
    assert set(panels) == {'loss', 'learning rate'}
    assert not any(map(epochs_of, panels.values()))


def test_a_run_without_a_line_is_drawn(tmp_path, drawn):
    drawn(tmp_path)
