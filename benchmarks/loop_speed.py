"""Steps a second of whole runs, in this checkout and in another one, which take turns.

    git worktree add ../before COMMIT
    PYTHONPATH=. python benchmarks/loop_speed.py --before=../before [--configs=vae_digits,...]

Nothing is evaluated, drawn or saved before a run's end, so what is measured is the training loop:
the data's order and way to the devices, the steps, the metrics' way back. Of each run the best row
of its log counts, since other work on the machine only slows it. --set=KEY=VALUE goes to the runs
of this checkout alone, such as train.steps_per_dispatch=20.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

from benchmarks import common

QUIET = {
    "log.eval_every": 0,
    "log.sample_every": 0,
    "log.first_sample": 0,
    "checkpoint.every": 0,
    "checkpoint.best": "",
    "evaluation.at_end": False,
}


def steps_per_second(tree: pathlib.Path, name: str, steps: int, settings: list[str]) -> float:
    """Of a run of `steps` steps in a checkout."""
    every = steps // 10
    quiet = [f"--config.{key}={value}" for key, value in QUIET.items()]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "launch.py", f"--config=configs/{name}.py"]
        command += [f"--workdir={folder}/run", f"--config.train.steps={steps}", *quiet]
        command += [f"--config.log.every={every}", *(f"--config.{item}" for item in settings)]
        subprocess.run(command, cwd=tree, check=True, stdout=subprocess.DEVNULL)
        rows = (pathlib.Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
        size = json.loads((pathlib.Path(folder) / "run" / "config.json").read_text())
    images = [json.loads(row).get("time/images_per_second", 0.0) for row in rows]
    return max(images) / size["train"]["batch_size"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--before", type=pathlib.Path, required=True)
    parser.add_argument("--configs", default="vae_digits,gan_digits,ddpm_digits")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[])
    options = parser.parse_args()
    here = pathlib.Path(__file__).parent.parent
    print("| config | before, steps/s | now | ratio |\n|---|---|---|---|")
    for name in options.configs.split(","):
        pairs = [
            (
                steps_per_second(options.before, name, options.steps, []),
                steps_per_second(here, name, options.steps, options.set),
            )
            for _ in range(options.rounds)
        ]
        before, now = (statistics.median(side) for side in zip(*pairs, strict=True))
        ratio = statistics.median(b / a for a, b in pairs)
        print(f"| {name} | {before:.0f} | {now:.0f} | {ratio:.2f} |", flush=True)
    print(common.machine())


if __name__ == "__main__":
    main()
