"""Image distances against scikit-image and torchmetrics."""

import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.evaluation.metrics import image_quality

METRICS = (
    image_quality.l1,
    image_quality.psnr,
    image_quality.ssim,
    lambda x, y: image_quality.ms_ssim(x, y, scales=2),
)


def noisy(shape, noise=0.1, seed=0):
    """Random images in [0, 1], float64, and the same with clipped noise."""
    rng = np.random.default_rng(seed)
    x = rng.random(shape)
    return x, np.clip(x + noise * rng.standard_normal(shape), 0, 1)


def smooth(shape, noise=0.02, seed=0):
    """Images with flat parts and slopes in [0, 1], as photographs have them, and noisy ones."""
    rng = np.random.default_rng(seed)
    b, h, w, c = shape
    i, j = np.meshgrid(np.arange(h) / h, np.arange(w) / w, indexing="ij")
    waves = np.sin(6 * i[None, ..., None] + rng.random((b, 1, 1, c)) * 5 * j[None, ..., None] * 3)
    x = np.clip(0.5 + 0.8 * waves, 0, 1)
    return x, np.clip(x + noise * rng.standard_normal(shape) + 0.05, 0, 1)


def signed(images):
    return jnp.asarray(2 * images - 1, jnp.float32)


def skimage_ssim(x, y):
    metrics = pytest.importorskip("skimage.metrics")
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return [
        metrics.structural_similarity(a, b, data_range=1.0, channel_axis=-1, **options)
        for a, b in zip(x, y, strict=True)
    ]


def test_ssim_published_number():
    x, y = noisy((1, 32, 32, 3))
    np.testing.assert_allclose(
        image_quality.ssim(signed(x), signed(y)), 0.9457193505422427, rtol=1e-6
    )


@pytest.mark.parametrize("shape", [(2, 11, 11, 1), (3, 32, 40, 3), (2, 65, 64, 2)])
@pytest.mark.parametrize("images", [noisy, smooth])
def test_ssim_and_psnr_against_skimage(images, shape):
    metrics = pytest.importorskip("skimage.metrics")
    x, y = images(shape)
    theirs = skimage_ssim(x, y)
    np.testing.assert_allclose(image_quality.ssim(signed(x), signed(y)), theirs, rtol=1e-5)
    # In the images' own range, as [0, 1] and as [0, 255].
    for scale in (1.0, 255.0):
        a, b = (jnp.asarray(scale * z, jnp.float32) for z in (x, y))
        np.testing.assert_allclose(
            image_quality.ssim(a, b, data_range=scale, low=0.0), theirs, rtol=1e-5
        )
    theirs = [
        metrics.peak_signal_noise_ratio(a, b, data_range=1.0) for a, b in zip(x, y, strict=True)
    ]
    np.testing.assert_allclose(image_quality.psnr(signed(x), signed(y)), theirs, rtol=1e-5)


def test_ssim_of_opposites_and_of_flat_images():
    x, y = smooth((1, 32, 32, 1))
    np.testing.assert_allclose(
        image_quality.ssim(signed(x), signed(1 - x)), skimage_ssim(x, 1 - x), rtol=1e-4, atol=1e-5
    )
    black, white = (jnp.full((1, 16, 16, 3), v) for v in (-1.0, 1.0))
    c1 = 1e-4 * 4
    np.testing.assert_allclose(image_quality.ssim(black, white), c1 / (4 + c1), rtol=1e-3)
    np.testing.assert_array_equal(image_quality.ssim(white, white), 1)
    np.testing.assert_allclose(
        image_quality.ssim(black, signed(y[:, :16, :16].repeat(3, -1))),
        skimage_ssim(np.zeros((1, 16, 16, 3)), y[:, :16, :16].repeat(3, -1)),
        rtol=1e-3,
        atol=1e-6,
    )


@pytest.fixture(scope="module")
def torchmetrics():
    """torchmetrics' functions on images."""
    with pytest.MonkeyPatch.context() as patch:
        # On import it takes these for its FID, and they cannot be had without torchvision.
        for part in ("feature_extractor_inceptionv3", "helpers", "interpolate_compat_tensorflow"):
            patch.setitem(sys.modules, f"torch_fidelity.{part}", mock.MagicMock())
        return pytest.importorskip("torchmetrics.functional.image")


def ms_ssim_by_parts(torchmetrics, x, y, scales):
    """From torchmetrics' parts at each scale; its luminance includes padded borders, so crop it."""
    import torch

    ssim = torchmetrics.structural_similarity_index_measure
    x, y = (torch.tensor(np.moveaxis(z, -1, 1)) for z in (x, y))
    weights = np.array(image_quality.MS_WEIGHTS)
    weights = weights[:scales] * weights.sum() / weights[:scales].sum()
    value = 1.0
    for scale in range(scales):
        if scale:
            x, y = (torch.nn.functional.avg_pool2d(z, 2) for z in (x, y))
        options = {"data_range": 1.0, "reduction": "none"}
        if scale < scales - 1:
            term = ssim(x, y, return_contrast_sensitivity=True, **options)[1]
        else:
            whole = ssim(x, y, return_full_image=True, **options)[1]
            term = whole[..., 5:-5, 5:-5].mean((1, 2, 3))
        value = value * np.maximum(term.numpy(), 0) ** weights[scale]
    return value


@pytest.mark.parametrize(("side", "scales"), [(11, 1), (45, 3), (177, 5)])
@pytest.mark.parametrize("images", [noisy, smooth])
def test_ms_ssim_against_the_parts_of_torchmetrics(torchmetrics, images, side, scales):
    x, y = images((2, side, side + 3, 3), noise=0.3)
    ours = image_quality.ms_ssim(signed(x), signed(y), scales=scales)
    np.testing.assert_allclose(ours, ms_ssim_by_parts(torchmetrics, x, y, scales), rtol=1e-5)


def test_ms_ssim_against_torchmetrics(torchmetrics):
    """The padded borders in its coarsest scale, 16 pixels here, move its value a little."""
    import torch

    x, y = smooth((1, 256, 256, 3), noise=0.2)
    theirs = torchmetrics.multiscale_structural_similarity_index_measure(
        *(torch.tensor(np.moveaxis(z, -1, 1)) for z in (x, y)), data_range=1.0, reduction="none"
    )
    np.testing.assert_allclose(image_quality.ms_ssim(signed(x), signed(y)), theirs, atol=0.005)


def test_ms_ssim_counts_opposed_structure_as_none():
    x = signed(smooth((1, 22, 22, 1))[0])
    assert image_quality.ms_ssim(x, -x, scales=2)[0] == 0


def test_one_scale_of_ms_ssim_is_ssim():
    x, y = map(signed, noisy((2, 24, 24, 3)))
    expected = np.asarray(image_quality.ssim(x, y)) ** sum(image_quality.MS_WEIGHTS)
    np.testing.assert_allclose(image_quality.ms_ssim(x, y, scales=1), expected, rtol=1e-5)


def test_psnr_by_hand_and_its_ceiling():
    x = jnp.zeros((1, 4, 4, 1))
    np.testing.assert_allclose(image_quality.psnr(x, x + 0.2), 20.0, rtol=1e-6)
    np.testing.assert_allclose(image_quality.psnr(x, x + 0.2, data_range=1.0), 13.9794, rtol=1e-5)
    ceiling = 10 * np.log10(12 * 255**2)
    assert ceiling == pytest.approx(58.92, abs=5e-3)
    np.testing.assert_allclose(image_quality.psnr(x, x), ceiling, rtol=1e-6)
    np.testing.assert_allclose(image_quality.psnr(x, x, data_range=255.0), ceiling, rtol=1e-6)
    rng = np.random.default_rng(0)
    images = rng.random((1, 64, 64, 3))
    rounded = np.round(images * 255) / 255
    np.testing.assert_allclose(
        image_quality.psnr(signed(images), signed(rounded)), ceiling, rtol=5e-3
    )


def test_l1_by_hand():
    x, y = noisy((3, 5, 6, 2))
    expected = abs(2 * x - 2 * y).mean((1, 2, 3))
    np.testing.assert_allclose(image_quality.l1(signed(x), signed(y)), expected, rtol=1e-5)


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_is_per_example_symmetric_and_compiles(metric):
    x, y = map(signed, noisy((4, 24, 24, 3)))
    value = metric(x, y)
    assert value.shape == (4,)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(metric(y, x), value, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(metric)(x, y), value, rtol=1e-5)
    one_by_one = jax.vmap(lambda a, b: metric(a[None], b[None])[0])(x, y)
    np.testing.assert_allclose(one_by_one, value, rtol=1e-5)
    stacked = jax.vmap(metric)(x.reshape(2, 2, 24, 24, 3), y.reshape(2, 2, 24, 24, 3))
    np.testing.assert_allclose(stacked.reshape(4), value, rtol=1e-5)
    half = metric(x.astype(jnp.bfloat16), x.astype(jnp.bfloat16))
    np.testing.assert_array_equal(half, metric(x, x))
    spoilt = metric(x.at[1, 3, 3, 0].set(jnp.nan), y)
    np.testing.assert_array_equal(jnp.isnan(spoilt), [False, True, False, False])


@pytest.mark.parametrize("metric", METRICS)
def test_images_that_cannot_be_compared(metric):
    x = jnp.zeros((2, 24, 24, 3))
    with pytest.raises(ValueError, match=r"two \[B, H, W, C\]"):
        metric(x, x[:1])
    with pytest.raises(ValueError, match=r"two \[B, H, W, C\]"):
        metric(x[0], x[0])
    with pytest.raises(ValueError, match="floats, not uint8"):
        metric(x.astype(jnp.uint8), x.astype(jnp.uint8))


def test_images_smaller_than_the_window():
    x = jnp.zeros((1, 10, 32, 3))
    with pytest.raises(ValueError, match="at least 11 x 11, not 10 x 32"):
        image_quality.ssim(x, x)
    x = jnp.zeros((1, 176, 175, 3))
    with pytest.raises(ValueError, match="at least 176 x 176, not 176 x 175"):
        image_quality.ms_ssim(x, x)
    with pytest.raises(ValueError, match="scales must be 1 to 5, not 6"):
        image_quality.ms_ssim(x, x, scales=6)
