"""The networks of the two players of a GAN, from their settings: a literal table."""

from collections.abc import Mapping
from typing import Any

from aigc_jax.checks import arguments, choice, section
from aigc_jax.errors import SettingError
from aigc_jax.family import DataSpec
from aigc_jax.networks.gan import dcgan, mlp, r3gan, resnet
from aigc_jax.networks.gan.layers import check_conditioning

NETWORKS = {"mlp": mlp, "dcgan": dcgan, "resnet": resnet, "r3gan": r3gan}
OF_ANY_DATA = ("mlp",)  # the other networks take images


def build(settings: Mapping[str, Any], spec: DataSpec) -> dict[str, Any]:
    """{"generator", "discriminator"}: the modules of both players, unconditional or both not.

    Args:
      settings: of each player: the `name` of its network, and keyword arguments.
      spec: of the data.

    Raises:
      ValueError: a network that does not exist or is of other data, labels that the data lack.
    """
    settings = section("network", settings, dict.fromkeys(("generator", "discriminator"), Mapping))
    conditioning = dict(settings["discriminator"]).get("conditioning", "none")
    check_conditioning(conditioning, spec.classes)
    found = {}
    for player in ("generator", "discriminator"):
        name, own = choice(f"network.{player}", settings[player], NETWORKS)
        if spec.kind != "image" and name not in OF_ANY_DATA:
            raise SettingError(
                f"network.{player}.name={name!r} takes images; data of kind {spec.kind!r} need "
                f"{' or '.join(OF_ANY_DATA)}"
            )
        module = getattr(NETWORKS[name], player.capitalize())
        given = {
            "shape": spec.shape,
            "num_classes": spec.classes if conditioning != "none" else 0,
        }
        found[player] = module(**given, **arguments(f"network.{player}", module, own, given))
    return found
