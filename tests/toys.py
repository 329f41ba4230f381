"""Families that compile at once, their data and configs, and a run of them as a process of its own.

    python tests/toys.py FAMILY WORKDIR [key=value ...]

trains a toy there; `die=...` and `limit=...` break it in the ways of `broken`.
"""

import json
import os
import pathlib
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from places import QUICK_XLA

ROOT = pathlib.Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # of a process of its own
    sys.path.insert(0, str(ROOT))

from aigc_jax.commands import common  # noqa: E402
from aigc_jax.commands import train as command  # noqa: E402
from aigc_jax.data.datasets import Dataset  # noqa: E402
from aigc_jax.data.sources import ArraySource  # noqa: E402
from aigc_jax.family import (  # noqa: E402
    DataSpec,
    Drawing,
    Family,
    Field,
    Phase,
    Variables,
    View,
)
from aigc_jax.runs import folder as folders  # noqa: E402
from aigc_jax.runs.evaluations import plan  # noqa: E402
from aigc_jax.runs.examples import RealData  # noqa: E402
from aigc_jax.training import sharding  # noqa: E402
from aigc_jax.training.checkpoint import Checkpoints  # noqa: E402
from aigc_jax.training.meter import Meter  # noqa: E402
from aigc_jax.training.step import Recipe  # noqa: E402

SIDE, WIDTH, LATENT, CLASSES = 4, 8, 8, 2
PIXELS = SIDE * SIDE
LABEL = Field("label", (), CLASSES)


def dense(key: jax.Array, inputs: int, outputs: int) -> dict[str, jax.Array]:
    kernel = jax.random.normal(key, (inputs, outputs)) / inputs**0.5
    return {"kernel": kernel, "bias": jnp.zeros((outputs,))}


def mlp(key: jax.Array, *sizes: int) -> list[dict[str, jax.Array]]:
    keys = jax.random.split(key, len(sizes))
    return [dense(k, a, b) for k, a, b in zip(keys, sizes, sizes[1:], strict=False)]


def apply(layers: Any, x: jax.Array) -> jax.Array:
    for i, layer in enumerate(layers):
        x = x @ layer["kernel"] + layer["bias"][None]
        x = jnp.tanh(x) if i < len(layers) - 1 else x
    return x


def flat(batch: Mapping[str, jax.Array]) -> jax.Array:
    return batch["x"].reshape(-1, PIXELS)


def updated(extra: Any, name: str, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """`extra` with its running mean `name` moved towards the batch's, as BatchNorm does."""
    return {**extra, name: 0.9 * extra[name] + 0.1 * flat(batch).mean(0)}


def from_noise(player: str) -> Drawing:
    """Decodes normal noise, shifted by the label, with one player."""

    def start(variables: Variables, keys: jax.Array, cond: Any) -> jax.Array:
        z = jax.vmap(lambda key: jax.random.normal(key, (LATENT,)))(keys)
        return z + cond["label"][:, None] if "label" in cond else z

    def finish(variables: Variables, z: jax.Array) -> jax.Array:
        x = jnp.tanh(apply(variables.params[player], z) + variables.extra["mean"][None])
        return x.reshape(-1, SIDE, SIDE, 1)

    return Drawing(start, finish, conditions={"label": LABEL})


def one_player(poison: float = 0.0) -> Family:
    """A decoder of noise towards the data's mean: one phase, statistics in `extra`.

    Batches whose first pixel is above `poison` (if that is not 0) give an infinite loss.
    """

    def init(key: jax.Array) -> tuple[Any, Any]:
        return {"net": mlp(key, LATENT, WIDTH, PIXELS)}, {"mean": jnp.zeros((PIXELS,))}

    def error(params: Any, extra: Any, batch: Any, key: jax.Array) -> jax.Array:
        z = jax.random.normal(key, (batch["x"].shape[0], LATENT))
        return jnp.square(apply(params["net"], z) + extra["mean"][None] - flat(batch)).mean(1)

    def loss(view: View, batch: Any, key: jax.Array) -> Any:
        value = error(view.params, view.extra, batch, key).mean()
        if poison:
            value = jnp.where(batch["x"][0, 0, 0, 0] > poison, jnp.inf, value)
        return value, ({"error": value}, updated(view.extra, "mean", batch))

    def evaluate(variables: Variables, batch: Any, key: jax.Array) -> dict[str, jax.Array]:
        return {"error": error(variables.params, variables.extra, batch, key)}

    return Family(
        init,
        (Phase("net", loss),),
        evaluate,
        averaged=("net",),
        transferred=("mean",),
        drawing=from_noise("net"),
    )


def two_players() -> Family:
    """Two critics on batches of their own, a lazy penalty, a generator: all that a step can do."""

    def init(key: jax.Array) -> tuple[Any, Any]:
        keys = jax.random.split(key)
        params = {
            "generator": mlp(keys[0], LATENT, WIDTH, PIXELS),
            "discriminator": mlp(keys[1], PIXELS, WIDTH, 1),
        }
        return params, {"mean": jnp.zeros((PIXELS,)), "real": jnp.zeros((PIXELS,))}

    def fakes(view: View, batch: Any, key: jax.Array) -> jax.Array:
        z = jax.random.normal(key, (batch["x"].shape[0], LATENT))
        return jnp.tanh(apply(view.params["generator"], z) + view.extra["mean"][None])

    def critic_loss(view: View, batch: Any, key: jax.Array) -> Any:
        real = apply(view.params["discriminator"], flat(batch))
        fake = apply(view.params["discriminator"], fakes(view, batch, key))
        loss = (jax.nn.softplus(-real) + jax.nn.softplus(fake)).mean()
        return loss, ({"mean": batch["x"].mean()}, updated(view.extra, "real", batch))

    def penalty(view: View, batch: Any, key: jax.Array) -> Any:
        def logit(x: jax.Array) -> jax.Array:
            return apply(view.params["discriminator"], x[None])[0, 0]

        grads = jax.vmap(jax.grad(logit))(flat(batch))
        return jnp.square(grads).sum(1).mean(), ({}, view.extra)

    def generator_loss(view: View, batch: Any, key: jax.Array) -> Any:
        fake = apply(view.params["discriminator"], fakes(view, batch, key))
        return jax.nn.softplus(-fake).mean(), ({}, updated(view.extra, "mean", batch))

    def evaluate(variables: Variables, batch: Any, key: jax.Array) -> dict[str, jax.Array]:
        return {"error": apply(variables.params["discriminator"], flat(batch))[:, 0]}

    phases = (
        Phase("discriminator", critic_loss, name="critic0"),
        Phase("discriminator", critic_loss, name="critic1"),
        Phase("discriminator", penalty, every=4, name="r1"),
        Phase("generator", generator_loss),
    )
    return Family(
        init,
        phases,
        evaluate,
        averaged=("generator",),
        batches_per_step=2,
        transferred=("mean",),
        drawing=from_noise("generator"),
    )


FAMILIES = {"one": one_player, "two": two_players}


def dataset(rows: int = 64) -> Dataset:
    """Random images of two classes."""
    rng = np.random.default_rng(0)

    def source(n: int) -> ArraySource:
        images = rng.integers(0, 256, (n, SIDE, SIDE, 1), np.uint8)
        return ArraySource(images, np.arange(n, dtype=np.int32) % CLASSES)

    sources = {"train": source(rows), "test": source(20)}
    return Dataset(SPEC._replace(sizes={k: len(v) for k, v in sources.items()}), sources)


SPEC = DataSpec({"x": Field("image", (SIDE, SIDE, 1))}, {"label": LABEL}, {})


def optimizer(name: str = "sgd", **changes: Any) -> dict[str, Any]:
    setting = {"name": name, "learning_rate": 0.05, "schedule": "constant", "warmup": 0}
    return setting | {"decay_steps": 0} | changes


def config(family: str = "one", changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A toy's config; `changes` is flat: {"train.steps": 3}."""
    nested: dict[str, Any] = {
        "family": family,
        "seed": 0,
        "data": {"train_split": "train", "test_split": "test"},
        "augment": {"flip": True, "shift": 0, "rotation": 0.0, "scale": 0.0},
        "train": {
            "batch_size": 16,
            "steps": 6,
            "precision": "float32",
            "remat": False,
            "microbatches": 1,
            "sharding": "replicated",
            "max_skipped": 3,
            "steps_per_dispatch": 1,
        },
        "optimizer": optimizer("adam"),
        "ema": {"half_life": 64.0, "ramp": 0.0},
        "log": {"every": 1, "eval_every": 3, "sample_every": 3, "samples": 6, "first_sample": 0},
        "checkpoint": {"every": 2, "keep": 2, "best": "test/error", "best_mode": "min"},
        "evaluations": {},
        "init_from": "",
        "evaluation": {
            "network": "digits",
            "weights": None,
            "lpips": "",
            "lpips_weights": None,
            "count": 20,
            "reference_split": "train",
            "statistics": "",
            "manifold_count": 20,
            "likelihood_count": 0,
            "at_end": False,
            "examples": 0,
            "scheduled_count": 0,
        },
        "sampling": {"steps": 10},
    }
    if family == "two":
        nested["optimizer"] = {"generator": optimizer("adam"), "discriminator": optimizer("sgd")}
    return folders.with_settings(nested, changes or {})


def train(
    workdir: pathlib.Path,
    family: str | Family = "one",
    changes: Mapping[str, Any] | None = None,
    data: Dataset | None = None,
    **more: Any,
) -> Any:
    """A run of a toy, by name, or of a family of one player on images like the toys'."""
    name, made = (family, FAMILIES[family]()) if isinstance(family, str) else ("one", family)
    setting = config(name, changes)
    real = RealData("toy", data or dataset(), "train", "test", setting["train"]["batch_size"])
    planned = plan(setting["evaluations"], setting["evaluation"])
    return command.fit(setting, workdir, made, real, planned, **more)


def recipe_of(family: Family, setting: Mapping[str, Any]) -> Recipe:
    """What a config's sections make of a family on images like the toys'."""
    return common.recipe_of(setting, family, SPEC)


def one_step(
    recipe: Recipe, mesh: Any, target: Any, constants: Any
) -> Callable[..., tuple[Any, dict[str, float]]]:
    """(active, state, batch [batches_per_step, B, ...] of the host) -> (state, its metrics)."""
    run = sharding.compile_steps(recipe, mesh, target, constants)

    def step(active: tuple[int, ...], state: Any, batch: Any) -> tuple[Any, dict[str, float]]:
        feed = sharding.put(mesh, jax.tree.map(lambda x: x[None], batch), axis=2)
        with jax.transfer_guard("disallow"):
            state, metrics = run(active, state, constants, {}, feed)
        return state, metrics.rows()[0]

    step._cache_size = run._cache_size
    return step


def resumed(folder: pathlib.Path, family: Family, stop: int, steps: int) -> tuple[Any, Any]:
    """States after `steps`, of a run that was never stopped and of one that was at `stop`."""
    quiet = {"log.eval_every": 0, "log.sample_every": 0, "checkpoint.best": ""}
    changes = {"train.steps": steps, "checkpoint.every": stop} | quiet
    whole = train(folder / "whole", family, changes)
    train(folder / "stopped", family, changes | {"train.steps": stop})
    return whole, train(folder / "stopped", family, changes)


def target(family: str = "one", mode: str = "replicated", devices: int = 8) -> Any:
    """What a restore of a toy's state aims at."""
    plan = recipe_of(FAMILIES[family](), config(family))
    return sharding.abstract_state(plan, sharding.make_mesh(jax.devices()[:devices]), mode)


def arrays(tree: Any) -> list[np.ndarray]:
    """Every leaf on the host, keys as their bits."""

    def of(leaf: jax.Array | float) -> np.ndarray:
        typed = jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if typed else leaf)

    return [of(leaf) for leaf in jax.tree.leaves(tree)]


def same(a: Any, b: Any) -> bool:
    """Whether two trees are equal to the last bit."""
    pairs = zip(arrays(a), arrays(b), strict=True)
    return all(x.dtype == y.dtype and x.tobytes() == y.tobytes() for x, y in pairs)


def rows(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl without the times."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if not k.startswith("time/")} for line in lines
    ]


def saved(workdir: pathlib.Path, step: int, family: str = "one") -> Any:
    """The state that a checkpoint holds."""
    checkpoints = Checkpoints(workdir / "checkpoints")
    try:
        return checkpoints.restore(target(family), step)[0]
    finally:
        checkpoints.close()


def environment(devices: int = 8) -> dict[str, str]:
    """Of a child process."""
    flags = f"--xla_force_host_platform_device_count={devices} {QUICK_XLA}"
    return os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


def run(*arguments: str, devices: int = 8) -> subprocess.CompletedProcess:
    """A toy's run in a process of its own."""
    command = [sys.executable, str(ROOT / "tests" / "toys.py"), *arguments]
    return subprocess.run(
        command, env=environment(devices), capture_output=True, text=True, timeout=120, check=False
    )


def broken(die: str, limit: int) -> None:
    """Makes this process fail on purpose.

    Args:
      die: "step:N" kills it when step N has run, "save:N" within the save of step N, just before
        its folder gets its final name, "saved:N" just after.
      limit: from the first complete checkpoint on, no file grows beyond this many bytes.
    """
    when, _, step = die.partition(":")
    kill = partial(os.kill, os.getpid(), signal.SIGKILL)
    if limit:  # a cold cache of compilations would meet it first, and warn
        jax.config.update("jax_enable_compilation_cache", False)
    complete, rename = None, os.rename

    def patched(source: Any, destination: Any, **more: Any) -> None:
        nonlocal complete
        name = pathlib.Path(destination).name
        ours = pathlib.Path(destination).parent.name == "checkpoints" and name.isdigit()
        if ours and when == "save" and int(name) == int(step):
            kill()
        rename(source, destination, **more)
        if ours and when == "saved" and int(name) == int(step):
            kill()
        if ours and limit and complete is None:
            complete = int(name)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    os.rename = patched
    if when == "step":
        add = Meter.add

        def counted(meter: Any, done: int, metrics: Any) -> None:
            add(meter, done, metrics)
            if done == int(step):
                meter._checkpoints.wait()  # so that the last save is whole
                kill()

        Meter.add = counted


def main(family: str, workdir: str, *settings: str) -> None:
    changes = dict(s.partition("=")[::2] for s in settings)
    changes = {k: v if k == "die" else json.loads(v) for k, v in changes.items()}
    broken(changes.pop("die", ""), changes.pop("limit", 0))
    try:
        state = train(pathlib.Path(workdir), family, changes)
    except (RuntimeError, ValueError) as error:  # as launch.py does
        raise SystemExit(f"toys.py: {error}") from None
    print("last step", int(state.step), folders.read(pathlib.Path(workdir), "config.json")["seed"])


if __name__ == "__main__":
    main(*sys.argv[1:])
