"""Seeds of one experiment in one program, against as many runs one after the other, and one alone.

    PYTHONPATH=. python benchmarks/replicas.py --config=gan_mixture --seeds=8

Each is `launch.py --mode=ablate` in a process of its own, from its start to its report, with an
empty compilation cache: seconds of wall time, compilation, pictures and evaluations included.
Prints a line of JSON with the ratios.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

from aigc_jax.runs import environment

ROOT = pathlib.Path(__file__).resolve().parents[1]
CONFIG = """
from configs import {name}
from configs.bases.ablation import ablation

def get_config(variant=""):
    return ablation({name}.get_config(variant), seeds={seeds}, metrics=("test/loss",))
"""


def seconds(name: str, variant: str, seeds: int, replicas: str, settings: list[str]) -> float:
    """Of one ablation of a base alone."""
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder, "ablation.py")
        file.write_text(CONFIG.format(name=name, seeds=seeds))
        command = [
            sys.executable,
            "launch.py",
            "--mode=ablate",
            f"--config={file}:{variant}",
            f"--workdir={folder}/runs",
            f"--replicas={replicas}",
            *settings,
        ]
        environ = os.environ | {"JAX_COMPILATION_CACHE_DIR": f"{folder}/cache"}
        began = time.perf_counter()
        subprocess.run(command, cwd=ROOT, env=environ, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - began


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="gan_mixture", help="NAME or NAME:VARIANT")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--metric", default="discriminator/loss")
    parser.add_argument("--apart", action="store_true", help="also the runs one after the other")
    options, settings = parser.parse_known_args()
    name, _, variant = options.config.partition(":")
    given = (name, variant)
    settings.append(f"--config.metrics=('{options.metric}',)")
    found = {
        "one": seconds(*given, 1, "", settings),
        "together": seconds(*given, options.seeds, "vmap", settings),
    }
    if options.apart:
        found["apart"] = seconds(*given, options.seeds, "", settings)
    ratios = {"together / one": found["together"] / found["one"]}
    if options.apart:
        ratios["apart / together"] = found["apart"] / found["together"]
    about = {"config": options.config, "seeds": options.seeds, **environment.describe()}
    print(json.dumps({**about, "seconds": found, **ratios}))


if __name__ == "__main__":
    main()
