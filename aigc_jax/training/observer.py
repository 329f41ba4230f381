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
from aigc_jax.data import augment, mixtures
from aigc_jax.data.datasets import Dataset
from aigc_jax.evaluation import diversity, evaluators, features, results
from aigc_jax.family import Family
from aigc_jax.sampling import draw
from aigc_jax.training import rundir, sharding
from aigc_jax.training.checkpoint import Checkpoints
from aigc_jax.training.scatter import scatter
from aigc_jax.training.step import TrainState
from aigc_jax.training.writers import Writer, grid, grid_columns, save_image

BETTER = {"min": operator.lt, "max": operator.gt}
COLLAPSED = 0.3  # of test images' mean distance, below which samples are said to be nearly alike
COLUMNS = 10  # test images shown restored
PAIRS = 500  # of images whose distance is taken


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
        self._judged = [
            name for name in config["evaluations"] if count and name in evaluators.OF_SAMPLES
        ]
        # Opened before the first step: weights that are missing are missed at once.
        self._eye = judging.open_eye(config, dataset, mesh) if self._judged else None

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
        if self._judged:
            metrics |= {f"eval/{row.metric}": row.value for row in self._judge(state, step, params)}
        self._writer.scalars(step, metrics)
        return metrics

    def _judge(self, state: TrainState, step: int, params: Any) -> list[results.Row]:
        """Metrics of `evaluation.scheduled_count` samples."""
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
        weights = "EMA" if self._family.averaged else "raw"
        protocol = judging.protocol(config, weights=weights, seed=config["seed"])
        try:
            rows = evaluators.run(subject, self._judged, real=False, **protocol)
        except ValueError as error:  # a young model may draw what no metric is defined for
            self._writer.say(f"step {step}: no metrics of samples: {error}")
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
        if name.startswith("eval/") and self._judged and name not in metrics:
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
        """A picture of samples from the same noise and labels each time, and how much they differ.

        A grid of images, with a warning in words where they are nearly alike; or a scatter plot of
        points in the plane.
        """
        if self._family.sample is None:  # there is only what it makes of test images
            self._restored(state, step)
            return
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
        images = np.concatenate(list(images))
        real = self._real(len(images))
        if self._dataset.spec.image_shape == mixtures.SHAPE:
            picture = scatter(images, real)
        else:
            picture = grid(images, columns=grid_columns(log["samples"], classes))
        if jax.process_index() == 0:
            save_image(picture, self._workdir / "samples" / f"{step:08d}.png")
        self._writer.image(step, "samples", picture)
        self._diversity(step, images, real)
        if self._family.restore:
            self._restored(state, step)

    def _real(self, count: int) -> np.ndarray:
        """As many test images in [-1, 1], or points: always the same; fewer where there are few."""
        source = self._dataset.sources[self._config["data"]["test_split"]]
        return augment.to_float(source.fetch(features.some(len(source), count))["image"])

    def _diversity(self, step: int, images: np.ndarray, real: np.ndarray) -> None:
        """How far apart samples are in pixels, in terms of how far test images are."""
        if min(len(images), len(real)) < 2 or not np.isfinite(images).all():
            return
        flat = (x.reshape(len(x), -1) for x in (images, real))
        share = diversity.relative(*flat, pairs=PAIRS)
        if not math.isfinite(share):  # test images that are all the same
            return
        self._writer.scalars(step, {"samples/diversity": share})
        if share < COLLAPSED:
            self._writer.say(
                f"step {step}: samples differ {share:.2g} times as much as test images do. Early "
                "in training that passes; where it stays it is mode collapse. For a GAN try the "
                "relativistic loss with penalty r1_r2, a lower learning rate, a larger batch, and "
                "augmentation where images are few"
            )

    def _restored(self, state: TrainState, step: int) -> None:
        """Test images, and below each what the model is given of them and makes of that.

        Where a pair comes with an original of its own, that stands above it.
        """
        params, key = {**state.params, **state.ema}, jax.random.key(self._config["seed"])
        batches = judging.examples(self._config, self._dataset, self._mesh, COLUMNS)
        strips = []
        for i, batch in enumerate(batches):
            pairs = self._restore(params, state.extra, batch, jax.random.fold_in(key, i))
            rows, words = [batch["image"]], ["test images"]
            for name in sorted(pairs, key=evaluators.natural):
                given, restored, *own = pairs[name]
                rows += [*own, given, restored]
                words += [f"original at {name}"] * len(own)
                words += [f"given at {name}", f"restored at {name}"]
            mask, *rows = sharding.fetch([batch["mask"], *rows])
            strips.append([row[mask > 0] for row in rows])
        rows = [np.concatenate(parts)[:COLUMNS] for parts in zip(*strips, strict=True)]
        picture = grid(np.concatenate(rows), columns=len(rows[0]))
        if jax.process_index() == 0:
            folder = self._workdir / "restored"
            save_image(picture, folder / f"{step:08d}.png")
            rundir.write(folder, f"{step:08d}.json", {"caption": "Rows: " + ", ".join(words)})
        self._writer.image(step, "restored", picture)

    def close(self) -> None:
        if self._best is not None:
            self._best.close()
