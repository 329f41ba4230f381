"""A run's further averages: kept, resumed, read by name; those made of its snapshots."""

import shutil

import jax
import numpy as np
import pytest
import toys

from aigc_jax.errors import MissingError, SettingError
from aigc_jax.runs import averages, history
from aigc_jax.runs import model as models
from aigc_jax.training import sharding
from aigc_jax.training.checkpoint import CheckpointError, Checkpoints, complete_steps
from aigc_jax.training.ema import Settings

SECTION = {"half_life": 64.0, "ramp": 0.0, "others": (16.0, 500.0), "snapshot_every": 2}
KEPT = Settings(**SECTION)
BARE = {"log.eval_every": 0, "log.sample_every": 0, "checkpoint.best": ""}
CHANGES = BARE | {"ema": SECTION, "train.steps": 16, "checkpoint.every": 5}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(folder, last state) of a run of two players, one of them averaged; read only."""
    folder = tmp_path_factory.mktemp("averages") / "run"
    return folder, toys.train(folder, "two", CHANGES)


def made_of(folder, sigma_rels, **more):
    return averages.reconstruct(folder, toys.two_players(), KEPT, sigma_rels, **more)


def close(a, b, **more):
    for x, y in zip(toys.arrays(a), toys.arrays(b), strict=True):
        np.testing.assert_allclose(x, y, **more)


def read(folder, average="", step=None, **more):
    found = models.restore(
        folder, toys.two_players(), step, average=averages.parsed(average, KEPT), **more
    )
    return found[0].params, found[1], found[2]


def test_a_run_that_was_stopped_goes_on_with_all_of_its_averages(run, tmp_path):
    folder, state = run
    toys.train(tmp_path, "two", CHANGES | {"train.steps": 9})
    assert toys.same(toys.train(tmp_path, "two", CHANGES), state)
    assert complete_steps(tmp_path / "snapshots") == complete_steps(folder / "snapshots")
    assert complete_steps(folder / "snapshots") == [2, 4, 6, 8, 10, 12, 14, 16]
    whole, resumed = (made_of(f, [0.07]).variables[0.07] for f in (folder, tmp_path))
    assert toys.same(whole.params, resumed.params)


def test_averages_do_not_depend_on_the_devices(run):
    _, state = run
    recipe = toys.recipe_of(toys.two_players(), toys.config("two", CHANGES))

    def steps(devices, mode):
        mesh = sharding.make_mesh(jax.devices()[:devices])
        target = sharding.abstract_state(recipe, mesh, mode)
        step = toys.one_step(recipe, mesh, target, {})
        now = sharding.new_state(recipe, target, 0)
        x = np.random.default_rng(0).integers(0, 256, (2, 16, 4, 4, 1), np.uint8)
        for _ in range(3):
            now, _ = step((0, 1, 3), now, {"x": x})
        return now.averages

    assert set(state.averages) == set(steps(1, "replicated"))
    close(steps(1, "replicated"), steps(8, "fsdp"), rtol=1e-4, atol=1e-6)


def test_an_average_is_read_by_its_half_life(run):
    folder, state = run
    for name, key in ((16, "half_life_16"), ("500", "half_life_500"), ("16.0", "half_life_16")):
        params, (prepared, _), step = read(folder, name)
        assert toys.same(params["generator"], state.averages[key]["generator"])
        assert toys.same(params["discriminator"], state.params["discriminator"])
        assert (prepared, step) == ("", 16)  # what was stored beside it is of other weights
    assert toys.same(read(folder, 64)[0]["generator"], state.ema["generator"])


@pytest.mark.parametrize(
    ("average", "words"),
    [
        (7, "no average of half-life 7 is kept: there are 16, 500 beside the run's own of 64"),
        ("fast", "--ema is a half-life of ema.others, such as 5000, or what --mode=ema has made"),
        ("other/0.07", "--ema is a half-life"),
        ("posthoc/", "--ema is a half-life"),
        ("-3", "--ema is a half-life"),
        ("nan", "--ema is a half-life"),
    ],
)
def test_a_name_of_no_average_is_told(average, words):
    with pytest.raises(SettingError, match=words):
        averages.parsed(average, KEPT)


def test_a_width_that_was_tracked_is_made_as_it_was(run):
    folder, state = run
    made = made_of(folder, [0.05, 0.1])
    assert made.step == 16
    for sigma_rel, name in ((0.05, "sigma_rel_0.05"), (0.1, "sigma_rel_0.1")):
        params = made.variables[sigma_rel].params
        close(params["generator"], state.averages[name]["generator"], rtol=1e-5, atol=1e-6)
        assert toys.same(params["discriminator"], state.params["discriminator"])
        assert toys.same(made.variables[sigma_rel].extra["mean"], state.extra["mean"])
    earlier = made_of(folder, [0.1], step=15)
    assert earlier.step == 15
    was = toys_state(folder, 15).averages["sigma_rel_0.1"]["generator"]
    close(earlier.variables[0.1].params["generator"], was, rtol=1e-5, atol=1e-6)


def toys_state(folder, step):
    checkpoints = Checkpoints(folder / "checkpoints")
    recipe = toys.recipe_of(toys.two_players(), toys.config("two", CHANGES))
    try:
        target = sharding.abstract_state(recipe, sharding.make_mesh(), "replicated")
        return checkpoints.restore(target, step)[0]
    finally:
        checkpoints.close()


def test_what_was_made_is_written_and_read_by_its_name(run, tmp_path):
    folder = shutil.copytree(run[0], tmp_path / "run")
    with pytest.raises(MissingError, match=r"no posthoc/0.07 in .*--mode=ema --sigma-rel=0.07"):
        read(folder, "posthoc/0.07")
    made = made_of(folder, [0.07])
    for _ in range(2):  # made again it replaces what was there
        path = averages.save(folder, toys.two_players(), 0.07, made, {"config": {}}, keep=2)
    assert path == folder / "posthoc" / "0.07"
    params, (prepared, _), step = read(folder, "posthoc/0.07")
    assert toys.same(params, made.variables[0.07].params)
    assert (prepared, step) == ("", 16)
    with pytest.raises(SettingError, match="leave --best out"):
        read(folder, "posthoc/0.07", best=True)
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 5 .*have: 16"):
        read(folder, "posthoc/0.07", step=5)


def test_a_damaged_snapshot_is_left_out_and_the_others_make_up_for_it(run, tmp_path, capsys):
    folder = shutil.copytree(run[0], tmp_path / "run")
    for path in (folder / "snapshots" / "00000012" / "state" / "d").iterdir():
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 4
        path.write_bytes(data)
    found = made_of(folder, [0.07])
    assert "step 12" in capsys.readouterr().out
    whole = made_of(run[0], [0.07])
    assert found.left[0.07] > whole.left[0.07]
    close(found.variables[0.07].params, whole.variables[0.07].params, rtol=0.02, atol=0.02)


def test_what_cannot_be_made_is_told_with_what_can(run, tmp_path):
    folder, _ = run
    with pytest.raises(
        SettingError, match=r"8 snapshots of widths 0.05, 0.1 .* width 0.01"
    ) as told:
        made_of(folder, [0.07, 0.01])
    low, high = map(float, str(told.value).rpartition("ask for ")[2].split(" to "))
    assert 0.01 < low < 0.05
    assert 0.1 < high < 0.288
    assert all(left <= averages.LEFT for left in made_of(folder, [low, high]).left.values())
    with pytest.raises(SettingError, match="make no average"):
        made_of(folder, [low - 0.001])
    none = Settings(64.0)
    with pytest.raises(MissingError, match=r"stores no snapshots: train with --config\.ema"):
        averages.reconstruct(folder, toys.two_players(), none, [0.07])
    copy = shutil.copytree(folder, tmp_path / "run")
    shutil.rmtree(copy / "snapshots")
    with pytest.raises(MissingError, match="no snapshots until step 16"):
        made_of(copy, [0.07])
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(MissingError, match="no complete checkpoint"):
        made_of(copy, [0.07])


def test_going_back_sets_aside_what_came_after(run, tmp_path):
    folder = shutil.copytree(run[0], tmp_path / "run")
    averages.save(folder, toys.two_players(), 0.07, made_of(folder, [0.07]), {}, keep=2)
    changes = CHANGES | {"train.steps": 18, "optimizer": {
        "generator": toys.optimizer("adam", learning_rate=0.01),
        "discriminator": toys.optimizer("sgd"),
    }}  # fmt: skip
    toys.train(folder, "two", changes, from_step=15)
    assert complete_steps(folder / "snapshots") == [2, 4, 6, 8, 10, 12, 14, 16, 18]
    assert [p.name for p in (folder / "snapshots-superseded").iterdir()] == ["00000016-0"]
    assert complete_steps(folder / "posthoc" / "0.07") == []
    assert complete_steps(folder / "superseded-0" / "posthoc" / "0.07") == [16]
    assert history.went_back_to(folder) == 15
    state = toys_state(folder, 18)
    close(
        made_of(folder, [0.1]).variables[0.1].params["generator"],
        state.averages["sigma_rel_0.1"]["generator"],
        rtol=1e-5,
        atol=1e-6,
    )


def test_snapshots_keep_to_their_number(tmp_path):
    changes = BARE | {"train.steps": 11, "ema": SECTION | {"snapshot_every": 1, "snapshots": 4}}
    toys.train(tmp_path, changes=changes)
    assert complete_steps(tmp_path / "snapshots") == [4, 8]


def test_no_snapshot_is_taken_of_a_run_that_is_not_sound(tmp_path):
    changes = BARE | {"ema": SECTION | {"snapshot_every": 1}, "train.max_skipped": 4}
    with pytest.raises(RuntimeError, match="not finite"):
        toys.train(tmp_path, toys.one_player(poison=-2.0), changes)  # every loss is infinite
    assert complete_steps(tmp_path / "snapshots") == []


def test_averages_that_the_ramp_makes_the_same_are_said_to_be(tmp_path, capsys):
    assert averages.alike(Settings(64.0, others=(500.0,)), 96) == ""
    assert averages.alike(Settings(64.0, 0.1, (5.0,)), 96) == ""
    changes = BARE | {"train.steps": 2, "ema": {"half_life": 64.0, "ramp": 0.5, "others": (32.0,)}}
    toys.train(tmp_path, changes=changes)
    words = (
        "half-life 64, 32 are the same: until the end of this run ema.ramp=0.5 bounds them by 16"
    )
    assert words in capsys.readouterr().out


def test_weights_to_start_from_begin_every_average(tmp_path):
    given = jax.tree.map(lambda x: np.asarray(x) + 1, toys.one_player().init(jax.random.key(3))[0])
    changes = BARE | {"train.steps": 1, "ema": {"half_life": 64.0, "others": (1e9,)}}
    state = toys.train(tmp_path, changes=changes, initial=lambda: (given, {}))
    close(state.averages["half_life_1000000000"]["net"], given["net"], rtol=1e-5, atol=1e-5)
