"""The benchmark's structure, and its operations against a count by hand."""

import pytest
from conftest import assert_one_sentence

from jaxcolor import benchmark


def test_a_row_and_its_table():
    row = benchmark.measure('ltbc:quickstart', False, batch_size=1, rounds=2)
    assert row['parameters'] == 1_558_826
    assert 0 < row['step_s'] < row['compile_s']
    # By hand: the multiply-adds of the convolutions at 128 pixels and a quarter of the width, times two.
    layers = [(64, 1, 16), (64, 16, 32), (32, 32, 32), (32, 32, 64), (16, 64, 64), (16, 64, 128)]  # low
    layers += [(16, 128, 128), (16, 128, 64), (8, 128, 128), (8, 128, 128), (4, 128, 128), (4, 128, 128)]  # mid, global
    layers += [(16, 64, 32), (32, 32, 16), (32, 16, 16), (64, 16, 8), (64, 8, 2)]  # colorization
    by_hand = sum(2 * 9 * side**2 * inputs * outputs for side, inputs, outputs in layers) / 1e9
    assert row['gflop'] == pytest.approx(by_hand, rel=0.15)
    assert len(benchmark.markdown([row]).splitlines()) == 3


def test_an_unknown_recipe_is_one_sentence(command):
    code, _, err = command('benchmark', '--configs=nothing')
    assert_one_sentence(code, err, 'nothing')
