"""A family that draws the images it is asked to, counting them, and an evaluator of it."""

import jax
import jax.numpy as jnp
import toys

from aigc_jax.data import datasets
from aigc_jax.family import Drawing, Field, Variables
from aigc_jax.runs import evaluate, evaluations
from aigc_jax.runs.examples import RealData
from aigc_jax.training import sharding

DATA = RealData("digits", datasets.load("digits"), "train", "test", 40)
SETTINGS = {
    "network": "digits",
    "weights": None,
    "lpips": "",
    "lpips_weights": None,
    "count": 40,
    "reference_split": "train",
    "statistics": "",
    "manifold_count": 1000,
    "likelihood_count": 80,
    "at_end": False,
    "examples": 0,
    "scheduled_count": 0,
}
NOTHING = Variables({}, {})


def evaluator(
    extractors, family, given, devices=1, batch_size=40, rebuild=None, data=DATA, **changes
):
    options = {"seed": 0, "sampling": {"prior": "normal"}} | {
        k: changes.pop(k) for k in ("seed", "sampling") if k in changes
    }
    return evaluate.Evaluator(
        evaluations.plan(given, SETTINGS | changes),
        family,
        data,
        sharding.make_mesh(jax.devices()[:devices]),
        rebuild=rebuild,
        extractors=extractors[devices],
        batch_size=batch_size,
        **options,
    )


def by_metric(rows):
    return {row.key: row for row in rows}


class Sampler:
    """A family of 8x8 images: noise about `level`, darker in places that depend on the label."""

    def __init__(self, level=0.0, spread=1.0, classes=0, prepares=False):
        self.drawn, self.prepared, self.rebuilt = 0, 0, []
        self._level, self._spread, self._classes, self._prepares = level, spread, classes, prepares

    def family(self, level=None, prepared_as="level"):
        level = self._level if level is None else level

        def start(variables, keys, cond):
            jax.debug.callback(self._count, len(keys))
            x = jax.vmap(lambda key: jax.random.normal(key, (8, 8, 1)))(keys)
            shade = cond["label"][:, None, None, None] / 10 if "label" in cond else 0.0
            return self._spread * x + level - shade

        def finish(variables, x):
            x = x + variables.prepared["level"] if self._prepares else x
            return jnp.clip(x, -1, 1)

        def prepare(variables, codes):
            self.prepared += 1
            return {"level": jnp.float32(0.1) + len(codes()["mean"]) * 0}

        conditions = {"label": Field("label", (), self._classes)} if self._classes else {}
        return toys.one_player()._replace(
            evaluate=lambda variables, batch, key: {"loss": batch["x"].mean((1, 2, 3))},
            drawing=Drawing(
                start,
                finish,
                conditions=conditions,
                prepare=prepare if self._prepares else None,
                prepared_as=prepared_as if self._prepares else "",
                fitted=self._prepares,
            ),
        )

    def rebuild(self, sampling):
        self.rebuilt.append(dict(sampling))
        return self.family(level=sampling["level"])

    def _count(self, n):
        self.drawn += int(n)

    def evaluator(self, extractors, given, **changes):
        sampling = {"level": self._level}
        made = self.family()
        return evaluator(
            extractors, made, given, sampling=sampling, rebuild=self.rebuild, **changes
        )
