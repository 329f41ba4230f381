"""Where a run ran: devices, versions, commit. A result without these cannot be repeated."""

import datetime
import importlib.metadata
import pathlib
import platform
import subprocess
from collections import Counter
from typing import Any

import jax

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def describe() -> dict[str, Any]:
    """The machine and the code of this moment, as plain JSON values."""
    kinds = Counter(device.device_kind for device in jax.devices())
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "devices": ", ".join(f"{n} x {kind}" for kind, n in kinds.items()),
        "processes": jax.process_count(),
        "machine": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "commit": _commit(),
    }


def _commit() -> str | None:
    """The commit of our own source, marked where files differ from it; None outside a checkout."""

    def git(*arguments: str) -> str:
        folder = str(pathlib.Path(__file__).parent)
        command = ["git", "-C", folder, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()

    try:
        modified = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short=10", "HEAD") + (" (modified)" if modified else "")
    except (OSError, subprocess.SubprocessError):
        return None
