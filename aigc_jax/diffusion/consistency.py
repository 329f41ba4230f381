"""Consistency models: a network that takes any point of a path to the example at its end.

f(x_t, t) is the network of EDM (Karras et al. 2022), so that its weights are a start; the loss asks
for the same answer at two times of one path. "easy" is consistency tuning (Geng et al. 2024,
"Consistency Models Made Easy", arXiv:2406.14548), whose two times come closer over a run;
"continuous" their limit (Lu & Song 2024, arXiv:2410.11081).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.checks import (
    BelowOne,
    NonNegative,
    OneOf,
    Positive,
    Range,
    Whole,
    arguments,
    choice,
    kinds,
    one_of,
)
from aigc_jax.diffusion import precondition
from aigc_jax.diffusion import process as processes
from aigc_jax.diffusion import times as timing
from aigc_jax.diffusion.family import from_config
from aigc_jax.diffusion.model import Diffusion
from aigc_jax.diffusion.process import Level, Process, diffuse, expand
from aigc_jax.diffusion.solvers.base import Solver, single_step, steps_of
from aigc_jax.diffusion.solvers.spacing import ending
from aigc_jax.errors import SettingError
from aigc_jax.family import DataSpec, Family, Params


@dataclass(frozen=True)
class Easy:
    """Consistency at t and r = t - dt, dt / t = (1 + k sigmoid(-b t)) / q^(stage + 1).

    Attributes:
      q, k, b: of dt.
      stage_steps: steps of a stage, after which dt shrinks by q; 0 leaves it as it is.
      huber: c of the distance sqrt(|d|^2 + c^2) - c.
    """

    q: Annotated[float, Range(1, above=True)] = 256.0
    k: NonNegative = 8.0
    b: Positive = 1.0
    stage_steps: Whole = 0
    huber: NonNegative = 0.0

    def earlier(self, t: jax.Array, step: jax.Array | None) -> jax.Array:
        """r of times t; where no step is given that of the first stage."""
        stage = 0.0 if step is None or not self.stage_steps else step // self.stage_steps
        share = self.q ** -(stage + 1.0) * (1 + self.k * jax.nn.sigmoid(-self.b * t))
        return t * jnp.maximum(1 - share, 0.0)

    def __call__(
        self,
        model: "Consistency",
        params: Params,
        x0: jax.Array,
        eps: jax.Array,
        level: Level,
        label: jax.Array | None,
        *,
        step: jax.Array | None,
        **kwargs: Any,
    ) -> jax.Array:
        """The weighted distance of each example, [B]; the answer at r is what is aimed at."""

        def answer(level: Level) -> jax.Array:
            x_t = diffuse(x0, eps, level)
            return model.estimate(model.predict(params, x_t, level, label, **kwargs), x_t, level).x0

        end = jnp.maximum(self.earlier(level.t, step), model.process.low)
        difference = answer(level) - jax.lax.stop_gradient(answer(model.process.level(end)))
        squared = jnp.sum(jnp.square(difference).reshape(len(x0), -1), axis=1)
        # At a distance of 0 a root has no gradient; and no difference of nearly equal numbers.
        root = jnp.sqrt(jnp.maximum(squared + self.huber**2, 1e-20))
        distance = squared / (root + self.huber)
        weight = model.weight(level) * model.prediction.error(level.alpha, level.sigma)
        return weight * distance


@dataclass(frozen=True)
class Continuous:
    """Consistency along the path's tangent, in the angle t of TrigFlow: tan t = sigma / sigma_data.

    There x_t = cos(t) x_0 + sin(t) z with z of deviation sigma_data, and EDM's network is
    f = cos(t) x_t - sin(t) sigma_data F.

    Attributes:
      warmup: steps over which the tangent's part that can grow without bound comes in.
      norm: c of the tangent g / (|g| + c), |g| being the root of the mean square over values.
    """

    warmup: Whole = 10_000
    norm: Positive = 0.1

    def tangent(
        self,
        model: "Consistency",
        params: Params,
        x0: jax.Array,
        eps: jax.Array,
        level: Level,
        label: jax.Array | None,
        share: Any,
        **kwargs: Any,
    ) -> tuple[jax.Array, jax.Array]:
        """(F, cos(t) df/dt), both [B, ...]; `share` in 0..1 of what the warm-up brings in."""
        sigma_data, z = model.sigma_data, model.sigma_data * eps
        angle = jnp.arctan(level.ratio / sigma_data)
        cos, sin = expand(jnp.cos(angle), x0), expand(jnp.sin(angle), x0)
        x, rate = cos * x0 + sin * z, cos * z - sin * x0

        def network(x: jax.Array, angle: jax.Array) -> jax.Array:
            level = model.process.level(model.process.time(sigma_data * jnp.tan(angle)))
            x = x / expand(jnp.cos(angle), x)
            return -model.predict(params, x, level, label, **kwargs)

        # With cos(t) sin(t) inside, no product of a huge and a tiny number is left.
        inner = jnp.cos(angle) * jnp.sin(angle)
        output, change = jax.jvp(network, (x, angle), (cos * sin * rate, inner))
        fixed = jax.lax.stop_gradient(output)
        change = jax.lax.stop_gradient(change)
        g = -(cos**2) * (sigma_data * fixed - rate)
        return output, g - share * (cos * sin * x + sigma_data * change)

    def __call__(
        self,
        model: "Consistency",
        params: Params,
        x0: jax.Array,
        eps: jax.Array,
        level: Level,
        label: jax.Array | None,
        *,
        step: jax.Array | None,
        **kwargs: Any,
    ) -> jax.Array:
        """The squared error of each example, [B]; in evaluation the mean square of its tangent."""
        share = 1.0 if step is None else jnp.minimum(step / max(self.warmup, 1), 1.0)
        output, g = self.tangent(model, params, x0, eps, level, label, share, **kwargs)
        square = jnp.square(g).reshape(len(x0), -1).mean(axis=1)
        if step is None:
            return square
        g = g / expand(jnp.sqrt(square) + self.norm, g)
        error = jnp.square(output - jax.lax.stop_gradient(output) - g).reshape(len(x0), -1)
        return model.weight(level) * error.mean(axis=1)


# {config.diffusion.consistency.name: what the loss asks for}
CONSISTENCIES = {"easy": Easy, "continuous": Continuous}


@dataclass(frozen=True, eq=False)
class Consistency(Diffusion):
    """The parts of a consistency model, beside those of `Diffusion`.

    Attributes:
      consistency: (model, params, x0, eps, level, label, step=) -> the objective [B].
      sigma_data: standard deviation of the data.
    """

    consistency: Callable[..., jax.Array] = Easy()
    sigma_data: Positive = 0.5

    def objective(
        self,
        params: Params,
        x0: jax.Array,
        level: Level,
        label: jax.Array | None,
        key: jax.Array,
        *,
        step: jax.Array | None = None,
        **kwargs: Any,
    ) -> jax.Array:
        """What `consistency` says of each example, [B]; dropout is the same at both times."""
        eps = jax.random.normal(key, x0.shape)
        return self.consistency(self, params, x0, eps, level, label, step=step, **kwargs)


def solver(process: Process, steps: int, mid: float) -> Solver:
    """Answers, each but the last with new noise (Song et al. 2023, algorithm 1).

    Args:
      steps: network calls, the first at the noisiest time.
      mid: sigma / alpha of the last of two or more; those between are evenly spaced in its log.
    """
    high = float(process.ends.ratio[-1])
    grid = ending(process.at_ratio(np.geomspace(high, mid, steps) if steps > 1 else [high]))
    at, to = steps_of(grid)
    return single_step(
        at, np.zeros(steps), to.alpha, to.sigma if steps > 1 else None, start=process.start_std
    )


def model(
    network: Any,
    shape: tuple[int, ...],
    *,
    process: Mapping,
    prediction: Annotated[str, OneOf(("edm",))],
    times: Mapping,
    weighting: Mapping,
    consistency: Mapping,
    sampling: Mapping[str, Any],
    sigma_data: Positive = 0.5,
    label_dropout: BelowOne = 0.0,
) -> Consistency:
    """A consistency model, from the settings of its parts.

    Args:
      process: must be "edm"; prediction: "edm", since these are an EDM model's.
      times, weighting: see `times.TIMES` and `times.WEIGHTINGS`.
      consistency: a name of `CONSISTENCIES` and its settings.
      sampling: `steps`, `mid` (see `solver`) and `clip`.
      network, shape, sigma_data, label_dropout: see `Consistency`.

    Raises:
      ValueError: a setting that does not exist, or that others rule out.
    """
    made = processes.build(process)
    if not isinstance(made, processes.EDM):
        raise SettingError(
            f"family 'consistency' needs diffusion.process.name='edm', not {process['name']!r}: "
            "its network is EDM's"
        )
    one_of("diffusion.prediction", prediction, ("edm",))
    name, others = choice("diffusion.consistency", consistency, CONSISTENCIES)
    chosen = CONSISTENCIES[name](**arguments("diffusion.consistency", CONSISTENCIES[name], others))
    steps, mid = sampling["steps"], sampling["mid"]
    if steps > 1 and not made.low < mid < made.high:
        raise SettingError(
            f"sampling.mid={mid} must lie between diffusion.process.sigma_min={made.low} and "
            f"sigma_max={made.high}"
        )
    predicted = precondition.edm(sigma_data, made.low if name == "easy" else 0.0)
    return Consistency(
        network=network,
        shape=shape,
        process=made,
        prediction=predicted,
        times=timing.build(times, made),
        weight=timing.weighting(weighting, predicted, made, sigma_data),
        solver=solver(made, steps, mid),
        clip=sampling["clip"],
        label_dropout=label_dropout,
        consistency=chosen,
        sigma_data=sigma_data,
    )


def build(config: Mapping[str, Any], spec: DataSpec) -> Family:
    """The consistency family of an experiment; arguments and errors as of `family.build`."""
    of_sampling = {
        "steps": Annotated[int, Range(1, 1000)],
        "mid": Positive,
        **kinds(Diffusion, only=("clip",)),
    }
    made = from_config(config, spec, model, of_sampling)
    # What it says of x_t is no mean of x_0, which bounds and the ODE are made of.
    return made.family()._replace(starts_from=("diffusion",), bound=None, density=None)
