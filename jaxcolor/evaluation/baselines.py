"""Colors without a network: what a network has to beat before it is worth anything.

A baseline maps an evaluation's batch, as `pipeline.eval_batches` gives it, to a*b* float32 (B, H, W, 2).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxcolor import color
from jaxcolor.data import augment

Batch = Mapping[str, Any]

# Photos of the training split that the baselines use, from its first on: more change little.
_MOST = 10_000
# Pixels of the side of the gray thumbnails that photos are compared by.
_THUMBNAIL = 16


def gray(batch: Batch) -> np.ndarray:
    """No color at all."""
    return np.zeros((*batch['lab'].shape[:3], 2), np.float32)


class TrainingPhotos:
    """Baselines made of the training photos: their mean color, and the colors of the most similar one.

    Args:
        records: of the training split.
        crop: pixels of the side of the center square that is taken of a photo.
    """

    def __init__(self, records: Sequence[Mapping[str, Any]], crop: int):
        self._records, self._crop = records, crop
        thumbnails, means = [], []
        for i in range(min(len(records), _MOST)):
            lab = color.decode_lab(augment.center_crop(records[i]['lab'], crop))
            thumbnails.append(_thumbnail(lab))
            means.append(lab[..., 1:].mean(axis=(0, 1)))
        self._thumbnails = np.stack(thumbnails)
        self._mean = np.mean(means, axis=0)

    def mean_color(self, batch: Batch) -> np.ndarray:
        """The same a*b* everywhere: the mean of the training photos."""
        return np.broadcast_to(self._mean, (*batch['lab'].shape[:3], 2)).astype(np.float32)

    def nearest(self, batch: Batch) -> np.ndarray:
        """The a*b* of the training photo whose gray thumbnail of 16x16 pixels has the least squared difference, place by
        place."""
        ab = []
        for lab in batch['lab']:
            distances = np.square(self._thumbnails - _thumbnail(color.decode_lab(lab))).sum(axis=1)
            found = augment.center_crop(self._records[int(distances.argmin())]['lab'], self._crop)
            ab.append(color.decode_lab(found)[..., 1:])
        return np.stack(ab)


def _thumbnail(lab):
    """Lab (H, W, 3) -> L* averaged over 16x16 boxes, float32 (256,); fewer boxes where there are fewer pixels."""
    boxes = [min(_THUMBNAIL, side) for side in lab.shape[:2]]
    rows, columns = (np.arange(n + 1) * side // n for n, side in zip(boxes, lab.shape, strict=False))
    sums = np.add.reduceat(np.add.reduceat(lab[..., 0], rows[:-1], axis=0), columns[:-1], axis=1)
    return (sums / np.outer(np.diff(rows), np.diff(columns))).reshape(-1).astype(np.float32)
