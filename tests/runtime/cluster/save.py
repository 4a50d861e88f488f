"""Saves checkpoints of 100 MB and prints a JSON line about each, until it is killed.  save.py FOLDER"""

import hashlib
import json
import sys
import time

import jax
import numpy as np

from jaxcolor.runtime.checkpoint import Checkpoints, abstract


def report(**values):
    print(json.dumps(values), flush=True)


def state_of(step):
    return {f'array{i}': np.random.default_rng([step, i]).random(1_250_000) for i in range(10)}


def digest(state):
    return hashlib.sha256(b''.join(np.asarray(state[name]).tobytes() for name in sorted(state))).hexdigest()


jax.config.update('jax_enable_x64', True)
with Checkpoints(sys.argv[1]) as checkpoints:
    shapes = abstract(state_of(0), jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    restored = checkpoints.restore_newest(shapes, lambda text: report(warning=text))
    first = 0
    if restored:
        first, state, position = restored
        assert position == {'global_next_index': first}
        report(restored=first, digest=digest(state))
    duration = {}
    for step in range(first + 1, first + 100):
        state = jax.tree.map(jax.numpy.asarray, state_of(step))
        report(saving=step, digest=digest(state), **duration)
        start = time.monotonic()
        checkpoints.save(step, state, {'global_next_index': step}, {})
        checkpoints.wait()
        duration = {'last_took': time.monotonic() - start}
