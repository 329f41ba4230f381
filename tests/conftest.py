"""Eight virtual CPU devices, no silent broadcasting, a compilation cache that outlives a run."""

import atexit
import gc
import os
import pathlib
import shutil
import tempfile
import types
from collections.abc import Callable
from typing import Any

from places import QUICK_XLA, SHARED

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Files that take longest begin first, or at the end one process works on them alone.
LONGEST = (
    "commands/test_train_command.py",
    "commands/test_notebook.py",
    "configs/test_configs.py",
    "training/test_resume.py",
    "diffusion/test_editing.py",
)
# Before jax is imported: these are read once.
FLAGS = f" --xla_force_host_platform_device_count=8 {QUICK_XLA}"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the oracles are packages, never downloads
if "PYTEST_XDIST_WORKER" not in os.environ:  # whose processes inherit all this
    os.environ["XLA_FLAGS"] = (os.environ.get("XLA_FLAGS", "") + FLAGS).strip()
    # Features that an earlier version left behind would hide what a change does to them.
    os.environ["AIGC_CACHE"] = tempfile.mkdtemp(prefix="aigc-cache-")
    atexit.register(shutil.rmtree, os.environ["AIGC_CACHE"], ignore_errors=True)

import jax  # noqa: E402
import pytest  # noqa: E402
from flax.core import scope  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
# Tracing makes millions of objects that live as long as the process: at Python's own thresholds
# looking through them for garbage takes a fifth of the time.
gc.set_threshold(100_000, 50, 50)


class Once:
    """`jax` as flax.core.scope sees it, which finds an initialiser's shape once for its arguments.

    Flax compares it with every parameter at every call of a module: half of the time of tracing.
    """

    def __init__(self) -> None:
        self._found: dict = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(jax, name)

    def eval_shape(self, call: Callable, *given: Any) -> Any:
        free = {}
        if isinstance(call, types.FunctionType) and call.__closure__:
            cells = zip(call.__code__.co_freevars, call.__closure__, strict=True)
            free = {name: cell.cell_contents for name, cell in cells}
        try:
            key = free["init_fn"], free["init_args"], tuple(free["init_kwargs"].items())
            if key not in self._found:
                self._found[key] = jax.eval_shape(call)
        except (KeyError, TypeError):  # something else, or arguments that cannot be a key
            return jax.eval_shape(call, *given)
        return self._found[key]


scope.jax = Once()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Orders files by `LONGEST`."""
    rank = {ROOT / "tests" / name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


@pytest.fixture(scope="session")
def shared_tfds() -> str:
    """The folder of real data prepared by TFDS; tests that need it skip where it is absent."""
    folder = SHARED / "data" / "tfds"
    if not folder.is_dir():
        pytest.skip(f"no prepared TFDS data at {folder} (set AIGC_SHARED)")
    return str(folder)


@pytest.fixture(scope="session")
def celeba_zip() -> str:
    """5,000 CelebA faces, 89x109, as one zip of JPEGs."""
    path = SHARED / "data" / "images" / "celeba5k.zip"
    if not path.is_file():
        pytest.skip(f"no {path} (set AIGC_SHARED)")
    return str(path)


@pytest.fixture(scope="session")
def whole_runs(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """{family: (workdir, last state)} of the toys, trained without a break; read only."""
    import toys

    runs = {}
    for family in toys.FAMILIES:
        workdir = tmp_path_factory.mktemp("whole") / family
        runs[family] = workdir, toys.train(workdir, family)
    return runs
