"""Draws samples from a trained model and writes a picture of them."""

import argparse
import difflib
import hashlib
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from aigc_jax import files, modalities
from aigc_jax.commands import common
from aigc_jax.errors import SettingError
from aigc_jax.evaluation.features import subsample
from aigc_jax.modalities import Modality
from aigc_jax.modalities.image import grid_columns, save_image
from aigc_jax.runs import folder as folders
from aigc_jax.runs import model as models
from aigc_jax.runs import pictures as figures
from aigc_jax.runs.averages import weights_word
from aigc_jax.runs.evaluations import check_draws
from aigc_jax.sampling.driver import draw
from aigc_jax.training import sharding

FLAGS: tuple[str, ...] = (
    "num",
    "seed",
    "labels",
    "sampler",
    "steps",
    "guidance",
    "autoguidance",
    "weak",
    "batch",
    "step",
    "best",
    "raw",
    "ema",
    "dtype",
    "frames",
    "gif",
    "pictures",
    "save",
    "output",
)
MOST = 400  # samples of which each is shown apart; a larger grid is no picture
REAL = 2000  # real examples behind samples that are drawn into one plot


def main(flags: argparse.Namespace) -> None:
    """Runs the command as its flags say."""
    run(
        flags.workdir,
        flags.config,
        count=64 if flags.num is None else flags.num,
        seed=flags.seed,
        labels=flags.labels,
        settings={key: getattr(flags, key) for key in common.OF_SAMPLING},
        batch_size=flags.batch,
        step=flags.step,
        best=flags.best,
        raw=flags.raw,
        ema=flags.ema,
        dtype=flags.dtype,
        frames=flags.frames,
        gif=flags.gif,
        pictures=flags.pictures,
        save=flags.save,
        output=flags.output,
    )


def run(
    workdir: str | pathlib.Path,
    config: Mapping[str, Any] | None = None,
    *,
    count: int = 64,
    seed: int = 0,
    labels: Sequence[int | str] | None = None,
    settings: Mapping[str, Any] | None = None,
    batch_size: int = 64,
    step: int | None = None,
    best: bool = False,
    raw: bool = False,
    ema: str | float = "",
    dtype: str | None = None,
    frames: int = 0,
    gif: bool = False,
    pictures: bool = False,
    save: str = "",
    output: str | pathlib.Path | None = None,
) -> pathlib.Path:
    """Draws samples; writes a grid of images, or a plot of points in the plane over real ones.

    Args:
      workdir, config, step, best, raw, ema, dtype: see `runs.model.load`.
      count: how many samples; sample i depends on (seed, i) only.
      labels: names or numbers of classes, sample i being of labels[i % len(labels)]; None takes
        every class in turn.
      settings: replaces values of `config.sampling`, such as sampler, steps, guidance.
      batch_size: samples at a time.
      frames: also writes so many frames of how each sample comes to be: a strip, or a GIF (`gif`).
      pictures: also writes what the family shows of its codes: interpolations, traversals.
      save: "png" writes every sample as a file of its own, "npz" all of them as arrays "x", as
        they are stored (images: uint8), and "label" where there are labels.
      output: folder to write to, where nothing has the names of these files yet; None takes
        generated/ in the workdir, where they are made again: their names say all they depend on.

    Returns:
      The path of the picture.

    Raises:
      FileNotFoundError, ValueError: no such run, what it cannot draw or show, nowhere to write.
    """
    workdir, mesh = files.expanded(workdir), sharding.make_mesh()
    check_arguments(count, frames, gif, save)
    config, different = common.with_sampling(workdir, config, settings)
    data = common.LazyData(config, mesh)
    model = models.outline(workdir, config)
    modality = modalities.of(model.spec.kind)
    check_draws(model.family, ["samples"])
    asked, labels = labels, labels_of(model, labels)
    check_shows(model, modality, frames=frames, pictures=pictures, save=save)
    folder = files.expanded(output) if output else workdir / "generated"
    check_room(folder, model, modality, count if save == "npz" else 0)
    options = {"step": step, "best": best, "raw": raw, "ema": ema, "dtype": dtype}
    model = models.load(workdir, config, **options, codes=data.codes, family=model.family)
    words = [*weights_word(raw, ema), *filter(None, [dtype]), *labels_word(asked and labels)]
    name = "-".join([f"step{model.step:08d}", f"seed{seed}", f"n{count}", *words, *different])
    new = bool(output) or not folders.is_run(workdir)  # samples of another run may be called so
    of = model.family, model.variables, mesh
    others = figures.figure_paths(*of, folder, name) if pictures else []
    check_places(folder / name, others, new=new, save=save, frames=frames, gif=gif)

    drawn = partial(draw, model.driver(mesh), model.variables, mesh, seed=seed, labels=labels)
    batches = with_bar(drawn(count=count, batch_size=batch_size), count)
    # As stored, an image takes a byte a value: 50,000 samples fit in memory.
    samples = np.concatenate([modality.to_stored(batch) for batch in batches])
    if frames:
        strips = strips_of(drawn, min(count, 64 if gif else 10), frames)
    shown = figures.figures(*of, seed, model.spec.kind) if pictures else []
    path = folder / f"{name}.png"
    if jax.process_index() > 0:  # the first process writes for all
        return path
    save_image(picture_of(samples, modality, data, model), path)
    save_samples(samples, labels, modality, folder / name, save)
    if pictures:
        print(*figures.save(shown, folder, name).values(), sep="\n", flush=True)
    if frames:
        save_frames(strips, modality, frames_path(folder / name, frames, gif))
    print(f"{count} samples of {model.named}: {path}{calls_word(model)}", flush=True)
    return path


def check_arguments(count: int, frames: int, gif: bool, save: str) -> None:
    """Raises ValueError for arguments that no model could follow."""
    if count < 1:
        raise SettingError(f"the number of samples must be at least 1, not {count}")
    if save not in ("", "png", "npz"):
        raise SettingError(f"save is 'png', 'npz' or nothing, not {save!r}")
    if frames < 0 or (gif and not frames):
        raise SettingError(f"an animation needs a number of frames, such as 20, not {frames}")


def calls_word(model: models.Model) -> str:
    """How often each sample asked the network, in words; "" where nobody counts."""
    calls = model.family.drawing.calls
    return f" ({calls} network calls a sample)" if calls else ""


def labels_word(labels: Sequence[int] | None) -> list[str]:
    """Labels asked for as a part of a file's name, [] for none; many of them by a digest."""
    if not labels:
        return []
    word = "_".join(map(str, labels))
    if len(word) > 40:
        word = f"{len(labels)}_{hashlib.sha256(word.encode()).hexdigest()[:8]}"
    return [f"labels_{word}"]


def check_room(folder: pathlib.Path, model: models.Model, modality: Modality, arrays: int) -> None:
    """Raises ValueError where a folder cannot be written to, or so many samples are too large."""
    shape = model.spec.shape
    stored = modality.to_stored(np.zeros((0, *shape), np.float32)).itemsize
    size = arrays * math.prod(shape) * stored
    sharding.check_on_first(partial(files.check, folder, folders=True, new=False, size=size))


def check_places(
    path: pathlib.Path,
    others: Sequence[pathlib.Path] = (),
    *,
    new: bool,
    save: str,
    frames: int,
    gif: bool,
) -> None:
    """Raises ValueError where files by this name (before its suffixes), or others, cannot be."""
    paths = [path.with_name(path.name + ".png"), *others]
    paths += [path.with_name(path.name + ".npz")] * (save == "npz")
    paths += [frames_path(path, frames, gif)] * bool(frames)

    def check() -> None:
        files.check(*paths, new=new)
        if save == "png":
            files.check(path, folders=True, new=new)

    sharding.check_on_first(check)


def labels_of(model: models.Model, labels: Sequence[int | str] | None) -> Sequence[int] | None:
    """The labels asked for, else every class in turn; None of a model without classes.

    A word is the name of a class, else its number.
    """
    every, names = figures.labels_of(model.family), model.spec.class_names
    if not labels:
        return every
    if every is None:
        raise SettingError("labels were asked for, but this model was trained without them")
    known = {word: label for label in every for word in (label, str(label))}
    known |= {name: label for label, name in enumerate(names)}
    wrong = [str(label) for label in labels if label not in known]
    if wrong:
        near = difflib.get_close_matches(wrong[0], names, n=3) or names[:6]
        named = f" and are no names of classes such as {', '.join(near)}" if names else ""
        raise SettingError(f"labels {', '.join(wrong)} are not in 0..{len(every) - 1}{named}")
    return [known[label] for label in labels]


def check_shows(
    model: models.Model, modality: Modality, *, frames: int, pictures: bool, save: str
) -> None:
    """Raises ValueError where the model, or its kind of data, has nothing of what was asked for."""
    family, name = model.family, model.config["family"]
    if pictures and not (family.views and family.views.figures):
        raise SettingError(f"family {name!r} has no pictures of codes to show")
    if frames and not (family.drawing.steps or family.drawing.between):
        raise SettingError(f"family {name!r} has no frames to show")
    if modality.save is None and (save == "png" or frames or pictures):
        raise SettingError(f"{modality.kind} are drawn as one plot; save=npz has their numbers")


def with_bar(batches: Iterator[np.ndarray], count: int) -> Iterator[np.ndarray]:
    """The batches, with a bar that shows how many of `count` samples are there."""
    with tqdm(total=count, unit="img", desc="sampling", disable=None) as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch))


def picture_of(
    samples: np.ndarray, modality: Modality, data: common.LazyData, model: models.Model
) -> Any:
    """The picture of samples as stored: a grid of the first, or a plot of all over real ones."""
    if modality.save is None:  # they are shown together
        real_data = data.open()
        source = real_data.dataset.sources[real_data.test_split]
        real = source.fetch(subsample(len(source), REAL))["x"]
        return modality.picture(modality.to_model(samples), real=modality.to_model(real))
    shown = modality.to_model(samples[:MOST])
    classes = len(figures.labels_of(model.family) or ())
    return modality.picture(shown, columns=grid_columns(len(shown), classes))


def save_samples(
    samples: np.ndarray,
    labels: Sequence[int] | None,
    modality: Modality,
    path: pathlib.Path,
    how: str,
) -> None:
    """Writes samples as stored: "npz" to `path`.npz, "png" each to a file in the folder `path`."""
    if how == "png":
        with files.folder(path) as place:
            modality.save(samples, place)
    elif how == "npz":
        arrays = {"x": samples}
        if labels is not None:
            arrays["label"] = np.resize(np.asarray(labels), len(samples))
        files.write_arrays(path.with_name(path.name + ".npz"), arrays)


def strips_of(drawn: Callable[..., Iterator[np.ndarray]], count: int, frames: int) -> np.ndarray:
    """So many frames of how each of the first samples comes to be, [frames, count, ...]."""
    return np.concatenate(list(drawn(count=count, batch_size=count, frames=frames)), axis=1)


def frames_path(path: pathlib.Path, frames: int, gif: bool) -> pathlib.Path:
    """Where so many frames of the samples at a path lie."""
    return path.with_name(f"{path.name}-frames_{frames}" + (".gif" if gif else "-strip.png"))


def save_frames(strips: np.ndarray, modality: Modality, path: pathlib.Path) -> None:
    """Frames [frames, n, ...] as a sheet with a row for each sample, or as an animated grid."""
    if path.suffix == ".gif":
        images = [modality.picture(frame).convert("P") for frame in strips]
        durations = [80] * (len(images) - 1) + [1500]  # milliseconds; the result stays
        with files.replacing(path) as partial_path:
            options = {"append_images": images[1:], "duration": durations, "loop": 0}
            images[0].save(partial_path, format="GIF", save_all=True, **options)
    else:
        rows = strips.swapaxes(0, 1).reshape(-1, *strips.shape[2:])
        save_image(modality.picture(rows, columns=len(strips)), path)
    print(f"how they came to be: {path}", flush=True)
