"""What a run looks at on a schedule: test metrics, samples, the best checkpoint."""

import math
import operator
import pathlib
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import numpy as np

from aigc_jax import judging
from aigc_jax.data.datasets import Dataset
from aigc_jax.evaluation import evaluators, results
from aigc_jax.family import Family
from aigc_jax.sampling import draw
from aigc_jax.training import rundir, sharding
from aigc_jax.training.checkpoint import Checkpoints
from aigc_jax.training.step import TrainState
from aigc_jax.training.writers import Writer, grid, grid_columns, save_image

BETTER = {"min": operator.lt, "max": operator.gt}


class Observer:
    """What a run looks at on a schedule: test metrics, samples from the same noise, the best."""

    def __init__(
        self,
        config: Mapping[str, Any],
        workdir: pathlib.Path,
        family: Family,
        dataset: Dataset,
        mesh: Any,
        writer: Writer,
    ) -> None:
        self._config, self._workdir, self._family = config, workdir, family
        self._dataset, self._mesh, self._writer = dataset, mesh, writer
        best = config["checkpoint"]["best"]
        self._best = Checkpoints(workdir / "best", keep=1, clean=True) if best else None
        self._evaluate, self._restore = judging.jitted(family)
        count = config["evaluation"]["scheduled_count"]
        # Opened before the first step: weights that are missing are missed at once.
        self._eye = judging.open_eye(config, dataset, mesh) if count else None

    def evaluate(self, state: TrainState, step: int) -> dict[str, float]:
        """Metrics with the EMA: per example over the test split, and of a few samples."""
        config, setting = self._config, self._config["evaluation"]
        params = {**state.params, **state.ema}
        means = evaluators.per_example(
            partial(self._evaluate, params, state.extra),
            judging.examples(config, self._dataset, self._mesh, setting["examples"]),
            jax.random.key(config["seed"]),
        )
        split = config["data"]["test_split"]
        metrics = {f"{split}/{name}": mean.value for name, mean in means.items()}
        if self._family.diagnose:
            batches = judging.examples(config, self._dataset, self._mesh, setting["examples"])
            found, warning = self._family.diagnose(
                judging.codes(self._family, params, state.extra, batches)
            )
            metrics |= {f"{split}/{name}": value for name, value in found.items()}
            if warning:
                self._writer.say(f"step {step}: {warning}")
        if self._eye:
            metrics |= {f"eval/{row.metric}": row.value for row in self._judge(state, step, params)}
        self._writer.scalars(step, metrics)
        return metrics

    def _judge(self, state: TrainState, step: int, params: Any) -> list[results.Row]:
        """Distribution metrics of `evaluation.scheduled_count` samples."""
        config = self._config
        subject = judging.subject(
            config,
            self._family,
            self._dataset,
            self._mesh,
            self._eye,
            params,
            state.extra,
            count=config["evaluation"]["scheduled_count"],
            seed=config["seed"],
        )
        names = [name for name in config["evaluations"] if name in evaluators.DISTRIBUTION]
        weights = "EMA" if self._family.averaged else "raw"
        protocol = judging.protocol(config, weights=weights, seed=config["seed"])
        try:
            rows = evaluators.run(subject, names, real=False, **protocol)
        except ValueError as error:  # a young model may draw what no metric is defined for
            self._writer.say(f"step {step}: no distribution metrics: {error}")
            return []
        if jax.process_index() == 0:
            path = self._workdir / "evaluations" / f"scheduled-{step:08d}.json"
            results.write(path, rows, step=step, scheduled=True)
        return rows

    def keep_best(self, state: TrainState, step: int, metrics: Mapping[str, float]) -> None:
        """Saves the state in best/ if the chosen metric is the best so far."""
        if self._best is None:
            return
        setting = self._config["checkpoint"]
        name = setting["best"]
        if name.startswith("eval/") and self._eye and name not in metrics:
            return  # undefined at this step, as said
        if name not in metrics:
            raise ValueError(f"checkpoint.best is {name!r}; there are {', '.join(metrics)}")
        if not math.isfinite(metrics[name]):
            return
        self._best.wait()
        latest = self._best.latest()
        if latest is not None:
            try:
                before = self._best.about(latest)["metrics"][name]
            except Exception:  # whatever Orbax makes of a damaged file
                self._best.set_aside_after(latest - 1)
            else:
                if latest >= step or not BETTER[setting["best_mode"]](metrics[name], before):
                    return
        about = {"config": rundir.as_dict(self._config), "metrics": dict(metrics)}
        self._best.save(step, state, about)

    def sample(self, state: TrainState, step: int) -> None:
        """A grid from the same noise and labels each time."""
        log, classes = self._config["log"], self._family.num_classes
        params = {**state.params, **state.ema}
        extra = judging.with_prior(
            self._config, self._family, self._dataset, self._mesh, params, state.extra
        )
        images = draw(
            self._family.sample,
            params,
            extra,
            self._mesh,
            seed=self._config["seed"],
            count=log["samples"],
            labels=range(classes) if classes else None,
        )
        picture = grid(np.concatenate(list(images)), columns=grid_columns(log["samples"], classes))
        if jax.process_index() == 0:
            save_image(picture, self._workdir / "samples" / f"{step:08d}.png")
        self._writer.image(step, "samples", picture)
        if self._family.restore:
            self._restored(state, step)

    def _restored(self, state: TrainState, step: int) -> None:
        """Test images, and below each what the model is given of them and makes of that."""
        batch = next(judging.examples(self._config, self._dataset, self._mesh, 1))
        params, key = {**state.params, **state.ema}, jax.random.key(self._config["seed"])
        pairs = self._restore(params, state.extra, batch, key)
        pairs = {name: pairs[name] for name in sorted(pairs, key=evaluators.natural)}
        rows = sharding.fetch([batch["image"], *(x for pair in pairs.values() for x in pair)])
        columns = min(len(rows[0]), 10)
        picture = grid(np.concatenate([row[:columns] for row in rows]), columns=columns)
        if jax.process_index() == 0:
            folder = self._workdir / "restored"
            save_image(picture, folder / f"{step:08d}.png")
            caption = "Rows: " + ", ".join(
                [
                    "test images",
                    *(f"{word} at {name}" for name in pairs for word in ("given", "restored")),
                ]
            )
            rundir.write(folder, f"{step:08d}.json", {"caption": caption})
        self._writer.image(step, "restored", picture)

    def close(self) -> None:
        if self._best is not None:
            self._best.close()
