"""Numbers and settings as a report writes them."""

import math
from typing import Any


def is_number(value: Any) -> bool:
    """Whether a value of a JSON file is a number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def number(value: Any, digits: int = 4) -> str:
    """4 significant digits; text as it is."""
    if not is_number(value):
        return str(value)
    if not math.isfinite(value):
        return "not finite"
    plain = 1e4 <= abs(value) < 1e7  # else 12,340 would read 1.234e+04
    return f"{float(f'{value:.{digits}g}'):,.0f}" if plain else f"{value:.{digits}g}"


def count(value: Any) -> str:
    """A whole number with commas, "?" for none; anything else as it is."""
    return f"{value:,}" if isinstance(value, int) else "?" if value is None else str(value)
