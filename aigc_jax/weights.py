"""Weights from elsewhere and for elsewhere: other runs, and folders of Hugging Face diffusers."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from aigc_jax import build
from aigc_jax.data.datasets import DataSpec
from aigc_jax.family import Family
from aigc_jax.networks import diffusers
from aigc_jax.training import rundir, sharding
from aigc_jax.training.checkpoint import Checkpoints
from aigc_jax.training.loop import recipe
from aigc_jax.training.step import TrainState

# diffusers' words for ours, in its scheduler configs.
SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}
PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}


def is_run(folder: pathlib.Path) -> bool:
    """Whether a folder is a run of ours."""
    return (folder / "checkpoints").is_dir()


def read_spec(workdir: pathlib.Path) -> DataSpec:
    """The data's spec that a run was trained for."""
    spec = rundir.read(workdir, "spec.json")
    return DataSpec(tuple(spec["image_shape"]), spec["num_classes"], spec["splits"])


def restore(
    workdir: pathlib.Path, config: Mapping[str, Any], family: Family, step: int | None = None
) -> tuple[TrainState, int]:
    """A run's newest good state, or that of `step`, on the devices at hand.

    Raises:
      FileNotFoundError: the folder holds no checkpoint.
    """
    mesh = sharding.make_mesh()
    target = sharding.abstract_state(recipe(config, family), mesh, config["train"]["sharding"])
    folder = workdir / "checkpoints"
    if not folder.is_dir():
        raise FileNotFoundError(f"no checkpoints in {workdir}: train first, or check --workdir")
    checkpoints = Checkpoints(folder)
    try:
        restored = checkpoints.restore(target, step)
    finally:
        checkpoints.close()
    if restored is None:
        raise FileNotFoundError(f"no complete checkpoint in {folder}: train first")
    return restored


def load(
    folder: str | pathlib.Path, config: Mapping[str, Any], family: Family
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What another run, or a diffusers folder, has learned.

    Returns:
      ({player: parameters}, of a run their EMA where it has one; what of `extra` goes with them).

    Raises:
      FileNotFoundError: neither lies there.
      ValueError: they do not fit the family's networks; the differences are named.
    """
    folder, carried = pathlib.Path(folder).expanduser(), {}
    ours_params, ours_extra = jax.eval_shape(family.init, jax.random.key(0))
    if is_run(folder):
        theirs = rundir.read(folder, "config.json")
        state, _ = restore(folder, theirs, build.build(theirs, read_spec(folder)))
        params = {**state.params, **state.ema}
        both = ours_extra.keys() & state.extra.keys()
        carried = {name: state.extra[name] for name in family.carried if name in both}
    else:
        found = diffusers.read(folder)
        ours = _effective(config["network"], found.image_size)
        differing = [
            f"network.{key}: {ours[key]} here, {value} there"
            for key, value in _effective(found.network, found.image_size).items()
            if key in ours and ours[key] != value and key != "dropout"
        ]
        if differing:
            raise ValueError(f"{folder} holds another network: " + "; ".join(differing))
        params = {"net": found.params}
    _check_fit(folder, params, ours_params)
    _check_fit(folder, carried, ours_extra)
    return params, carried


def check_process(folder: str | pathlib.Path, config: Mapping[str, Any]) -> None:
    """Raises ValueError where weights were trained for another diffusion: samples would be noise.

    A diffusers folder without a scheduler says nothing about it.
    """
    folder = pathlib.Path(folder).expanduser()
    if is_run(folder):
        theirs = rundir.read(folder, "config.json").get("diffusion", {})
    else:
        theirs = _process_of(diffusers.read(folder).scheduler)
    ours = config["diffusion"]
    keys = ["timesteps", "schedule", "prediction"]
    if ours["schedule"] != "cosine":  # which has no ends to choose
        keys += ["beta_min", "beta_max"]
    differing = [
        f"diffusion.{key}: {ours[key]} here, {theirs[key]} there"
        for key in keys
        if key in theirs and ours[key] != theirs[key]
    ]
    if differing:
        raise ValueError(f"{folder} holds weights of another diffusion: {'; '.join(differing)}")


def export(
    folder: str | pathlib.Path, params: Mapping[str, Any], config: Mapping[str, Any], spec: DataSpec
) -> None:
    """Writes a diffusion model as a folder that diffusers' DDPMPipeline and DDIMPipeline load."""
    if config["family"] != "diffusion":
        raise ValueError(f"diffusers has no pipeline for family {config['family']!r}")
    process, sampling = config["diffusion"], config["sampling"]
    spacing = sampling["spacing"]  # diffusers has no "quadratic"
    height, width, channels = spec.image_shape
    if height != width:
        raise ValueError(f"diffusers' pipelines draw square images, not {height}x{width}")
    network = {k: v for k, v in dict(config["network"]).items() if k not in ("name", "dtype")}
    network["out_channels"] = channels
    network["num_classes"] = spec.num_classes if process["conditional"] else 0
    diffusers.write(
        folder,
        jax.tree.map(np.asarray, sharding.fetch(params["net"])),
        network=network,
        image_size=height,
        in_channels=channels,
        scheduler={
            "num_train_timesteps": process["timesteps"],
            "beta_start": process["beta_min"],
            "beta_end": process["beta_max"],
            "beta_schedule": SCHEDULES[process["schedule"]],
            "prediction_type": PREDICTIONS[process["prediction"]],
            "variance_type": sampling["variance"],
            "clip_sample": sampling["clip"],
            **({"timestep_spacing": spacing} if spacing != "quadratic" else {}),
        },
    )


def _check_fit(folder: pathlib.Path, found: Mapping[str, Any], expected: Any) -> None:
    """Raises ValueError where {player: arrays} lack, exceed or mis-shape those expected."""

    def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
        leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
        return {jax.tree_util.keystr(path): tuple(leaf.shape) for path, leaf in leaves}

    for player, tree in found.items():
        if player not in expected:
            raise ValueError(f"{folder} has a player {player!r}; here are {', '.join(expected)}")
        theirs, ours = shapes(tree), shapes(expected[player])
        wrong = [
            f"{name} is {theirs.get(name, 'absent')} there, {ours.get(name, 'absent')} here"
            for name in sorted(theirs.keys() | ours.keys())
            if theirs.get(name) != ours.get(name)
        ]
        if wrong:
            more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            raise ValueError(
                f"the weights in {folder} do not fit config.network: {'; '.join(wrong[:3])}{more}"
            )


def _process_of(scheduler: Mapping[str, Any]) -> dict[str, Any]:
    """A scheduler_config.json in our words, with DDPMScheduler's values where it is silent."""
    if not scheduler:
        return {}
    schedule = scheduler.get("beta_schedule", "linear")
    prediction = scheduler.get("prediction_type", "epsilon")
    return {
        "timesteps": scheduler.get("num_train_timesteps", 1000),
        "schedule": {word: ours for ours, word in SCHEDULES.items()}.get(schedule, schedule),
        "prediction": {word: ours for ours, word in PREDICTIONS.items()}.get(
            prediction, prediction
        ),
        "beta_min": scheduler.get("beta_start", 1e-4),
        "beta_max": scheduler.get("beta_end", 0.02),
    }


def _effective(network: Mapping[str, Any], image_size: int) -> dict[str, Any]:
    """A UNet's arguments such that equal networks have equal ones."""
    heights = [image_size >> i for i in range(len(network["multipliers"]))]
    return {
        **network,
        "multipliers": list(network["multipliers"]),
        "attention": [height for height in heights if height in network["attention"]],
        "groups": min(network["groups"], network["width"]),
    }
