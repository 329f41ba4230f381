"""Every image of a folder or .zip through a model, each to a PNG of its own and of its own size."""

import contextlib
import pathlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import IO, NamedTuple

import jax
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from aigc_jax import files
from aigc_jax.data import images
from aigc_jax.errors import SettingError
from aigc_jax.modalities.image import grid, save_image, to_float, to_pil
from aigc_jax.runs.model import Model
from aigc_jax.training import sharding

SHOWN = 16  # images in the picture that compares what was given with what became of it
LARGEST = 2048  # pixels of a side that a model of any size is given; a longer side is scaled down
ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)  # EXIF: the values by which width and height swap

Size = tuple[int, int]  # (height, width) in pixels
Change = Callable[[np.ndarray], np.ndarray]  # uint8 [n, H, W, C] -> the same


class Frame(NamedTuple):
    """How an image is brought to a size that a model takes; its proportions stay.

    Attributes:
      inner: what it is scaled to.
      outer: at least that; it is continued to the right and downwards by its reflection.
    """

    inner: Size
    outer: Size


Framing = Callable[[Size], Frame]  # of an image by its own size


def of_one_size(size: Size) -> Framing:
    """Frames for a model that takes one size: an image is scaled to fit in it."""

    def frame(own: Size) -> Frame:
        return Frame(_scaled(own, min(size[0] / own[0], size[1] / own[1])), size)

    return frame


def of_any_size(stride: int, shorter: int = 0) -> Framing:
    """Frames for a model whose sides are any multiples of a stride, from twice it on.

    Images keep their size, up to `LARGEST`, or have their shorter side scaled to `shorter`.
    """

    def frame(own: Size) -> Frame:
        scale = shorter / min(own) if shorter else 1.0
        inner = _scaled(own, min(scale, LARGEST / max(own)))
        height, width = (max(-(-side // stride), 2) * stride for side in inner)
        return Frame(inner, (height, width))

    return frame


def framed(pixels: np.ndarray, frame: Frame) -> np.ndarray:
    """uint8 [H, W, C] -> [*frame.outer, C]."""
    pixels = _resized(pixels, frame.inner)
    more = [(0, outer - inner) for outer, inner in zip(frame.outer, frame.inner, strict=True)]
    return np.pad(pixels, (*more, (0, 0)), mode="reflect")


def unframed(pixels: np.ndarray, frame: Frame, own: Size) -> np.ndarray:
    """uint8 [*frame.outer, C] -> [*own, C], the inverse of `framed`."""
    return _resized(pixels[: frame.inner[0], : frame.inner[1]], own)


def output_names(names: Sequence[str]) -> dict[str, str]:
    """The PNG that each image becomes: by its own name, and no two by the same.

    Where `a.jpg` and `a.webp` would both become `a.png`, they become `a.jpg.png` and `a.webp.png`;
    a PNG keeps its name.

    Raises:
      ValueError: a name that leads out of the folder, as a .zip may hold.
    """
    paths = {name: pathlib.PurePosixPath(name) for name in names}
    for name, path in paths.items():
        if path.is_absolute() or ".." in path.parts:
            raise SettingError(
                f"the .zip holds {name!r}, which leads out of its folder: pack it anew"
            )
    usual = {name: str(path.with_suffix(".png")) for name, path in paths.items()}
    count = Counter(usual.values())
    kept = {name: name for name, target in usual.items() if name == target}
    taken = {*kept, *(str(folder) for path in paths.values() for folder in path.parents)}
    for name in sorted(usual.keys() - kept.keys()):
        target = usual[name] if count[usual[name]] == 1 else f"{name}.png"
        while target in taken:
            target += ".png"
        taken.add(target)
        kept[name] = target
    return kept


def each_image(
    model: Model,
    folder: str | pathlib.Path,
    output: str | pathlib.Path,
    make: Callable[[int], Change],
    doing: str,
    batch_size: int = 64,
    framing: Framing | None = None,
) -> pathlib.Path:
    """Puts every image of a folder or .zip through a function; each result has its image's size.

    Called on every process; the first one writes. Images that cannot be read are left out, and
    named in a line at the end.

    Args:
      model: of images; only their shape is read.
      folder: what to read, a folder (with its subfolders) or a .zip.
      output: a folder that is not there yet, or empty; gets a PNG for each image, as `output_names`
        calls them, when all are done. Beside it comes OUTPUT-compared.png, up to 16 of the images
        above what became of them.
      make: number of images at a time -> the function of these; n is that number, or less in a last
        call. Asked for anew for each size of images.
      doing: names the progress bar, such as "denoising".
      batch_size: images of the model's size at a time; of larger ones as many fewer.
      framing: how images are brought to sizes that the function takes; None to the model's size.

    Returns:
      The path of OUTPUT-compared.png.

    Raises:
      ValueError: a model of other data than images, a folder without images, or with none that can
        be read; an output that is there already, lies in the folder or cannot be written.
    """
    if model.spec.kind != "image":
        raise SettingError(f"a folder holds images, but the model's data are {model.spec.kind}")
    height, width, channels = model.spec.shape
    source = images.open_folder(str(folder), "--input")
    names, output = output_names(source.names), files.expanded(output).resolve()
    check_output(folder, output)
    compared = _compared(output)
    batches = _Batches(source, framing or of_one_size((height, width)), channels)
    writes, shown = jax.process_index() == 0, []
    if writes and source.others:
        print(f"passed over in {folder}: {images.by_suffix(source.others)}", flush=True)
    if writes and batches.scaled:
        print(f"{batches.scaled} of {len(names)} images are scaled to fit the model", flush=True)
    with (
        files.folder(output) if writes else contextlib.nullcontext(output) as place,
        tqdm(total=len(names), unit="img", desc=doing, disable=None) as bar,
    ):
        for name, given, result in batches.through(make, batch_size * height * width, bar.update):
            if writes:
                save_image(to_pil(result), place / names[name])
            if len(shown) < SHOWN:
                shown.append((given, result))
        if not shown:
            raise SettingError(f"no image in {folder} can be read: {_listed(batches.broken)}")
    if writes:
        save_image(comparison(shown, (height, width)), compared)
    if writes and batches.broken:
        left = f"{len(batches.broken)} of {len(names)} images cannot be read and are left out"
        print(f"{left}: {_listed(batches.broken)}", flush=True)
    return compared


def check_output(folder: str | pathlib.Path, output: str | pathlib.Path) -> None:
    """Raises ValueError where `each_image` of a folder could not write to `output`."""
    output = files.expanded(output).resolve()

    def check() -> None:
        files.check_apart(output, folder)
        files.check(output, folders=True)
        files.check(_compared(output))

    sharding.check_on_first(check)


def _compared(output: pathlib.Path) -> pathlib.Path:
    return output.with_name(f"{output.name}-compared.png")


class _Batches:
    """The images of a folder in batches of one size, read when their turn comes.

    Attributes:
      sizes: of each image that has any, upright.
      frames: of each of these.
      broken: why, of each that could not be read so far.
    """

    def __init__(self, source: images.Files, framing: Framing, channels: int) -> None:
        self._source, self._channels = source, channels
        self.sizes: dict[str, Size] = {}
        self.broken: dict[str, str] = {}
        for name in tqdm(source.names, desc="looking at images", delay=1.5, disable=None):
            with self._noting(name), source.open(name) as file:
                self.sizes[name] = _size(file)
        self.frames = {name: framing(size) for name, size in self.sizes.items()}

    @property
    def scaled(self) -> int:
        """How many images do not keep their size on the way."""
        return sum(frame.inner != self.sizes[name] for name, frame in self.frames.items())

    def through(
        self, make: Callable[[int], Change], pixels: int, done: Callable[[int], object]
    ) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """Yields (name, image uint8 [H, W, C], what became of it, the same shape).

        Args:
          make: as of `each_image`.
          pixels: of an input, about; at least an image at a time.
          done: called with the number of images that have had their turn.
        """
        done(len(self.broken))
        groups = defaultdict(list)
        for name, frame in self.frames.items():
            groups[frame.outer].append(name)
        for (height, width), members in groups.items():
            size = min(len(members), max(pixels // (height * width), 1))
            change = make(size)
            for start in range(0, len(members), size):
                names = members[start : start + size]
                given = self._decoded(names)
                if given:
                    x = np.stack([framed(image, self.frames[n]) for n, image in given.items()])
                    for (name, image), y in zip(given.items(), change(x), strict=True):
                        yield name, image, unframed(y, self.frames[name], self.sizes[name])
                done(len(names))

    def _decoded(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        found = {}
        for name in names:
            with self._noting(name):
                data = self._source.read(name)
                x = images.to_array(data, self._channels, image_size=0, crop=0, upright=True)
                if x.shape[:2] != self.sizes[name]:
                    raise SettingError("its size is not the one that its header says")
                found[name] = x
        return found

    @contextlib.contextmanager
    def _noting(self, name: str) -> Iterator[None]:
        try:
            yield
        except UnidentifiedImageError:  # whose message names no file, but an object
            self.broken[name] = "no image"
        except Exception as error:  # each of Pillow's formats fails in its own way, a .zip too
            self.broken[name] = " ".join(str(error).split()) or type(error).__name__


def comparison(pairs: Sequence[tuple[np.ndarray, np.ndarray]], size: Size) -> Image.Image:
    """Images [H, W, C] above what became of them, in fields of one size, in their proportions."""

    def field(pixels: np.ndarray) -> np.ndarray:
        grey = 128 if pixels.shape[-1] == 1 else (128,) * 3
        shown = ImageOps.pad(to_pil(pixels), size[::-1], Image.Resampling.LANCZOS, grey)
        return np.asarray(shown).reshape(*size, -1)

    rows = [field(pixels) for row in zip(*pairs, strict=True) for pixels in row]
    return grid(to_float(np.stack(rows)), columns=len(pairs))


def _size(file: IO[bytes]) -> Size:
    """Of an encoded image, upright, by its header (a PNG may have its EXIF tag at the end)."""
    with Image.open(file) as image:
        turned = image.getexif().get(ORIENTATION) in TURNED
        return image.size if turned else image.size[::-1]


def _listed(broken: dict[str, str], most: int = 10) -> str:
    words = [f"{name} ({reason})" for name, reason in list(broken.items())[:most]]
    return ", ".join(words) + (f" and {len(broken) - most} more" if len(broken) > most else "")


def _scaled(size: Size, scale: float) -> Size:
    height, width = (max(round(side * scale), 1) for side in size)
    return height, width


def _resized(pixels: np.ndarray, size: Size) -> np.ndarray:
    """uint8 [H, W, C] -> [*size, C]."""
    if pixels.shape[:2] == size:
        return pixels
    image = to_pil(pixels).resize(size[::-1], Image.Resampling.LANCZOS)
    return np.asarray(image).reshape(*size, -1)
