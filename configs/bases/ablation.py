"""What every ablation has: a base experiment, what differs from it, seeds, what is compared."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict


def ablation(
    base: ConfigDict,
    variants: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    grid: Mapping[str, Sequence[Any]] | None = None,
    metrics: Sequence[str],
    seeds: int | Iterable[int] = 5,
    most_runs: int = 200,
) -> ConfigDict:
    """The config of an ablation, for --mode=ablate.

    Args:
      base: the experiment's config; `--config.base.train.steps=...` changes it for all.
      variants: {name: {"part.key": value}}; a value that is a mapping replaces the whole part.
      grid: {"part.key": values}: every combination is a variant too, "prediction=v+process=flow".
      metrics: names of the rows of an evaluation (fd_digits), or of what a run writes (test/loss,
        model/loss). The first is drawn beside cost.
      seeds: so many, from 0 on, or which.
      most_runs: more of them, variants times seeds, are refused.
    """
    found = {name: tuple(settings.items()) for name, settings in (variants or {}).items()}
    if grid:
        words = [key.removesuffix(".name").rpartition(".")[2] for key in grid]
        words = list(grid) if len(set(words)) < len(words) else words
        for values in itertools.product(*grid.values()):
            name = "+".join(f"{w}={_word(v)}" for w, v in zip(words, values, strict=True))
            found[name] = tuple(zip(grid, values, strict=True))
    config = ConfigDict()
    config.family = "ablation"
    config.base = base
    config.variants = tuple(found.items())  # in their order, which a ConfigDict would lose
    config.seeds = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    config.metrics = tuple(metrics)
    config.most_runs = most_runs
    return config.lock()


def _word(value: Any) -> str:
    """A value as part of a name, and of a folder's."""
    if isinstance(value, Mapping):
        value = value["name"]
    return str(value).replace(" ", "").replace("/", "-") if value != "" else "none"
