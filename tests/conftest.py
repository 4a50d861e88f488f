"""Every test runs on 8 host devices and under strict dtype promotion."""

import os

os.environ['XLA_FLAGS'] = os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['MPLBACKEND'] = 'agg'

import jax
from absl import flags

jax.config.update('jax_numpy_dtype_promotion', 'strict')
# Grain's worker processes read absl flags.
flags.FLAGS.mark_as_parsed()
