"""One step: who moves, on which batch, with which optimizer; what is skipped; what is averaged."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from aigc_jax import streams
from aigc_jax.family import Phase, View
from aigc_jax.training.ema import ema_decay
from aigc_jax.training.step import active_phases, init_state, train_step, update


def jitted(recipe, active):
    step = partial(train_step, recipe, active)
    return jax.jit(lambda state, batch: step(state, {}, batch))


def setup(family="two", **changes):
    """(recipe, state, batch) of a toy."""
    made = toys.FAMILIES[family]()
    recipe = toys.recipe_of(made, toys.config(family, changes))
    state = jax.jit(partial(init_state, recipe))(*streams.init(1))
    x = np.random.default_rng(0).integers(0, 256, (made.batches_per_step, 4, 4, 4, 1), np.uint8)
    return recipe, state, {"x": x}


def changed(before, after):
    """Fields, and players within them, that a step changed."""
    found = set()
    for field in dataclasses.fields(before):
        old, new = getattr(before, field.name), getattr(after, field.name)
        if isinstance(old, dict):
            found |= {f"{field.name}/{k}" for k in old if not toys.same(old[k], new[k])}
        elif not toys.same(old, new):
            found.add(field.name)
    return found


@pytest.mark.parametrize(
    ("index", "player", "statistics"),
    [
        (0, "discriminator", {"extra/real"}),
        (2, "discriminator", set()),
        (3, "generator", {"extra/mean"}),
    ],
)
def test_a_phase_moves_only_its_player(index, player, statistics):
    recipe, state, batch = setup(optimizer=toys.optimizer("adam"))
    batch = recipe.prepare({"x": batch["x"][0]}, {"x": state.key})
    phase = recipe.family.phases[index]
    run = jax.jit(partial(update, phase, recipe.optimizers[player]))
    after, metrics, finite = run(state, {}, batch, state.key)
    assert changed(state, after) == {f"params/{player}", f"opt/{player}"} | statistics
    assert finite
    assert {name.split("/")[0] for name in metrics} == {phase.name or player}


def test_a_step_moves_both_players_and_the_average_of_one():
    recipe, state, batch = setup()
    after, _ = jitted(recipe, (0, 1, 2, 3))(state, batch)
    players = {f"{field}/{p}" for field in ("params", "opt") for p in state.params}
    averages = {"extra/mean", "extra/real", "ema/generator"}
    assert changed(state, after) == {"step"} | players | averages


def test_players_have_optimizers_of_their_own():
    settings = {
        "generator": toys.optimizer("sgd", learning_rate=0.25),
        "discriminator": toys.optimizer("adam", learning_rate=0.01),
    }
    recipe, state, batch = setup(optimizer=settings)
    batch = recipe.prepare({"x": batch["x"][0]}, {"x": state.key})

    def step_and_gradient(index, player):
        phase = recipe.family.phases[index]

        def loss(own):
            view = View({**state.params, player: own}, state.ema, state.extra, {}, state.step)
            return phase.loss(view, batch, state.key)[0]

        run = jax.jit(partial(update, phase, recipe.optimizers[player]))
        after, _, _ = run(state, {}, batch, state.key)
        change = jax.tree.map(jnp.subtract, after.params[player], state.params[player])
        return toys.arrays(change), toys.arrays(jax.jit(jax.grad(loss))(state.params[player]))

    for change, grad in zip(*step_and_gradient(3, "generator"), strict=True):
        np.testing.assert_allclose(change, -0.25 * grad, rtol=1e-3, atol=1e-6)
    for change, grad in zip(*step_and_gradient(0, "discriminator"), strict=True):
        far = np.abs(grad) > 1e-5  # Adam's first step is the sign of the gradient
        np.testing.assert_allclose(change[far], -0.01 * np.sign(grad[far]), rtol=1e-2)
        assert far.any()


def test_lazy_phases_run_on_their_steps_and_cost_exactly_two_traces():
    recipe, state, batch = setup()
    traces = []

    @partial(jax.jit, static_argnums=0)
    def step(active, state, batch):
        traces.append(active)
        return train_step(recipe, active, state, {}, batch)

    seen = []
    for i in range(9):
        state, metrics = step(active_phases(recipe.family, i), state, batch)
        seen.append("r1/loss" in metrics)
    assert [i for i, lazy in enumerate(seen) if lazy] == [0, 4, 8]
    assert traces == [(0, 1, 2, 3), (0, 1, 3)]


def test_phase_i_sees_batch_i_modulo_the_batches_of_a_step():
    recipe, state, _ = setup()

    def showing(phase):
        def loss(view, batch, key):
            value, (_, extra) = phase.loss(view, batch, key)
            return value, ({"pixel": batch["x"][0, 0, 0, 0]}, extra)

        return phase._replace(loss=loss)

    phases = tuple(showing(phase) for phase in recipe.family.phases)
    recipe = recipe._replace(
        family=recipe.family._replace(phases=phases), prepare=lambda batch, keys: batch
    )
    batch = {"x": jnp.stack([jnp.full((4, 4, 4, 1), value) for value in (0.25, 0.5)])}
    _, metrics = jitted(recipe, (0, 1, 2, 3))(state, batch)
    pixels = [float(metrics[f"{p.name or p.player}/pixel"]) for p in phases]
    assert pixels == [0.25, 0.5, 0.25, 0.5]


def test_randomness_differs_by_step_and_phase_and_repeats_with_the_key():
    def loss(view, batch, key):
        noise = jax.random.normal(key)
        return view.params["net"] * noise, ({"noise": noise}, view.extra)

    recipe, _, batch = setup("one")
    phases = (Phase("net", loss, name="a"), Phase("net", loss, name="b"))
    family = recipe.family._replace(init=lambda key: ({"net": jnp.ones(())}, {}), phases=phases)
    recipe = recipe._replace(family=family)

    step = jitted(recipe, (0, 1))

    def noises():
        state = init_state(recipe, *streams.init(5))
        found = []
        for _ in range(3):
            state, metrics = step(state, batch)
            found += [float(metrics["a/noise"]), float(metrics["b/noise"])]
        return found

    assert len(set(noises())) == 6
    assert noises() == noises()


@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_what_is_not_finite_is_skipped_and_counted_and_changes_nothing_else(bad):
    recipe, state, batch = setup("one", ema={"half_life": 16.0, "ramp": 0.0})  # decay 1/2: exact
    plain = recipe.family.phases[0].loss

    def loss(view, batch, key):
        value, aux = plain(view, batch, key)
        if bad == "loss":
            return value + jnp.inf, aux
        kernel = view.params["net"][0]["kernel"]
        return value + jnp.sqrt(kernel - jax.lax.stop_gradient(kernel)).sum(), aux

    broken = recipe._replace(family=recipe.family._replace(phases=(Phase("net", loss),)))
    step = jitted(broken, (0,))
    after, metrics = step(state, batch)
    assert changed(state, after) == {"step", "skipped", "skipped_in_row"}
    assert np.isfinite(metrics["net/loss"]) == (bad == "gradient")
    after, _ = step(after, batch)
    assert (int(after.skipped), int(after.skipped_in_row)) == (2, 2)
    after, metrics = jitted(recipe, (0,))(after, batch)
    assert (int(after.skipped), int(after.skipped_in_row)) == (2, 0)
    assert int(metrics["skipped"]) == 2
    assert {"params/net", "opt/net", "ema/net", "extra/mean"} <= changed(state, after)


def test_one_players_bad_gradient_does_not_stop_the_other():
    recipe, state, batch = setup()

    def loss(view, batch, key):
        return jnp.nan * view.params["discriminator"][0]["bias"][0], ({}, view.extra)

    critic = Phase("discriminator", loss)
    phases = (critic, *recipe.family.phases[1:])
    broken = recipe._replace(family=recipe.family._replace(phases=phases))
    after, _ = jitted(broken, (0, 3))(state, batch)
    assert {"params/generator", "skipped"} <= changed(state, after)
    assert "params/discriminator" not in changed(state, after)


def test_the_average_starts_at_the_weights_and_moves_by_one_less_its_decay():
    recipe, state, batch = setup("one", ema={"half_life": 8.0, "ramp": 0.0})
    assert toys.same(state.ema, state.params)
    after, _ = jitted(recipe, (0,))(state, batch)
    decay = float(recipe.ema_decay(jnp.int32(0)))
    expected = jax.tree.map(
        lambda old, new: decay * old + (1 - decay) * new, state.ema["net"], after.params["net"]
    )
    for found, wanted in zip(toys.arrays(after.ema), toys.arrays(expected), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("batch_size", [16, 64])
def test_after_half_life_images_a_weight_counts_half(batch_size):
    weight = 1.0
    for step in range(640 // batch_size):
        weight *= float(ema_decay(jnp.int32(step), batch_size=batch_size, half_life=640.0))
    assert weight == pytest.approx(0.5, rel=1e-5)


def test_the_ramp_bounds_the_half_life_by_a_share_of_the_images_seen():
    decay = partial(ema_decay, batch_size=10, half_life=1000.0, ramp=0.05)
    for step in (0, 9, 99):  # half-lives of 0.5, 5 and 50 images
        expected = 0.5 ** (10 / (0.05 * 10 * (step + 1)))
        assert float(decay(jnp.int32(step))) == pytest.approx(expected, rel=1e-5)
    late = float(decay(jnp.int32(100_000)))
    assert late == pytest.approx(0.5 ** (10 / 1000), rel=1e-6)


def test_half_life_zero_keeps_no_average():
    recipe, state, batch = setup("one", ema={"half_life": 0.0, "ramp": 0.0})
    after, _ = jitted(recipe, (0,))(state, batch)
    assert toys.same(after.ema, after.params)


def test_ddpms_decay_of_0_9999_at_batch_128_is_its_half_life():
    from configs.bases.base import half_life

    life = half_life(0.9999, 128)
    assert life == pytest.approx(887_184, rel=1e-4)  # log(1/2) / log(0.9999) batches
    found = ema_decay(jnp.int32(3), batch_size=128, half_life=life)
    assert float(found) == pytest.approx(0.9999, abs=1e-7)


def test_a_loss_sees_the_step_the_averages_and_the_frozen_networks():
    def loss(view, batch, key):
        teacher = view.constants["teacher"]["w"]
        found = {"step": view.step, "ema": view.ema["net"], "teacher": teacher}
        return jnp.sum(view.params["net"] * teacher), (found, view.extra)

    recipe, _, batch = setup("one", ema={"half_life": 4.0, "ramp": 0.0})
    family = recipe.family._replace(
        init=lambda key: ({"net": jnp.ones(())}, {}), phases=(Phase("net", loss),)
    )
    recipe = recipe._replace(family=family)
    state = init_state(recipe, *streams.init(0))
    step = jax.jit(partial(train_step, recipe, (0,)))
    for number in range(3):
        average = float(state.ema["net"])
        state, metrics = step(state, {"teacher": {"w": jnp.float32(2.0)}}, batch)
        assert float(metrics["net/step"]) == number
        assert float(metrics["net/ema"]) == average  # as this step found it
        assert float(metrics["net/teacher"]) == 2.0
    assert float(state.ema["net"]) != float(state.params["net"])
