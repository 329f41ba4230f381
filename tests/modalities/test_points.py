"""Points of the plane: nowhere bytes, nowhere scaled or limited, drawn as a scatter plot."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax import modalities
from aigc_jax.data import mixtures
from aigc_jax.modalities.points import scatter

POINTS = modalities.of("points")


def red(picture):
    """Where samples are drawn."""
    pixels = np.asarray(picture).astype(int)
    return (pixels[..., 0] > pixels[..., 2] + 80) & (pixels[..., 0] > 150)


def pale(picture):
    """Where real points are drawn."""
    pixels = np.asarray(picture).astype(int)
    return pixels[..., 2] > pixels[..., 0] + 15


def test_points_stay_what_they_are():
    points = np.array([[4.0, -7.5], [0.3, 1e6]], np.float32)
    for change in (POINTS.to_model, POINTS.to_stored, POINTS.clip):
        found = change(points)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, points)
    assert isinstance(POINTS.to_stored(jnp.asarray(points)), np.ndarray)
    assert not POINTS.bounded
    assert not POINTS.judged_in_features
    assert POINTS.save is None  # one point makes no picture


@pytest.mark.parametrize(
    "chosen",
    [{"flip": True}, {"shift": 1}, {"rotation": 5.0}, {"scale": 0.1}, {"jitter": 2}],
    ids=str,
)
def test_points_are_not_augmented_as_if_they_were_pixels(chosen):
    points = jnp.ones((4, 2))
    off = {"flip": False, "shift": 0, "rotation": 0.0, "scale": 0.0}
    np.testing.assert_array_equal(POINTS.augment(jax.random.key(0), points, **off), points)
    with pytest.raises(ValueError, match=r"points of the plane cannot be augmented: set every aug"):
        POINTS.augment(jax.random.key(0), points, **(off | chosen))


def test_a_scatter_plot_shows_samples_over_real_points():
    real = mixtures.arrays("ring", "test")[:500]
    alone = scatter(np.full((1, 2), 99.0), real)
    together = POINTS.picture(np.zeros((5, 2)), real=real, columns=3)
    assert alone.size == together.size == (480, 480)
    rows, columns = np.nonzero(red(together))
    assert 0 < red(together).sum() < 60  # the dots that lie on each other
    middle = [(axis.min() + axis.max()) / 2 for axis in np.nonzero(pale(alone))]  # of the ring
    np.testing.assert_allclose([rows.mean(), columns.mean()], middle, atol=3)
    assert not red(alone).any()


def test_a_scatter_plot_is_the_same_each_time_and_takes_what_is_not_finite():
    real = mixtures.arrays("grid", "test")[:50]
    samples = np.array([[0.0, 0.0], [np.nan, 1.0], [np.inf, 0.0], [50.0, 0.0]])
    one, other = (np.asarray(scatter(samples, real)) for _ in range(2))
    np.testing.assert_array_equal(one, other)


def test_without_real_points_the_plot_reaches_as_far_as_samples_do():
    samples = mixtures.arrays("ring", "test")[:500].astype(np.float64)
    samples[0] = np.nan
    shown = POINTS.picture(samples)
    assert shown.size == (480, 480)
    assert not pale(shown).any()
    rows, columns = np.nonzero(red(shown))
    assert min(np.ptp(rows), np.ptp(columns)) > 250
    for few in (np.zeros((3, 2)), np.full((3, 2), np.inf)):  # no extent, or nothing at all
        assert POINTS.picture(few).size == (480, 480)
