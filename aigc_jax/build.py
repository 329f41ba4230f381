"""From a config to its family: a literal table."""

import difflib
from collections.abc import Mapping
from typing import Any

from aigc_jax.diffusion import family as diffusion
from aigc_jax.family import Family
from aigc_jax.gan import cyclegan
from aigc_jax.gan import family as gan
from aigc_jax.vae import family as vae

FAMILIES = {
    "diffusion": diffusion.build,
    "vae": vae.build,
    "gan": gan.build,
    "cyclegan": cyclegan.build,
}


def build(config: Mapping[str, Any], spec: Any) -> Family:
    """The family that `config.family` names, for data of `spec` (a `DataSpec`)."""
    name = config["family"]
    if name not in FAMILIES:
        near = difflib.get_close_matches(name, FAMILIES)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"config.family is one of {', '.join(FAMILIES)}, not {name!r}{hint}")
    try:
        return FAMILIES[name](config, spec)
    except (KeyError, TypeError) as error:  # configs of today have every key, and no other
        raise ValueError(
            f"the config does not fit this version ({error}): a run of an older one? Mend its "
            "config.json by what it was meant to have, or train it again"
        ) from error
