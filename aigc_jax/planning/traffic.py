"""What a compiled program moves: its collectives, and bytes by its loops' lengths."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from aigc_jax.training.hlo import Instruction, Program

COLLECTIVES = (
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute",
    "collective-broadcast", "ragged-all-to-all",
)  # fmt: skip
# What moves no bytes: names for what is there already, or what other lines count.
FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call", "after-all",
    "conditional", "iota", "partition-id", "replica-id",
}  # fmt: skip
_CALLED = re.compile(
    r"(?:calls|to_apply|condition|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


class Collective(NamedTuple):
    """Collectives of one kind over groups of one size.

    Attributes:
      kind: of `COLLECTIVES`.
      group: how many devices take part in each.
      count: how many a run of the program.
      size: bytes of the whole arrays, all together: what each device holds before a reduction, or
        after a gathering.
    """

    kind: str
    group: int
    count: int
    size: int


def times(program: Program, loops: bool = True) -> Counter[str]:
    """How often each computation runs, by the known lengths of loops; without `loops` once each.

    A loop whose length the compiler does not know counts as one round, and so does each branch.
    """
    found: Counter[str] = Counter()

    def visit(name: str, count: int) -> None:
        found[name] += count
        for line in program.computations.get(name, ()):
            for other, more in called(program, line, loops):
                visit(other, count * more)

    visit(program.entry, 1)
    return found


def called(program: Program, line: Instruction, loops: bool = True) -> Iterable[tuple[str, int]]:
    """(computation, how often) that an instruction runs; a fusion's and a reduction's are lines
    of its own and cost nothing beside it, but may hold collectives."""
    if line.kind == "while":
        body = re.search(r"body=%?([\w.\-]+)", line.text)
        count = (rounds(program, line) or 1) if loops else 1
        yield from ((name, count) for name in ([body[1]] if body else []))
    for name in _CALLED.findall(line.text):
        yield name, 1
    for names in _BRANCHES.findall(line.text):
        for name in re.findall(r"%?([\w.\-]+)", names):
            yield name, 1


def rounds(program: Program, loop: Instruction) -> int | None:
    """How often the body of a `while` runs; None where nothing says so.

    The compilers of CPUs and GPUs write it beside the loop. That of TPUs does not: it is read from
    the condition, which compares a counter from a constant on with another constant.
    """
    if trips := _TRIPS.search(loop.text):
        return int(trips[1])
    condition = re.search(r"condition=%?([\w.\-]+)", loop.text)
    lines = program.computations.get(condition[1], ()) if condition else ()
    if not lines or lines[-1].kind != "compare" or "direction=LT" not in lines[-1].text:
        return None
    counter, end = (program.lines.get(name) for name in lines[-1].operands)
    index = re.search(r"index=(\d+)", counter.text) if counter else None
    start = program.lines.get(loop.operands[0])
    if not index or start is None or start.kind != "tuple":
        return None
    first, last = _constant(program, start.operands[int(index[1])]), _whole(end)
    return None if first is None or last is None else max(last - first, 0)


def _constant(program: Program, name: str) -> int | None:
    """The whole number that an instruction, or what it copies, is."""
    line = program.lines.get(name)
    while line is not None and line.kind in ("copy", "bitcast", "convert"):
        line = program.lines.get(line.operands[0])
    return _whole(line)


def _whole(line: Instruction | None) -> int | None:
    return int(line.inside) if line and re.fullmatch(r"-?\d+", line.inside) else None


def unknown_loops(program: Program) -> int:
    """How many loops have a length that nothing says."""
    lines = (line for lines in program.computations.values() for line in lines)
    return sum(line.kind == "while" and rounds(program, line) is None for line in lines)


def collectives(program: Program, devices: int) -> tuple[Collective, ...]:
    """The collectives of one run, by kind and size of group; `devices` run the program."""
    found: dict[tuple[str, int], list[int]] = {}
    for name, count in times(program).items():
        for line in program.computations.get(name, ()):
            kind = line.kind.removesuffix("-start")
            if kind not in COLLECTIVES:
                continue
            group = _group(line.text, devices)
            given = sum(program.lines[name].size for name in line.operands if name in program.lines)
            whole = given * group if kind == "all-gather" else given
            both = found.setdefault((kind, group), [0, 0])
            both[0] += count
            both[1] += count * whole
    rows = (Collective(*key, *both) for key, both in sorted(found.items()))
    return tuple(row for row in rows if row.group > 1)


def _group(text: str, devices: int) -> int:
    """How many devices take part, all where none is named.

    Two of {{0,1},{2,3}}, of [2,2]<=[4], and of mesh['a'=2,'b'=2] {'b'}.
    """
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", text):
        axes = dict(re.findall(r"'([^']+)'=(\d+)", match[1]))
        return math.prod(int(axes[name]) for name in re.findall(r"'([^']+)'", match[2]))
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", text):
        return int(match[1])
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        return len(match[1].split(","))
    return devices


def loop_bytes(program: Program) -> int:
    """Bytes that pass memory in all rounds of loops beyond their first, by operands and results.

    What a cost model that counts a loop's body once leaves out: those of CPUs and TPUs do.
    """
    often, once = times(program), times(program, loops=False)
    more = {name: often[name] - once[name] for name in often}
    return sum(count * _moved(program, name) for name, count in _whole_ones(program, more))


def memory_bytes(program: Program) -> int:
    """Bytes that pass main memory, by operands and results, loops by their lengths.

    Nothing that lies on the chip counts, as it does in the compilers' own count for TPUs. An
    instruction that reads a part of an operand counts all of it.
    """
    often = times(program)
    return sum(
        count * _moved(program, name, main=True) for name, count in _whole_ones(program, often)
    )


def _whole_ones(program: Program, counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """Those of the computations that are not parts of one instruction, of a fusion, a reduction."""
    lines = (line for lines in program.computations.values() for line in lines)
    kinds = ("while", "call", "conditional")
    parts = {n for line in lines if line.kind not in kinds for n, _ in called(program, line)}
    return [(name, count) for name, count in counts.items() if count and name not in parts]


def _moved(program: Program, name: str, main: bool = False) -> int:
    total = 0
    for line in program.computations[name]:
        if line.kind in FREE or line.kind.endswith("-done"):
            continue
        given = [program.lines[other] for other in line.operands if other in program.lines]
        written, read = (
            (line.in_memory, sum(one.in_memory for one in given))
            if main
            else (line.size, sum(one.size for one in given))
        )
        if line.kind.endswith("-start") and line.size > sum(one.size for one in given):
            # Its result names its operands once more; a slice reads no more than it makes.
            written -= read
            read = min(read, line.size - sum(one.size for one in given))
        total += written + read
    return total
