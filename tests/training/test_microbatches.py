"""A batch in parts: the same draws, the same gradient, in loops or not."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import specs
import toys

from aigc_jax import build, streams
from aigc_jax.commands import common
from aigc_jax.errors import SettingError
from aigc_jax.family import Family
from aigc_jax.training import microbatches, sharding
from aigc_jax.training.step import init_state, train_step
from configs import dcgan_celeba64, ddpm_digits

PARTS, ROWS = 4, 8


def draws(key: jax.Array, n: int) -> list[jax.Array]:
    """What losses draw: for every example by one key, by a key of each, and one for them all."""
    noise, mask, rows, labels, one = jax.random.split(key, 5)
    return [
        jax.random.normal(noise, (n, 3)),
        jax.random.normal(noise, (n, 3), jnp.bfloat16),
        jax.random.bernoulli(jax.random.fold_in(mask, 7), 0.3, (n, 2, 2)),
        jax.vmap(lambda key: jax.random.uniform(key, (2,)))(jax.random.split(rows, n)),
        jax.random.randint(labels, (n,), 0, 9),
        jax.random.uniform(one),
    ]


def test_a_part_draws_what_its_rows_have_in_the_whole():
    key = jax.random.key(3)
    whole = draws(key, PARTS * ROWS)
    of_part = jax.jit(lambda i: draws(microbatches.part_key(key, i, PARTS, ROWS), ROWS))
    for i in range(PARTS):
        for all_of_them, own in zip(whole, of_part(jnp.int32(i)), strict=True):
            expected = all_of_them[i::PARTS] if all_of_them.ndim else all_of_them
            np.testing.assert_array_equal(np.float32(own), np.float32(expected))


@pytest.mark.parametrize("shape", [(3,), (ROWS + 1, 2)])
def test_draws_that_are_no_rows_are_of_each_part_alone(shape):
    key = jax.random.key(3)
    found = {
        jax.random.bits(microbatches.part_key(key, jnp.int32(i), PARTS, ROWS), shape).tobytes()
        for i in range(PARTS)
    }
    assert len(found) == PARTS


def test_another_generator_draws_other_numbers_for_each_part():
    key = jax.random.key(3, impl="rbg")
    found = [microbatches.part_key(key, jnp.int32(i), PARTS, ROWS) for i in range(2)]
    assert found[0].dtype == key.dtype
    assert jax.random.uniform(found[0]) != jax.random.uniform(found[1])


def stepped(family: Family, config, batch, spec, parts: int):
    """Parameters and metrics after one step."""
    config = config | {"train": config["train"] | {"microbatches": parts}}
    plan = common.recipe_of(config, family, spec)
    state = init_state(plan, *streams.init(0))
    step = jax.jit(partial(train_step, plan, (0,)))
    state, metrics = step(state, {}, jax.tree.map(lambda x: x[None], batch))
    return state.params, metrics


def test_ddpm_with_dropout_learns_the_same_from_parts():
    config = ddpm_digits.get_config("smoke").to_dict()
    config["network"] |= {"dropout": 0.3, "multipliers": (1,), "attention": ()}
    config["optimizer"] = toys.optimizer("sgd", learning_rate=0.1)
    spec = specs.OF_CONFIGS["digits"]
    images = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 1), np.uint8)
    batch = {"x": images, "label": np.arange(16, dtype=np.int32) % 10}
    family = build.build(config, spec)
    whole, one = stepped(family, config, batch, spec, 1)
    parts, four = stepped(family, config, batch, spec, 2)
    assert one.keys() == four.keys()
    for name in one:
        np.testing.assert_allclose(four[name], one[name], rtol=1e-4, err_msg=name)
    for own, expected in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(own, expected, atol=2e-6)


@pytest.mark.parametrize("looped", [False, True])
def test_the_gradient_of_the_whole_in_a_loop_or_not(looped, monkeypatch):
    if looped:  # as on accelerators
        monkeypatch.setattr(jax.lax, "platform_dependent", lambda x, cpu, default: default(x))

    def loss(w, batch, key):
        noise = jax.random.normal(key, batch["x"].shape)
        value = jnp.mean(jnp.tanh((batch["x"] + noise) @ w))
        return value, {"value": value}

    batch = {"x": jax.random.normal(jax.random.key(0), (32, 3))}
    w, key = jnp.ones((3, 2)), jax.random.key(1)
    whole = jax.value_and_grad(loss, has_aux=True)(w, batch, key)
    program = jax.jit(partial(microbatches.value_and_grad, loss, parts=4)).lower(w, batch, key)
    assert ('"known_trip_count":{"n":"4"}' in program.compile().as_text()) == looped
    found = microbatches.value_and_grad(loss, w, batch, key, 4)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), found, whole)


def test_parts_that_cannot_be_are_refused():
    spec = toys.SPEC
    config = toys.config("one", {"train.microbatches": 3})
    with pytest.raises(SettingError, match=r"microbatches=3 .*batch_size=16; take 2 or 4"):
        common.recipe_of(config, toys.one_player(), spec)
    with pytest.raises(SettingError, match=r"16 .* 8 devices in 4 parts each .* 32 or 64"):
        sharding.check_batch(16, sharding.make_mesh(jax.devices()[:8]), 4)
    config = dcgan_celeba64.get_config("smoke").to_dict()
    config["train"]["microbatches"] = 2
    spec = specs.OF_CONFIGS["celeba64"]
    with pytest.raises(SettingError, match=r"microbatches=2: this model keeps .*batch norm"):
        common.recipe_of(config, build.build(config, spec), spec)
