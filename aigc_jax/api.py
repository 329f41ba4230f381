"""Python use, without launch.py: what its commands do, as functions of configs and arrays.

import aigc_jax

config = aigc_jax.config("ddpm_digits", {"train.steps": 500})
for step, metrics in aigc_jax.rows(config, "runs/digits"):
    print(step, metrics)
run = aigc_jax.load("runs/digits")
run.picture(run.sample(16))
"""

import contextlib
import pathlib
import queue
import runpy
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from aigc_jax import checks, files, modalities
from aigc_jax.checks import flatten, one_of
from aigc_jax.commands import common, sample
from aigc_jax.commands import evaluate as evaluate_command
from aigc_jax.commands import train as train_command
from aigc_jax.errors import SettingError
from aigc_jax.evaluation.results import Row
from aigc_jax.report import reading
from aigc_jax.runs import apply
from aigc_jax.runs import folder as folders
from aigc_jax.runs import model as models
from aigc_jax.runs.evaluations import check_draws
from aigc_jax.sampling.driver import draw
from aigc_jax.training import sharding
from aigc_jax.training.writers import OnRow, Watch

CONFIGS = pathlib.Path(__file__).resolve().parents[1] / "configs"


def config(name: str | pathlib.Path, settings: Mapping[str, Any] | None = None) -> ConfigDict:
    """The config of an experiment, unlocked.

    Args:
      name: of a file in configs/, or a path to one of your own, with variants after a colon:
        "ddpm_digits:smoke+v".
      settings: {"part.key": value} to set in it.

    Raises:
      ValueError: no such experiment, or no such setting; LookupError: no such variant.
    """
    file, _, variant = str(name).partition(":")
    path = files.expanded(file)
    if path.suffix != ".py":
        one_of("the experiment", file, sorted(p.stem for p in CONFIGS.glob("[!_]*.py")))
        path = CONFIGS / f"{file}.py"
    with _importing(CONFIGS.parent):
        get_config = runpy.run_path(str(path)).get("get_config")
        if get_config is None:
            raise SettingError(f"{path} is no config: it has no get_config(variant)")
        found = get_config(variant)
    known = flatten(folders.as_dict(found))
    for key, value in (settings or {}).items():
        one_of("a setting", key, known)
        try:
            found.update_from_flattened_dict({key: value})
        except (TypeError, ValueError) as error:
            raise SettingError(f"config.{key}: {' '.join(str(error).split())}") from error
    return found.unlock()


@contextlib.contextmanager
def _importing(folder: pathlib.Path) -> Iterator[None]:
    """Modules of a folder can be imported, as configs import each other."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def train(
    config: Mapping[str, Any],
    workdir: str | pathlib.Path,
    on_row: OnRow | None = None,
    writers: Sequence[str] = (),
) -> "Run":
    """Trains an experiment in a folder, or goes on with the run there; the run, ready for use.

    Args:
      config: of the experiment, `config("ddpm_digits")`.
      on_row: called with (step, {name: value}) for each row of metrics; where it returns True the
        run is saved and stops, and the same call goes on with it.
      writers: experiment trackers beside its files: "wandb", "mlflow".

    Ctrl-C saves and stops it too: `run.model.step` says how far it is.

    Raises as `aigc_jax.commands.train.run`.
    """
    if isinstance(writers, str):
        writers = [writers]
    train_command.run(config, workdir, watch=Watch(on_row=on_row, trackers=writers))
    return load(workdir)


def rows(
    config: Mapping[str, Any], workdir: str | pathlib.Path
) -> Iterator[tuple[int, dict[str, float]]]:
    """`train` as an iterator over (step, {name: value}); a loop that is left saves the run.

    Training is a thread of its own, and waits where nobody asks for the next row.
    """
    found: queue.SimpleQueue[Any] = queue.SimpleQueue()
    asked, left = threading.Semaphore(0), threading.Event()

    def on_row(step: int, values: Mapping[str, float]) -> bool:
        if not left.is_set():
            found.put((step, dict(values)))
            asked.acquire()  # so that a loop that is left stops the run at the row that it saw last
        return left.is_set()

    def work() -> None:
        try:
            train_command.run(config, workdir, watch=Watch(on_row=on_row))
        except BaseException as error:  # raised again where the rows are asked for
            found.put(error)
        else:
            found.put(None)

    thread = threading.Thread(target=work, name="training")
    thread.start()
    try:
        while (item := found.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
            asked.release()
    finally:
        left.set()
        asked.release()
        thread.join()


def load(
    workdir: str | pathlib.Path,
    config: Mapping[str, Any] | None = None,
    *,
    sampling: Mapping[str, Any] | None = None,
    **which: Any,
) -> "Run":
    """A trained run, ready for use.

    Args:
      workdir, config, which: as of `aigc_jax.runs.model.load`: step, best, raw, ema, dtype.
      sampling: values of `config.sampling` to sample by, {"sampler": "ddim", "steps": 20}.

    Raises:
      FileNotFoundError: no run there; ValueError: a setting that its family has not.
    """
    workdir = files.expanded(workdir)
    config, _ = common.with_sampling(workdir, config, sampling)
    data = common.LazyData(config, sharding.make_mesh())
    return Run(workdir, models.load(workdir, config, codes=data.codes, **which), which)


class Run:
    """A trained model and the folder that it lies in.

    Attributes:
      workdir: the folder.
      model: the model: its config, the spec of its data, family, variables and step.
    """

    def __init__(
        self, workdir: pathlib.Path, model: models.Model, which: Mapping[str, Any]
    ) -> None:
        self.workdir, self.model = workdir, model
        self._which = {name: given for name, given in which.items() if name != "dtype"}
        self._mesh = sharding.make_mesh()

    @cached_property
    def _driver(self) -> Any:
        check_draws(self.model.family, ["samples"])
        return self.model.driver(self._mesh)

    def sample(
        self, count: int = 16, *, seed: int = 0, labels: Sequence[int | str] | None = None
    ) -> np.ndarray:
        """Samples [count, ...] as the data are stored, images as uint8 [count, H, W, C].

        Args:
          seed: sample i depends on (seed, i) only.
          labels: classes by name or number, in turn; None takes every one.
        """
        checks.value("count", count, checks.Count)
        labels = sample.labels_of(self.model, labels)
        batches = draw(
            self._driver, self.model.variables, self._mesh, seed=seed, count=count, labels=labels
        )
        modality = modalities.of(self.model.spec.kind)
        return np.concatenate([modality.to_stored(batch) for batch in batches])

    def picture(self, examples: np.ndarray, columns: int | None = None) -> Image.Image:
        """Examples [n, ...], as stored, in one picture: a grid of images, a plot of points."""
        modality = modalities.of(self.model.spec.kind)
        return modality.picture(modality.to_model(examples), columns=columns)

    def encode(self, examples: np.ndarray, labels: np.ndarray | None = None) -> dict[str, Any]:
        """Codes of examples [n, ...] as stored: {"mean": [n, ...], "logvar": [n, ...]}, say."""
        return apply.encode(self.model, examples, labels)

    def decode(self, codes: np.ndarray, labels: np.ndarray | None = None) -> np.ndarray:
        """Examples [n, ...] as stored, of codes [n, ...]."""
        return apply.decode(self.model, codes, labels)

    def translate(self, examples: np.ndarray, direction: str = "a2b") -> np.ndarray:
        """Examples [n, ...], as stored, in the other domain."""
        return apply.translate(self.model, examples, direction)

    def evaluate(self, evaluations: Sequence[str] | None = None, **options: Any) -> list[Row]:
        """The run's evaluations, or those named; as `aigc_jax.commands.evaluate.run` takes them."""
        given = {**self._which, **options}
        config = self.model.config
        return evaluate_command.run(self.workdir, config, evaluations=evaluations, **given)

    def data(self, split: str = "test", count: int = 64) -> dict[str, np.ndarray]:
        """The first examples of "train" or "test": {"x": [count, ...] as stored, "label": ...}."""
        one_of("split", split, ("train", "test"))
        checks.value("count", count, checks.Count)
        opened = common.open_data(self.model.config)
        source = opened.dataset.sources[getattr(opened, f"{split}_split")]
        return dict(source.fetch(np.arange(min(count, len(source)))))

    def metrics(self) -> dict[str, list[tuple[int, float]]]:
        """What the run has written: {name: [(step, value), ...]}."""
        where = reading.Folder(self.workdir, [])
        curves, _ = reading.optional(where, "metrics.jsonl", reading.read_curves, ({}, 0))
        return {name: [(s, v) for s, v, _ in points] for name, points in curves.items()}

    def __repr__(self) -> str:
        return f"<run {self.workdir}: {self.model.named}>"
