"""What a compiled program costs a device, and how long its peaks say that it takes."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from aigc_jax.planning import traffic
from aigc_jax.planning.traffic import Collective
from aigc_jax.training import hlo

OUT_OF_MEMORY = re.compile(r"RESOURCE_EXHAUSTED|[Oo]ut of memory|Ran out of memory")
# How often a whole array passes a chip's links in a ring of n, over (n - 1) / n.
PASSES = {"all-reduce": 2.0}


class Memory(NamedTuple):
    """Bytes that a program holds on each device."""

    arguments: int
    outputs: int  # beyond what is donated by arguments
    temporaries: int
    code: int

    @property
    def total(self) -> int:
        """All at once."""
        return sum(self)


class Cost(NamedTuple):
    """What one run of a program costs each device.

    Attributes:
      flops: of matrix products and convolutions.
      bytes: that its instructions read and write, by the compiler's count, loops by their
        lengths; for a TPU also what stays on the chip.
      memory_bytes: those that lie in its main memory, by operands and results.
      memory: that it holds.
      collectives: over links to other devices.
      compiled_flops: of all operations, by the compiler's own count.
      unknown_loops: loops of a length that nobody knows, counted as one round.
    """

    flops: float
    bytes: float
    memory_bytes: float
    memory: Memory
    collectives: tuple[Collective, ...] = ()
    compiled_flops: float = 0.0
    unknown_loops: int = 0

    def on_memory(self) -> "Cost":
        """The same without bytes that stay on the chip, as far as that can be told."""
        return self._replace(bytes=min(self.bytes, self.memory_bytes))


class Peaks(NamedTuple):
    """What a device can do at most: FLOP/s, bytes/s of its memory, and of its links, one way."""

    flops: float
    bandwidth: float
    links: float


class Prediction(NamedTuple):
    """Seconds of a run at the peaks of a device.

    Attributes:
      arithmetic, memory, links: what each alone would take.
    """

    arithmetic: float
    memory: float
    links: float

    @property
    def seconds(self) -> float:
        """Arithmetic and memory beside each other, and links after them."""
        return max(self.arithmetic, self.memory) + self.links

    @property
    def bound(self) -> str:
        """Which of the three takes the longest."""
        return max(zip(self, self._fields, strict=True))[1]


def of_compiled(compiled: Any, flops: float, devices: int) -> Cost:
    """The cost of a compiled program a device.

    Args:
      compiled: what `lowered.compile()` gives.
      flops: of all devices together, from `flops.count`.
      devices: how many run it.
    """
    analysis, found = compiled.cost_analysis() or {}, compiled.memory_analysis()
    program = hlo.read(compiled.as_text())
    memory = Memory(
        found.argument_size_in_bytes,
        found.output_size_in_bytes - found.alias_size_in_bytes,
        found.temp_size_in_bytes,
        found.generated_code_size_in_bytes,
    )
    return Cost(
        flops=flops / devices,
        bytes=analysis.get("bytes accessed", 0.0) + traffic.loop_bytes(program),
        memory_bytes=traffic.memory_bytes(program),
        memory=memory,
        collectives=traffic.collectives(program, devices),
        compiled_flops=analysis.get("flops", 0.0),
        unknown_loops=traffic.unknown_loops(program),
    )


def added(parts: Sequence[tuple[Cost, float]]) -> Cost:
    """Programs one after the other, each so often; memory is that of the one that holds most."""
    collectives: dict[tuple[str, int], list[float]] = {}
    for cost, often in parts:
        for one in cost.collectives:
            both = collectives.setdefault((one.kind, one.group), [0, 0])
            both[0] += often * one.count
            both[1] += often * one.size
    return Cost(
        flops=sum(often * cost.flops for cost, often in parts),
        bytes=sum(often * cost.bytes for cost, often in parts),
        memory_bytes=sum(often * cost.memory_bytes for cost, often in parts),
        memory=max((cost.memory for cost, _ in parts), key=lambda memory: memory.total),
        collectives=tuple(Collective(*key, *both) for key, both in sorted(collectives.items())),
        compiled_flops=sum(often * cost.compiled_flops for cost, often in parts),
        unknown_loops=sum(cost.unknown_loops for cost, _ in parts),
    )


def predicted(cost: Cost, peaks: Peaks) -> Prediction:
    """How long a run takes at the peaks of a device, all bytes of the compiler's count in memory.

    With `cost.on_memory()` only those that lie there: what it takes at least.
    """
    sent = sum(ring_bytes(one) for one in cost.collectives)
    links = sent / peaks.links if sent else 0.0
    return Prediction(cost.flops / peaks.flops, cost.bytes / peaks.bandwidth, links)


def ring_bytes(one: Collective) -> float:
    """Bytes that a device sends: around a ring of n, (n - 1) / n of the array, twice to reduce it
    and hand the result on (Patarasuk & Yuan 2009); a permutation sends it once."""
    if one.kind == "collective-permute":
        return one.size
    return PASSES.get(one.kind, 1.0) * one.size * (one.group - 1) / one.group


def largest(holds: Callable[[int], bool], start: int, unit: int, most: int = 2**24) -> int:
    """The largest multiple of `unit` that holds, to a 16th of it; 0 where not even one does.

    Each question is a compilation, so the first steps double, and the last ones halve the rest.

    Args:
      holds: whether so many do; more never hold where fewer do not.
      start: where to begin, a multiple of `unit`.
      most: where to stop.
    """
    low, high = 0, None  # in units: `low` holds, `high` does not
    trial = max(start // unit, 1)
    while high is None and trial * unit <= most:
        if holds(trial * unit):
            low, trial = trial, trial * 2
        else:
            high = trial
    while high is not None and high - low > max(low // 16, 1):
        middle = (low + high) // 2
        if holds(middle * unit):
            low = middle
        else:
            high = middle
    return low * unit


def as_json(cost: Cost) -> Mapping[str, Any]:
    """A cost as plain values."""
    memory = cost.memory._asdict() | {"total": cost.memory.total}
    return cost._asdict() | {
        "memory": memory,
        "collectives": [one._asdict() for one in cost.collectives],
    }
