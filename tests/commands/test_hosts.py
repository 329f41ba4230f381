"""Several processes: their flags, how they meet, and what is told where one is gone."""

import signal
import socket
import subprocess
import sys
import time

import pytest

from aigc_jax.commands import hosts
from aigc_jax.errors import RunError, SettingError

JOINED = """
import sys, time
from aigc_jax.commands import hosts
hosts.join(hosts.Hosts(sys.argv[1], 2, int(sys.argv[2]), 30))
print("joined", flush=True)
time.sleep(60)
"""


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"processes": 2}, "need all of --coordinator=host:port"),
        ({"process": 0}, "need all of --coordinator=host:port"),
        ({"coordinator": "a:1"}, "need all of --coordinator=host:port"),
        ({"coordinator": "a", "processes": 2, "process": 0}, "is host:port such as"),
        ({"coordinator": "a:b", "processes": 2, "process": 0}, "is host:port such as"),
        ({"coordinator": ":80", "processes": 2, "process": 0}, "is host:port such as"),
        ({"coordinator": "a:70000", "processes": 2, "process": 0}, "is host:port such as"),
        ({"coordinator": "a:1", "processes": 2, "process": 2}, "--process is 0 to 1 of"),
        ({"coordinator": "a:1", "processes": 2, "process": -1}, "--process is 0 to 1 of"),
        ({"coordinator": "a:1", "processes": 0, "process": 0}, "--process is 0 to 0 of"),
        ({"distributed": True, "process": 0}, "--distributed finds the processes by itself"),
    ],
)
def test_flags_that_do_not_go_together(flags, words):
    with pytest.raises(SettingError, match=words):
        hosts.of_flags(flags)


def test_flags_that_do():
    assert hosts.of_flags({"join_timeout": 60}) is None
    assert hosts.of_flags({"distributed": True}).address is None
    given = {"coordinator": "[::1]:80", "processes": 2, "process": 1, "join_timeout": 9}
    assert hosts.of_flags(given) == hosts.Hosts("[::1]:80", 2, 1, 9)


def test_a_coordinator_that_does_not_answer_is_told_in_time_with_its_address(capfd, monkeypatch):
    address, began = f"127.0.0.1:{free_port()}", time.monotonic()
    with pytest.raises(RunError, match=f"no answer from {address} in 1 s .Connection refused"):
        hosts._reach(hosts.Hosts(address, 2, 1, 1))
    assert time.monotonic() - began < 5


def test_whoever_waits_says_so(capfd):
    with hosts._waiting(hosts.Hosts("a:1", 2, 1, 60), every=0.1):
        time.sleep(0.35)
    said = capfd.readouterr().err
    assert said.startswith("process 1 of 2 waits for the others at a:1: 0 of 60 s\n")
    assert len(said.splitlines()) >= 2


def test_a_port_that_is_in_use_is_told():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(RunError, match=f"port {port} of this machine is in use"):
            hosts._reach(hosts.Hosts(f"127.0.0.1:{port}", 2, 0, 1))


def test_a_process_whose_coordinator_dies_ends_with_one_line_instead_of_pages():
    address = f"127.0.0.1:{free_port()}"
    both = [
        subprocess.Popen(
            [sys.executable, "-c", JOINED, address, str(i)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    try:
        assert [process.stdout.readline() for process in both] == ["joined\n"] * 2
        both[0].send_signal(signal.SIGKILL)
        _, said = both[1].communicate(timeout=60)
    finally:
        for process in both:
            process.kill()
            process.wait()
    assert both[1].returncode != 0
    assert said.strip().splitlines()[-1] == hosts.ENDED
    assert len(said.strip().splitlines()) == 1, said
