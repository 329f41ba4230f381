"""Who may import whom, as docs/architecture.md says, read from the source by `ast`."""

import ast
import fnmatch
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
FAMILIES = ("diffusion", "vae", "gan")
# Maths that only sees arrays.
PURE = ("process", "samplers", "likelihood", "losses", "objectives", "quantize")
MAX_LINES = 400
# What may be named only where, of files in aigc_jax/, configs/ and launch.py.
ONLY_IN = {
    "orbax": "aigc_jax/training/checkpoint.py",
    "jax.sharding": "aigc_jax/training/sharding.py",
    "jax.make_mesh": "aigc_jax/training/sharding.py",
    "grain": "aigc_jax/data/*",
    "tensorflow_datasets": "aigc_jax/data/*",
    "flax.linen": "aigc_jax/networks/*",
    "absl": "launch.py",
    "ml_collections.config_flags": "launch.py",
    "configs": "configs/*",
    "launch": "",
    "tensorflow": "",  # data/standin.py builds a module of that name: it imports none
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
    parts = path.removesuffix(".py").split("/")
    if path == "aigc_jax/family.py":
        return ()
    if path == "aigc_jax/training/step.py":
        return ("aigc_jax.family",)
    if parts[0] == "configs":
        return ()
    if len(parts) < 3 or parts[0] != "aigc_jax":
        return None
    folder = parts[1]
    if folder == "networks":
        return ("aigc_jax.networks",)
    if folder in FAMILIES and parts[-1] in PURE:
        return ("aigc_jax.networks", *(f"aigc_jax.{folder}.{pure}" for pure in PURE))
    if folder in FAMILIES:
        return ("aigc_jax.networks", "aigc_jax.family", f"aigc_jax.{folder}")
    if folder == "evaluation":
        return ("aigc_jax.evaluation", "aigc_jax.networks")
    return None


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
    allowed = allowed_of_ours(path)
    for name in sorted(found):
        ours = within(name, "aigc_jax")
        if ours and allowed is not None and not any(within(name, prefix) for prefix in allowed):
            wrong.append(f"{path} imports {name}")
        for prefix, where in ONLY_IN.items():
            if within(name, prefix):
                if not fnmatch.fnmatch(path, where):
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


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("aigc_jax/diffusion/family.py", "from aigc_jax.training import step"),
        ("aigc_jax/diffusion/family.py", "from aigc_jax.gan import losses"),
        ("aigc_jax/diffusion/family.py", "from aigc_jax.evaluation.evaluators import per_example"),
        ("aigc_jax/vae/family.py", "import aigc_jax.data.loader"),
        ("aigc_jax/diffusion/family.py", "import flax.linen as nn"),
        ("aigc_jax/diffusion/family.py", "from flax import linen as nn"),
        ("aigc_jax/diffusion/samplers.py", "from aigc_jax.diffusion import family"),
        ("aigc_jax/diffusion/process.py", "from aigc_jax.family import Family"),
        ("aigc_jax/gan/losses.py", "from aigc_jax.diffusion.process import betas"),
        ("aigc_jax/networks/unet.py", "from aigc_jax.diffusion.process import betas"),
        ("aigc_jax/networks/unet.py", "from .layers import conv"),
        ("aigc_jax/evaluation/evaluators.py", "from aigc_jax.family import Family"),
        ("aigc_jax/evaluation/evaluators.py", "def f():\n    from aigc_jax import build"),
        ("aigc_jax/training/step.py", "from aigc_jax.training import sharding"),
        ("aigc_jax/training/loop.py", "import orbax.checkpoint as ocp"),
        ("aigc_jax/training/loop.py", "from jax.sharding import Mesh"),
        ("aigc_jax/training/loop.py", "import jax\n\nx = jax.sharding.NamedSharding(1, 2)"),
        ("aigc_jax/training/loop.py", "import jax\n\nx = jax.make_mesh((8,), ('data',))"),
        ("aigc_jax/training/loop.py", "import grain"),
        ("aigc_jax/training/loop.py", "import tensorflow_datasets as tfds"),
        ("aigc_jax/data/datasets.py", "import tensorflow as tf"),
        ("aigc_jax/data/datasets.py", "from absl import flags"),
        ("aigc_jax/experiment.py", "import launch"),
        ("aigc_jax/experiment.py", "from configs import ddpm_digits"),
        ("aigc_jax/experiment.py", "from ml_collections import config_flags"),
        ("configs/ddpm_digits.py", "from aigc_jax import build"),
        ("launch.py", "from configs import ddpm_cifar"),
        ("tests/test_x.py", "from jax._src import core"),
        ("aigc_jax/experiment.py", "# TO" + "DO: more"),
        ("aigc_jax/experiment.py", "x = 1\n" * 401),
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
        ("aigc_jax/diffusion/samplers.py", "from aigc_jax.diffusion.process import Process"),
        ("aigc_jax/networks/unet.py", "import flax.linen as nn"),
        ("aigc_jax/training/checkpoint.py", "import orbax.checkpoint as ocp"),
        ("aigc_jax/data/datasets.py", "import tensorflow_datasets as tfds"),
        ("aigc_jax/training/step.py", "from aigc_jax.family import Family"),
        ("aigc_jax/training/loop.py", "from aigc_jax.training import sharding\n\nsharding.Mesh"),
        ("configs/ddpm_digits.py", "from configs import common"),
    ],
)
def test_what_is_allowed_passes(path, source):
    assert violations(path, source) == []


def test_the_checker_sees_the_whole_house():
    assert len(FILES) > 40
    assert {"aigc_jax/training/step.py", "configs/ddpm_cifar.py", "launch.py"} <= set(FILES)
