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

from aigc_jax import build, checks, files, streams
from aigc_jax.errors import MissingError, SettingError
from aigc_jax.family import DataSpec, Family, Field, Params, Variables
from aigc_jax.runs import averages, examples, weak, weights
from aigc_jax.runs import folder as folders
from aigc_jax.sampling.driver import Driver
from aigc_jax.training import sharding
from aigc_jax.training.checkpoint import Checkpoints, complete_steps
from aigc_jax.training.ema import settings_of

# Settings that say how a model uses labels; all others are the same with labels or without.
OF_LABELS = ("diffusion.conditional", "vae.conditional", "network.discriminator.conditioning")
UNLABELLED = (None, False, "none")


class Model(NamedTuple):
    """A trained model, ready to sample.

    Attributes:
      config: what it was built from; commands read it, and of `runs` this file alone.
      spec, family: of its data, and the family itself.
      variables: what the family's functions take, on the devices.
      step: steps that it was trained for; 0 of weights from elsewhere.
      best: whether it is the checkpoint that the run keeps as its best.
      ema: the name of the average that it is of; "" for the run's own.
    """

    config: Mapping[str, Any]
    spec: DataSpec
    family: Family
    variables: Variables
    step: int
    best: bool = False
    ema: str = ""

    @property
    def named(self) -> str:
        """Which checkpoint it is, in words: "step 40", "step 40 (the best), EMA 5000"."""
        words = f"step {self.step}" + (" (the best)" if self.best else "")
        return words + (f", EMA {self.ema}" if self.ema else "")

    def driver(self, mesh: Any) -> Driver:
        """What draws samples on a mesh's devices."""
        return Driver(self.family.drawing, mesh.devices.flat[0].platform)


def outline(
    workdir: str | pathlib.Path,
    config: Mapping[str, Any] | None = None,
    family: Family | None = None,
) -> Model:
    """The model of a run before any weights are read, for what can be refused by then.

    Args and errors as of `load`; `variables` are empty and `step` is 0.
    """
    workdir = files.expanded(workdir)
    if config is not None:
        config = with_network(config, workdir)
    if _from_elsewhere(workdir, config):
        spec = _spec_of(files.expanded(config["init_from"]))
    else:
        if config is None:
            config = folders.read(workdir, "config.json")
        else:
            folders.check_same(workdir, config)
        spec = folders.read_spec(workdir)
    if source := config["sampling"].get("weak"):
        plain = folders.as_dict(config)
        weak.check(source, checks.flatten(plain), plain["diffusion"], spec)
    return Model(config, spec, family or build.build(config, spec), Variables({}, {}), 0)


def load(
    workdir: str | pathlib.Path,
    config: Mapping[str, Any] | None = None,
    *,
    step: int | None = None,
    best: bool = False,
    raw: bool = False,
    ema: str | float = "",
    dtype: Any = None,
    codes: examples.Codes | None = None,
    family: Family | None = None,
) -> Model:
    """The model of a run.

    Args:
      workdir: folder of the run. Where it holds none, `config.init_from` is taken instead.
      config: None for the run's own; another may differ only in what does not change the model.
      step: of the checkpoint, the best among them; None for the newest.
      best: the checkpoint that `config.checkpoint.best` chose, instead of the newest.
      raw: the parameters themselves instead of their EMA.
      ema: another average than the run's own, by its name: see `averages`.
      dtype: of floating parameters, such as bfloat16; None leaves them as they were trained.
      codes: gives the codes of training data, where what `Drawing.prepare` computes was not stored
        with the checkpoint, as with another `sampling` than the run's own; None leaves it out.
      family: of `config` and the run's data, where it is built already: what was compiled of it
        serves again.

    Raises:
      FileNotFoundError: no run there, or one without a checkpoint.
      ValueError, CheckpointError: a run of another config or an earlier version, damage; `step` and
        `best` together, or `raw` and `ema`; any of these where no run is.
    """
    workdir = files.expanded(workdir)
    if best and step is not None:
        raise SettingError(f"--best and --step={step} name two checkpoints: leave one of them out")
    if raw and ema:
        raise SettingError(f"--raw takes no average and --ema={ema} one: leave one of them out")
    elsewhere = _from_elsewhere(workdir, config)
    if elsewhere and (step is not None or best or raw or ema):
        raise SettingError(
            f"there is no run in {workdir} to take another step or other weights of: leave --step, "
            "--best, --raw and --ema out, config.init_from is taken as it is; the best of a run is "
            "config.init_from=RUN/best"
        )
    config, spec, family, *_ = outline(workdir, config, family)
    if elsewhere:
        source = files.expanded(config["init_from"])
        if "diffusion" in config:
            weights.check_process(source, config["diffusion"])
        found = initial(source, config, family, spec, training=False)
        variables, step = _with_rest(family, *found), 0
        stored: tuple[str, Any] = ("", {})
    else:
        mode = config["train"]["sharding"]
        average = averages.parsed(ema, settings_of(config["ema"])) if ema else ("", "")
        variables, stored, step = restore(
            workdir, family, step, best=best, raw=raw, average=average, mode=mode
        )
    variables = variables._replace(constants=constants(config, family))
    if dtype is not None:
        kept = ("params", "constants")
        variables = variables._replace(**{k: cast(getattr(variables, k), dtype) for k in kept})
    if family.drawing and family.drawing.prepare:
        variables = with_prepared(family, variables, stored, codes)
    return Model(config, spec, family, variables, step, best, ema and str(ema))


def constants(config: Mapping[str, Any], family: Family) -> dict[str, Params]:
    """`Variables.constants` of a model that `outline` has checked: the weak one, by its average."""
    if not (source := config["sampling"].get("weak")):
        return {}
    run, step, best = weak.located(source)
    mode = config["train"]["sharding"]
    return {"weak": restore(run, family, step, best=best, mode=mode)[0].params}


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
    best: bool = False,
    raw: bool = False,
    average: tuple[str, str] = ("", ""),
    mode: str = "replicated",
) -> tuple[Variables, tuple[str, Any], int]:
    """What a run's checkpoint holds of a model, on the devices at hand.

    Args:
      average: which, as by `averages.parsed`.

    Returns:
      (variables, (name of what was prepared, what was prepared), step).

    Raises:
      FileNotFoundError: the folder holds no checkpoint.
    """
    name, posthoc = average
    if posthoc and best:
        raise SettingError(f"--ema={posthoc} is of one checkpoint: leave --best out")
    root = workdir / ("best" if best else posthoc or "checkpoints")
    if posthoc and not root.is_dir():
        raise MissingError(
            f"no {posthoc} in {workdir}: make it by --mode=ema --sigma-rel={root.name}"
        )
    of_best = step in complete_steps(workdir / "best") and step not in complete_steps(root)
    if of_best and not posthoc:
        root = workdir / "best"
    if best and not root.is_dir():
        raise MissingError(
            f"no best checkpoint in {workdir}: a run keeps one where checkpoint.best names a metric"
        )
    if not root.is_dir():
        raise MissingError(f"no checkpoints in {workdir}: train first, or check --workdir")
    params, extra = jax.eval_shape(family.init, streams.init(0)[0])
    averaged = () if raw else family.averaged
    own = {player: tree for player, tree in params.items() if player in averaged}
    parts = {
        "params": {player: tree for player, tree in params.items() if player not in averaged},
        **({"averages": {name: own}} if name else {"ema": own}),
        "extra": {name: extra[name] for name in family.transferred if name in extra},
    }
    parts = {name: part for name, part in parts.items() if jax.tree.leaves(part)}
    target = sharding.laid_out(parts, sharding.make_mesh(), mode)
    checkpoints = Checkpoints(root, run=folders.identity(workdir).get("run", ""))
    try:
        found = checkpoints.restore_parts(target, step)
        if found is None:
            raise MissingError(f"no complete checkpoint in {root}: train first")
    finally:
        checkpoints.close()
    read, made, about, step = found
    prepared = "" if raw or name else about.get("prepared", "")  # else it is of other weights
    average = read["averages"][name] if name else read.get("ema", {})
    both = {**read.get("params", {}), **average}
    return Variables(both, read.get("extra", {})), (prepared, made), step


def cast(tree: Any, dtype: Any) -> Any:
    """A tree with its floating leaves in another precision."""

    def of(leaf: jax.Array) -> jax.Array:
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(of, tree)


def with_network(
    config: Mapping[str, Any], workdir: pathlib.Path, shape: tuple[int, ...] | None = None
) -> Mapping[str, Any]:
    """The config with what it cannot say itself of the UNet whose weights `config.init_from` names.

    Of a diffusers folder that is its whole network, and what differs from `config.network` is said;
    a run that began with such a folder has the network written down, and needs the folder no more.
    Of a run it is what that one has of such a folder.

    Args:
      workdir: of the run.
      shape: of the images; None for those that the folder's network was trained on.

    Raises:
      FileNotFoundError, ValueError: no such folder, or a network that ours is not; a run with
        other heads, which the shapes of its weights do not show.
    """
    source = config["init_from"]
    if not source or "diffusion" not in config:
        return config
    config = folders.as_dict(config)
    if run := folders.run_of(source):
        theirs = folders.read(run[0], "config.json")
        theirs = theirs["network"] if "diffusion" in theirs else {}
        own = config["network"]
        if theirs.get("name") != own["name"]:
            return config
        heads = theirs.get("heads", own.get("heads"))
        if heads != own.get("heads"):
            raise SettingError(f"{source} has other heads: give --config.network.heads={heads}")
        return config | {"network": theirs | own}
    recorded = folders.read(workdir, "config.json") if folders.is_run(workdir) else {}
    if recorded.get("init_from") == source:
        kept = {key: config["network"][key] for key in weights.OF_TRAINING}
        return config | {"network": recorded["network"] | kept}
    network, differing = weights.diffusers_network(source, config["network"], shape)
    if differing and jax.process_index() == 0:
        print(f"{source}: its own network is taken, {'; '.join(differing)}", flush=True)
    return config | {"network": folders.as_dict(network)}


def initial(
    source: str | pathlib.Path,
    config: Mapping[str, Any],
    family: Family,
    spec: DataSpec,
    *,
    training: bool = True,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What another run, or a diffusers folder, has learned, to start from.

    Where it was trained with other labels, or only one of the two models has any, what depends on
    labels is new, and said to be; the rest is taken over.

    Args:
      source: a run, its best checkpoint as RUN/best, or a folder of diffusers.
      config, spec: of the model that starts from it, and of its data; `family` is theirs.
      training: whether the model will be trained; else other labels are an error.

    Returns:
      ({player: parameters}, of a run their EMA where it has one; what of `extra` goes with them).

    Raises:
      FileNotFoundError: neither lies there.
      ValueError: they do not fit the family's networks; the differences are named.
    """
    if not source:
        raise SettingError(
            f"family {config['family']!r} starts from the weights of a trained model: give "
            "--config.init_from=RUN"
        )
    source = files.expanded(source)
    params, extra, settings, classes = _learned(source)
    own = checks.flatten(folders.as_dict(config))
    allowed = (own["family"], *family.starts_from)
    if settings.get("family", own["family"]) not in allowed:
        raise SettingError(
            f"the weights in {source} are of family {settings['family']!r}, this config of "
            f"{own['family']!r}: init_from takes those of {' or '.join(allowed)}"
        )
    if "process" in config.get("diffusion", {}):
        weights.check_process(source, config["diffusion"])
    if family.needs_start:
        weights.check_same_data(source, own, settings, spec.shape, _spec_of(source).shape)
    differing = {k: settings[k] for k in OF_LABELS if settings.get(k, own.get(k)) != own.get(k)}
    there, here = _known(settings, classes), _known(own, spec.classes)
    same, theirs = not differing and there == here, family
    if not same and not training:
        told = " ".join(f"--config.{k}={value}" for k, value in differing.items())
        raise SettingError(f"the weights in {source} use labels otherwise: give {told}")
    if not same:  # what differs from the model with the labels of the weights is due to labels
        label = {"label": Field("label", (), classes)} if classes else {}
        theirs = build.build(
            folders.with_settings(config, differing), spec._replace(conditions=label)
        )

    key = streams.init(config["seed"])[0]
    expected_params, expected_extra = jax.eval_shape(theirs.init, key)
    kept = [name for name in family.transferred if name in expected_extra and name in extra]
    found = {"params": params, "extra": {name: extra[name] for name in kept}}
    weights.check_fit(source, found["params"], expected_params)
    weights.check_fit(source, found["extra"], expected_extra)
    if not same:
        new = dict(zip(found, jax.jit(family.init)(key), strict=True))
        new = {part: {name: new[part][name] for name in tree} for part, tree in found.items()}
        found, words = weights.relabelled(found, new, there, here)
        if jax.process_index() == 0:
            print(f"{source}: {words}", flush=True)
    return found["params"], found["extra"]


def _known(settings: Mapping[str, Any], classes: int) -> int:
    """How many classes a model with these settings knows of its data's."""
    return classes if any(settings.get(key) not in UNLABELLED for key in OF_LABELS) else 0


def _learned(
    source: pathlib.Path,
) -> tuple[dict[str, Any], Mapping[str, Any], dict[str, Any], int]:
    """(parameters, `extra`, {setting: value} with those of labels, classes of the data)."""
    run, best = folders.run_of(source) or (None, False)
    if run is None:
        classes = weights.diffusers_shape(source)[1]
        settings = {"diffusion.conditional": classes > 0}
        return weights.from_diffusers(source), {}, settings, classes
    theirs, spec = folders.read(run, "config.json"), folders.read_spec(run)
    variables, _, _ = restore(run, build.build(theirs, spec), best=best)
    return dict(variables.params), variables.extra, checks.flatten(theirs), spec.classes


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
    if run := folders.run_of(source):
        return folders.read_spec(run[0])
    shape, classes = weights.diffusers_shape(source)
    conditions = {"label": Field("label", (), classes)} if classes else {}
    return DataSpec({"x": Field("image", shape)}, conditions, {})
