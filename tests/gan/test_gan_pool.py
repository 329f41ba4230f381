"""CycleGAN's image pool by its properties, and latent directions against linear algebra."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.gan import directions, pool

KEY = jax.random.key(0)
QUERY = jax.jit(pool.query)
SLERP = jax.jit(directions.slerp)


def numbered(first, n, shape=(2, 2, 1)):
    """n images, each filled with its own number from `first` on."""
    numbers = jnp.arange(first, first + n, dtype=jnp.float32)
    return jnp.broadcast_to(numbers.reshape(n, 1, 1, 1), (n, *shape))


def numbers(images):
    images = np.asarray(images)
    assert (images == images[:, :1, :1, :1]).all()  # none is a mixture
    return images[:, 0, 0, 0].astype(int)


def test_a_pool_is_filled_before_it_gives_anything_back():
    state = pool.init(5, (2, 2, 1))
    assert state["images"].shape == (5, 2, 2, 1)
    assert state["count"].dtype == jnp.int32
    for first, n in ((1, 2), (3, 2), (5, 1)):
        shown, state = QUERY(state, numbered(first, n), jax.random.key(first))
        np.testing.assert_array_equal(shown, numbered(first, n))
        assert int(state["count"]) == first + n - 1
    np.testing.assert_array_equal(numbers(state["images"]), [1, 2, 3, 4, 5])


@pytest.mark.parametrize("batch", [1, 4, 50])
def test_a_full_pool_swaps_half_of_the_time(batch):
    size, total = 10, 1000
    state, outputs = pool.init(size, (2, 2, 1)), []
    for first in range(0, total, batch):
        key = jax.random.fold_in(KEY, first)
        shown, after = QUERY(state, numbered(first, batch), key)
        # One image after another: each is passed on, or takes the place of one that is returned.
        held = list(numbers(state["images"]))[: int(state["count"])]
        for new, out in zip(range(first, first + batch), numbers(shown), strict=True):
            if len(held) < size:
                assert out == new
                held.append(new)
            elif out != new:
                held[held.index(out)] = new
        state = after
        assert held == list(numbers(state["images"]))[: len(held)]
        outputs.extend(numbers(shown))
    assert int(state["count"]) == size
    assert len(set(held)) == size  # distinct, all once given
    outputs = np.array(outputs)
    np.testing.assert_array_equal(outputs[:size], np.arange(size))
    old = outputs[size:] != np.arange(size, total)
    n = len(old)
    assert abs(old.mean() - 0.5) < 4 * math.sqrt(0.25 / n)
    # Never twice, since what is returned is gone; what is not in the pool has been returned.
    assert len(set(outputs)) == total - len(set(held) - set(outputs))
    assert set(outputs) | set(held) == set(range(total))
    # A random one: an image waits for 2 x size queries on average, and some for long.
    waits = np.arange(size, total)[old] - outputs[size:][old]
    np.testing.assert_allclose(waits.mean(), 2 * size, rtol=0.25)
    assert waits.max() > 4 * size


def test_every_place_is_as_likely():
    size = 4
    _, state = QUERY(pool.init(size, (1, 1, 1)), numbered(0, size, (1, 1, 1)), KEY)
    new = numbered(9, 1, (1, 1, 1))
    keys = jax.random.split(jax.random.key(1), 2000)
    shown, _ = jax.jit(jax.vmap(lambda key: pool.query(state, new, key)))(keys)
    counts = np.bincount(np.asarray(shown).astype(int).ravel(), minlength=10)
    assert abs(counts[9] - 1000) < 100
    assert (np.abs(counts[:size] - 250) < 65).all()


def test_a_pool_of_no_size_changes_nothing():
    empty = pool.init(0, (2, 2, 1))
    shown, after = QUERY(empty, numbered(0, 3), KEY)
    np.testing.assert_array_equal(shown, numbered(0, 3))
    assert after["images"].shape == (0, 2, 2, 1)
    assert int(after["count"]) == 0


def test_the_same_key_is_the_same_pool():
    _, state = QUERY(pool.init(3, (2, 2, 1)), numbered(0, 3), KEY)
    once, twice, other = (
        QUERY(state, numbered(3, 20), key) for key in (KEY, KEY, jax.random.key(7))
    )
    jax.tree.map(np.testing.assert_array_equal, once, twice)
    assert (once[0] != other[0]).any()
    assert jax.tree.structure(once[1]) == jax.tree.structure(state)  # so that it fits a checkpoint
    for a, b in zip(jax.tree.leaves(once[1]), jax.tree.leaves(state), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)


@pytest.mark.parametrize("features", [12, 3])
def test_sefa_is_the_eigenvectors_of_the_first_layer(features):
    kernel = np.random.default_rng(0).normal(size=(6, features)).astype(np.float32)
    rows, values = directions.sefa(jnp.array(kernel))
    expected, vectors = np.linalg.eigh(kernel.astype(np.float64) @ kernel.T)
    np.testing.assert_allclose(values, expected[::-1], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(rows @ rows.T, np.eye(6), atol=1e-5)
    known = min(features, 6)  # beyond the rank any basis will do
    cosines = np.abs(np.sum(np.asarray(rows) * vectors.T[::-1], axis=1))
    np.testing.assert_allclose(cosines[:known], 1.0, atol=1e-4)
    # What the values mean: how far a step of length 1 moves the layer's output.
    changed = np.sum((np.asarray(rows) @ kernel) ** 2, axis=1)
    np.testing.assert_allclose(changed, values, rtol=1e-3, atol=1e-3)
    largest = np.take_along_axis(np.asarray(rows), np.abs(rows).argmax(axis=1)[:, None], axis=1)
    assert (largest > 0).all()


def test_slerp_keeps_the_length_and_the_pace():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 7, 5)).astype(np.float32)
    b *= np.linalg.norm(a, axis=1, keepdims=True) / np.linalg.norm(b, axis=1, keepdims=True)
    np.testing.assert_allclose(SLERP(a, b, 0.0), a, atol=1e-5)
    np.testing.assert_allclose(SLERP(a, b, 1.0), b, atol=1e-5)
    norm = np.linalg.norm(a, axis=1)
    angle = np.arccos(np.sum(a * b, axis=1) / norm**2)
    for t in (0.2, 0.5, 0.9):
        found = np.asarray(SLERP(a, b, t))
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), norm, rtol=1e-5)
        turned = np.arccos(np.sum(a * found, axis=1) / norm**2)
        np.testing.assert_allclose(turned, t * angle, atol=1e-3)
    # A path between two points, and one t an example.
    t = jnp.linspace(0, 1, 4).reshape(4, 1)
    path = SLERP(a[0], b[0], t)
    assert path.shape == (4, 5)
    np.testing.assert_allclose(path[1], SLERP(a[0], b[0], 1 / 3), atol=1e-6)
    grid = SLERP(a[:, None], b[:, None], t.reshape(1, 4, 1))
    assert grid.shape == (7, 4, 5)
    np.testing.assert_allclose(grid[0], path, atol=1e-6)
    for bad in (jnp.linspace(0, 1, 5), jnp.zeros((7, 5))):
        with pytest.raises(ValueError, match=r"t is a scalar or \[\.\.\., 1\]"):
            directions.slerp(a, b, bad)


def test_slerp_is_a_line_between_parallel_vectors():
    a = jnp.array([[1.0, 2.0, -2.0]])
    for b in (a, 3 * a, -a, -2 * a, a * (1 + 1e-7), 0 * a):
        with jax.debug_nans(True):  # nor is there one on the way
            found = directions.slerp(a, b, 0.25)
        assert np.isfinite(found).all()
        if (b != 0).any():
            np.testing.assert_allclose(found, 0.75 * a + 0.25 * b, atol=1e-5)
    # Rounding puts the cosine of some beyond 1.
    many = jnp.float32(np.random.default_rng(0).normal(size=(200, 5)))
    for b in (3 * many, -3 * many):
        found = SLERP(many, b, 0.25)
        np.testing.assert_allclose(found, 0.75 * many + 0.25 * b, rtol=1e-3, atol=1e-5)
    # Small angles lose no digits.
    near = a + jnp.array([[0.0, 2e-3, 2e-3]])
    np.testing.assert_allclose(SLERP(a, near, 0.5), (a + near) / 2, atol=1e-5)
