"""Terms beside a VAE's bound, and a second player who judges its reconstructions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from vae_toys import PIXELS, Formula, constant, family, images, loss, started

from aigc_jax import build
from aigc_jax.data.datasets import DataSpec
from aigc_jax.training import loop
from aigc_jax.training.step import init_state, update
from aigc_jax.vae import adversary
from configs import kl_autoencoder_celeba64


def opposed(start=0, weight=2.0, **changes):
    """A model of mean 0 whose reconstructions a linear opponent likes by its w."""
    opponent = adversary.Opponent(
        "critic",
        init=lambda key: {"w": jnp.float32(0.5)},
        loss=lambda own, real, fake: own["w"] * jnp.sum(fake - real, axis=(1, 2, 3)),
        term=lambda own, fake: -own["w"] * jnp.sum(fake, axis=(1, 2, 3)),
        weight=weight,
        start=start,
    )
    decode = Formula(
        constant(0.0, 0.0), lambda w, z, label: 0.0 * z + w["out"], {"out": jnp.float32(0.25)}
    )
    return family(decode, opponent=opponent, **changes)


def test_a_term_is_paid_beside_the_bound_and_reported_by_its_name():
    def far(x, image):
        return jnp.sum(jnp.abs(x - image), axis=(1, 2, 3))

    network = Formula(constant(0.0, 0.0), lambda w, z, label: 0.0 * z + 0.25)
    plain, batch = family(network), images(6)
    value, _ = loss(plain, batch)
    with_term, (shown, _) = loss(family(network, terms={"far": far}), batch)
    expected = jnp.mean(far(batch["image"], 0.25))
    np.testing.assert_allclose(with_term - value, expected, rtol=1e-5)
    np.testing.assert_allclose(shown["far"], expected, rtol=1e-6)
    np.testing.assert_allclose(shown["neg_elbo"], value, rtol=1e-6)  # no part of the bound


def test_an_opponent_is_weighed_against_what_the_image_costs():
    batch, sigma = images(6), 0.5
    value, _ = loss(family(Formula(constant(0.0, 0.0), lambda w, z, label: 0.0 * z + 0.25)), batch)
    found, (shown, _) = loss(opposed(), batch)
    slope = np.linalg.norm((0.25 - batch["image"]) / sigma**2)
    weight = 2.0 * slope / np.linalg.norm(np.full(6 * PIXELS, 0.5))
    np.testing.assert_allclose(shown["critic"], weight * -0.5 * 0.25 * PIXELS, rtol=1e-5)
    np.testing.assert_allclose(found, value + shown["critic"], rtol=1e-5)


def test_before_its_step_the_opponent_plays_no_part():
    batch = images(6)
    for step, share in ((2, 0.0), (3, 1.0)):
        made = opposed(start=3)
        _, (shown, extra) = loss(made, batch, step=step)
        assert (shown["critic"] != 0) == bool(share)
        params, _ = started(made)
        value, _ = made.phases[1].loss(params, extra, batch, jax.random.key(0))
        expected = share * 0.5 * jnp.mean(jnp.sum(0.25 - batch["image"], axis=(1, 2, 3)))
        np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_each_player_moves_by_its_own_loss_alone():
    made, batch = opposed(), images(6)
    plan = loop.recipe(toys.config("one", {"optimizer": toys.optimizer("sgd")}), made)
    state = init_state(plan, jax.random.key(0))
    assert made.averaged == ("net",)
    assert state.params.keys() == {"net", "critic"}
    for phase, player in zip(made.phases, ("net", "critic"), strict=True):
        after, _, _ = update(phase, plan.optimizers[player], state, batch, jax.random.key(1))
        for name in state.params:
            same = toys.same(state.params[name], after.params[name])
            assert same == (name != player)
        state = after


def test_an_opponent_that_is_sure_everywhere_gets_a_bounded_weight():
    weight = adversary.balance(lambda o: o.sum(1), lambda o: 0.0 * o.sum(1), jnp.ones((2, 3)))
    assert weight == adversary.MAX_WEIGHT


def test_the_patch_discriminators_losses_are_hinges_of_its_map():
    made = adversary.patch((32, 32, 1), weight=0.5, start=0, width=4)
    params = made.init(jax.random.key(0))
    real, fake = jax.random.uniform(jax.random.key(1), (2, 3, 32, 32, 1), minval=-1.0)
    network = adversary.Discriminator(image_shape=(32, 32, 1), width=4)
    on_real, on_fake = (
        np.asarray(network.apply({"params": params}, x)[0]).reshape(3, -1) for x in (real, fake)
    )
    expected = 0.5 * (np.maximum(1 - on_real, 0) + np.maximum(1 + on_fake, 0)).mean(1)
    np.testing.assert_allclose(made.loss(params, real, fake), expected, rtol=1e-5)
    np.testing.assert_allclose(made.term(params, fake), -on_fake.mean(1), rtol=1e-5)
    with pytest.raises(ValueError, match="adversary_weight is above 0"):
        adversary.patch((32, 32, 1), weight=-1.0, start=0)


def test_a_config_brings_its_opponent():
    setting = kl_autoencoder_celeba64.get_config("smoke")
    made = build.build(setting, DataSpec((64, 64, 3), 0, {}))
    params = jax.eval_shape(made.init, jax.random.key(0))[0]
    assert [phase.player for phase in made.phases] == ["net", "discriminator"]
    assert params.keys() == {"net", "discriminator"}
    assert made.averaged == ("net",)


def test_a_resumed_run_is_the_uninterrupted_one_with_its_opponent(tmp_path):
    # Stopped before the opponent joins: the step count that admits it is restored too.
    shape = (toys.SIDE, toys.SIDE, 1)
    made = opposed(start=4, shape=shape, noise="gaussian", noise_level=0.2)
    whole, resumed = toys.resumed(tmp_path, made, stop=3, steps=6)
    assert toys.same(resumed, whole)
    params, _ = made.init(jax.random.key(0))
    assert not toys.same(whole.params["critic"], params["critic"])  # it does play
