"""Which errors end a command in one line, and how a process ends."""

import errno
import json
import os
import subprocess
import sys
import warnings
import zipfile

import pytest
from PIL import UnidentifiedImageError

from aigc_jax.commands import boundary
from aigc_jax.errors import MissingError, RunError, SettingError

NUMBERS = [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EMFILE]
NUMBERS += [errno.ENAMETOOLONG, errno.ELOOP]


def raised(error, cause=None):
    try:
        raise error from cause
    except type(error) as caught:
        return caught


@pytest.mark.parametrize("number", NUMBERS)
def test_errors_of_the_system_name_the_path_and_what_to_do(number):
    told = boundary.explain(OSError(number, os.strerror(number), "/runs/x"))
    assert told == f"/runs/x: {os.strerror(number)}; {boundary.OF_SYSTEM[number]}"
    # As TensorStore says it, in an error of its own.
    told = boundary.explain(ValueError(f"UNKNOWN: writing /x: {os.strerror(number)} [OS error"))
    assert boundary.OF_SYSTEM[number] in told


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (SettingError("lower it"), "lower it"),
        (MissingError("no run in x"), "no run in x"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes."), "train.batch_size"),
        (MemoryError(), "train.batch_size"),
        (ValueError("writing x: [OS error 17: EEXIST]"), "in the way"),
        (ValueError("RESOURCE_EXHAUSTED: writing x: No space left on device"), "make room"),
        (UnidentifiedImageError("cannot identify image file 'a.png'"), "a damaged file: cannot"),
        (zipfile.BadZipFile("File is not a zip file"), "a damaged file"),
        (raised(ValueError("x"), OSError(errno.ENOSPC, "No space left on device", "f")), "f: No"),
    ],
)
def test_known_errors_are_told_in_one_line(error, words):
    told = boundary.explain(error)
    assert words in told
    assert len(told.splitlines()) == 1


def test_a_peer_that_is_gone_is_told_only_where_there_are_peers(monkeypatch):
    error = RunError("could not write: Gloo AllGather failed: Connection closed by peer")
    assert boundary.explain(error) == str(error)
    monkeypatch.setattr(boundary.hosts, "joined", lambda: True)
    assert "another process of this run has ended" in boundary.explain(error)
    assert boundary.explain(RunError("lower it")) == "lower it"


LOSES = """
import gc, os, signal, time
from aigc_jax.commands import boundary
boundary.end_by_interrupt()
class Lost:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
del_ = Lost()
try:
    del del_
    try:
        time.sleep(30)
    except KeyboardInterrupt:
        raise ValueError("what an extension makes of it")
except Exception as error:
    boundary.end(boundary.tell(error, False).code)
"""


def test_an_interrupt_that_is_lost_on_its_way_ends_the_process():
    done = subprocess.run(
        [sys.executable, "-c", LOSES], capture_output=True, text=True, timeout=25, check=False
    )
    assert done.returncode == boundary.INTERRUPTED
    assert done.stderr == "launch.py: interrupted\n"


def test_a_damaged_json_is_told():
    with pytest.raises(json.JSONDecodeError) as caught:
        json.loads("{")
    assert "JSON is damaged" in boundary.explain(caught.value)


@pytest.mark.parametrize("error", [ValueError("x"), KeyError("x"), TypeError("x"), IndexError()])
def test_an_error_that_nobody_expected_keeps_its_traceback(error, capsys):
    assert boundary.explain(error) is None
    end = boundary.tell(raised(error), debug=False)
    assert end.code == f"launch.py: {boundary.REPORT}"
    assert "Traceback" in capsys.readouterr().err


def test_what_an_error_came_beside_does_not_explain_it():
    error = KeyError("bug")
    error.__context__ = FileNotFoundError(errno.ENOENT, "No such file", "x")
    assert boundary.explain(error) is None


def test_an_interrupt_is_one_line_with_a_code_of_its_own(capsys):
    assert boundary.tell(KeyboardInterrupt(), debug=False).code == boundary.INTERRUPTED
    assert capsys.readouterr().err == "launch.py: interrupted\n"


def test_a_process_ends_whatever_threads_a_library_left():
    program = (
        "import threading, time; from aigc_jax.commands import boundary\n"
        "threading.Thread(target=time.sleep, args=(60,)).start()\n"
        "print('out'); boundary.end('launch.py: failed')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=20
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "out\n", "launch.py: failed\n")


def test_a_warning_of_ours_is_a_line_and_those_of_others_name_their_place(monkeypatch):
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # put back afterwards
    boundary.warn_in_one_line()
    ours, others = boundary.__file__, warnings.__file__
    assert warnings.formatwarning("look", UserWarning, ours, 3) == "warning: look\n"
    for category, file in ((RuntimeWarning, ours), (UserWarning, others)):
        assert warnings.formatwarning("look", category, file, 3).startswith(f"{file}:3: ")
