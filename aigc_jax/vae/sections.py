"""From the sections of a config to the parts that the families of autoencoders share."""

from collections.abc import Mapping
from typing import Annotated, Any

from aigc_jax import modalities
from aigc_jax.checks import OneOf, arguments, choice, kinds, section
from aigc_jax.errors import SettingError
from aigc_jax.family import DataSpec, Field
from aigc_jax.networks.vae import autoencoder
from aigc_jax.vae import adversary as adversaries
from aigc_jax.vae import likelihood as likelihoods
from aigc_jax.vae import objectives
from aigc_jax.vae.perceptual import Perceptual

# Networks with one group of latents.
AUTOENCODERS = {
    "mlp": autoencoder.MLP,
    "conv": autoencoder.Conv,
    "residual": autoencoder.Residual,
}
OF_ANY_DATA = ("mlp",)  # the other networks take images
# The setting that belongs to one likelihood alone.
LIKELIHOOD_SETTING = {
    "gaussian": "sigma",
    "laplace": "scale",
    "logistic_mixture": "components",
}
# What the section `vae.kl` holds.
OF_KL = {
    "weight": Annotated[str, OneOf(objectives.WEIGHTS)],
    **kinds(objectives.weighted, only=("beta", "free_bits", "free_bits_per")),
    **kinds(objectives.capacity, only=("gamma", "steps")),
    "capacity": kinds(objectives.capacity)["nats"],
}
# The section `vae.kl` where training minimises the bound itself.
PLAIN_KL = {"weight": "constant", "beta": 1.0, "free_bits": 0.0, "free_bits_per": "dimension"}


def likelihood(given: Mapping[str, Any], spec: DataSpec) -> likelihoods.Likelihood:
    """The likelihood that the section `vae.likelihood` names, for data of `spec`.

    Raises:
      ValueError: an unknown name, a setting out of range, and a likelihood of values in [0, 1] for
        data that lie anywhere.
    """
    of_likelihood = {"name": Annotated[str, OneOf(likelihoods.LIKELIHOODS)]}
    for name, setting in LIKELIHOOD_SETTING.items():
        of_likelihood |= kinds(likelihoods.LIKELIHOODS[name], only=(setting,))
    settings = section("vae.likelihood", given, of_likelihood)
    name = settings["name"]
    own = [LIKELIHOOD_SETTING[name]] if name in LIKELIHOOD_SETTING else []
    made = likelihoods.build(name, spec.shape[-1], **{key: settings[key] for key in own})
    if name in likelihoods.BOUNDED and not modalities.of(spec.kind).bounded:
        raise SettingError(
            f"vae.likelihood.name={name} needs data in [0, 1], as images are; {spec.kind} lie "
            "anywhere: take gaussian"
        )
    return made


def has_bits(likelihood: likelihoods.Likelihood, spec: DataSpec, binarise: str = "none") -> bool:
    """Whether a bound on log p(x) is one on the probability of an image's bytes, as bits/dim are.

    Not with gaussian_optimal, which is no likelihood, and not with a Bernoulli of grey pixels.
    """
    if likelihood.name == "bernoulli" and binarise == "none":
        return False
    return spec.kind == "image" and likelihood.name != "gaussian_optimal"


def kl_cost(given: Mapping[str, Any]) -> objectives.Cost:
    """What the section `vae.kl` makes the KL cost in training."""
    settings = section("vae.kl", given, OF_KL)
    name, steps = settings["weight"], {"steps": settings["steps"]}
    if name == "capacity":
        limits = {"gamma": settings["gamma"], "nats": settings["capacity"]}
        return objectives.kl_cost(name, **limits, **steps)
    own = {key: settings[key] for key in ("beta", "free_bits", "free_bits_per")}
    return objectives.kl_cost(name, **own, **({} if name == "constant" else steps))


def perceptual(given: Mapping[str, Any], spec: DataSpec) -> Perceptual | None:
    """The cost that the section `vae.perceptual` describes; None where it names no network."""
    settings = section("vae.perceptual", given, kinds(Perceptual, given=("shape",)))
    if not settings["network"]:
        return None
    _needs_images("vae.perceptual", spec)
    return Perceptual(shape=tuple(spec.shape), **settings)


def adversary(given: Mapping[str, Any], spec: DataSpec) -> adversaries.Adversary | None:
    """The second player that the section `vae.adversary` describes; None where its weight is 0."""
    settings = section("vae.adversary", given, kinds(adversaries.patch, only=("weight", "start")))
    if not settings["weight"]:
        return None
    _needs_images("vae.adversary", spec)
    return adversaries.patch(tuple(spec.shape), **settings)


def conditions(conditional: bool, spec: DataSpec) -> dict[str, Field]:
    """What samples are asked for: a label where `vae.conditional` says so."""
    if not conditional:
        return {}
    if "label" not in spec.conditions:
        raise SettingError("vae.conditional needs data with labels; this data set has none")
    return {"label": spec.conditions["label"]}


def network(
    table: Mapping[str, Any],
    given: Mapping[str, Any],
    spec: DataSpec,
    out_channels: int,
    **more: Any,
) -> Any:
    """The network of `table` that the section `network` names.

    Args:
      table: {name: Linen module}.
      given: the section: a name, and arguments of the module.
      out_channels: channels of its outputs, a likelihood's.
      more: arguments that the family gives, such as `num_classes`.
    """
    name, settings = choice("network", given, table)
    if spec.kind != "image" and name not in OF_ANY_DATA:
        raise SettingError(
            f"network.name={name} takes images, and the data are {spec.kind}: only "
            f"{' and '.join(OF_ANY_DATA)} takes any data"
        )
    own = {"shape": tuple(spec.shape), "out_channels": out_channels, **more}
    settings = arguments("network", table[name], settings, given=own)
    return table[name](**own, **settings)


def _needs_images(name: str, spec: DataSpec) -> None:
    if spec.kind != "image":
        raise SettingError(f"{name} compares images, and the data are {spec.kind}: leave it out")
