"""How a VAE is judged, and what it shows of its codes."""

import functools
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import specs
from vae_toys import (
    DIGITS,
    config,
    floats,
    keys_of,
    mlp,
)

from aigc_jax import build
from aigc_jax.data import datasets
from aigc_jax.family import Variables
from aigc_jax.runs import examples, pictures
from aigc_jax.sampling.driver import Driver, draw
from aigc_jax.training import sharding
from aigc_jax.vae import posterior
from configs import hvae_cifar, vae_digits, vae_mnist, vqvae_cifar


@pytest.fixture(scope="module")
def digits():
    data = datasets.load("digits")
    return examples.RealData("digits", data, "train", "test", batch_size=80)


def placed(made, mesh):
    """New variables on the devices."""
    return jax.device_put(
        Variables(*jax.jit(made.init)(jax.random.key(0))), sharding.replicated(mesh)
    )


def test_codes_are_of_every_image_once_whatever_the_batch(digits):
    mesh, made = sharding.make_mesh(), build.build(config(), digits.spec)
    variables = placed(made, mesh)
    # 296 = 3 x 80 + 56: the last batch is filled up.
    found = examples.codes(made, variables, examples.examples(digits, mesh))
    assert found.keys() == {"mean", "logvar"}
    assert all(array.shape == (296, 3) for array in found.values())
    every = digits.dataset.sources["test"].fetch(np.arange(296))
    expected = made.codec.encode(variables, floats(every))
    for name, array in found.items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-4, atol=1e-5)
    counted, warning = made.codec.diagnose(found)
    assert counted["active_units"] == np.sum(found["mean"].var(axis=0) > 0.01)
    assert isinstance(warning, str)


def test_what_is_drawn_from_a_mixture_is_fitted_to_training_images(digits):
    setting = config(sampling__prior="mixture", sampling__components=3)
    mesh, made = sharding.make_mesh(), build.build(setting, digits.spec)
    variables = placed(made, mesh)
    codes = partial(examples.training_codes, data=digits, mesh=mesh)
    fitted = examples.prepare(made, variables, mesh, codes)
    assert fitted.prepared["mixture"]["means"].shape == (3, 3)
    assert fitted.params is variables.params
    means = examples.training_codes(made, variables, digits, mesh)["mean"]
    mixture = jax.device_get(fitted.prepared["mixture"])
    centre = np.exp(mixture["log_weights"]) @ mixture["means"]
    np.testing.assert_allclose(centre, means.mean(axis=0), atol=1e-3)
    batches = draw(Driver(made.drawing, "cpu"), fitted, mesh, seed=0, count=20, batch_size=16)
    assert np.concatenate(list(batches)).shape == (20, 8, 8, 1)
    assert examples.prepare(mlp(), variables, mesh, codes) is variables


def test_a_collapsed_model_is_warned_of_and_a_living_one_is_not():
    rng = np.random.default_rng(0)
    shape = (200, 2, 2, 1)
    dead = {"mean": np.zeros(shape, np.float32), "logvar": np.zeros(shape, np.float32)}
    found, warning = posterior.diagnose(dead)
    assert found["active_units"] == 0
    np.testing.assert_allclose(found["largest_kl"], 0, atol=1e-6)
    np.testing.assert_allclose(found["mutual_information"], 0, atol=1e-5)
    assert warning.startswith("Posterior collapse: none of 4 latent dimensions")
    alive = {
        "mean": rng.normal(size=shape).astype(np.float32),
        "logvar": np.full(shape, -20, np.float32),
    }
    found, warning = posterior.diagnose(alive)
    assert warning == ""
    assert found["active_units"] == 4
    np.testing.assert_allclose(found["mutual_information"], np.log(200), rtol=1e-3)  # all it can be
    np.testing.assert_allclose(found["aggregate_variance"], 1, atol=0.15)


def of_likelihood(name, made=config, **changes):
    setting = made(**changes)
    with setting.unlocked():
        setting.vae.likelihood.name = name
    return setting


CIFAR = specs.images((32, 32, 3), 10)


@pytest.mark.parametrize(
    ("setting", "spec", "reported"),
    [
        (of_likelihood("gaussian_learned"), DIGITS, True),
        (of_likelihood("bernoulli", vae__binarise="threshold"), DIGITS, True),
        (of_likelihood("bernoulli"), DIGITS, False),  # a cross entropy of grey pixels
        (of_likelihood("gaussian_optimal"), DIGITS, False),  # no likelihood
        (of_likelihood("gaussian"), specs.points(), False),  # no bytes
        (hvae_cifar.get_config("smoke"), CIFAR, True),
        (of_likelihood("bernoulli", lambda: hvae_cifar.get_config("smoke")), CIFAR, False),
        (of_likelihood("gaussian_optimal", lambda: vqvae_cifar.get_config("smoke")), CIFAR, False),
    ],
)
def test_bits_per_dimension_are_reported_where_they_count_an_images_bytes(setting, spec, reported):
    made = build.build(setting, spec)
    variables = jax.eval_shape(lambda key: Variables(*made.init(key)), jax.random.key(0))
    batch = {"x": jax.ShapeDtypeStruct((2, *spec.shape), jnp.float32)}
    found = jax.eval_shape(made.evaluate, variables, batch, jax.random.key(0))
    assert ("bits_per_dim" in found) == reported
    assert {"neg_elbo", "kl", "distortion"} <= found.keys()


def test_every_variant_of_the_configs_can_be_built():
    spec = {vae_digits: DIGITS, vae_mnist: specs.images((28, 28, 1), 10)}
    for module, variant in itertools.chain.from_iterable(
        [(module, name) for name in ("", *module.VARIANTS)] for module in spec
    ):
        made = build.build(module.get_config(variant), spec[module])
        params, _ = jax.eval_shape(made.init, jax.random.key(0))
        assert params.keys() == {"net"}, variant


def test_figures_show_ways_between_samples_and_what_each_number_does(tmp_path):
    keys = jax.random.split(jax.random.key(0), 16)
    made = mlp(network__latent=2)
    variables = Variables(*jax.jit(made.init)(jax.random.key(1)))
    figures = jax.jit(made.views.figures)(variables, keys, {})
    found = {caption.split(":")[0]: images for caption, images in figures.items()}
    shapes = {name: images.shape for name, images in found.items()}
    assert shapes == {
        "Traversals": (2, 10, 8, 8, 1),
        "Manifold": (15, 15, 8, 8, 1),
    }
    ends = Driver(made.drawing, "cpu")(variables, keys, {})
    ways = jax.jit(functools.partial(pictures.interpolations, made.drawing))(variables, keys, {})
    assert ways.shape == (8, 10, 8, 8, 1)
    np.testing.assert_allclose(ways[:, 0], ends[:8], atol=1e-5)
    np.testing.assert_allclose(ways[:, -1], ends[8:], atol=1e-5)
    of = made, variables, sharding.make_mesh()
    shown = pictures.figures(*of, 0, "image")
    assert [p.word for p in shown] == ["interpolations", "manifold", "traversals"]
    saved = pictures.save(shown, tmp_path, "a")
    assert set(pictures.figure_paths(*of, tmp_path, "a")) == {*saved.values()}
    effect = np.abs(found["Traversals"][:, -1] - found["Traversals"][:, 0]).sum((1, 2, 3))
    assert effect[0] >= effect[1] > 0
    middle = made.codec.decode(variables, jnp.zeros((1, 2)), {})
    np.testing.assert_allclose(found["Manifold"][7, 7], middle[0], atol=1e-5)


def test_a_vae_of_points_draws_points():
    made = build.build(config(vae__likelihood__name="gaussian"), specs.points())
    variables = Variables(*jax.jit(made.init)(jax.random.key(0)))
    batch = {"x": jnp.linspace(-1, 1, 16).reshape(8, 2)}
    key, keys = jax.random.key(0), keys_of(4)
    assert jax.eval_shape(made.evaluate, variables, batch, key)["neg_elbo"].shape == (8,)
    assert Driver(made.drawing, "cpu")(variables, keys, {}).shape == (4, 2)
    figures = jax.eval_shape(made.views.figures, variables, keys, {})
    assert {images.shape for images in figures.values()} == {(3, 10, 2)}
    assert pictures.figures(made, variables, sharding.make_mesh(), 0, "points") == []
