"""MeanFlow: exact mean velocities have no error, and Gaussian data are drawn in one call."""

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

from aigc_jax import build
from aigc_jax.diffusion import meanflow
from aigc_jax.family import DataSpec, Field, Variables, View
from configs import meanflow_digits

TIMES = {"name": "logit_normal", "mean": 0.0, "std": 1.5}
POINT = 0.7
KEY = jax.random.key(0)


def model(network, steps=1, **changes):
    settings = {"times": TIMES, "end_times": TIMES, "norm_p": 0.0, **changes}
    sampling = {"steps": steps, "clip": False}
    return meanflow.meanflow(network, SHAPE, sampling=sampling, **settings)


def of_gaussian(params, x, t, label, t2, rngs):
    """The mean velocity of a Gaussian: points keep their place, in deviations from the mean."""
    mean, std = params["mean"], jnp.exp(params["log_std"])
    t, r = column(t), column(t2)
    scale_t, scale_r = (jnp.sqrt(((1 - a) * std) ** 2 + a**2) for a in (t, r))
    centred = x - (1 - t) * mean
    # (scale_t - scale_r) / (t - r), without the difference of nearly equal numbers.
    slope = (t + r - (2 - t - r) * std**2) / (scale_t + scale_r)
    return -mean + centred * slope / scale_t


def of_point(params, x, t, label, t2, rngs):
    """All data are one point: every path is a straight line from it."""
    return (x - POINT) / column(t) + params["error"] * column(t2)


@pytest.mark.parametrize("tangent", meanflow.TANGENTS)
@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
def test_the_exact_mean_velocity_has_no_error(tangent, ratio):
    batch = {"x": jnp.full((512, *SHAPE), POINT)}
    for error, low, high in ((0.0, 0.0, 1e-6), (0.1, 1e-4, 0.1)):
        params = {"net": {"error": jnp.float32(error)}}
        made = model(Network(of_point, params), ratio=ratio, tangent=tangent)
        found, _ = made.loss(View(params, params, {}, {}, 0), batch, KEY)
        assert low <= found <= high
        found = made.evaluate(Variables(params, {}), batch, KEY)["loss"]
        assert found.shape == (512,)
        assert low <= found.mean() <= high


@pytest.mark.parametrize("tangent", meanflow.TANGENTS)
def test_a_gaussian_is_drawn_in_one_call(tangent):
    first = {"mean": jnp.float32(0.0), "log_std": jnp.float32(0.0)}
    made = model(Network(of_gaussian, first), tangent=tangent)
    found = fitted(made, steps=300, rate=optax.cosine_decay_schedule(0.05, 300))
    check_one_step_map(made, found)


def test_any_number_of_calls_draws_the_same_where_velocities_are_exact():
    params = {"mean": jnp.float32(MEAN), "log_std": jnp.log(STD)}
    variables = Variables({"net": params}, {})
    one, four = (drawn(model(Network(of_gaussian, params), n), variables, 50) for n in (1, 4))
    np.testing.assert_allclose(one, four, atol=1e-5)
    start = model(Network(of_gaussian, params)).start(
        variables, jax.vmap(jax.random.key)(jnp.arange(50)), {}
    )
    np.testing.assert_allclose(one, MEAN + STD * start["x"][0], atol=1e-5)


def test_a_share_of_the_examples_has_two_times_and_the_later_one_is_t():
    seen = {}

    def of(params, x, t, label, t2, rngs):
        if "first" not in seen:
            seen["first"] = None  # the velocity of `tangent` at t itself
            np.testing.assert_array_equal(t, t2)
        else:
            seen.update(t=t, r=t2)
        return 0.0 * x

    made = model(Network(of, {}), ratio=0.3, tangent="predicted")
    with jax.disable_jit():
        made.evaluate(Variables({"net": {}}, {}), gaussian(KEY, 20_000), KEY)
    t, r = (np.asarray(getattr(seen[name], "primal", seen[name])) for name in ("t", "r"))
    assert np.all(r <= t)
    np.testing.assert_allclose(np.mean(r < t), 0.3, atol=0.02)


def test_the_adaptive_weight_divides_by_a_power_of_the_error():
    batch, view = gaussian(KEY), View({"net": {}}, {}, {}, {}, 0)

    def of(params, x, t, label, t2, rngs):
        return 0.0 * x

    plain, half, whole = (
        float(model(Network(of, {}), norm_p=p, norm_eps=1e-6).loss(view, batch, KEY)[0])
        for p in (0.0, 0.5, 1.0)
    )
    np.testing.assert_allclose(whole, 1.0, rtol=1e-3)
    assert 1 < half < plain
    of_mean = model(Network(of, {})).evaluate(Variables({"net": {}}, {}), batch, KEY)["loss"]
    np.testing.assert_allclose(of_mean.mean() * 2, plain, rtol=0.2)  # a sum over two numbers


def test_guidance_moves_the_target_of_labels_that_are_kept():
    def of(params, x, t, label, t2, rngs):
        return jnp.where(column(label) == 3, 5.0, 1.0)

    z, label = jnp.zeros((4, *SHAPE)), jnp.array([0, 1, 3, 3])
    velocity = jnp.full_like(z, 2.0)
    network = Network(of, {}, num_classes=3)
    for weight, kept in ((1.0, 2.0), (3.0, 3 * 2.0 - 2 * 5.0)):
        made = model(network, label_dropout=0.1, guidance_weight=weight)
        level = made.process.level(jnp.full(4, 0.5))

        def predict(z, level, label, made=made):
            return made.predict({"net": {}}, z, level, label)

        found = made.guided_velocity(predict, z, level, label, velocity)
        np.testing.assert_allclose(found[:, 0], [kept, kept, 2.0, 2.0])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"network.second_time": False}, "give --config.network.second_time=True"),
        ({"sampling.steps": 0}, "config.sampling.steps is a whole number in [1, "),
        ({"diffusion.tangent": "own"}, "config.diffusion.tangent is one of conditional, predicted"),
        ({"diffusion.guidance_weight": 2.0}, "needs diffusion.conditional=True and"),
        ({"diffusion.ratio": 1.5}, "config.diffusion.ratio is a number in [0, 1], not 1.5"),
    ],
)
def test_what_cannot_work_is_told_when_the_family_is_built(changes, words):
    config = meanflow_digits.get_config("smoke")
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    spec = DataSpec(
        {"x": Field("image", (8, 8, 1))}, {"label": Field("label", (), 10)}, {"train": 10}
    )
    with pytest.raises(ValueError) as caught:  # noqa: PT011  (the words below)
        build.build(config, spec)
    assert words in str(caught.value)
