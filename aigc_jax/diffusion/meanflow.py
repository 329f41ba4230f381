"""MeanFlow: the mean velocity between two times, by which one network call is a whole sample.

Geng et al. 2025, "Mean Flows for One-step Generative Modeling" (arXiv:2505.13447), and its improved
form, Geng et al. 2025, "Improved Mean Flows" (arXiv:2512.02012). With z_t = (1 - t) x + t eps, the
network u(z_t, r, t) is the mean over r..t of the velocity dz/dt, so that z_r = z_t - (t - r) u. The
derivative of that by t is the identity v = u + (t - r) du/dt, which the loss asks for.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.checks import (
    BelowOne,
    NonNegative,
    OneOf,
    Positive,
    Probability,
    Range,
    kinds,
    one_of,
)
from aigc_jax.diffusion import precondition
from aigc_jax.diffusion import times as timing
from aigc_jax.diffusion.family import from_config
from aigc_jax.diffusion.model import Diffusion
from aigc_jax.diffusion.process import Flow, Level, expand, per_time
from aigc_jax.diffusion.solvers import ddim
from aigc_jax.diffusion.times import Times
from aigc_jax.errors import SettingError
from aigc_jax.family import Cond, DataSpec, Family, Params, Variables

# What stands for dz/dt in du/dt: the velocity of the example, as published first, or the network's
# own u(z_t, t, t), a function of z_t alone, of the improved form.
TANGENTS = ("conditional", "predicted")


@dataclass(frozen=True, eq=False)
class Line(Flow):
    """The straight line from data to noise, with a slow clock.

    The loss holds du/dt: with times up to 1000 the embedding's fastest wave would rule it.
    """

    def clock(self, level: Level) -> jax.Array:
        return level.t


@dataclass(frozen=True, eq=False)
class MeanFlow(Diffusion):
    """The parts of a MeanFlow model, beside those of `Diffusion`.

    The network takes r by keyword `t2`; without it r = t, and the output is the velocity, so that
    all else which `Diffusion` does is that of flow matching with the same network.

    Attributes:
      end_times: how a loss draws the second of its two times, the earlier of which is r.
      ratio: share of training examples with r < t; the others are flow matching's.
      tangent: a name of `TANGENTS`.
      norm_p, norm_eps: of the factor 1 / (e + norm_eps)^norm_p on an example's squared error e.
      guidance_weight: w of classifier-free guidance that is trained into the network, whose target
        is w v + (1 - w) u(z_t, t, t) without label; 1 is none.
    """

    end_times: Times | None = None
    ratio: Probability = 0.75
    tangent: Annotated[str, OneOf(TANGENTS)] = "conditional"
    norm_p: NonNegative = 1.0
    norm_eps: Positive = 1e-3
    guidance_weight: NonNegative = 1.0

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
        """The squared error of each example, [B]; in training it is a sum, adaptively weighted."""
        noise_key, end_key, share_key = jax.random.split(key, 3)
        end = self.end_times.train(end_key, len(x0))
        end = jnp.where(jax.random.bernoulli(share_key, self.ratio, end.shape), end, level.t)
        end, start = jnp.minimum(level.t, end), jnp.maximum(level.t, end)
        level = self.process.level(start)
        z, eps = self.noised(x0, level, noise_key)
        predict = partial(self.predict, params, **kwargs)
        velocity = self.guided_velocity(predict, z, level, label, eps - x0)
        tangent = velocity
        if self.tangent == "predicted":
            tangent = jax.lax.stop_gradient(predict(z, level, label))

        def mean_velocity(z: jax.Array, t: jax.Array) -> jax.Array:
            return predict(z, self.process.level(t), label, end=end)

        u, change = jax.jvp(mean_velocity, (z, level.t), (tangent, jnp.ones_like(level.t)))
        error = u + expand(level.t - end, z) * jax.lax.stop_gradient(change) - velocity
        squared = jnp.square(error).reshape(len(x0), -1)
        if step is None:
            return squared.mean(axis=1)
        total = squared.sum(axis=1)
        return total / jax.lax.stop_gradient(total + self.norm_eps) ** self.norm_p

    def guided_velocity(
        self,
        predict: Any,
        z: jax.Array,
        level: Level,
        label: jax.Array | None,
        velocity: jax.Array,
    ) -> jax.Array:
        """The velocity [B, ...] at z that the network shall have, where labels were not dropped."""
        if self.guidance_weight == 1.0:
            return velocity
        without = jax.lax.stop_gradient(predict(z, level, jnp.full_like(label, self.classes)))
        guided = self.guidance_weight * velocity + (1 - self.guidance_weight) * without
        return jnp.where(expand(label == self.classes, z), velocity, guided)

    def predict(
        self,
        params: Params,
        x_t: jax.Array,
        level: Level,
        label: jax.Array | None,
        *,
        end: jax.Array | None = None,
        **kwargs: Any,
    ) -> jax.Array:
        """The mean velocity [B, ...] from levels [B] to times `end`, [B] or one of them.

        Without `end` it is the velocity at these levels.
        """
        end = level.t if end is None else jnp.broadcast_to(end, level.t.shape)
        t2 = self.process.clock(self.process.level(end))
        return super().predict(params, x_t, level, label, t2=t2, **kwargs)

    def step(
        self, variables: Variables, carry: dict[str, Any], cond: Cond, i: jax.Array, **kwargs: Any
    ) -> tuple[dict[str, Any], jax.Array]:
        """z_r from z_t by one network call, a step of Euler's with the mean velocity."""
        end = per_time(np.append(self.solver.table["at"].t[1:], 0.0), i)
        return super().step(variables, carry, cond, i, end=end, **kwargs)


def meanflow(
    network: Any,
    shape: tuple[int, ...],
    *,
    times: Mapping,
    end_times: Mapping,
    sampling: Mapping[str, Any],
    ratio: Probability = 0.75,
    tangent: Annotated[str, OneOf(TANGENTS)] = "conditional",
    norm_p: NonNegative = 1.0,
    norm_eps: Positive = 1e-3,
    label_dropout: BelowOne = 0.0,
    guidance_weight: NonNegative = 1.0,
) -> MeanFlow:
    """A MeanFlow model, from the settings of its parts.

    Args:
      times, end_times: see `times.TIMES`: of two times drawn the earlier one is r.
      sampling: `steps`, network calls of equal length, and `clip`.
      network, shape and the others: see `MeanFlow`.

    Raises:
      ValueError: a network of one time, a setting that does not exist, or that others rule out.
    """
    if not getattr(network, "second_time", False):
        raise SettingError(
            "family 'meanflow' needs a network that takes two times, the beginning and the end of "
            "a step: give --config.network.second_time=True (all of ours have it)"
        )
    one_of("diffusion.tangent", tangent, TANGENTS)
    if guidance_weight != 1.0 and not (network.num_classes and label_dropout):
        raise SettingError(
            "diffusion.guidance_weight other than 1 needs diffusion.conditional=True and "
            "diffusion.label_dropout above 0, by which a network learns to do without labels"
        )
    process = Line()
    grid = process.level(np.linspace(process.high, process.low, sampling["steps"] + 1))
    return MeanFlow(
        network=network,
        shape=shape,
        process=process,
        prediction=precondition.named("velocity"),
        times=timing.build(times, process),
        weight=lambda level: jnp.ones_like(level.t),
        solver=ddim.solver(grid, process.start_std),
        clip=sampling["clip"],
        label_dropout=label_dropout,
        end_times=timing.build(end_times, process, "diffusion.end_times"),
        ratio=ratio,
        tangent=tangent,
        norm_p=norm_p,
        norm_eps=norm_eps,
        guidance_weight=guidance_weight,
    )


def build(config: Mapping[str, Any], spec: DataSpec) -> Family:
    """The MeanFlow family of an experiment; arguments and errors as of `family.build`."""
    of_sampling = {"steps": Annotated[int, Range(1, 1000)], **kinds(Diffusion, only=("clip",))}
    return from_config(config, spec, meanflow, of_sampling).family()
