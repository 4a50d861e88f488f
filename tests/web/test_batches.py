"""The queue before the network."""

import concurrent.futures
import threading

import numpy as np
import pytest

from jaxcolor.web.batches import MAX_BATCH, Batches


def test_photos_that_wait_together_are_one_batch():
    """The first occupies the network, so that the others wait; they are taken by shape, MAX_BATCH at most."""
    batches, entered, free, sizes = Batches(), threading.Event(), threading.Event(), []

    def predict(photos):
        sizes.append((len(photos), photos[0].shape[1]))
        entered.set()
        free.wait(10)
        return [photo + 1 for photo in photos]

    wide, high = np.zeros((1, 32, 64, 1), np.float32), np.zeros((1, 64, 32, 1), np.float32)
    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        first = pool.submit(batches.predict, predict, wide)
        assert entered.wait(10)
        others = [pool.submit(batches.predict, predict, each) for each in [wide] * (MAX_BATCH + 2) + [high] * 3]
        while len(batches._queue) < len(others):
            threading.Event().wait(0.001)
        free.set()
        for future in [first, *others]:
            assert (future.result(10) == 1).all()
    batches.close()
    assert sizes == [(1, 32), (MAX_BATCH, 32), (2, 32), (3, 64)]
    assert batches.mean_batch == (MAX_BATCH + 6) / 4


def test_a_fault_of_the_network_reaches_who_waits_and_no_one_else():
    batches = Batches()

    def broken(photos):
        raise MemoryError

    with pytest.raises(MemoryError):
        batches.predict(broken, np.zeros((1, 32, 32, 1), np.float32))
    assert batches.predict(list, np.zeros((1, 32, 32, 1), np.float32)).shape == (1, 32, 32, 1)
    batches.close()
