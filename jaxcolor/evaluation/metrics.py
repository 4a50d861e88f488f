"""Measures of a colorized photo against the true one. Each returns one float32 per photo, (B,), unless it says otherwise.

a*b* arrays are (B, H, W, 2), RGB arrays (B, H, W, 3), float in [0, 1].
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxcolor import color

LIGHTNESS_BANDS = 10


def ab_squared_error(prediction, target):
    """Mean over pixels and both channels of the squared a*b* error. The root of its mean is the table's ab RMSE."""
    return jnp.mean(jnp.square(prediction - target), axis=(1, 2, 3))


def psnr(prediction, target):
    """Peak signal-to-noise ratio in dB of RGB in 8 bits: 10 log10(255^2 / mean squared error over pixels and channels)."""
    error = jnp.round(prediction * 255.0) - jnp.round(target * 255.0)
    # Equal photos would be at infinity: the floor caps them at 98 dB, where one channel in 10 pixels is off by one step.
    mean_square = jnp.maximum(jnp.mean(jnp.square(error), axis=(1, 2, 3)), 1e-5)
    return 20 * jnp.log10(255.0) - 10 * jnp.log10(mean_square)


def ssim(prediction, target):
    """Structural similarity of RGB, at most 1: the mean over channels and windows.

    Wang, Bovik, Sheikh, Simoncelli 2004, eq. 13: Gaussian windows of 11 pixels and sigma 1.5 that lie wholly in the photo,
    K1 = 0.01, K2 = 0.03. Photos have at least 11 pixels a side.
    """
    taps = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    taps = (taps / taps.sum()).astype(np.float32)
    # Every window's weights along an axis, (length - 10, length): matrix products are quicker than sums of slices.
    rows, columns = (sum(tap * np.eye(n - 10, n, i, np.float32) for i, tap in enumerate(taps)) for n in target.shape[1:3])

    def windowed_mean(x):
        return jnp.einsum('ih,jw,bhwc->bijc', rows, columns, x, precision='highest')

    c1, c2 = 0.01**2, 0.03**2
    # About their common mean, where the squares below lose least to rounding.
    mean = jnp.mean(target, axis=(1, 2), keepdims=True)
    a, b = prediction - mean, target - mean
    mean_a, mean_b = windowed_mean(a), windowed_mean(b)
    var_a, var_b = windowed_mean(a * a) - mean_a**2, windowed_mean(b * b) - mean_b**2
    covariance = windowed_mean(a * b) - mean_a * mean_b
    mean_a, mean_b = mean_a + mean, mean_b + mean
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return jnp.mean(luminance * (2 * covariance + c2) / (var_a + var_b + c2), axis=(1, 2, 3))


def ab_auc(prediction, target):
    """Area under the curve of the share of pixels whose a*b* is off by at most t, for t from 0 to 150; in [0, 1].

    Zhang, Isola, Efros 2016, section 3.1. There the curve is sampled at whole t; this is its integral:
    1 - mean(min(error, 150)) / 150.
    """
    error = jnp.sqrt(jnp.sum(jnp.square(prediction - target), axis=-1))
    return 1 - jnp.mean(jnp.minimum(error, 150.0), axis=(1, 2)) / 150


def error_by_color(prediction, target, mask):
    """Summed over the pixels of photos whose mask (B,) is True, by the color class of the truth: float32 (529, 2) of
    1 - min(error, 150) / 150, and of 1."""
    error = jnp.sqrt(jnp.sum(jnp.square(prediction - target), axis=-1))
    weight = jnp.broadcast_to(mask[:, None, None], error.shape).astype(jnp.float32)
    values = jnp.stack([weight * (1 - jnp.minimum(error, 150.0) / 150), weight], axis=-1)
    return jax.ops.segment_sum(values.reshape(-1, 2), color.ab_bin(target).reshape(-1), color.AB_BINS)


def balanced_ab_auc(by_color) -> float:
    """`ab_auc` with every color class counting alike, in [0, 1], of summed `error_by_color`.

    Zhang, Isola, Efros 2016, section 3.1 ("AuC, rebal"): pixels weigh inversely to how common the class of their true
    color is (eq. 4 with lambda = 0). The paper takes that from ImageNet's training photos, smoothed; here it is from the
    very photos that are measured, so that no other data are needed.
    """
    hits, counts = np.asarray(by_color, np.float64).T
    return float(np.mean(hits[counts > 0] / counts[counts > 0]))


def chroma(ab):
    """Mean over pixels of the chroma, the root of a*^2 + b*^2."""
    return jnp.mean(_chroma(ab), axis=(1, 2))


def chroma_by_lightness(prediction, target, lightness, mask):
    """Summed over the pixels of photos whose mask (B,) is True, by bands of ten of L* (B, H, W, 1): float32 (10, 3) of the
    predicted chroma, of the true one, and of 1."""
    weight = jnp.broadcast_to(mask[:, None, None], target.shape[:3]).astype(jnp.float32)
    values = jnp.stack([weight * _chroma(prediction), weight * _chroma(target), weight], axis=-1)
    band = jnp.clip((lightness[..., 0] * (LIGHTNESS_BANDS / 100)).astype(jnp.int32), 0, LIGHTNESS_BANDS - 1)
    return jax.ops.segment_sum(values.reshape(-1, 3), band.reshape(-1), LIGHTNESS_BANDS)


def _chroma(ab):
    return jnp.sqrt(jnp.sum(jnp.square(ab), axis=-1))


def known(name, values):
    """Values (N,) of the photos that have any: those without a label have no class to find. Any other NaN stays."""
    return values[~np.isnan(values)] if name in ('top1', 'top5') else values


def frechet_distance(a, b) -> float:
    """Of two sets of features (N, D) and (M, D), taken for samples of normal distributions; 0 for equal ones.

    Heusel et al. 2017, eq. 6: |mean difference|^2 + tr(A + B - 2 (A B)^(1/2)). It falls with the number of photos: compare
    only distances over as many.
    """
    mean_a, mean_b = (np.mean(x, axis=0, dtype=np.float64) for x in (a, b))
    cov_a, cov_b = (np.atleast_2d(np.cov(np.asarray(x, np.float64), rowvar=False)) for x in (a, b))
    # tr (A B)^(1/2) by the eigenvalues of A^(1/2) B A^(1/2), which are A B's and real.
    values, vectors = np.linalg.eigh(cov_a)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ cov_b @ root), 0)).sum()
    return float(np.square(mean_a - mean_b).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)


def interval(values, samples: int = 2000) -> tuple[float, float]:
    """The 95 % interval of the mean of values (N,), by the percentile bootstrap over photos (Efron 1979)."""
    values = np.asarray(values, np.float64)
    rng = np.random.default_rng(0)
    means = [values[rng.integers(0, len(values), len(values))].mean() for _ in range(samples)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def larger_channel_agreement(prediction, target):
    """Share of pixels at which the larger of (a*, b*) is the same channel in both, in [0, 1].

    What Keras computes as 'accuracy' for an output of two channels, and what the DeepColor and LTBC reports print under
    that name. It measures no color: a photo with a* and b* swapped in sign can score 1.
    """
    same = jnp.argmax(prediction, axis=-1) == jnp.argmax(target, axis=-1)
    return jnp.mean(same.astype(jnp.float32), axis=(1, 2))


def colorfulness(rgb):
    """Hasler and Suesstrunk 2003, eq. 7: sigma_rgyb + 0.3 mu_rgyb, of signed opponent differences in 8-bit units."""
    rg, yb = _opponents(rgb)
    return _spread_and_mean(rg, yb)


def colorfulness_absolute(rgb):
    """Colorfulness as DDColor's published evaluation computes it: of the *absolute* opponent differences.

    Not what Hasler and Suesstrunk define, and not comparable with `colorfulness`; DDColor's and later papers' tables are
    made with it.
    """
    rg, yb = _opponents(rgb)
    return _spread_and_mean(jnp.abs(rg), jnp.abs(yb))


def _opponents(rgb):
    """Red-green and yellow-blue in 8-bit units, (B, H, W) each."""
    r, g, b = (255.0 * rgb[..., i] for i in range(3))
    return r - g, 0.5 * (r + g) - b


def _spread_and_mean(rg, yb):
    sigma = jnp.sqrt(jnp.var(rg, axis=(1, 2)) + jnp.var(yb, axis=(1, 2)))
    mu = jnp.sqrt(jnp.square(jnp.mean(rg, axis=(1, 2))) + jnp.square(jnp.mean(yb, axis=(1, 2))))
    return sigma + 0.3 * mu
