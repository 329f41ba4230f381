"""FLOPs of the matrix products and convolutions of a function, loops counted by their lengths.

Read from what is traced, before any compiler: the same number for every backend, of all devices
together. What recomputes (remat) counts again, and so does what nobody reads and a compiler leaves
out; elementwise work does not count.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core


def count(function: Callable[..., Any], *arguments: Any) -> float:
    """FLOPs of one call with arguments of these shapes."""
    return of_jaxpr(jax.make_jaxpr(function)(*arguments).jaxpr)


def of_jaxpr(jaxpr: core.Jaxpr) -> float:
    """FLOPs of a jaxpr; of a branch the most expensive one, of a `while` one round."""
    total = 0.0
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if name == "dot_general":
            total += _dot(eqn)
        elif name == "conv_general_dilated":
            total += _conv(eqn)
        elif name == "cond":
            total += max(of_jaxpr(branch) for branch in _inner(eqn))
        else:
            length = eqn.params["length"] if name == "scan" else 1
            total += length * sum(of_jaxpr(inner) for inner in _inner(eqn))
    return total


def _inner(eqn: core.JaxprEqn) -> Iterator[core.Jaxpr]:
    """The jaxprs among an equation's parameters."""
    for value in eqn.params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            if isinstance(one, core.ClosedJaxpr):
                yield one.jaxpr
            elif isinstance(one, core.Jaxpr):
                yield one


def _dot(eqn: core.JaxprEqn) -> float:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    left, out = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    return 2.0 * math.prod(out) * math.prod(left[axis] for axis in contracted)


def _conv(eqn: core.JaxprEqn) -> float:
    """Each output sums over a kernel's inputs; where the input is dilated, most are zeros."""
    numbers, kernel = eqn.params["dimension_numbers"], eqn.invars[1].aval.shape
    _, inputs, *spatial = numbers.rhs_spec
    zeros = math.prod(eqn.params["lhs_dilation"])
    out = math.prod(eqn.outvars[0].aval.shape)
    return 2.0 * out * kernel[inputs] * math.prod(kernel[axis] for axis in spatial) / zeros
