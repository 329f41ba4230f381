"""What a discriminator is shown: identities, ranges, where gradients stop, and how p adapts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.gan import augment

KEY = jax.random.key(0)
POLICY = ("color", "translation", "cutout")
MANY = 2000
X = jax.random.uniform(jax.random.key(1), (6, 8, 8, 3), minval=-1.0)


APPLY = jax.jit(augment.differentiable, static_argnums=2)


def changed(policy, x, probability=1.0, key=KEY):
    return np.asarray(APPLY(key, x, policy, probability))


def test_nothing_is_done_by_no_policy_or_never():
    np.testing.assert_array_equal(changed((), X), X)
    np.testing.assert_array_equal(changed(POLICY, X, 0.0), X)
    for name in POLICY:
        assert (changed((name,), X) != np.asarray(X)).any(
            axis=(1, 2, 3)
        ).sum() >= 3  # or 1 in 9 by no pixel


def test_color_keeps_to_its_ranges():
    # A grey and flat image has neither saturation nor contrast: all that is left is brightness.
    flat = changed(("color",), jnp.full((MANY, 1, 2, 3), 0.25)) - 0.25
    np.testing.assert_allclose(flat, np.broadcast_to(flat[:, :1, :1, :1], flat.shape), atol=1e-6)
    # Of two opposite pixels on a grey mean contrast is the scale, saturation nothing.
    grey = jnp.array([-0.5, 0.5]).reshape(1, 1, 2, 1)
    spread = changed(("color",), jnp.tile(grey, (MANY, 1, 1, 3)))
    spread = (spread[:, 0, 1] - spread[:, 0, 0]).reshape(MANY, 3)
    np.testing.assert_allclose(spread, np.broadcast_to(spread[:, :1], spread.shape), atol=1e-6)
    # Of one hue everywhere, the image's mean is the pixel's: contrast and saturation together.
    hue = changed(("color",), jnp.tile(jnp.array([-0.5, 0.0, 0.5]), (MANY, 1, 2, 1)))
    hue = (hue[:, 0, 0, 2] - hue[:, 0, 0, 0]).reshape(MANY)
    for found, low, high in (
        (flat[:, 0, 0, 0], -0.5, 0.5),
        (spread[:, 0], 0.5, 1.5),
        (hue / spread[:, 0], 0.0, 2.0),  # the same keys, so the same contrast
    ):
        width = high - low
        assert low - 1e-5 <= found.min() < low + 0.02 * width
        assert high - 0.02 * width < found.max() <= high + 1e-5
        np.testing.assert_allclose(found.mean(), (low + high) / 2, atol=0.03 * width)
        np.testing.assert_allclose(found.std(), width / np.sqrt(12), atol=0.02 * width)
    draws = np.stack([flat[:, 0, 0, 0], spread[:, 0], hue / spread[:, 0]])
    np.testing.assert_allclose(np.corrcoef(draws), np.eye(3), atol=0.1)


def test_a_grey_image_stays_grey():
    grey = changed(("color",), jnp.repeat(X[..., :1], 3, axis=3))
    np.testing.assert_allclose(grey[..., 1:], grey[..., :2], atol=1e-6)
    # With one channel saturation is nothing at all: brightness and contrast, an affine map.
    one = changed(("color",), X[..., :1])
    for before, after in zip(np.asarray(X[..., 0]), one[..., 0], strict=True):
        slope, offset = np.polyfit(before.ravel(), after.ravel(), 1)
        np.testing.assert_allclose(after, slope * before + offset, atol=1e-5)
        assert 0.5 <= slope <= 1.5


@pytest.mark.parametrize(("side", "most"), [((8, 8), (1, 1)), ((4, 4), (1, 1)), ((3, 28), (1, 4))])
def test_translation_shifts_and_fills_with_zeros(side, most):
    height, width = side
    x = 1 + jax.random.uniform(KEY, (1, *side, 1))  # nowhere 0
    x = np.asarray(jnp.tile(x, (600, 1, 1, 1)))
    shifted = changed(("translation",), jnp.array(x))
    padded = np.pad(x[0], ((most[0],) * 2, (most[1],) * 2, (0, 0)))
    places = [(i, j) for i in range(2 * most[0] + 1) for j in range(2 * most[1] + 1)]
    candidates = np.stack([padded[i : i + height, j : j + width] for i, j in places])
    same = (shifted[:, None] == candidates[None]).all(axis=(2, 3, 4))
    assert (same.sum(axis=1) == 1).all()  # every one is one of the shifts, and one only
    expected = 600 / len(places)
    assert (np.abs(same.sum(axis=0) - expected) < 5 * np.sqrt(expected)).all()  # all as likely


@pytest.mark.parametrize(
    ("side", "box"), [((8, 8), (4, 4)), ((28, 28), (14, 14)), ((9, 6), (5, 3))]
)
def test_cutout_takes_half_of_each_side(side, box):
    gone = changed(("cutout",), jnp.ones((MANY, *side, 1)))[..., 0] == 0
    rows, columns = gone.any(axis=2), gone.any(axis=1)
    np.testing.assert_array_equal(gone, rows[:, :, None] & columns[:, None, :])  # a rectangle
    for hit, length in ((rows, box[0]), (columns, box[1])):
        size = hit.sum(axis=1)
        ends = np.diff(hit, axis=1, prepend=False, append=False).sum(axis=1)
        assert (ends == 2).all()  # one run
        at_edge = hit[:, 0] | hit[:, -1]
        assert (size[~at_edge] == length).all()
        assert size.max() == length
        assert size.min() == (length + 1) // 2  # the centre is always within the image
        # Centres are uniform: as published, an edge pixel goes less often than a middle one.
        places = hit.shape[1]
        centre = np.arange(places + 1 - length % 2)[:, None] - length // 2
        within = (np.arange(places) >= centre) & (np.arange(places) < centre + length)
        np.testing.assert_allclose(hit.mean(axis=0), within.mean(axis=0), atol=0.06)


def test_gradients_stop_where_pixels_went():
    def cut(x):
        return jnp.sum(APPLY(KEY, x, ("cutout",), 1.0))

    x = X + 2.0  # nowhere 0
    gone = changed(("cutout",), x) == 0
    np.testing.assert_array_equal(jax.grad(cut)(x), np.where(gone, 0.0, 1.0))

    def shifted(x):
        return jnp.sum(APPLY(KEY, x, ("translation",), 1.0))

    # A pixel that is still there counts once, one that was pushed out not at all.
    slope = np.asarray(jax.grad(shifted)(x))
    still = np.isin(np.asarray(x), changed(("translation",), x))
    assert not still.all()
    np.testing.assert_array_equal(slope, still.astype(np.float32))


def test_slopes_are_those_of_finite_differences_and_have_slopes():
    ramp = jnp.linspace(-1.0, 1.0, X.size).reshape(X.shape)

    def cost(x):
        return jnp.sum(ramp * APPLY(KEY, x, POLICY, 1.0) ** 2)

    @jax.jit
    def slopes(x):  # R1 is a slope of a slope with respect to x, through the augmentation
        def size(x):
            slope = jax.grad(cost)(x)
            return jnp.sum(slope**2), slope

        return jax.grad(size, has_aux=True)(x)

    second, slope = slopes(X)
    way = jax.random.normal(jax.random.key(5), X.shape)
    found = (cost(X + 1e-2 * way) - cost(X - 1e-2 * way)) / 2e-2
    np.testing.assert_allclose(found, jnp.sum(slope * way), rtol=2e-3)
    assert np.isfinite(second).all()
    assert np.abs(second).max() > 0


def test_an_example_depends_on_its_place_and_its_key_alone():
    whole = changed(POLICY, X, 0.7)
    np.testing.assert_array_equal(changed(POLICY, X, 0.7), whole)
    assert (changed(POLICY, X, 0.7, jax.random.key(9)) != whole).any()
    np.testing.assert_allclose(changed(POLICY, X[:4], 0.7), whole[:4], atol=1e-6)
    other = changed(POLICY, X.at[0].set(0.3), 0.7)
    np.testing.assert_array_equal(other[1:], whole[1:])
    # The same image at six places is six different images.
    same = changed(POLICY, jnp.tile(X[:1], (6, 1, 1, 1)))
    assert len(np.unique(same.reshape(6, -1), axis=0)) == 6


def test_what_a_part_draws_does_not_depend_on_the_others():
    x = jnp.ones((50, 8, 8, 3))
    alone = changed(("cutout",), x) == 0
    after = changed(("color", "cutout"), x) == 0
    np.testing.assert_array_equal(alone, after)


def test_a_traced_probability_is_how_often():
    x, before = jnp.ones((MANY, 4, 4, 1)), APPLY._cache_size()
    for p in (0.0, 0.3, 1.0):
        out = changed(("color", "cutout"), x, jnp.float32(p))
        cut = (out == 0).any(axis=(1, 2, 3))
        colored = ((out != 0) & (out != 1)).any(axis=(1, 2, 3))
        # Each by its own coin: both together as often as chance has it.
        for found, expected in ((cut, p), (colored, p), (cut & colored, p**2)):
            slack = 4 * np.sqrt(expected * (1 - expected) / MANY) + 1e-6
            assert abs(found.mean() - expected) <= slack
        if p == 0.3:  # and the coin says nothing of what is drawn: the brightness is U(-.5, .5)
            brightness = out[colored].max(axis=(1, 2, 3)) - 1
            np.testing.assert_allclose(brightness.mean(), 0.0, atol=0.05)
    assert APPLY._cache_size() == before + 1


def test_the_probability_follows_the_sign_of_the_real_logits():
    def adapted(p, logits):
        return float(
            augment.adapted(
                jnp.float32(p), jnp.array(logits), target=0.6, images=500.0, batch_size=5
            )
        )

    sure, unsure = [3.0, 1e4, 0.1, 2.0, 9.0], [1.0, 1.0, -1.0, -1e4, 1.0]  # r_t = 1 and 0.2
    np.testing.assert_allclose(adapted(0.5, sure), 0.51, rtol=1e-6)
    np.testing.assert_allclose(adapted(0.5, unsure), 0.49, rtol=1e-6)
    # The sign counts, not the size: 3 of 5 at +1 and 2 at -1 whatever their logits.
    np.testing.assert_allclose(adapted(0.5, [1e4, 1e4, 1e4, -0.1, -0.1]), 0.49, rtol=1e-6)
    assert adapted(0.0, unsure) == 0.0
    assert adapted(0.995, sure) == 1.0
    np.testing.assert_allclose(adapted(0.5, np.reshape(sure[:4], (1, 2, 2))), 0.51, rtol=1e-6)
    # From 0 to 1 takes `images`.
    p = 0.0
    for _ in range(500 // 5):
        p = adapted(p, sure)
    np.testing.assert_allclose(p, 1.0, atol=1e-5)
