"""A run's folder has one owner."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from aigc_jax.runs import lock

OTHER = {"host": "elsewhere", "process": 7, "since": "2026-01-01 00:00:00", "beats": 3}
OWNER = """
import pathlib, sys, time
from aigc_jax.runs import lock
with lock.owned(pathlib.Path(sys.argv[1])):
    print("owned", flush=True)
    time.sleep(60)
"""


def owner_elsewhere(workdir):
    """Another process, once it owns the folder."""
    command = [sys.executable, "-c", OWNER, str(workdir)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "owned\n"
    return process


def test_a_folder_that_is_owned_is_refused_and_free_again_after(tmp_path):
    told = rf"process {os.getpid()} on .* end that one"
    with lock.owned(tmp_path), pytest.raises(lock.LockError, match=told), lock.owned(tmp_path):
        pass
    assert not list(tmp_path.iterdir())
    with lock.owned(tmp_path):
        pass


def test_a_folder_that_was_made_and_holds_nothing_is_removed_again(tmp_path):
    with lock.owned(tmp_path / "a" / "b"):
        pass
    assert not list(tmp_path.iterdir())
    with lock.owned(tmp_path / "a" / "b"):
        (tmp_path / "a" / "x").touch()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["x"]


def test_a_folder_whose_name_is_too_long_leaves_none_above_it(tmp_path):
    with pytest.raises(OSError, match="too long"), lock.owned(tmp_path / "new" / ("x" * 300)):
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_owner_that_was_killed_is_said_and_taken_over(tmp_path, capsys):
    process = owner_elsewhere(tmp_path)
    with pytest.raises(lock.LockError, match=f"process {process.pid} on"), lock.owned(tmp_path):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    with lock.owned(tmp_path):
        said = capsys.readouterr().out
    assert f"process {process.pid} on" in said
    assert "ended without leaving it; taken over" in said


@pytest.mark.parametrize("alive", [True, False])
def test_an_owner_on_another_host_is_taken_over_without_a_sign_of_life(
    tmp_path, monkeypatch, capsys, alive
):
    """As on a disk that keeps the locks of its machines apart."""
    monkeypatch.setattr(lock, "PATIENCE", 1.0)
    path = tmp_path / lock.NAME
    path.write_text(json.dumps(OTHER))
    if alive:
        beat = threading.Timer(0.3, path.write_text, [json.dumps(OTHER | {"beats": 4})])
        beat.start()
        told = "process 7 on elsewhere"
        with pytest.raises(lock.LockError, match=told), lock.owned(tmp_path):
            pass
        return
    with lock.owned(tmp_path):
        said = capsys.readouterr().out
    assert "waiting 1 s for a sign of life" in said
    assert "process 7 on elsewhere ended without leaving it" in said


def test_what_cannot_be_read_in_a_lock_keeps_nobody_out(tmp_path):
    (tmp_path / lock.NAME).write_text("{")
    with lock.owned(tmp_path):
        pass


def test_without_locks_of_the_system_signs_of_life_tell(tmp_path, monkeypatch, capsys):
    def no_locks(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(lock.fcntl, "flock", no_locks)
    monkeypatch.setattr(lock, "PATIENCE", 1.0)
    monkeypatch.setattr(lock, "BEAT", 0.2)
    told = f"process {os.getpid()} on"
    with lock.owned(tmp_path), pytest.raises(lock.LockError, match=told), lock.owned(tmp_path):
        pass
    assert not list(tmp_path.iterdir())
