"""Times calls against each other, in turns, so that a slowdown of the machine affects all."""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np


class Ratio(NamedTuple):
    """The time of our call over theirs.

    median, least, largest: ratios of the rounds. ours_s, theirs_s: median seconds.
    """

    median: float
    least: float
    largest: float
    ours_s: float
    theirs_s: float


def paired(ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int) -> Ratio:
    """Times two calls alternately, A B A B.

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
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
    a, b = np.reshape(times, (rounds, 2)).T
    ratios = a / b
    return Ratio(*map(float, (np.median(ratios), ratios.min(), ratios.max(), np.median(a), np.median(b))))


def take_turns(measure: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Calls each of {name: function that measures a rate} once per round -> {name: rates}; each goes first in turn."""
    rates: dict[str, list[float]] = {name: [] for name in measure}
    names = list(measure)
    for number in range(rounds):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            rates[name].append(measure[name]())
    return rates
