"""Baselines: colors without a network, which a network has to beat.

A baseline maps a batch of `pipeline.eval_batches` to a*b*, float32 (B, H, W, 2).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxcolor import color
from jaxcolor.data import augment
from jaxcolor.data.shards import Records

Batch = Mapping[str, Any]

# The baselines use the first so many training photos; more change little.
_MAX_PHOTOS = 10_000
# Pixels a side of the gray thumbnails that are compared.
_THUMBNAIL = 16


def gray(batch: Batch) -> np.ndarray:
    """No color: zeros, float32 (B, H, W, 2)."""
    return np.zeros((*batch['lab'].shape[:3], 2), np.float32)


class TrainingPhotos:
    """Baselines from the training photos: their mean color, and the colors of the nearest photo."""

    def __init__(self, records: Records, crop: int) -> None:
        """Reads the training photos.

        Args:
            records: of the training split, {'lab': uint8 (H, W, 3), ...} each.
            crop: pixels a side of the center crop.
        """
        self._records, self._crop = records, crop
        thumbnails, means = [], []
        for i in range(min(len(records), _MAX_PHOTOS)):
            lab = color.decode_lab(augment.center_crop(records[i]['lab'], crop))
            thumbnails.append(_thumbnail(lab))
            means.append(lab[..., 1:].mean(axis=(0, 1)))
        self._thumbnails = np.stack(thumbnails)  # (N, 256)
        self._mean = np.mean(means, axis=0)  # (2,)

    def mean_color(self, batch: Batch) -> np.ndarray:
        """The mean a*b* of the training photos at every pixel, float32 (B, H, W, 2)."""
        return np.broadcast_to(self._mean, (*batch['lab'].shape[:3], 2)).astype(np.float32)

    def nearest(self, batch: Batch) -> np.ndarray:
        """The a*b* of the training photo with the least squared L* difference of 16x16 thumbnails, float32 (B, H, W, 2)."""
        ab = []
        for lab in batch['lab']:
            distances = np.square(self._thumbnails - _thumbnail(color.decode_lab(lab))).sum(axis=1)
            nearest = augment.center_crop(self._records[int(distances.argmin())]['lab'], self._crop)
            ab.append(color.decode_lab(nearest)[..., 1:])
        return np.stack(ab)


def _thumbnail(lab: np.ndarray) -> np.ndarray:
    """Lab (H, W, 3) -> L* averaged over 16x16 boxes, float32 (256,); smaller photos give one box per pixel."""
    boxes = [min(_THUMBNAIL, side) for side in lab.shape[:2]]
    rows, columns = (np.arange(n + 1) * side // n for n, side in zip(boxes, lab.shape, strict=False))
    sums = np.add.reduceat(np.add.reduceat(lab[..., 0], rows[:-1], axis=0), columns[:-1], axis=1)
    return (sums / np.outer(np.diff(rows), np.diff(columns))).reshape(-1).astype(np.float32)
