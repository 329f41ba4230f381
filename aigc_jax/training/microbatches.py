"""A batch in parts, one after the other: the gradient of the whole in the memory of a part.

Part i of m has rows i, m + i, 2 m + i, ... of the batch, so that each device splits its own rows;
and its random numbers are those of these rows, so that m changes a result by rounding alone.
"""

import functools
import math
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import random as extended

from aigc_jax.family import Batch

# What a key of a part holds beside its two words of Threefry: the number of the part, and whether
# the key belongs to one row, whose draws are no rows.
WORDS = 2 + 2


def value_and_grad(
    loss: Callable[[Any, Batch, jax.Array], tuple[jax.Array, Any]],
    params: Any,
    batch: Batch,
    key: jax.Array,
    parts: int,
) -> tuple[tuple[jax.Array, Any], Any]:
    """((loss, aux), gradient) of a loss that is a mean over examples, as of `jax.value_and_grad`.

    Args:
      loss: (params, batch, key) -> (scalar, aux), where aux are means over examples too.
      batch: leaves [B, ...].
      parts: that the batch is cut into; a divisor of B.
    """
    differentiated = jax.value_and_grad(loss, has_aux=True)
    if parts == 1:
        return differentiated(params, batch, key)
    rows = len(jax.tree.leaves(batch)[0]) // parts

    def of_part(i: jax.Array) -> Any:
        own = jax.tree.map(lambda x: x.reshape(rows, parts, *x.shape[1:])[:, i], batch)
        return differentiated(params, own, part_key(key, i, parts, rows))

    def add(total: Any, i: jax.Array) -> tuple[Any, None]:
        return jax.tree.map(lambda t, x: t + x / parts, total, of_part(i)), None

    def loop(numbers: jax.Array, *, unroll: bool) -> Any:
        like = jax.eval_shape(of_part, numbers[0])
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.result_type(x, jnp.float32)), like)
        return jax.lax.scan(add, zeros, numbers, unroll=unroll)[0]

    # Gradients of convolutions are tens of times slower in a loop of XLA's on a CPU
    # (findings/xla_cpu_convolution_gradient_in_loop.sh), which has memory enough.
    return jax.lax.platform_dependent(
        jnp.arange(parts),
        cpu=functools.partial(loop, unroll=True),
        default=functools.partial(loop, unroll=False),
    )


def part_key(key: jax.Array, part: jax.Array, parts: int, rows: int) -> jax.Array:
    """A key that draws for the rows of a part what `key` draws for them in the whole batch.

    That are draws of shape [rows, ...], in place of [B, ...], and keys of the rows by
    `jax.random.split(key, rows)`, so where a part has as many rows as a loss has kinds of draws
    (2 to 5) these are others; so are draws of more than 2^32 numbers, and all of a generator that
    is not JAX's own, Threefry. A scalar is one for the whole batch, and so it is for its parts.
    """
    if key.dtype.name != "key<fry>" or not jax.config.jax_threefry_partitionable:
        return jax.random.fold_in(key, part)
    own = jnp.stack([part.astype(jnp.uint32), jnp.uint32(0)])
    data = jnp.concatenate([jax.random.key_data(key), own])
    return jax.random.wrap_key_data(data, impl=_generator(parts, rows))


@functools.cache
def _generator(parts: int, rows: int) -> Hashable:
    """Threefry, whose keys know of a part."""

    def plain(data: jax.Array) -> jax.Array:
        return jax.random.wrap_key_data(data[:2], impl="threefry2x32")

    def random_bits(data: jax.Array, width: int, shape: tuple[int, ...]) -> jax.Array:
        size = math.prod(shape)
        if not shape or size * parts > 2**32:
            salted = jax.random.fold_in(plain(data), data[2]) if shape else plain(data)
            return jax.random.bits(salted, shape, f"uint{width}")
        of_row = size // shape[0] if shape[0] == rows else size
        # Where each number stands in the whole draw: Threefry is a function of that place.
        place = jax.lax.iota(jnp.uint32, size)
        row = place // of_row
        moved = place + (row * (parts - 1) + data[2]) * of_row
        place = jnp.where(data[3] == 1, place, moved).reshape(shape)
        high, low = extended.threefry2x32_p.bind(data[0], data[1], jnp.zeros_like(place), place)
        if width == 64:
            return (high.astype(jnp.uint64) << 32) | low.astype(jnp.uint64)
        return (high ^ low).astype(f"uint{width}")

    def split(data: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        def told(keys: jax.Array, of_a_row: jax.Array) -> jax.Array:
            own = jnp.broadcast_to(jnp.stack([data[2], of_a_row]), (*shape, 2))
            return jnp.concatenate([jax.random.key_data(keys), own], axis=-1)

        same = told(jax.random.split(plain(data), shape), data[3])
        if shape != (rows,):
            return same
        whole = jax.random.split(plain(data), (rows, parts))
        return jnp.where(data[3] == 1, same, told(whole[:, data[2]], jnp.uint32(1)))

    def fold_in(data: jax.Array, number: jax.Array) -> jax.Array:
        folded = jax.random.fold_in(plain(data), number)
        return jnp.concatenate([jax.random.key_data(folded), data[2:]])

    def seed(number: jax.Array) -> jax.Array:
        words = jax.random.key_data(jax.random.key(number, impl="threefry2x32"))
        return jnp.concatenate([words, jnp.zeros(2, jnp.uint32)])

    return extended.define_prng_impl(
        key_shape=(WORDS,),
        seed=seed,
        split=split,
        random_bits=random_bits,
        fold_in=fold_in,
        name=f"threefry_of_{parts}_parts_of_{rows}",
        tag="part",
    )
