"""The command line within this process, and one run of the digits for all commands."""

import fcntl
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable

import pytest
from places import QUICK_XLA

ROOT = pathlib.Path(__file__).resolve().parents[2]
QUICK = os.environ | {"XLA_FLAGS": QUICK_XLA, "JAX_NUM_CPU_DEVICES": "1"}


@pytest.fixture(scope="session")
def command() -> Callable[..., subprocess.CompletedProcess]:
    """launch.py, or another `program`, as a process of its own."""

    def call(*arguments, program=("launch.py",), environment=None):
        return subprocess.run(
            [sys.executable, *program, *map(str, arguments)],
            cwd=ROOT,
            env=QUICK | (environment or {}),
            capture_output=True,
            text=True,
            timeout=400,
        )

    return call


@pytest.fixture
def launch(monkeypatch):
    """launch.py's parse and run within this process, from the repository's root."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "8")  # as there are; it says so to no other process
    monkeypatch.syspath_prepend(str(ROOT))
    from absl import flags

    import launch as module

    def call(*arguments):
        argv = ["launch.py", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", argv)  # where ml_collections looks for --config.x=y
        flags.FLAGS.unparse_flags()
        for name in [name for name in flags.FLAGS if name.startswith("config.")]:
            delattr(flags.FLAGS, name)
        for flag in flags.FLAGS.get_flags_for_module(module):
            flag.unparse()
        module.run(module.parse(argv))

    return call


@pytest.fixture(scope="session")
def run(tmp_path_factory, command):
    """A conditional model of the digits, trained by the smoke variant in a process of its own.

    (its folder, what the process printed); made once, though pytest may run in several processes.
    """
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, said = base / "runs" / "digits", base / "digits.stdout"
    with (base / "digits.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not said.exists():
            done = command(
                "--config=configs/ddpm_digits.py:smoke+conditional",
                f"--workdir={folder}",
                "--config.log.first_sample=1",
            )
            assert done.returncode == 0, done.stderr
            said.write_text(done.stdout)
    return folder, said.read_text()
