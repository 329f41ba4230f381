"""Encoded images: where they lie (a folder, a zip) and how they become uint8 arrays."""

import io
import pathlib
import zipfile
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

DOMAINS = ("trainA", "trainB", "testA", "testB")  # subfolders that are splits, not classes
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
HELD_OUT = 20  # of a folder's images, in the order of their names, every 20th is the test split


class DataError(ValueError):
    """A data set that cannot be used as asked; the message is one line that says what to do."""


class CropError(ValueError):
    """A crop that is larger than an image."""


class Record(NamedTuple):
    """One encoded image: a name for messages, the file's bytes, and a label or None."""

    name: str
    data: bytes
    label: int | None


class Folder(NamedTuple):
    """The images of a folder or zip in the order of their names, none of them read yet."""

    names: tuple[str, ...]
    labels: tuple[int, ...] | None
    classes: int
    read: Callable[[str], bytes]


def to_array(
    data: bytes, channels: int, *, image_size: int, crop: int, upright: bool
) -> np.ndarray:
    """Decodes one image to uint8 [H, W, channels]; channels is 1 or 3.

    A central square of `crop` pixels is taken first (0: none), then the shorter side is resized to
    `image_size` with antialiasing and the longer one cropped to it (0: kept as it is). `upright`
    turns a photograph the way its EXIF tag says. Raises CropError where `crop` does not fit, and
    whatever Pillow raises where the file is broken.
    """
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        if upright:
            image = ImageOps.exif_transpose(image)
        image = _as_mode(image, "L" if channels == 1 else "RGB")
    if crop:
        if crop > min(image.size):
            raise CropError(f"crop={crop} is larger than its {image.width}x{image.height} pixels")
        image = _central(image, crop)
    if image_size and image.size != (image_size, image_size):
        shorter = min(image.size)
        size = tuple(max(image_size, round(side * image_size / shorter)) for side in image.size)
        image = _central(image.resize(size, Image.Resampling.LANCZOS), image_size)
    array = np.asarray(image)
    return array[:, :, None] if channels == 1 else array


def pixels(data: bytes) -> tuple[int, int]:
    """The (height, width) that an encoded image states in its header, without decoding it."""
    with Image.open(io.BytesIO(data)) as image:
        return image.height, image.width


def open_folder(path: str, setting: str = "data.path") -> Folder:
    """Lists the images of a folder (recursively) or a .zip; hidden files are passed over.

    They carry labels where each lies exactly one subfolder deep and there are two subfolders or
    more: the classes are then the subfolders in the order of their names. Where there are `DOMAINS`
    on top, these are splits, what lies elsewhere is passed over and nothing carries a label.
    `setting` is what to change where there is nothing.
    """
    root = pathlib.Path(path).expanduser()
    if not root.exists():
        raise DataError(f"there is no folder or .zip of images at {path!r}: set {setting}")
    if root.is_dir():
        names = [p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()]

        def read(name: str) -> bytes:
            return (root / name).read_bytes()

    elif zipfile.is_zipfile(root):
        archive = zipfile.ZipFile(root)  # its reads take a lock, so threads may share it
        names = [entry.filename for entry in archive.infolist() if not entry.is_dir()]
        read = archive.read
    else:
        raise DataError(f"{path!r} is neither a folder nor a readable .zip of images")
    names = sorted(name for name in names if _is_image(name))
    if not names:
        raise DataError(f"no images in {path!r}: none ends in {', '.join(SUFFIXES)}")
    domains = tuple(name for name in names if _top(name) in DOMAINS)
    if domains:
        return Folder(domains, None, 0, read)
    parents = [pathlib.PurePosixPath(name).parent for name in names]
    classes = sorted({str(parent) for parent in parents})
    if len(classes) < 2 or any(len(parent.parts) != 1 for parent in parents):
        return Folder(tuple(names), None, 0, read)
    labels = tuple(classes.index(str(parent)) for parent in parents)
    return Folder(tuple(names), labels, len(classes), read)


def folder_splits(folder: Folder) -> dict[str, np.ndarray]:
    """The positions that make each split: every 20th image is held out where there are 20.

    A folder of `DOMAINS` has those as splits that hold an image.
    """
    position = np.arange(len(folder.names))
    tops = np.array([_top(name) for name in folder.names])
    if tops[0] in DOMAINS:
        return {domain: position[tops == domain] for domain in DOMAINS if domain in tops}
    test = position % HELD_OUT == HELD_OUT - 1
    splits = {"train": position[~test], "test": position[test]}
    return {split: chosen for split, chosen in splits.items() if len(chosen)}


def folder_reader(folder: Folder, chosen: np.ndarray) -> Callable[[Sequence[int]], list[Record]]:
    """A function from positions within one split to its records."""

    def read(indices: Sequence[int]) -> list[Record]:
        positions = [int(chosen[i]) for i in indices]
        return [
            Record(
                folder.names[p],
                _bytes_or_none(folder, p),
                None if folder.labels is None else folder.labels[p],
            )
            for p in positions
        ]

    return read


def _bytes_or_none(folder: Folder, position: int) -> bytes:
    try:
        return folder.read(folder.names[position])
    except (OSError, zipfile.BadZipFile):
        return b""  # an unreadable file is a corrupt image: decoding it reports it by name


def _top(name: str) -> str:
    """The first part of a file's path; "" where it lies in no subfolder."""
    parts = pathlib.PurePosixPath(name).parts
    return parts[0] if len(parts) > 1 else ""


def _is_image(name: str) -> bool:
    path = pathlib.PurePosixPath(name)
    hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
    return path.suffix.lower() in SUFFIXES and not hidden


def _as_mode(image: Image.Image, mode: str) -> Image.Image:
    """Converts to L or RGB: transparency is laid on white, 16 bits a channel become 8."""
    if image.mode == mode:
        return image
    if image.mode.startswith("I"):  # Pillow's own conversion would clip 16 bits at 255
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert(mode)


def _central(image: Image.Image, size: int) -> Image.Image:
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))
