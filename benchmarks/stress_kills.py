"""Kills training at random moments, again and again, and compares what comes out of it.

    python benchmarks/stress_kills.py --kills=300

For each family and number of devices one run is trained without a break, and others are killed
(SIGKILL) and started again until they are done. Every row of metrics, every picture and the digest
of every leaf of every checkpoint that is left must be the same. Prints the counts of kills, of
those within a save, of tracebacks, hangs and differences.
"""

import argparse
import json
import pathlib
import random
import shutil
import tempfile
import time
from collections import Counter

import forks
from common import machine

# {family: config, what of the test data tells its best checkpoint, settings that make it small}.
# A GAN has no loss that tells its best.
FAMILIES = {
    "diffusion": (
        "configs/ddpm_digits.py:smoke",
        "test/loss",
        "--config.diffusion.process.timesteps=4",
        "--config.sampling.steps=2",
    ),
    "vae": ("configs/vae_digits.py:smoke", "test/neg_elbo"),
    "gan": ("configs/gan_digits.py:smoke", ""),
}
STEPS, KEPT = 12, 3
SETTINGS = (
    f"--config.train.steps={STEPS}",
    "--config.optimizer.schedule=constant",
    "--config.log.every=1",
    "--config.log.eval_every=3",
    "--config.log.sample_every=4",
    "--config.log.samples=16",
    "--config.checkpoint.every=2",
    f"--config.checkpoint.keep={KEPT}",
    # As many everywhere as a batch: one program of each kind.
    "--config.evaluation.examples=16",
    "--config.evaluation.count=16",
    "--config.evaluation.scheduled_count=16",
    "--config.evaluation.likelihood_count=16",
    "--config.evaluation.at_end=False",
)


def trained(workdir: pathlib.Path, family: str, devices: int, **more: object) -> forks.Outcome:
    """One start of a family's run."""
    config, best, *settings = FAMILIES[family]
    return forks.run(
        f"--config={config}",
        *settings,
        *SETTINGS,
        f"--config.checkpoint.best={best}",
        f"--workdir={workdir}",
        devices=devices,
        timeout=120,
        **more,
    )


def with_few_arrays() -> None:
    """Makes the UNet two convolutions: a start of the whole takes four times as long.

    Most of it goes to Python's tracing of layers that this stress has no use for.
    """
    import jax
    from flax import linen as nn

    from aigc_jax.diffusion import family
    from aigc_jax.networks.unet import UNet

    class TwoConvolutions(UNet):
        @nn.compact
        def __call__(
            self, x: jax.Array, t: jax.Array, label: None = None, *, train: bool = False
        ) -> jax.Array:
            h = nn.Conv(self.width, (3, 3))(x) + t[:, None, None, None] / 1000
            return nn.Conv(self.out_channels, (3, 3))(nn.silu(h))

    family.NETWORKS["unet"] = TwoConvolutions


def made(workdir: pathlib.Path) -> dict[str, object]:
    """All that a run's result is, without times.

    Of checkpoints the newest: a kill while the oldest is removed after a save leaves one more.
    """
    found: dict[str, object] = {}
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    found["metrics"] = [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]
    older = []
    for folder, kept in (("checkpoints", KEPT), ("best", 1)):
        steps = sorted(path.name for path in (workdir / folder).glob("*"))
        older += [f"{folder}/{step}/" for step in steps[:-kept]]
    for path in sorted(workdir.rglob("*")):
        name = str(path.relative_to(workdir))
        if name.startswith(tuple(older)):
            continue
        if path.suffix == ".png":
            found[name] = path.read_bytes()
        if path.parent.name == "about" and "damaged" not in name:
            text = path.read_text()
            if text.startswith("{") and "digest" in text:
                found[name] = json.loads(text)["digest"]
    return found


def stress(
    family: str, devices: int, kills: int, rng: random.Random, root: pathlib.Path
) -> Counter:
    """Kills a family's runs so many times; counts what went wrong."""
    counts: Counter = Counter()
    whole = root / f"{family}-{devices}"
    trained(whole, family, devices)  # compiles, and so takes longer
    shutil.rmtree(whole)
    outcome = trained(whole, family, devices)
    if outcome.code != 0:
        raise SystemExit(f"{family} does not train:\n{outcome.out}\n{outcome.err}")
    expected, number = made(whole), 0
    while counts["kills"] < kills:
        workdir, number = root / f"{family}-{devices}-{number}", number + 1
        for _ in range(100):
            enough = counts["kills"] >= kills
            after = None if enough else rng.uniform(0.0, 1.05 * outcome.seconds)
            found = trained(workdir, family, devices, kill_after=after)
            text = found.out + found.err
            counts["tracebacks"] += "Traceback" in text
            counts["hangs"] += found.code is None
            counts["errors"] += found.code not in (0, -9, None)
            if found.code not in (0, -9):
                print(f"{workdir}: exit code {found.code}\n{text[-2000:]}", flush=True)
            if found.code == -9:
                counts["kills"] += 1
                halves = list(workdir.glob("*/*orbax-checkpoint-tmp*"))
                for folder in ("checkpoints", "best"):
                    counts[f"within a save to {folder}/"] += any(
                        path.parent.name == folder for path in halves
                    )
            if found.code == 0:
                break
        result = made(workdir)
        counts["runs"] += 1
        wrong = [k for k in expected.keys() | result.keys() if expected.get(k) != result.get(k)]
        counts["differences"] += len(wrong)
        if wrong:
            print(f"{workdir}: other {', '.join(sorted(wrong)[:5])}", flush=True)
        else:
            shutil.rmtree(workdir)
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=300, help="of each family, all devices")
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--families", nargs="+", default=list(FAMILIES))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    forks.prepare()
    with_few_arrays()
    rng, root = random.Random(options.seed), pathlib.Path(tempfile.mkdtemp(prefix="stress-"))
    print(f"{machine()}; runs in {root}", flush=True)
    for family in options.families:
        for devices in options.devices:
            began = time.monotonic()
            counts = stress(family, devices, -(-options.kills // len(options.devices)), rng, root)
            listed = ", ".join(f"{name} {count}" for name, count in counts.items())
            minutes = (time.monotonic() - began) / 60
            print(f"{family}, {devices} device(s): {listed} ({minutes:.1f} min)", flush=True)


if __name__ == "__main__":
    main()
