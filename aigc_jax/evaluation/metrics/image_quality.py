"""How far images are from the ones they should repeat: PSNR, SSIM, MS-SSIM and L1.

Images are [B, H, W, C] floats, in [-1, 1] unless said otherwise; every function returns float32
[B], works under jit and vmap and on any device. NaN in an image is NaN in its value. ValueError for
other ranks, shapes that differ, integers, or images too small for the window.
"""

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.errors import SettingError

WINDOW_SIZE = 11
WINDOW = np.exp(-0.5 * ((np.arange(WINDOW_SIZE) - WINDOW_SIZE // 2) / 1.5) ** 2)
WINDOW /= WINDOW.sum()
MS_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # finest first


def l1(x: jax.Array, y: jax.Array) -> jax.Array:
    """The mean absolute difference."""
    x, y = _checked(x, y)
    return abs(x - y).mean((1, 2, 3))


def psnr(x: jax.Array, y: jax.Array, data_range: float = 2.0) -> jax.Array:
    """Peak signal-to-noise ratio in dB, 10 log10(data_range^2 / MSE), at most 58.92.

    That is what rounding to 8 bits leaves, an MSE of (data_range / 255)^2 / 12: images nearer than
    that are the same once stored, and the inf of identical ones would swallow any mean.
    """
    x, y = _checked(x, y)
    mse = ((x - y) ** 2).mean((1, 2, 3))
    return 10 * jnp.log10(data_range**2 / jnp.maximum(mse, (data_range / 255) ** 2 / 12))


def ssim(x: jax.Array, y: jax.Array, data_range: float = 2.0, low: float = -1.0) -> jax.Array:
    """Structural similarity, at most 1; negative where structures oppose.

    Wang et al. 2004 (IEEE TIP 13, eq. 13): an 11 x 11 Gaussian window of sigma 1.5, K1 = 0.01,
    K2 = 0.03, weighted covariances without Bessel's correction. The mean is over channels and over
    positions whose window lies inside the image, so both sides must be at least 11.

    Args:
      x, y: images in [low, low + data_range].
      data_range, low: the luminance term compares means above `low`, as black is 0 in the paper;
        images in [0, 1] take data_range 1 and low 0.
    """
    x, y = _checked(x, y, WINDOW_SIZE)
    return _similarity(x, y, data_range, low)[0]


def ms_ssim(
    x: jax.Array, y: jax.Array, data_range: float = 2.0, low: float = -1.0, *, scales: int = 5
) -> jax.Array:
    """Multi-scale structural similarity in [0, 1].

    Wang et al. 2003 (Asilomar, eq. 7): contrast and structure at each of `scales` resolutions, each
    half the last by 2 x 2 means, and luminance at the coarsest. The mean over channels and
    positions comes before the powers, and below 0, where they have none, it counts as 0.

    Args:
      x, y, data_range, low: as for `ssim`; both sides at least 11 * 2^(scales - 1), 176 for five.
      scales: 1 to 5; the first so many of the paper's weights, scaled to the same sum.
    """
    if not 1 <= scales <= len(MS_WEIGHTS):
        raise SettingError(f"scales must be 1 to {len(MS_WEIGHTS)}, not {scales}")
    x, y = _checked(x, y, WINDOW_SIZE * 2 ** (scales - 1))
    terms = []
    for scale in range(scales):
        if scale:
            x, y = _halved(x), _halved(y)
        similarity, contrast = _similarity(x, y, data_range, low)
        terms.append(contrast if scale < scales - 1 else similarity)
    weights = np.array(MS_WEIGHTS[:scales]) * sum(MS_WEIGHTS) / sum(MS_WEIGHTS[:scales])
    terms = jnp.maximum(jnp.stack(terms, axis=1), 0.0)
    return (terms ** jnp.asarray(weights, jnp.float32)[None]).prod(1)


@jax.jit
def _similarity(
    x: jax.Array, y: jax.Array, data_range: float, low: float
) -> tuple[jax.Array, jax.Array]:
    """(SSIM [B], its contrast-structure factor [B]).

    Both factors as 1 less a distance: 2 ab = a^2 + b^2 - (a - b)^2 turns the paper's quotients into
    1 - (mu_x - mu_y)^2 / (mu_x^2 + mu_y^2 + C1) and 1 - var(x - y) / (var x + var y + C2), in which
    float32 loses nothing where images are alike. Variances are of images less their means.
    """
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    x_mean, y_mean = x.mean((1, 2), keepdims=True), y.mean((1, 2), keepdims=True)
    x, y = x - x_mean, y - y_mean
    difference = x - y
    maps = jnp.concatenate([x, y, difference, x**2 + y**2, difference**2])
    mu_x, mu_y, mu_d, squares, squares_d = jnp.split(_blurred(maps), 5)
    variances = jnp.maximum(squares - mu_x**2 - mu_y**2, 0.0)
    contrast = 1 - jnp.maximum(squares_d - mu_d**2, 0.0) / (variances + c2)
    mu_x, mu_y, mu_d = mu_x + (x_mean - low), mu_y + (y_mean - low), mu_d + (x_mean - y_mean)
    luminance = 1 - mu_d**2 / (mu_x**2 + mu_y**2 + c1)
    return (luminance * contrast).mean((1, 2, 3)), contrast.mean((1, 2, 3))


def _blurred(x: jax.Array) -> jax.Array:
    """Window means [B, H - 10, W - 10, C]; shifted sums, as a convolution may round to bfloat16."""
    for axis in (1, 2):
        inside = x.shape[axis] - WINDOW_SIZE + 1
        x = sum(
            float(weight) * jax.lax.slice_in_dim(x, shift, shift + inside, axis=axis)
            for shift, weight in enumerate(WINDOW)
        )
    return x


def _halved(x: jax.Array) -> jax.Array:
    """Means of 2 x 2 blocks; an odd last row or column is left out."""
    b, h, w, c = x.shape
    x = x[:, : h // 2 * 2, : w // 2 * 2]
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))


def _checked(x: jax.Array, y: jax.Array, smallest: int = 1) -> tuple[jax.Array, jax.Array]:
    """Both as float32 [B, H, W, C]."""
    x, y = jnp.asarray(x), jnp.asarray(y)
    if x.ndim != 4 or x.shape != y.shape:
        raise SettingError(f"images must be two [B, H, W, C], not {list(x.shape)}, {list(y.shape)}")
    if min(x.shape[1:]) < 1 or min(x.shape[1:3]) < smallest:
        raise SettingError(
            f"images must be at least {smallest} x {smallest}, not {x.shape[1]} x {x.shape[2]}"
        )
    if not (jnp.issubdtype(x.dtype, jnp.floating) and jnp.issubdtype(y.dtype, jnp.floating)):
        raise SettingError(f"images must be floats, not {x.dtype} and {y.dtype}: scale them first")
    return x.astype(jnp.float32), y.astype(jnp.float32)
