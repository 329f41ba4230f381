"""EDM's augmentation: each move against a known one, labels, and how often images move."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.modalities import edm_augment
from aigc_jax.modalities.augment import translate
from aigc_jax.modalities.edm_augment import LABEL_DIM, Move, augment_with_label, label, moved

HEIGHT, WIDTH = 24, 32
ZOOM = 2**0.2  # as published
augmented = jax.jit(augment_with_label)
run = jax.jit(moved)


def images(batch=2, height=HEIGHT, width=WIDTH):
    return jax.random.uniform(jax.random.key(0), (batch, height, width, 3), minval=-1.0)


def move(batch=2, **parts):
    zeros = Move(*np.zeros((len(Move._fields), batch), np.float32))
    return zeros._replace(**{k: np.full(batch, v, np.float32) for k, v in parts.items()})


def wave(down, right):
    """A smooth picture of positions from its centre."""
    return np.sin(0.3 * down + 0.4) * np.cos(0.25 * right - 0.2)


def picture(height=HEIGHT, width=WIDTH, back=lambda down, right: (down, right)):
    down, right = np.mgrid[:height, :width] - np.array([height - 1, width - 1])[:, None, None] / 2
    return wave(*back(down, right)).astype(np.float32)


def test_flips_are_exact():
    x = images()
    np.testing.assert_array_equal(run(x, move(x_flip=1)), x[:, :, ::-1])
    np.testing.assert_array_equal(run(x, move(y_flip=1)), x[:, ::-1])
    one = move(x_flip=1)._replace(x_flip=jnp.array([0.0, 1.0]))
    np.testing.assert_array_equal(run(x, one), jnp.stack([x[0], x[1, :, ::-1]]))


def test_whole_pixels_are_exact_and_what_comes_in_is_the_reflection():
    x = images()
    found = run(x, move(down=8 * 3 / HEIGHT, right=-8 * 2 / WIDTH))
    expected = translate(x, jnp.array([[-3, 2]] * 2), 3)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_quarter_turn_is_counterclockwise():
    x = picture(HEIGHT, HEIGHT)
    found = run(x[None, ..., None], move(1, angle=np.pi / 2))[0, ..., 0]
    np.testing.assert_allclose(found[6:-6, 6:-6], np.rot90(x)[6:-6, 6:-6], atol=0.005)


def along(down, right, angle):
    """How far a position is along the line at an angle, and across it, as upward is positive."""
    cos, sin = np.cos(angle), np.sin(angle)
    return cos * right - sin * down, sin * right + cos * down


def stretched(down, right, angle, factor):
    a, b = along(down, right, angle)
    a, b = a / factor, b * factor
    return np.cos(angle) * b - np.sin(angle) * a, np.cos(angle) * a + np.sin(angle) * b


def turned(down, right, angle):
    a, b = along(down, right, angle)
    return b, a


@pytest.mark.parametrize(
    ("parts", "back"),
    [
        ({"scale": 2.5}, lambda d, r: (d / ZOOM**2.5, r / ZOOM**2.5)),
        ({"scale": -1.0}, lambda d, r: (d * ZOOM, r * ZOOM)),
        ({"angle": 0.5}, functools.partial(turned, angle=0.5)),
        ({"stretch": 2.0}, lambda d, r: (d * ZOOM**2, r / ZOOM**2)),
        (
            {"stretch": 1.5, "direction": 0.7},
            functools.partial(stretched, angle=0.7, factor=ZOOM**1.5),
        ),
        ({"right": 0.37, "down": -0.8}, lambda d, r: (d + 0.8 * HEIGHT / 8, r - 0.37 * WIDTH / 8)),
    ],
    ids=lambda given: str(given) if isinstance(given, dict) else "",
)
def test_a_smooth_picture_is_moved_as_its_formula_says(parts, back):
    found = run(jnp.asarray(picture())[None, ..., None], move(1, **parts))[0, ..., 0]
    middle = (slice(8, -8), slice(10, -10))
    np.testing.assert_allclose(found[middle], picture(back=back)[middle], atol=0.005)
    assert np.abs(found - picture())[middle].max() > 0.1


def test_moves_follow_each_other_as_published():
    """Scale, rotation, stretch, then translation: the translation is of the result's pixels."""
    parts = {"scale": 1.0, "angle": 0.5, "stretch": 1.0, "direction": 0.3, "right": 0.25}

    def back(down, right):
        down, right = stretched(down, right - 0.25 * WIDTH / 8, 0.3, ZOOM)
        down, right = turned(down, right, 0.5)
        return down / ZOOM, right / ZOOM

    found = run(jnp.asarray(picture())[None, ..., None], move(1, **parts))[0, ..., 0]
    middle = (slice(8, -8), slice(10, -10))
    np.testing.assert_allclose(found[middle], picture(back=back)[middle], atol=0.005)


def test_a_label_says_each_move_apart():
    values = {"x_flip": 1.0, "y_flip": 1.0, "scale": 0.5, "angle": 2.0, "right": -1.5, "down": 0.7}
    found = label(move(1, **values, stretch=-2.0, direction=0.4))[0]
    rotation, stretch = (np.cos(2) - 1, np.sin(2)), (-2 * np.cos(0.4), -2 * np.sin(0.4))
    np.testing.assert_allclose(found, [1, 1, 0.5, *rotation, *stretch, -1.5, 0.7], rtol=1e-5)


def test_a_label_of_zeros_is_an_image_as_it_was_and_no_other():
    x = images(200, 8, 8)
    found, told = augmented(jax.random.key(1), x, 0.3)
    assert told.shape == (200, LABEL_DIM)
    assert told.dtype == jnp.float32
    same = (found == x).all((1, 2, 3))
    np.testing.assert_array_equal(same, (told == 0).all(1))
    assert 0 < same.sum() < 200
    assert np.abs(found).max() < 2.0
    still, told = augmented(jax.random.key(1), x, 0.0)
    np.testing.assert_array_equal(still, x)
    np.testing.assert_array_equal(told, 0.0)


def test_each_move_is_as_frequent_and_as_large_as_published():
    n = 20_000
    draws = jax.jit(functools.partial(edm_augment.draw, batch=n))(
        jax.random.key(2), probability=0.12
    )
    told = label(draws)
    frequency = (np.asarray(told) != 0).mean(0)
    # Half of the stretches are along a row, so that the sine of their direction is 0.
    expected = [0.5, 0.06, 0.12, 0.12, 0.12, 0.12, 0.06, 0.12, 0.12]
    np.testing.assert_allclose(frequency, expected, atol=0.015)
    for name in ("scale", "stretch", "right", "down"):
        values = np.asarray(getattr(draws, name))
        np.testing.assert_allclose(values[values != 0].std(), 1.0, atol=0.06)
    for angles in (np.asarray(draws.angle), np.asarray(draws.direction)):
        np.testing.assert_allclose(angles[angles != 0].std(), np.pi / np.sqrt(3), atol=0.1)
    moves = [np.asarray(getattr(draws, n)) != 0 for n in ("scale", "angle", "stretch", "down")]
    np.testing.assert_allclose(np.corrcoef(moves) - np.eye(4), 0.0, atol=0.04)
    np.testing.assert_array_equal(moves[3], np.asarray(draws.right) != 0)


def test_any_sides_are_allowed():
    for height, width in ((1, 1), (1, 5), (7, 2)):
        found, _ = augmented(jax.random.key(0), images(3, height, width), 1.0)
        assert found.shape == (3, height, width, 3)
        assert np.isfinite(found).all()
