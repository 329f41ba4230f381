"""One command an experiment.

    python launch.py --config=configs/ddpm_digits.py
    python launch.py --config=configs/ddpm_cifar.py:cosine+v --config.network.width=64
    python launch.py --config=configs/ddpm_digits.py --profile=100:10
    python launch.py --mode=sample --workdir=runs/ddpm_digits --num=100
    python launch.py --mode=evaluate --workdir=runs/ddpm_digits --num=500
    python launch.py --mode=denoise --workdir=runs/dvae_mnist --input=FOLDER
    python launch.py --mode=translate --workdir=runs/cyclegan_maps --input=FOLDER --direction=a2b
    python launch.py --mode=edit --workdir=runs/ddpm_digits --edit=vary --input=FOLDER
    python launch.py --mode=export --workdir=runs/ddpm_digits --output=exported
    python launch.py --mode=ema --workdir=runs/ddpm_digits --sigma-rel=0.07
    python launch.py --mode=plan --config=configs/ddpm_cifar.py:bf16 --topology=v5e:4x4
    python launch.py --mode=ablate --config=configs/ablations/gan_mixture.py
    python launch.py --mode=configs

Training again in the same --workdir resumes; the other modes need only --workdir.
"""

import argparse
import ast
import difflib
import importlib
import json
import os
import pathlib
import re
import runpy
import shlex
import sys
import textwrap
from typing import Any, NamedTuple, NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from aigc_jax import files
from aigc_jax.commands import boundary, hosts
from aigc_jax.errors import SettingError

HERE = pathlib.Path(__file__).resolve().parent

# Imported only when chosen: JAX alone takes a second.
COMMANDS = {
    "train": "aigc_jax.commands.train",
    "sample": "aigc_jax.commands.sample",
    "evaluate": "aigc_jax.commands.evaluate",
    "report": "aigc_jax.commands.report",
    "denoise": "aigc_jax.commands.denoise",
    "translate": "aigc_jax.commands.translate",
    "encode": "aigc_jax.commands.encode",
    "edit": "aigc_jax.commands.edit",
    "export": "aigc_jax.commands.export",
    "ema": "aigc_jax.commands.ema",
    "plan": "aigc_jax.commands.plan",
    "ablate": "aigc_jax.commands.ablate",
    "configs": "aigc_jax.commands.configs",
}

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The experiment: configs/NAME.py, or configs/NAME.py:variant+variant."
)
MODE = flags.DEFINE_enum("mode", "train", list(COMMANDS), "The command.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; default: runs/NAME[-variant].")
DEBUG = flags.DEFINE_bool("debug", False, "Show where in the code an error was raised.")
COMMON = (CONFIG, MODE, WORKDIR, DEBUG)

# Commands of one process: what they write others have computed, or other machines share their work.
ALONE = ("report", "plan", "ablate", "configs")
# The flags of which each command takes those that its file names in FLAGS, and those of hosts.
OWN = {
    holder.name: holder
    for holder in (
        flags.DEFINE_integer("step", None, "Checkpoint to take; default: the newest."),
        flags.DEFINE_integer(
            "from_step",
            None,
            "Go on from the checkpoint of that step, also with another config or other data.",
            lower_bound=0,
        ),
        flags.DEFINE_string(
            "profile", None, "START:COUNT: trace so many steps, and say where their time goes."
        ),
        flags.DEFINE_bool(
            "best", False, "The checkpoint kept in best/ by checkpoint.best instead of the newest."
        ),
        flags.DEFINE_bool("raw", False, "The parameters themselves instead of their EMA."),
        flags.DEFINE_string(
            "ema", "", "Another average: a half-life of ema.others, or posthoc/SIGMA_REL."
        ),
        flags.DEFINE_float(
            "sigma_rel", None, "Relative width of an average to make of a run's snapshots."
        ),
        flags.DEFINE_list("sigma_rels", None, "Several relative widths, such as 0.05,0.1,0.2."),
        flags.DEFINE_string(
            "metric", "", "Judge averages of these widths by it, such as fd_digits; write none."
        ),
        flags.DEFINE_enum(
            "dtype", None, ["bfloat16", "float16", "float32"], "Precision to keep the weights in."
        ),
        flags.DEFINE_integer("batch", 64, "Examples at a time.", lower_bound=1),
        flags.DEFINE_string("output", None, "New folder to write to; default: in the workdir."),
        flags.DEFINE_integer(
            "num", None, "Number of samples; default: 64, or the evaluation's.", lower_bound=1
        ),
        flags.DEFINE_integer("seed", 0, "Sample i depends on (seed, i) only."),
        flags.DEFINE_list("labels", None, "Classes to draw, in turn: 3,7 or cat,dog."),
        flags.DEFINE_string("sampler", None, "Name of the sampler, such as ancestral or ddim."),
        flags.DEFINE_integer("steps", None, "Steps of the sampler.", lower_bound=1),
        flags.DEFINE_float("guidance", None, "Strength of the label; 1 is none added."),
        flags.DEFINE_float(
            "autoguidance", None, "Strength of the distance from a weaker model; 1 is none."
        ),
        flags.DEFINE_string(
            "weak", None, "That weaker model: a run of the same network, or RUN@STEP."
        ),
        flags.DEFINE_enum("save", "", ["", "png", "npz"], "Also write every sample."),
        flags.DEFINE_integer(
            "frames",
            0,
            "Also show in so many frames how samples come to be; of interpolate: images a pair.",
            lower_bound=0,
        ),
        flags.DEFINE_bool("gif", False, "The frames as an animation, not as a strip."),
        flags.DEFINE_bool("pictures", False, "Also show codes: interpolations, traversals."),
        flags.DEFINE_list(
            "evaluations", None, "Some of the config's evaluations, or metrics, such as fid,kid."
        ),
        flags.DEFINE_string("input", None, "A folder or .zip of images; of edit also one file."),
        flags.DEFINE_enum(
            "edit",
            None,
            ["vary", "inpaint", "upscale", "invert", "interpolate"],
            "What to do with images.",
        ),
        flags.DEFINE_float(
            "strength", None, "Of vary: the share of the steps that are made; default: 0.5."
        ),
        flags.DEFINE_string(
            "mask", None, "Of inpaint: white is painted anew. A file, or a folder with one by name."
        ),
        flags.DEFINE_integer(
            "resample", None, "Of inpaint: how often each step is made; default: 10."
        ),
        flags.DEFINE_integer(
            "factor", None, "Of upscale: by which images are smaller than the model's; default: 2."
        ),
        flags.DEFINE_enum("direction", "a2b", ["a2b", "b2a"], "From which domain to which."),
        flags.DEFINE_bool("resize", False, "Images at the size of training, and the results back."),
        flags.DEFINE_list(
            "topology", None, "Devices to plan for: v5e:4x4, several such, cpu, cpu:4 or gpu."
        ),
        flags.DEFINE_integer(
            "per_chip", None, "Images a chip and step; default: the config's batch.", lower_bound=1
        ),
        flags.DEFINE_list(
            "image_shape", None, "Of the data, 64,64,3; default: as the data set has them."
        ),
        flags.DEFINE_integer(
            "classes", None, "Of the data; default: as the data set has them.", lower_bound=0
        ),
        flags.DEFINE_float("price", None, "Of a chip and hour.", lower_bound=0.0),
        flags.DEFINE_bool(
            "largest", False, "Also find the largest batch that fits, in 5 to 10 compilations."
        ),
        flags.DEFINE_list("only", None, "Some variants of an ablation, its runs, experiments."),
        flags.DEFINE_list("diff", None, "Two configs: names with variants, files, or runs."),
        flags.DEFINE_bool("dry", False, "Say what would run and how long, and train nothing."),
        flags.DEFINE_enum("replicas", "", ["", "vmap"], "vmap: alike runs in one program."),
        flags.DEFINE_list("writers", None, "Trackers beside the run's files: wandb, mlflow."),
        flags.DEFINE_string("shard", None, "i/n: every n-th run from i on, counted from 0."),
        flags.DEFINE_bool("distributed", False, "Several hosts, found by the cluster."),
        flags.DEFINE_string("coordinator", None, "Several hosts: host:port of the first."),
        flags.DEFINE_integer("processes", None, "Several hosts: how many processes."),
        flags.DEFINE_integer("process", None, "Several hosts: number of this one, from 0."),
        flags.DEFINE_integer(
            "join_timeout", 60, "Several hosts: seconds to wait for all of them.", lower_bound=1
        ),
    )
}
# What to set where someone gives `train` a flag of other commands.
SETTINGS = {
    "batch": "train.batch_size",
    "evaluations": "evaluations",
    "guidance": "sampling.guidance",
    "num": "evaluation.count",
    "sampler": "sampling.sampler",
    "seed": "seed",
    "steps": "train.steps",
}


class Command(NamedTuple):
    """What a command's file says of it, read without importing it."""

    about: str
    flags: tuple[str, ...]


def command(mode: str) -> Command:
    """The first line of a command's docstring, and all flags that it takes."""
    path = HERE / (COMMANDS[mode].replace(".", "/") + ".py")
    tree = ast.parse(path.read_text())
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "FLAGS":
            about = (ast.get_docstring(tree) or "").partition("\n")[0]
            of_hosts = () if mode in ALONE else hosts.FLAGS
            return Command(about, (*ast.literal_eval(node.value), *of_hosts))
    raise SettingError(f"{path} has no FLAGS")


def main(argv: list[str]) -> int | None:
    """Runs the command; returns the exit code where it is not 0."""
    if len(argv) > 1:
        raise SettingError(f"what is {argv[1]!r}? Settings are given as --name=value")
    taken = command(MODE.value).flags
    check_flags(MODE.value, taken)
    config = CONFIG.value
    needed = MODE.value == "train" or (WORKDIR.value is None and MODE.value != "configs")
    if config is None and needed:
        raise SettingError("name the experiment, as in --config=configs/ddpm_digits.py")
    if config is not None and config.family == "ablation" and MODE.value != "ablate":
        raise SettingError("this config is of an ablation: give it to --mode=ablate")
    values = {name: OWN[name].value for name in taken}
    file = "" if config is None else flags.FLAGS["config"].config_filename
    workdir = files.expanded(WORKDIR.value or default_workdir(file))

    # A second start, and --mode=sample, find what the first one compiled.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(HERE / ".cache" / "jax"))
    several = hosts.of_flags(values)
    if several is None:
        os.environ.setdefault(
            "JAX_NUM_CPU_DEVICES", str(cpu_devices(global_batch(config, workdir)))
        )
    logging.set_verbosity(logging.WARNING)  # absl.app turns on what libraries tell each other
    if several is not None:
        hosts.join(several, trains=MODE.value == "train")
    module = importlib.import_module(COMMANDS[MODE.value])
    given = config_flags.get_override_values(flags.FLAGS["config"]) if config is not None else {}
    if any(key.startswith("sampling.") for key in given):
        common = importlib.import_module("aigc_jax.commands.common")
        common.check_given(config, given, values.get("sampler"))
    return module.main(argparse.Namespace(config=config, workdir=workdir, origin=origin, **values))


def cpu_devices(batch_size: int, most: int = 4) -> int:
    """How many devices a CPU shall be: a step of a small network alone keeps one core busy.

    As many as there are cores and as divide the batch, up to `most`, since each holds the whole
    state. What a run computes does not depend on it. $JAX_NUM_CPU_DEVICES or $XLA_FLAGS decide
    where they say so.
    """
    flag = "--xla_force_host_platform_device_count="
    for word in reversed(os.environ.get("XLA_FLAGS", "").split()):
        if word.startswith(flag):
            return int(word.removeprefix(flag))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(n for n in range(1, min(cores or 1, most) + 1) if batch_size % n == 0)


def global_batch(config: Any, workdir: pathlib.Path) -> int:
    """The global batch of a config, or of the run in a folder; 1 where neither says."""
    try:
        run = json.loads((workdir / "config.json").read_text()) if config is None else config
        return max(int(run.get("base", run)["train"]["batch_size"]), 1)
    except (OSError, ValueError, KeyError, TypeError):
        return 1  # what is wrong there, the command says


def check_flags(mode: str, taken: tuple[str, ...]) -> None:
    """Raises ValueError where a flag was given that the command does not take."""
    given = [name for name in OWN if flags.FLAGS[name].present]
    for name in given:
        if name not in taken:
            others = [other for other in COMMANDS if name in command(other).flags]
            instead = ""
            if mode == "train" and name in SETTINGS:
                instead = f"; for training set --config.{SETTINGS[name]}"
            raise SettingError(
                f"--mode={mode} takes no --{name}: it is a flag of {', '.join(others)}{instead}"
            )


def origin() -> dict[str, Any]:
    """What a run's report says of its command, and the config that its own differs from."""
    file = flags.FLAGS["config"].config_filename
    base = runpy.run_path(file.partition(":")[0])["get_config"]()
    return {
        "config": file,
        "command": shlex.join(["python", *sys.argv]),
        "base": base.to_dict(),
    }


def default_workdir(config_file: str) -> str:
    """configs/NAME.py:variant -> runs/NAME-variant."""
    name, _, variant = pathlib.Path(config_file).name.partition(":")
    return os.path.join("runs", name.removesuffix(".py") + (f"-{variant}" if variant else ""))


def parse(argv: list[str]) -> list[str]:
    """absl's parsing, with every mistake in a flag or a config as a one-line error."""
    if {"-h", "--h", "-help", "--help"} & set(argv):
        print(help_text(argv))
        raise SystemExit(0)
    for word in argv[1:]:
        if re.search(r"[\x00-\x1f]", word):  # it would break the lines that say it
            raise SystemExit(f"launch.py: {word!r} holds a character that no flag takes")
    argv = [re.sub(r"^--[a-z-]+(?==|$)", with_underscores, word) for word in argv]
    try:
        rest = flags.FLAGS(argv)
        if CONFIG.value is not None:
            _ = CONFIG.value.family  # a file that failed to load says so only when it is read
        return rest
    except (AttributeError, KeyError) as error:  # an unknown key; ml_collections quotes twice
        wrong, _, hint = str(error).strip("\"'").replace("\\'", "").partition("\\n")
        fail(error, f"the config has no key {wrong}. {hint}", argv)
    except OSError as error:
        fail(error, missing_config(flags.FLAGS["config"].config_filename.partition(":")[0]), argv)
    except SyntaxError as error:  # of the file that --config names
        fail(error, f"{error.filename} is no config file ({error.msg}, line {error.lineno})", argv)
    except (flags.Error, LookupError, TypeError, ValueError) as error:
        fail(error, str(error), argv)


def with_underscores(flag: re.Match) -> str:
    """--from-step -> --from_step, as absl has it."""
    return "--" + flag[0][2:].replace("-", "_")


def fail(error: BaseException, message: str, argv: list[str]) -> NoReturn:
    """Ends the program with one line, or with --debug by the error itself."""
    if "--debug" in argv:
        raise error
    raise SystemExit(f"launch.py: {message}") from None


def missing_config(path: str) -> str:
    """What to say of a config file that is not there."""
    have = sorted(p.stem for p in (HERE / "configs").glob("[a-z]*.py"))
    near = difflib.get_close_matches(pathlib.Path(path).stem, have) or have
    return f"no config file {path}; configs/ has {', '.join(near)}"


def help_text(argv: list[str]) -> str:
    """What --help shows: the flags of the command that --mode names, or all commands and flags."""
    words = [word.lstrip("-") for word in " ".join(argv[1:]).replace("=", " ").split()]
    mode = words[words.index("mode") + 1] if "mode" in words[:-1] else None
    common = ["Every command:", *(describe(holder.name) for holder in COMMON)]
    common.insert(2, "    --config.KEY: Any value of it, such as --config.train.steps=2000.")
    if mode in COMMANDS:
        about, taken = command(mode)
        own = [f"\nFlags of {mode}:" if taken else "", *map(describe, taken)]
        return "\n".join([f"python launch.py --mode={mode}: {about}", *own, "", *common])
    lines = [__doc__, "Commands, chosen by --mode, and their flags:"]
    for name in COMMANDS:
        about, taken = command(name)
        listed = " ".join(f"--{flag}" for flag in taken)
        lines += ["", f"  {name}: {about}"]
        lines += textwrap.wrap(listed, 90, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join([*lines, "", *common, "", "Flags of some commands:", *map(describe, OWN)])


def describe(name: str) -> str:
    """A flag, its values and its default, in one line."""
    flag = flags.FLAGS[name]
    text = flag.help.partition("\n")[0]
    if hasattr(flag.parser, "enum_values"):  # absl writes them before the text
        values = ", ".join(filter(None, flag.parser.enum_values))
        text = f"{text.partition('>: ')[2]} One of {values}."
    if flag.default not in (None, False, "", 0):
        text += f" Default: {flag.default}."
    return f"    --{name}: {text}"


def run(argv: list[str]) -> None:
    """`main`, with every error that is known by its type in one line instead of a traceback."""
    try:
        code = main(argv)
    except (Exception, KeyboardInterrupt) as error:
        raise boundary.tell(error, DEBUG.value) from None
    if code:
        raise SystemExit(code)


def program() -> None:
    """The command line from beginning to end, and the process with it where it fails."""
    boundary.end_by_interrupt()
    boundary.warn_in_one_line()
    try:
        app.run(run, flags_parser=parse)
    except SystemExit as ended:
        if ended.code:
            boundary.end(ended.code)


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))  # configs import each other
    program()
