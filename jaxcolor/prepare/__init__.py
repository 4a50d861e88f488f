"""Preparing: photos in folders, archives and published datasets -> a shard set of uint8 Lab records to train on.

This package also decodes photos for inference and evaluation (`decode.py`). It imports errors, files, color, data, runtime
and models; `command.py` alone also imports weights.
"""

from jaxcolor.callables import make_callable
from jaxcolor.prepare.command import prepare_photos
from jaxcolor.prepare.shard_set import prepare

__all__ = ['prepare']

make_callable(__name__, prepare_photos)
