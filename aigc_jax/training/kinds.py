"""Where the time of a step goes, by kind of layer: a trace, joined with the programs it ran.

A trace has the time of every operation and its name in the compiled program; the program's own text
(`jax.stages.Compiled.as_text`) has what that operation is, and the scope that it was written in:
the path of Flax modules and `jax.named_scope`s, such as jvp(UNet)/down_0_block_0/norm1/mul.

Several operations can run at once, on several threads, streams or devices: of a moment at which n
run each has the n-th part. So the times of all kinds and of doing nothing are the traced time.
"""

import collections
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jax.profiler import ProfileData

from aigc_jax.training.hlo import Instruction, Program

WINDOW = "profiled steps"  # the annotation from the first traced step's start to the last one's end

CONVOLUTION = "convolution"
MATRIX = "matrix products, attention"
NORM = "norm"
ELEMENTWISE = "elementwise, reductions"
MOVES = "concatenation, copies"
RANDOM = "dropout, random bits"
OPTIMIZER = "optimizer, EMA"
COLLECTIVES = "collectives"
OTHER = "other programs"  # what a run does between its steps, such as drawing samples
UNKNOWN = "of no known kind"
IDLE = "host, or nothing"
KINDS = (
    CONVOLUTION, MATRIX, NORM, ELEMENTWISE, MOVES, RANDOM, OPTIMIZER, COLLECTIVES, OTHER, UNKNOWN,
    IDLE,
)  # fmt: skip
# What one operation may be. A fused one is what the first of these is that is in it: a kernel that
# multiplies matrices and then adds takes its time for the product.
PARTS = {
    "collective": COLLECTIVES,
    "convolution": CONVOLUTION,
    "product": MATRIX,
    "optimizer": OPTIMIZER,
    "bits": RANDOM,
    "norm": NORM,
    "attention": MATRIX,
    "dropout": RANDOM,
    "concatenation": MOVES,
    "arithmetic": ELEMENTWISE,
    "move": MOVES,
}
RANK = {part: i for i, part in enumerate(PARTS)}

OPCODES = {
    **dict.fromkeys(
        ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all",
         "collective-permute", "collective-broadcast", "send", "recv"),
        "collective",
    ),
    **dict.fromkeys(("dot", "ragged-dot"), "product"),
    "convolution": "convolution",
    "rng-bit-generator": "bits",
    "rng": "bits",
    "concatenate": "concatenation",
    **dict.fromkeys(
        ("copy", "transpose", "pad", "slice", "dynamic-slice", "dynamic-update-slice", "gather",
         "scatter", "reshape", "reverse", "broadcast", "infeed", "outfeed"),
        "move",
    ),
}  # fmt: skip
# Libraries' kernels by the name that a program calls them by, such as __cudnn$convForward.
TARGETS = {"convolution": r"conv(?!ert)", "product": r"gemm|matmul|dot|fmha|attention"}
SCOPES = {
    "optimizer": r"\b(optimizer|ema)\b",
    "bits": r"threefry|random_bits|rng|_bernoulli|_uniform|_normal|_gumbel|_randint",
    "norm": r"norm(?!al)",
    "attention": r"attention",
    "dropout": r"dropout",
}
NOTHING = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "iota"}
# A loop's time is that of what it runs, which a trace has too; so is a call's, where it has that.
LOOPS, CALL = {"while", "conditional"}, "call"


def kind_of(program: Program, name: str) -> str:
    """Which of KINDS an instruction of a program is."""
    line = program.lines.get(name)
    return PARTS.get(_part(program, line), MOVES) if line else UNKNOWN


def _part(program: Program, line: Instruction) -> str | None:
    """Which of PARTS an instruction is; None of one that takes no time."""
    within = (_part(program, one) for one in program.within(line))
    inner = [part for part in within if part]
    own = part_of(line)
    if inner and own == "arithmetic":  # which is all that "fusion" says
        return min(inner, key=RANK.get)
    return min([*inner, *([own] if own else [])], key=RANK.get, default=None)


def part_of(instruction: Instruction) -> str | None:
    """Which of PARTS an instruction is by itself; None of one that does nothing."""
    opcode, scope = instruction.operation, instruction.scope.lower()
    if opcode in NOTHING:
        return None
    by_opcode = OPCODES.get(opcode, "arithmetic")
    for part, pattern in TARGETS.items():
        if by_opcode == "arithmetic" and re.search(pattern, instruction.target.lower()):
            by_opcode = part
    if by_opcode == "convolution" and scope.endswith("dot_general"):
        by_opcode = "product"  # a TPU has one opcode for both
    if by_opcode in ("collective", "convolution"):
        return by_opcode
    by_scope = [part for part, pattern in SCOPES.items() if re.search(pattern, scope)]
    if by_opcode == "product":  # of an optimizer or a norm that multiplies matrices
        return next((part for part in by_scope if part in ("optimizer", "norm")), by_opcode)
    return min((*by_scope, by_opcode), key=RANK.get)


class Run(NamedTuple):
    """That an operation ran: from start to end in ns; its name, its program's name and number."""

    start: float
    end: float
    name: str
    module: str
    program: Any


def read(data: ProfileData) -> tuple[list[Run], float]:
    """All that ran on the devices of a trace, and the length of its window in ns.

    A GPU's streams and a CPU's threads have an event for each run, which names operation and
    program. A TPU's line "XLA Ops" has the operation alone, and "XLA Modules" which program ran.
    """
    planes = {plane.name: list(plane.lines) for plane in data.planes}
    devices = [name for name in planes if re.match(r"/device:(GPU|TPU):\d", name)]
    runs: list[Run] = []
    for name in devices or ["/host:CPU"]:
        lines = {line.name: line.events for line in planes.get(name, ())}
        if "XLA Ops" in lines:
            runs += _of_tpu(lines)
        elif devices:
            runs += _named(event for line in lines if "Stream" in line for event in lines[line])
        else:
            runs += _of_cpu(event for events in lines.values() for event in events)
    window = sum(
        event.duration_ns
        for line in planes.get("/host:CPU", ())
        for event in line.events
        if event.name == WINDOW
    )
    return runs, window


def _named(events: Iterable[Any]) -> Iterator[Run]:
    """Kernels with the operation that started them, and copies, which have none."""
    for event in events:
        stats = dict(event.stats)
        name, module = stats.get("hlo_op", event.name), stats.get("hlo_module", "")
        yield Run(event.start_ns, event.end_ns, name, module, stats.get("program_id"))


def _of_cpu(events: Iterable[Any]) -> list[Run]:
    """Operations of threads; one may go on when its event has ended, until one that says so."""
    runs: list[Run] = []
    numbers: dict[Any, int] = {}
    ends: dict[Any, float] = {}
    for event in events:
        stats = dict(event.stats)
        if "hlo_op" in stats:
            numbers[stats.get("_p")] = len(runs)
            runs += _named([event])
        elif event.name.startswith("end: "):
            ends[stats.get("_c")] = event.start_ns
    for number in numbers.keys() & ends.keys():
        run = runs[numbers[number]]
        runs[numbers[number]] = run._replace(end=max(run.end, ends[number]))
    return runs


def _of_tpu(lines: Mapping[str, Iterable[Any]]) -> Iterator[Run]:
    modules = [(e.start_ns, e.end_ns, e.name) for e in lines.get("XLA Modules", ())]
    for event in lines["XLA Ops"]:
        within = (name for start, end, name in modules if start <= event.start_ns < end)
        program = next(within, "")
        name = event.name.partition(" = ")[0].removeprefix("%")
        yield Run(event.start_ns, event.end_ns, name, program.partition("(")[0], program)


def shares(spans: Sequence[tuple[float, float]], first: Sequence[bool]) -> list[float]:
    """Of each span its part of the time that any covers; their sum is the length of the union.

    Of a moment that n cover each has the n-th part; those that are not `first` have one only of
    moments that none of the first covers.
    """
    edges = [(start, 1, i) for i, (start, end) in enumerate(spans) if end > start]
    edges += [(end, 0, i) for i, (start, end) in enumerate(spans) if end > start]
    found, before = [0.0] * len(spans), 0.0
    running: tuple[set[int], set[int]] = (set(), set())
    for at, begins, i in sorted(edges):
        counted = running[True] or running[False]
        for j in counted:
            found[j] += (at - before) / len(counted)
        (running[first[i]].add if begins else running[first[i]].discard)(i)
        before = at
    return found


class Operation(NamedTuple):
    """One of a table: its kind, its name, where it was written, and ms of a step."""

    kind: str
    name: str
    scope: str
    ms: float


class Table(NamedTuple):
    """Where the time of a step goes.

    Attributes:
      ms: of a step, on average.
      kinds: ms of each of KINDS, whose sum is `ms`.
      operations: all of them, the slowest first.
    """

    ms: float
    kinds: Mapping[str, float]
    operations: Sequence[Operation]

    def text(self, most: int = 10) -> str:
        """Lines for people: all kinds that took time, and the slowest operations."""
        lines = [
            f"  {kind:<28}{ms:10.3f} ms {100 * ms / self.ms:6.1f} %"
            for kind, ms in sorted(self.kinds.items(), key=lambda row: -row[1])
            if ms
        ]
        if not self.operations:  # on a GPU, where CUPTI is refused
            return "\n".join([*lines, "  the trace has no operation of a device"])
        lines += ["slowest operations:"]
        lines += [
            f"  {o.kind:<28}{o.ms:10.3f} ms  {o.name}  {o.scope.partition('/')[2]}".rstrip()
            for o in self.operations[:most]
        ]
        return "\n".join(lines)


def table(runs: Sequence[Run], window: float, programs: Sequence[Program], steps: int) -> Table:
    """What the runs of so many steps in a window of so many ns took.

    Args:
      programs: of the steps; what ran of others is OTHER.
    """
    names: dict[Any, set[tuple[str, str]]] = collections.defaultdict(set)
    for run in runs:
        names[run.program].add((run.module, run.name))
    of = {number: _matching(found, programs) for number, found in names.items()}
    runs = [r for r in runs if not _has(of[r.program], r.name, LOOPS)]
    first = [not _has(of[r.program], r.name, {CALL}) for r in runs]
    spent = collections.Counter()
    for run, ns in zip(runs, shares([run[:2] for run in runs], first), strict=True):
        spent[run[2:]] += ns
    operations = []
    for (name, module, number), ns in spent.most_common():
        program = of[number]
        if program:
            found = program.lines.get(name)
            kind, scope = kind_of(program, name), found.scope if found else ""
        else:
            kind, scope = OTHER if module else MOVES, module  # a move is between host and device
        operations.append(Operation(kind, name, scope, ns / steps / 1e6))
    busy = sum(operation.ms for operation in operations)
    kinds = dict.fromkeys(KINDS, 0.0) | {IDLE: max(window / steps / 1e6 - busy, 0.0)}
    for operation in operations:
        kinds[operation.kind] += operation.ms
    return Table(sum(kinds.values()), kinds, operations)


def _matching(names: set[tuple[str, str]], programs: Iterable[Program]) -> Program | None:
    """The program in which most of these operations (module, name) are, None where none has any."""
    modules = {module for module, _ in names}
    return max(
        (program for program in programs if program.module in modules),
        key=lambda program: sum(name in program.lines for _, name in names),
        default=None,
    )


def _has(program: Program | None, name: str, operations: set[str]) -> bool:
    found = program and program.lines.get(name)
    return bool(found) and found.operation in operations
