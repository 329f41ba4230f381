"""The text of a compiled program, `jax.stages.Compiled.as_text`, read."""

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

_LINE = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)$")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_ARRAY = re.compile(r"\b(pred|token|[a-z]+\d+[a-z0-9]*)\[([\d,]*)\](\{[^}]*\})?")
_CALLED = re.compile(r"\b(?:calls|to_apply)=%?([\w.\-]+)")
_MODULE = re.compile(r"HloModule ([\w.\-]+)")
_SCOPE = re.compile(r'op_name="([^"]*)"')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')


class Instruction(NamedTuple):
    """One line of a computation.

    Attributes:
      name, kind: such as "fusion.3" and "fusion".
      size: bytes of the result.
      in_memory: those of them that lie in a device's main memory, not in one on the chip.
      operands: names of instructions.
      inside, text: what stands within the brackets, and after them.
    """

    name: str
    kind: str
    size: int
    in_memory: int
    operands: tuple[str, ...]
    inside: str
    text: str

    @property
    def scope(self) -> str:
        """The path of modules and named scopes that it was written in, "" where nobody knows."""
        return _first(_SCOPE, self.text)

    @property
    def target(self) -> str:
        """The name by which a library's kernel is called, "" of all else."""
        return _first(_TARGET, self.text)

    @property
    def operation(self) -> str:
        """Its kind, the same for an asynchronous one's start and end."""
        return re.sub(r"-(start|done|update)$", "", self.kind)


class Program(NamedTuple):
    """A compiled program as its text has it.

    Attributes:
      module: its name in a trace.
      entry: the computation that runs first.
      computations: {name: its lines}.
      lines: {name: instruction} of all of them.
    """

    module: str
    entry: str
    computations: Mapping[str, tuple[Instruction, ...]]
    lines: Mapping[str, Instruction]

    def within(self, line: Instruction) -> tuple[Instruction, ...]:
        """What a fusion, a call or an asynchronous instruction is made of; else nothing."""
        if line.operation not in ("fusion", "async", "call"):
            return ()
        return self.computations.get(_first(_CALLED, line.text), ())


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
            sizes = size_of(match[2]), size_of(match[2], main=True)
            lines.append(Instruction(match[1], match[3], *sizes, operands, inside, rest))
    named = {line.name: line for lines in found.values() for line in lines}
    return Program(_first(_MODULE, text[:1000]), entry, found, named)


def _first(pattern: re.Pattern[str], text: str) -> str:
    found = pattern.search(text)
    return found[1] if found else ""


def _split(text: str) -> tuple[str, str]:
    """(what is within the bracket that is open, what comes after it)."""
    depth = 1
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return text[:i], text[i:]
    return text, ""


def size_of(shape: str, main: bool = False) -> int:
    """Bytes of a type such as "(f32[8,4]{1,0}, s32[])", all of a tuple together.

    With `main` those in main memory alone: a layout with S(1) or above lies on the chip.
    """
    return sum(
        math.ceil(_bits(kind) * math.prod(int(n) for n in dims.split(",") if n) / 8)
        for kind, dims, layout in _ARRAY.findall(shape)
        if not (main and re.search(r"S\([1-9]", layout))
    )


def _bits(kind: str) -> int:
    if kind == "pred":
        return 8
    digits = re.search(r"\d+", kind)
    return int(digits[0]) if digits else 0
