"""Costs beside a VAE's bound, and a second player who tells reconstructions from data."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import specs
import toys
from vae_toys import PIXELS, Formula, compiled, constant, images, loss, started, vae, viewed

from aigc_jax import build, streams
from aigc_jax.training.step import init_state, update
from aigc_jax.vae import adversary
from aigc_jax.vae.noise import Noise
from configs import kl_autoencoder_celeba64

LEVEL = 0.25  # of every reconstruction below
DECODED = Formula(
    constant(0.0, 0.0), lambda w, z, label: 0.0 * z + w["out"], {"out": jnp.float32(LEVEL)}
)


def opposed(start=0, weight=2.0, **changes):
    """A model of mean 0 with a linear adversary, who takes images for data by its w."""
    critic = adversary.Adversary(
        "critic",
        init=lambda key: {"w": jnp.float32(0.5)},
        discriminator_loss=lambda own, x, fake: own["w"] * jnp.sum(fake - x, axis=(1, 2, 3)),
        generator_loss=lambda own, fake: -own["w"] * jnp.sum(fake, axis=(1, 2, 3)),
        weight=weight,
        start=start,
    )
    return vae(DECODED, adversary=critic, **changes)


class Far(NamedTuple):
    """A perceptual cost that is a distance, times what its frozen network holds."""

    factor: float = 3.0

    def variables(self):
        return {"factor": np.float32(self.factor)}

    def __call__(self, variables, x, other):
        return variables["factor"] * jnp.sum(jnp.abs(x - other), axis=(1, 2, 3))


def test_a_perceptual_cost_is_beside_the_bound_and_reported_by_its_name():
    batch = images(6)
    value, _ = loss(vae(DECODED), batch)
    made = vae(DECODED, perceptual=Far())
    constants = made.family().constants()
    assert constants == {"perceptual": {"factor": 3.0}}
    with_cost, (shown, _) = loss(made, batch, constants=constants)
    expected = 3 * jnp.mean(jnp.sum(jnp.abs(batch["x"] - LEVEL), axis=(1, 2, 3)))
    np.testing.assert_allclose(with_cost - value, expected, rtol=1e-5)
    np.testing.assert_allclose(shown["perceptual"], expected, rtol=1e-6)
    np.testing.assert_allclose(shown["neg_elbo"], value, rtol=1e-6)  # no part of the bound
    assert vae(DECODED).family().constants is None


def test_the_frozen_network_is_an_argument_of_the_compiled_loss():
    made, batch = vae(DECODED, perceptual=Far()), images(6)
    costs = [
        loss(made, batch, constants={"perceptual": {"factor": jnp.float32(f)}})[1][0]["perceptual"]
        for f in (1.0, 2.0)
    ]
    np.testing.assert_allclose(costs[1], 2 * costs[0], rtol=1e-6)
    assert compiled(made, "loss")._cache_size() == 1


def test_an_adversary_is_weighed_against_what_the_image_costs():
    batch, sigma = images(6), 0.5
    value, _ = loss(vae(DECODED), batch)
    found, (shown, _) = loss(opposed(), batch)
    slope = np.linalg.norm((LEVEL - batch["x"]) / sigma**2)
    weight = 2.0 * slope / np.linalg.norm(np.full(6 * PIXELS, 0.5))
    np.testing.assert_allclose(shown["critic"], weight * -0.5 * LEVEL * PIXELS, rtol=1e-5)
    np.testing.assert_allclose(found, value + shown["critic"], rtol=1e-5)


def test_what_the_image_costs_includes_the_perceptual_cost():
    batch, sigma = images(6), 0.5
    made = opposed(perceptual=Far())
    constants = {"perceptual": {"factor": jnp.float32(3.0)}}
    _, (shown, _) = loss(made, batch, constants=constants)
    apart = LEVEL - batch["x"]
    slope = np.linalg.norm(apart / sigma**2 + 3 * np.sign(apart))
    weight = 2.0 * slope / np.linalg.norm(np.full(6 * PIXELS, 0.5))
    np.testing.assert_allclose(shown["critic"], weight * -0.5 * LEVEL * PIXELS, rtol=1e-5)


def test_before_its_step_the_adversary_plays_no_part():
    batch, made = images(6), opposed(start=3)
    for step, share in ((2, 0.0), (3, 1.0)):
        _, (shown, _) = loss(made, batch, step=step)
        assert (shown["critic"] != 0) == bool(share)
        view = viewed(started(made), step)
        own_loss = compiled(made, "discriminator_loss")
        value, (metrics, extra) = own_loss(view, batch, jax.random.key(0))
        expected = share * 0.5 * jnp.mean(jnp.sum(LEVEL - batch["x"], axis=(1, 2, 3)))
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        assert metrics == extra == {}


def test_each_player_changes_by_its_own_loss_alone():
    made, batch = opposed().family(), images(6)
    plan = toys.recipe_of(made, toys.config("one", {"optimizer": toys.optimizer("sgd")}))
    state = init_state(plan, *streams.init(0))
    assert made.averaged == ("net",)
    assert state.params.keys() == {"net", "critic"}
    for phase, player in zip(made.phases, ("net", "critic"), strict=True):
        run = jax.jit(functools.partial(update, phase, plan.optimizers[player]))
        after, _, _ = run(state, {}, batch, jax.random.key(1))
        for name in state.params:
            same = toys.same(state.params[name], after.params[name])
            assert same == (name != player)
        state = after


def test_an_adversary_that_is_sure_everywhere_gets_a_bounded_weight():
    weight = adversary.balance(lambda o: o.sum(1), lambda o: 0.0 * o.sum(1), jnp.ones((2, 3)))
    assert weight == adversary.MAX_WEIGHT


def test_the_patch_discriminators_losses_are_hinges_of_its_map():
    shape = (24, 24, 1)  # the smallest that leaves a logit
    made = adversary.patch(shape, weight=0.5, start=0, width=2)
    params = jax.jit(made.init)(jax.random.key(0))
    real, fake = jax.random.uniform(jax.random.key(1), (2, 3, *shape), minval=-1.0)
    network = adversary.Discriminator(image_shape=shape, width=2)

    @jax.jit
    def run(params, real, fake):
        logits = [network.apply({"params": params}, x)[0].reshape(3, -1) for x in (real, fake)]
        losses = made.discriminator_loss(params, real, fake), made.generator_loss(params, fake)
        return *logits, *losses

    on_real, on_fake, discriminator_loss, generator_loss = map(np.asarray, run(params, real, fake))
    expected = 0.5 * (np.maximum(1 - on_real, 0) + np.maximum(1 + on_fake, 0)).mean(1)
    np.testing.assert_allclose(discriminator_loss, expected, rtol=1e-5)
    np.testing.assert_allclose(generator_loss, -on_fake.mean(1), rtol=1e-5)


def test_a_config_brings_its_adversary():
    setting = kl_autoencoder_celeba64.get_config("smoke")
    made = build.build(setting, specs.images((64, 64, 3)))
    params = jax.eval_shape(made.init, jax.random.key(0))[0]
    assert [phase.player for phase in made.phases] == ["net", "discriminator"]
    assert params.keys() == {"net", "discriminator"}
    assert made.averaged == ("net",)


def test_a_resumed_run_is_the_uninterrupted_one_with_its_adversary(tmp_path):
    # Stopped before the adversary joins: the step that admits it is restored too.
    shape = (toys.SIDE, toys.SIDE, 1)
    made = opposed(start=4, shape=shape, noise=Noise("gaussian", 0.2))
    whole, resumed = toys.resumed(tmp_path, made.family(), stop=3, steps=6)
    assert toys.same(resumed, whole)
    params, _ = made.init(jax.random.key(0))
    assert not toys.same(whole.params["critic"], params["critic"])  # it does play
