"""The family of GANs: what each player pays and moves, what is kept from step to step."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from gan_toys import (
    SETTINGS,
    SHAPE,
    SPEC,
    B,
    Formula,
    config,
    digits,
    images,
    linear,
    run,
    small,
    started,
)

from aigc_jax import build
from aigc_jax.gan import augment, losses
from aigc_jax.gan import family as families
from aigc_jax.training import loop, sharding
from aigc_jax.training.checkpoint import Checkpoints
from aigc_jax.training.step import active_phases, train_step, update

# --- Losses ------------------------------------------------------------------------------------


def test_the_losses_are_those_of_the_logits():
    batch = images()
    for name in losses.LOSSES:
        made, game = linear(loss=name), losses.build(name)
        value, (metrics, _) = run(made, 0, batch)
        w = np.array([0.5, -1.0, 2.0, 0.25])
        on_real = np.asarray(batch["image"]).reshape(B, -1) @ w
        np.testing.assert_allclose(metrics["logit_real"], on_real.mean(), rtol=1e-5)
        # The generated images are those that the same key draws.
        z_key = jax.random.split(jax.random.key(1), 4)[0]
        fake = 0.3 * np.asarray(jax.random.normal(z_key, (B, 4))) + 0.2
        np.testing.assert_allclose(
            value, game.discriminator(on_real, fake @ w).mean(), rtol=1e-5, err_msg=name
        )
        value, _ = run(made, 1, batch)
        z_key = jax.random.split(jax.random.key(1), 3)[0]
        fake = 0.3 * np.asarray(jax.random.normal(z_key, (B, 4))) + 0.2
        np.testing.assert_allclose(value, game.generator(on_real, fake @ w).mean(), rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "weight", "expected"),
    [
        ("r1", 3.0, lambda n: 1.5 * n**2),  # gamma / 2
        ("r1_r2", 3.0, lambda n: 3.0 * n**2),
        ("gradient_penalty", 3.0, lambda n: 3.0 * (n - 1) ** 2),
        ("dragan", 3.0, lambda n: 3.0 * (n - 1) ** 2),
    ],
)
def test_a_penalty_is_paid_with_its_published_weight_at_once_or_lazily(name, weight, expected):
    batch, norm = images(), np.linalg.norm([0.5, -1.0, 2.0, 0.25])
    plain, _ = run(linear(), 0, batch)
    made = linear(penalty=losses.Penalty(name, weight, 1))
    found, (metrics, _) = run(made, 0, batch)
    np.testing.assert_allclose(metrics["penalty"], expected(norm), rtol=1e-5)
    np.testing.assert_allclose(found - plain, expected(norm), rtol=1e-4)

    lazy = linear(penalty=losses.Penalty(name, weight, 16))
    assert [(p.player, p.every) for p in lazy.phases] == [
        ("discriminator", 1),
        ("discriminator", 16),
        ("generator", 1),
    ]
    np.testing.assert_allclose(run(lazy, 0, batch)[0], plain, rtol=1e-6)
    np.testing.assert_allclose(run(lazy, 1, batch)[0], 16 * expected(norm), rtol=1e-5)
    assert active_phases(lazy, 15) == (0, 2)
    assert active_phases(lazy, 32) == (0, 1, 2)


def test_both_players_pay_for_classes_by_their_own_weights():
    batch = images()
    plain, with_classes = linear(), linear(classes=2)
    right = losses.class_loss(batch["image"].reshape(B, -1)[:, :2], batch["label"]).mean()
    value, (metrics, _) = run(with_classes, 0, batch)
    np.testing.assert_allclose(metrics["class_loss"], right, rtol=1e-5)
    assert value > run(plain, 0, batch)[0] + right  # the generated ones' beside
    value, (metrics, _) = run(with_classes, 1, batch)
    np.testing.assert_allclose(
        value - run(plain, 1, batch)[0], 0.5 * metrics["class_loss"], rtol=1e-4
    )


def test_a_penalty_is_with_respect_to_images_before_their_augmentation():
    """All of an image cut to a quarter or less leaves a quarter of the slope's squares or less."""
    cut = augment.Augmentation(("cutout",), 1.0, 0.0, 1e3)
    penalty = losses.Penalty("r1", 2.0, 1)
    whole = run(linear(penalty=penalty), 0, images())[1][0]["penalty"]
    found = run(linear(penalty=penalty, augment=cut), 0, images())[1][0]["penalty"]
    assert 0 < found < whole


def test_the_generators_batch_can_be_larger():
    seen = []

    def draw(p, z, label):
        seen.append(len(z))
        return p["in"]["kernel"][0, 0] * z.reshape(-1, *SHAPE)

    made = linear(generator_batch=3)
    generator = Formula(
        of=draw,
        weights={"in": {"kernel": jnp.ones((4, 4))}},
        num_classes=0,
        latent=4,
        image_shape=SHAPE,
    )
    discriminator = Formula(
        of=lambda p, x, label: (x.reshape(len(x), -1) @ p["w"], None),
        weights={"w": jnp.ones(4)},
    )
    made = families.gan(generator, discriminator, **SETTINGS | {"generator_batch": 3})
    run(made, 1, images())
    assert seen == [3 * B]


def test_penalty_and_augmentation_go_along_a_cosine_with_the_generators_updates():
    penalty = losses.Penalty("r1", 8.0, 1, weight_end=2.0)
    policy = augment.Augmentation(("translation",), 0.0, 0.0, 1e3, probability_end=0.5)
    made = linear(penalty=penalty, augment=policy, decay_steps=4)
    params, extra = made.init(jax.random.key(0))
    critic, move = (jax.jit(phase.loss) for phase in made.phases)
    slopes = []
    for step in range(6):
        left = (1 + np.cos(np.pi * min(step / 4, 1))) / 2
        assert int(extra["step"]) == step
        _, (metrics, extra) = critic(params, extra, images(), jax.random.key(0))
        expected = 0.5 * (1 - left)
        np.testing.assert_allclose(metrics["augment_probability"], expected, atol=1e-6)
        slopes.append(metrics["penalty"] / (1 + left * 3))  # of a weight of 2
        _, (_, extra) = move(params, extra, images(), jax.random.key(0))
    # No image is moved at first, so the slope is of all its pixels; later it is at most that.
    np.testing.assert_allclose(slopes[0], np.square([0.5, -1.0, 2.0, 0.25]).sum(), rtol=1e-5)
    np.testing.assert_allclose(slopes[4], slopes[5], rtol=1e-5)
    assert max(slopes[1:]) <= slopes[0] * (1 + 1e-5)


def test_adaptive_augmentation_moves_with_how_sure_the_discriminator_is():
    adaptive = augment.Augmentation(("translation",), 0.5, 0.6, images=60.0)
    for sign, expected in ((1.0, 0.6), (-1.0, 0.4)):
        made = linear(augment=adaptive)
        params, extra = made.init(jax.random.key(0))
        assert extra["augment_probability"] == 0.5
        params["discriminator"]["w"] = jnp.full(4, sign)
        batch = {"image": jnp.ones((B, *SHAPE))}
        _, (metrics, extra) = made.phases[0].loss(params, extra, batch, jax.random.key(0))
        np.testing.assert_allclose(extra["augment_probability"], expected, rtol=1e-6)
        np.testing.assert_allclose(metrics["augment_probability"], expected, rtol=1e-6)


# --- State -------------------------------------------------------------------------------------

# Everything that there is to keep: both kinds of norm, an adaptive probability, two critics.
FULL = {
    "gan__critics": 2,
    "gan__augment": ("translation",),
    "gan__augment_target": 0.6,
    "gan__augment_images": 100.0,
    "gan__augment_probability": 0.5,
    "network__discriminator__norm": "spectral",
    "network__discriminator__conditioning": "projection",
}


def test_each_phase_moves_only_its_player_and_its_statistics():
    setting = config(**FULL)
    made = build.build(setting, SPEC)
    plan, state = started(made, setting)
    batch = plan.prepare(jax.tree.map(lambda x: x[0], digits(fresh=2)), state.key)
    expected = {
        "discriminator": {"discriminator", "augment_probability"},
        "generator": {"generator"},
    }
    for i in (0, 2):
        phase = made.phases[i]
        step = jax.jit(partial(update, phase, plan.optimizers[phase.player]))
        after, _, finite = step(state, batch, jax.random.key(i))
        assert finite
        for field in ("params", "opt"):
            old, new = getattr(state, field), getattr(after, field)
            changed = {player for player in old if not toys.same(old[player], new[player])}
            assert changed == {phase.player}
        changed = {k for k in state.extra if not toys.same(state.extra[k], after.extra[k])}
        assert changed == expected[phase.player]


def test_the_rate_of_several_critics_falls_with_the_steps():
    changes = {"optimizer__name": "sgd", "optimizer__schedule": "linear", "train__steps": 2}
    setting = config(gan__critics=3, optimizer__learning_rate=1.0, **changes)
    plan = loop.recipe(setting, build.build(setting, SPEC))
    for player, moves in (("generator", [1, 0.5, 0]), ("discriminator", [1, 5 / 6, 4 / 6, 3 / 6])):
        tx = plan.optimizers[player]
        state = tx.init(jnp.zeros(()))
        for expected in moves:
            update, state = tx.update(jnp.ones(()), state)
            np.testing.assert_allclose(update, -expected, atol=1e-6)


def test_every_update_of_the_discriminator_sees_images_of_its_own():
    made = small(gan__critics=3)
    assert made.fresh == 3
    assert [phase.player for phase in made.phases] == ["discriminator"] * 3 + ["generator"]


def test_a_restored_run_goes_on_to_the_same_bits(tmp_path):
    setting = config(**FULL)
    made = build.build(setting, SPEC)
    mesh = sharding.make_mesh(jax.devices()[:1])
    plan = loop.recipe(setting, made)
    target = sharding.abstract_state(plan, mesh, "replicated")
    step = jax.jit(partial(train_step, plan, active_phases(made, 0)))
    state = sharding.new_state(plan, target, 0)
    for _ in range(2):
        state, _ = step(state, digits(fresh=2))
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(2, state, {})
    checkpoints.wait()
    restored, _ = checkpoints.restore(target)
    checkpoints.close()
    assert toys.same(state, restored)
    assert state.extra.keys() == {"generator", "discriminator", "augment_probability"}
    assert toys.same(step(state, digits(fresh=2)), step(restored, digits(fresh=2)))


@pytest.mark.parametrize(
    ("mode", "norm", "penalty"),
    [
        ("replicated", "batch", "none"),
        ("fsdp", "spectral", "none"),
        ("replicated", "none", "gradient_penalty"),
    ],
)
def test_eight_devices_train_as_one(mode, norm, penalty):
    # Adam turns the near-zero gradient of a bias before a batch norm into noise.
    setting = config(network__discriminator__norm=norm, gan__penalty=penalty, optimizer__name="sgd")
    made = build.build(setting, SPEC)
    plan = loop.recipe(setting, made)
    found = []
    for devices in (1, 8):
        mesh = sharding.make_mesh(jax.devices()[:devices])
        target = sharding.abstract_state(plan, mesh, mode)
        step, state = sharding.compile_step(plan, mesh, target), sharding.new_state(plan, target, 0)
        for _ in range(2):
            batch = sharding.put(mesh, digits(), axis=1)
            state, metrics = step(active_phases(made, 0), state, batch)
        found.append(sharding.fetch((state.params, state.extra, metrics)))
    for one, eight in zip(*(jax.tree.leaves(f) for f in found), strict=True):
        np.testing.assert_allclose(one, eight, rtol=2e-4, atol=2e-6)


def test_frozen_layers_of_the_discriminator_stay():
    setting = config(gan__frozen=1, network__discriminator__norm="none")
    made = build.build(setting, SPEC._replace(image_shape=(16, 16, 1)))
    plan, state = started(made, setting)
    batch = {"image": jax.random.uniform(jax.random.key(0), (8, 16, 16, 1), minval=-1.0)}
    step = jax.jit(partial(update, made.phases[0], plan.optimizers["discriminator"]))
    after, _, _ = step(state, batch, jax.random.key(1))
    old, new = state.params["discriminator"], after.params["discriminator"]
    assert {k for k in old if toys.same(old[k], new[k])} == {"down_0"}
    with pytest.raises(ValueError, match=r"gan\.frozen lies in 0\.\.2 .*not 3"):
        families.lower_layers(old, 3)
