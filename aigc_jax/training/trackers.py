"""Experiment trackers beside metrics.jsonl and TensorBoard, by packages of their own.

Each is an extra (requirements-trackers.txt), gets the same names of metrics, the config and the
pictures, and is set up by its own variables ($WANDB_MODE, $MLFLOW_TRACKING_URI, ...).
"""

import importlib
import math
import os
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from PIL import Image

from aigc_jax.checks import one_of
from aigc_jax.errors import MissingError, SettingError

PROJECT = "aigc_jax"  # where their own variables name no other


class Tracker(Protocol):
    """What a run tells a tracker."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One row of finite metrics."""

    def image(self, step: int, name: str, picture: Image.Image) -> None:
        """A picture."""

    def close(self) -> None:
        """All is sent, or on the disk."""


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingError(
            f"--writers={name} needs its package ({error}): pip install -r "
            "requirements-trackers.txt, or leave it out"
        ) from error


class Wandb:
    """Weights & Biases; offline by $WANDB_MODE=offline, then in the run's folder."""

    def __init__(self, workdir: pathlib.Path, run: str, settings: Mapping[str, Any]) -> None:
        wandb = _imported("wandb")
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                name=workdir.name,
                id=run,
                resume="allow",
                reinit="create_new",  # beside those of other runs in one process
                dir=str(workdir),
                config=dict(settings),
            )
        except wandb.errors.Error as error:
            raise SettingError(
                f"--writers=wandb: {error}. Call `wandb login`, or set WANDB_MODE=offline"
            ) from error
        self._image = wandb.Image
        # A step of ours, since theirs may never go back, as a resumed run does.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        self._run.log({"step": step, **values})

    def image(self, step: int, name: str, picture: Image.Image) -> None:
        """See `Tracker`."""
        self._run.log({"step": step, name: self._image(picture)})

    def close(self) -> None:
        """See `Tracker`."""
        self._run.finish()


class MLflow:
    """MLflow: the server at $MLFLOW_TRACKING_URI, else a data base in the run's folder."""

    def __init__(self, workdir: pathlib.Path, run: str, settings: Mapping[str, Any]) -> None:
        # A server that does not answer is told in seconds: its own way is to try for minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        mlflow = _imported("mlflow")
        uri, pictures = os.environ.get("MLFLOW_TRACKING_URI"), None
        if uri is None:
            _imported("sqlalchemy")
            folder = workdir.resolve() / "mlflow"
            uri, pictures = f"sqlite:///{folder}.db", folder.as_uri()
            if pathlib.Path(f"{folder}.db").is_dir():
                raise SettingError(f"--writers=mlflow: {folder}.db is a folder: move it")
        self._metric = mlflow.entities.Metric
        try:
            self._client = mlflow.MlflowClient(uri)
            self._id = self._begun(workdir.name, run, pictures, settings)
        except mlflow.exceptions.MlflowException as error:
            raise SettingError(
                f"--writers=mlflow: {' '.join(str(error).split())[:300]} (tracking at {uri}, as "
                "$MLFLOW_TRACKING_URI says where it is set)"
            ) from error

    def _begun(self, name: str, run: str, pictures: str | None, settings: Mapping[str, Any]) -> str:
        """The id of this run there: the one that it had before, or a new one."""
        title = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(title)
        if experiment is None:
            known = self._client.create_experiment(title, artifact_location=pictures)
        else:
            known = experiment.experiment_id
        tag = f"tags.{PROJECT}_run = '{run}'"
        if found := self._client.search_runs([known], tag, max_results=1):
            return found[0].info.run_id
        new = self._client.create_run(known, run_name=name, tags={f"{PROJECT}_run": run})
        for key, value in settings.items():
            self._client.log_param(new.info.run_id, key, str(value)[:500])
        return new.info.run_id

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        now = round(1000 * time.time())
        rows = [self._metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self._id, rows)

    def image(self, step: int, name: str, picture: Image.Image) -> None:
        """See `Tracker`."""
        self._client.log_image(self._id, np.asarray(picture), key=name, step=step)

    def close(self) -> None:
        """See `Tracker`."""
        self._client.set_terminated(self._id)


TRACKERS: dict[str, Callable[..., Tracker]] = {"wandb": Wandb, "mlflow": MLflow}


def check(names: Sequence[str]) -> None:
    """Raises ValueError for a tracker that nobody knows, MissingError where its package is not."""
    for name in names:
        one_of("--writers", name, TRACKERS)
        _imported(name)


def opened(
    names: Sequence[str], workdir: pathlib.Path, run: str, settings: Mapping[str, Any]
) -> list[Tracker]:
    """The trackers by these names.

    Args:
      run: what tells this run from all others; one that is resumed goes on there.
      settings: {"part.key": value}, of its config.

    Raises as `check`; ValueError where one cannot be reached.
    """
    check(names)
    return [TRACKERS[name](workdir, run, settings) for name in names]


class Trackers:
    """Several, none of which can end a run: one that fails is told, and left out from then on."""

    def __init__(self, trackers: Sequence[Tracker], say: Callable[[str], None]) -> None:
        self._trackers, self._say = list(trackers), say

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One row of metrics, of which trackers get those that are finite."""
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        self._each(lambda tracker: tracker.scalars(step, finite))

    def image(self, step: int, name: str, picture: Image.Image) -> None:
        """A picture."""
        self._each(lambda tracker: tracker.image(step, name, picture))

    def close(self) -> None:
        """All is sent, or on the disk."""
        self._each(lambda tracker: tracker.close())

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for tracker in list(self._trackers):
            try:
                call(tracker)
            except Exception as error:  # of whatever kind: a run is worth more than its tracker
                self._trackers.remove(tracker)
                name = type(tracker).__name__.lower()
                self._say(
                    f"--writers={name} failed and is left out from here on, metrics.jsonl has all: "
                    f"{' '.join(str(error).split())[:200]}"
                )
