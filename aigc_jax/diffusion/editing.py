"""Editing given images with a trained diffusion model: each way is a `Drawing` of its own.

`vary` starts from a noised image, `inpaint` paints a part of it anew, `upscale` finds an image
whose means over blocks are given, `invert` finds the noise that an image comes of, and
`reconstruct` and `interpolate` go back from there. Steps are those of the model's own solver where
nothing else is said. `cond` holds what is given, in the model's range, and the label if there is
one.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.diffusion.model import START, Diffusion
from aigc_jax.diffusion.process import Level, diffuse, per_time
from aigc_jax.diffusion.solvers.base import Denoise, Estimate, Solver, noise_like, single_step
from aigc_jax.errors import SettingError
from aigc_jax.family import Cond, Drawing, Field, Variables

Carry = dict[str, Any]


def edits(model: Diffusion) -> dict[str, Callable[..., Drawing]]:
    """All edits of a model of images, by name, as `Family.edits` has them."""
    known = (vary, inpaint, upscale, invert, reconstruct, interpolate)
    return {edit.__name__: partial(edit, model) for edit in known}


def vary(model: Diffusion, *, strength: float) -> Drawing:
    """Images like a given one: the last steps of a run from the image with noise (SDEdit).

    Meng et al. 2022 (arXiv:2108.01073). With all steps it is a run from noise alone.

    Args:
      strength: the share of the solver's steps that are made, of which one is the least.

    Raises:
      ValueError: a strength outside (0, 1].
    """
    if not 0 < strength <= 1:
        raise SettingError(
            f"the strength is the share of the sampler's steps, above 0 and at most 1, not "
            f"{strength:g}"
        )
    grid = model.solver.grid
    total = len(grid.t) - 1
    steps = max(round(strength * total), 1)
    if steps == total:
        return _drawing(model, model.solver, lambda noise, cond: model.solver.std * noise)
    levels = Level(*(a[total - steps :] for a in grid))
    solver = model.solver.over(levels)
    first = Level(*(np.float32(a[0]) for a in solver.table["at"]))  # which churn may have raised

    def start(noise: jax.Array, cond: Cond) -> jax.Array:
        return diffuse(cond["image"], noise, first)

    return _drawing(model, solver, start)


def inpaint(model: Diffusion, *, resample: int) -> Drawing:
    """A part of an image painted anew, to fit what is known of it (RePaint).

    Lugmayr et al. 2022 (arXiv:2201.09865, algorithm 1, jumps of length 1): after each ancestral
    step the known part is replaced by the image with the noise of that level. Each step is made
    `resample` times, x going back by new noise in between, which brings the two parts together. The
    last step, which ends at x_0, is made once: S steps are (S - 1) resample + 1 network calls.

    `cond["mask"]` [n, H, W, 1] is 1 where the image is painted anew and 0 where it is known.

    Raises:
      ValueError: fewer resamplings than one.
    """
    if resample < 1:
        raise SettingError(f"resample says how often each step is made, 1 or more, not {resample}")
    grid = model.solver.grid
    solver = model.solver.over(grid, sampler="ancestral")
    table = _resampled(solver.table, grid, resample)

    def start(noise: jax.Array, cond: Cond) -> jax.Array:
        return solver.std * noise

    def step(
        variables: Variables, carry: Carry, cond: Cond, i: jax.Array
    ) -> tuple[Carry, jax.Array]:
        row = jax.tree.map(lambda column: per_time(column, i), table)
        noise, again = (noise_like(carry["keys"], model.shape, 2 * i + k) for k in (0, 1))
        denoise = partial(model.denoise, variables, cond)
        image, anew = cond["image"], cond["mask"] > 0.5
        x, x0 = solver.step(denoise, carry["x"], row["step"], noise)
        x = jnp.where(anew, solver.finish(x), diffuse(image, noise, row["to"]))
        x = row["back"] * x + row["back_std"] * again
        return {"x": solver.start(x), "keys": carry["keys"]}, jnp.where(anew, x0, image)

    made = _drawing(model, solver, start, mask=Field("mask", (*model.shape[:-1], 1)))
    return made._replace(
        step=step, steps=len(table["back"]), calls=model.calls(table["step"]["at"])
    )


def _resampled(table: Mapping[str, Any], grid: Level, times: int) -> dict[str, Any]:
    """A table [S] whose rows but the last stand `times` times, and the way back of all but these.

    Returns:
      {"step": rows; "to": the level where each ends; "back" and "back_std": x there becomes
      back x + back_std noise, x at the level where the row began, or stays}.
    """
    steps = len(grid.t) - 1
    rows = np.append(np.repeat(np.arange(steps - 1), times), steps - 1)
    at, to = (Level(*(a[rows + k] for a in grid)) for k in (0, 1))
    ratio = at.alpha / to.alpha
    std = np.sqrt(np.maximum(at.sigma**2 - (ratio * to.sigma) ** 2, 0))
    stays = np.append(np.diff(rows) > 0, True)  # the last time of a step
    return {
        "step": jax.tree.map(lambda column: column[rows], dict(table)),
        "to": to,
        "back": np.where(stays, 1.0, ratio),
        "back_std": np.where(stays, 0.0, std),
    }


def upscale(model: Diffusion, *, factor: int) -> Drawing:
    """Images whose means over blocks of factor x factor pixels are a given small image (DDNM).

    Wang et al. 2023 (arXiv:2212.00490): every estimate of x_0 gets the part that is known,
    x_0 <- A^+ y + (I - A^+ A) x_0, where A takes the means and A^+ repeats pixels.

    Raises:
      ValueError: a factor that does not divide the model's images.
    """
    height, width, channels = model.shape
    if factor < 2 or height % factor or width % factor:
        raise SettingError(
            f"the factor has to be 2 or more and to divide the model's images of {height}x{width}, "
            f"not {factor}"
        )
    inner = model.solver

    def consistent(x0: jax.Array, small: jax.Array) -> jax.Array:
        return x0 + repeated(small - means(x0, factor), factor)

    def step(denoise: Denoise, carry: Any, row: Mapping[str, Any], noise: Any) -> Any:
        x, small = carry

        def known(x: jax.Array, level: Level) -> Estimate:
            estimate = denoise(x, level)
            return estimate._replace(x0=consistent(estimate.x0, small))

        x, x0 = inner.step(known, x, row, noise)
        return (x, small), x0

    def finish(carry: Any) -> jax.Array:
        x, small = carry
        return clipped(inner.finish(x), small, factor)

    def start(noise: jax.Array, cond: Cond) -> tuple[jax.Array, jax.Array]:
        return inner.std * noise, cond["image"]

    solver = inner._replace(step=step, finish=finish, start=lambda x: (inner.start(x[0]), x[1]))
    small = Field("image", (height // factor, width // factor, channels))
    return _drawing(model, solver, start, image=small)


def means(x: jax.Array, factor: int) -> jax.Array:
    """Images [n, H, W, C] -> their means over blocks, [n, H / factor, W / factor, C]."""
    n, height, width, channels = x.shape
    blocks = x.reshape(n, height // factor, factor, width // factor, factor, channels)
    return blocks.mean((2, 4))


def repeated(x: jax.Array, factor: int) -> jax.Array:
    """Images [n, h, w, C] -> [n, h factor, w factor, C], each pixel a block."""
    return x.repeat(factor, axis=1).repeat(factor, axis=2)


def clipped(x: jax.Array, small: jax.Array, factor: int, halvings: int = 30) -> jax.Array:
    """Images [n, H, W, C] clipped to [-1, 1] so that the means over blocks are `small`.

    Each block is shifted first, by what bisection finds: clipping alone would move its mean.
    """

    def shifted(shift: jax.Array) -> jax.Array:
        return jnp.clip(x + repeated(shift, factor), -1.0, 1.0)

    def halve(_: int, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        middle = (ends[0] + ends[1]) / 2
        low = means(shifted(middle), factor) < small
        return jnp.where(low, middle, ends[0]), jnp.where(low, ends[1], middle)

    largest = 1.0 + jnp.abs(x).max()  # moves any pixel to either end
    ends = jnp.full_like(small, -largest), jnp.full_like(small, largest)
    low, high = jax.lax.fori_loop(0, halvings, halve, ends)
    return shifted((low + high) / 2)


def invert(model: Diffusion) -> Drawing:
    """The noise at the noisiest level that DDIM takes to an image: its steps made backwards.

    Song et al. 2021 (arXiv:2010.02502, section 4.3): Euler's method in x / alpha, upwards. At x_0
    no network was trained, so the first step takes the noise that it sees in alpha x_0 at the
    lowest level. As many network calls as steps; the error falls with the number of these.
    """
    up = Level(*(a[:-1][::-1] for a in model.solver.grid))  # without x_0
    at, to = (Level(*(np.append(a[:1], a[:-1]) for a in up)), up)
    keep = to.sigma / at.sigma
    keep_x0 = to.alpha - keep * at.alpha
    # x_1 = alpha x_0 + sigma eps, where sigma eps = alpha x_0 - alpha denoise(alpha x_0).
    keep[0], keep_x0[0] = 2.0, -at.alpha[0]
    solver = single_step(at, keep, keep_x0, start=1.0)
    return _drawing(model, solver, lambda noise, cond: np.float32(at.alpha[0]) * cond["image"])


def reconstruct(model: Diffusion) -> Drawing:
    """The image that DDIM makes of noise, `cond["latent"]`, as `invert` gives it."""
    latent = Field("image", model.shape)
    made = _drawing(model, _ddim(model), lambda noise, cond: cond["latent"])
    return made._replace(conditions=_conditions(model, latent=latent))


def interpolate(model: Diffusion) -> Drawing:
    """The image of noise that lies between two, `cond["latent"]` and `cond["other"]`.

    `cond["share"]` [n] says how far on the way from the one to the other along a sphere.
    """
    latent = Field("image", model.shape)

    def start(noise: jax.Array, cond: Cond) -> jax.Array:
        return between(cond["latent"], cond["other"], cond["share"])

    made = _drawing(model, _ddim(model), start)
    given = {"latent": latent, "other": latent, "share": Field("share", ())}
    return made._replace(conditions=_conditions(model, **given))


def between(a: jax.Array, b: jax.Array, share: jax.Array) -> jax.Array:
    """Spherical interpolation of a and b [n, ...], at shares [n] (Shoemake 1985)."""
    flat_a, flat_b = (x.reshape(len(x), -1) for x in (a, b))
    norms = jnp.linalg.norm(flat_a, axis=1) * jnp.linalg.norm(flat_b, axis=1)
    angle = jnp.arccos(jnp.clip((flat_a * flat_b).sum(1) / jnp.maximum(norms, 1e-12), -1, 1))
    straight = angle < 1e-3  # on so short a way the two are the same
    sine = jnp.where(straight, 1.0, jnp.sin(angle))
    of_a = jnp.where(straight, 1 - share, jnp.sin((1 - share) * angle) / sine)
    of_b = jnp.where(straight, share, jnp.sin(share * angle) / sine)
    return (of_a[:, None] * flat_a + of_b[:, None] * flat_b).reshape(a.shape)


def _ddim(model: Diffusion) -> Solver:
    return model.solver.over(model.solver.grid, sampler="ddim", eta=0.0)


def _conditions(model: Diffusion, **given: Field) -> dict[str, Field]:
    return given | ({"label": Field("label", (), model.classes)} if model.classes else {})


def _drawing(
    model: Diffusion,
    solver: Solver,
    begin: Callable[[jax.Array, Cond], Any],
    **given: Field,
) -> Drawing:
    """Samples of a model by another solver, from (noise [n, ...], cond) -> what it starts from.

    Args:
      given: what `cond` holds beside or in place of an image of the model's shape.
    """
    by = replace(model, solver=solver)

    def start(variables: Variables, keys: jax.Array, cond: Cond) -> Carry:
        noise = noise_like(keys, model.shape, START)
        return {"x": solver.start(begin(noise, cond)), "keys": keys}

    return Drawing(
        start=start,
        finish=by.finish,
        step=by.step,
        steps=solver.calls,
        calls=model.calls(solver.table["at"]),
        conditions=_conditions(model, **{"image": Field("image", model.shape), **given}),
    )
