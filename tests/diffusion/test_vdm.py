"""Variational diffusion models: the bound as a loss, and the ends that it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import SAMPLING, Formula
from normal import STD, denoiser

from aigc_jax.diffusion import family as families
from aigc_jax.diffusion import process as gaussian
from aigc_jax.family import Variables, View
from aigc_jax.networks.fourier import FourierUNet, fourier_features
from aigc_jax.networks.mlp import MLP
from aigc_jax.networks.unet import UNet

ENDS = {"gamma_min": -4.0, "gamma_max": 1.0}
SETTINGS = {
    "process": {"name": "log_snr", **ENDS},
    "prediction": "x0",
    "times": {"name": "uniform", "stratified": True},
    "weighting": {"name": "likelihood"},
    "ends": "learned",
    "sampling": {**SAMPLING, "clip": False},
    "of_bytes": False,
}
EXACT = denoiser(gaussian.LogSNR(**ENDS), (0.0,))


def made(network=None, shape=(4,), **changes):
    return families.diffusion(network or Formula(EXACT), shape, **{**SETTINGS, **changes})


def params_of(*ends):
    return {"net": {"ends": jnp.asarray(ends, jnp.float32)}}


def view(params):
    return View(params, params, {}, {}, jnp.int32(0))


def data(n, dims=4):
    return {"x": STD * jax.random.normal(jax.random.key(5), (n, dims))}


def closed_form(low, high):
    """The bound of normal data in nats a number, by exact denoising: its three terms."""
    alpha2, sigma2 = jax.nn.sigmoid(-high), jax.nn.sigmoid(high)
    prior = 0.5 * (alpha2 * STD**2 + sigma2 - 1 - jnp.log(sigma2))
    reconstruction = 0.5 * (jnp.log(2 * jnp.pi) + low + 1)
    ratio = (1 + STD**2 * jnp.exp(-low)) / (1 + STD**2 * jnp.exp(-high))
    return prior, reconstruction, 0.5 * jnp.log(ratio)


@pytest.mark.parametrize("ends", [(0.0, 0.0), (-1.0, 2.0)])
def test_the_loss_and_its_slope_in_the_ends_are_those_of_the_bound(ends):
    model, batch = made(), data(50_000)

    @jax.jit
    def found(params):
        value, (metrics, _) = model.loss(view(params), batch, jax.random.key(0))
        return value, metrics

    (value, metrics), slope = jax.value_and_grad(found, has_aux=True)(params_of(*ends))
    low = jnp.float32(ENDS["gamma_min"] + ends[0])
    high = low + 5.0 + ends[1]
    assert (metrics["gamma_low"], metrics["gamma_high"]) == (low, high)
    parts = closed_form(low, high)
    for name, expected in zip(("prior", "reconstruction", "diffusion"), parts, strict=True):
        np.testing.assert_allclose(metrics[f"bits_{name}"] * np.log(2), expected, atol=0.01)
    np.testing.assert_allclose(value * np.log(2), sum(parts), atol=0.01)

    def total(shift):
        start = ENDS["gamma_min"] + shift[0]
        return sum(closed_form(start, start + 5.0 + shift[1]))

    # The slope of a term is up to 0.5: here they nearly cancel.
    expected = jax.grad(total)(jnp.asarray(ends))
    np.testing.assert_allclose(slope["net"]["ends"] * np.log(2), expected, atol=0.01)


def test_a_level_means_the_same_to_the_network_wherever_the_ends_are():
    seen = []

    def of(x, t, label, train):
        seen.append((np.asarray(x), np.asarray(t)))
        return 0 * x

    model = made(Formula(of))
    batch = {"x": jnp.zeros((200, 500))}
    model.loss(view(params_of(1.0, -3.0)), batch, jax.random.key(0))
    ((x, t),) = seen
    # From -3 to -1 of a process from -4 to 1.
    assert (t.min(), t.max()) == pytest.approx((200, 600), abs=5)
    sigma = model.process.coefficients(t / 1000)[1]
    np.testing.assert_allclose(x.std(axis=1), sigma, rtol=0.2)


def test_the_evaluator_of_the_bound_takes_the_learned_ends_and_samples_the_processs():
    model, batch = made(), data(2000)
    found = model.likelihood.bound(Variables(params_of(-1.0, 2.0), {}), batch, jax.random.key(0))
    for name, expected in zip(
        ("prior", "reconstruction", "diffusion"), closed_form(-5.0, 2.0), strict=True
    ):
        np.testing.assert_allclose(found[f"bits_{name}"].mean() * np.log(2), expected, atol=0.03)
    one = model.evaluate(Variables(params_of(-1.0, 2.0), {}), batch, jax.random.key(1))
    np.testing.assert_allclose(one["loss"].mean(), found["bits_per_dim"].mean(), atol=0.05)
    assert model.solver.table["at"].t[0] == 1.0


def test_the_ends_lie_beside_the_network_and_learn_with_it():
    model = made(MLP(2, width=16, depth=1), (2,))
    params, extra = model.init(jax.random.key(0))
    assert extra == {}
    np.testing.assert_array_equal(params["net"]["ends"], [0.0, 0.0])
    loss = jax.jit(jax.grad(lambda p: model.loss(view(p), data(64, 2), jax.random.key(0))[0]))
    slope = loss(params)["net"]
    assert np.all(slope["ends"] != 0)
    assert np.any(slope["output"]["kernel"] != 0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"process": {"name": "vp"}}, "needs diffusion.process.name='log_snr', not 'vp'"),
        ({"weighting": {"name": "simple"}}, "needs diffusion.weighting.name='likelihood', not"),
        ({"times": {"name": "uniform", "shift": 3.0}}, "needs diffusion.times.shift=1.0, not 3.0"),
        ({"pairing": "optimal_transport"}, "needs diffusion.pairing='independent', not"),
    ],
)
def test_settings_that_have_no_part_in_the_bound_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        made(**changes)


def test_fourier_features_tell_neighbouring_bytes_apart():
    x = (np.arange(256) / 127.5 - 1).astype(np.float32)
    found = np.asarray(fourier_features(x[:, None]))
    assert found.shape == (256, 4)
    steps = np.abs(np.diff(found, axis=0)).max(axis=1)
    assert steps.min() > 0.5
    np.testing.assert_allclose(found[:, 0], np.sin(128 * np.pi * x.astype(float)), atol=1e-3)
    np.testing.assert_allclose(found[:, 3], np.cos(256 * np.pi * x.astype(float)), atol=1e-3)


def test_a_fourier_unet_is_a_unet_of_the_image_and_its_features():
    settings = {"out_channels": 1, "width": 8, "multipliers": (1,), "blocks": 1, "groups": 4}
    net, plain = FourierUNet(**settings), UNet(**settings)
    x, t = jax.random.normal(jax.random.key(0), (2, 8, 8, 1)), jnp.array([3.0, 500.0])
    params = net.init(jax.random.key(1), x, t)
    params = jax.tree.map(lambda a: a + 0.1, params)
    both = jnp.concatenate([x, fourier_features(x)], axis=-1)
    found = net.apply(params, x, t)
    np.testing.assert_allclose(found, plain.apply(params, both, t), rtol=1e-5, atol=1e-5)
