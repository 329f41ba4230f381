"""What a GAN draws, and the settings that it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from gan_toys import SHAPE, SPEC, config, digits, linear, small

from aigc_jax import build
from aigc_jax.data.datasets import DataSpec

# --- Samples -----------------------------------------------------------------------------------


def test_samples_are_drawn_with_the_batch_statistics_of_their_own_parameters():
    made = small()
    params, extra = made.init(jax.random.key(0))
    params["generator"] = jax.tree.map(lambda x: 3.0 * x, params["generator"])
    settled = made.settle(params, extra)
    assert settled.keys() == extra.keys() == {"generator"}
    stats = settled["generator"]["norm_0"]
    # Of the first layer's outputs, which are linear in z ~ N(0, I).
    kernel = np.asarray(params["generator"]["in"]["kernel"], np.float64)
    channels = stats["mean"].shape[0]
    variance = np.square(kernel).sum(0).reshape(-1, channels).mean(0)
    np.testing.assert_allclose(stats["var"], variance, rtol=0.2)
    np.testing.assert_allclose(stats["mean"], 0.0, atol=0.2 * np.sqrt(variance).max())
    assert toys.same(made.settle(params, settled)["generator"], settled["generator"])


def test_sample_i_depends_on_key_and_label_i_alone():
    made = small(**{"network__discriminator__conditioning": "projection"})
    params, extra = made.init(jax.random.key(0))
    params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(1), x.shape), params)
    extra = made.settle(params, extra)
    keys, label = jax.random.split(jax.random.key(2), 6), jnp.arange(6)
    found = made.sample(params, extra, keys, {"label": label})
    assert found.shape == (6, 8, 8, 1)
    assert float(jnp.abs(found).max()) <= 1
    part = made.sample(params, extra, keys[3:5], {"label": label[3:5]})
    np.testing.assert_allclose(part, found[3:5], atol=1e-6)
    other = made.sample(params, extra, keys, {"label": label[::-1]})
    assert float(jnp.abs(found - other).max()) > 1e-4


def test_truncated_samples_stay_within_it():
    made = linear(truncation=0.5)
    params, extra = made.init(jax.random.key(0))
    keys = jax.random.split(jax.random.key(0), 200)
    z = (np.asarray(made.sample(params, extra, keys, {})) - 0.2) / 0.3
    assert 0.45 < np.abs(z).max() <= 0.5 + 1e-5


@pytest.mark.parametrize("prior", ["normal", "uniform"])
def test_a_path_leads_from_sample_to_sample_within_the_prior(prior):
    made = linear(prior=prior)
    params, extra = made.init(jax.random.key(0))
    params["generator"]["in"]["kernel"] = 0.01 * jnp.ones((4, 4))  # nothing is clipped
    keys = jax.random.split(jax.random.key(0), 3)
    frames = made.trajectory(params, extra, keys, {}, 5)
    assert frames.shape == (5, 3, *SHAPE)
    np.testing.assert_allclose(frames[0], made.sample(params, extra, keys, {}), atol=1e-6)
    z = (np.asarray(frames).reshape(5, 3, 4) - 0.2) / 0.01
    middle = z[2] - (z[0] + z[4]) / 2
    if prior == "uniform":
        np.testing.assert_allclose(middle, 0.0, atol=1e-3)
        assert np.abs(z).max() <= 1.001
    else:  # farther out than the straight line
        assert (np.linalg.norm(z[2], axis=1) > np.linalg.norm((z[0] + z[4]) / 2, axis=1)).all()


def test_pictures_show_ways_between_samples_and_along_directions():
    made = small()
    params, extra = made.init(jax.random.key(0))
    found = made.pictures(params, extra, jax.random.split(jax.random.key(0), 16), {})
    assert {caption.split(":")[0] for caption in found} == {"Interpolations", "Directions"}
    for sheet in found.values():
        assert sheet.shape == (8, 10, 8, 8, 1)
        assert np.isfinite(sheet).all()


def test_points_of_the_plane_are_not_clipped_and_have_no_pictures():
    network = {"name": "mlp", "hidden": (8,)}
    setting = config().to_dict()
    setting["network"] = {
        "generator": network | {"latent": 2, "output": "linear"},
        "discriminator": network | {"conditioning": "none"},
    }
    made = build.build(setting, DataSpec((1, 1, 2), 0, {}))
    params, extra = made.init(jax.random.key(0))
    params["generator"]["out"]["bias"] = jnp.array([5.0, -7.0])
    points = made.sample(params, extra, jax.random.split(jax.random.key(0), 50), {})
    np.testing.assert_allclose(points.mean((0, 1, 2)), [5.0, -7.0], atol=2.0)
    assert made.pictures is None


def test_a_test_image_is_judged_alone():
    made = small()
    params, extra = made.init(jax.random.key(0))
    batch = {"image": jnp.asarray(digits()["image"][0], jnp.float32) / 127.5 - 1}
    found = made.evaluate(params, extra, batch, jax.random.key(0))
    assert {name: value.shape for name, value in found.items()} == {
        "logit_real": (16,),
        "logit_fake": (16,),
    }
    half = made.evaluate(params, extra, {"image": batch["image"][:8]}, jax.random.key(0))
    np.testing.assert_allclose(half["logit_real"], found["logit_real"][:8], atol=1e-5)


# --- Errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"gan__loss": "cosine"}, r"gan\.loss is one of minimax, .*not 'cosine'"),
        ({"gan__penalty": "r3"}, r"gan\.penalty is one of none, .*not 'r3'"),
        ({"gan__penalty": "r1"}, r"batch norm mixes.*norm to 'none' or 'spectral'"),
        ({"gan__penalty": "gradient_penalty"}, "batch norm mixes"),
        ({"gan__critics": 0}, "critics and gan.generator_batch are at least 1"),
        ({"gan__prior": "cauchy"}, r"gan\.prior is normal or uniform, not 'cauchy'"),
        ({"gan__augment": ("blur",)}, "made of color, translation, cutout, not 'blur'"),
        ({"gan__augment_probability": 1.5}, r"lies in \[0, 1\], not 1\.5"),
        ({"gan__augment_probability_end": -1.0}, r"_end lies in \[0, 1\], not -1\.0"),
        ({"gan__decay_steps": -1}, r"gan\.decay_steps is at least 0, not -1"),
        (
            {"gan__augment": ("color",), "gan__augment_target": 0.6, "gan__decay_steps": 9},
            r"decay_steps must be 0",
        ),
        ({"sampling__truncation": 1.0, "gan__prior": "uniform"}, "of gan.prior='normal' only"),
        ({"gan__loss": "relativistic", "gan__generator_batch": 2}, "pairs images"),
        ({"network__generator__name": "unet"}, r"generator\.name is one of mlp, .*not 'unet'"),
    ],
)
def test_a_setting_that_cannot_be_is_told(changes, match):
    with pytest.raises(ValueError, match=match):
        small(**changes)


@pytest.mark.parametrize("conditioning", ["projection", "concat", "classifier"])
def test_labels_are_asked_of_data_that_have_them(conditioning):
    setting = config(network__discriminator__conditioning=conditioning)
    with pytest.raises(ValueError, match="needs data with labels; this data set has none"):
        build.build(setting, SPEC._replace(num_classes=0))


def test_more_frozen_layers_than_there_are_are_refused():
    with pytest.raises(ValueError, match=r"gan\.frozen lies in 0\.\.1"):
        jax.eval_shape(small(gan__frozen=2).init, jax.random.key(0))
