"""One command an experiment.

    python launch.py --config=configs/ddpm_digits.py
    python launch.py --config=configs/ddpm_cifar.py:cosine+v --config.network.width=64
    python launch.py --mode=sample --workdir=runs/ddpm_digits --num=100
    python launch.py --mode=evaluate --workdir=runs/ddpm_digits --num=500
    python launch.py --mode=denoise --workdir=runs/dvae_mnist --input=FOLDER
    python launch.py --mode=translate --workdir=runs/cyclegan_maps --input=FOLDER --direction=a2b
    python launch.py --mode=export --workdir=runs/ddpm_digits --output=exported

Training again in the same --workdir resumes; the other modes need only --workdir.
"""

import difflib
import os
import pathlib
import runpy
import shlex
import sys
import traceback

from absl import app, flags, logging
from ml_collections import config_flags

HERE = pathlib.Path(__file__).resolve().parent

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The experiment: configs/NAME.py, or configs/NAME.py:variant+variant."
)
MODES = ["train", "sample", "evaluate", "report", "denoise", "translate", "encode", "export"]
MODE = flags.DEFINE_enum("mode", "train", MODES, "What to do.")
WORKDIR = flags.DEFINE_string("workdir", None, "Default: runs/NAME[-variant].")
STEP = flags.DEFINE_integer("step", None, "Checkpoint to take; default: the newest.")
INPUT = flags.DEFINE_string("input", None, "denoise, translate: a folder or .zip of images.")
DIRECTION = flags.DEFINE_enum("direction", "a2b", ["a2b", "b2a"], "translate: to which domain.")
OUTPUT = flags.DEFINE_string("output", None, "Folder to write to; default: in the workdir.")

NUM = flags.DEFINE_integer("num", None, "How many samples; 64, or the evaluation's.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Sample i depends on (seed, i) only.")
LABELS = flags.DEFINE_list("labels", None, "sample: classes to draw, in turn, such as 3,7.")
SAMPLER = flags.DEFINE_string("sampler", None, "Of samples: ancestral or ddim.")
STEPS = flags.DEFINE_integer("steps", None, "Of samples: steps of the sampler.", lower_bound=1)
GUIDANCE = flags.DEFINE_float("guidance", None, "Of samples: strength of the label; 1 is plain.")
BATCH = flags.DEFINE_integer("batch", 64, "Samples at a time.", lower_bound=1)
RAW = flags.DEFINE_bool("raw", False, "Samples of the parameters themselves, not their EMA.")
SAVE = flags.DEFINE_enum("save", "", ["", "png", "npz"], "sample: also every image.")
FRAMES = flags.DEFINE_integer("frames", 0, "sample: also a strip of so many.", lower_bound=0)
PICTURES = flags.DEFINE_bool("pictures", False, "sample: also interpolations, traversals.")
GIF = flags.DEFINE_bool("gif", False, "sample: the frames as an animation.")

DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Several hosts, found by the cluster.")
COORDINATOR = flags.DEFINE_string("coordinator", None, "Several hosts: host:port of the first.")
PROCESSES = flags.DEFINE_integer("processes", None, "Several hosts: how many processes.")
PROCESS = flags.DEFINE_integer("process", None, "Several hosts: number of this one.")


def main(argv: list[str]) -> None:
    """Runs the mode."""
    if len(argv) > 1:
        raise ValueError(f"what is {argv[1]!r}? Settings are given as --name=value")
    config = CONFIG.value
    if config is None and (MODE.value == "train" or WORKDIR.value is None):
        raise ValueError("name the experiment, as in --config=configs/ddpm_digits.py")
    workdir = pathlib.Path(WORKDIR.value or default_workdir(flags.FLAGS["config"].config_filename))

    # A second start, and --mode=sample, find what the first one compiled.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(HERE / ".cache" / "jax"))
    import jax

    logging.set_verbosity(logging.WARNING)  # absl.app turns on what libraries tell each other
    if DISTRIBUTED.value or COORDINATOR.value:
        jax.distributed.initialize(COORDINATOR.value, PROCESSES.value, PROCESS.value)
    from aigc_jax import experiment

    drawing = {
        "seed": SEED.value,
        "settings": {
            "sampler": SAMPLER.value,
            "steps": STEPS.value,
            "guidance": GUIDANCE.value,
        },
        "batch_size": BATCH.value,
        "step": STEP.value,
        "raw": RAW.value,
    }
    if MODE.value == "train":
        experiment.train(config, workdir, origin())
    elif MODE.value == "sample":
        experiment.sample(
            workdir,
            config,
            count=64 if NUM.value is None else NUM.value,
            labels=as_labels(LABELS.value),
            frames=FRAMES.value,
            gif=GIF.value,
            pictures=PICTURES.value,
            save=SAVE.value,
            output=OUTPUT.value,
            **drawing,
        )
    elif MODE.value == "evaluate":
        experiment.evaluate(workdir, config, count=NUM.value, **drawing)
    elif MODE.value == "report":
        experiment.make_report(workdir)
    elif MODE.value in ("denoise", "translate"):
        if not INPUT.value:
            raise ValueError(f"name the images to {MODE.value}, as in --input=FOLDER")
        what = {"output": OUTPUT.value, "step": STEP.value, "raw": RAW.value}
        what["batch_size"] = BATCH.value
        if MODE.value == "denoise":
            experiment.denoise(workdir, INPUT.value, config, **what)
        else:
            experiment.translate(workdir, INPUT.value, config, direction=DIRECTION.value, **what)
    elif MODE.value == "encode":
        experiment.encode(workdir, config, output=OUTPUT.value, step=STEP.value, raw=RAW.value)
    else:
        output = OUTPUT.value or workdir / "diffusers"
        experiment.export(workdir, output, config, step=STEP.value)


def origin() -> dict:
    """What a run's report says of its command, and the config that its own differs from."""
    file = flags.FLAGS["config"].config_filename
    base = runpy.run_path(file.partition(":")[0])["get_config"]()
    return {
        "config": file,
        "command": shlex.join(["python", *sys.argv]),
        "base": base.to_dict(),
    }


def as_labels(words: list[str] | None) -> list[int] | None:
    """["3", "7"] -> [3, 7]; None without any."""
    try:
        return [int(word) for word in words] if words else None
    except ValueError:
        raise ValueError(f"--labels are numbers such as 3,7, not {','.join(words)}") from None


def default_workdir(config_file: str) -> str:
    """configs/NAME.py:variant -> runs/NAME-variant."""
    name, _, variant = pathlib.Path(config_file).name.partition(":")
    return os.path.join("runs", name.removesuffix(".py") + (f"-{variant}" if variant else ""))


def parse(argv: list[str]) -> list[str]:
    """absl's parsing, with every mistake in a flag or a config as a one-line error."""
    try:
        rest = flags.FLAGS(argv)
        if CONFIG.value is not None:
            _ = CONFIG.value.family  # a file that failed to load says so only when it is read
        return rest
    except (AttributeError, KeyError) as error:  # an unknown key; ml_collections quotes twice
        wrong, _, hint = str(error).strip("\"'").replace("\\'", "").partition("\\n")
        message = f"the config has no key {wrong}. {hint}"
    except OSError:
        message = missing_config(flags.FLAGS["config"].config_filename.partition(":")[0])
    except (flags.Error, LookupError, TypeError, ValueError) as error:
        message = str(error)
    raise SystemExit(f"launch.py: {message}")


def missing_config(path: str) -> str:
    """What to say of a config file that is not there."""
    have = sorted(p.stem for p in (HERE / "configs").glob("[a-z]*.py") if p.stem != "common")
    near = difflib.get_close_matches(pathlib.Path(path).stem, have) or have
    return f"no config file {path}; configs/ has {', '.join(near)}"


def run(argv: list[str]) -> None:
    """`main`, with the errors that we raise on purpose in one line instead of a traceback."""
    try:
        main(argv)
    except (ValueError, RuntimeError, OSError) as error:
        raised_in = pathlib.Path(traceback.extract_tb(error.__traceback__)[-1].filename).resolve()
        if HERE not in raised_in.parents or "site-packages" in raised_in.parts:
            raise
        raise SystemExit(f"launch.py: {error}") from None


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))  # configs import each other
    app.run(run, flags_parser=parse)
