"""What a GAN draws and is evaluated by, and the settings that it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import specs
import toys
from gan_toys import SCALE, SHAPE, SHIFT, SPEC, config, digits, linear, new, sample, small

from aigc_jax.gan import family as families
from aigc_jax.runs import pictures
from aigc_jax.sampling.driver import Driver, program
from aigc_jax.training.sharding import make_mesh
from configs import gan_mixture


@pytest.fixture(scope="module")
def plain():
    """(a small unconditional GAN, its variables)."""
    made = small()
    return made, new(made)


# --- Samples -----------------------------------------------------------------------------------


def test_samples_are_drawn_with_the_batch_statistics_of_their_own_parameters(plain):
    made, variables = plain
    scaled = jax.tree.map(lambda x: 3.0 * x, variables.params["generator"])
    variables = variables._replace(params={**variables.params, "generator": scaled}, prepared={})
    drawing = made.family().drawing
    assert drawing.prepared_as == "standing statistics of 512 latents"
    prepared = drawing.prepare(variables, None)
    assert prepared.keys() == {"generator"}
    shapes = jax.tree.map(jnp.shape, (prepared, {"generator": variables.extra["generator"]}))
    assert shapes[0] == shapes[1]
    stats = prepared["generator"]["norm_0"]
    # Of the first layer's outputs, which are linear in z ~ N(0, I).
    kernel = np.asarray(scaled["in"]["kernel"], np.float64)
    channels = stats["mean"].shape[0]
    variance = np.square(kernel).sum(0).reshape(-1, channels).mean(0)
    np.testing.assert_allclose(stats["var"], variance, rtol=0.2)
    np.testing.assert_allclose(stats["mean"], 0.0, atol=0.2 * np.sqrt(variance).max())
    # They do not depend on those of training, nor on what was prepared before.
    extra = {**variables.extra, "generator": jax.tree.map(jnp.ones_like, prepared["generator"])}
    assert toys.same(drawing.prepare(variables._replace(extra=extra), None), prepared)
    # Samples, and what is evaluated, take what was prepared, else the statistics of training.
    keys = jax.random.split(jax.random.key(2), 4)
    ready = sample(made, variables._replace(prepared=prepared), keys, {})
    assert float(jnp.abs(ready - sample(made, variables, keys, {})).max()) > 1e-3
    same = variables._replace(extra={**variables.extra, **prepared})
    np.testing.assert_array_equal(ready, sample(made, same, keys, {}))


@pytest.mark.parametrize("name", ["mlp", "r3gan"])
def test_a_generator_without_batch_statistics_is_not_prepared(name):
    setting = config().to_dict()
    if name == "mlp":
        setting["network"] = config("mlp").network.to_dict()
        setting["network"]["generator"]["hidden"] = (8,)
    else:
        shared = {"name": "r3gan", "widths": (4, 4), "blocks": (1, 1), "cardinality": (2, 2)}
        setting["network"] = {"generator": shared | {"latent": 3}, "discriminator": shared}
    setting["network"]["discriminator"].pop("norm", None)
    drawing = families.build(setting, SPEC).drawing
    assert (drawing.prepare, drawing.prepared_as) == (None, "")


def test_sample_i_depends_on_key_and_label_i_alone():
    made = small(network__discriminator__conditioning="projection")
    variables = new(made, prepare=False)
    params = jax.tree.map(
        lambda x: x + 0.1 * jax.random.normal(jax.random.key(1), x.shape), variables.params
    )
    variables = variables._replace(params=params)
    drawing = made.family().drawing
    assert drawing.conditions == SPEC.conditions
    variables = variables._replace(prepared=drawing.prepare(variables, None))
    run = jax.jit(program(drawing))
    keys, label = jax.random.split(jax.random.key(2), 6), jnp.arange(6)
    found = run(variables, keys, {"label": label})
    assert found.shape == (6, 8, 8, 1)
    assert float(jnp.abs(found).max()) <= 1
    part = run(variables, keys[3:5], {"label": label[3:5]})
    np.testing.assert_allclose(part, found[3:5], atol=1e-6)
    # The third and the fourth at other places, beside others.
    order = np.array([3, 4, 3, 0, 0, 1])
    other = jax.random.split(jax.random.key(3), 6)
    beside = run(variables, jnp.concatenate([keys[3:5], other[2:]]), {"label": label[order]})
    np.testing.assert_allclose(beside[:2], found[3:5], atol=1e-6)
    assert float(jnp.abs(beside[2] - found[3]).max()) > 1e-4
    other = run(variables, keys, {"label": label[::-1]})
    assert float(jnp.abs(found - other).max()) > 1e-4


def test_truncated_samples_stay_within_it():
    made = linear(truncation=0.5)
    keys = jax.random.split(jax.random.key(0), 200)
    z = (np.asarray(sample(made, new(made), keys, {})) - SHIFT) / SCALE
    assert 0.45 < np.abs(z).max() <= 0.5 + 1e-5


@pytest.mark.parametrize("prior", ["normal", "uniform"])
def test_a_path_leads_from_sample_to_sample_within_the_prior(prior):
    made = linear(prior=prior)
    variables = new(made)
    variables.params["generator"]["in"]["kernel"] = 0.01 * jnp.ones((4, 4))  # nothing is clipped
    keys = jax.random.split(jax.random.key(0), 3)
    driver = Driver(made.family().drawing, "cpu")
    frames = driver.frames(variables, keys, {}, 5)
    assert frames.shape == (5, 3, *SHAPE)
    np.testing.assert_allclose(frames[0], driver(variables, keys, {}), atol=1e-6)
    z = (np.asarray(frames).reshape(5, 3, 4) - SHIFT) / 0.01
    middle = z[2] - (z[0] + z[4]) / 2
    if prior == "uniform":
        np.testing.assert_allclose(middle, 0.0, atol=1e-3)
        assert np.abs(z).max() <= 1.001
    else:  # farther out than the straight line
        assert (np.linalg.norm(z[2], axis=1) > np.linalg.norm((z[0] + z[4]) / 2, axis=1)).all()


def test_figures_show_ways_along_directions(plain):
    made, variables = plain
    found = jax.jit(made.family().views.figures)(
        variables, jax.random.split(jax.random.key(0), 16), {}
    )
    ((caption, sheet),) = found.items()
    assert caption.startswith("Directions: ")
    assert sheet.shape == (8, 10, 8, 8, 1)
    assert np.isfinite(sheet).all()


def of_points(**changes):
    setting = gan_mixture.get_config("smoke")
    with setting.unlocked():
        setting.update_from_flattened_dict(changes)
    return families.from_config(setting, specs.points())


def test_points_of_the_plane_are_not_clipped_and_have_no_figures():
    made = of_points()
    variables = new(made)
    variables.params["generator"]["out"]["bias"] = jnp.array([5.0, -7.0])
    points = sample(made, variables, jax.random.split(jax.random.key(0), 50), {})
    assert points.shape == (50, 2)
    np.testing.assert_allclose(points.mean(0), [5.0, -7.0], atol=2.0)
    assert pictures.figures(made.family(), variables, make_mesh(), 0, "points") == []


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"gan.augment.policy": ("color",)}, "augment.policy changes images, not .* 'points'"),
        ({"network.discriminator": {"name": "dcgan"}}, "'dcgan' takes images; data .* need mlp"),
    ],
)
def test_what_is_of_images_only_is_refused_for_points(changes, match):
    setting = gan_mixture.get_config("smoke").to_dict()
    for key, value in changes.items():
        *path, last = key.split(".")
        part = setting
        for name in path:
            part = part[name]
        part[last] = value
    with pytest.raises(ValueError, match=match):
        families.build(setting, specs.points())


def test_a_test_image_is_evaluated_alone(plain):
    made, variables = plain
    batch = {"x": jnp.asarray(digits()["x"][0], jnp.float32) / 127.5 - 1}
    evaluate = jax.jit(made.evaluate)
    found = evaluate(variables, batch, jax.random.key(0))
    assert {name: value.shape for name, value in found.items()} == {
        "logit_real": (16,),
        "logit_fake": (16,),
    }
    half = evaluate(variables, {"x": batch["x"][:8]}, jax.random.key(0))
    np.testing.assert_allclose(half["logit_real"], found["logit_real"][:8], atol=1e-5)
    beside = {"x": batch["x"].at[8:].set(0.5)}
    half = evaluate(variables, beside, jax.random.key(0))
    np.testing.assert_allclose(half["logit_real"][:8], found["logit_real"][:8], atol=1e-5)
    assert float(jnp.abs(half["logit_real"][8:] - found["logit_real"][8:]).min()) > 0


# --- Errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"gan__loss": "cosine"}, r"gan\.loss is one of minimax, .*not 'cosine'"),
        ({"gan__penalty__name": "r3"}, r"gan\.penalty\.name is one of none, .*not 'r3'"),
        ({"gan__penalty__name": "r1"}, r"batch norm mixes.*norm to 'none' or 'spectral'"),
        ({"gan__penalty__name": "gradient_penalty"}, "batch norm mixes"),
        ({"gan__prior": "cauchy"}, r"gan\.prior is one of normal, uniform, not 'cauchy'"),
        (
            {"gan__augment__policy": ("blur",)},
            r"gan\.augment\.policy is .* of one of color, translation, cutout, not \('blur',\)",
        ),
        (
            {
                "gan__augment__policy": ("color",),
                "gan__augment__target": 0.6,
                "gan__decay_steps": 9,
            },
            r"gan\.augment\.target .*decay_steps must be 0",
        ),
        ({"sampling__truncation": 1.0, "gan__prior": "uniform"}, "of gan.prior='normal' only"),
        ({"gan__loss": "relativistic", "gan__generator_batch": 2}, "pairs examples"),
        ({"network__generator__name": "unet"}, r"generator\.name is one of mlp, .*not 'unet'"),
        ({"network__discriminator__conditioning": "labels"}, "conditioning is one of none, proj"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(changes, match):
    with pytest.raises(ValueError, match=match):
        small(**changes)


@pytest.mark.parametrize("conditioning", ["projection", "concat", "classifier"])
def test_conditioning_needs_data_with_labels(conditioning):
    unlabelled = SPEC._replace(conditions={})
    with pytest.raises(ValueError, match="needs data with labels; this data set has none"):
        small(spec=unlabelled, network__discriminator__conditioning=conditioning)


def test_more_frozen_layers_than_there_are_are_refused():
    with pytest.raises(ValueError, match=r"gan\.frozen lies in 0\.\.1"):
        small(gan__frozen=2).family()
