"""What an evaluation says: rows that state their own protocol, as a table and as JSON."""

import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from aigc_jax import files

# Settings of sampling that a row states, and where each of them changes nothing.
NEUTRAL = {
    "guidance": 1.0,
    "guidance_rescale": 0.0,
    "guidance_low": 0.0,
    "guidance_high": 0.0,
    "autoguidance": 1.0,
    "weak": "",
    "truncation": 0.0,
    "temperature": 1.0,
    "eta": 0.0,
}


class Row(NamedTuple):
    """One result and all that it depends on.

    Attributes:
      metric, value: a value that is not finite is written as null in JSON.
      n: images that it was computed from; 0 of a metric that was left out, as the note says.
      error: its standard error, or standard deviation where the metric's own paper gives that.
      real: the same metric of held-out real images, n of them where there are as many: what a
        perfect model would get. None where it has no meaning.
      network: of the features; empty for a metric without.
      reference: data set, split and number of images compared with.
      sampler, steps: how samples were drawn; empty for a metric of real data.
      weights: "EMA" or "raw".
      seed: of the samples.
      note: what a reader should know of this value.
      evaluation: the name in `config.evaluations` that this row is of; empty where that is the
        metric's own.
      calls: how often a sample asked a network (NFE); None where nobody counts.
    """

    metric: str
    value: float
    n: int
    error: float | None = None
    real: float | None = None
    network: str = ""
    reference: str = ""
    sampler: str = ""
    steps: int | None = None
    weights: str = ""
    seed: int | None = None
    note: str = ""
    evaluation: str = ""
    calls: int | None = None

    @property
    def key(self) -> str:
        """What tells this row from all others of a run: "fid", or "fid_ddim50/fid"."""
        return f"{self.evaluation}/{self.metric}" if self.evaluation else self.metric


def table(rows: Sequence[Row], published: Iterable[Sequence[Any]] = ()) -> str:
    """Rows as aligned text, beside the published (key, value, source) of the same `Row.key`."""
    published = list(published)
    headings = ["evaluation", "metric", "value", "real", "published", "n", "network", "reference"]
    lines, sources = [[*headings, "samples of"]], []
    for row in rows:
        known = [p for p in published if p[0] == row.key]
        sources += [f"{p[0]} {number(p[1])}: {p[2]}" for p in known]
        error = "" if row.error is None else f" ± {number(row.error)}"
        drawn = [row.sampler, "" if row.steps is None else f"{row.steps} steps"]
        drawn += ["" if row.calls is None else f"NFE {row.calls}", row.weights]
        drawn.append("" if row.seed is None else f"seed {row.seed}")
        lines.append(
            [
                row.evaluation,
                row.metric,
                number(row.value) + error if row.n else "—",
                "" if row.real is None else number(row.real),
                " / ".join(number(p[1]) for p in known),
                str(row.n),
                row.network,
                row.reference,
                ", ".join(filter(None, drawn)) + (f" ({row.note})" if row.note else ""),
            ]
        )
    kept = [i for i in range(len(lines[0])) if any(line[i] for line in lines[1:])]
    widths = [max(len(line[i]) for line in lines) for i in kept]
    text = "\n".join(
        "  ".join(line[i].ljust(w) for i, w in zip(kept, widths, strict=True)).rstrip()
        for line in lines
    )
    return text + "".join(f"\npublished: {source}" for source in sources)


def number(value: float) -> str:
    """Four significant digits."""
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"


def protocol(sampling: Mapping[str, Any], *, calls: int, weights: str, seed: int) -> dict[str, Any]:
    """What every row states: how samples are drawn, with which parameters, from which seed."""
    words = [sampling.get("sampler", sampling.get("prior", ""))]
    for name, neutral in NEUTRAL.items():
        if sampling.get(name, neutral) not in (neutral, None):
            words.append(f"{name} {sampling[name]}")
    return {
        "sampler": " ".join(filter(None, words)),
        "steps": sampling.get("steps"),
        "calls": calls or None,
        "weights": weights,
        "seed": seed,
    }


def write(
    path: pathlib.Path,
    rows: Sequence[Row],
    *,
    step: int,
    scheduled: bool,
    pictures: Mapping[str, str] | None = None,
) -> None:
    """Writes an evaluation as JSON, whole or not at all; `pictures` are {caption: path}."""

    def finite(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    content = {
        "step": step,
        "scheduled": scheduled,
        "rows": [{k: finite(v) for k, v in row._asdict().items()} for row in rows],
        "pictures": dict(pictures or {}),
    }
    files.write_json(path, content)
