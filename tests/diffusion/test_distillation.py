"""Progressive distillation: a student's step ends where its teacher's two do, stage by stage."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from diffusion.fitting import MEAN, SHAPE, STD, Network, check_one_step_map, column, drawn, fitted
from specs import OF_CONFIGS

from aigc_jax import build
from aigc_jax.diffusion import distillation
from aigc_jax.family import Variables, View
from configs import distil_cifar

KEY = jax.random.key(0)
STEPS = 128  # of which DDIM draws the deviation within 1.2 %


def tabled(params, x, t, label, t2, rngs):
    """An estimate of x_0 that is affine in x, its two numbers at each of `STEPS` times."""
    index = jnp.round(t / 1000 * STEPS).astype(jnp.int32)
    return column(params["slope"][index]) * x + column(params["offset"][index])


def exact():
    """The best estimate of x_0 of a Gaussian, on the straight line from data to noise."""
    t = jnp.arange(STEPS + 1) / STEPS
    slope = (1 - t) * STD**2 / (((1 - t) * STD) ** 2 + t**2)
    return {"slope": slope, "offset": MEAN * (1 - slope * (1 - t))}


def model(teacher=STEPS, student=1, stage_steps=200, steps=0, network=None, **changes):
    settings = {
        "process": {"name": "flow"},
        "prediction": "x0",
        "weighting": {"name": "simple"},
        "sampling": {"steps": steps, "clip": False},
        "teacher_steps": teacher,
        "student_steps": student,
        "stage_steps": stage_steps,
        **changes,
    }
    return distillation.distillation(network or Network(tabled, exact()), SHAPE, **settings)


def state(made):
    params, extra = made.init(KEY)
    return View(params, params, extra, {}, jnp.int32(0))


def test_a_gaussian_is_drawn_in_one_call_after_all_stages():
    made = model()
    assert made.stages == 7
    found = fitted(made, steps=7 * 200, rate=0.02)
    check_one_step_map(made, found)
    # To the last digit it learned what its first teacher does in all its steps.
    teacher = model(steps=STEPS)
    theirs = drawn(teacher, Variables({"net": exact()}, {}), 100)
    np.testing.assert_allclose(drawn(made, found, 100), theirs, atol=2e-3)


@pytest.mark.parametrize(("prediction", "process"), [("v", "cosine"), ("edm", "edm"), ("x0", "vp")])
def test_the_target_is_the_step_that_ends_where_two_of_the_teacher_do(prediction, process):
    def of(params, x, t, label, t2, rngs):
        return jnp.tanh(x) * 0.5

    network = Network(of, {})
    settings = {"prediction": prediction, "process": {"name": process}, "network": network}
    made = model(4, 2, **settings)
    levels = made.levels(jnp.int32(0), KEY, 6)
    x = jax.random.normal(KEY, (6, *SHAPE))
    target = made.target({"net": {}}, x, levels, None)
    start, _, end = levels
    one = column(end.sigma / start.sigma) * (x - column(start.alpha) * target)
    one += column(end.alpha) * target
    for i in range(6):
        two = model(4, 2, steps=4, **settings)
        first = int(np.argmin(np.abs(np.asarray(made.grid.t) - float(start.t[i]))))
        carry = (x[i : i + 1],)
        for call in (first, first + 1):
            row = jax.tree.map(lambda a, call=call: jnp.float32(a[call]), two.solver.table)

            denoise = partial(two.denoise, Variables({"net": {}}, {}), {})
            carry, _ = two.solver.step(denoise, carry, row, None)
        np.testing.assert_allclose(one[i], carry[0][0], rtol=1e-3, atol=1e-4)


def test_levels_are_those_of_the_stages_student_each_as_likely():
    made = model(8, 1)
    for stage, steps in ((0, 4), (1, 2), (2, 1)):
        start, middle, end = made.levels(jnp.int32(stage), KEY, 4000)
        shares = np.unique(np.asarray(start.t), return_counts=True)[1] / 4000
        np.testing.assert_allclose(shares, np.full(steps, 1 / steps), atol=0.03)
        np.testing.assert_allclose(start.t - middle.t, 2**stage / 8, atol=1e-6)
        np.testing.assert_allclose(middle.t - end.t, 2**stage / 8, atol=1e-6)


def test_a_new_stage_takes_the_average_as_its_teacher_and_keeps_it():
    made = model(8, 1, stage_steps=10)
    view = state(made)
    average = jax.tree.map(lambda a: a + 1.0, view.ema)
    view = view._replace(ema=average)
    assert int(view.extra["stage"]) == -1
    first = made.teacher(view)
    assert int(first["stage"]) == 0
    jax.tree.map(np.testing.assert_array_equal, first["teacher"], average["net"])
    other = jax.tree.map(lambda a: a + 1.0, average)
    for step, stage, expected in ((9, 0, average), (10, 1, other), (11, 1, other), (999, 2, other)):
        found = made.teacher(view._replace(ema=other, extra=first, step=jnp.int32(step)))
        assert int(found["stage"]) == stage
        jax.tree.map(np.testing.assert_array_equal, found["teacher"], expected["net"])


def test_a_loss_hands_the_teacher_on_and_moves_the_student_alone():
    made = model()
    view = state(made)
    params = jax.tree.map(lambda a: a + 0.1, view.params)

    def loss(own):
        return made.loss(view._replace(params=own), {"x": jnp.zeros((64, *SHAPE))}, KEY)

    grads, (_, extra) = jax.grad(loss, has_aux=True)(params)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(grads))
    jax.tree.map(np.testing.assert_array_equal, extra["teacher"], view.ema["net"])


def test_a_run_that_stopped_within_a_stage_is_the_run_that_did_not(tmp_path):
    """Stages of three steps, a stop after the fifth: the second's teacher comes from the state."""

    def affine(params, x, t, label, t2, rngs):
        return params["slope"] * x + params["offset"]

    first = {"slope": jnp.float32(0.5), "offset": jnp.float32(0.1)}
    made = model(8, 1, stage_steps=3, network=Network(affine, first))
    made = dataclasses.replace(made, shape=(toys.SIDE, toys.SIDE, 1))
    whole, resumed = toys.resumed(tmp_path, made.family(), stop=5, steps=8)
    assert toys.same(whole, resumed)
    assert int(whole.extra["stage"]) == 2
    assert not toys.same(whole.extra["teacher"], whole.ema["net"])


def test_a_student_draws_in_as_many_steps_as_are_asked_for():
    assert model(64, 2).solver.calls == 2
    drawing = model(64, 2, steps=16)
    assert drawing.solver.calls == 16
    np.testing.assert_allclose(drawing.solver.table["at"].t, 1 - np.arange(16) / 16)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"teacher_steps": 6}, "diffusion.teacher_steps=6 must be diffusion.student_steps=1 times"),
        ({"student_steps": 4}, "times 2, 4, 8 or another power of 2"),
        ({"student_steps": 0}, "config.diffusion.student_steps is a whole number in [1, "),
        ({"sampling.steps": 3}, "sampling.steps=3 must divide diffusion.teacher_steps=4"),
        (
            {"prediction": "eps", "process.zero_terminal_snr": True},
            "predict v, x0 or velocity",
        ),
        ({"teacher_steps": 32}, "must lie in 1..20"),
    ],
)
def test_what_cannot_work_is_told_when_the_family_is_built(changes, words):
    config = distil_cifar.get_config("smoke")
    with config.unlocked():
        config.update_from_flattened_dict(
            {k if k.startswith("sampling") else f"diffusion.{k}": v for k, v in changes.items()}
        )
    with pytest.raises(ValueError) as caught:  # noqa: PT011  (the words below)
        build.build(config, OF_CONFIGS["cifar"])
    assert words in str(caught.value)
