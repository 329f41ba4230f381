"""Images of files edited by a trained model, each to a PNG of its own, by `Family.edits`."""

import contextlib
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from PIL import UnidentifiedImageError
from tqdm import tqdm

from aigc_jax import files
from aigc_jax.data import images
from aigc_jax.errors import MissingError, SettingError
from aigc_jax.evaluation.metrics.image_quality import l1, psnr
from aigc_jax.family import Cond, Drawing, Variables
from aigc_jax.modalities.image import save_image, to_float, to_pil, to_uint8
from aigc_jax.runs.image_folder import (
    SHOWN,
    Frame,
    Size,
    comparison,
    framed,
    of_one_size,
    output_names,
    unframed,
)
from aigc_jax.runs.model import Model
from aigc_jax.sampling.driver import Driver, draw
from aigc_jax.training import sharding

GREY = 128  # what a picture shows in place of what is painted anew
ANEW = 128  # of a mask, from which value on a pixel is painted anew


class Images(NamedTuple):
    """Images of files, as a model takes them.

    Attributes:
      source: where they lie.
      names: of each its file there.
      frames: how each is brought to the model's size.
      sizes: of each, upright.
      x: uint8 [n, h, w, C], of the model's size.
    """

    source: images.Files
    names: tuple[str, ...]
    frames: tuple[Frame, ...]
    sizes: tuple[Size, ...]
    x: np.ndarray

    def own(self, i: int) -> np.ndarray:
        """Image i as it was given, uint8 [H, W, C]."""
        if self.sizes[i] == self.x.shape[1:3]:
            return self.x[i]
        return _decoded(self.source, self.names[i], self.x.shape[-1])


class Work(NamedTuple):
    """A model, and how it draws.

    Attributes:
      model: as `model.load` gives it.
      labels: of image i labels[i % len(labels)]; None draws without labels.
      seed: what is random for image i depends on (seed, i) alone.
      batch_size: images at a time.
    """

    model: Model
    labels: Sequence[int] | None = None
    seed: int = 0
    batch_size: int = 64

    def draw(
        self,
        drawing: Drawing,
        given: Callable[[np.ndarray], Mapping[str, np.ndarray]],
        count: int,
        doing: str = "",
        watch: "Watch | None" = None,
    ) -> np.ndarray:
        """What a drawing makes of `given`, [count, ...] in the model's range.

        Args:
          given: as `sampling.driver.draw` takes it.
          doing: names the progress bar.
          watch: keeps how the first results come to be.
        """
        mesh = sharding.make_mesh()
        driver = Driver(drawing, mesh.devices.flat[0].platform)
        batches = draw(
            watch.over(driver) if watch else driver, self.model.variables, mesh, seed=self.seed,
            count=count, labels=self.labels, given=given, batch_size=self.batch_size,
        )  # fmt: skip
        return np.concatenate(list(_with_bar(batches, count, doing)))


class Watch:
    """Keeps how the first results of a draw come to be, while they do."""

    def __init__(self, count: int, most: int) -> None:
        """
        Args:
          count: of frames.
          most: results of which they are kept, no more than there are.
        """
        self.count, self.most = count, most
        self._found: list[np.ndarray] = []

    def over(self, driver: Driver) -> Callable:
        """What `sampling.driver.draw` calls in place of the driver: the same results."""

        def run(variables: Variables, keys: jax.Array, cond: Cond) -> jax.Array:
            if sum(found.shape[1] for found in self._found) >= self.most:
                return driver(variables, keys, cond)
            results, frames = driver.with_frames(variables, keys, cond, self.count)
            self._found.append(sharding.fetch(frames))
            return results

        return run

    def frames(self) -> np.ndarray:
        """Those of the first `most` results, [count, most, ...] in the model's range."""
        return np.concatenate(self._found, axis=1)[:, : self.most]


def opened(path: str | pathlib.Path, flag: str) -> images.Files:
    """The files of a folder or .zip, or one that is an image itself.

    Args:
      flag: what to set where there is nothing.

    Raises:
      ValueError: as `images.open_folder`.
    """
    root = files.expanded(path)
    if not (root.is_file() and images.suffix(root.name) in images.suffixes()):
        return images.open_folder(str(path), flag)
    sizes = {root.name: root.stat().st_size}
    return images.Files(
        str(path), (root.name,), (), (), sizes, {}, (), lambda name: root.open("rb")
    )


def read(
    path: str | pathlib.Path, size: Size, channels: int, *, resize: bool = False, instead: str
) -> Images:
    """The images of a file, a folder or a .zip.

    Args:
      size: of those that are taken.
      channels: 1 or 3.
      resize: whether others are scaled to fit in it, and continued by their reflection.
      instead: what to do where images have another size.

    Raises:
      ValueError: nothing there, an image that cannot be read, or one of another size.
    """
    source = opened(path, "--input")
    found = _read(source, source.names, size, channels)
    others = [i for i, own in enumerate(found.sizes) if own != size]
    if others and not resize:
        name, own = found.names[others[0]], _pixels(found.sizes[others[0]])
        raise SettingError(
            f"{len(others)} of {len(found.names)} images are not of {_pixels(size)} pixels, such "
            f"as {name} with {own}: {instead}"
        )
    return found


def read_masks(path: str | pathlib.Path, given: Images) -> Images:
    """A mask for each image, white where it is painted anew: one of a file, or each by its name.

    Raises:
      ValueError: nothing there, an image without a mask, or a mask of another size or all black.
    """
    source = opened(path, "--mask")
    if source.names == (files.expanded(path).name,):  # the path is that of one image
        names = source.names * len(given.names)
    else:
        by_stem = {_stem(name): name for name in source.names}
        missing = [name for name in given.names if _stem(name) not in by_stem]
        if missing:
            raise MissingError(
                f"{len(missing)} of {len(given.names)} images have no mask in {path}, such as "
                f"{missing[0]}: a mask has its image's name, or one file is given for all"
            )
        names = tuple(by_stem[_stem(name)] for name in given.names)
    masks = _read(source, names, given.x.shape[1:3], 1)
    for name, mask, own, size in zip(given.names, names, masks.sizes, given.sizes, strict=True):
        if own != size:
            raise SettingError(
                f"the mask {mask} has {_pixels(own)} pixels and its image {name} {_pixels(size)}: "
                "bring both to one size"
            )
    for mask, x in zip(names, masks.x, strict=True):
        if x.max() < ANEW:
            raise SettingError(f"the mask {mask} has nothing white: nothing would be painted anew")
    return masks


def check(source: str | pathlib.Path, output: pathlib.Path, *beside: pathlib.Path) -> None:
    """Raises ValueError where results cannot be written to `output`, or to files beside it."""

    def checked() -> None:
        files.check_apart(output, source)
        files.check(output, folders=True)
        files.check(*beside)

    sharding.check_on_first(checked)


def compared(output: pathlib.Path) -> pathlib.Path:
    """The picture of what was given and what became of it, beside the output."""
    return output.with_name(f"{output.name}-compared.png")


def errors_path(output: pathlib.Path) -> pathlib.Path:
    """What `invert` measured, beside the output."""
    return output.with_name(f"{output.name}-errors.json")


def latents_path(output: pathlib.Path) -> pathlib.Path:
    """The noise that `invert` found, beside the output."""
    return output.with_name(f"{output.name}-latents.npz")


def given_to(found: Images, masks: Images | None = None) -> Callable:
    """What a drawing is given of each image, as `sampling.driver.draw` takes it."""

    def given(index: np.ndarray) -> dict[str, np.ndarray]:
        of_mask = {} if masks is None else {"mask": np.float32(masks.x[index] >= ANEW)}
        return {"image": to_float(found.x[index])} | of_mask

    return given


def edit(
    work: Work,
    drawing: Drawing,
    found: Images,
    masks: Images | None,
    output: pathlib.Path,
    doing: str,
    watch: Watch | None = None,
) -> None:
    """Edits each image; writes a PNG for each to the folder `output`, and `compared` beside it.

    Results have the sizes of their images; those of smaller images than the model's have its size.
    What a mask says is known of an image comes back as it was given.
    """
    results = work.draw(drawing, given_to(found, masks), len(found.x), doing, watch)
    _save(found, to_uint8(results), output, masks)


def inverted(work: Work, drawing: Drawing, found: Images) -> np.ndarray:
    """The noise that each image comes of, float32 [n, h, w, C]."""
    return work.draw(drawing, given_to(found), len(found.x), "inverting")


def reconstruct(
    work: Work, drawing: Drawing, found: Images, latent: np.ndarray, output: pathlib.Path
) -> dict[str, float]:
    """Takes noise back to images, and writes these, their errors, the noise and a picture.

    Returns:
      {"psnr" in dB, "l1" in the model's range of 2}, means over the images of the model's size.
    """
    x = to_float(found.x)
    back = work.draw(drawing, lambda index: {"latent": latent[index]}, len(x), "reconstructing")
    values = {"psnr": np.asarray(psnr(x, back)), "l1": np.asarray(l1(x, back))}
    means = {key: float(value.mean()) for key, value in values.items()}
    if jax.process_index() == 0:
        each = {
            name: {key: round(float(value[i]), 6) for key, value in values.items()}
            for i, name in enumerate(found.names)
        }
        files.write_json(errors_path(output), means | {"images": each})
        files.write_arrays(latents_path(output), {"latent": latent, "name": found.names})
    _save(found, to_uint8(back), output)
    return means


def interpolate(
    work: Work,
    drawing: Drawing,
    found: Images,
    latent: np.ndarray,
    count: int,
    output: pathlib.Path,
) -> np.ndarray:
    """From each image to the next by `count` images, the first and last of them reconstructions.

    Writes them to the folder `output`, which has a folder for each pair.

    Returns:
      The images [count, pairs, h, w, C] in the model's range.
    """
    pairs = len(latent) - 1
    shares = np.linspace(0, 1, count, dtype=np.float32)

    def given(index: np.ndarray) -> dict[str, np.ndarray]:
        pair = index // count
        return {"latent": latent[pair], "other": latent[pair + 1], "share": shares[index % count]}

    drawn = work.draw(drawing, given, pairs * count, "interpolating")
    if jax.process_index() == 0:
        stems = [_stem(name).replace("/", "_") for name in found.names]
        with files.folder(output) as place:
            for i, pixels in enumerate(to_uint8(drawn)):
                pair = i // count
                folder = f"{pair:03d}-{stems[pair]}-{stems[pair + 1]}"
                save_image(to_pil(pixels), place / folder / f"{i % count:03d}.png")
    return drawn.reshape(pairs, count, *drawn.shape[1:]).swapaxes(0, 1)


def _save(
    found: Images, results: np.ndarray, output: pathlib.Path, masks: Images | None = None
) -> None:
    """Writes results uint8 [n, h, w, C], and the picture; on the first process alone."""
    if jax.process_index():
        return
    names, shown = output_names(found.names), []
    with files.folder(output) as place:
        for i, result in enumerate(results):
            own, between = found.own(i), ()
            if result.shape == found.x.shape[1:]:  # and not of a larger size
                result = unframed(result, found.frames[i], found.sizes[i])
            if masks is not None:
                anew = masks.own(i) >= ANEW
                result = np.where(anew, result, own)
                between = (np.where(anew, np.uint8(GREY), own),)
            save_image(to_pil(result), place / names[found.names[i]])
            if len(shown) < SHOWN:
                shown.append((own, *between, result))
    save_image(comparison(shown, results.shape[1:3]), compared(output))


def _read(source: images.Files, names: Sequence[str], size: Size, channels: int) -> Images:
    frame, read = of_one_size(size), {}
    for name in tqdm(dict.fromkeys(names), desc="reading images", delay=1.5, disable=None):
        pixels = _decoded(source, name, channels)
        read[name] = pixels.shape[:2], framed(pixels, frame(pixels.shape[:2]))
    sizes = tuple(read[name][0] for name in names)
    x = np.stack([read[name][1] for name in names])
    return Images(source, tuple(names), tuple(map(frame, sizes)), sizes, x)


def _decoded(source: images.Files, name: str, channels: int) -> np.ndarray:
    try:
        return images.to_array(source.read(name), channels, image_size=0, crop=0, upright=True)
    except Exception as error:  # each of Pillow's formats fails in its own way
        known = isinstance(error, UnidentifiedImageError)  # whose message names an object
        why = "it is no image" if known else " ".join(str(error).split())
        raise SettingError(
            f"{name} in {source.path} cannot be read ({why}): repair it, or take it out"
        ) from error


def _stem(name: str) -> str:
    """A path within a folder, without the suffix."""
    return str(pathlib.PurePosixPath(images.plain(name)).with_suffix(""))


def _pixels(size: Size) -> str:
    return "x".join(map(str, size))


def _with_bar(batches: Iterator[np.ndarray], count: int, doing: str) -> Iterator[np.ndarray]:
    bar = tqdm(total=count, unit="img", desc=doing, disable=None) if doing else None
    with bar or contextlib.nullcontext():
        for batch in batches:
            yield batch
            if bar:
                bar.update(len(batch))
