"""The family of GANs: what each player minimises, who moves, what is kept from step to step."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import specs
import toys
from gan_toys import (
    SHAPE,
    WEIGHTS,
    B,
    config,
    digits,
    drawn,
    images,
    linear,
    recipe_of,
    run,
    small,
    started,
    view,
)

from aigc_jax.gan import augment, frozen, losses
from aigc_jax.training import sharding
from aigc_jax.training.checkpoint import Checkpoints
from aigc_jax.training.step import active_phases, train_step, update

ONE = sharding.make_mesh(jax.devices()[:1])

# --- Losses ------------------------------------------------------------------------------------


def test_the_losses_are_those_of_the_logits():
    batch = images()
    on_real = np.asarray(batch["x"]).reshape(B, -1) @ WEIGHTS
    # The generated images are those that the same key draws.
    critic_key, generator_key = (jax.random.split(jax.random.key(1), n)[0] for n in (4, 3))
    for name in losses.LOSSES:
        made, game = linear(loss=name), losses.build(name)
        value, (metrics, _) = run(made, "critic_loss", batch)
        np.testing.assert_allclose(metrics["logit_real"], on_real.mean(), rtol=1e-5)
        expected = game.discriminator(on_real, drawn(critic_key) @ WEIGHTS).mean()
        np.testing.assert_allclose(value, expected, rtol=1e-5, err_msg=name)
        value, _ = run(made, "generator_loss", batch)
        expected = game.generator(on_real, drawn(generator_key) @ WEIGHTS).mean()
        np.testing.assert_allclose(value, expected, rtol=1e-5, err_msg=name)


PENALTIES = [
    ("r1", lambda n: 1.5 * n**2),  # gamma / 2
    ("r1_r2", lambda n: 3.0 * n**2),
    ("gradient_penalty", lambda n: 3.0 * (n - 1) ** 2),
    ("dragan", lambda n: 3.0 * (n - 1) ** 2),
]


@pytest.mark.parametrize(("name", "expected"), PENALTIES)
def test_a_penalty_has_its_published_weight_in_every_step_or_lazily(name, expected):
    batch, norm = images(), np.linalg.norm(WEIGHTS)
    made = linear(penalty=losses.Penalty(name, 3.0))
    fake = jnp.ones((B, *SHAPE))
    alone = made.gradient_penalty(view(made), batch["x"], fake, None, jax.random.key(0))
    np.testing.assert_allclose(alone, np.full(B, expected(norm)), rtol=1e-5)
    plain, _ = run(linear(), "critic_loss", batch)
    found, (metrics, _) = run(made, "critic_loss", batch)
    np.testing.assert_allclose(metrics["penalty"], expected(norm), rtol=1e-5)
    np.testing.assert_allclose(found - plain, expected(norm), rtol=1e-4)

    lazy = linear(penalty=losses.Penalty(name, 3.0, every=16))
    np.testing.assert_allclose(run(lazy, "critic_loss", batch)[0], plain, rtol=1e-6)
    np.testing.assert_allclose(run(lazy, "penalty_loss", batch)[0], 16 * expected(norm), rtol=1e-5)
    family = lazy.family()
    assert [(p.player, p.every, p.name) for p in family.phases] == [
        ("discriminator", 1, ""),
        ("discriminator", 16, "penalty"),
        ("generator", 1, ""),
    ]
    assert active_phases(family, 15) == (0, 2)
    assert active_phases(family, 32) == (0, 1, 2)


def test_class_losses_count_for_both_players_by_their_own_weights():
    batch = images()
    plain, with_classes = linear(), linear(classes=2)
    on_data = losses.class_loss(batch["x"].reshape(B, -1)[:, :2], batch["label"]).mean()
    value, (metrics, _) = run(with_classes, "critic_loss", batch)
    np.testing.assert_allclose(metrics["class_loss"], on_data, rtol=1e-5)
    # The generated images' is added to it.
    assert value > run(plain, "critic_loss", batch)[0] + on_data
    value, (metrics, _) = run(with_classes, "generator_loss", batch)
    np.testing.assert_allclose(
        value - run(plain, "generator_loss", batch)[0], 0.5 * metrics["class_loss"], rtol=1e-4
    )


def test_the_generators_batch_can_be_larger():
    made = linear(generator_batch=3)
    sizes, draw = [], made.generator.of
    made.generator.of = lambda p, z, label: (sizes.append(len(z)), draw(p, z, label))[1]
    run(made, "generator_loss", images())
    assert sizes == [3 * B]


def test_penalty_and_augmentation_go_along_a_cosine_with_the_steps():
    penalty = losses.Penalty("r1", 8.0, weight_end=2.0)
    policy = augment.Augmentation(("cutout",), 0.0, probability_end=1.0)
    made = linear(penalty=penalty, augmentation=policy, decay_steps=4)
    assert set(view(made).extra) == set()  # the step is the trainer's
    critic = jax.jit(made.critic_loss)
    slopes = []
    for step in range(6):
        left = (1 + np.cos(np.pi * min(step / 4, 1))) / 2
        _, (metrics, _) = critic(view(made, jnp.int32(step)), images(), jax.random.key(0))
        np.testing.assert_allclose(metrics["augment_probability"], 1 - left, atol=1e-6)
        slopes.append(metrics["penalty"] / (1 + left * 3))  # of a weight of 2
    # It is the slope with respect to images before their augmentation: at first of all pixels of
    # all images, at the end of a part of them.
    np.testing.assert_allclose(slopes[0], np.square(WEIGHTS).sum(), rtol=1e-5)
    np.testing.assert_allclose(slopes[4], slopes[5], rtol=1e-5)
    assert max(slopes[1:]) <= slopes[0] * (1 + 1e-5)
    assert 0 < slopes[4] < slopes[0]


def test_adaptive_augmentation_follows_how_sure_the_discriminator_is():
    adaptive = augment.Augmentation(("translation",), 0.5, target=0.6, images=60.0)
    made = linear(augmentation=adaptive)
    for sign, expected in ((1.0, 0.6), (-1.0, 0.4)):
        shown = view(made)
        assert shown.extra["augment_probability"] == 0.5
        shown.params["discriminator"]["w"] = jnp.full(4, sign)
        batch = {"x": jnp.ones((B, *SHAPE))}
        _, (metrics, extra) = made.critic_loss(shown, batch, jax.random.key(0))
        np.testing.assert_allclose(extra["augment_probability"], expected, rtol=1e-6)
        np.testing.assert_allclose(metrics["augment_probability"], expected, rtol=1e-6)


# --- State -------------------------------------------------------------------------------------

# Everything that there is to keep: both kinds of norm, an adaptive probability, two critics.
FULL = {
    "gan__critics": 2,
    "gan__augment__policy": ("translation",),
    "gan__augment__target": 0.6,
    "gan__augment__images": 100.0,
    "gan__augment__probability": 0.5,
    "network__discriminator__norm": "spectral",
    "network__discriminator__conditioning": "projection",
}


@pytest.fixture(scope="module")
def full():
    """(recipe, state at step 0, {player: its compiled update}) of such a GAN."""
    plan = recipe_of(small(**FULL), config(**FULL))
    critic, _, generator = plan.family.phases  # the second critic is the first one again
    updates = {
        phase.player: jax.jit(partial(update, phase, plan.optimizers[phase.player]))
        for phase in (critic, generator)
    }
    return plan, started(plan), updates


def prepared(plan, key):
    """The two batches of a step, as the losses see them."""
    loaded = digits(batches=2)
    return [plan.prepare({k: x[i] for k, x in loaded.items()}, {"x": key}) for i in range(2)]


def test_each_phase_moves_only_its_player_and_its_statistics(full):
    plan, state, updates = full
    batch = prepared(plan, state.key)[0]
    expected = {
        "discriminator": {"discriminator", "augment_probability"},
        "generator": {"generator"},
    }
    for player, step in updates.items():
        after, _, finite = step(state, {}, batch, jax.random.key(0))
        assert finite
        for field in ("params", "opt"):
            old, new = getattr(state, field), getattr(after, field)
            assert {name for name in old if not toys.same(old[name], new[name])} == {player}
        changed = {k for k in state.extra if not toys.same(state.extra[k], after.extra[k])}
        assert changed == expected[player]


def test_a_restored_run_goes_on_to_the_same_bits(full, tmp_path):
    plan, state, _ = full
    step = jax.jit(partial(train_step, plan, active_phases(plan.family, 0)))
    for _ in range(2):
        state, _ = step(state, {}, digits(batches=2))
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(2, state, {})
    checkpoints.wait()
    restored, _ = checkpoints.restore(sharding.abstract_state(plan, ONE, "replicated"))
    checkpoints.close()
    assert toys.same(state, restored)
    assert state.extra.keys() == {"generator", "discriminator", "augment_probability"}
    assert toys.same(*(step(s, {}, digits(batches=2)) for s in (state, restored)))


def test_the_rate_of_several_critics_falls_with_the_steps():
    changes = {"optimizer__name": "sgd", "optimizer__schedule": "linear", "train__steps": 2}
    changes |= {"gan__critics": 3, "optimizer__learning_rate": 1.0}
    plan = recipe_of(small(**changes), config(**changes))
    for player, rates in (("generator", [1, 0.5, 0]), ("discriminator", [1, 5 / 6, 4 / 6, 3 / 6])):
        tx = plan.optimizers[player]
        state = tx.init(jnp.zeros(()))
        for expected in rates:
            change, state = tx.update(jnp.ones(()), state)
            np.testing.assert_allclose(change, -expected, atol=1e-6)


def test_every_update_of_the_discriminator_sees_images_of_its_own():
    made = small(gan__critics=3).family()
    assert made.batches_per_step == 3
    assert [phase.player for phase in made.phases] == ["discriminator"] * 3 + ["generator"]


@pytest.mark.parametrize(
    ("mode", "norm", "penalty"),
    [
        ("replicated", "batch", "none"),
        ("fsdp", "spectral", "gradient_penalty"),
        ("replicated", "none", "gradient_penalty"),
    ],
)
def test_eight_devices_train_as_one(mode, norm, penalty):
    # Adam turns the near-zero gradient of a bias before a batch norm into noise.
    changes = {
        "network__discriminator__norm": norm,
        "gan__penalty__name": penalty,
        "optimizer__name": "sgd",
    }
    plan = recipe_of(small(**changes), config(**changes))
    active, start, found = active_phases(plan.family, 0), started(plan), []
    for mesh in (ONE, sharding.make_mesh()):
        target = sharding.abstract_state(plan, mesh, mode)
        step = toys.one_step(plan, mesh, target, {})
        shardings = jax.tree.map(lambda leaf: leaf.sharding, target)
        state = jax.device_put(jax.tree.map(jnp.copy, start), shardings)
        for _ in range(2):
            state, metrics = step(active, state, digits())
        found.append(sharding.fetch((state.params, state.extra, metrics)))
    for one, eight in zip(*(jax.tree.leaves(f) for f in found), strict=True):
        np.testing.assert_allclose(one, eight, rtol=2e-4, atol=2e-6)


def test_frozen_layers_of_the_discriminator_stay():
    changes = {"gan__frozen": 1, "network__discriminator__norm": "none"}
    plan = recipe_of(
        small(spec=specs.images((16, 16, 1), classes=10), **changes), config(**changes)
    )
    state, phase = started(plan), plan.family.phases[0]
    batch = {"x": jax.random.uniform(jax.random.key(0), (8, 16, 16, 1), minval=-1.0)}
    step = jax.jit(partial(update, phase, plan.optimizers["discriminator"]))
    after, _, _ = step(state, {}, batch, jax.random.key(1))
    old, new = state.params["discriminator"], after.params["discriminator"]
    assert {k for k in old if toys.same(old[k], new[k])} == {"down_0"}


@pytest.mark.parametrize(
    ("norm", "names"),
    [("none", {"down_0", "down_1"}), ("batch", {"down_0", "down_1", "norm_1"})],
)
def test_layers_are_counted_from_the_image(norm, names):
    made = small(spec=specs.images((16, 16, 1), classes=10), network__discriminator__norm=norm)
    params = jax.eval_shape(made.init, jax.random.key(0))[0]["discriminator"]
    assert set(frozen.lower_layers(params, 2)) == names
    assert frozen.lower_layers(params, 0) == []
    with pytest.raises(ValueError, match=r"gan\.frozen lies in 0\.\.2 .*not 3"):
        frozen.lower_layers(params, 3)
