"""Augmentation of images: identities, exact turns, windows, and the layout over devices."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from aigc_jax.modalities import augment

BATCH, SIDE = 8, 9
KEY = jax.random.key(0)
EVERYTHING = {"flip": True, "shift": 2, "rotation": 20.0, "scale": 0.3}


@pytest.fixture
def x():
    return jax.random.uniform(jax.random.key(1), (BATCH, SIDE, SIDE, 3), minval=-1.0)


def test_mirroring_is_an_involution(x):
    which = jnp.arange(BATCH) % 2 == 0
    once = augment.mirror(x, which)
    np.testing.assert_array_equal(once[0], x[0, :, ::-1])
    np.testing.assert_array_equal(once[1], x[1])
    np.testing.assert_array_equal(augment.mirror(once, which), x)


def test_flip_takes_about_half():
    ramp = jnp.tile(jnp.array([-1.0, 1.0])[None, None, :, None], (1000, 2, 1, 1))
    flipped = augment.augment(KEY, ramp, flip=True)[:, 0, 0, 0] > 0
    assert 430 < flipped.sum() < 570


@pytest.mark.parametrize(
    "change",
    [
        lambda x: augment.shift_crop(KEY, x, 0),
        lambda x: augment.translate(x, jnp.zeros((BATCH, 2), jnp.int32), 3),
        lambda x: augment.augment(KEY, x, rotation=0.0, scale=0.0),
        lambda x: augment.augment(KEY, x, rotation=1e-9, scale=1e-9),
        lambda x: augment.affine(x, jnp.full(BATCH, 2 * jnp.pi), jnp.ones(BATCH)),
        lambda x: augment.augment(KEY, x),
    ],
)
def test_nothing_asked_nothing_changed(x, change):
    np.testing.assert_allclose(change(x), x, atol=1e-5)


@pytest.mark.parametrize("side", [8, 9])
@pytest.mark.parametrize("quarters", [-1, 1, 2])
def test_quarter_turns_are_exact(quarters, side):
    x = jax.random.uniform(KEY, (2, side, side, 3), minval=-1.0)
    turned = augment.affine(x, jnp.full(2, quarters * jnp.pi / 2), jnp.ones(2))
    np.testing.assert_allclose(turned, jnp.rot90(x, quarters, axes=(1, 2)), atol=1e-5)


def test_zoom_magnifies_about_the_centre():
    ramp = jnp.tile(jnp.linspace(-1, 1, SIDE)[None, None, :, None], (2, SIDE, 1, 1))
    zoomed = augment.affine(ramp, jnp.zeros(2), jnp.array([2.0, 1.0]))
    np.testing.assert_allclose(zoomed[0], ramp[0] / 2, atol=1e-6)


def test_translation_reads_from_where_it_says(x):
    offsets = jnp.tile(jnp.array([[1, -2]]), (BATCH, 1))
    translated = augment.translate(x, offsets, 2)
    np.testing.assert_array_equal(translated[:, :-1, 2:], x[:, 1:, :-2])
    np.testing.assert_array_equal(translated[:, -1, 2:], x[:, -2, :-2])  # the border is mirrored


def test_shifts_and_angles_fill_their_range(x):
    corner = jnp.zeros((500, 9, 9, 1)).at[:, 4, 4].set(1.0)
    shifted = augment.shift_crop(KEY, corner, 2)
    places = np.argwhere(np.asarray(shifted[..., 0]) == 1.0)[:, 1:]
    assert {tuple(p) for p in places} == {(i, j) for i in range(2, 7) for j in range(2, 7)}
    with_angles = augment.augment(KEY, x, rotation=30.0)
    assert all(float(jnp.abs(with_angles[i] - x[i]).max()) > 1e-3 for i in range(BATCH))


def test_jitter_is_a_window_of_the_enlarged_image():
    x = jax.random.uniform(jax.random.key(0), (6, 8, 8, 3), minval=-1.0)
    found = np.asarray(augment.augment(jax.random.key(1), x, jitter=4))
    large = np.clip(jax.image.resize(x, (6, 12, 12, 3), "cubic", antialias=False), -1, 1)
    places = []
    for image, whole in zip(found, large, strict=True):
        fits = [
            (i, j)
            for i, j in itertools.product(range(5), repeat=2)
            if np.allclose(image, whole[i : i + 8, j : j + 8], atol=1e-6)
        ]
        assert len(fits) == 1
        places += fits
    assert len(set(places)) > 2
    np.testing.assert_array_equal(augment.augment(jax.random.key(1), x, jitter=0), x)


def test_values_stay_within_bounds(x):
    y = augment.augment(KEY, jnp.sign(x), **EVERYTHING)
    assert float(jnp.abs(y).max()) <= 1.0
    assert y.shape == x.shape
    assert y.dtype == x.dtype


def test_what_one_draws_does_not_depend_on_the_others(x):
    flipped = augment.augment(KEY, x, flip=True)
    both = augment.augment(KEY, x, flip=True, rotation=25.0)
    angle_only = augment.augment(KEY, flipped, rotation=25.0)
    np.testing.assert_allclose(both, angle_only, atol=1e-6)


def test_result_does_not_depend_on_the_devices(x):
    change = jax.jit(functools.partial(augment.augment, **EVERYTHING))
    mesh = jax.make_mesh((BATCH,), ("data",), axis_types=(AxisType.Auto,))
    sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    assert len(sharded.sharding.device_set) == BATCH
    np.testing.assert_allclose(change(KEY, sharded), change(KEY, x), atol=1e-6)
    assert float(jnp.abs(change(KEY, x) - x).max()) > 0.1
