"""The driver: sample i of (seed, i) on any mesh, frames, previews, one loop for accelerators."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from aigc_jax import streams
from aigc_jax.family import Drawing, Variables
from aigc_jax.sampling.batches import map_batches
from aigc_jax.sampling.driver import Driver, draw, program, sample_keys
from aigc_jax.training import sharding


def mesh_of(devices):
    return sharding.make_mesh(jax.devices()[:devices])


@pytest.fixture(scope="module")
def driver():
    return Driver(toys.from_noise("net"), "cpu")


@pytest.fixture(scope="module")
def variables():
    return Variables(*toys.one_player().init(jax.random.key(3)))


@pytest.fixture(scope="module")
def drawn(driver, variables):
    """A function that draws with the toy on so many devices."""

    def of(devices, **settings):
        mesh = mesh_of(devices)
        placed = sharding.place(variables, mesh)
        axis = 1 if settings.get("frames") else 0
        return np.concatenate(list(draw(driver, placed, mesh, **settings)), axis=axis)

    return of


@pytest.mark.parametrize(("devices", "batch_size"), [(1, 64), (1, 5), (4, 7), (8, 8), (8, 1)])
def test_sample_i_depends_on_seed_and_i_alone(drawn, devices, batch_size):
    settings = {"seed": 7, "labels": [0, 2, 1]}
    many = drawn(1, count=29, **settings)
    fewer = drawn(devices, count=21, batch_size=batch_size, **settings)
    np.testing.assert_allclose(fewer, many[:21], atol=1e-6)
    assert len(fewer) == 21


def test_samples_differ_by_seed_index_and_label(drawn):
    plain = drawn(1, seed=0, count=8)
    assert len(np.unique(plain.reshape(8, -1), axis=0)) == 8
    assert not np.isclose(plain, drawn(1, seed=1, count=8)).any()
    changed = np.any(plain != drawn(1, seed=0, count=8, labels=[0, 1]), axis=(1, 2, 3))
    assert changed.tolist() == [False, True] * 4


RBG = """
import jax, numpy as np
from aigc_jax.sampling.driver import sample_keys
from aigc_jax.training import sharding
keys = sample_keys(sharding.make_mesh(), 0, np.arange(4))
assert jax.random.key_impl(jax.random.key(0)) == "rbg"
print(np.asarray(jax.vmap(jax.random.normal)(keys)).tolist())
print(np.asarray(jax.vmap(jax.random.normal)(keys[:2])).tolist())
"""


def test_other_random_numbers_by_default_do_not_change_samples():
    environment = toys.environment(1) | {"JAX_DEFAULT_PRNG_IMPL": "rbg"}
    command = [sys.executable, "-c", RBG]
    done = subprocess.run(
        command, env=environment, cwd=toys.ROOT, capture_output=True, text=True, check=True
    )
    four, two = (eval(line) for line in done.stdout.splitlines())
    assert four[:2] == two  # neighbours do not matter
    ours = jax.vmap(jax.random.normal)(sample_keys(mesh_of(1), 0, np.arange(4)))
    np.testing.assert_allclose(four, np.asarray(ours), rtol=1e-6)


def walk(steps):
    """A drawing that multiplies noise by a weight in each step, and adds the label at the end."""

    def start(variables, keys, cond):
        x = jax.vmap(lambda key: jax.random.normal(key, (5,)))(keys)
        return {"x": x, "label": cond.get("label", jnp.zeros(len(x)))}

    def step(variables, carry, cond, i):
        x = jnp.tanh(carry["x"] @ variables.params["w"]) + 0.01 * i
        return {**carry, "x": x}, x

    def finish(variables, carry):
        return carry["x"] + carry["label"][:, None]

    return Drawing(start, finish, step, steps)


WEIGHT = Variables({"w": jnp.eye(5) + 0.1}, {})
KEYS = streams.sample(streams.samples(0), np.arange(3, dtype=np.uint32))


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_a_step_is_traced_once_for_all_steps_and_all_parameters(platform):
    traces, plain = [], walk(7)

    def step(variables, carry, cond, i):
        traces.append(i)
        return plain.step(variables, carry, cond, i)

    driver = Driver(plain._replace(step=step), platform)
    first = driver(WEIGHT, KEYS, {})
    second = driver(WEIGHT._replace(params={"w": 2 * WEIGHT.params["w"]}), KEYS, {})
    assert len(traces) == 1
    assert not np.allclose(first, second)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_a_second_draw_of_the_same_shapes_compiles_nothing(platform, caplog):
    driver, mesh = Driver(walk(4), platform), mesh_of(2)
    placed = sharding.place(WEIGHT, mesh)

    def compiled(seed):
        caplog.clear()
        with jax.log_compiles():
            list(draw(driver, placed, mesh, seed=seed, count=11, labels=[0, 2], batch_size=4))
        return [r.getMessage() for r in caplog.records if "XLA compilation" in r.getMessage()]

    assert compiled(seed=0)
    assert not compiled(seed=1)


def test_the_host_loop_and_the_scan_draw_the_same(monkeypatch):
    walked, of = [], Driver.walk
    monkeypatch.setattr(Driver, "walk", lambda self, *args: walked.append(self) or of(self, *args))
    cond = {"label": jnp.array([0, 1, 2])}
    drivers = [Driver(walk(4), platform) for platform in ("cpu", "tpu")]
    np.testing.assert_allclose(*(driver(WEIGHT, KEYS, cond) for driver in drivers), rtol=1e-6)
    assert walked == drivers[:1]  # the other is one dispatch


def test_frames_are_previews_evenly_spread_that_end_with_the_last():
    driver = Driver(walk(9), "cpu")
    previews = [np.asarray(preview) for _, preview in driver.walk(WEIGHT, KEYS, {})]
    assert len(previews) == 9
    for count, kept in ((1, [8]), (2, [0, 8]), (3, [0, 4, 8]), (9, range(9))):
        frames = np.asarray(driver.frames(WEIGHT, KEYS, {}, count))
        np.testing.assert_array_equal(frames, np.stack([previews[i] for i in kept]))
    last = driver(WEIGHT, KEYS, {})
    np.testing.assert_array_equal(np.asarray(last), previews[-1])


def test_without_steps_frames_are_the_way_to_another_sample(variables):
    plain = toys.from_noise("net")
    way = plain._replace(between=lambda a, b, share: a + share * (b - a))
    driver = Driver(way, "cpu")
    frames = driver.frames(variables, KEYS, {}, 3)
    np.testing.assert_allclose(frames[0], driver(variables, KEYS, {}), atol=1e-6)
    others = jax.vmap(jax.random.fold_in, in_axes=(0, None))(KEYS, 1)
    np.testing.assert_allclose(frames[2], driver(variables, others, {}), atol=1e-6)
    with pytest.raises(ValueError, match="no frames to show"):
        Driver(plain, "cpu").frames(variables, KEYS, {}, 3)


def test_frames_keep_samples_on_their_second_axis():
    mesh = mesh_of(1)
    batches = draw(Driver(walk(4), "cpu"), WEIGHT, mesh, seed=7, count=7, batch_size=3, frames=2)
    frames = np.concatenate(list(batches), axis=1)
    assert frames.shape == (2, 7, 5)
    whole = np.concatenate(list(draw(Driver(walk(4), "cpu"), WEIGHT, mesh, seed=7, count=7)))
    np.testing.assert_allclose(frames[1], whole, atol=1e-6)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_a_sampler_of_a_thousand_steps_is_lowered_as_a_loop(platform):
    traced = jax.jit(program(walk(1000))).trace(WEIGHT, KEYS, {})
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert text.count("stablehlo.while") == 1
    assert text.count("stablehlo.tanh") == 1  # one copy of the network
    assert text.count("dot_general") == 1


def test_batches_of_one_size_cover_any_number_on_any_devices():
    sizes = []

    def run(tree):
        sizes.append(len(tree["a"]))
        return {"sum": tree["a"] + tree["b"][:, 0]}

    arrays = {"a": np.arange(21.0), "b": np.arange(42.0).reshape(21, 2)}
    expected = arrays["a"] + arrays["b"][:, 0]
    for devices, batch_size in ((1, 64), (1, 5), (8, 3)):
        sizes.clear()
        found = map_batches(run, mesh_of(devices), arrays, batch_size)
        np.testing.assert_array_equal(found["sum"], expected)
        assert len(set(sizes)) == 1
        assert sizes[0] % devices == 0
    with pytest.raises(ValueError, match="no examples"):
        map_batches(run, mesh_of(1), {"a": np.zeros(0)})
