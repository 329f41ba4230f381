"""Draws samples from a trained model and writes a picture of them."""

import argparse
import difflib
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from aigc_jax import files, modalities
from aigc_jax.commands import common
from aigc_jax.evaluation.features import subsample
from aigc_jax.modalities import Modality
from aigc_jax.modalities.image import grid_columns, save_image
from aigc_jax.runs import model as models
from aigc_jax.runs import pictures as figures
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
    "batch",
    "step",
    "best",
    "raw",
    "dtype",
    "frames",
    "gif",
    "pictures",
    "save",
    "output",
    "distributed",
    "coordinator",
    "processes",
    "process",
    "join_timeout",
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
        settings={"sampler": flags.sampler, "steps": flags.steps, "guidance": flags.guidance},
        batch_size=flags.batch,
        step=flags.step,
        best=flags.best,
        raw=flags.raw,
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
    dtype: str | None = None,
    frames: int = 0,
    gif: bool = False,
    pictures: bool = False,
    save: str = "",
    output: str | pathlib.Path | None = None,
) -> pathlib.Path:
    """Draws samples; writes a grid of images, or a plot of points in the plane over real ones.

    Args:
      workdir, config, step, best, raw, dtype: see `runs.model.load`.
      count: how many samples; sample i depends on (seed, i) only.
      labels: names or numbers of classes, sample i being of labels[i % len(labels)]; None takes
        every class in turn.
      settings: replaces values of `config.sampling`, such as sampler, steps, guidance.
      batch_size: samples at a time.
      frames: also writes a strip of this many frames of how each sample comes to be; with `gif`,
        an animated GIF instead.
      pictures: also writes what the family shows of its codes: interpolations, traversals.
      save: "png" writes every sample as a file of its own, "npz" all of them as arrays "x", as
        they are stored (images: uint8), and "label" where there are labels.
      output: folder to write to; None takes generated/ in the workdir.

    Returns:
      The path of the picture.

    Raises:
      FileNotFoundError, ValueError: no such run, or what this model cannot draw or show.
    """
    workdir = pathlib.Path(workdir)
    check_arguments(count, frames, gif, save)
    mesh = sharding.make_mesh()
    config, different = common.with_sampling(workdir, config, settings)
    data = common.LazyData(config, mesh)
    model = models.load(
        workdir, config, step=step, best=best, raw=raw, dtype=dtype, codes=data.codes
    )
    check_draws(model.family, ["samples"])
    labels = labels_of(model, labels)
    modality = modalities.of(model.spec.kind)
    check_shows(model, modality, frames=frames, pictures=pictures, save=save)

    driver = model.driver(mesh)
    drawn = partial(draw, driver, model.variables, mesh, seed=seed, labels=labels)
    batches = with_bar(drawn(count=count, batch_size=batch_size), count)
    # As stored, an image takes a byte a value: 50,000 samples fit in memory.
    samples = np.concatenate([modality.to_stored(batch) for batch in batches])
    if frames:
        first = min(count, 64 if gif else 10)
        strips = list(drawn(count=first, batch_size=first, frames=frames))
    if pictures:
        shown = figures.figures(model.family, model.variables, mesh, seed, model.spec.kind)

    folder = pathlib.Path(output) if output else workdir / "generated"
    words = [f"step{model.step:08d}", f"seed{seed}", f"n{count}", *["raw"] * raw]
    name = "-".join([*words, *filter(None, [dtype]), *different])
    path = folder / f"{name}.png"
    if jax.process_index() > 0:  # the first process writes for all
        return path
    save_image(picture_of(samples, modality, data, model), path)
    if save:
        save_samples(samples, labels, modality, folder / name, save)
    if pictures:
        for path_of in figures.save(shown, folder, name).values():
            print(path_of, flush=True)
    if frames:
        save_frames(np.concatenate(strips, axis=1), modality, folder / name, gif)
    print(f"{count} samples of {model.named}: {path}", flush=True)
    return path


def check_arguments(count: int, frames: int, gif: bool, save: str) -> None:
    """Raises ValueError for arguments that no model could follow."""
    if count < 1:
        raise ValueError(f"the number of samples must be at least 1, not {count}")
    if save not in ("", "png", "npz"):
        raise ValueError(f"save is 'png', 'npz' or nothing, not {save!r}")
    if frames < 0 or (gif and not frames):
        raise ValueError(f"an animation needs a number of frames, such as 20, not {frames}")


def labels_of(model: models.Model, labels: Sequence[int | str] | None) -> Sequence[int] | None:
    """The labels asked for, else every class in turn; None of a model without classes.

    A word is the name of a class, else its number.
    """
    every, names = figures.labels_of(model.family), model.spec.class_names
    if not labels:
        return every
    if every is None:
        raise ValueError("labels were asked for, but this model was trained without them")
    known = {word: label for label in every for word in (label, str(label))}
    known |= {name: label for label, name in enumerate(names)}
    wrong = [str(label) for label in labels if label not in known]
    if wrong:
        near = difflib.get_close_matches(wrong[0], names, n=3) or names[:6]
        named = f" and are no names of classes such as {', '.join(near)}" if names else ""
        raise ValueError(f"labels {', '.join(wrong)} are not in 0..{len(every) - 1}{named}")
    return [known[label] for label in labels]


def check_shows(
    model: models.Model, modality: Modality, *, frames: int, pictures: bool, save: str
) -> None:
    """Raises ValueError where the model, or its kind of data, has nothing of what was asked for."""
    family, name = model.family, model.config["family"]
    if pictures and not (family.views and family.views.figures):
        raise ValueError(f"family {name!r} has no pictures of codes to show")
    if frames and not (family.drawing.steps or family.drawing.between):
        raise ValueError(f"family {name!r} has no frames to show")
    if modality.save is None and (save == "png" or frames or pictures):
        raise ValueError(f"{modality.kind} are drawn as one plot; save=npz has their numbers")


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
    """Writes samples as stored to `path`.npz, or each to a file of its own in the folder `path`."""
    if how == "png":
        modality.save(samples, path)
        return
    arrays = {"x": samples}
    if labels is not None:
        arrays["label"] = np.resize(np.asarray(labels), len(samples))
    whole = path.with_name(path.name + ".npz")
    with files.replacing(whole) as partial_path, partial_path.open("wb") as file:
        np.savez(file, **arrays)  # given a name, it would add a suffix of its own


def save_frames(strips: np.ndarray, modality: Modality, path: pathlib.Path, gif: bool) -> None:
    """Frames [frames, n, ...] as a sheet with a row for each sample, or as an animated grid."""
    if gif:
        path = path.with_name(path.name + ".gif")
        images = [modality.picture(frame).convert("P") for frame in strips]
        durations = [80] * (len(images) - 1) + [1500]  # milliseconds; the result stays
        with files.replacing(path) as partial_path:
            options = {"append_images": images[1:], "duration": durations, "loop": 0}
            images[0].save(partial_path, format="GIF", save_all=True, **options)
    else:
        path = path.with_name(path.name + "-strip.png")
        rows = strips.swapaxes(0, 1).reshape(-1, *strips.shape[2:])
        save_image(modality.picture(rows, columns=len(strips)), path)
    print(f"how they came to be: {path}", flush=True)
