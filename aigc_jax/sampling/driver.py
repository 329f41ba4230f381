"""The loop that turns a family's `Drawing` into samples: one place for all families.

Sample i depends on (seed, i) alone, on any mesh, in any batch.
"""

import collections
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax import streams
from aigc_jax.errors import SettingError
from aigc_jax.family import Cond, Drawing, Variables
from aigc_jax.sampling.batches import of_this_process, padded
from aigc_jax.training import sharding


def program(drawing: Drawing) -> Callable[[Variables, jax.Array, Cond], jax.Array]:
    """(variables, keys [n], cond) -> samples [n, ...], pure, with all steps in one `lax.scan`.

    What is lowered for an accelerator, exported, or served.
    """

    def run(variables: Variables, keys: jax.Array, cond: Cond) -> jax.Array:
        carry = drawing.start(variables, keys, cond)
        if drawing.steps:
            carry, _ = jax.lax.scan(
                lambda c, i: (drawing.step(variables, c, cond, i)[0], None),
                carry,
                jnp.arange(drawing.steps, dtype=jnp.int32),
            )
        return drawing.finish(variables, carry)

    return run


class Driver:
    """Draws with a family's `Drawing` on devices of one platform; compiles each part once.

    On a CPU the steps are a host loop over one compiled step, since a convolution inside `lax.scan`
    is several times slower there (jax-ml/jax#12868); elsewhere they are one `lax.scan`, since one
    dispatch beats many. The target's platform decides, not the backend that this process finds.
    """

    def __init__(self, drawing: Drawing, platform: str) -> None:
        self.drawing = drawing
        self._on_host = platform == "cpu" and drawing.steps > 0
        self._program = jax.jit(program(drawing))
        self._start, self._finish = jax.jit(drawing.start), jax.jit(drawing.finish)
        self._step = jax.jit(drawing.step) if drawing.step else None
        self._between = jax.jit(drawing.between) if drawing.between else None

    def __call__(self, variables: Variables, keys: jax.Array, cond: Cond) -> jax.Array:
        """Samples [n, ...] in the model's range, from keys [n]."""
        if not self._on_host:
            return self._program(variables, keys, cond)
        (last,) = collections.deque(self.walk(variables, keys, cond), maxlen=1)
        return self._finish(variables, last[0])

    def walk(
        self, variables: Variables, keys: jax.Array, cond: Cond
    ) -> Iterator[tuple[Any, jax.Array]]:
        """Yields (carry, preview [n, ...]) after each step: for progress, previews, streaming."""
        carry = self._start(variables, keys, cond)
        for i in range(self.drawing.steps):
            carry, preview = self._step(variables, carry, cond, np.int32(i))
            yield carry, preview

    def with_frames(
        self, variables: Variables, keys: jax.Array, cond: Cond, count: int
    ) -> tuple[jax.Array, jax.Array]:
        """Samples [n, ...] of a family with steps, and the `frames` of the same walk."""
        carry, found = self._watched(variables, keys, cond, count)
        return self._finish(variables, carry), found

    def frames(self, variables: Variables, keys: jax.Array, cond: Cond, count: int) -> jax.Array:
        """How samples come to be, [count, n, ...].

        Of a family with steps its previews, evenly spread and ending with the last; of one without
        a way from each sample to another, of the same keys with 1 folded in.

        Raises:
          ValueError: a family with neither.
        """
        if self.drawing.steps:
            return self._watched(variables, keys, cond, count)[1]
        if self._between is None:
            raise SettingError("this family has no frames to show")
        other_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, 1)
        ends = [self._start(variables, k, cond) for k in (keys, other_keys)]
        shares = jnp.linspace(0.0, 1.0, count)
        ways = (self._between(*ends, share) for share in shares)
        return jnp.stack([self._finish(variables, carry) for carry in ways])

    def _watched(
        self, variables: Variables, keys: jax.Array, cond: Cond, count: int
    ) -> tuple[Any, jax.Array]:
        """The carry after all steps, and previews [count, n, ...] on the way there."""
        # From the end backwards, so that a single frame is the last.
        kept = np.round(np.linspace(self.drawing.steps - 1, 0, count)).astype(int)
        found: list[jax.Array] = []
        for i, (last, preview) in enumerate(self.walk(variables, keys, cond)):
            carry = last
            found += [preview] * int(np.sum(np.equal(kept, i)))
        return carry, jnp.stack(found)


def draw(
    driver: Driver | Callable[[Variables, jax.Array, Cond], jax.Array],
    variables: Variables,
    mesh: Any,
    *,
    seed: int,
    count: int,
    labels: Sequence[int] | None = None,
    given: Callable[[np.ndarray], Mapping[str, np.ndarray]] | None = None,
    batch_size: int = 64,
    frames: int = 0,
) -> Iterator[np.ndarray]:
    """Yields samples [b, ...] in the model's range in batches, `count` in all, in order.

    Args:
      driver: or another function like its call.
      labels: label of sample i is labels[i % len(labels)]; None draws without labels.
      given: (numbers of samples [b]) -> {name: host array [b, ...]}, what else each is asked for,
        the same on every process.
      batch_size: samples at a time, rounded up to a multiple of the devices. All batches have this
        size, the last padded, so that one compilation serves all.
      frames: above 0 yields `Driver.frames` of each batch instead, [frames, b, ...].
    """
    run = partial(driver.frames, count=frames) if frames else driver
    for index, kept in padded(count, batch_size, mesh):
        keys, cond = sample_keys(mesh, seed, index), cond_of(mesh, index, labels)
        if given is not None:
            found = given(np.minimum(index, count - 1))  # the last batch is filled up
            found = {name: of_this_process(x) for name, x in found.items()}
            cond = {**cond, **sharding.put(mesh, found)}
        samples = sharding.fetch(run(variables, keys, cond))
        yield samples[:, :kept] if frames else samples[:kept]


def cond_of(mesh: Any, index: np.ndarray, labels: Sequence[int] | None) -> Cond:
    """What the samples `index` [n] are asked for, on the devices: labels in turn, or nothing."""
    if labels is None:
        return {}
    chosen = np.asarray(labels, np.int32)[index % len(labels)]
    return {"label": sharding.put(mesh, of_this_process(chosen))}


def sample_keys(mesh: Any, seed: int, index: np.ndarray) -> jax.Array:
    """Keys of the samples `index` [n], split over the devices: key i depends on (seed, i)."""
    return _sample_keys(mesh)(streams.samples(seed), index.astype(np.uint32))


@cache
def _sample_keys(mesh: Any) -> Callable[[jax.Array, np.ndarray], jax.Array]:
    return jax.jit(streams.sample, out_shardings=sharding.split(mesh))
