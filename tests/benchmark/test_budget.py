"""`jaxcolor benchmark --budget`: rows as they come, parts that fail or never end, the time limit, tables."""

import contextlib
import os
import time

import pytest
from conftest import assert_one_sentence

from jaxcolor.benchmark import budget


class Clock:
    """Seconds that pass when told so."""

    now = 100.0

    def __call__(self):
        return self.now


# Parts of a `Worker`: functions that another process finds by name.


def measures(bench):
    bench.row(step_ms=bench.batch / 2)
    bench.row('kernels', kernel='sum', time_share=0.25)


def fails(bench):
    bench.row(step_ms=3.0)
    raise ValueError('out of memory')


def breaks(bench):
    os._exit(7)


def hangs(bench):
    bench.row(step_ms=4.0)
    time.sleep(3600)


def asks(bench):
    if bench.has(20, 'float32') and not bench.has(5000, 'bf16'):
        bench.row(step_ms=5.0)


PARTS = {'measures': measures, 'fails': fails, 'breaks': breaks, 'hangs': hangs, 'asks': asks}


def without_times(rows):
    return [{name: value for name, value in row.items() if name != 'at_s'} for row in rows]


def test_rows_are_written_as_they_come_until_the_time_is_over(tmp_path, capsys):
    clock = Clock()
    run = budget.Budget(60, tmp_path, clock)

    def perform(part, seconds):
        assert seconds == run.left() == {'first': 60, 'second': 40}[part]
        if part == 'second':
            assert 'step (ms)' in (tmp_path / budget.TABLES).read_text()  # the table of the part before
        clock.now += 20
        yield {'part': part, 'step_ms': 1.5}
        assert without_times(budget.read_rows(tmp_path))[-1] == {'part': part, 'step_ms': 1.5}
        if part == 'second':
            clock.now += 11
            raise ValueError('no such kernel')

    run.run(['first', 'second', 'third'], perform)
    rows = budget.read_rows(tmp_path)
    assert without_times(rows) == [
        {'part': 'first', 'step_ms': 1.5},
        {'part': 'second', 'step_ms': 1.5},
        {'part': 'second', 'failed': 'ValueError: no such kernel'},
        {'part': 'third', 'skipped': '9 s are left'},
    ]
    assert [row['at_s'] for row in rows] == [20, 40, 51, 51]
    assert (tmp_path / budget.TABLES).read_text() == budget.markdown(rows)
    assert '40.0 s second: step (ms) 1.5' in capsys.readouterr().out
    budget.Budget(5, tmp_path, clock).run(['fourth'], perform)
    assert without_times(budget.read_rows(tmp_path))[4:] == [{'part': 'fourth', 'skipped': '5 s are left'}]


def test_parts_that_fail_break_or_never_end_are_passed_over(tmp_path):
    limits = {'hangs': 1.0}
    run = budget.Budget(3600, tmp_path)
    with contextlib.closing(budget.Worker(PARTS, budget.Bench(tmp_path, batch=4))) as worker:
        parts = ['measures', 'fails', 'breaks', 'asks', 'hangs']
        run.run(parts, lambda part, left: worker.perform(part, limits.get(part, 60.0)))
    rows = without_times(budget.read_rows(tmp_path))
    skipped = rows[5].pop('skipped')
    assert rows == [
        {'part': 'measures', 'step_ms': 2.0},
        {'part': 'kernels', 'kernel': 'sum', 'time_share': 0.25},
        {'part': 'fails', 'step_ms': 3.0},
        {'part': 'fails', 'failed': 'ValueError: out of memory'},
        {'part': 'breaks', 'failed': 'RuntimeError: its process ended with exit code 7'},
        {'part': 'asks'},
        {'part': 'asks', 'step_ms': 5.0},
        {'part': 'hangs', 'step_ms': 4.0},
        {'part': 'hangs', 'failed': 'RuntimeError: the time is over'},
    ]
    assert skipped.startswith('bf16 may take 5000 s')
    assert 'out of memory' in (tmp_path / budget.ERRORS).read_text()


def test_tables_have_a_column_for_each_value():
    rows = [
        {'part': 'train', 'at_s': 1.0, 'recipe': 'ltbc', 'step_ms': 19.273, 'images_per_s': 6641.4},
        {'part': 'kernels', 'at_s': 1.0, 'kernel': 'a|b', 'time_share': 0.031},
        {'part': 'train', 'at_s': 2.0, 'failed': 'ValueError: out\nof memory'},
        {'part': 'train', 'at_s': 3.0, 'recipe': 'cgan', 'step_ms': 40.0, 'memory_gb': None},
    ]
    assert budget.markdown(rows).splitlines() == [
        '### train',
        '',
        '| recipe | step (ms) | images/s | memory (GB) |',
        '|:--|--:|--:|:--|',
        '| ltbc | 19.27 | 6,641 |  |',
        '| cgan | 40 |  |  |',
        '',
        '- failed: ValueError: out of memory',
        '',
        '### kernels',
        '',
        '| kernel | time share |',
        '|:--|--:|',
        '| a\\|b | 3.1 % |',
    ]


@pytest.mark.parametrize(
    ('flags', 'parts'),
    [
        (['--budget=0'], ['--budget', 'above 0']),
        (['--budget=60', '--parts=fly'], ['--parts', 'fly', 'about', 'recipes']),
        (['--budget=60', '--out=/proc/none'], ['--out', '/proc/none']),
    ],
)
def test_bad_flags_give_one_sentence(cli, flags, parts):
    code, _, err = cli('benchmark', *flags)
    assert_one_sentence(code, err, *parts)


@pytest.mark.slow
def test_command_measures_a_small_network(cli, tmp_path):
    case = ['--config=ltbc:quickstart', '--size=32', '--batch=2']
    code, out, _ = cli('benchmark', '--budget=300', '--parts=about,ceilings,train,profile,infer', *case, f'--out={tmp_path}')
    assert code == 0
    rows = budget.read_rows(tmp_path)
    assert not [row for row in rows if row.keys() & {'failed', 'skipped'}]
    trained = [row for row in rows if row['part'] == 'train']
    assert [row['precision'] for row in trained] == ['f32', 'bf16']
    assert all(row['images_per_s'] == pytest.approx(2e3 / row['step_ms']) for row in trained)
    assert {'about', 'ceilings', 'profile', 'kernels', 'infer'} <= {row['part'] for row in rows}
    assert (tmp_path / budget.TABLES).read_text() in out
