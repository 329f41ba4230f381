"""Trained models: from a run's folder, or weights from elsewhere, to something that samples."""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from aigc_jax import build, weights
from aigc_jax.data import datasets
from aigc_jax.family import Family
from aigc_jax.training import rundir, sharding


class Model(NamedTuple):
    """A trained model, ready to sample.

    Attributes:
      config, spec, family: what it was built from, and the family itself.
      params, extra: as `Family.sample` takes them; params are the EMA where there is one.
      step: steps that it was trained for.
    """

    config: Mapping[str, Any]
    spec: datasets.DataSpec
    family: Family
    params: Any
    extra: Any
    step: int


def load(
    workdir: str | pathlib.Path,
    config: Mapping[str, Any] | None = None,
    *,
    step: int | None = None,
    raw: bool = False,
) -> Model:
    """The model of a run.

    Args:
      workdir: folder of the run. Where it holds none, `config.init_from` is taken instead.
      config: None for the run's own; another may differ only in what does not change the model.
      step: of the checkpoint; None for the newest.
      raw: the parameters themselves instead of their EMA.
    """
    workdir = pathlib.Path(workdir)
    if config is not None and config["init_from"] and not (workdir / "config.json").exists():
        spec = _spec_without_run(config)
        if config["family"] == "diffusion":
            weights.check_process(config["init_from"], config)
        family = build.build(config, spec)
        given = weights.load(config["init_from"], config, family)
        extra = jax.jit(lambda key: family.init(key)[1])(jax.random.key(0))
        params, carried = jax.device_put(given, sharding.replicated(sharding.make_mesh()))
        return Model(config, spec, family, params, {**extra, **carried}, 0)
    if config is None:
        config = rundir.read(workdir, "config.json")
    else:
        rundir.check_same(workdir, config)
    spec = weights.read_spec(workdir)
    family = build.build(config, spec)
    state, step = weights.restore(workdir, config, family, step)
    params = state.params if raw else {**state.params, **state.ema}
    return Model(config, spec, family, params, state.extra, step)


def _spec_without_run(config: Mapping[str, Any]) -> datasets.DataSpec:
    """The spec of the weights that `config.init_from` names."""
    folder = pathlib.Path(config["init_from"]).expanduser()
    if weights.is_run(folder):
        return weights.read_spec(folder)
    found = weights.diffusers.read(folder)
    size, classes = found.image_size, found.network["num_classes"]
    return datasets.DataSpec((size, size, found.in_channels), classes, {})
