"""Checkpoints: exact on any devices; damage found, told and survived; a full disk likewise."""

import json
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from aigc_jax.runs import model as models
from aigc_jax.training import sharding
from aigc_jax.training.checkpoint import (
    DAMAGED,
    CheckpointError,
    Checkpoints,
    ForeignError,
    complete_steps,
    digest,
    digests,
)


@pytest.fixture
def run(tmp_path, whole_runs):
    """A copy of a finished run, with checkpoints of steps 4 and 6."""
    return shutil.copytree(whole_runs["one"][0], tmp_path / "run")


@pytest.fixture
def opened():
    """A function that opens a folder of checkpoints, closed in the end."""
    managers = []

    def open_folder(folder, **settings):
        managers.append(Checkpoints(folder, **settings))
        return managers[-1]

    yield open_folder
    for manager in managers:
        manager.close()


def contents(folder):
    return sorted(p for p in folder.rglob("*") if p.is_file())


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


DAMAGES = {
    "truncated": lambda step: [truncate(p) for p in contents(step / "state" / "d")],
    "flipped": lambda step: [flip(p) for p in contents(step / "state" / "d")],
    "data lost": lambda step: [p.unlink() for p in contents(step / "state" / "d")],
    "index lost": lambda step: (step / "state" / "manifest.ocdbt").unlink(),
    "state lost": lambda step: shutil.rmtree(step / "state"),
    "about lost": lambda step: shutil.rmtree(step / "about"),
    "broken JSON": lambda step: truncate(step / "about" / "metadata"),
    "another digest": lambda step: edit_digest(step / "about" / "metadata"),
    "empty": lambda step: [p.unlink() for p in contents(step)],
}


def edit_digest(path):
    about = json.loads(path.read_text())
    about["digest"][sorted(about["digest"])[-3]] ^= 1
    path.write_text(json.dumps(about))


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_last_good_checkpoint_is_taken_and_the_run_goes_on(run, whole_runs, capfd, damage):
    DAMAGES[damage](run / "checkpoints" / "00000006")
    left = contents(run / "checkpoints" / "00000006")
    state = toys.train(run)
    said = capfd.readouterr()
    (line,) = [x for x in said.out.splitlines() if "passed over" in x]
    assert line.startswith("checkpoint of step 6: ")
    assert len(line) < 450
    assert "resuming at step 4 of 6" in said.out
    assert "Traceback" not in said.err
    aside = run / "checkpoints-damaged" / "00000006-0"
    assert f"the damaged checkpoint of step 6 now lies in {aside}" in said.out
    assert len(contents(aside)) == len(left)  # nothing is deleted

    whole, expected = whole_runs["one"]
    assert toys.same(state, expected)
    assert toys.same(toys.saved(run, 6), expected)  # saved anew under the same step
    assert toys.rows(run) == toys.rows(whole)


def test_any_damage_to_any_file_gives_the_exact_state_or_the_one_before(run, whole_runs, opened):
    _, expected = whole_runs["one"]
    step = run / "checkpoints" / "00000006"
    good = shutil.copytree(step, run / "good")
    found = set()
    for path in contents(good):
        if path.stat().st_size:
            for harm in (truncate, flip):
                harm(step / path.relative_to(good))
                state, taken = opened(run / "checkpoints").restore(toys.target())
                assert taken == 4 or toys.same(state, expected)
                found.add(taken)
                shutil.copy(path, step / path.relative_to(good))
    assert found == {4, 6}


def test_an_absent_checkpoint_is_not_missed(run, opened):
    shutil.rmtree(run / "checkpoints" / "00000006")
    checkpoints = opened(run / "checkpoints")
    assert checkpoints.restore(toys.target())[1] == 4
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 6 .*have: 4"):
        checkpoints.restore(toys.target(), 6)
    assert opened(run / "none").restore(toys.target()) is None


def test_where_all_are_damaged_the_error_names_them_and_nothing_changes(run):
    for name in ("00000004", "00000006"):
        DAMAGES["truncated"](run / "checkpoints" / name)
    before = {p: p.read_bytes() for p in contents(run)}
    with pytest.raises(CheckpointError, match=r"can be read \(step 6: .*; step 4: .*\)"):
        toys.train(run)
    assert {p: p.read_bytes() for p in contents(run)} == before


def test_another_models_checkpoint_is_no_damage(run, opened):
    """Its arrays are compared with those that are asked for before any is read."""
    checkpoints, target = opened(run / "checkpoints"), toys.target()
    net = target.params["net"]
    bias = net[0]["bias"]
    wide = jax.ShapeDtypeStruct((bias.shape[0] + 1,), bias.dtype, sharding=bias.sharding)
    other = {"net": [{**net[0], "bias": wide}, *net[1:]]}
    size = bias.shape[0]
    words = (
        rf"of another model \(step 6: params/net/0/bias is \({size},\) there, \({size + 1},\) here"
    )
    for read in (
        lambda: checkpoints.restore(target.replace(params=other)),
        lambda: checkpoints.restore_parts({"params": other}),
    ):
        with pytest.raises(CheckpointError, match=words) as told:
            read()
        assert "damaged" not in str(told.value)
        assert "backup" not in str(told.value)
    more = {"net": [*net, {"bias": bias}]}
    with pytest.raises(CheckpointError, match=r"params/net/2/bias is absent there"):
        checkpoints.restore_parts({"params": more})


def test_a_damaged_best_is_set_aside_and_replaced(run, capsys):
    truncate(run / "best" / "00000006" / "about" / "metadata")
    toys.train(run, changes={"train.steps": 7})
    assert "the damaged checkpoint of step 6 now lies in" in capsys.readouterr().out
    assert (run / "best-damaged" / "00000006-0").is_dir()
    assert (run / "best" / "00000007").is_dir()


def test_a_full_disk_leaves_the_previous_checkpoint_and_says_so(tmp_path):
    settings = ("limit=2500", "log.sample_every=0", 'checkpoint.best=""')
    run = toys.run("one", str(tmp_path), *settings)
    assert run.returncode == 1
    (said,) = run.stderr.splitlines()  # one line, no traceback, no complaint of Orbax's own tasks
    assert "could not write" in said
    assert "File too large" in said
    assert "the checkpoint of step 2 is intact" in said
    assert "the same command again to resume" in said
    assert toys.saved(tmp_path, 2).step == 2
    # With room again, it goes on.
    changes = {"log.sample_every": 0, "checkpoint.best": ""}
    assert toys.train(tmp_path, changes=changes).step == 6


def test_of_tasks_that_were_never_begun_only_orbaxs_are_hushed_while_checkpoints_are_open(tmp_path):
    program = """if True:
        import sys
        from aigc_jax.training.checkpoint import Checkpoints
        checkpoints = Checkpoints(sys.argv[1])
        def async_serialize_from_host():
            async def write_fragment(): pass
            return write_fragment()
        async def ours(): pass
        async_serialize_from_host()
        ours()
        async_serialize_from_host()
        checkpoints.close()
        async_serialize_from_host()  # of whoever else uses Orbax: no longer ours to hush
    """
    command = [sys.executable, "-c", program, str(tmp_path / "checkpoints")]
    done = subprocess.run(
        command, env=toys.environment(1), capture_output=True, text=True, cwd=toys.ROOT, check=True
    )
    heard = [line for line in done.stderr.splitlines() if "never awaited" in line]
    assert len(heard) == 2
    assert "ours" in heard[0]
    assert "write_fragment" in heard[1]


def test_a_checkpoint_of_eight_devices_restores_exactly_on_one_and_on_four_split(
    whole_runs, opened, monkeypatch
):
    monkeypatch.setattr(sharding, "MIN_SPLIT_SIZE", 8)
    workdir, expected = whole_runs["two"]
    checkpoints = opened(workdir / "checkpoints")
    for devices, mode in ((1, "replicated"), (4, "fsdp")):
        state, step = checkpoints.restore(toys.target("two", mode, devices))
        assert step == 6
        assert toys.same(state, expected)
        assert jax.tree.structure(state) == jax.tree.structure(expected)
        kernel = state.params["generator"][0]["kernel"]
        assert len(kernel.sharding.device_set) == devices
        assert kernel.sharding.is_fully_replicated == (mode == "replicated")


def test_a_split_state_is_saved_and_restored_whole(tmp_path, opened, monkeypatch, whole_runs):
    monkeypatch.setattr(sharding, "MIN_SPLIT_SIZE", 8)
    shardings = jax.tree.map(lambda x: x.sharding, toys.target(mode="fsdp"))
    state = jax.device_put(whole_runs["one"][1], shardings)
    checkpoints = opened(tmp_path)
    checkpoints.save(6, state, {})
    checkpoints.wait()
    assert toys.same(checkpoints.restore(toys.target(devices=1))[0], state)


def test_what_is_saved_is_the_state_of_that_moment_though_it_is_donated_at_once(tmp_path, opened):
    state = {"a": jnp.arange(1 << 20, dtype=jnp.float32), "b": jnp.ones((300, 300))}
    expected = jax.tree.map(np.array, state)
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    advance = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    checkpoints = opened(tmp_path)
    checkpoints.save(1, state, {})
    for _ in range(5):
        state = advance(state)
    assert toys.same(checkpoints.restore(target)[0], expected)


def test_only_the_newest_are_kept_and_half_written_ones_are_set_aside(tmp_path, opened, capsys):
    (tmp_path / "00000009.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    assert opened(tmp_path).steps() == []
    assert (tmp_path / "00000009.orbax-checkpoint-tmp").exists()  # may be another's, being written
    checkpoints = opened(tmp_path, keep=2, clean=True)
    (aside,) = tmp_path.with_name(tmp_path.name + "-damaged").iterdir()
    assert (aside / "state").is_dir()
    assert (
        f"a save was cut short; what it had written now lies in {aside}" in capsys.readouterr().out
    )
    for step in (1, 2, 3, 4):
        checkpoints.save(step, {"a": jnp.zeros(3)}, {"note": step})
    checkpoints.wait()
    assert checkpoints.steps() == [3, 4]
    assert checkpoints.about(3)["note"] == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000003", "00000004"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "bool"])
def test_any_flipped_bit_changes_the_digest(dtype):
    rng = np.random.default_rng(0)
    width = jnp.dtype(dtype).itemsize
    raw = rng.integers(0, 2 if dtype == "bool" else 256, 15 * width, np.uint8)
    plain = digest(raw.view(jnp.dtype(dtype)).reshape(3, 5))
    bits = range(1 if dtype == "bool" else 8)
    flips = np.stack(
        [raw ^ (np.arange(raw.size) == i) * np.uint8(1 << b) for i in range(raw.size) for b in bits]
    )
    leaves = flips.view(jnp.dtype(dtype)).reshape(-1, 3, 5)
    changed = jax.vmap(digest)(jnp.asarray(leaves))
    assert all(int(d) != int(plain) for d in changed)


def test_the_digest_is_the_same_however_the_state_lies_and_covers_every_leaf(
    monkeypatch, whole_runs
):
    monkeypatch.setattr(sharding, "MIN_SPLIT_SIZE", 8)
    state = whole_runs["one"][1]
    plain = digests(state)
    for devices, mode in ((1, "replicated"), (4, "fsdp"), (8, "fsdp")):
        shardings = jax.tree.map(lambda x: x.sharding, toys.target("one", mode, devices))
        assert digests(jax.device_put(state, shardings)) == plain
    assert len(plain) == len(jax.tree.leaves(state))
    other = digests(state.replace(key=jax.random.key(9)))
    assert {name for name, value in plain.items() if other[name] != value} == {"key"}


def test_a_checkpoint_of_another_run_or_step_is_refused_not_taken_for_damaged(run, tmp_path):
    other = tmp_path / "other"
    toys.train(other, changes={"train.steps": 2, "checkpoint.best": ""})
    ours = run / "checkpoints"
    shutil.copytree(other / "checkpoints" / "00000002", ours / "00000008")
    with pytest.raises(ForeignError, match=r"00000008 was saved at step 2: move it out of there"):
        toys.train(run, changes={"train.steps": 10})
    (ours / "00000008").rename(ours / "00000002")
    shutil.rmtree(ours / "00000004")
    shutil.rmtree(ours / "00000006")
    with pytest.raises(ForeignError, match=r"00000002 belongs to another run: move it out"):
        toys.train(run)
    with pytest.raises(ForeignError, match="belongs to another run"):
        models.restore(run, toys.FAMILIES["one"]())
    assert complete_steps(ours) == [2]


def test_of_what_is_set_aside_the_newest_are_kept(tmp_path, opened, capsys):
    for number in range(DAMAGED + 2):
        (tmp_path / f"0000000{number}.orbax-checkpoint-tmp").mkdir()
        Checkpoints(tmp_path, clean=True).close()
    aside = tmp_path.with_name(tmp_path.name + "-damaged")
    kept = sorted(path.name for path in aside.iterdir())
    assert kept == [f"0000000{i}.orbax-checkpoint-tmp-{i}" for i in range(2, DAMAGED + 2)]
    said = capsys.readouterr().out
    assert "00000000.orbax-checkpoint-tmp-0 was removed: the newest 3 are kept" in said
