"""Edits images of a file, folder or .zip with a trained diffusion model."""

import argparse
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from aigc_jax import files, modalities
from aigc_jax.checks import one_of
from aigc_jax.commands import common, sample
from aigc_jax.errors import SettingError
from aigc_jax.family import Drawing
from aigc_jax.runs import edits
from aigc_jax.runs import model as models

FLAGS: tuple[str, ...] = (
    "edit",
    "input",
    "mask",
    "strength",
    "resample",
    "factor",
    "seed",
    "labels",
    "sampler",
    "steps",
    "guidance",
    "resize",
    "frames",
    "gif",
    "output",
    "batch",
    "step",
    "best",
    "raw",
    "ema",
    "dtype",
)
# {edit: the flags that only some edits take}
EDITS = {
    "vary": ("strength", "seed", "sampler", "resize", "frames", "gif"),
    "inpaint": ("mask", "resample", "seed", "resize", "frames", "gif"),
    "upscale": ("factor", "seed", "sampler", "frames", "gif"),
    "invert": ("resize",),
    "interpolate": ("resize", "frames", "gif"),
}
# {edit: names in `Family.edits`, in the order in which they run}
RUNS = {"invert": ("invert", "reconstruct"), "interpolate": ("invert", "interpolate")}
# {edit: (its setting, the value where none is given)}
SETTINGS = {"vary": ("strength", 0.5), "inpaint": ("resample", 10), "upscale": ("factor", 2)}
UNSET = {"seed": 0, "frames": 0, "resize": False, "gif": False}  # defaults of flags, else None
MOST = {"gif": 64, "strip": 10}  # images of which frames are shown
BETWEEN = 8  # images from one to the next


def main(flags: argparse.Namespace) -> None:
    """Runs the command as its flags say."""
    if not flags.input:
        raise SettingError("name the images to edit, as in --input=FOLDER")
    if not flags.edit:
        raise SettingError(f"name the edit, as in --edit=vary: there are {', '.join(EDITS)}")
    options = {name: getattr(flags, name) for name in dict.fromkeys(sum(EDITS.values(), ()))}
    run(
        flags.workdir,
        flags.input,
        flags.edit,
        flags.config,
        **{name: value for name, value in options.items() if value != UNSET.get(name)},
        labels=flags.labels,
        settings={"steps": flags.steps, "guidance": flags.guidance},
        output=flags.output,
        batch_size=flags.batch,
        step=flags.step,
        best=flags.best,
        raw=flags.raw,
        ema=flags.ema,
        dtype=flags.dtype,
    )


def run(
    workdir: str | pathlib.Path,
    input: str | pathlib.Path,
    edit: str,
    config: Mapping[str, Any] | None = None,
    *,
    labels: Sequence[int | str] | None = None,
    settings: Mapping[str, Any] | None = None,
    output: str | pathlib.Path | None = None,
    batch_size: int = 64,
    step: int | None = None,
    best: bool = False,
    raw: bool = False,
    ema: str | float = "",
    dtype: str | None = None,
    **options: Any,
) -> pathlib.Path:
    """Edits every image of a file, folder or .zip, each to a PNG of its own name and size.

    "vary" makes images like each, "inpaint" paints anew where a mask is white, "upscale" makes
    large images of small ones, "invert" finds the noise that each comes of and goes back from
    there, and "interpolate" goes from each image to the next.

    Args:
      workdir, config, step, best, raw, ema, dtype: see `runs.model.load`.
      input: the file, folder or .zip, of images of the model's size.
      edit: a name of `EDITS`.
      labels: names or numbers of classes, image i being of labels[i % len(labels)]; None edits
        without labels.
      settings: replaces values of `config.sampling`, such as steps and guidance.
      output: new folder to write to; None takes edited/EDIT in the workdir.
      batch_size: images at a time.
      options: those that `EDITS` names of the edit. `strength`, above 0 and up to 1: the share of
        the sampler's steps that are made from an image with noise; `sampler`: in place of the
        config's; `mask`: a file for all images, or a folder or .zip with one of each image's name;
        `resample`: how often each step is made; `factor`: by which images are smaller than the
        model's; `seed`: what is random for image i depends on (seed, i); `resize`: images of
        another size are scaled to fit, and the results back; `frames`: also writes so many of how
        results come to be, or of "interpolate" the images of each pair; `gif`: these as an
        animation.

    Returns:
      The path of the picture of what was given and what became of it.

    Raises:
      FileNotFoundError, ValueError: no such run, images or masks, a family that cannot edit, an
        option out of its range, nowhere to write.
    """
    workdir = files.expanded(workdir)
    check_options(edit, options)
    settings = {**(settings or {}), "sampler": options.get("sampler")}
    config, _ = common.with_sampling(workdir, config, settings)
    outline = models.outline(workdir, config)
    drawings = drawings_of(outline, edit, options)
    labels = labels_of(outline, edit, labels)
    output = files.expanded(output or workdir / "edited" / edit).resolve()
    picture, *beside = places(output, edit, options)
    edits.check(input, output, picture, *beside)
    found, masks = images_of(drawings[0], edit, input, options)
    weights = {"step": step, "best": best, "raw": raw, "ema": ema, "dtype": dtype}
    model = models.load(workdir, config, **weights, family=outline.family)
    work = edits.Work(model, labels, options.get("seed", 0), batch_size)
    said = carry_out(work, drawings, edit, found, masks, output, options)
    if jax.process_index() == 0:
        calls = " + ".join(str(drawing.calls) for drawing in drawings)
        said = f"{edit} by {model.named}, {calls} network calls an image{said}"
        print(f"{said}: {output}, shown in {picture}", flush=True)
    return picture


def carry_out(
    work: edits.Work,
    drawings: Sequence[Drawing],
    edit: str,
    found: edits.Images,
    masks: edits.Images | None,
    output: pathlib.Path,
    options: Mapping[str, Any],
) -> str:
    """Makes and writes all results; returns what was measured, in words."""
    count, said, moving = options.get("frames", 0), "", None
    if edit == "invert":
        latent = edits.inverted(work, drawings[0], found)
        errors = edits.reconstruct(work, drawings[1], found, latent, output)
        said = f", PSNR {errors['psnr']:.2f} dB, L1 {errors['l1']:.4f}"
    elif edit == "interpolate":
        latent = edits.inverted(work, drawings[0], found)
        moving = edits.interpolate(work, drawings[1], found, latent, count, output)
    else:
        most = min(MOST["gif" if options.get("gif") else "strip"], len(found.x))
        watch = edits.Watch(count, most) if count else None
        edits.edit(work, drawings[0], found, masks, output, edit, watch)
        moving = watch and watch.frames()
    if moving is not None and jax.process_index() == 0:
        path = sample.frames_path(output, count, options.get("gif", False))
        sample.save_frames(moving, modalities.of(work.model.spec.kind), path)
    return said


def places(output: pathlib.Path, edit: str, options: Mapping[str, Any]) -> list[pathlib.Path]:
    """The files that are written beside the folder `output`, the picture first."""
    found = [] if edit == "interpolate" else [edits.compared(output)]
    if options.get("frames"):
        found.append(sample.frames_path(output, options["frames"], options.get("gif", False)))
    if edit == "invert":
        found += [edits.errors_path(output), edits.latents_path(output)]
    return found


def check_options(edit: str, options: dict[str, Any]) -> None:
    """Raises ValueError for options that no model could follow; gives some their defaults."""
    one_of("--edit", edit, EDITS)
    for name in options:
        if name not in EDITS[edit]:
            others = [f"--edit={other}" for other, taken in EDITS.items() if name in taken]
            instead = f": it is of {', '.join(others)}" if others else ""
            raise SettingError(f"--edit={edit} takes no --{name}{instead}")
    if edit == "inpaint" and not options.get("mask"):
        raise SettingError(
            "name what is painted anew, as in --mask=mask.png: white there, black where the image "
            "stays"
        )
    if edit == "interpolate" and options.setdefault("frames", BETWEEN) < 2:
        raise SettingError("from one image to the next there are at least --frames=2, the two")
    if options.get("gif") and not options.get("frames"):
        raise SettingError("an animation needs a number of frames, such as --frames=20")


def drawings_of(model: models.Model, edit: str, options: Mapping[str, Any]) -> list[Drawing]:
    """What an edit runs, in this order.

    Raises:
      ValueError: a family that cannot edit so, or a setting out of its range.
    """
    parts, (name, default) = RUNS.get(edit, (edit,)), SETTINGS.get(edit, ("", None))
    if not all(part in model.family.edits for part in parts):
        raise SettingError(
            f"family {model.config['family']!r} of {model.spec.kind} data has no edit {edit!r}: "
            "take a diffusion model of images"
        )
    setting = {name: options.get(name, default)} if name else {}
    return [model.family.edits[part](**setting) for part in parts]


def labels_of(
    model: models.Model, edit: str, labels: Sequence[int | str] | None
) -> Sequence[int] | None:
    """The labels asked for; None for none, which not every conditional model can do without."""
    if labels:
        if edit == "interpolate" and len(labels) > 1:
            raise SettingError("images between two have one label: name one by --labels")
        return sample.labels_of(model, labels)
    if model.config.get("sampling", {}).get("guidance", 1.0) != 1.0:
        raise SettingError("edits without labels cannot be guided: give --labels, or --guidance=1")
    section = model.config.get("diffusion", {})
    if section.get("conditional") and not section.get("label_dropout"):
        raise SettingError(
            "this model was trained with the label of every image: name those of the images, in "
            "the order of their names, as in --labels=3,7"
        )
    return None


def images_of(
    drawing: Drawing,
    edit: str,
    input: str | pathlib.Path,
    options: Mapping[str, Any],
) -> tuple[edits.Images, edits.Images | None]:
    """The images that are given, and their masks where the edit takes any."""
    *size, channels = drawing.conditions["image"].shape
    instead = "scale them, or give --resize, which scales them to fit and the results back"
    if edit == "upscale":
        instead = "scale them, or name another --factor"
    found = edits.read(
        input, tuple(size), channels, resize=options.get("resize", False), instead=instead
    )
    if edit == "interpolate" and len(found.names) < 2:
        raise SettingError(f"there is one image in {input}, and nothing to go to from it: add one")
    return found, edits.read_masks(options["mask"], found) if edit == "inpaint" else None
