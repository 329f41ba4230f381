"""What each GAN loss misses of a ring of 8 modes and a grid of 25, as a table.

    PYTHONPATH=. python benchmarks/mixture_losses.py [--seeds=2] [--steps=10000] [--only=r1,hinge]

Trains configs/gan_mixture.py with each of its losses and evaluates 100,000 points of the average's:
modes hit, share of points within three deviations of one, and the KL to the uniform of the modes of
those points, and of the modes that all points are nearest to; in brackets, that last one of the
generator as it was last, without its average.
"""

import argparse
import tempfile
import time

from benchmarks import common

PLAIN = "relativistic"  # the config's own, with R1 and R2
LOSSES = ("minimax", "non_saturating", "lsgan", "hinge", "dragan", "wgan_gp", "r1", PLAIN)
METRICS = ("mixture_modes", "high_quality", "reverse_kl", "reverse_kl_all", "raw")


def measure(mixture: str, loss: str, seed: int, steps: int) -> tuple[dict[str, float], float]:
    """{metric: value} of one run, "raw" of the generator without average, and its seconds."""
    from ml_collections import ConfigDict

    from aigc_jax.commands import evaluate, train
    from configs import gan_mixture

    config = gan_mixture.get_config("+".join(v for v in (mixture, loss) if v and v != PLAIN))
    with config.unlocked():
        config.update_from_flattened_dict(
            {
                "seed": seed,
                "train.steps": steps,
                "log.eval_every": 0,
                "log.sample_every": 0,
                "evaluation.scheduled_count": 0,
                "evaluation.at_end": False,
            }
        )
        config.evaluations = ConfigDict({"mixture": {}})
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        train.run(config, folder)
        seconds = time.perf_counter() - start
        rows, raw = (
            evaluate.run(folder, count=100_000, batch_size=10_000, raw=raw) for raw in (False, True)
        )
    last = {row.metric: row.value for row in raw}["reverse_kl_all"]
    return {row.metric: row.value for row in rows} | {"raw": last}, seconds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    chosen = options.only.split(",") if options.only else LOSSES
    table = [
        "| loss | ring: modes / % in them / KL / KL of all (raw) | grid | seconds |",
        "|---|---|---|---|",
    ]
    for loss in chosen:
        cells, took = [], []
        for mixture in ("", "grid"):
            runs = [measure(mixture, loss, seed, options.steps) for seed in range(options.seeds)]
            modes, quality, kl, of_all, raw = (
                [found[name] for found, _ in runs] for name in METRICS
            )
            took += [seconds for _, seconds in runs]
            cells.append(
                f"{', '.join(f'{m:.0f}' for m in modes)} / "
                f"{', '.join(f'{100 * q:.0f}' for q in quality)} / "
                f"{', '.join(f'{k:.3f}' for k in kl)} / "
                f"{', '.join(f'{k:.3f}' for k in of_all)} "
                f"({', '.join(f'{k:.3f}' for k in raw)})"
            )
        spread = f"{min(took):.0f}-{max(took):.0f}"
        table.append(f"| {loss} | {' | '.join(cells)} | {spread} |")
        print(table[-1], flush=True)
    import jax

    print("\n".join(table))
    print(f"{common.machine()}, jax {jax.__version__}")


if __name__ == "__main__":
    main()
