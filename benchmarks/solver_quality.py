"""The distance of samples against network calls, for every solver from one checkpoint.

    PYTHONPATH=. python benchmarks/solver_quality.py --workdir=runs/edm_digits \
        [--calls=5,9,17,35,65] [--count=2000] [--output=docs/solver_quality.png]

Prints a table and draws a plot. A solver makes as many steps as the number of calls allows: Heun's
method takes two a step but for the last.
"""

import argparse
import pathlib
from typing import Any

SOLVERS = {  # {solver: its settings}
    "euler": {},
    "euler_ancestral": {},
    "heun": {},
    "dpmpp_2m": {},
    "dpmpp_3m": {},
    "dpmpp_2m_sde": {},
    "deis": {},
    "unipc": {},
    "predictor_corrector": {},
}
TWICE = ("heun", "flow_heun", "predictor_corrector")  # calls of a step


def evaluations(calls: list[int], count: int) -> dict[str, dict[str, Any]]:
    """{"heun_18": an evaluation's settings} for every solver at about each number of calls."""
    found = {}
    for solver, own in SOLVERS.items():
        for n in calls:
            steps = (n + 1) // 2 if solver in TWICE else n
            sampling = {"sampler": solver, "steps": steps, **own}
            found[f"{solver}_{steps}"] = {"metric": "fid", "sampling": sampling, "count": count}
    return found


def draw(curves: dict[str, list[tuple[int, float]]], real: float, path: pathlib.Path) -> None:
    """Distance against calls, both on a logarithmic scale, a line for each solver."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 5), dpi=110)
    for solver, points in curves.items():
        axes.plot(*zip(*sorted(points), strict=True), marker="o", markersize=4, label=solver)
    axes.axhline(real, color="black", linestyle=":", label="held-out real digits")
    axes.set(xscale="log", yscale="log", xlabel="network calls a sample", ylabel="fd_digits")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3, which="both")
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--calls", default="5,9,17,35,65")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--output", default="solver_quality.png")
    options = parser.parse_args()

    from aigc_jax.commands import evaluate
    from aigc_jax.runs import folder

    config = folder.read(pathlib.Path(options.workdir), "config.json")
    calls = [int(n) for n in options.calls.split(",")]
    config["evaluations"] = evaluations(calls, options.count)
    rows = [r for r in evaluate.run(options.workdir, config, batch_size=500) if r.evaluation]
    curves: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        solver = row.evaluation.rpartition("_")[0]
        curves.setdefault(solver, []).append((row.calls, row.value))
    draw(curves, rows[0].real, pathlib.Path(options.output))
    for solver, points in curves.items():
        print(f"| {solver} | " + " | ".join(f"{v:.3g} ({n})" for n, v in sorted(points)) + " |")
    print(options.output)


if __name__ == "__main__":
    main()
