"""Who may import whom, as docs/architecture.md says, read from the source by `ast`."""

import ast
import fnmatch
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
OURS = "aigc_jax"
LEAVES = ("family", "checks", "files", "streams", "gaussian")
# folder -> what of ours its files may import: an arrow never runs up.
MAY_IMPORT = {
    "networks": ("networks", "checks", "gaussian"),
    "modalities": ("modalities", "family", "checks", "files"),
    "data": ("data", "modalities", *LEAVES),
    "formats": ("formats", "networks", "checks", "files"),
    "diffusion": ("diffusion", "networks", "modalities", "family", "checks", "gaussian"),
    "vae": ("vae", "networks", "modalities", "formats", "family", "checks", "gaussian"),
    "gan": ("gan", "networks", "modalities", "family", "checks"),
    "evaluation": ("evaluation", "networks", "formats", "modalities", *LEAVES),
    "report": ("report", "modalities", "files", "checks"),
    "training": ("training", "data.feed", "data.sources", "modalities", *LEAVES),
    "sampling": ("sampling", "training.sharding", *LEAVES),
    "planning": ("planning", "training", "modalities", *LEAVES),
    "runs": (
        "runs", "sampling", "training", "evaluation", "report", "data", "modalities", "formats",
        "networks", "build", *LEAVES,
    ),
    "commands": ("",),
}  # fmt: skip
# Files with stricter rules than their folder's; the first pattern that fits counts.
STRICTER = {
    "training/step.py": ("family", "checks", "streams", "training.microbatches"),
    "evaluation/metrics/*": ("evaluation.metrics",),
    "diffusion/solvers/*": ("diffusion.solvers", "diffusion.process", "checks"),
    "diffusion/schedules.py": ("checks",),
    "diffusion/process.py": ("diffusion.schedules", "checks"),
    "diffusion/precondition.py": ("diffusion.process", "checks"),
    "diffusion/times.py": ("diffusion.process", "diffusion.precondition", "checks"),
    "diffusion/objectives.py": ("diffusion.process", "diffusion.precondition"),
    "diffusion/likelihood.py": ("diffusion.process", "diffusion.solvers", "gaussian", "checks"),
    "diffusion/ode.py": (),
    "diffusion/guidance.py": ("diffusion.process", "diffusion.solvers.base"),
    "gan/losses.py": ("checks",),
    "vae/objectives.py": ("vae.likelihood", "checks"),
    "vae/likelihood.py": ("checks",),
    "vae/quantize.py": ("checks",),
    "build.py": ("family", "checks"),
    "api.py": ("",),
    "__init__.py": ("api",),
    **dict.fromkeys((f"{name}.py" for name in LEAVES), ()),
}
MAX_LINES, MAX_FUNCTION_LINES = 400, 80
# What may be named only where, of files in aigc_jax/, configs/ and launch.py.
ONLY_IN = {
    "orbax": ("aigc_jax/training/checkpoint.py",),
    "diffrax": ("aigc_jax/diffusion/ode.py",),
    "jax.sharding": ("aigc_jax/training/sharding.py",),
    "jax.make_mesh": ("aigc_jax/training/sharding.py",),
    "grain": ("aigc_jax/data/*",),
    "tensorflow_datasets": ("aigc_jax/data/*",),
    "flax.linen": ("aigc_jax/networks/*",),
    "absl": ("launch.py",),
    "ml_collections.config_flags": ("launch.py",),
    "configs": ("configs/*",),
    "launch": (),
    "tensorflow": (),  # data/standin.py builds a module of that name: it imports none
}
# Who may take a whole config. The two of `runs` hand parts of it on, write it down and compare.
WHOLE_CONFIG = (
    "aigc_jax/api.py", "aigc_jax/commands/*", "aigc_jax/build.py", "aigc_jax/runs/model.py",
    "aigc_jax/runs/folder.py", "configs/*", "launch.py",
)  # fmt: skip
# Calls that write to the disk stand within `with files.replacing` or `with files.folder`.
WRITING = {
    "write_text", "write_bytes", "save_file", "savez", "savez_compressed", "mkdir",
    "makedirs", "rename", "unlink", "rmtree", "mkdtemp", "NamedTemporaryFile",
}  # fmt: skip
# Who may call them elsewhere: the writer itself, Orbax's folders, what TFDS keeps, metrics.jsonl.
MAY_WRITE = {
    "aigc_jax/files.py": ("mkdir", "rename", "rmtree", "unlink", "write_text", "open", "savez"),
    "aigc_jax/training/checkpoint.py": ("mkdir", "rename", "rmtree"),
    "aigc_jax/runs/lock.py": ("mkdir", "open", "unlink"),
    "aigc_jax/training/writers.py": ("open",),
    "aigc_jax/data/prepare.py": ("makedirs", "open"),
    "aigc_jax/data/standin.py": ("makedirs", "rmtree", "open", "save"),
    "aigc_jax/data/digits.py": ("save",),
}


def within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def names(source: str) -> set[str]:
    """Dotted names that a file imports, or reaches through a package it imports."""
    tree, found, roots = ast.parse(source), set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
            roots |= {alias.name.split(".")[0] for alias in node.names if not alias.asname}
        elif isinstance(node, ast.ImportFrom):
            start = "." * node.level + (node.module or "")
            found |= {f"{start}.{alias.name}" for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            dotted = ast.unparse(node)
            if dotted.replace(".", "").isidentifier() and dotted.split(".")[0] in roots:
                found.add(dotted)
    return found


def allowed_of_ours(path: str) -> tuple[str, ...] | None:
    """Prefixes of our own modules that a file may import; None where anything goes."""
    if path.startswith("configs/"):
        return ()
    if not path.startswith(f"{OURS}/"):
        return None
    inner = path.removeprefix(f"{OURS}/")
    stricter = (allowed for name, allowed in STRICTER.items() if fnmatch.fnmatch(inner, name))
    allowed = next(stricter, MAY_IMPORT.get(inner.split("/")[0], ()))
    return tuple(f"{OURS}.{name}".rstrip(".") for name in (*allowed, "errors"))


def functions(source: str) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function of a file, methods and those within others too."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]


def shape_of(path: str, source: str) -> list[str]:
    """What is too long, or takes a whole config where it may not."""
    wrong = []
    whole = any(fnmatch.fnmatch(path, pattern) for pattern in WHOLE_CONFIG)
    for function in functions(source):
        lines = function.end_lineno - function.lineno + 1
        if lines > MAX_FUNCTION_LINES:
            wrong.append(f"{path}: {function.name} has {lines} lines")
        arguments = {a.arg for a in (*function.args.args, *function.args.kwonlyargs)}
        builds = function.name in ("build", "from_config")
        if "config" in arguments and not whole and not builds:
            wrong.append(f"{path}: {function.name} takes a whole config")
    if path.startswith("aigc_jax/runs/") and ".config[" in source and not whole:
        wrong.append(f"{path} reads a model's config")
    return wrong


def raised(source: str) -> set[str]:
    """Built-in errors that a file raises where its own, which commands tell in a line, belong."""
    raises = (node.exc for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Raise))
    named = {ast.unparse(e.func) for e in raises if isinstance(e, ast.Call)}
    return named & {"ValueError", "RuntimeError", "FileNotFoundError"}


def writes(source: str) -> set[str]:
    """The names of calls that write to the disk outside a block of the one writer."""

    def of(node: ast.AST) -> set[str]:
        if isinstance(node, ast.With):
            opened = [ast.unparse(item.context_expr) for item in node.items]
            if any(f"files.{way}(" in text for text in opened for way in ("replacing", "folder")):
                return set()
        found = set().union(*map(of, ast.iter_child_nodes(node)))
        if not isinstance(node, ast.Call):
            return found
        owner, _, name = ast.unparse(node.func).rpartition(".")
        if owner == "files":
            return found
        modes = [*node.args, *(k.value for k in node.keywords if k.arg == "mode")]
        modes = [m.value for m in modes if isinstance(m, ast.Constant) and isinstance(m.value, str)]
        opens = name == "open" and any(set("wax+") & set(m) and len(m) < 4 for m in modes)
        saves = name == "save" and any(k.arg in ("format", None) for k in node.keywords)
        return found | ({name} if name in WRITING or opens or saves else set())

    return of(ast.parse(source))


def violations(path: str, source: str) -> list[str]:
    """What a file breaks, one line each; `path` is relative to the repository."""
    wrong = []
    if len(source.splitlines()) > MAX_LINES:
        wrong.append(f"{path} has over {MAX_LINES} lines")
    wrong += [f"{path} says {word}" for word in ("TO" + "DO", "FIX" + "ME") if word in source]
    found = names(source)
    wrong += [f"{path} imports private {name}" for name in found if "_src" in name.split(".")]
    if path.startswith(("tests/", "benchmarks/")):
        return wrong
    wrong += [f"{path} imports {name}: relative" for name in found if name.startswith(".")]
    wrong += shape_of(path, source)
    wrong += [f"{path} raises {name}: see errors.py" for name in sorted(raised(source))]
    found_writes = writes(source) - set(MAY_WRITE.get(path, ()))
    wrong += [f"{path} calls {name}: write through files.py" for name in sorted(found_writes)]
    allowed = allowed_of_ours(path)
    for name in sorted(found):
        ours = within(name, "aigc_jax")
        if ours and allowed is not None and not any(within(name, prefix) for prefix in allowed):
            wrong.append(f"{path} imports {name}")
        for prefix, where in ONLY_IN.items():
            if within(name, prefix):
                if not any(fnmatch.fnmatch(path, pattern) for pattern in where):
                    wrong.append(f"{path} imports {name}")
                break
    return wrong


FOLDERS = ("aigc_jax", "configs", "tests", "benchmarks")
SOURCES = [
    ROOT / "launch.py",
    *(path for f in FOLDERS for path in sorted((ROOT / f).rglob("*.py"))),
]
FILES = [path.relative_to(ROOT).as_posix() for path in SOURCES]


@pytest.mark.parametrize("path", FILES)
def test_a_file_keeps_to_the_architecture(path):
    assert violations(path, (ROOT / path).read_text()) == []


LONG = "def f():\n" + "    x = 1\n" * 80


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("aigc_jax/diffusion/family.py", "from aigc_jax.training import step"),
        ("aigc_jax/diffusion/family.py", "from aigc_jax.gan import losses"),
        ("aigc_jax/diffusion/family.py", "from aigc_jax.evaluation.evaluators import per_example"),
        ("aigc_jax/vae/plain.py", "import aigc_jax.data.loader"),
        ("aigc_jax/diffusion/family.py", "import flax.linen as nn"),
        ("aigc_jax/diffusion/family.py", "from flax import linen as nn"),
        ("aigc_jax/diffusion/solvers/ddim.py", "from aigc_jax.diffusion import family"),
        ("aigc_jax/diffusion/process.py", "from aigc_jax.family import Family"),
        ("aigc_jax/gan/losses.py", "from aigc_jax.diffusion.process import betas"),
        ("aigc_jax/networks/unet.py", "from aigc_jax.diffusion.process import betas"),
        ("aigc_jax/networks/unet.py", "from aigc_jax.gan import losses"),
        ("aigc_jax/networks/unet.py", "from .layers import conv"),
        ("aigc_jax/formats/diffusers.py", "from aigc_jax.runs import model"),
        ("aigc_jax/modalities/image.py", "from aigc_jax.data import sources"),
        ("aigc_jax/data/loader.py", "from aigc_jax.training import sharding"),
        ("aigc_jax/evaluation/metrics/frechet.py", "from aigc_jax.evaluation import features"),
        ("aigc_jax/evaluation/evaluators.py", "def f():\n    from aigc_jax import build"),
        ("aigc_jax/report/page.py", "from aigc_jax.runs import folder"),
        ("aigc_jax/training/step.py", "from aigc_jax.training import sharding"),
        ("aigc_jax/training/loop.py", "from aigc_jax.runs import folder"),
        ("aigc_jax/training/loop.py", "from aigc_jax.evaluation import evaluators"),
        ("aigc_jax/training/loop.py", "from aigc_jax.data import datasets"),
        ("aigc_jax/sampling/driver.py", "from aigc_jax.training import loop"),
        ("aigc_jax/runs/model.py", "from aigc_jax.commands import sample"),
        ("aigc_jax/runs/model.py", "from aigc_jax.gan import family"),
        ("aigc_jax/family.py", "from aigc_jax import streams"),
        ("aigc_jax/build.py", "from aigc_jax.runs import model"),
        ("aigc_jax/new.py", "from aigc_jax import family"),
        ("aigc_jax/training/loop.py", "import orbax.checkpoint as ocp"),
        ("aigc_jax/training/loop.py", "from jax.sharding import Mesh"),
        ("aigc_jax/training/loop.py", "import jax\n\nx = jax.sharding.NamedSharding(1, 2)"),
        ("aigc_jax/training/loop.py", "import jax\n\nx = jax.make_mesh((8,), ('data',))"),
        ("aigc_jax/training/loop.py", "import grain"),
        ("aigc_jax/training/loop.py", "import tensorflow_datasets as tfds"),
        ("aigc_jax/training/loop.py", "def train(config): ..."),
        ("aigc_jax/runs/observer.py", "def observe(*, config): ..."),
        ("aigc_jax/gan/family.py", "def other(config): ..."),
        ("aigc_jax/runs/apply.py", "def f(model): return model.config['family']"),
        ("aigc_jax/training/loop.py", LONG),
        ("aigc_jax/data/datasets.py", "import tensorflow as tf"),
        ("aigc_jax/data/datasets.py", "from absl import flags"),
        ("aigc_jax/commands/train.py", "import launch"),
        ("aigc_jax/commands/train.py", "from configs import ddpm_digits"),
        ("aigc_jax/commands/train.py", "from ml_collections import config_flags"),
        ("configs/ddpm_digits.py", "from aigc_jax import build"),
        ("launch.py", "from configs import ddpm_cifar"),
        ("tests/test_x.py", "from jax._src import core"),
        ("aigc_jax/commands/train.py", "# TO" + "DO: more"),
        ("aigc_jax/commands/train.py", "x = 1\n" * 401),
        ("aigc_jax/commands/sample.py", "raise ValueError('wrong')"),
        ("aigc_jax/commands/sample.py", "path.write_text('')"),
        ("aigc_jax/commands/sample.py", "with path.open('wb') as f:\n    pass"),
        ("aigc_jax/commands/sample.py", "def f():\n    open(path, mode='a+')"),
        ("aigc_jax/runs/observer.py", "picture.save(path, format='PNG')"),
        ("aigc_jax/runs/observer.py", "import numpy as np\n\nnp.savez(path, x=1)"),
        ("aigc_jax/training/writers.py", "path.write_text('')"),
    ],
)
def test_each_rule_catches_what_breaks_it(path, source):
    wrong = violations(path, source)
    assert wrong
    assert all(line.startswith(path) for line in wrong)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("aigc_jax/diffusion/family.py", "from aigc_jax.networks.unet import UNet"),
        ("aigc_jax/diffusion/solvers/ddim.py", "from aigc_jax.diffusion.process import Process"),
        ("aigc_jax/networks/unet.py", "import flax.linen as nn"),
        ("aigc_jax/training/checkpoint.py", "import orbax.checkpoint as ocp"),
        ("aigc_jax/data/datasets.py", "import tensorflow_datasets as tfds"),
        ("aigc_jax/training/step.py", "from aigc_jax.family import Family"),
        ("aigc_jax/training/loop.py", "from aigc_jax.training import sharding\n\nsharding.Mesh"),
        ("aigc_jax/commands/train.py", "from aigc_jax.gan import family\n\ndef run(config): ..."),
        ("aigc_jax/gan/family.py", "def build(config, spec): ..."),
        ("configs/ddpm_digits.py", "from configs.bases import diffusion"),
        ("aigc_jax/commands/sample.py", "with files.replacing(path) as p:\n    p.write_text('')"),
        ("aigc_jax/commands/sample.py", "path.open('rb')\nextractors.open('lenet', None)"),
        ("aigc_jax/training/loop.py", "checkpoints.save(step, state, prepared=1)"),
    ],
)
def test_what_is_allowed_passes(path, source):
    assert violations(path, source) == []


def test_the_checker_sees_the_whole_house():
    assert len(FILES) > 40
    assert {"aigc_jax/training/step.py", "configs/ddpm_cifar.py", "launch.py"} <= set(FILES)


def test_every_folder_has_a_rule():
    folders = {path.split("/")[1] for path in FILES if path.startswith("aigc_jax/")}
    assert {name for name in folders if not name.endswith(".py")} <= set(MAY_IMPORT)
