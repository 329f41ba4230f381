"""A diffusion family from a config: the names of its parts, and nothing else."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Annotated, Any

from aigc_jax.checks import (
    BelowOne,
    NonNegative,
    OneOf,
    Positive,
    arguments,
    choice,
    kinds,
    one_of,
    section,
)
from aigc_jax.diffusion import likelihood, objectives, precondition, process, solvers, times
from aigc_jax.diffusion.model import Diffusion
from aigc_jax.errors import SettingError
from aigc_jax.family import DataSpec, Family
from aigc_jax.networks.mlp import MLP
from aigc_jax.networks.unet import UNet

# {config.network.name: (the module, the kind of data that it takes)}
NETWORKS = {"unet": (UNet, "image"), "mlp": (MLP, "points")}
VARIANCES = ("fixed", "learned")


def build(config: Mapping[str, Any], spec: DataSpec) -> Family:
    """The diffusion family of an experiment.

    Args:
      config: reads `network` (name and keyword arguments), `diffusion` and `sampling`.
      spec: of the data.

    Raises:
      ValueError: a setting that does not exist, or that these data or the others rule out.
    """
    of_sampling = kinds(solvers.build, given=("process", "settings"))
    of_sampling |= kinds(Diffusion, only=("clip", "dynamic_threshold", "guidance"))
    return from_config(config, spec, diffusion, of_sampling, kinds(solvers.Settings)).family()


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
    of_diffusion = kinds(make, given=("network", "shape", "sampling"))
    settings = section("diffusion", config["diffusion"], {"conditional": bool, **of_diffusion})
    conditional = settings.pop("conditional")
    if conditional and not spec.classes:
        raise SettingError("diffusion.conditional needs data with labels; this data set has none")
    channels = spec.shape[-1] * (2 if settings.get("variance") == "learned" else 1)
    made = network(config["network"], spec, channels, spec.classes if conditional else 0)
    sampling = section("sampling", config["sampling"], of_sampling, optional)
    return make(made, tuple(spec.shape), **settings, sampling=sampling)


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
    label_dropout: BelowOne = 0.0,
) -> Diffusion:
    """A model of Gaussian diffusion, from the settings of its parts.

    Args:
      network, shape, bound_weight, label_dropout: see `Diffusion`.
      process: see `process.PROCESSES`.
      prediction, sigma_data: see `precondition.named`.
      times, weighting: see `times.TIMES` and `times.WEIGHTINGS`.
      pairing: see `objectives.PAIRINGS`.
      variance: "learned" gives the network twice the channels, half of which say where each
        step's variance lies (Nichol & Dhariwal 2021, arXiv:2102.09672).
      sampling: `clip`, `dynamic_threshold` and `guidance` (see `Diffusion`), and what
        `solvers.build` takes; the bound is that of steps with this `variance` too.

    Raises:
      ValueError: a setting that does not exist, or that others rule out.
    """
    made = _process.build(process)
    one_of("diffusion.pairing", pairing, objectives.PAIRINGS)
    predicted = precondition.named(prediction, sigma_data)
    if predicted.divides and made.ends.alpha[-1] == 0:
        raise SettingError(
            f"diffusion.prediction={prediction!r} says nothing of x_0 at the noisiest time of "
            f"process {process['name']!r}, where x_t is noise alone: predict v, x0 or velocity"
        )
    sampling = dict(sampling)
    shown = {key: sampling.pop(key) for key in ("clip", "guidance")}
    shown["dynamic_threshold"] = sampling.pop("dynamic_threshold", 0.0)
    learned = variance == "learned"
    step_variance = sampling.get("variance", solvers.Settings().variance)
    if learned != (step_variance == "learned"):
        raise SettingError(
            f"sampling.variance={step_variance!r} does not go with diffusion.variance={variance!r}:"
            " set both to 'learned', or neither"
        )
    if learned and not made.total:
        raise SettingError(
            "diffusion.variance='learned' needs diffusion.process.name='discrete', whose steps "
            "have a smallest and a largest variance"
        )
    return Diffusion(
        network=network,
        shape=tuple(shape),
        process=made,
        prediction=predicted,
        times=_times.build(times, made),
        weight=_times.weighting(weighting, predicted, made),
        solver=solvers.build(made, **sampling),
        pair=objectives.PAIRINGS[pairing],
        term=likelihood.terms(made, step_variance) if made.total else None,
        learned_variance=learned,
        bound_weight=bound_weight,
        label_dropout=label_dropout,
        **shown,
    )


_process, _times = process, times  # settings have their names
