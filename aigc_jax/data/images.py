"""Encoded images: where they lie (a folder, a zip) and how they become uint8 arrays."""

import collections
import functools
import io
import os
import pathlib
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import IO, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from aigc_jax import files
from aigc_jax.errors import SettingError

# Formats of Pillow that are no pictures, or that it reads only with the help of another program.
_OTHER_FORMATS = ("BUFR", "EPS", "FLI", "GRIB", "HDF5", "MPEG", "WMF")
_HIDDEN = (".", "__MACOSX", "@eaDir")  # what a file manager or a server keeps beside one's files
_GREY = ("1", "L", "LA", "La", "I", "F")  # Pillow's modes, and those that begin with "I;"


class DataError(SettingError):
    """A data set that cannot be used as asked; the message is one line that says what to do."""


class CropError(SettingError):
    """A crop that is larger than an image."""


class Record(NamedTuple):
    """One encoded image: a name for messages, the file's bytes, and a label or None."""

    name: str
    data: bytes
    label: int | None


class Files(NamedTuple):
    """The files of a folder or zip, none of them read yet; hidden ones are passed over.

    Attributes:
      path: as it was given.
      names: of the images, paths from the folder on, in their order.
      others: names of all other files.
      empty: subfolders in which no file lies, at any depth.
      sizes: {name: bytes} of the images.
      checksums: {name: CRC-32 of the bytes} of the images in a zip; {} of a folder.
      notes: what of the folder could not be listed, in words.
      open: name -> the opened file.
    """

    path: str
    names: tuple[str, ...]
    others: tuple[str, ...]
    empty: tuple[str, ...]
    sizes: Mapping[str, int]
    checksums: Mapping[str, int]
    notes: tuple[str, ...]
    open: Callable[[str], IO[bytes]]

    def read(self, name: str) -> bytes:
        """A file's bytes; b"" where it cannot be read, so that decoding reports it by name."""
        try:
            with self.open(name) as file:
                return file.read()
        # Of a zip: a damaged member, an encrypted one, one that is compressed in an unknown way.
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError):
            return b""


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
            size = f"{image.width}x{image.height}"
            raise CropError(f"data.crop={crop} is larger than its {size} pixels")
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


def is_grey(file: IO[bytes]) -> bool:
    """Whether an encoded image states in its header that it has no colour, without decoding it."""
    with Image.open(file) as image:
        return image.mode in _GREY or image.mode.startswith("I;")


@functools.cache
def suffixes() -> frozenset[str]:
    """Of the files that are taken for images: those of every format that Pillow reads here."""
    known = Image.registered_extensions()
    formats = set(Image.OPEN).difference(_OTHER_FORMATS)
    return frozenset(suffix for suffix, format in known.items() if format in formats)


def suffix(name: str) -> str:
    """The end of a file's name, such as ".png"; "" where it has none."""
    return os.path.splitext(name)[1].lower()


def plain(name: str) -> str:
    """A name or path with accented letters as one character each, however a system stores them."""
    return unicodedata.normalize("NFC", name)


def open_folder(path: str, setting: str = "data.path") -> Files:
    """Lists the files of a folder, recursively, or of a .zip.

    Links are followed, but no folder is listed twice, so that a link to a folder above ends there.
    `setting` is what to change where there is nothing.

    Raises:
      DataError: no such folder, no image in it, or a .zip that cannot be read.
    """
    root = files.expanded(path)
    if not root.exists():
        raise DataError(f"there is no folder or .zip of images at {path!r}: set {setting}")
    if root.is_dir():
        found = _list_folder(path, root)
    elif zipfile.is_zipfile(root):
        found = _list_zip(path, root)
    else:
        raise DataError(f"{path!r} is neither a folder nor a readable .zip of images")
    if not found.names:
        others = f", only {by_suffix(found.others)}" if found.others else ""
        raise DataError(f"no images in {path!r}{others}: an image is .png, .jpg, .tif, ...")
    return found


def by_suffix(names: Iterable[str]) -> str:
    """Files counted by the ends of their names: "4,000 .png, 812 .jpg"."""
    counts = collections.Counter(suffix(name) or "without a suffix" for name in names)
    return ", ".join(f"{count:,} {end}" for end, count in counts.most_common())


def _list_folder(path: str, root: pathlib.Path) -> Files:
    sizes, empty, notes, seen = {}, [], [], set()
    folders, links = [("", root)], []  # links come last: a folder is listed by its own name
    while folders or links:
        prefix, folder = (folders or links).pop()
        try:
            identity = _identity(folder)
            if identity in seen:
                notes.append(f"{prefix} (a link to what is listed already)")
                continue
            seen.add(identity)
            with os.scandir(folder) as entries:
                inside = sorted(entries, key=lambda e: e.name, reverse=True)
        except OSError as error:
            notes.append(f"{prefix or path} ({error.strerror})")
            continue
        inside = [entry for entry in inside if not entry.name.startswith(_HIDDEN)]
        if not inside:
            empty.append(prefix.rstrip("/"))
        for entry in inside:
            name = prefix + entry.name
            try:
                if entry.is_dir():
                    (links if entry.is_symlink() else folders).append((f"{name}/", entry.path))
                else:
                    sizes[name] = entry.stat().st_size
            except OSError as error:  # such as a link to nothing
                notes.append(f"{name} ({error.strerror})")
    return _files(path, sizes, {}, empty, notes, lambda name: (root / name).open("rb"))


def _identity(folder: str | pathlib.Path) -> tuple[int, int]:
    found = os.stat(folder)  # of what a link leads to
    return found.st_dev, found.st_ino


def _list_zip(path: str, root: pathlib.Path) -> Files:
    archive = zipfile.ZipFile(root)  # its reads take a lock, so threads may share it
    members = {_member(m.filename): m for m in archive.infolist()}
    for name in members:
        if ".." in name.split("/"):
            raise DataError(f"{name!r} in {path!r} leads out of its folder: pack it anew")
    members = {
        name: member
        for name, member in members.items()
        if not any(part.startswith(_HIDDEN) for part in name.split("/"))
    }
    files = {name: member for name, member in members.items() if not name.endswith("/")}
    images = [member for name, member in files.items() if suffix(name) in suffixes()]
    if images and all(member.flag_bits & 1 for member in images):
        raise DataError(f"{path!r} is encrypted: unpack it, and give the folder as data.path")
    filled = {above for name in files for above in _above(name)}
    empty = [n.rstrip("/") for n in members if n.endswith("/") and n.rstrip("/") not in filled]
    sizes = {name: member.file_size for name, member in files.items()}
    checksums = {name: member.CRC for name, member in files.items()}
    return _files(path, sizes, checksums, empty, [], lambda name: archive.open(files[name]))


def _above(name: str) -> Iterator[str]:
    """The folders that a path lies in, from the innermost on."""
    while name := name.rpartition("/")[0]:
        yield name


def _member(name: str) -> str:
    """The path that a zip's member stands for: some tools write back-slashes, or "./" in front."""
    return name.replace("\\", "/").removeprefix("./").lstrip("/")


def _files(
    path: str,
    sizes: Mapping[str, int],
    checksums: Mapping[str, int],
    empty: Iterable[str],
    notes: Iterable[str],
    open_file: Callable[[str], IO[bytes]],
) -> Files:
    names = sorted((n for n in sizes if suffix(n) in suffixes()), key=plain)
    return Files(
        path=path,
        names=tuple(names),
        others=tuple(sorted(sizes.keys() - set(names))),
        empty=tuple(sorted(empty)),
        sizes={name: sizes[name] for name in names},
        checksums={name: checksums[name] for name in names if name in checksums},
        notes=tuple(sorted(notes)),
        open=open_file,
    )


def _as_mode(image: Image.Image, mode: str) -> Image.Image:
    """Converts to L or RGB: transparency is laid on white, 16 bits a channel become 8."""
    if image.mode == mode:
        return image
    if image.mode.startswith("I"):  # Pillow's own conversion would clip 16 bits at 255
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    if image.mode == "F":
        raise SettingError("its pixels are floating-point numbers: save them as 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert(mode)


def _central(image: Image.Image, size: int) -> Image.Image:
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))
