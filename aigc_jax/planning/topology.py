"""Slices of TPU chips by name, "v5e:4x4", and the devices of one, with no chip at hand."""

import difflib
import importlib.metadata
import importlib.util
import itertools
import math
import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from aigc_jax.errors import MissingError, SettingError
from aigc_jax.planning.peaks import Chip, of_kind

# Slices of TPUs on a plane, and the most chips of one of those in space, from the pages that
# `peaks.CHIPS` names.
FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
MOST = {"v4": 4096, "v5p": 6144, "tpu7x": 9216}
SMALL = ((1, 1, 1), (2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))
TPUS = ("v4", "v5e", "v5p", "v6e", "tpu7x")
HERE = ("cpu", "gpu")
EXAMPLES = "v4:2x2x2, v5e:4x4, v5p:2x2x2, v6e:4x4, tpu7x:2x2x1, cpu:4 or gpu"


class Slice(NamedTuple):
    """Chips that are planned for.

    Attributes:
      name: as asked for, such as "v5e:4x4".
      kind: of `TPUS` or `HERE`.
      shape: chips along each axis; of `HERE` (devices,), (0,) for all of them.
    """

    name: str
    kind: str
    shape: tuple[int, ...]

    @property
    def chips(self) -> int:
        """How many."""
        return math.prod(self.shape)


def parse(name: str) -> Slice:
    """A slice by its name.

    Raises:
      SettingError: there is no such; those nearest to it are named.
    """
    kind, _, size = name.strip().lower().partition(":")
    if kind not in (*TPUS, *HERE):
        near = difflib.get_close_matches(kind, (*TPUS, *HERE), n=2, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"give one such as {EXAMPLES}"
        raise SettingError(f"--topology={name}: there is no {kind!r}; {hint}")
    if kind in HERE:
        if not re.fullmatch(r"[1-9]\d*|", size):
            raise SettingError(f"--topology={name}: give {kind}, or {kind}:4 for four devices")
        return Slice(name, kind, (int(size or 0),))
    known = slices(kind)
    shape = tuple(map(int, size.split("x"))) if re.fullmatch(r"\d+(x\d+)*", size) else ()
    if shape in known:
        return Slice(name, kind, shape)
    near = ", ".join(f"{kind}:{'x'.join(map(str, other))}" for other in nearest(shape, known))
    raise SettingError(f"--topology={name}: {kind} has no such slice; near it are {near}")


def slices(kind: str) -> tuple[tuple[int, ...], ...]:
    """The slices of a kind of TPU, smallest first; in space also those of whole cubes of 4."""
    if kind not in MOST:
        return FLAT
    sides = range(4, 25, 4)
    cubes = itertools.combinations_with_replacement(sides, 3)
    found = [*SMALL, *(shape for shape in cubes if math.prod(shape) <= MOST[kind])]
    return tuple(sorted(found, key=lambda shape: (math.prod(shape), shape)))


def nearest(
    shape: Sequence[int], known: Sequence[tuple[int, ...]], count: int = 2
) -> list[tuple[int, ...]]:
    """Those of the known slices that are nearest to a shape, in chips and then along each axis."""
    axes = len(known[0])
    padded = (sorted(max(side, 1) for side in shape) + [1] * axes)[:axes] if shape else [2] * axes

    def distance(other: tuple[int, ...]) -> float:
        sides = zip(sorted(padded), sorted(other), strict=True)
        chips = math.log(math.prod(padded) / math.prod(other))
        return abs(chips) + sum(abs(math.log(one / two)) for one, two in sides)

    return sorted(known, key=distance)[:count]


def link_bandwidth(chip: Chip, shape: Sequence[int]) -> float:
    """Bytes/s that a chip of a slice sends in a ring over all chips, all axes used at once.

    An axis gives both of its links where it closes to a ring, else one: a line takes a ring folded
    up. On a plane an axis of 16 closes, in space all axes where each is a multiple of 4.
    """
    if not chip.axes:
        return chip.link
    cubes = len(shape) == 3 and all(side % 4 == 0 for side in shape)
    ways = [(2 if cubes or (len(shape) == 2 and side == 16) else 1) for side in shape if side > 1]
    return chip.link * sum(ways)


def devices(asked: Slice) -> list[jax.Device]:
    """The devices of a slice: described by libtpu, or those of this machine.

    Raises:
      MissingError: libtpu is not installed, or no GPU is here.
      SettingError: more devices than there are, or a slice that libtpu does not know.
    """
    if asked.kind in HERE:
        return _devices_here(asked)
    check_libtpu(asked.name)
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # else it asks Google's metadata server
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # it takes hold of no chip
    jax.config.update("jax_platforms", "cpu")  # else a TPU of this machine would be taken hold of
    # What is compiled for devices that are not there can be stored, but not read again.
    jax.config.update("jax_enable_compilation_cache", False)
    jax.devices()
    # Read by jax's own backend just now; libtpu ends the process at a flag of the CPU's compiler.
    os.environ.pop("XLA_FLAGS", None)
    options: dict[str, Any] = {}
    if asked.chips == 1:
        options["chips_per_host_bounds"] = (1,) * 3
    name = f"{asked.kind}:{'x'.join(map(str, asked.shape))}"
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    except jax.errors.JaxRuntimeError as error:
        if "INVALID_ARGUMENT" not in str(error):
            raise
        told = f"libtpu knows no such slice ({str(error).splitlines()[0]})"
        raise SettingError(f"--topology={asked.name}: {told}") from error
    return list(found.devices)


def check_libtpu(name: str) -> None:
    """Raises MissingError where the compiler for TPUs is not installed."""
    if importlib.util.find_spec("libtpu") is None and "TPU_LIBRARY_PATH" not in os.environ:
        raise MissingError(
            f"--topology={name} needs the compiler for TPUs, which needs no TPU: "
            f'pip install "{libtpu_requirement()}"'
        )


def libtpu_requirement() -> str:
    """The libtpu that goes with this jax, as jax itself asks for it: "libtpu==0.0.42.*"."""
    for line in importlib.metadata.requires("jax") or ():
        if line.startswith("libtpu"):
            return line.partition(";")[0].strip()
    return "libtpu"


def _devices_here(asked: Slice) -> list[jax.Device]:
    """The first of the CPUs or GPUs of this machine."""
    try:
        found = jax.devices(asked.kind)
    except RuntimeError as error:
        raise MissingError(
            f"--topology={asked.name}: jax finds no {asked.kind} on this machine"
        ) from error
    count = asked.shape[0] or len(found)
    if count > len(found):
        more = "; set JAX_NUM_CPU_DEVICES to have more" if asked.kind == "cpu" else ""
        told = f"here are {len(found)} {asked.kind} devices, not {count}{more}"
        raise SettingError(f"--topology={asked.name}: {told}")
    return list(found[:count])


def chip_of(found: Sequence[jax.Device]) -> Chip | None:
    """The published peaks of a slice's chips; None where they are not known."""
    return of_kind(found[0].device_kind)
