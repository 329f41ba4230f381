"""A diffusion family from a config: the names of its parts, and nothing else."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Annotated, Any

from aigc_jax import modalities
from aigc_jax.checks import (
    BelowOne,
    NonNegative,
    OneOf,
    Positive,
    Probability,
    arguments,
    choice,
    kinds,
    one_of,
    section,
)
from aigc_jax.diffusion import (
    editing,
    likelihood,
    objectives,
    precondition,
    solvers,
)
from aigc_jax.diffusion import process as processes
from aigc_jax.diffusion import times as timing
from aigc_jax.diffusion.importance import ImportanceSampled
from aigc_jax.diffusion.model import Diffusion
from aigc_jax.diffusion.vdm import VDM
from aigc_jax.errors import SettingError
from aigc_jax.family import DataSpec, Family
from aigc_jax.networks.edm_unet import EDMUNet
from aigc_jax.networks.fourier import FourierUNet
from aigc_jax.networks.mlp import MLP
from aigc_jax.networks.transformer import DiT
from aigc_jax.networks.unet import UNet

# {config.network.name: (the module, the kind of data that it takes)}
NETWORKS = {
    "unet": (UNet, "image"),
    "edm_unet": (EDMUNet, "image"),
    "dit": (DiT, "image"),
    "fourier_unet": (FourierUNet, "image"),
    "mlp": (MLP, "points"),
}
VARIANCES = ("fixed", "learned")
ENDS = ("fixed", "learned")
SCHEDULES = ("linear", "monotone")
OBJECTIVES = ("simple", "bound")
# What else of `config.sampling` is a field of Diffusion, where it is given.
OF_SAMPLES = (
    *("dynamic_threshold", "guidance_rescale", "guidance_low", "guidance_high", "autoguidance"),
)


def build(config: Mapping[str, Any], spec: DataSpec) -> Family:
    """The diffusion family of an experiment.

    Args:
      config: reads `network` (name and keyword arguments), `diffusion` and `sampling`.
      spec: of the data.

    Raises:
      ValueError: a setting that does not exist, or that these data or the others rule out.
    """
    of_sampling = kinds(solvers.build, given=("process", "settings"))
    of_sampling |= kinds(Diffusion, only=("clip", "guidance"))
    optional = kinds(solvers.Settings) | kinds(Diffusion, only=OF_SAMPLES) | {"weak": str}
    make = partial(diffusion, of_bytes=modalities.of(spec.kind).bounded)
    model = from_config(config, spec, make, of_sampling, optional)
    return model.family()._replace(edits=editing.edits(model) if spec.kind == "image" else {})


def from_config(
    config: Mapping[str, Any],
    spec: DataSpec,
    make: Callable[..., Diffusion],
    of_sampling: Mapping[str, Any],
    optional: Mapping[str, Any] = MappingProxyType({}),
) -> Diffusion:
    """A model from the sections of a config.

    Args:
      config, spec: as of `build`.
      make: (network, shape, sampling=, settings of `config.diffusion` by name) -> the model.
      of_sampling, optional: {key: kind} of `config.sampling`, see `checks.section`.

    Raises:
      ValueError: as `build`.
    """
    given = ("network", "shape", "sampling", "of_bytes")
    settings = arguments("diffusion", make, config["diffusion"], given, {"conditional": bool})
    conditional = settings.pop("conditional", False)
    if conditional and not spec.classes:
        raise SettingError("diffusion.conditional needs data with labels; this data set has none")
    channels = spec.shape[-1] * (2 if settings.get("variance") == "learned" else 1)
    made = network(config["network"], spec, channels, spec.classes if conditional else 0)
    sampling = section("sampling", config["sampling"], of_sampling, optional)
    bounded = modalities.of(spec.kind).bounded
    if not bounded and (sampling["clip"] or sampling.get("dynamic_threshold")):
        raise SettingError(
            f"{spec.kind} have no range to clip estimates to: set sampling.clip=False and "
            "sampling.dynamic_threshold=0"
        )
    model = make(made, tuple(spec.shape), **settings, sampling=sampling)
    return replace(model, of_bytes=bounded)


def network(settings: Mapping[str, Any], spec: DataSpec, channels: int, classes: int) -> Any:
    """The module of `config.network` for data of `spec`.

    Args:
      channels: of its output.
      classes: labels that it knows; 0 for none.
    """
    name, others = choice("network", settings, NETWORKS)
    module, kind = NETWORKS[name]
    if spec.kind != kind:
        fitting = ", ".join(n for n, (_, of) in NETWORKS.items() if of == spec.kind)
        raise SettingError(
            f"network {name!r} takes data of kind {kind}; these are {spec.kind}: choose "
            f"config.network.name={fitting or 'another family'}"
        )
    of_data = {"out_channels": channels, "num_classes": classes}
    return module(**of_data, **arguments("network", module, others, of_data))


def diffusion(
    network: Any,
    shape: tuple[int, ...],
    *,
    process: Mapping,
    prediction: Annotated[str, OneOf(precondition.PREDICTIONS)],
    times: Mapping,
    weighting: Mapping,
    sampling: Mapping[str, Any],
    sigma_data: Positive = 0.5,
    pairing: Annotated[str, OneOf(objectives.PAIRINGS)] = "independent",
    variance: Annotated[str, OneOf(VARIANCES)] = "fixed",
    bound_weight: NonNegative = 0.001,
    objective: Annotated[str, OneOf(OBJECTIVES)] = "simple",
    importance: bool = False,
    augment: Probability = 0.0,
    label_dropout: BelowOne = 0.0,
    ends: Annotated[str, OneOf(ENDS)] = "fixed",
    schedule: Annotated[str, OneOf(SCHEDULES)] = "linear",
    of_bytes: bool = True,
) -> Diffusion:
    """A model of Gaussian diffusion, from the settings of its parts.

    Args:
      network, shape, bound_weight, augment, label_dropout, of_bytes: see `Diffusion`.
      process: see `process.PROCESSES`.
      prediction, sigma_data: see `precondition.named`.
      times, weighting: see `times.TIMES` and `times.WEIGHTINGS`.
      pairing: see `objectives.PAIRINGS`.
      variance: "learned" gives the network twice the channels, half of which say where each
        step's variance lies (Nichol & Dhariwal 2021, arXiv:2102.09672).
      objective: "simple" by `weighting`, of a learned variance L_hybrid; "bound" L_vlb itself.
      importance: whether times are drawn by their losses: see `ImportanceSampled`.
      ends: "learned" is a `VDM`: trained by its bound, whose ends it learns; with `schedule`
        "monotone" also how gamma goes between them.
      sampling: `clip`, `guidance` and `OF_SAMPLES` (see `Diffusion`), and what `solvers.build`
        takes; the bound is that of steps with this `variance` too. `weak` names the weaker model of
        autoguidance, which whoever draws reads.

    Raises:
      ValueError: a setting that does not exist, or that others rule out.
    """
    made = processes.build(process)
    one_of("diffusion.pairing", pairing, objectives.PAIRINGS)
    predicted = precondition.of_process(prediction, sigma_data, made)
    drawn = timing.build(times, made)
    weight = timing.weighting(weighting, predicted, made, sigma_data)
    if weighting["name"] == "likelihood":
        why = "diffusion.weighting.name='likelihood' is the bound of times drawn uniformly, and"
        _check_only(why, {"times.name": (times["name"], "uniform")})
    sampling = dict(sampling)
    shown = {k: sampling.pop(k) for k in ("clip", "guidance", *OF_SAMPLES) if k in sampling}
    _check_weak(shown.get("autoguidance", 1.0), sampling.pop("weak", ""))
    learned = variance == "learned"
    step_variance = sampling.get("variance", solvers.Settings().variance)
    _check_variance(made, learned, step_variance)
    if ends == "learned":
        _check_bound(process, times, weighting, pairing, augment)
    _check_terms(made, times, weighting, objective, importance)
    return _kind(ends, schedule, importance)(
        network=network,
        shape=tuple(shape),
        process=made,
        prediction=predicted,
        times=drawn,
        weight=weight,
        solver=solvers.build(made, **sampling),
        pair=objectives.PAIRINGS[pairing],
        term=likelihood.terms(made, step_variance, of_bytes) if made.total else None,
        learned_variance=learned,
        bound_weight=bound_weight,
        of_bound=objective == "bound",
        augment=augment,
        label_dropout=label_dropout,
        of_bytes=of_bytes,
        **shown,
    )


def _kind(ends: str, schedule: str, importance: bool) -> Callable[..., Diffusion]:
    """The class of a model, with what it alone has.

    Raises:
      ValueError: a schedule that only learned ends have.
    """
    if ends == "learned":
        return partial(VDM, monotone=schedule == "monotone")
    why = f"diffusion.schedule={schedule!r} is learned between ends that are learned, and"
    if schedule != "linear":
        _check_only(why, {"ends": (ends, "learned")})
    return ImportanceSampled if importance else Diffusion


def _check_weak(autoguidance: float, weak: str) -> None:
    """Raises SettingError where one of the two settings of autoguidance lacks the other."""
    if autoguidance != 1.0 and not weak:
        raise SettingError(
            f"sampling.autoguidance={autoguidance} leads away from a weaker version of the model: "
            "give it to --mode=sample or evaluate, with sampling.weak=RUN, or RUN@STEP for an "
            "earlier checkpoint"
        )
    if weak and autoguidance == 1.0:
        raise SettingError(
            f"sampling.weak={weak} has no part in samples while sampling.autoguidance is 1: set "
            "that to a weight such as 2, or leave weak empty"
        )


def _check_variance(made: processes.Process, learned: bool, step_variance: str) -> None:
    """Raises ValueError where the variance of steps is learned and not taken, or the reverse."""
    if learned != (step_variance == "learned"):
        raise SettingError(
            f"sampling.variance={step_variance!r} goes with diffusion.variance='learned' or with "
            "'fixed' alone: set both to 'learned', or neither"
        )
    if learned and not made.total:
        raise SettingError(
            "diffusion.variance='learned' needs diffusion.process.name='discrete', whose steps "
            "have a smallest and a largest variance"
        )


def _check_bound(
    process: Mapping, times: Mapping, weighting: Mapping, pairing: str, augment: float
) -> None:
    """Raises ValueError where settings are not those of a `VDM`, which knows no others."""
    needed = {
        "process.name": (process["name"], "log_snr"),
        "weighting.name": (weighting["name"], "likelihood"),
        "times.name": (times["name"], "uniform"),
        "times.shift": (times.get("shift", 1.0), 1.0),
        "pairing": (pairing, "independent"),
        "augment": (augment, 0.0),
    }
    _check_only("diffusion.ends='learned' trains by the bound itself, which", needed)


def _check_terms(
    made: processes.Process, times: Mapping, weighting: Mapping, objective: str, importance: bool
) -> None:
    """Raises SettingError for what has no part in terms of the bound, or times drawn by losses."""
    of_bound = objective == "bound"
    if (of_bound or importance) and not made.total:
        asked = "objective='bound'" if of_bound else "importance=True"
        raise SettingError(
            f"diffusion.{asked} needs diffusion.process.name='discrete', whose times are counted"
        )
    if of_bound:
        needed = {"weighting.name": (weighting["name"], "simple")}
        _check_only("diffusion.objective='bound' has weights of its own, and", needed)
    if importance:
        needed = {
            "times.name": (times["name"], "uniform"),
            "times.shift": (times.get("shift", 1.0), 1.0),
            "times.stratified": (times.get("stratified", False), False),
        }
        _check_only("diffusion.importance=True draws times by their losses, and", needed)


def _check_only(why: str, needed: Mapping[str, tuple[Any, Any]]) -> None:
    """Raises SettingError where a setting of `diffusion` is not the one that another needs.

    Args:
      why: the sentence's beginning.
      needed: {setting: (what it is, what it must be)}.
    """
    for key, (given, only) in needed.items():
        if given != only:
            raise SettingError(f"{why} needs diffusion.{key}={only!r}, not {given!r}")
