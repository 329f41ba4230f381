"""Writes the report of a run, finished or not, as one page: report.html in its folder."""

import argparse
import pathlib

import jax

from aigc_jax.report import page
from aigc_jax.runs import folder as folders

FLAGS: tuple[str, ...] = ()


def main(flags: argparse.Namespace) -> None:
    """Runs the command as its flags say."""
    run(flags.workdir)


def run(workdir: str | pathlib.Path) -> pathlib.Path:
    """Writes the report of a run from the files in its folder; returns its path.

    Raises:
      FileNotFoundError: no run there.
    """
    folders.refuse_best(pathlib.Path(workdir))
    path = pathlib.Path(workdir) / "report.html"
    if jax.process_index() == 0:
        path = page.write(workdir)
        print(path, flush=True)
    return path
