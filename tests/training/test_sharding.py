"""One device or eight, replicated or split: the same numbers."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from aigc_jax.data import loader
from aigc_jax.planning import programs, traffic
from aigc_jax.training import hlo, sharding
from aigc_jax.training.step import active_phases


def mesh_of(devices):
    return sharding.make_mesh(jax.devices()[:devices])


def close(a, b):
    """Whether two trees agree but for the order of sums: a few units in float32's last place."""
    for x, y in zip(toys.arrays(a), toys.arrays(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6)


def steps(devices, mode, count=5):
    """State and metrics after some steps with SGD (Adam would blow up noise near zero)."""
    family = toys.two_players()
    config = toys.config("two", {"optimizer": toys.optimizer("sgd", momentum=0.9, clip=1.0)})
    plan, mesh = toys.recipe_of(family, config), mesh_of(devices)
    target = sharding.abstract_state(plan, mesh, mode)
    state = sharding.new_state(plan, target, 0)
    run = toys.one_step(plan, mesh, target, {})
    source = toys.dataset().sources["train"]
    batches = loader.batches(source, batch_size=16, seed=0, batches_per_step=2)
    shown = []
    for step, batch in enumerate(itertools.islice(batches, count)):
        before = state
        state, metrics = run(active_phases(family, step), state, batch)
        assert all(x.is_deleted() for x in jax.tree.leaves(before.params))  # donated
        shown.append(metrics)
    batches.close()
    return state, shown


@pytest.fixture(scope="module")
def one_device():
    return steps(1, "replicated")


@pytest.mark.parametrize("mode", ["replicated", "fsdp"])
def test_eight_devices_train_as_one(one_device, mode, monkeypatch):
    monkeypatch.setattr(sharding, "MIN_SPLIT_SIZE", 8)
    state, metrics = steps(8, mode)
    close((state, metrics), one_device)
    kernels = [tree["generator"][0]["kernel"] for tree in (state.params, state.ema)]
    kernels.append(jax.tree.leaves(state.opt["generator"])[1])
    for kernel in kernels:
        assert len(kernel.sharding.device_set) == 8
        assert kernel.sharding.is_fully_replicated == (mode == "replicated")


def convolutions():
    """A toy whose one player is two convolutions, 1 to 16 to 1 channels of 8x8."""
    family = toys.one_player()
    player = family.phases[0].player

    def init(key):
        ones = [jnp.ones((3, 3, *channels)) for channels in ((1, 16), (16, 16), (16, 1))]
        return {player: ones}, {}

    def loss(view, batch, key):
        h = batch["x"]
        for kernel in view.params[player]:
            h = jax.lax.conv_general_dilated(
                h, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        return jnp.mean(jnp.square(h)), ({}, view.extra)

    return family._replace(init=init, phases=(family.phases[0]._replace(loss=loss),))


def test_fsdp_gathers_each_kernel_once_and_passes_no_maps_around(monkeypatch):
    """Else a convolution is split as its kernel is, and halves of maps go from device to device."""
    monkeypatch.setattr(sharding, "MIN_SPLIT_SIZE", 2000)
    family, mesh = convolutions(), mesh_of(8)
    plan = toys.recipe_of(family, toys.config("one"))
    target = sharding.abstract_state(plan, mesh, "fsdp")
    split = [not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(target.params)]
    assert split == [False, True, False]
    batch = programs.batch_of(family, toys.SPEC, 16)
    compiled = sharding.compile_steps(plan, mesh, target, {})
    text = compiled.lower((0,), target, {}, {}, batch).compile().as_text()
    found = {one.kind: one for one in traffic.collectives(hlo.read(text), 8)}
    assert found.keys() <= {"all-gather", "all-reduce", "reduce-scatter"}
    assert (found["all-gather"].count, found["all-gather"].size) == (1, 4 * 9 * 16 * 16)


def test_a_mesh_has_the_devices_in_order_of_their_processes():
    """As the loader deals out batches, in whatever order the devices come."""
    devices = jax.devices()
    shuffled = [devices[i] for i in (5, 2, 7, 0, 3, 6, 1, 4)]
    assert list(sharding.make_mesh(shuffled).devices) == devices


def test_fsdp_splits_the_largest_axis_that_divides_and_leaves_small_leaves_whole():
    mesh = mesh_of(8)
    shapes = {"wide": (64, 512), "odd": (24, 1001), "prime": (131, 127), "small": (8, 8)}
    tree = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}
    specs = {k: s.spec for k, s in sharding.state_sharding(mesh, tree, "fsdp").items()}
    P = jax.sharding.PartitionSpec
    assert specs == {"wide": P(None, "data"), "odd": P("data"), "prime": P(), "small": P()}
    with pytest.raises(ValueError, match="replicated, fsdp, not 'zero'"):
        sharding.state_sharding(mesh, tree, "zero")


@pytest.mark.parametrize("batch_size", [4, 12, 20, 0])
def test_a_batch_that_does_not_divide_is_an_error_before_anything_is_written(tmp_path, batch_size):
    with pytest.raises(
        ValueError, match=r"does not divide over 8 devices; set .* to a multiple of 8"
    ):
        toys.train(tmp_path / "run", changes={"train.batch_size": batch_size})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("process", [0, 1])
def test_a_check_on_the_first_process_stops_all(monkeypatch, process):
    """Each process gathers what all say; the others' part is played by `on_all`."""
    called = []

    def check():
        called.append(process)
        raise ValueError("in the way")

    monkeypatch.setattr(jax, "process_index", lambda: process)
    monkeypatch.setattr(sharding, "on_all", lambda fine: called.append(fine) or False)
    with pytest.raises(
        ValueError, match="in the way" if process == 0 else "the first process says"
    ):
        sharding.check_on_first(check)
    assert called == ([0, False] if process == 0 else [True])
    monkeypatch.setattr(sharding, "on_all", lambda fine: fine)
    sharding.check_on_first(lambda: None)
