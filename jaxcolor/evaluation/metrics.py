"""Metrics of colorized photos against the true ones.

A metric is a function of a batch that returns float32 (B,), one value per photo, and a line of METRICS. a*b* arrays are
(B, H, W, 2), RGB arrays (B, H, W, 3), float in [0, 1].
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcolor import color
from jaxcolor.tasks.losses import larger_channel_agreement

LIGHTNESS_BANDS = 10
MAX_AB_ERROR = 150.0  # the AuC's largest threshold

# -- Per photo --------------------------------------------------------------------------------------------------------


def ab_squared_error(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """Mean squared a*b* error over pixels and both channels -> (B,). The ab RMSE is the root of its mean over photos."""
    return jnp.mean(jnp.square(prediction - target), axis=(1, 2, 3))


def psnr(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """Peak signal-to-noise ratio of RGB in 8 bits, dB -> (B,): 10 log10(255^2 / MSE over pixels and channels)."""
    error = jnp.round(prediction * 255.0) - jnp.round(target * 255.0)
    # The floor caps equal photos at 98 dB (otherwise infinite), where one channel in 10 pixels is off by one step.
    mean_square = jnp.maximum(jnp.mean(jnp.square(error), axis=(1, 2, 3)), 1e-5)
    return 20 * jnp.log10(255.0) - 10 * jnp.log10(mean_square)


def ssim(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """Structural similarity of RGB, mean over channels and windows -> (B,), at most 1.

    Wang, Bovik, Sheikh, Simoncelli 2004, eq. 13: Gaussian windows of 11 pixels and sigma 1.5 wholly inside the photo,
    K1 = 0.01, K2 = 0.03. Photos need at least 11 pixels a side.
    """
    taps = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    taps = (taps / taps.sum()).astype(np.float32)
    # All windows' weights along an axis, (length - 10, length): matrix products are faster than sums of slices.
    rows, columns = (sum(tap * np.eye(n - 10, n, i, np.float32) for i, tap in enumerate(taps)) for n in target.shape[1:3])

    def windowed_mean(x):
        return jnp.einsum('ih,jw,bhwc->bijc', rows, columns, x, precision='highest')

    c1, c2 = 0.01**2, 0.03**2
    # Centered on the mean, the squares below lose least to rounding.
    mean = jnp.mean(target, axis=(1, 2), keepdims=True)
    a, b = prediction - mean, target - mean
    mean_a, mean_b = windowed_mean(a), windowed_mean(b)
    var_a, var_b = windowed_mean(a * a) - mean_a**2, windowed_mean(b * b) - mean_b**2
    covariance = windowed_mean(a * b) - mean_a * mean_b
    mean_a, mean_b = mean_a + mean, mean_b + mean
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return jnp.mean(luminance * (2 * covariance + c2) / (var_a + var_b + c2), axis=(1, 2, 3))


def ab_auc(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """Area under the cumulative curve of a*b* errors, thresholds 0 to 150 -> (B,) in [0, 1].

    Zhang, Isola, Efros 2016, section 3.1. They sample the curve at whole thresholds; this is its integral,
    1 - mean(min(error, 150)) / 150.
    """
    return 1 - jnp.mean(_capped_error(prediction, target), axis=(1, 2)) / MAX_AB_ERROR


def colorfulness(rgb: jax.Array) -> jax.Array:
    """Hasler and Suesstrunk 2003, eq. 7 -> (B,): sigma_rgyb + 0.3 mu_rgyb of the opponent channels in 8-bit units."""
    rg, yb = _opponents(rgb)
    return _spread_and_mean(rg, yb)


def colorfulness_absolute(rgb: jax.Array) -> jax.Array:
    """Colorfulness of the *absolute* opponent channels -> (B,), as in DDColor's published evaluation code.

    This is not Hasler and Suesstrunk's definition and cannot be compared with `colorfulness`; the tables of DDColor and
    later papers use it.
    """
    rg, yb = _opponents(rgb)
    return _spread_and_mean(jnp.abs(rg), jnp.abs(yb))


def chroma(ab: jax.Array) -> jax.Array:
    """Mean chroma sqrt(a*^2 + b*^2) over pixels -> (B,)."""
    return jnp.mean(_chroma(ab), axis=(1, 2))


def _capped_error(prediction, target):
    """min(a*b* error, 150) of each pixel, (B, H, W)."""
    return jnp.minimum(jnp.sqrt(jnp.sum(jnp.square(prediction - target), axis=-1)), MAX_AB_ERROR)


def _chroma(ab):
    return jnp.sqrt(jnp.sum(jnp.square(ab), axis=-1))


def _opponents(rgb):
    """Red-green and yellow-blue in 8-bit units, (B, H, W) each."""
    r, g, b = (255.0 * rgb[..., i] for i in range(3))
    return r - g, 0.5 * (r + g) - b


def _spread_and_mean(rg, yb):
    sigma = jnp.sqrt(jnp.var(rg, axis=(1, 2)) + jnp.var(yb, axis=(1, 2)))
    mu = jnp.sqrt(jnp.square(jnp.mean(rg, axis=(1, 2))) + jnp.square(jnp.mean(yb, axis=(1, 2))))
    return sigma + 0.3 * mu


# -- The table of all metrics -----------------------------------------------------------------------------------------


class PhotoPair(NamedTuple):
    """A batch of predicted photos beside the true ones. `rgb_gray` are the true ones without color."""

    ab: jax.Array
    ab_true: jax.Array
    rgb: jax.Array
    rgb_true: jax.Array
    rgb_gray: jax.Array


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric of METRICS.

    Attributes:
        title: in tables, with the unit.
        function: PhotoPair -> float32 (B,); None where the task, `evaluation.perceptual` or `evaluator.aggregate` computes
            it.
        has_interval: whether reports give the confidence interval of its mean over photos.
        better: 1 (higher is better) or -1 (lower is better) for the metrics whose gain over baselines is reported.
        needs_label: whether it is NaN for photos without a class.
    """

    title: str
    function: Callable[[PhotoPair], jax.Array] | None = None
    has_interval: bool = False
    better: int = 0
    needs_label: bool = False


# {name: Metric}, in the order of the tables' rows. A new metric is a function above and a line here.
METRICS = {
    'photos': Metric('photos'),
    'loss': Metric('loss'),
    'color_loss': Metric('color loss'),
    'class_loss': Metric('class loss'),
    'ab_squared_error': Metric('squared ab error', lambda pair: ab_squared_error(pair.ab, pair.ab_true), True, better=-1),
    'ab_rmse': Metric('ab RMSE'),
    'ab_rmse_photo': Metric(
        'ab RMSE, mean over photos', lambda pair: jnp.sqrt(ab_squared_error(pair.ab, pair.ab_true)), True
    ),
    'psnr': Metric('PSNR (dB)', lambda pair: psnr(pair.rgb, pair.rgb_true), True, better=1),
    'psnr_gray': Metric('PSNR of gray (dB)', lambda pair: psnr(pair.rgb_gray, pair.rgb_true)),
    'ssim': Metric('SSIM', lambda pair: ssim(pair.rgb, pair.rgb_true), True),
    'lpips': Metric('LPIPS', has_interval=True, better=-1),
    'fid': Metric('FID'),
    'ab_auc': Metric('AuC of ab errors', lambda pair: ab_auc(pair.ab, pair.ab_true), True),
    'ab_auc_balanced': Metric('AuC, color-balanced'),
    'larger_channel_agreement': Metric(
        'larger-channel agreement', lambda pair: larger_channel_agreement(pair.ab, pair.ab_true)
    ),
    'colorfulness': Metric('colorfulness', lambda pair: colorfulness(pair.rgb), True),
    'colorfulness_true': Metric('colorfulness of truth', lambda pair: colorfulness(pair.rgb_true)),
    'colorfulness_absolute': Metric('DDColor colorfulness', lambda pair: colorfulness_absolute(pair.rgb), True),
    'colorfulness_absolute_true': Metric('DDColor colorfulness of truth', lambda pair: colorfulness_absolute(pair.rgb_true)),
    'colorfulness_absolute_delta': Metric('DDColor colorfulness, difference'),
    'chroma': Metric('chroma', lambda pair: chroma(pair.ab)),
    'chroma_true': Metric('chroma of truth', lambda pair: chroma(pair.ab_true)),
    'chroma_kept': Metric('chroma / chroma of truth'),
    'top1': Metric('top-1 accuracy', has_interval=True, needs_label=True),
    'top5': Metric('top-5 accuracy', has_interval=True, needs_label=True),
}


def per_photo(pair: PhotoPair) -> dict[str, jax.Array]:
    """The metrics that have a function, {name: float32 (B,)}."""
    return {name: metric.function(pair) for name, metric in METRICS.items() if metric.function}


# -- Over pixels and over photos --------------------------------------------------------------------------------------


def error_by_color(prediction: jax.Array, target: jax.Array, mask: jax.Array) -> jax.Array:
    """Sums for `balanced_ab_auc`, over the pixels of photos whose mask is True.

    Args:
        prediction: a*b* (B, H, W, 2).
        target: a*b* (B, H, W, 2).
        mask: bool (B,).

    Returns:
        float32 (529, 2) by color bin of the target: summed 1 - min(error, 150) / 150, and the number of pixels.
    """
    error = _capped_error(prediction, target)
    weight = jnp.broadcast_to(mask[:, None, None], error.shape).astype(jnp.float32)
    values = jnp.stack([weight * (1 - error / MAX_AB_ERROR), weight], axis=-1)
    return jax.ops.segment_sum(values.reshape(-1, 2), color.ab_bin(target).reshape(-1), color.AB_BINS)


def balanced_ab_auc(sums: np.ndarray) -> float:
    """`ab_auc` with equal weight for every color bin, in [0, 1], from summed `error_by_color` (529, 2).

    Zhang, Isola, Efros 2016, section 3.1 ("AuC, rebal"): pixels are weighted by the inverse frequency of their true
    color's bin (eq. 4 with lambda = 0). The paper takes smoothed frequencies of ImageNet's training photos; here they are
    those of the evaluated photos, so that no other data are needed.
    """
    total, counts = np.asarray(sums, np.float64).T
    return float(np.mean(total[counts > 0] / counts[counts > 0]))


def chroma_by_lightness(prediction: jax.Array, target: jax.Array, lightness: jax.Array, mask: jax.Array) -> jax.Array:
    """Sums over the pixels of photos whose mask is True, by bands of ten L*.

    Args:
        prediction: a*b* (B, H, W, 2).
        target: a*b* (B, H, W, 2).
        lightness: L* (B, H, W, 1) in [0, 100].
        mask: bool (B,).

    Returns:
        float32 (10, 3): predicted chroma, true chroma, number of pixels.
    """
    weight = jnp.broadcast_to(mask[:, None, None], target.shape[:3]).astype(jnp.float32)
    values = jnp.stack([weight * _chroma(prediction), weight * _chroma(target), weight], axis=-1)
    band = jnp.clip((lightness[..., 0] * (LIGHTNESS_BANDS / 100)).astype(jnp.int32), 0, LIGHTNESS_BANDS - 1)
    return jax.ops.segment_sum(values.reshape(-1, 3), band.reshape(-1), LIGHTNESS_BANDS)


def drop_unlabeled(name: str, values: np.ndarray) -> np.ndarray:
    """The metric's values (N,) without those of unlabeled photos (NaN), if it needs labels. Other NaNs stay."""
    return values[~np.isnan(values)] if name in METRICS and METRICS[name].needs_label else values


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Fréchet distance of two sets of features, (N, D) and (M, D), each fitted by a normal distribution; 0 if equal.

    Heusel et al. 2017, eq. 6: |mean difference|^2 + tr(A + B - 2 (A B)^(1/2)). It falls with the number of photos, so
    compare only distances over equally many.
    """
    mean_a, mean_b = (np.mean(x, axis=0, dtype=np.float64) for x in (a, b))
    cov_a, cov_b = (np.atleast_2d(np.cov(np.asarray(x, np.float64), rowvar=False)) for x in (a, b))
    # tr (A B)^(1/2) from the eigenvalues of A^(1/2) B A^(1/2), which has A B's eigenvalues and is symmetric.
    values, vectors = np.linalg.eigh(cov_a)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ cov_b @ root), 0)).sum()
    return float(np.square(mean_a - mean_b).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)


def confidence_interval(values: np.ndarray, resamples: int = 2000) -> tuple[float, float]:
    """The 95 % confidence interval of the mean of values (N,), by the percentile bootstrap over photos (Efron 1979)."""
    values = np.asarray(values, np.float64)
    rng = np.random.default_rng(0)
    means = [values[rng.integers(0, len(values), len(values))].mean() for _ in range(resamples)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
