"""What the text of a compiled program says: its collectives, and its loops with their lengths."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

COLLECTIVES = (
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute",
    "collective-broadcast", "ragged-all-to-all",
)  # fmt: skip
# What moves no bytes: names for what is there already, or what other lines count.
FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call", "after-all",
    "conditional", "iota", "partition-id", "replica-id",
}  # fmt: skip
_LINE = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)$")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_ARRAY = re.compile(r"\b(pred|token|[a-z]+\d+[a-z0-9]*)\[([\d,]*)\](\{[^}]*\})?")
_CALLED = re.compile(
    r"(?:calls|to_apply|condition|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


class Instruction(NamedTuple):
    """One line of a computation; `size` and `operands` say what it writes and reads."""

    name: str
    kind: str
    size: int  # bytes of the result
    operands: tuple[str, ...]
    text: str


class Program(NamedTuple):
    """A compiled program as its text has it.

    Attributes:
      entry: the computation that runs first.
      computations: {name: its lines}.
      sizes: {name of an instruction: bytes of its result}.
    """

    entry: str
    computations: Mapping[str, tuple[Instruction, ...]]
    sizes: Mapping[str, int]


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


def read(text: str) -> Program:
    """A program from what `compiled.as_text()` gives."""
    entry, name, found, lines = "", "", {}, []
    for line in text.splitlines():
        if head := _HEAD.match(line):
            name, lines = head[2], []
            entry = name if head[1] else entry
        elif line.startswith("}"):
            found[name] = tuple(lines)
        elif match := _LINE.match(line):
            inside, rest = _split(match[4])
            operands = tuple(re.findall(r"%([\w.\-]+)", inside))
            lines.append(Instruction(match[1], match[3], size_of(match[2]), operands, rest))
    sizes = {line.name: line.size for lines in found.values() for line in lines}
    return Program(entry, found, sizes)


def _split(text: str) -> tuple[str, str]:
    """(what is within the bracket that is open, what comes after it)."""
    depth = 1
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return text[:i], text[i:]
    return text, ""


def size_of(shape: str) -> int:
    """Bytes of a type such as "(f32[8,4]{1,0}, s32[])", all of a tuple together."""
    return sum(
        math.ceil(_bits(kind) * math.prod(int(n) for n in dims.split(",") if n) / 8)
        for kind, dims, _ in _ARRAY.findall(shape)
    )


def _bits(kind: str) -> int:
    if kind == "pred":
        return 8
    digits = re.search(r"\d+", kind)
    return int(digits[0]) if digits else 0


def times(program: Program, loops: bool = True) -> Counter[str]:
    """How often each computation runs, by the known lengths of loops; without `loops` once each.

    A loop whose length the compiler does not know counts as one round, and so does each branch.
    """
    found: Counter[str] = Counter()

    def visit(name: str, count: int) -> None:
        found[name] += count
        for line in program.computations.get(name, ()):
            for other, more in called(line, loops):
                visit(other, count * more)

    visit(program.entry, 1)
    return found


def called(line: Instruction, loops: bool = True) -> Iterable[tuple[str, int]]:
    """(computation, how often) that an instruction runs; a fusion's and a reduction's are lines
    of its own and cost nothing beside it, but may hold collectives."""
    if line.kind == "while":
        trips = _TRIPS.search(line.text)
        count = int(trips[1]) if trips and loops else 1
        body = re.search(r"body=%?([\w.\-]+)", line.text)
        yield from ((name, count) for name in ([body[1]] if body else []))
    for name in _CALLED.findall(line.text):
        yield name, 1
    for names in _BRANCHES.findall(line.text):
        for name in re.findall(r"%?([\w.\-]+)", names):
            yield name, 1


def unknown_loops(program: Program) -> int:
    """How many loops have a length that the compiler does not know."""
    lines = (line for lines in program.computations.values() for line in lines)
    return sum(line.kind == "while" and not _TRIPS.search(line.text) for line in lines)


def collectives(program: Program, devices: int) -> tuple[Collective, ...]:
    """The collectives of one run, by kind and size of group; `devices` run the program."""
    found: dict[tuple[str, int], list[int]] = {}
    for name, count in times(program).items():
        for line in program.computations.get(name, ()):
            kind = line.kind.removesuffix("-start")
            if kind not in COLLECTIVES:
                continue
            group = _group(line.text, devices)
            given = sum(program.sizes.get(operand, 0) for operand in line.operands)
            whole = given * group if kind == "all-gather" else given
            both = found.setdefault((kind, group), [0, 0])
            both[0] += count
            both[1] += count * whole
    rows = (Collective(*key, *both) for key, both in sorted(found.items()))
    return tuple(row for row in rows if row.group > 1)


def _group(text: str, devices: int) -> int:
    """How many devices take part: of {{0,1},{2,3}} or [2,2]<=[4] two; all where none is named."""
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", text):
        return int(match[1])
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        return len(match[1].split(","))
    return devices


def loop_bytes(program: Program) -> int:
    """Bytes that pass memory in all rounds of loops beyond their first, by operands and results.

    What a cost model that counts a loop's body once leaves out.
    """
    often, once = times(program), times(program, loops=False)
    inside = _parts(program)
    return sum(
        (often[name] - once[name]) * _moved(program, name)
        for name in often
        if name not in inside and often[name] > once[name]
    )


def _parts(program: Program) -> set[str]:
    """Computations that are parts of one instruction: what a fusion or a reduction computes."""
    lines = (line for lines in program.computations.values() for line in lines)
    kinds = ("while", "call", "conditional")
    return {name for line in lines if line.kind not in kinds for name, _ in called(line)}


def _moved(program: Program, name: str) -> int:
    lines = [line for line in program.computations[name] if line.kind not in FREE]
    read = sum(program.sizes.get(operand, 0) for line in lines for operand in line.operands)
    return read + sum(line.size for line in lines)
