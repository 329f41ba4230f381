"""Misuses by files: those of a run that are damaged, data and weights of wrong kinds."""

import json
import pathlib
import shutil
from collections.abc import Callable, Iterator

from stress_cases import COMMANDS, DIGITS, NEEDS, NEW, RUN, Case
from stress_scene import SMALL, training

FACES = ("--config=configs/ddpm_celeba64.py:folder+smoke", "--config.data.image_size=8")


def _cut(name: str, share: float = 0.5) -> Callable[[pathlib.Path], None]:
    def damage(scene: pathlib.Path) -> None:
        path = scene / "run" / name
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])

    return damage


def _write(name: str, text: str) -> Callable[[pathlib.Path], None]:
    def damage(scene: pathlib.Path) -> None:
        path = scene / "run" / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(text)

    return damage


def _without(name: str, key: str) -> Callable[[pathlib.Path], None]:
    def damage(scene: pathlib.Path) -> None:
        path = scene / "run" / name
        found = json.loads(path.read_text())
        del found[key]
        path.write_text(json.dumps(found))

    return damage


def _remove(name: str) -> Callable[[pathlib.Path], None]:
    def damage(scene: pathlib.Path) -> None:
        path = scene / "run" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return damage


def _folder(name: str) -> Callable[[pathlib.Path], None]:
    def damage(scene: pathlib.Path) -> None:
        path = scene / "run" / name
        path.unlink(missing_ok=True)
        path.mkdir()

    return damage


def _checkpoints(change: Callable[[pathlib.Path], object]) -> Callable[[pathlib.Path], None]:
    def damage(scene: pathlib.Path) -> None:
        for folder in sorted((scene / "run" / "checkpoints").iterdir()):
            change(folder)

    return damage


def _cut_all(folder: pathlib.Path) -> None:
    for path in (folder / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _renamed(scene: pathlib.Path) -> None:
    checkpoints = scene / "run" / "checkpoints"
    (checkpoints / "00000004").rename(checkpoints / "00000009")


def _of_another(scene: pathlib.Path) -> None:
    """Puts a checkpoint of the same step and model, but of another run, in place of the newest."""
    for path in (scene / "run" / "checkpoints" / "00000004" / "about").iterdir():
        text = path.read_text()
        if text.startswith("{"):
            path.write_text(json.dumps(json.loads(text) | {"run": "another"}))


Damage = tuple[str | tuple[str, ...], Callable[[pathlib.Path], object], tuple[str, ...]]
DAMAGES: dict[str, Damage] = {
    # {what: (a word of the line, the damage, commands that read nothing of it, or do without)}
    "config.json cut": ("config.json", _cut("config.json"), ()),
    "config.json of a list": ("config.json", _write("config.json", "[]"), ()),
    "config.json of a number": ("config.json", _write("config.json", "3"), ()),
    "config.json empty": ("config.json", _write("config.json", ""), ()),
    "config.json without network": ("network", _without("config.json", "network"), ()),
    "config.json without family": ("family", _without("config.json", "family"), ()),
    "config.json without data": ("data", _without("config.json", "data"), ()),
    "no config.json": (("config.json", "no run"), _remove("config.json"), ()),
    "config.json a folder": (("config.json", "no run"), _folder("config.json"), ()),
    "spec.json cut": ("spec.json", _cut("spec.json"), ()),
    "spec.json of a list": ("spec.json", _write("spec.json", "[]"), ()),
    "spec.json without sizes": ("spec.json", _without("spec.json", "sizes"), ()),
    "spec.json of words": ("spec.json", _write("spec.json", '{"fields": 3}'), ()),
    "identity.json cut": ("identity.json", _cut("identity.json"), COMMANDS),
    "identity.json of a list": ("identity.json", _write("identity.json", "[]"), COMMANDS),
    "origin.json cut": ("", _cut("origin.json"), (*COMMANDS, "train")),
    "origin.json of a list": ("", _write("origin.json", "[]"), (*COMMANDS, "train")),
    "origin.json of words": ("", _write("origin.json", '{"sessions": 3}'), (*COMMANDS, "train")),
    "metrics.jsonl cut": ("", _cut("metrics.jsonl"), (*COMMANDS, "train")),
    "metrics.jsonl of words": ("", _write("metrics.jsonl", "no\nJSON\n"), (*COMMANDS, "train")),
    "metrics.jsonl of lists": ("", _write("metrics.jsonl", "[]\n3\n"), (*COMMANDS, "train")),
    "metrics.jsonl a folder": ("metrics.jsonl", _folder("metrics.jsonl"), COMMANDS),
    "an evaluation of words": ("", _write("evaluations/x.json", "no"), (*COMMANDS, "train")),
    "an evaluation of a list": ("", _write("evaluations/x.json", "[3]"), (*COMMANDS, "train")),
    "an evaluation without rows": ("", _write("evaluations/x.json", "{}"), (*COMMANDS, "train")),
    "no checkpoints": ("checkpoint", _remove("checkpoints"), ("report", "train")),
    "checkpoints without any": (
        "checkpoint",
        _checkpoints(shutil.rmtree),
        ("report", "train"),
    ),
    "checkpoints cut": ("checkpoint", _checkpoints(_cut_all), ("report",)),
    "a checkpoint cut": (
        "", lambda scene: _cut_all(scene / "run/checkpoints/00000004"),
        (*COMMANDS, "train"),
    ),
    "a checkpoint without its state": (
        "", _remove("checkpoints/00000004/state"),
        (*COMMANDS, "train"),
    ),
    "a checkpoint renamed": ("step", _renamed, ("report",)),
    "a checkpoint of another run": ("another run", _of_another, COMMANDS),
}  # fmt: skip


def damages() -> Iterator[Case]:
    """Files of a run that are damaged, and each command on it."""
    more = ("--config.train.steps=6", "--config.optimizer.decay_steps=4")
    for what, (word, damage, fine) in DAMAGES.items():
        for command in ("train", *COMMANDS):
            run = "vae" if command in ("denoise", "encode") else "diffusion"
            if command == "translate":
                continue  # reads a run as `denoise` does
            if command == "train":
                arguments = (*training(run, pathlib.Path()), *more, RUN)
            else:
                arguments = (f"--mode={command}", *NEEDS.get(command, ()), RUN)
                arguments += ("--num=4",) * (command in ("sample", "evaluate"))
            # A report is made of what can be read, and says what cannot.
            codes = (0, 1) if command in (*fine, "report") else (1,)
            lines = what.endswith("without network") and command == "train"  # a list of keys
            name = f"{what}: {command}"
            yield Case(name, arguments, word, run, damage, codes, limit=40, lines=lines)


def data() -> Iterator[Case]:
    """Data that are not there, broken, or of other kinds."""
    for line, word in (
        ("data.path=", "data.path"), ("data.path={data}/none", "none"),
        ("data.path={data}/empty", "empty"), ("data.path={data}/texts", "texts"),
        ("data.path={data}/text.txt", "text.txt"),
        ("data.path={data}/broken data.test_split=train", ".png"),
        ("data.path={data}/one", "split"),
        ("data.path={data}/one data.test_split=train", "batch_size"),
        ("data.path={data}/one_broken", ".png"),
        ("data.path={data}/huge data.test_split=train", ".png"),
        ("data.path={data}/truncated data.test_split=train", ".png"),
        ("data.path={data}/cut.zip", "cut.zip"), ("data.path={data}/no.zip", "no.zip"),
        ("data.path={data}/nothing.zip", "nothing.zip"),
        ("data.path={data}/grey data.image_size=-1", "image_size"),
        ("data.path={data}/grey data.image_size=7", "7"),
        ("data.path={data}/grey data.image_size=100000", ""),
        ("data.path={data}/grey data.crop=9", "crop"),
        ("data.path={data}/grey data.crop=-9", "crop"),
        ("data.path={data}/grey data.channels=2", "channels"),
        ("data.path={data}/grey data.labels_from=none.csv", "none.csv"),
        ("data.path={data}/grey data.labels_from=folders", "folders"),
        ("data.path={data}/grey data.splits_from=folders", "splits_from"),
        ("data.path={data}/grey data.splits_from=x", "splits_from"),
        ("data.path={data}/grey data.train_split=none", "none"),
        ("data.path={data}/grey data.train_split=train[5:5]", "train"),
        ("data.path={data}/grey data.train_split=train[", "train["),
        ("data.path={data}/grey data.test_split=train", ""),
        ("data.path={data}/grey data.test_split=train[:50%]", "share"),
        ("data.path={data}/grey data.on_corrupt=ignore", "on_corrupt"),
        ("data.path={data}/grey train.batch_size=64", "batch_size"),
        ("data.path={data}/labelled data.labels_from=labels.csv", "labels.csv"),
        ("data.name=none", "none"), ("data.name=mnist data.data_dir={data}", "mnist"),
        ("data.name=mnist data.data_dir={data}/none", "mnist"), ("data.name=", "data set"),
        ("data.name=ring", "image"),
    ):  # fmt: skip
        settings = tuple(f"--config.{setting}" for setting in line.split())
        # Tested on what it learns from: some do that on purpose, and the second is told so.
        on_training = ("test_split=train", "test_split=train[:50%]")
        accepted = (0, 1) if line.endswith(on_training) else (1,)
        yield Case(
            f"data: {line}", (*FACES, *SMALL, *settings, NEW), word, codes=accepted, limit=40
        )
    for path, word in (("grey", "train"), ("one_domain", "train"), ("none", "none")):
        arguments = (
            *training("cyclegan", pathlib.Path()),
            f"--config.data.path={{data}}/{path}",
            NEW,
        )
        yield Case(f"domains: {path}", arguments, word)


def weights() -> Iterator[Case]:
    """Weights and statistics of wrong kinds, in each place that names some."""
    kinds = (
        "{data}/none",
        "{data}/empty",
        "{data}/text.txt",
        "{data}/good.zip",
        "{data}/grey/000.png",
    )
    runs = ("{other}", "{other}/checkpoints", "{other}/checkpoints/00000004", "{other}/config.json")
    for path in (*kinds, *runs, "{other}/best", "{run}/none", "/", "/dev/null", "\udc80"):
        arguments = ("--config=configs/vae_digits.py:smoke", f"--config.init_from={path}", NEW)
        yield Case(f"init_from={path}", arguments, "", "gan")
    arguments = (DIGITS, "--config.init_from={other}", "--config.network.width=16", NEW)
    yield Case("init_from of another width", arguments, "do not fit")
    for path in (*kinds, "/", "/dev/null"):
        of_network = (DIGITS, f"--config.evaluation.weights={path}", NEW)
        yield Case(f"evaluation.weights={path}", of_network, "")
        inception = (*of_network, "--config.evaluation.network=inception")
        yield Case(f"inception, weights={path}", inception, "")
        arguments = (DIGITS, f"--config.evaluation.statistics={path}", NEW)
        yield Case(f"evaluation.statistics={path}", arguments, "")
        perceptual = (
            "--config.vae.perceptual.network=vgg16",
            f"--config.vae.perceptual.weights={path}",
        )
        arguments = ("--config=configs/vae_digits.py:smoke", *perceptual, NEW)
        yield Case(f"perceptual.weights={path}", arguments, "")
