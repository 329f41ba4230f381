"""Files and folders are written whole or not at all, over nothing that someone has."""

import collections
import errno
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile

import numpy as np
import pytest

from aigc_jax import files
from aigc_jax.commands import boundary

ROOT = pathlib.Path(__file__).resolve().parents[1]
DEAD = 2**22 + 1  # above any process number of Linux


def content(folder):
    """{path: bytes} of all files below a folder, hidden ones too."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


@pytest.mark.parametrize("opened", [files.replacing, files.folder])
def test_folders_made_for_what_is_not_finished_are_removed_again(tmp_path, opened):
    with pytest.raises(ValueError, match="no"), opened(tmp_path / "a" / "b" / "c"):
        raise ValueError("no")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="no"), opened(tmp_path / "a"):
        raise ValueError("no")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, OSError("no space")])
def test_a_file_that_is_not_finished_leaves_the_earlier_one(tmp_path, error):
    path = tmp_path / "new" / "a.txt"
    files.write_text(path, "first")

    def stopped():
        with files.replacing(path) as partial:
            partial.write_text("half")
            raise error

    with pytest.raises((KeyboardInterrupt, ValueError, OSError)):
        stopped()
    assert content(tmp_path) == {"new/a.txt": b"first"}
    files.write_text(path, "second")
    assert content(tmp_path) == {"new/a.txt": b"second"}


def test_what_could_not_be_written_is_named(tmp_path):
    with (
        pytest.raises(OSError, match=r"could not write .*a\.npz: no space"),
        files.replacing(tmp_path / "a.npz"),
    ):
        raise OSError("no space")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match=r"\[Errno .*file/a\.txt"):
        files.write_text(tmp_path / "file" / "a.txt", "")
    with pytest.raises(OSError, match=r"/file/a'"), files.folder(tmp_path / "file" / "a"):
        pass

    def full(error):
        with files.replacing(tmp_path / "a.npz"):
            raise error

    with pytest.raises(OSError, match="No space") as caught:  # as a write fails, which names none
        full(OSError(errno.ENOSPC, "No space left on device"))
    told = boundary.explain(caught.value)
    assert told.startswith(f"{tmp_path / 'a.npz'}: No space left on device; make room")
    with pytest.raises(PermissionError) as caught:
        full(PermissionError(errno.EACCES, "Permission denied", "elsewhere"))
    assert boundary.explain(caught.value).startswith(f"{tmp_path / 'a.npz'}: Permission denied; ")
    assert content(tmp_path) == {"file": b"mine"}


@pytest.mark.parametrize("there", ["nothing", "empty", "link"])
def test_a_folder_is_there_when_it_is_complete(tmp_path, there):
    path = tmp_path / "deep" / "out"
    if there != "nothing":
        path.mkdir(parents=True)
    if there == "link":
        path = tmp_path / "link"
        path.symlink_to(tmp_path / "deep" / "out")

    def stopped():
        with files.folder(path) as folder:
            (folder / "a").write_text("1")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert content(tmp_path) == {}
    with files.folder(path) as folder:
        files.write_text(folder / "sub" / "a", "1")
        assert not path.exists() or not list(path.iterdir())
    assert content(tmp_path) == {"deep/out/sub/a": b"1"}
    assert path.is_symlink() == (there == "link")


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_results_are_kept_where_their_place_is_taken_meanwhile(tmp_path, kind):
    path = tmp_path / "out"
    (tmp_path / "out-1").write_text("mine")

    def taken():
        with files.folder(path) as folder:
            (folder / "a").write_text("hours")
            if kind == "folder":
                path.mkdir()
            (path / ".DS_Store" if kind == "folder" else path).write_text("")

    with pytest.raises(files.OutputError, match=r"the results are in .*/out-2: .*/out came to"):
        taken()
    there = "out/.DS_Store" if kind == "folder" else "out"
    assert content(tmp_path) == {there: b"", "out-1": b"mine", "out-2/a": b"hours"}


def test_a_folder_that_holds_something_keeps_it(tmp_path):
    (tmp_path / "notes").write_text("mine")
    (tmp_path / "a").write_text("old")
    with pytest.raises(KeyboardInterrupt), files.folder(tmp_path):
        raise KeyboardInterrupt
    with files.folder(tmp_path) as folder:
        files.write_text(folder / "a", "new")
    assert content(tmp_path) == {"notes": b"mine", "a": b"new"}


KILLED = """
import os, pathlib, signal, sys
from aigc_jax import files
folder = pathlib.Path(sys.argv[1])
with files.replacing(folder / "a.txt") as partial, files.folder(folder / "out") as inner:
    partial.write_text("half")
    (inner / "b").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_leaves_nothing_by_the_final_name_and_the_next_process_clears_up(tmp_path):
    (tmp_path / "a.txt").write_text("first")
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=ROOT, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "a.txt").read_text() == "first"
    assert not (tmp_path / "out").exists()
    assert len(content(tmp_path)) == 3  # both of the half written, hidden
    files.write_text(tmp_path / "c", "")
    assert content(tmp_path) == {"a.txt": b"first", "c": b""}


def test_what_others_are_writing_stays(tmp_path):
    host = socket.gethostname()
    names = [
        f".a.partial-{host}-{os.getppid()}", f".a.partial-elsewhere-{DEAD}",
        f"a.partial-{host}-{DEAD}", f".a.partial-{host}-x",
    ]  # fmt: skip
    for name in [*names, f".a.partial-{host}-{DEAD}"]:
        (tmp_path / name).write_text("")
    files.write_text(tmp_path / "b", "")
    assert set(content(tmp_path)) == {*names, "b"}


def test_the_longest_names_can_be_written(tmp_path):
    for name in ("x" * 255, "é" * 127):
        files.write_text(tmp_path / name, name)
        assert (tmp_path / name).read_text() == name


@pytest.fixture
def someones(tmp_path):
    """A folder as someone may have it."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.png").write_text("mine")
    (tmp_path / "empty").mkdir()
    (tmp_path / "dangling").symlink_to("nowhere")
    return tmp_path


@pytest.mark.parametrize(
    ("path", "options", "match"),
    [
        ("full/a.png", {}, r"full/a\.png is there already: name another --output"),
        ("dangling", {}, "dangling is there already"),
        ("full", {"folders": True}, "full is not empty: name another --output, or move it away"),
        ("full", {}, "full is a folder, in the way of a file"),
        ("full", {"new": False}, "full is a folder, in the way of a file"),
        ("full/a.png", {"folders": True, "new": False}, r"a\.png is a file, in the way of a fold"),
        ("full/a.png/b/c", {}, r"full/a\.png is no folder, so there can be no .*/b/c"),
        ("new", {"size": 10**18}, r"takes 1,000,000,000,000 MB, but .* has .* MB free"),
    ],
)
def test_an_output_that_cannot_be_is_refused_before_the_work(someones, path, options, match):
    before = content(someones)
    with pytest.raises(files.OutputError, match=match):
        files.check(someones / "other", someones / path, **options)
    assert content(someones) == before


def test_an_output_that_can_be_passes_and_leaves_no_trace(someones):
    before = content(someones), sorted(someones.rglob("*"))
    files.check(someones / "full" / "b.png", someones / "x" / "y" / "z", size=1000)
    files.check(someones / "empty", someones / "x" / "y", folders=True)
    files.check(someones / "full" / "a.png", new=False)
    files.check(someones / "full", folders=True, new=False)
    assert (content(someones), sorted(someones.rglob("*"))) == before


def test_a_folder_that_takes_no_file_is_said(tmp_path, monkeypatch):
    def refused(dir):
        raise OSError(30, "Read-only file system", str(dir))

    monkeypatch.setattr(files.tempfile, "TemporaryFile", refused)
    with pytest.raises(files.OutputError, match=r"out cannot be written, .* takes no file \(Read-"):
        files.check(tmp_path / "out")


def test_a_full_disk_is_said(tmp_path, monkeypatch):
    usage = collections.namedtuple("usage", "free")
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: usage(999))
    files.check(tmp_path / "out", size=999)
    with pytest.raises(files.OutputError, match="make room, or name another --output"):
        files.check(tmp_path / "out", size=1000)


@pytest.mark.parametrize("reason", ["a mount", "someone else's parent"])
def test_an_empty_folder_whose_place_none_can_take_is_filled(tmp_path, monkeypatch, reason):
    """A fresh volume, and a folder that an administrator made, for a run and for results."""
    path, made = tmp_path / "own", tempfile.TemporaryFile
    path.mkdir()

    def refused(dir):
        if dir == path:
            return made(dir=dir)
        raise OSError(errno.EACCES, "Permission denied", str(dir))

    if reason == "a mount":
        monkeypatch.setattr(pathlib.Path, "is_mount", lambda self: self == path)
    else:
        monkeypatch.setattr(files.tempfile, "TemporaryFile", refused)
    for new in (False, True):
        files.check(path, folders=True, new=new)
    with files.folder(path) as folder:
        files.write_text(folder / "a", "1")
    assert folder == path
    assert content(tmp_path) == {"own/a": b"1"}
    if reason != "a mount":  # its parent is what a new folder or file beside it needs
        with pytest.raises(files.OutputError, match=r"takes no file \(Permission denied\)"):
            files.check(tmp_path / "other", folders=True, new=False)
        files.check(path / "deep" / "b", path / "c")


def test_a_file_takes_the_place_of_a_link_and_needs_no_rights_elsewhere(tmp_path, monkeypatch):
    (tmp_path / "a").symlink_to("/proc/version")
    files.check(tmp_path / "a", new=False)
    files.write_text(tmp_path / "a", "1")
    assert content(tmp_path) == {"a": b"1"}


@pytest.mark.parametrize("output", ["in", "in/out", "in/a/b", "other/../in/x", "link", "link/x"])
def test_an_output_within_the_input_is_refused(tmp_path, monkeypatch, output):
    (tmp_path / "in").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "link").symlink_to("in")
    monkeypatch.chdir(tmp_path)
    for source in (tmp_path / "in", "in", "./other/../in", "link"):
        with pytest.raises(files.OutputError, match=r"would lie in the input .*outside it"):
            files.check_apart(tmp_path / output, source)
        with pytest.raises(files.OutputError, match="would lie in the input"):
            files.check_apart(output, source)
    for apart in ("inner", "other/in", "in/../out", "in/../other"):
        files.check_apart(apart, "in")


def test_arrays_are_read_back(tmp_path):
    files.write_arrays(tmp_path / "a.npz", {"x": np.arange(3), "s": np.float32(2)})
    with np.load(tmp_path / "a.npz") as arrays:
        assert arrays["x"].tolist() == [0, 1, 2]
        assert arrays["s"] == 2


def test_a_name_that_is_no_text_is_refused(tmp_path):
    with pytest.raises(files.OutputError, match="is no valid UTF-8"):
        files.check(tmp_path / os.fsdecode(b"\x80"), folders=True, new=False)
    files.check(tmp_path / "zoë?", folders=True, new=False)
