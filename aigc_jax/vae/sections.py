"""From the sections of a config to the parts that the families of autoencoders share."""

from collections.abc import Mapping
from typing import Any

from aigc_jax import modalities
from aigc_jax.checks import arguments, one_of, section
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
KL_KEYS = ("weight", "steps", "beta", "free_bits", "free_bits_per", "gamma", "capacity")
# The section `vae.kl` where training minimises the bound itself.
PLAIN_KL = {"weight": "constant", "beta": 1.0, "free_bits": 0.0, "free_bits_per": "dimension"}


def likelihood(given: Mapping[str, Any], spec: DataSpec) -> likelihoods.Likelihood:
    """The likelihood that the section `vae.likelihood` names, for data of `spec`.

    Raises:
      ValueError: an unknown name, a setting out of range, and a likelihood of values in [0, 1] for
        data that lie anywhere.
    """
    keys = ("name", *LIKELIHOOD_SETTING.values())
    settings = section("vae.likelihood", given, keys)
    name = settings["name"]
    own = [LIKELIHOOD_SETTING[name]] if name in LIKELIHOOD_SETTING else []
    made = likelihoods.build(name, spec.shape[-1], **{key: settings[key] for key in own})
    if name in likelihoods.BOUNDED and not modalities.of(spec.kind).bounded:
        raise ValueError(
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
    settings = section("vae.kl", given, KL_KEYS)
    name, steps = settings["weight"], {"steps": settings["steps"]}
    if name == "capacity":
        limits = {"gamma": settings["gamma"], "nats": settings["capacity"]}
        return objectives.kl_cost(name, **limits, **steps)
    own = {key: settings[key] for key in ("beta", "free_bits", "free_bits_per")}
    return objectives.kl_cost(name, **own, **({} if name == "constant" else steps))


def perceptual(given: Mapping[str, Any], spec: DataSpec) -> Perceptual | None:
    """The cost that the section `vae.perceptual` describes; None where it names no network."""
    settings = section("vae.perceptual", given, ("network", "weights", "weight"))
    if not settings["network"]:
        return None
    _needs_images("vae.perceptual", spec)
    return Perceptual(shape=tuple(spec.shape), **settings)


def adversary(given: Mapping[str, Any], spec: DataSpec) -> adversaries.Adversary | None:
    """The second player that the section `vae.adversary` describes; None where its weight is 0."""
    settings = section("vae.adversary", given, ("weight", "start"))
    if not settings["weight"]:
        return None
    _needs_images("vae.adversary", spec)
    return adversaries.patch(tuple(spec.shape), **settings)


def conditions(conditional: bool, spec: DataSpec) -> dict[str, Field]:
    """What samples are asked for: a label where `vae.conditional` says so."""
    if not conditional:
        return {}
    if "label" not in spec.conditions:
        raise ValueError("vae.conditional needs data with labels; this data set has none")
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
    settings = dict(given)
    name = settings.pop("name", "")
    one_of("network.name", name, table)
    if spec.kind != "image" and name not in OF_ANY_DATA:
        raise ValueError(
            f"network.name={name} takes images, and the data are {spec.kind}: only "
            f"{' and '.join(OF_ANY_DATA)} takes any data"
        )
    own = {"shape": tuple(spec.shape), "out_channels": out_channels, **more}
    settings = arguments("network", table[name], settings, given=own)
    if settings.get("latent", 1) < 1:
        raise ValueError(f"network.latent is at least 1, not {settings['latent']}")
    return table[name](**own, **settings)


def _needs_images(name: str, spec: DataSpec) -> None:
    if spec.kind != "image":
        raise ValueError(f"{name} compares images, and the data are {spec.kind}: leave it out")
