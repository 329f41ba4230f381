"""Variational diffusion models: the bound as a loss, and the ends that it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import SAMPLING, Formula
from normal import STD, denoiser

from aigc_jax.diffusion import family as families
from aigc_jax.diffusion import process as gaussian
from aigc_jax.diffusion import vdm
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


def params_of(*ends, **schedule):
    return {"net": {"ends": jnp.asarray(ends, jnp.float32), **schedule}}


def bent(seed=0):
    """A schedule far from a line, its weights of any sign."""
    rng = np.random.default_rng(seed)
    random = {k: rng.normal(size=a.shape).astype(np.float32) for k, a in vdm.schedule().items()}
    # Units that turn anywhere within 0..1, and outweigh the straight part.
    random |= {"kernel_1": np.float32(-3.0), "bias_1": np.float32(-1.5)}
    random |= {name: 20 * random[name] for name in ("kernel_2", "bias_2")}
    return random


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


@pytest.mark.parametrize(("ends", "schedule"), [((0.0, 0.0), "linear"), ((-1.0, 2.0), "monotone")])
def test_the_loss_and_its_slope_in_the_ends_are_those_of_the_bound(ends, schedule):
    """Of a schedule that is bent between them too: the bound does not depend on it."""
    model, batch = made(schedule=schedule), data(50_000)
    own = {"schedule": bent()} if schedule == "monotone" else {}

    @jax.jit
    def found(params):
        value, (metrics, _) = model.loss(view(params), batch, jax.random.key(0))
        return value, metrics

    (value, metrics), slope = jax.value_and_grad(found, has_aux=True)(params_of(*ends, **own))
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


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_a_schedule_rises_from_0_to_1_whatever_its_weights_are(seed):
    weights = vdm.schedule() if seed is None else bent(seed)
    t = np.linspace(0, 1, 201, dtype=np.float32)
    share, slope = jax.jit(vdm.share)(weights, t)
    np.testing.assert_allclose(share[jnp.array([0, -1])], [0, 1], atol=1e-4)
    assert np.all(np.diff(share) > 0)
    trapezes = np.cumsum((slope[1:] + slope[:-1]) / 2 * np.diff(t))
    np.testing.assert_allclose(share[1:], trapezes, atol=0.002)
    line = np.abs(share - t).max()
    assert line < 0.03 if seed is None else line > 0.05


def test_a_schedule_learns_the_squared_term_and_so_varies_less():
    """The gradient against finite differences; twenty steps along it, and the bound stays."""
    model, batch = made(schedule="monotone"), data(4096)
    params = params_of(0.0, 0.0, schedule=vdm.schedule())

    @jax.jit
    def terms(weights, key):
        t_key, key = jax.random.split(key)
        t = model.times.train(t_key, 4096)
        own = params_of(0.0, 0.0, schedule=weights)
        return model.bits(own, batch["x"], None, t, key)["bits_diffusion"]

    def square(weights, key):
        return jnp.mean(terms(weights, key) ** 2)

    slope_of = jax.jit(lambda p, key: jax.grad(lambda q: terms(q, key).mean())(p))
    weights, key = params["net"]["schedule"], jax.random.key(3)
    slope = slope_of(weights, key)
    along = {"kernel_2": jnp.linspace(-1, 2, vdm.WIDTH), "bias_2": jnp.linspace(1, -1, vdm.WIDTH)}
    moved = [{**weights, **{k: weights[k] + e * a for k, a in along.items()}} for e in (-0.1, 0.1)]
    expected = (square(moved[1], key) - square(moved[0], key)) / 0.2
    found = sum(jnp.vdot(slope[k], a) for k, a in along.items())
    np.testing.assert_allclose(found, expected, rtol=0.02)

    first = terms(weights, jax.random.key(0))
    for i in range(20):
        slope = slope_of(weights, jax.random.key(i))
        weights = jax.tree.map(lambda w, s: w - 0.02 * jnp.sign(s), weights, slope)
    last = terms(weights, jax.random.key(0))
    np.testing.assert_allclose(last.mean(), first.mean(), atol=0.02)
    assert last.var() < 0.9 * first.var()


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
    model = made(MLP(2, width=16, depth=1), (2,), schedule="monotone")
    params, extra = model.init(jax.random.key(0))
    assert extra == {}
    np.testing.assert_array_equal(params["net"]["ends"], [0.0, 0.0])
    loss = jax.jit(jax.grad(lambda p: model.loss(view(p), data(64, 2), jax.random.key(0))[0]))
    slope = loss(params)["net"]
    assert np.all(slope["ends"] != 0)
    assert all(np.any(s != 0) for s in slope["schedule"].values())
    assert np.any(slope["output"]["kernel"] != 0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"process": {"name": "vp"}}, "needs diffusion.process.name='log_snr', not 'vp'"),
        ({"weighting": {"name": "simple"}}, "needs diffusion.weighting.name='likelihood', not"),
        ({"times": {"name": "uniform", "shift": 3.0}}, "needs diffusion.times.shift=1.0, not 3.0"),
        ({"ends": "fixed", "schedule": "monotone"}, "needs diffusion.ends='learned', not 'fixed'"),
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
