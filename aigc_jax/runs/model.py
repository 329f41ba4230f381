"""Trained models: from a run's folder, or weights from elsewhere, to something that samples.

A model is restored without its trainer: the averages where a player has them, the parameters of the
others, what of `extra` belongs to the weights, and what `Drawing.prepare` left beside them. No
optimizer state is read, and no second copy of the parameters.
"""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from aigc_jax import build, streams
from aigc_jax.family import DataSpec, Family, Field, Variables
from aigc_jax.runs import examples, weights
from aigc_jax.runs import folder as folders
from aigc_jax.sampling.driver import Driver
from aigc_jax.training import sharding
from aigc_jax.training.checkpoint import Checkpoints


class Model(NamedTuple):
    """A trained model, ready to sample.

    Attributes:
      config: what it was built from; commands read it, and of `runs` this file alone.
      spec, family: of its data, and the family itself.
      variables: what the family's functions take, on the devices.
      step: steps that it was trained for; 0 of weights from elsewhere.
    """

    config: Mapping[str, Any]
    spec: DataSpec
    family: Family
    variables: Variables
    step: int

    def driver(self, mesh: Any) -> Driver:
        """What draws samples on a mesh's devices."""
        return Driver(self.family.drawing, mesh.devices.flat[0].platform)


def outline(workdir: str | pathlib.Path, config: Mapping[str, Any] | None = None) -> Model:
    """The model of a run before any weights are read, for what can be refused by then.

    Args and errors as of `load`; `variables` are empty and `step` is 0.
    """
    workdir = pathlib.Path(workdir)
    if _from_elsewhere(workdir, config):
        spec = _spec_of(pathlib.Path(config["init_from"]).expanduser())
    else:
        if config is None:
            config = folders.read(workdir, "config.json")
        else:
            folders.check_same(workdir, config)
        spec = folders.read_spec(workdir)
    return Model(config, spec, build.build(config, spec), Variables({}, {}), 0)


def load(
    workdir: str | pathlib.Path,
    config: Mapping[str, Any] | None = None,
    *,
    step: int | None = None,
    raw: bool = False,
    dtype: Any = None,
    codes: examples.Codes | None = None,
    family: Family | None = None,
) -> Model:
    """The model of a run.

    Args:
      workdir: folder of the run. Where it holds none, `config.init_from` is taken instead.
      config: None for the run's own; another may differ only in what does not change the model.
      step: of the checkpoint; None for the newest.
      raw: the parameters themselves instead of their EMA.
      dtype: of floating parameters, such as bfloat16; None leaves them as they were trained.
      codes: gives the codes of training data, where what `Drawing.prepare` computes was not stored
        with the checkpoint, as with another `sampling` than the run's own; None leaves it out.
      family: of `config` and the run's data, where it is built already: what was compiled of it
        serves again.

    Raises:
      FileNotFoundError: no run there, or one without a checkpoint.
      ValueError, CheckpointError: a run of another config or an earlier version, damage; `step` or
        `raw` where no run is.
    """
    workdir = pathlib.Path(workdir)
    if _from_elsewhere(workdir, config):
        if step is not None or raw:
            raise ValueError(
                f"there is no run in {workdir} to take another step or raw weights of: leave "
                "--step and --raw out, config.init_from is taken as it is"
            )
        source = pathlib.Path(config["init_from"]).expanduser()
        spec = _spec_of(source)
        if "diffusion" in config:
            weights.check_process(source, config["diffusion"])
        family = build.build(config, spec)
        variables, step = _with_rest(family, *initial(source, config, family)), 0
        stored: tuple[str, Any] = ("", {})
    else:
        if config is None:
            config = folders.read(workdir, "config.json")
        else:
            folders.check_same(workdir, config)
        spec = folders.read_spec(workdir)
        family = family or build.build(config, spec)
        mode = config["train"]["sharding"]
        variables, stored, step = restore(workdir, family, step, raw=raw, mode=mode)
    if dtype is not None:
        variables = variables._replace(params=cast(variables.params, dtype))
    if family.drawing and family.drawing.prepare:
        variables = with_prepared(family, variables, stored, codes)
    return Model(config, spec, family, variables, step)


def with_prepared(
    family: Family, variables: Variables, stored: tuple[str, Any], codes: examples.Codes | None
) -> Variables:
    """The variables with what samples need beside them: as stored, else as `examples.prepare`."""
    (name, found), mesh = stored, sharding.make_mesh()
    if name != family.drawing.prepared_as:
        return examples.prepare(family, variables, mesh, codes)
    return variables._replace(prepared=sharding.place(found, mesh))


def restore(
    workdir: pathlib.Path,
    family: Family,
    step: int | None = None,
    *,
    raw: bool = False,
    mode: str = "replicated",
) -> tuple[Variables, tuple[str, Any], int]:
    """What a run's checkpoint holds of a model, on the devices at hand.

    Returns:
      (variables, (name of what was prepared, what was prepared), step).

    Raises:
      FileNotFoundError: the folder holds no checkpoint.
    """
    root = workdir / "checkpoints"
    if not root.is_dir():
        raise FileNotFoundError(f"no checkpoints in {workdir}: train first, or check --workdir")
    params, extra = jax.eval_shape(family.init, streams.init(0)[0])
    averaged = () if raw else family.averaged
    parts = {
        "params": {name: tree for name, tree in params.items() if name not in averaged},
        "ema": {name: tree for name, tree in params.items() if name in averaged},
        "extra": {name: extra[name] for name in family.transferred if name in extra},
    }
    parts = {name: part for name, part in parts.items() if jax.tree.leaves(part)}
    target = sharding.laid_out(parts, sharding.make_mesh(), mode)
    checkpoints = Checkpoints(root)
    try:
        found = checkpoints.restore_parts(target, step)
        if found is None:
            raise FileNotFoundError(f"no complete checkpoint in {root}: train first")
    finally:
        checkpoints.close()
    read, made, about, step = found
    name = about.get("prepared", "")
    both = {**read.get("params", {}), **read.get("ema", {})}
    return Variables(both, read.get("extra", {})), ("" if raw else name, made), step


def cast(tree: Any, dtype: Any) -> Any:
    """A tree with its floating leaves in another precision."""

    def of(leaf: jax.Array) -> jax.Array:
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(of, tree)


def initial(
    source: str | pathlib.Path, config: Mapping[str, Any], family: Family
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What another run, or a diffusers folder, has learned, to start from.

    Returns:
      ({player: parameters}, of a run their EMA where it has one; what of `extra` goes with them).

    Raises:
      FileNotFoundError: neither lies there.
      ValueError: they do not fit the family's networks; the differences are named.
    """
    source = pathlib.Path(source).expanduser()
    expected_params, expected_extra = jax.eval_shape(family.init, streams.init(0)[0])
    if folders.is_run(source):
        theirs = folders.read(source, "config.json")
        variables, _, _ = restore(source, build.build(theirs, folders.read_spec(source)))
        params = dict(variables.params)
        both = expected_extra.keys() & variables.extra.keys()
        transferred = {name: variables.extra[name] for name in family.transferred if name in both}
    else:
        params, transferred = weights.from_diffusers(source, config["network"]), {}
    weights.check_fit(source, params, expected_params)
    weights.check_fit(source, transferred, expected_extra)
    return params, transferred


def _from_elsewhere(workdir: pathlib.Path, config: Mapping[str, Any] | None) -> bool:
    return config is not None and bool(config["init_from"]) and not folders.is_run(workdir)


def _with_rest(
    family: Family, params: Mapping[str, Any], transferred: Mapping[str, Any]
) -> Variables:
    """Given parameters and statistics on the devices, and new ones of what was not given."""
    extra = jax.jit(lambda key: family.init(key)[1])(streams.init(0)[0])
    params, transferred = sharding.place((dict(params), dict(transferred)), sharding.make_mesh())
    return Variables(params, {**extra, **transferred})


def _spec_of(source: pathlib.Path) -> DataSpec:
    """The spec of the weights that `config.init_from` names."""
    if folders.is_run(source):
        return folders.read_spec(source)
    shape, classes = weights.diffusers_shape(source)
    conditions = {"label": Field("label", (), classes)} if classes else {}
    return DataSpec({"x": Field("image", shape)}, conditions, {})
