"""Consistency models: the boundary, the two times, the tangent; Gaussian data in one call."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from diffusion.fitting import (
    MEAN,
    SHAPE,
    STD,
    Network,
    check_one_step_map,
    column,
    drawn,
    fitted,
    gaussian,
)
from specs import OF_CONFIGS

from aigc_jax import build
from aigc_jax.diffusion import consistency, precondition
from aigc_jax.diffusion.consistency import Continuous, Easy
from aigc_jax.family import Variables, View
from configs import ect_cifar

KEY = jax.random.key(0)
SIGMA_DATA = 0.5
EASY = {"name": "easy", "q": 1024.0}
CONTINUOUS = {"name": "continuous", "warmup": 10}
FIRST = {"mean": jnp.float32(0.0), "log_std": jnp.float32(0.0)}


def model(network, of=EASY, steps=1, mid=0.821, **changes):
    settings = {
        "process": {"name": "edm"},
        "prediction": "edm",
        "times": {"name": "log_normal"},
        "weighting": {"name": "edm"},
        "consistency": of,
        "sampling": {"steps": steps, "mid": mid, "clip": False},
        **changes,
    }
    return consistency.model(network, SHAPE, **settings)


def of_gaussian(params, x, t, label, t2, rngs):
    """EDM's network whose answer is where the path of a Gaussian ends."""
    s = column(jnp.exp(4 * t))
    x = x * jnp.sqrt(s**2 + SIGMA_DATA**2)
    mean, std = params["mean"], jnp.exp(params["log_std"])
    answer = mean + (x - mean) * std / jnp.sqrt(std**2 + s**2)
    c_skip, c_out = SIGMA_DATA**2 / (s**2 + SIGMA_DATA**2), s * SIGMA_DATA
    return (answer - c_skip * x) * jnp.sqrt(s**2 + SIGMA_DATA**2) / c_out


def test_the_boundary_is_the_published_one():
    found = precondition.edm(0.5, 0.002)
    for t, c_skip, c_out in ((1.0, 0.200641410461, 0.446319168309), (0.002, 1.0, 0.0)):
        np.testing.assert_allclose(found.to_x0(0.0, 1.0, 1.0, t), c_skip, rtol=1e-10)
        np.testing.assert_allclose(found.to_x0(1.0, 0.0, 1.0, t), c_out, rtol=1e-10)
    output = found.target(0.3, 0.7, 0.8, 0.4)
    np.testing.assert_allclose(found.to_x0(output, 0.8 * 0.3 + 0.4 * 0.7, 0.8, 0.4), 0.3)


def test_the_two_times_come_closer_by_q_a_stage_and_with_less_noise_they_are_further_apart():
    easy = Easy(q=4.0, k=8.0, b=1.0, stage_steps=100)
    t = jnp.array([1e-4, 1.0, 50.0])
    shares = [1 - easy.earlier(t, jnp.int32(step)) / t for step in (0, 99, 100, 350)]
    first = np.minimum((1 + 8 / (1 + np.exp(np.asarray(t)))) / 4, 1.0)
    np.testing.assert_allclose(shares[0], first, rtol=1e-4)
    np.testing.assert_array_equal(shares[0], shares[1])
    np.testing.assert_allclose(shares[2][1], (1 + 8 / (1 + np.e)) / 16, rtol=1e-4)
    np.testing.assert_allclose(shares[3][1], (1 + 8 / (1 + np.e)) / 256, rtol=1e-4)
    np.testing.assert_array_equal(easy.earlier(t, None), easy.earlier(t, jnp.int32(0)))
    constant = Easy(q=4.0, stage_steps=0)
    np.testing.assert_array_equal(constant.earlier(t, 10**6), constant.earlier(t, 0))


def of_point(params, x, t, label, t2, rngs):
    """All data are the point `MEAN`: it is the answer everywhere."""
    s = column(jnp.exp(4 * t))
    x = x * jnp.sqrt(s**2 + SIGMA_DATA**2)
    skip = SIGMA_DATA**2 / (s**2 + SIGMA_DATA**2)
    answer = MEAN + params["error"] * s
    return (answer - skip * x) * jnp.sqrt(s**2 + SIGMA_DATA**2) / (s * SIGMA_DATA)


@pytest.mark.parametrize("of", [EASY, CONTINUOUS], ids=lambda of: of["name"])
def test_an_answer_that_is_everywhere_the_same_has_no_error(of):
    batch = {"x": jnp.full((512, *SHAPE), MEAN)}
    found = {}
    for error in (0.0, 0.1):
        params = {"net": {"error": jnp.float32(error)}}
        made = model(Network(of_point, params), of, process={"name": "edm", "sigma_min": 1e-3})
        found[error] = float(made.evaluate(Variables(params, {}), batch, KEY)["loss"].mean())
        loss, _ = made.loss(View(params, params, {}, {}, jnp.int32(20)), batch, KEY)
        assert jnp.isfinite(loss)
    assert found[0.0] < 0.02 * found[0.1]


def test_the_tangent_is_that_of_the_answer_along_its_path():
    params = {"net": {"mean": jnp.float32(0.1), "log_std": jnp.float32(-0.3)}}
    made = model(Network(of_gaussian, params["net"]), CONTINUOUS)
    x0, eps = gaussian(KEY, 6)["x"], jax.random.normal(jax.random.key(1), (6, *SHAPE))
    level = made.process.level(jnp.array([0.01, 0.1, 0.5, 1.0, 5.0, 70.0]))

    def answer(angle):
        here = made.process.level(SIGMA_DATA * jnp.tan(angle))
        x = x0 + column(here.sigma) * eps
        return made.estimate(made.predict(params, x, here, None), x, here).x0

    angle = jnp.arctan(level.t / SIGMA_DATA)
    expected = jax.jvp(answer, (angle,), (jnp.ones(6),))[1] * column(jnp.cos(angle))
    _, found = Continuous().tangent(made, params, x0, eps, level, None, 1.0)
    np.testing.assert_allclose(found, expected, atol=2e-4)
    _, early = Continuous().tangent(made, params, x0, eps, level, None, 0.0)
    assert np.abs(early - expected).max() > 0.1


@pytest.mark.parametrize("of", [EASY, CONTINUOUS], ids=lambda of: of["name"])
def test_a_gaussian_is_drawn_in_one_call(of):
    made = model(Network(of_gaussian, FIRST), of)
    rate = optax.cosine_decay_schedule(0.05, 500)
    check_one_step_map(made, fitted(made, 500, rate, batch=4096))


def test_more_calls_draw_a_gaussian_too_and_each_has_noise_of_its_own():
    params = {"mean": jnp.float32(MEAN), "log_std": jnp.log(STD)}
    variables = Variables({"net": params}, {})
    one, two, four = (
        drawn(model(Network(of_gaussian, params), steps=n), variables) for n in (1, 2, 4)
    )
    for found in (one, two, four):
        np.testing.assert_allclose(found.mean(), MEAN, atol=0.01)
        np.testing.assert_allclose(found.std(), STD, atol=0.01)
    assert np.abs(np.corrcoef(one.ravel(), four.ravel())[0, 1]) < 0.9
    table = consistency.solver(model(Network(of_gaussian, params)).process, 3, 0.5).table
    np.testing.assert_allclose(table["at"].t, [80.0, 40.0**0.5, 0.5], rtol=1e-6)


def test_dropout_is_the_same_at_both_times_and_the_later_answer_alone_is_trained():
    def of(params, x, t, label, t2, rngs):
        scale = 1.0 if rngs is None else jax.random.normal(rngs["dropout"], x.shape)
        return params["gain"] * scale * of_gaussian(TRUE, x, t, label, t2, rngs)

    gain = {"gain": jnp.float32(1.0)}
    made = model(Network(of, gain), {"name": "easy", "q": 1e9})  # one time, all but
    batch = gaussian(KEY)

    def loss(own):
        return made.loss(View({"net": own}, {}, {}, {}, 0), batch, KEY)[0]

    value, grads = jax.value_and_grad(loss)(gain)
    assert value < 1e-3
    assert np.isfinite(grads["gain"])


TRUE = {"mean": jnp.float32(MEAN), "log_std": jnp.log(STD)}


def test_the_distance_is_pseudo_huber_where_asked():
    batch, params = gaussian(KEY), {"net": FIRST}
    found = [
        model(Network(of_gaussian, FIRST), EASY | {"huber": c}).loss(
            View(params, params, {}, {}, 0), batch, KEY
        )[0]
        for c in (0.0, 0.01, 100.0)
    ]
    assert found[0] > found[1] > 10 * found[2] > 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"diffusion.process": {"name": "flow"}}, "needs diffusion.process.name='edm', not 'flow'"),
        ({"diffusion.prediction": "eps"}, "config.diffusion.prediction is one of edm, not 'eps'"),
        ({"sampling.steps": 0}, "config.sampling.steps is a whole number in [1, "),
        ({"sampling.mid": 90.0}, "sampling.mid=90.0 must lie between"),
        ({"diffusion.consistency.q": 1.0}, "consistency.q is a number above 1, not 1.0"),
        ({"diffusion.consistency.name": "eas"}, "did you mean 'easy'?"),
    ],
)
def test_what_cannot_work_is_told_when_the_family_is_built(changes, words):
    config = ect_cifar.get_config("smoke").to_dict()
    for key, value in changes.items():
        *path, last = key.split(".")
        part = config
        for name in path:
            part = part[name]
        part[last] = value
    with pytest.raises(ValueError) as caught:  # noqa: PT011  (the words below)
        build.build(config, OF_CONFIGS["cifar"])
    assert words in str(caught.value)
