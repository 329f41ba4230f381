"""Learning rates in closed form, optimizers from settings, and the settings that cannot work."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

from aigc_jax.commands import common
from aigc_jax.training.optimizers import learning_rate, optimizer, per_player


def rates(steps, **setting):
    schedule = learning_rate(2.0, **setting)
    return np.array([schedule(step) for step in steps])


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_warmup_rises_in_a_line_from_zero_to_the_peak(schedule):
    found = rates([0, 1, 5, 9, 10], schedule=schedule, warmup=10, decay_steps=30)
    np.testing.assert_allclose(found, [0, 0.2, 1.0, 1.8, 2.0], rtol=1e-6)


@pytest.mark.parametrize("warmup", [0, 10])
@pytest.mark.parametrize(
    ("schedule", "shape"),
    [
        ("constant", lambda u: np.ones_like(u)),
        ("linear", lambda u: 1 - u),
        ("cosine", lambda u: (1 + np.cos(np.pi * u)) / 2),
    ],
)
def test_after_the_warmup_the_rate_follows_its_closed_form_to_decay_steps(schedule, shape, warmup):
    u = np.array([0, 0.25, 0.5, 0.75, 1.0])  # share of the decay that is done
    end = warmup + 40
    found = rates((warmup + u * 40).astype(int), schedule=schedule, warmup=warmup, decay_steps=end)
    np.testing.assert_allclose(found, 2 * shape(u), atol=1e-6)
    beyond = rates([end + 1, 500], schedule=schedule, warmup=warmup, decay_steps=end)
    np.testing.assert_allclose(beyond, 2 * shape(np.ones(2)), atol=1e-6)


@pytest.mark.parametrize("warmup", [0, 10])
def test_the_rate_stays_at_its_peak_until_decay_start(warmup):
    # CycleGAN's: 200 epochs, constant for the first half, then linear to 0.
    options = {"warmup": warmup, "decay_start": 100, "decay_steps": 200}
    found = rates([warmup, 50, 99, 100, 125, 150, 200, 300], schedule="linear", **options)
    np.testing.assert_allclose(found, [2, 2, 2, 2, 1.5, 1, 0, 0], atol=1e-6)
    found = rates([50, 100, 150, 200], schedule="cosine", **options)
    np.testing.assert_allclose(found, [2, 2, 1, 0], atol=1e-6)
    found = rates([0, 5, 10], schedule="linear", **options | {"decay_start": 0})
    start = [0, 1, 2] if warmup else [2, 1.95, 1.9]
    np.testing.assert_allclose(found, start, rtol=1e-6)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_rate_may_end_above_zero(schedule):
    found = rates([0, 20, 40, 100], schedule=schedule, decay_steps=40, end=0.5)
    np.testing.assert_allclose(found, [2, 1.25, 0.5, 0.5], rtol=1e-6)


def test_adam_with_a_moving_second_beta_is_pytorchs():
    torch = pytest.importorskip("torch")
    setting = {"learning_rate": 0.1, "learning_rate_end": 0.05, "b1": 0.0, "b2": 0.9}
    setting |= {"b2_end": 0.99, "schedule": "cosine", "decay_steps": 6}
    tx = per_player(setting, {"a": 1})["a"]
    params, theirs = {"w": jnp.ones(3)}, torch.ones(3, requires_grad=True)
    state, adam = tx.init(params), torch.optim.Adam([theirs], lr=0.1)
    for step, grad in enumerate(np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)):
        updates, state = tx.update({"w": jnp.asarray(grad)}, state, params)
        params = optax.apply_updates(params, updates)
        left = (1 + np.cos(np.pi * min(step / 6, 1))) / 2
        own = {"lr": 0.05 + 0.05 * left, "betas": (0.0, 0.99 - 0.09 * left)}
        adam.param_groups[0].update(own)
        theirs.grad = torch.from_numpy(grad)
        adam.step()
        np.testing.assert_allclose(params["w"], theirs.detach(), rtol=2e-5)
    with pytest.raises(ValueError, match=r"b2_end needs optimizer\.name='adam', not 'adamw'"):
        per_player(setting | {"name": "adamw"}, {"a": 1})
    with pytest.raises(ValueError, match="and a schedule linear or cosine"):
        per_player(setting | {"schedule": "constant"}, {"a": 1})
    with pytest.raises(ValueError, match=r"b2_end needs optimizer\.b2, and"):
        per_player({k: v for k, v in setting.items() if k != "b2"}, {"a": 1})


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_decay_that_ends_before_it_starts_is_an_error(schedule):
    with pytest.raises(ValueError, match=r"\(10\) must exceed optimizer.decay_start \(12\)"):
        learning_rate(1.0, schedule=schedule, decay_start=12, decay_steps=10)


def test_unknown_names_are_errors_that_list_the_known_ones():
    with pytest.raises(ValueError, match=r"constant, linear, cosine, not 'cosin'"):
        learning_rate(1.0, schedule="cosin")
    with pytest.raises(ValueError, match=r"adam, adamw, radam, sgd, not 'lion'"):
        optimizer(name="lion", learning_rate=1.0)
    with pytest.raises(TypeError, match="momentun"):
        optimizer(learning_rate=1.0, momentun=0.9)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_decay_that_ends_before_the_warmup_is_an_error(schedule):
    with pytest.raises(ValueError, match=r"decay_steps \(10\) must exceed optimizer.warmup \(10\)"):
        learning_rate(1.0, schedule=schedule, warmup=10, decay_steps=10)


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_weight_decay_without_adamw_is_an_error(name):
    with pytest.raises(ValueError, match=r"needs optimizer\.name='adamw'"):
        optimizer(name=name, learning_rate=1.0, weight_decay=0.1)


def first_update(tx, grad, weight=1.0):
    params = {"w": jnp.full((2,), weight)}
    updates, _ = tx.update({"w": jnp.asarray(grad)}, tx.init(params), params)
    return np.asarray(updates["w"])


def test_first_updates_are_the_papers():
    grad = np.array([3.0, -4.0], np.float32)
    found = first_update(optimizer(name="sgd", learning_rate=0.1), grad)
    np.testing.assert_allclose(found, -0.1 * grad, rtol=1e-6)
    # Adam's first step is the sign of the gradient, as both moments are corrected for their bias.
    np.testing.assert_allclose(
        first_update(optimizer(name="adam", learning_rate=0.1), grad), [-0.1, 0.1], rtol=1e-5
    )
    decayed = optimizer(name="adamw", learning_rate=0.1, weight_decay=0.5)
    np.testing.assert_allclose(
        first_update(decayed, grad, weight=2.0), [-0.1 - 0.1, 0.1 - 0.1], atol=1e-6
    )


def test_clip_bounds_the_norm_of_the_gradient_and_leaves_small_ones():
    tx = optimizer(name="sgd", learning_rate=1.0, clip=1.0)
    np.testing.assert_allclose(first_update(tx, [3.0, 4.0]), [-0.6, -0.8], rtol=1e-6)
    np.testing.assert_allclose(first_update(tx, [0.3, 0.4]), [-0.3, -0.4], rtol=1e-6)


def test_sgd_gathers_momentum():
    tx = optimizer(name="sgd", learning_rate=1.0, momentum=0.5)
    params, grad = {"w": jnp.zeros(())}, {"w": jnp.ones(())}
    state = tx.init(params)
    for expected in (-1.0, -2.5, -4.25):
        updates, state = tx.update(grad, state, params)
        params = optax.apply_updates(params, updates)
        assert float(params["w"]) == expected


def test_players_share_a_setting_or_have_their_own():
    def moves(settings):
        optimizers = per_player(settings, {"a": 1, "b": 1})
        return {player: first_update(tx, [1.0, 1.0])[0] for player, tx in optimizers.items()}

    assert moves(toys.optimizer("sgd", learning_rate=0.5)) == {"a": -0.5, "b": -0.5}
    settings = {
        "a": toys.optimizer("sgd", learning_rate=0.5),
        "b": toys.optimizer("sgd", learning_rate=2.0),
    }
    assert moves(settings) == {"a": -0.5, "b": -2.0}


def test_a_schedule_counts_steps_however_often_a_player_moves_in_one():
    setting = toys.optimizer("sgd", learning_rate=1.0, schedule="linear", decay_steps=4)
    for often, tx in per_player(setting, {1: 1, 5: 5, 17: 17 / 16}).items():
        params, grad, moves = {"w": jnp.zeros(())}, {"w": jnp.ones(())}, []
        state = tx.init(params)
        for _ in range(22):
            updates, state = tx.update(grad, state, params)
            moves.append(-float(updates["w"]))
        count = {1: 1, 5: 5, 17: 17 / 16}[often]
        expected = np.maximum(1 - np.arange(22) / count / 4, 0)
        np.testing.assert_allclose(moves, expected, atol=1e-6)


@pytest.mark.parametrize("own", [False, True])
def test_a_misspelt_key_is_an_error_that_names_the_near_one(own):
    setting, name = toys.optimizer("adam") | {"clpi": 1.0}, "optimizer.a" if own else "optimizer"
    message = rf"config.{name} has no key 'clpi' \(did you mean 'clip'\?\)"
    with pytest.raises(ValueError, match=message):
        per_player({"a": setting} if own else setting, {"a": 1})
    for section, key, near in (("ema", "halflife", "half_life"), ("augment", "filp", "flip")):
        wrong = toys.config(changes={f"{section}.{key}": 0.0})
        message = rf"config.{section} has no key '{key}' \(did you mean '{near}'\?\)"
        with pytest.raises(ValueError, match=message):
            toys.recipe_of(toys.one_player(), wrong)
    wrong = {"name": "digits", "train_split": "train", "tset_split": "test"}
    with pytest.raises(ValueError, match=r"config.data has no key 'tset_split' .*'test_split'"):
        common.open_data({"data": wrong, "train": {"batch_size": 8}})


def test_settings_of_a_player_that_is_not_there_are_an_error():
    settings = dict.fromkeys(("a", "b", "c"), toys.optimizer())
    with pytest.raises(ValueError, match=r"config.optimizer has no key 'c'"):
        per_player(settings, {"a": 1, "b": 1})


def test_settings_for_some_players_only_are_an_error_that_names_the_others():
    with pytest.raises(ValueError, match=r"names \['a'\] but not \['b'\]"):
        per_player({"a": toys.optimizer()}, {"a": 1, "b": 1})


def test_a_step_with_too_large_a_gradient_moves_nothing():
    tx = optimizer(learning_rate=0.1, skip_above=2.0)
    params, small, large = ({"w": jnp.full(2, x)} for x in (0.0, 1.0, 2.0))
    state = tx.init(params)
    updates, after = tx.update(large, state, params)
    assert not updates["w"].any()
    assert toys.same(after, state)
    updates, after = tx.update(small, state, params)
    assert updates["w"].all()
    assert not toys.same(after, state)
