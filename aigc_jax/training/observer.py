"""What a run looks at on a schedule: test metrics, samples, the best checkpoint."""

import itertools
import math
import operator
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from aigc_jax.data import augment, loader
from aigc_jax.data.datasets import Dataset
from aigc_jax.evaluation.evaluators import per_example
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

        @jax.jit
        def evaluate(params: Any, extra: Any, batch: Any, key: jax.Array) -> Any:
            image = augment.to_float(batch["image"])
            return family.evaluate(params, extra, {**batch, "image": image}, key)

        self._evaluate = evaluate

    def evaluate(self, state: TrainState, step: int) -> dict[str, float]:
        """Means of the family's per-example metrics over the test split, with the EMA."""
        config = self._config
        batch_size, split = config["train"]["batch_size"], config["data"]["test_split"]
        batches = loader.epoch(
            self._dataset.sources[split],
            batch_size=batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        limit = config["evaluation"]["examples"]
        batches = itertools.islice(batches, -(-limit // batch_size) if limit else None)
        params = {**state.params, **state.ema}
        values = per_example(
            lambda batch, key: self._evaluate(params, state.extra, batch, key),
            (sharding.put(self._mesh, batch) for batch in batches),
            jax.random.key(config["seed"]),
        )
        metrics = {f"{split}/{name}": value for name, value in values.items()}
        self._writer.scalars(step, metrics)
        return metrics

    def keep_best(self, state: TrainState, step: int, metrics: Mapping[str, float]) -> None:
        """Saves the state in best/ if the chosen metric is the best so far."""
        if self._best is None:
            return
        setting = self._config["checkpoint"]
        name = setting["best"]
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
        images = draw(
            self._family.sample,
            {**state.params, **state.ema},
            state.extra,
            self._mesh,
            seed=self._config["seed"],
            count=log["samples"],
            labels=range(classes) if classes else None,
        )
        picture = grid(np.concatenate(list(images)), columns=grid_columns(log["samples"], classes))
        if jax.process_index() == 0:
            save_image(picture, self._workdir / "samples" / f"{step:08d}.png")
        self._writer.image(step, "samples", picture)

    def close(self) -> None:
        if self._best is not None:
            self._best.close()
