"""Signals: training is asked to stop, and asked again."""

import os
import signal
import sys
import threading
import types

import pytest

from aigc_jax.training import stop


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", stop.SIGNALS)
def test_a_signal_asks_to_stop_and_what_was_there_before_comes_back(number, capfd):
    before = signal.getsignal(number)
    with stop.asked() as stopped:
        assert not stopped(1)
        send(number)
        assert stopped(1)
    assert signal.getsignal(number) is before
    assert "stopping: saves first; a second signal" in capfd.readouterr().out


def test_a_second_signal_ends_it_at_once(monkeypatch, capfd):
    ended = []
    monkeypatch.setattr(stop.os, "_exit", ended.append)
    with stop.asked():
        send(signal.SIGINT)
        assert ended == []
        send(signal.SIGTERM)
    assert ended == [130]


def test_a_second_signal_in_a_notebook_interrupts_and_leaves_the_kernel(monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    with stop.asked():
        send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_what_the_parent_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop.asked() as stopped:
            send(signal.SIGHUP)
            assert not stopped(1)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_another_thread_trains_without_signals():
    found = []

    def train():
        with stop.asked() as stopped:
            found.append(stopped(1))

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert found == [False]


def test_a_closed_terminal_does_not_keep_a_run_from_its_save(monkeypatch):
    def closed(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(stop.os, "write", closed)
    with stop.asked() as stopped:
        send(signal.SIGHUP)
        assert stopped(1)
