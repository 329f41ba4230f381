"""What settings are checked by: one clear error that names the setting and what it may be."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any


def one_of(setting: str, value: Any, known: Iterable[Any]) -> None:
    """Raises ValueError unless `value` is one of `known`; names `setting` and the near miss."""
    names = [str(name) for name in known]
    if value not in names:
        near = difflib.get_close_matches(str(value), names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{setting} is one of {', '.join(names)}, not {value!r}{hint}")


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
    keys: Iterable[str],
    optional: Iterable[str] = (),
) -> dict[str, Any]:
    """A section of a config as a dict that holds all of `keys`, maybe some of `optional`, no other.

    Args:
      name: of the section within the config, such as "vae.kl".

    Raises:
      ValueError: keys that are unknown or missing; it names them.
    """
    keys, found = list(keys), dict(settings)
    missing = [key for key in keys if key not in found]
    known = [*keys, *optional]
    problems = []
    for key in found.keys() - set(known):
        near = difflib.get_close_matches(key, missing or known, n=1)
        problems.append(f"has no key {key!r}" + (f" (did you mean {near[0]!r}?)" if near else ""))
    if missing:
        problems.append(f"lacks {', '.join(map(repr, missing))}")
    if problems:
        raise ValueError(
            f"config.{name} {' and '.join(sorted(problems))}; its keys are {', '.join(known)}. "
            "A run of an older version? Give its config.json the keys of today, or train it again"
        )
    return found


def arguments(
    name: str,
    function: Callable[..., Any],
    settings: Mapping[str, Any],
    given: Iterable[str] = (),
    beside: Iterable[str] = (),
) -> dict[str, Any]:
    """`section` of the settings that become keyword arguments of `function` (or a module's fields).

    Args:
      given: arguments that the caller itself gives, which the config must not.
      beside: keys that the section may hold beside the function's arguments.
    """
    parameters = inspect.signature(function).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return dict(settings)  # the function looks at them itself
    of_flax = {"name", "parent"} if "parent" in parameters else set()
    taken = {key: p for key, p in parameters.items() if key not in {*given, *of_flax}}
    required = [key for key, parameter in taken.items() if parameter.default is parameter.empty]
    optional = [key for key in taken if key not in required]
    return section(name, settings, required, [*optional, *beside])
