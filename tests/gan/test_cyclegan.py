"""CycleGAN: its losses in closed form, who moves, the pool as state, and pictures through it."""

import dataclasses
import itertools
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import specs
import toys
from PIL import Image

from aigc_jax import streams
from aigc_jax.commands import train as command
from aigc_jax.data import loader
from aigc_jax.data.datasets import Dataset
from aigc_jax.data.pairs import Pairs
from aigc_jax.data.sources import ArraySource
from aigc_jax.evaluation import evaluators
from aigc_jax.evaluation.per_example import ModelUnderTest
from aigc_jax.family import Variables, View
from aigc_jax.gan import losses
from aigc_jax.gan.cyclegan import CycleGAN
from aigc_jax.runs.examples import RealData
from aigc_jax.training import sharding
from aigc_jax.training.recipe import recipe
from aigc_jax.training.step import init_state, train_step, update

SHAPE = (4, 4, 3)
BATCH = 8
PLAIN = {"adversarial": 2.0, "cycle_a": 10.0, "cycle_b": 5.0, "identity": 0.5, "pool": 12}


class Scale:
    """A generator that multiplies by a number, 1 at first: the identity."""

    stride = 1

    def init(self, key, x):
        return {"params": {"by": jnp.ones(())}}

    def apply(self, variables, x):
        return variables["params"]["by"] * x


class Mean:
    """A discriminator whose two logits are the mean of an image, times a number, 1 at first."""

    def init(self, key, x):
        return {"params": {"by": jnp.ones(())}}

    def apply(self, variables, x):
        mean = variables["params"]["by"] * x.mean((1, 2, 3))
        return jnp.broadcast_to(mean[:, None, None], (len(x), 1, 2)), None


def toy(loss="least_squares", **changes):
    game = losses.build(loss)
    return CycleGAN(Scale(), Mean(), SHAPE, game, batch_size=BATCH, **(PLAIN | changes))


def flat(value, n=BATCH):
    return jnp.full((n, *SHAPE), value)


BOTH = {"x": flat(0.5), "other": flat(-0.25)}


def scaled(made, a2b=1.0, b2a=1.0):
    """What losses see of generators that multiply by these numbers."""
    params, extra = made.init(jax.random.key(0))
    generator = {"a2b": {"by": jnp.float32(a2b)}, "b2a": {"by": jnp.float32(b2a)}}
    return View({**params, "generator": generator}, {}, extra, {}, jnp.int32(0))


def run(loss, view, batch=BOTH):
    value, (metrics, extra) = loss(view, batch, jax.random.key(1))
    return float(value), {name: float(x) for name, x in metrics.items()}, extra


def test_identity_generators_have_no_loss_but_the_game():
    made = toy()
    value, metrics, extra = run(made.generator_loss, scaled(made))
    # D_b sees a = 0.5 in place of b, D_a sees b = -0.25; half a square each.
    game = {"adversarial_b": 0.5 * (0.5 - 1) ** 2, "adversarial_a": 0.5 * (-0.25 - 1) ** 2}
    nothing = dict.fromkeys(("cycle_a", "cycle_b", "identity_a", "identity_b"), 0.0)
    assert metrics == pytest.approx(game | nothing)
    assert value == pytest.approx(2.0 * (0.125 + 0.78125))  # published: without the half
    np.testing.assert_array_equal(extra["shown"]["b"], BOTH["x"])
    np.testing.assert_array_equal(extra["shown"]["a"], BOTH["other"])


def test_each_term_of_the_generators_is_its_closed_form():
    made = toy(adversarial=0.0)
    view = scaled(made, a2b=2.0, b2a=0.25)
    expected = {
        "cycle_a": 0.5 * abs(1 - 2 * 0.25),
        "cycle_b": 0.25 * abs(1 - 0.25 * 2),
        "identity_a": 0.5 * abs(1 - 0.25),  # of the generator to A
        "identity_b": 0.25 * abs(1 - 2),
    }
    domains = BOTH["x"], BOTH["other"]
    fake, found = made.cycle_losses(view.params, *domains)
    np.testing.assert_allclose(fake["a"], 0.25 * BOTH["other"])
    np.testing.assert_allclose(fake["b"], 2 * BOTH["x"])
    found |= made.identity_losses(view.params, *domains)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], np.full(BATCH, value), rtol=1e-6)
    value, metrics, _ = run(made.generator_loss, view)
    assert {k: metrics[k] for k in expected} == pytest.approx(expected)
    parts = 10 * 0.25 + 5 * 0.125 + 0.5 * 10 * 0.375 + 0.5 * 5 * 0.25
    assert value == pytest.approx(parts)
    none = toy(adversarial=0.0, identity=0.0)
    value, metrics, _ = run(none.generator_loss, scaled(none, a2b=2.0, b2a=0.25))
    assert value == pytest.approx(10 * 0.25 + 5 * 0.125)
    assert not {"identity_a", "identity_b"} & set(metrics)


def test_the_discriminators_loss_is_the_published_half():
    made = toy()
    view = scaled(made)
    extra = {**view.extra, "shown": {"a": flat(0.125), "b": flat(0.75)}}
    value, metrics, after = run(made.discriminator_loss, view._replace(extra=extra))
    a = 0.5 * (0.5 - 1) ** 2 + 0.5 * 0.125**2
    b = 0.5 * (-0.25 - 1) ** 2 + 0.5 * 0.75**2
    assert value == pytest.approx(a + b)
    expected = {"loss_a": a, "loss_b": b, "real_a": 0.5, "real_b": -0.25}
    assert metrics == pytest.approx(expected | {"fake_a": 0.125, "fake_b": 0.75})
    assert toys.same(after, extra)


def test_the_loss_is_chosen_by_name_and_a_relativistic_one_sees_real_images():
    made = toy("relativistic", cycle_a=0.0, cycle_b=0.0, adversarial=1.0)
    value, _, _ = run(made.generator_loss, scaled(made))
    gap = 0.75  # D_a: real 0.5, fake -0.25; D_b: real -0.25, fake 0.5
    assert value == pytest.approx(np.log1p(np.exp(gap)) + np.log1p(np.exp(-gap)))


def variables(made, **scales):
    view = scaled(made, **scales)
    return Variables(view.params, view.extra)


def test_per_example_values_and_reconstructions():
    family, own = toy().family(), variables(toy(), a2b=2.0, b2a=0.25)
    batch = {"x": jnp.concatenate([flat(0.5, 4), flat(1.0, 4)]), "other": BOTH["other"]}
    found = family.evaluate(own, batch, jax.random.key(0))
    np.testing.assert_allclose(found["cycle_a"], [0.25] * 4 + [0.5] * 4)
    np.testing.assert_allclose(found["identity_b"], [0.25] * 8)
    assert found.keys() == {"cycle_a", "cycle_b", "identity_a", "identity_b"}
    pairs = family.views.reconstruct(own, batch, jax.random.key(0))
    np.testing.assert_allclose(pairs["cycle_a"][0], 2 * batch["x"])
    np.testing.assert_allclose(pairs["cycle_a"][1], 0.5 * batch["x"])
    np.testing.assert_allclose(pairs["cycle_b"][0], 0.25 * batch["other"])
    np.testing.assert_array_equal(pairs["cycle_b"][2], batch["other"])
    there = family.translate(own, batch["x"], "a2b")
    np.testing.assert_allclose(there, 2 * batch["x"])
    assert family.drawing is None


def test_a_reconstruction_is_compared_with_the_original_that_comes_along():
    made = toy()
    batch = {**BOTH, "mask": jnp.ones(BATCH)}
    model = ModelUnderTest(
        **dict.fromkeys(field.name for field in dataclasses.fields(ModelUnderTest))
    )
    model = dataclasses.replace(
        model,
        reconstruct=partial(made.reconstruct, variables(made, a2b=2.0, b2a=0.25)),
        examples=lambda limit: [batch],
        name="toys",
        are_images=True,
        key=jax.random.key(0),
    )
    rows = {row.metric: row for row in evaluators.of_examples("reconstruction", model)}
    values = [rows[name].value for name in ("l1/cycle_a", "l1/cycle_b")]
    assert values == pytest.approx([0.25, 0.125])  # B's against A's image would be 0.625


# Training


def two_domains(a=24, b=16):
    rng = np.random.default_rng(0)

    def source(n):
        return ArraySource(rng.integers(0, 256, (n, *SHAPE), np.uint8), None)

    sources = {"a+b": Pairs(source(a), source(b)), "c+d": Pairs(source(9), source(9))}
    sizes = {k: len(v) for k, v in sources.items()}
    return Dataset(specs.images(SHAPE, sizes=sizes, domains=2), sources)


def config(**changes):
    flat = {
        "data": {"train_split": "a+b", "test_split": "c+d"},
        "train.batch_size": BATCH,
        "checkpoint.best": "",
        "optimizer": toys.optimizer("adam", learning_rate=1e-2),
        "ema": {"half_life": 0.0, "ramp": 0.0},
    }
    return toys.config("one", flat | changes)


def some_batch(seed=0):
    rng = np.random.default_rng(seed)
    return {k: rng.uniform(-1, 1, (BATCH, *SHAPE)).astype(np.float32) for k in ("x", "other")}


def changed(before, after):
    """Which of the state's parts differ, by path to depth two."""
    trees = [
        {"params": s.params, "opt": s.opt, "extra": s.extra, "ema": s.ema} for s in (before, after)
    ]
    return {
        f"{field}/{name}"
        for field, parts in trees[0].items()
        for name in parts
        if not toys.same(parts[name], trees[1][field][name])
    }


def recipe_of(made, **changes):
    setting = config(**changes)
    sections = {name: setting[name] for name in ("optimizer", "ema", "augment")}
    return recipe(made.family(), specs.images(SHAPE, domains=2), batch_size=BATCH, **sections)


def test_each_phase_moves_only_its_player():
    plan = recipe_of(toy())
    state = init_state(plan, *streams.init(0))
    found = []
    for phase in plan.family.phases:
        before = state
        step = jax.jit(partial(update, phase, plan.optimizers[phase.player]))
        state, _, finite = step(state, {}, some_batch(), jax.random.key(1))
        assert finite
        found.append(changed(before, state))
    generator = {"params/generator", "opt/generator", "extra/pool", "extra/shown"}
    assert found == [generator, {"params/discriminator", "opt/discriminator"}]


def test_discriminators_see_what_was_made_before_the_generators_moved():
    plan = recipe_of(toy(pool=0), optimizer=toys.optimizer("sgd", learning_rate=0.5))
    plan = plan._replace(prepare=lambda batch, keys: batch)
    state, batch = init_state(plan, *streams.init(0)), some_batch()
    batches = jax.tree.map(lambda x: x[None], batch)
    after, metrics = jax.jit(partial(train_step, plan, (0, 1)))(state, {}, batches)
    assert abs(float(after.params["generator"]["a2b"]["by"]) - 1) > 0.01
    expected = batch["x"].mean()  # by the identity, which the generators still were
    assert float(metrics["discriminator/fake_b"]) == pytest.approx(expected, abs=1e-6)


def train(workdir, steps, made=None, **changes):
    setting = config(**{"train.steps": steps, "checkpoint.every": 3} | changes)
    data = RealData("toys", two_domains(), "a+b", "c+d", BATCH)
    return command.fit(setting, workdir, (made or toy()).family(), data, ())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("cyclegan")
    return workdir, train(workdir, 7)


def test_a_resumed_run_is_the_uninterrupted_one_with_its_pool(whole, tmp_path):
    _, expected = whole
    quiet = {"log.eval_every": 0, "log.sample_every": 0}
    early = train(tmp_path, 3, **quiet)
    assert early.extra["pool"]["a"]["count"] == 12  # full: from here on what is shown is chance
    state = train(tmp_path, 7, **quiet)
    assert toys.same(state, expected)
    assert toys.same(state.ema["generator"], state.params["generator"])  # no average by default
    without = train(tmp_path / "without", 7, toy(pool=0), **quiet)
    assert not toys.same(state.params, without.params)  # the pool does decide


def test_a_run_shows_test_images_their_translations_and_the_way_back(whole):
    workdir, _ = whole
    assert not (workdir / "samples").exists()
    with Image.open(workdir / "reconstructions" / "00000007.png") as picture:
        # Nine images a domain, from two batches of 8; a 4x4 image is shown as 64x64.
        assert picture.size == (9 * 66 + 2, 6 * 66 + 2)
    about = json.loads((workdir / "reconstructions" / "00000007.json").read_text())
    assert about["caption"] == (
        "Rows: test images, given at cycle_a, reconstruction at cycle_a, original at cycle_b, "
        "given at cycle_b, reconstruction at cycle_b"
    )
    row = next(row for row in toys.rows(workdir) if "c+d/cycle_a" in row)
    assert {"c+d/cycle_b", "c+d/identity_a", "c+d/identity_b"} <= set(row)


def steps(devices, mode="replicated", count=5):
    plan = recipe_of(toy(), optimizer=toys.optimizer("sgd", learning_rate=0.02))
    mesh = sharding.make_mesh(jax.devices()[:devices])
    target = sharding.abstract_state(plan, mesh, mode)
    state = sharding.new_state(plan, target, 0)
    step = toys.one_step(plan, mesh, target, {})
    batches = loader.batches(two_domains().sources["a+b"], batch_size=BATCH, seed=0)
    metrics = []
    for batch in itertools.islice(batches, count):
        state, found = step((0, 1), state, batch)
        metrics.append(found)
    batches.close()
    return state, metrics


def test_eight_devices_train_as_one():
    one, eight = steps(1), steps(8)
    for x, y in zip(toys.arrays(one), toys.arrays(eight), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
