"""One of several processes takes one step of every recipe.  first_gradients.py HOST:PORT COUNT INDEX FOLDER

Process 0 writes FOLDER/NAME-MAPPING.npz, of `helpers.first_gradients`.
"""

import sys
from pathlib import Path

import jax
import numpy as np
from helpers import GLANCE, SMALL, first_gradients

from jaxcolor.models import extractors
from jaxcolor.runtime import cluster
from jaxcolor.runtime.parallel import DataParallel

coordinator, count, index, folder = sys.argv[1:]
cluster.join(cluster.detect_process(coordinator, int(count), int(index)), heartbeat=100)
jax.config.update('jax_numpy_dtype_promotion', 'strict')
extractors.NETWORKS['glance'] = GLANCE
for name in SMALL:
    for mapping in ('shard_map', 'pmap'):
        results = first_gradients(name, DataParallel(mapping), Path(folder) / name)
        if jax.process_index() == 0:
            np.savez(Path(folder) / f'{name}-{mapping}.npz', **results)
