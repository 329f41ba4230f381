"""Progressive distillation: a student makes in one step of DDIM what its teacher makes in two.

Salimans & Ho 2022, "Progressive Distillation for Fast Sampling of Diffusion Models"
(arXiv:2202.00512). A run starts from the weights of a trained diffusion model. Every `stage_steps`
steps the student becomes the teacher of the next stage, which halves the steps: all stages are one
run, whose teacher is a part of its state and no file that a resumed run would have to find again.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from aigc_jax.checks import BelowOne, Count, OneOf, Positive, Whole, kinds
from aigc_jax.diffusion import precondition
from aigc_jax.diffusion import process as processes
from aigc_jax.diffusion import times as timing
from aigc_jax.diffusion.family import from_config
from aigc_jax.diffusion.model import Diffusion
from aigc_jax.diffusion.process import Level, expand, per_time
from aigc_jax.diffusion.solvers import ddim
from aigc_jax.diffusion.solvers.spacing import SPACINGS, grid
from aigc_jax.diffusion.times import Times
from aigc_jax.errors import SettingError
from aigc_jax.family import Batch, DataSpec, Extra, Family, LossValue, Params, View


@dataclass(frozen=True, eq=False)
class Distillation(Diffusion):
    """The parts of a progressive distillation, beside those of `Diffusion`.

    Attributes:
      grid: the levels [S + 1] of the first teacher's S steps and x_0 behind them.
      stages: how often the steps are halved.
      stage_steps: training steps of a stage; the last one goes on to the run's end.
    """

    grid: Level | None = None
    stages: int = 1
    stage_steps: int = 1

    def init(self, key: jax.Array) -> tuple[Params, Extra]:
        """Parameters, and room for the teacher, which is taken at the first step."""
        params, _ = super().init(key)
        teacher = jax.tree.map(jnp.zeros_like, params["net"])
        return params, {"teacher": teacher, "stage": jnp.full((), -1, jnp.int32)}

    def teacher(self, view: View) -> Extra:
        """{"teacher", "stage"} of this step: a new stage's teacher is the student's average."""
        stage = jnp.minimum(view.step // self.stage_steps, self.stages - 1).astype(jnp.int32)
        # Not by the step's number: where a step was skipped, the next one takes the teacher.
        new = stage != view.extra["stage"]
        pairs = (view.ema["net"], view.extra["teacher"])
        teacher = jax.tree.map(lambda own, kept: jnp.where(new, own, kept), *pairs)
        return {"teacher": jax.lax.stop_gradient(teacher), "stage": stage}

    def levels(self, stage: jax.Array, key: jax.Array, count: int) -> tuple[Level, Level, Level]:
        """Where steps of a stage's student start, where the teacher's first ends, its second: [B].

        One of the student's steps for each example, each as likely.
        """
        stride = 2**stage  # of the teacher's steps in the grid
        steps = (len(self.grid.t) - 1) // 2 // stride  # of the student
        chosen = jnp.floor(jax.random.uniform(key, (count,)) * steps).astype(jnp.int32)
        chosen = jnp.minimum(chosen, steps - 1)
        start, middle, end = (2 * chosen * stride + i * stride for i in range(3))
        return tuple(
            Level(*(per_time(a, index) for a in self.grid)) for index in (start, middle, end)
        )

    def target(
        self, params: Params, x: jax.Array, levels: tuple[Level, Level, Level], label: Any
    ) -> jax.Array:
        """The x_0 by which one step of DDIM from x [B, ...] ends where the teacher's two do."""
        start, _, end = levels
        z = x
        for at, to in itertools.pairwise(levels):
            x0 = self.threshold(self.estimate(self.predict(params, z, at, label), z, at).x0)
            z = expand(to.sigma / at.sigma, z) * (z - expand(at.alpha, z) * x0)
            z = z + expand(to.alpha, z) * x0
        ratio = end.sigma / start.sigma
        return (z - expand(ratio, z) * x) / expand(end.alpha - ratio * start.alpha, z)

    def loss(self, view: View, batch: Batch, key: jax.Array) -> LossValue:
        """Salimans & Ho 2022, algorithm 2."""
        time_key, noise_key, drop_key, label_key = jax.random.split(key, 4)
        extra = self.teacher(view)
        label = self.drop_labels(self.label_of(batch), label_key)
        levels = self.levels(extra["stage"], time_key, len(batch["x"]))
        start = levels[0]
        x_t, _ = self.noised(batch["x"], start, noise_key)
        x0 = jax.lax.stop_gradient(self.target({"net": extra["teacher"]}, x_t, levels, label))
        eps = (x_t - expand(start.alpha, x_t) * x0) / expand(start.sigma, x_t)
        output = self.predict(
            view.params, x_t, start, label, train=True, rngs={"dropout": drop_key}
        )
        each = self.errors(x0, eps, output, x_t, start)
        return jnp.mean(each), ({"stage": extra["stage"]}, {**view.extra, **extra})


def distillation(
    network: Any,
    shape: tuple[int, ...],
    *,
    process: Mapping,
    prediction: Annotated[str, OneOf(precondition.PREDICTIONS)],
    weighting: Mapping,
    sampling: Mapping[str, Any],
    teacher_steps: Count,
    student_steps: Count,
    stage_steps: Count,
    spacing: Annotated[str, OneOf(SPACINGS)] = "",
    sigma_data: Positive = 0.5,
    label_dropout: BelowOne = 0.0,
) -> Distillation:
    """A progressive distillation, from the settings of its parts.

    Args:
      process, prediction, sigma_data: the teacher's; weighting: see `times.WEIGHTINGS`.
      teacher_steps: of DDIM that the first teacher makes, over levels that `spacing` names; ""
        is "trailing" for a discrete process, else what solvers take.
      student_steps: of the last student, `teacher_steps` halved as often as there are stages.
      stage_steps: see `Distillation`.
      sampling: `steps`, of the student, 0 for `student_steps`; and `clip`, of the teacher too.
      network, shape, label_dropout: see `Diffusion`.

    Raises:
      ValueError: a setting that does not exist, or that others rule out.
    """
    made = processes.build(process)
    predicted = precondition.of_process(prediction, sigma_data, made)
    stages = math.log2(teacher_steps / student_steps)
    if stages < 1 or stages != int(stages):
        raise SettingError(
            f"diffusion.teacher_steps={teacher_steps} must be diffusion.student_steps="
            f"{student_steps} times 2, 4, 8 or another power of 2"
        )
    steps = sampling["steps"] or student_steps
    if teacher_steps % steps:
        raise SettingError(
            f"sampling.steps={steps} must divide diffusion.teacher_steps={teacher_steps}; 0 takes "
            f"diffusion.student_steps={student_steps}"
        )
    # So that the first step starts from noise: "leading" leaves the noisiest times out.
    levels = grid(made, spacing or ("trailing" if made.total else ""), teacher_steps)
    own = Level(*(a[:: teacher_steps // student_steps] for a in levels))
    drawn = Level(*(a[:: teacher_steps // steps] for a in levels))

    def quantile(u: jax.Array) -> jax.Array:
        """Times at which the last student's steps start."""
        return per_time(own.t, jnp.floor(u * student_steps).astype(jnp.int32))

    return Distillation(
        network=network,
        shape=shape,
        process=made,
        prediction=predicted,
        times=Times(quantile),
        weight=timing.weighting(weighting, predicted, made, sigma_data),
        solver=ddim.solver(drawn, made.start_std),
        clip=sampling["clip"],
        label_dropout=label_dropout,
        grid=levels,
        stages=int(stages),
        stage_steps=stage_steps,
    )


def build(config: Mapping[str, Any], spec: DataSpec) -> Family:
    """The distillation family of an experiment; arguments and errors as of `family.build`."""
    made = from_config(
        config, spec, distillation, {"steps": Whole, **kinds(Diffusion, only=("clip",))}
    )
    # A student of few steps is no model of the whole process, of which bounds and the ODE are.
    family = made.family()._replace(bound=None, density=None)
    return family._replace(starts_from=("diffusion",), needs_start=True)
