"""LPIPS of reconstructions: which network it is taken in, where its weights lie, what it lacks."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax

from aigc_jax.errors import MissingError, SettingError
from aigc_jax.formats import lpips as files
from aigc_jax.networks.judges import lpips

AUTO = "auto"  # in AlexNet, where its weights are found and images are large enough
CHOICES = (AUTO, "", *lpips.TRUNKS)  # of `evaluation.lpips`; "": it is not taken


class Lpips(NamedTuple):
    """LPIPS in the maps of one network.

    Attributes:
      network: one of `lpips.TRUNKS`.
      variables: (those of the network, the weight of every channel of its maps); None where they
        are missing.
      note: what to do about it then.
    """

    network: str
    variables: Any
    note: str = ""

    @property
    def metric(self) -> str:
        """What its rows are called: distances in two networks do not compare."""
        return f"lpips_{self.network}"

    @property
    def measure(self) -> Callable[[jax.Array, jax.Array], jax.Array] | None:
        """(images, others [B, H, W, C] in [-1, 1], grey or RGB) -> LPIPS [B]; None without."""
        if self.variables is None:
            return None
        # An argument of the compiled program, which would else hold the weights as constants.
        return partial(jax.jit(partial(_distance, self.network)), self.variables)


def _distance(network: str, variables: Any, images: jax.Array, others: jax.Array) -> jax.Array:
    of_network, channels = variables
    pair = (lpips.maps(network, of_network, (x + 1) * 127.5, "highest") for x in (images, others))
    return lpips.distance(*pair, channels)


def load(chosen: str, weights: str | None, shape: tuple[int, ...]) -> Lpips | None:
    """The LPIPS that the settings `lpips` and `lpips_weights` of an evaluation ask for.

    Args:
      chosen: one of CHOICES.
      weights: file of its network; None looks for it as `formats.lpips.read` does.
      shape: (height, width, channels) of the images.

    Returns:
      None where it is not asked for, and with AUTO where images are too small.

    Raises:
      ValueError: images too small for the network that is asked for, or weights of another one.
      FileNotFoundError: no weights of it; with AUTO only where a file is named.
    """
    if not chosen:
        return None
    network = "alexnet" if chosen == AUTO else chosen
    smallest = lpips.TRUNKS[network].size_min
    if min(shape[:2]) < smallest or shape[2] not in (1, 3):
        if chosen == AUTO:
            return None
        raise SettingError(
            f"evaluation.lpips={chosen} takes grey or RGB images of at least {smallest}x{smallest}"
            f", not {'x'.join(map(str, shape))}: set it to another network or to ''"
        )
    what, setting = f"weights of LPIPS in {network!r}", "evaluation.lpips_weights"
    try:
        variables = files.read(network, weights, what=what, setting=setting, linear=True)
    except MissingError as error:
        if chosen != AUTO or weights is not None:
            raise
        return Lpips(network, None, str(error))
    return Lpips(network, variables)
