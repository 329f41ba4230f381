"""What one command does: train, sample, evaluate, ... All that `launch.py` and notebooks call."""

import pathlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from PIL import Image
from tqdm import tqdm

from aigc_jax import build, codes, judging, weights
from aigc_jax.data import datasets, mixtures
from aigc_jax.evaluation import evaluators, features, report, results
from aigc_jax.family import Family
from aigc_jax.models import load
from aigc_jax.sampling import draw
from aigc_jax.training import loop, rundir, sharding
from aigc_jax.training.scatter import scatter
from aigc_jax.training.writers import grid, grid_columns, save_image, to_uint8


def train(
    config: Mapping[str, Any],
    workdir: str | pathlib.Path,
    origin: Mapping[str, Any] | None = None,
) -> Any:
    """Trains an experiment in `workdir`, resuming what lies there; returns the last state.

    `origin` is what the run's report shall say of its command: {"config", "command", "base"}.
    """
    dataset = _open_data(config)
    family = build.build(config, dataset.spec)
    evaluators.check_names(config["evaluations"])
    judging.check_draws(family, config["evaluations"])
    if config["evaluation"]["at_end"]:  # what it would lack then is better missed now
        judging.open_eye(config, dataset, sharding.make_mesh())
    initial = partial(weights.load, config["init_from"], config, family)
    state = loop.train(
        config, workdir, family, dataset, initial if config["init_from"] else None, origin
    )
    if int(state.step) == config["train"]["steps"]:
        if config["evaluation"]["at_end"]:
            evaluate(workdir, config)
        else:
            make_report(workdir)
    return state


def _open_data(config: Mapping[str, Any]) -> datasets.Dataset:
    data = dict(config["data"])
    splits = [data.pop("train_split"), data.pop("test_split")]
    splits.append(config["evaluation"]["reference_split"])
    return datasets.load(**data, splits=tuple(dict.fromkeys(splits)))


def sample(
    workdir: str | pathlib.Path,
    config: Mapping[str, Any] | None = None,
    *,
    count: int = 64,
    seed: int = 0,
    labels: Sequence[int] | None = None,
    settings: Mapping[str, Any] | None = None,
    batch_size: int = 64,
    step: int | None = None,
    raw: bool = False,
    frames: int = 0,
    gif: bool = False,
    pictures: bool = False,
    save: str = "",
    output: str | pathlib.Path | None = None,
) -> pathlib.Path:
    """Draws images from a trained model and writes a grid; sample i depends on (seed, i) only.

    Of points in the plane it is a scatter plot.

    Args:
      workdir, config, step, raw: see `load`.
      count: how many images.
      labels: sample i is of class labels[i % len(labels)]; None takes every class in turn.
      settings: replaces values of `config.sampling`, such as sampler, steps, guidance.
      batch_size: images at a time.
      frames: also writes a strip of this many frames of how each image comes to be; with `gif`,
        an animated GIF instead.
      pictures: also writes what the family shows of its codes: interpolations, traversals.
      save: "png" writes every image as a file of its own, "npz" all of them as uint8 arrays
        (points: float32).
      output: folder to write to; None takes generated/ in the workdir.

    Returns:
      The path of the grid.
    """
    workdir = pathlib.Path(workdir)
    if count < 1:
        raise ValueError(f"the number of samples must be at least 1, not {count}")
    if save not in ("", "png", "npz"):
        raise ValueError(f"save is 'png', 'npz' or nothing, not {save!r}")
    if frames < 0 or (gif and not frames):
        raise ValueError(f"an animation needs a number of frames, such as 20, not {frames}")
    config, different = _with_sampling(workdir, config, settings)
    model = load(workdir, config, step=step, raw=raw)
    family = model.family
    judging.check_draws(family, ["samples"])
    if labels is not None:
        _check_labels(labels, family.num_classes)
    elif family.num_classes:
        labels = range(family.num_classes)
    if pictures and family.pictures is None:
        raise ValueError(f"family {config['family']!r} has no pictures of codes to show")
    if frames and family.trajectory is None:
        raise ValueError(f"family {config['family']!r} has no frames to show")

    points = tuple(model.spec.image_shape) == mixtures.SHAPE
    if points and (save == "png" or frames or pictures):
        raise ValueError("points in the plane are drawn as one plot; save=npz has their numbers")

    mesh = sharding.make_mesh()
    # A prior is fitted to training images; points are shown beside real ones.
    dataset = _open_data(config) if family.prior or points else None
    extra = judging.with_prior(config, family, dataset, mesh, model.params, model.extra)
    drawn = partial(
        draw,
        params=model.params,
        extra=extra,
        mesh=mesh,
        seed=seed,
        labels=labels,
    )
    images = []
    with tqdm(total=count, unit="img", desc="sampling", disable=None) as bar:
        for batch in drawn(family.sample, count=count, batch_size=batch_size):
            images.append(batch if points else to_uint8(batch))  # bytes: 50,000 samples fit
            bar.update(len(batch))
    images = np.concatenate(images)

    folder = pathlib.Path(output) if output else workdir / "generated"
    words = [f"step{model.step:08d}", f"seed{seed}", f"n{count}", *["raw"] * raw]
    name = "-".join([*words, *different])
    path = folder / f"{name}.png"
    if points:
        source = dataset.sources[config["data"]["test_split"]]
        save_image(scatter(images, source.fetch(features.some(len(source), 2000))["image"]), path)
    else:
        shown = images[:400].astype(np.float32) / 127.5 - 1  # a larger grid is no picture
        save_image(grid(shown, columns=grid_columns(len(shown), family.num_classes)), path)
    if save == "npz":
        arrays = {"image": images}
        if labels is not None:
            arrays["label"] = np.resize(np.asarray(labels), count)
        np.savez(folder / f"{name}.npz", **arrays)
    if save == "png":
        for i, image in enumerate(images):
            single = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
            save_image(single, folder / name / f"{i:06d}.png")
    if pictures:
        shown = judging.pictures(family, model.params, extra, mesh, seed)
        for path_of in _save_pictures(shown, folder / name).values():
            print(path_of, flush=True)
    if frames:
        first = min(count, 64 if gif else 10)
        trajectory = partial(_trajectory, family, frames)
        strips = np.concatenate(list(drawn(trajectory, count=first, batch_size=first)), axis=1)
        _write_frames(strips, folder / name, gif)
    print(f"{count} samples of step {model.step}: {path}", flush=True)
    return path


def evaluate(
    workdir: str | pathlib.Path,
    config: Mapping[str, Any] | None = None,
    *,
    count: int | None = None,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    batch_size: int = 64,
    step: int | None = None,
    raw: bool = False,
) -> list[results.Row]:
    """Runs `config.evaluations` on a trained model; prints a table and writes it as JSON.

    Args:
      workdir, config, step, raw: see `load`.
      count: samples; None for the config's.
      seed, settings, batch_size: of the samples, as for `sample`.

    Raises:
      ValueError, FileNotFoundError: an unknown evaluator, missing weights or images of another
        size than the feature network's, all before the first sample is drawn.
    """
    workdir = pathlib.Path(workdir)
    config, different = _with_sampling(workdir, config, settings)
    if "evaluations" not in config:
        raise ValueError(f"{workdir} is older than evaluations: name its config by --config too")
    evaluators.check_names(config["evaluations"])
    count = config["evaluation"]["count"] if count is None else count
    mesh, dataset = sharding.make_mesh(), _open_data(config)
    model = load(workdir, config, step=step, raw=raw)
    judging.check_draws(model.family, config["evaluations"])
    eye = judging.open_eye(config, dataset, mesh, batch_size)
    if model.spec.image_shape != dataset.spec.image_shape:
        shapes = ("x".join(map(str, s.image_shape)) for s in (model.spec, dataset.spec))
        raise ValueError("the model draws images of {}, the data set has {}".format(*shapes))
    subject = judging.subject(
        config,
        model.family,
        dataset,
        mesh,
        eye,
        model.params,
        model.extra,
        count=count,
        seed=seed,
        batch_size=batch_size,
    )
    is_run = (workdir / "config.json").exists()  # else weights from elsewhere
    averaged = bool(model.family.averaged) and not raw
    whose = ("EMA" if averaged else "raw") if is_run else "as given"
    protocol = judging.protocol(config, weights=whose, seed=seed)
    rows = evaluators.run(subject, config["evaluations"], **protocol)
    drawn = subject.pictures()
    if jax.process_index() == 0:
        draws = bool(model.family.sample)
        words = [f"step{model.step:08d}", f"seed{seed}", *[f"n{count}"] * draws]
        words += [eye.network.name] if eye else []
        name = "-".join([*words, *["raw"] * raw, *different])
        pictures = {}
        if "memorisation" in config["evaluations"]:
            path = workdir / "evaluations" / f"{name}-nearest.png"
            save_image(_nearest(subject), path)
            pictures[NEAREST] = f"evaluations/{path.name}"
        for caption, path in _save_pictures(drawn, workdir / "evaluations" / name).items():
            pictures[caption] = f"evaluations/{path.name}"
        path = workdir / "evaluations" / f"{name}.json"
        results.write(path, rows, step=model.step, scheduled=False, pictures=pictures)
        print(f"step {model.step} of {workdir}{f', {count} samples' * draws}:", flush=True)
        print(results.table(rows, config["published"]), flush=True)
        print(path, flush=True)
        if is_run:
            make_report(workdir)
    return rows


NEAREST = (
    "Top: the samples nearest to training images, nearest first. Middle: the nearest training "
    "image of each. Bottom: its nearest held-out image."
)


def _nearest(subject: evaluators.Subject, count: int = 12) -> Image.Image:
    """The samples nearest to training images, above these and the nearest held-out ones."""
    found, images = subject.copying, subject.drawn[0]
    order = np.argsort(found.distances[:, 0])[:count]
    rows = [
        images[order],
        *(
            split.fetch(index[order])["image"]
            for split, index in ((subject.reference, found.train), (subject.held_out, found.test))
        ),
    ]
    shown = np.concatenate(rows).astype(np.float32) / 127.5 - 1
    return grid(shown, columns=len(order))


def denoise(
    workdir: str | pathlib.Path,
    input: str | pathlib.Path,
    config: Mapping[str, Any] | None = None,
    *,
    output: str | pathlib.Path | None = None,
    batch_size: int = 64,
    step: int | None = None,
    raw: bool = False,
) -> pathlib.Path:
    """Denoises the images of a folder or .zip with a trained autoencoder; see `codes.denoise`."""
    model = load(workdir, config, step=step, raw=raw)
    output = output or pathlib.Path(workdir) / "denoised"
    path = codes.denoise(model, input, output, batch_size=batch_size)
    print(f"denoised by step {model.step}: {path}", flush=True)
    return path


def translate(
    workdir: str | pathlib.Path,
    input: str | pathlib.Path,
    config: Mapping[str, Any] | None = None,
    *,
    direction: str = "a2b",
    output: str | pathlib.Path | None = None,
    batch_size: int = 64,
    step: int | None = None,
    raw: bool = False,
) -> pathlib.Path:
    """Takes the images of a folder or .zip to the other domain; see `codes.translate_folder`."""
    model = load(workdir, config, step=step, raw=raw)
    output = output or pathlib.Path(workdir) / "translated" / direction
    path = codes.translate_folder(model, input, output, direction, batch_size=batch_size)
    print(f"translated {direction} by step {model.step}: {path}", flush=True)
    return path


def encode(
    workdir: str | pathlib.Path,
    config: Mapping[str, Any] | None = None,
    *,
    output: str | pathlib.Path | None = None,
    step: int | None = None,
    raw: bool = False,
) -> list[pathlib.Path]:
    """Writes the codes of both splits as .npz, with their shift and scale; see `codes`."""
    workdir = pathlib.Path(workdir)
    model = load(workdir, config, step=step, raw=raw)
    config = model.config if config is None else config
    folder, paths = pathlib.Path(output) if output else workdir / "codes", []
    dataset = _open_data(config)
    for split in dict.fromkeys((config["data"]["train_split"], config["data"]["test_split"])):
        found = codes.encode_split(model, config, dataset, split)
        folder.mkdir(parents=True, exist_ok=True)
        paths.append(folder / f"{split}.npz")
        np.savez(paths[-1], **found)
        about = f"shift {found['shift']:.4g}, scale {found['scale']:.4g}"
        print(f"codes {found['mean'].shape} of {split}, {about}: {paths[-1]}", flush=True)
    return paths


def make_report(workdir: str | pathlib.Path) -> None:
    """Writes the report of a run, finished or not."""
    if jax.process_index() == 0:
        print(report.write(workdir), flush=True)


def export(
    workdir: str | pathlib.Path,
    output: str | pathlib.Path,
    config: Mapping[str, Any] | None = None,
    *,
    step: int | None = None,
) -> None:
    """Writes a run's model as a folder for diffusers."""
    model = load(workdir, config, step=step)
    weights.export(output, model.params, model.config, model.spec)
    print(f"step {model.step} of {workdir} as a diffusers pipeline: {output}", flush=True)


def _with_sampling(
    workdir: pathlib.Path, config: Mapping[str, Any] | None, settings: Mapping[str, Any] | None
) -> tuple[dict[str, Any], list[str]]:
    """A run's config, or the one given, with other values of `config.sampling`.

    Also what differs from how the run itself samples, as parts of a file's name.
    """
    recorded = None
    if config is None or (workdir / "config.json").exists():
        recorded = rundir.read(workdir, "config.json")
    config = rundir.as_dict(recorded if config is None else config)
    given = {key: value for key, value in (settings or {}).items() if value is not None}
    sampling = config["sampling"] | given
    own = (recorded or config)["sampling"]
    keys = dict.fromkeys((*given, *sampling))  # in the order in which they were asked for
    words = [f"{key}_{sampling[key]}" for key in keys if sampling[key] != own.get(key)]
    return config | {"sampling": sampling}, words


def _trajectory(family: Family, frames: int, *of_sample: Any) -> Any:
    return family.trajectory(*of_sample, frames)


def _save_pictures(drawn: Mapping[str, np.ndarray], path: pathlib.Path) -> dict[str, pathlib.Path]:
    """Writes {caption: images [rows, columns, H, W, C]} beside `path`, named by its first word."""
    written = {}
    for caption, images in drawn.items():
        written[caption] = path.with_name(f"{path.name}-{caption.split(':')[0].lower()}.png")
        sheet = grid(images.reshape(-1, *images.shape[2:]), columns=images.shape[1])
        save_image(sheet, written[caption])
    return written


def _write_frames(strips: np.ndarray, path: pathlib.Path, gif: bool) -> None:
    """Frames [frames, n, H, W, C] as a sheet with a row for each image, or as an animated grid."""
    if gif:
        path = path.with_name(path.name + ".gif")
        pictures = [grid(frame).convert("P") for frame in strips]
        durations = [80] * (len(pictures) - 1) + [1500]  # milliseconds; the result stays
        pictures[0].save(
            path, save_all=True, append_images=pictures[1:], duration=durations, loop=0
        )
    else:
        path = path.with_name(path.name + "-strip.png")
        rows = strips.swapaxes(0, 1).reshape(-1, *strips.shape[2:])
        save_image(grid(rows, columns=len(strips)), path)
    print(f"how they came to be: {path}", flush=True)


def _check_labels(labels: Sequence[int], classes: int) -> None:
    if not classes:
        raise ValueError("labels were asked for, but this model was trained without them")
    wrong = [label for label in labels if not 0 <= label < classes]
    if wrong:
        raise ValueError(f"labels {wrong} are not in 0..{classes - 1}")
