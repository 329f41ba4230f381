"""Folders of pictures for tests, and what was made of them in a few words."""

import shutil

from PIL import Image


def fill(folder, count=1, suffix=".png", start=0, mode="RGB"):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(start, start + count):
        Image.new(mode, (4, 4)).save(folder / f"{i:03d}{suffix}")


def tree(root, **counts):
    """Folders by their paths, "__" for a slash, with so many images each."""
    for path, count in counts.items():
        fill(root / path.replace("__", "/"), count)
    return root


def sizes(folder):
    return {split: len(chosen) for split, chosen in folder.splits.items()}


def counts(folder):
    """{class: images}, by name where there is one."""
    names = folder.classes.names or range(folder.classes.count)
    return {name: folder.classes.ids.count(i) for i, name in enumerate(names)}


def zipped(root, target):
    return shutil.make_archive(str(target), "zip", root)
