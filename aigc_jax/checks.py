"""What settings are checked by: one clear error that names the setting and what it may be.

A range is stated once, in the annotation of the argument that a setting becomes, such as
`clip: NonNegative`; `arguments` holds a section of a config against it.
"""

import difflib
import inspect
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, NamedTuple

from aigc_jax.errors import SettingError, UnknownKeyError

INT32 = 2**31  # what JAX counts in ends below it


class Range(NamedTuple):
    """Which numbers a setting may be. NaN and infinity are outside every range.

    Attributes:
      low, high: the least and the greatest of them,
      above, below: but not these two themselves.
    """

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False

    def holds(self, x: float) -> bool:
        """Whether x lies in the range."""
        if not (self.low <= x <= self.high and -math.inf < x < math.inf):
            return False
        return not (self.above and x == self.low) and not (self.below and x == self.high)

    def __str__(self) -> str:
        if self.low == -math.inf and self.high == math.inf:
            return "that is finite"
        if self.high == math.inf:
            return f"above {self.low}" if self.above else f"at least {self.low}"
        high = f"2**{self.high.bit_length() - 1}" if self.high >= INT32 else self.high
        return f"in {'(' if self.above else '['}{self.low}, {high}{')' if self.below else ']'}"


class OneOf(tuple):
    """Which names a setting may be, such as `OneOf(TABLE)`, the keys of a table; or numbers."""

    def holds(self, x: float) -> bool:
        """Whether x is one of them."""
        return x in self

    def __str__(self) -> str:
        return f"one of {', '.join(str(name) or repr(name) for name in self)}"


# What `Annotated` gives a tuple that may be empty: others hold one value at least.
OR_EMPTY = "or empty"

Whole = Annotated[int, Range(0, INT32, below=True)]
Count = Annotated[int, Range(1, INT32, below=True)]
Counts = tuple[Count, ...]
Finite = Annotated[float, Range()]
NonNegative = Annotated[float, Range(0)]
Positive = Annotated[float, Range(0, above=True)]
Probability = Annotated[float, Range(0, 1)]
BelowOne = Annotated[float, Range(0, 1, below=True)]  # decays, momenta, rates of dropout
DType = Annotated[str, OneOf(("float32", "bfloat16", "float16"))]


def one_of(setting: str, value: Any, known: Iterable[Any]) -> None:
    """Raises ValueError unless `value` is one of `known`; names `setting` and the near miss."""
    names = [str(name) for name in known]
    if not isinstance(value, str) or value not in names:
        near = difflib.get_close_matches(str(value), names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise SettingError(f"{setting} is {OneOf(names)}, not {shown(value)}{hint}")


def value(name: str, given: Any, kind: Any) -> None:
    """Raises ValueError unless a setting is of its kind; both are in its one line.

    Args:
      name: of the setting within the config, such as "optimizer.clip".
      kind: an annotation: of `bool`, `str`, `None`, numbers with their `Range`, names with `OneOf`,
        tuples of these (a list is one too) or a union of these; `Mapping` for a section that is
        checked elsewhere, a NamedTuple for one whose settings are its fields.

    Raises:
      TypeError: an annotation that says too little, such as a number's without a range.
    """
    if hasattr(kind, "_fields"):
        arguments(name, kind, given)
    elif not _fits(name, given, kind):
        for names in _rules(kind, OneOf):
            one_of(f"config.{name}", given, names)  # with a hint
        raise SettingError(f"config.{name} is {_described(kind)}, not {shown(given)}")


def shown(given: Any) -> str:
    """A value as one short line."""
    text = " ".join(repr(given).split())
    return text if len(text) <= 80 else text[:77] + "..."


def _rules(kind: Any, of: type = object) -> list[Any]:
    """What `Annotated` says of a kind beside its type."""
    return [rule for rule in getattr(kind, "__metadata__", ()) if isinstance(rule, of)]


def _union(kind: Any) -> list[Any]:
    """What a union is of; a function in place of a number is never a config's."""
    if typing.get_origin(kind) not in (typing.Union, types.UnionType):
        return []
    return [k for k in typing.get_args(kind) if typing.get_origin(k) is not Callable]


def _fits(name: str, given: Any, kind: Any) -> bool:
    """Whether a value is of a kind, which is no NamedTuple."""
    base = kind.__origin__ if _rules(kind) else kind
    if choices := _union(kind):
        return any(_fits(name, given, choice) for choice in choices)
    if base in (bool, types.NoneType):
        return isinstance(given, base)
    if base is str:
        return isinstance(given, str) and all(given in names for names in _rules(kind, OneOf))
    if base is Mapping:
        return hasattr(given, "items")  # a ConfigDict is no Mapping
    if typing.get_origin(base) is tuple:
        return isinstance(given, list | tuple) and _elements_fit(name, given, kind, base)
    ranges = _rules(kind, Range | OneOf)
    if base not in (int, float) or not ranges:
        raise TypeError(
            f"config.{name} is annotated {kind}, which states no range: see How to add a setting "
            "in docs/architecture.md"
        )
    if base is float and hasattr(given, "aval"):
        return True  # a program's argument, whose values were held against this one by one
    number = int if base is int else int | float
    return (
        isinstance(given, number)
        and not isinstance(given, bool)
        and all(r.holds(given) for r in ranges)
    )


def _elements_fit(name: str, given: list | tuple, kind: Any, base: Any) -> bool:
    kinds = typing.get_args(base)
    if kinds[-1] is ...:
        return bool(given or OR_EMPTY in _rules(kind)) and all(
            _fits(name, element, kinds[0]) for element in given
        )
    return len(given) == len(kinds) and all(
        _fits(name, element, k) for element, k in zip(given, kinds, strict=True)
    )


def _described(kind: Any) -> str:
    """A kind in words."""
    base, rules = (kind.__origin__ if _rules(kind) else kind), _rules(kind)
    if choices := _union(kind):
        return " or ".join(map(_described, choices))
    simple = {bool: "True or False", str: "text", types.NoneType: "None", Mapping: "a section"}
    if base in simple:
        return " ".join(map(str, rules)) or simple[base]
    if base in (int, float):
        return f"{'a whole number' if base is int else 'a number'} {' '.join(map(str, rules))}"
    kinds = typing.get_args(base)
    if kinds[-1] is not ...:
        return f"({', '.join(map(_described, kinds))})"
    empty = ", maybe empty," if OR_EMPTY in rules else ", not empty,"
    return f"a sequence{empty} of {_described(kinds[0])}"


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings -> {"data.name": value}; an empty section stays, as {}."""
    flat = {}
    for key, value in settings.items():
        nested = isinstance(value, Mapping) and value
        flat |= flatten(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return flat


def section(
    name: str,
    settings: Mapping[str, Any],
    kinds: Mapping[str, Any],
    optional: Mapping[str, Any] = types.MappingProxyType({}),
) -> dict[str, Any]:
    """A section of a config as a dict that holds all keys of `kinds`, maybe `optional`, no other.

    Args:
      name: of the section within the config, such as "vae.kl".
      kinds, optional: {key: what its value may be}; see `value`.

    Raises:
      ValueError: keys that are unknown or missing, or a value that is not of its kind.
    """
    value(name, settings, Mapping)
    found, known = dict(settings), {**kinds, **optional}
    missing = [key for key in kinds if key not in found]
    unknown = frozenset(found.keys() - known.keys())
    problems = []
    for key in unknown:
        near = difflib.get_close_matches(key, missing or known, n=1)
        problems.append(f"has no key {key!r}" + (f" (did you mean {near[0]!r}?)" if near else ""))
    if missing:
        problems.append(f"lacks {', '.join(map(repr, missing))}")
    if problems:
        message = (
            f"config.{name} {' and '.join(sorted(problems))}; its keys are {', '.join(known)}. "
            "A run of an older version? Give its config.json the keys of today, or train it again"
        )
        raise UnknownKeyError(message, unknown) if unknown else SettingError(message)
    for key, given in found.items():
        value(f"{name}.{key}", given, known[key])
    return found


def entry(name: str, settings: Mapping[str, Any], key: str, kind: Any) -> Any:
    """One setting of a section that is checked as a whole elsewhere.

    Raises:
      ValueError: the section lacks it, or it is not of its kind.
    """
    return section(name, {key: settings[key]} if key in settings else {}, {key: kind})[key]


def kinds(
    function: Callable[..., Any], only: Iterable[str] = (), given: Iterable[str] = ()
) -> dict[str, Any]:
    """{argument: its annotation} of a function or a module's fields, as `section` takes them.

    Args:
      only: these arguments; () for all.
      given: arguments to leave out, which no config gives.
    """
    parameters = inspect.signature(function).parameters
    of_flax = {"name", "parent"} if "parent" in parameters else set()
    left_out = {*given, *of_flax}
    return {key: parameters[key].annotation for key in only or parameters if key not in left_out}


def arguments(
    name: str,
    function: Callable[..., Any],
    settings: Mapping[str, Any],
    given: Iterable[str] = (),
    beside: Mapping[str, Any] = types.MappingProxyType({}),
) -> dict[str, Any]:
    """`section` of the settings that become keyword arguments of `function` (or a module's fields).

    Args:
      given: arguments that the caller itself gives, which the config must not.
      beside: {key: kind} that the section may hold beside the function's arguments.
    """
    parameters = inspect.signature(function).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        value(name, settings, Mapping)
        return dict(settings)  # the function looks at them itself
    taken = kinds(function, given=given)
    required = {k: v for k, v in taken.items() if parameters[k].default is inspect.Parameter.empty}
    optional = {key: kind for key, kind in taken.items() if key not in required}
    return section(name, settings, required, {**optional, **beside})


def choice(
    name: str, settings: Mapping[str, Any], table: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """The key of `table` that a section gives under "name", and its other settings.

    Raises:
      ValueError: no section, or another name.
    """
    value(name, settings, Mapping)
    others = dict(settings)
    chosen = others.pop("name", "")
    one_of(f"{name}.name", chosen, table)
    return chosen, others
