"""What stresses work on: a small run of each family, folders of pictures, what a folder holds."""

import hashlib
import os
import pathlib
import shutil
import struct
import zipfile
import zlib

import forks
import numpy as np
from PIL import Image

# {name of a run: its config and settings}; "{data}" stands for the folder of pictures.
RUNS = {
    "diffusion": ("configs/ddpm_digits.py:smoke",),
    "labels": ("configs/vae_digits.py:conditional+smoke",),
    "vae": ("configs/vae_digits.py:smoke",),
    "gan": ("configs/gan_digits.py:smoke",),
    "points": ("configs/gan_mixture.py:smoke",),
    "cyclegan": (
        "configs/cyclegan_maps.py:smoke",
        "--config.data.name=folder",
        "--config.data.path={data}/domains",
    ),
}
SMALL = ("--config.evaluation.at_end=False", "--config.log.samples=4", "--config.log.eval_every=2")


def training(name: str, data: pathlib.Path) -> list[str]:
    """Arguments that train a run, but --workdir."""
    config, *settings = RUNS[name]
    return [f"--config={config}", *(s.format(data=data) for s in settings), *SMALL]


def make_runs(root: pathlib.Path, data: pathlib.Path) -> None:
    """Trains those of `RUNS` that are not there."""
    for name in RUNS:
        if not (root / name / "report.html").exists():
            arguments = [*training(name, data), f"--workdir={root / name}"]
            outcome = forks.run(*arguments, timeout=240)
            if outcome.code != 0:
                raise SystemExit(f"{name} does not train:\n{outcome.out}\n{outcome.err}")


def make_pictures(root: pathlib.Path) -> None:
    """Folders and .zip files of pictures, good and bad."""
    if root.exists():
        return
    rng = np.random.default_rng(0)

    def fill(name: str, count: int, size: int = 8, channels: int = 1) -> None:
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (size, size, channels), np.uint8)
            mode = Image.fromarray(pixels.squeeze(), "RGB" if channels == 3 else "L")
            mode.save(root / name / f"{i:03d}.png")

    fill("grey", 40)
    fill("colour", 40, channels=3)
    fill("one", 1)
    fill("large", 2, size=300)
    for name in ("trainA", "trainB", "testA", "testB"):
        fill(f"domains/{name}", 8, size=32, channels=3)
    fill("one_domain/trainA", 8, size=32, channels=3)
    (root / "empty").mkdir()
    (root / "texts").mkdir()
    (root / "texts" / "a.txt").write_text("no image")
    for name, good in (("broken", 0), ("one_broken", 30)):
        fill(name, good)
        (root / name / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n, and no more")
        (root / name / "y.png").write_bytes(b"")
    (root / "truncated").mkdir()
    whole = (root / "large" / "000.png").read_bytes()
    (root / "truncated" / "x.png").write_bytes(whole[: len(whole) // 2])
    (root / "huge").mkdir()
    (root / "huge" / "x.png").write_bytes(_header_of(100_000))
    fill("labelled", 30)
    (root / "labelled" / "labels.csv").write_text("file,label\n000.png\n\x00\n")
    (root / "text.txt").write_text("no folder, no .zip\n")
    shutil.make_archive(str(root / "good"), "zip", root / "grey")
    good = (root / "good.zip").read_bytes()
    (root / "cut.zip").write_bytes(good[: len(good) // 2])
    (root / "no.zip").write_text("no .zip")
    with zipfile.ZipFile(root / "nothing.zip", "w"):
        pass
    with zipfile.ZipFile(root / "outward.zip", "w") as file:
        file.write(root / "grey" / "000.png", "../../out.png")


def _header_of(side: int) -> bytes:
    """A PNG whose header says that it is so large, with a few bytes of data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def contents(folder: pathlib.Path) -> dict[str, str]:
    """{path within a folder: digest of a file, or what else it is}."""
    found = {}
    for place, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = pathlib.Path(place, name)
            kind = "link" if path.is_symlink() else "folder" if path.is_dir() else ""
            digest = kind or hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()
            found[str(path.relative_to(folder))] = digest
    return found


def differing(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Paths that are new, gone or other."""
    return sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))
