"""Times calls against each other, in turns, so that a slowdown of the machine affects all."""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

REST = 0.05  # seconds


class Ratio(NamedTuple):
    """The time of our call over theirs.

    median, least, largest: ratios of the rounds. ours_s, theirs_s: median seconds. cpu: median ratio of the CPU time of this
    process, which other processes that compute disturb less.
    """

    median: float
    least: float
    largest: float
    ours_s: float
    theirs_s: float
    cpu: float


def paired(ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int) -> Ratio:
    """Times two calls alternately, A B A B, with a rest of `REST` before each.

    PyTorch's threads wait for more work by spinning: for 6 to 9 ms after a call they take a core from the next one.

    Args:
        ours: returns when its work is done; called once before, untimed.
        theirs: the same.
        rounds: pairs of timed calls, at least 1.
    """
    for call in (ours, theirs):
        call()
    times = []
    for _ in range(rounds):
        for call in (ours, theirs):
            time.sleep(REST)
            start, start_cpu = time.perf_counter(), time.process_time()
            call()
            times.append((time.perf_counter() - start, time.process_time() - start_cpu))
    (a, a_cpu), (b, b_cpu) = np.reshape(times, (rounds, 2, 2)).transpose(1, 2, 0)
    ratios = a / b
    cpu = np.median(a_cpu / np.maximum(b_cpu, 1e-9))  # a clock may be coarse
    return Ratio(*map(float, (np.median(ratios), ratios.min(), ratios.max(), np.median(a), np.median(b), cpu)))


def take_turns(measure: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Calls each of {name: function that measures a rate} once per round -> {name: rates}; each goes first in turn."""
    rates: dict[str, list[float]] = {name: [] for name in measure}
    names = list(measure)
    for number in range(rounds):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            rates[name].append(measure[name]())
    return rates
