"""Several processes: their flags, how they meet, and what is told where one is gone."""

import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
from processes import free_port

from aigc_jax.commands import hosts
from aigc_jax.errors import RunError, SettingError

JOINED = """
import sys, time
from aigc_jax.commands import hosts
hosts.join(hosts.Hosts(sys.argv[1], 2, int(sys.argv[2]), 30), trains=False)
print("joined", flush=True)
time.sleep(60)
"""
ALONE = """
from aigc_jax.commands import hosts
hosts.join(hosts.of_flags({"distributed": True, "join_timeout": 1}))
"""


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


def test_a_cluster_that_jax_does_not_know_names_the_processes_itself(monkeypatch):
    names, values = hosts.ENVIRONMENT, ("10.0.0.1:1234", "4", "3")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    flags = {"distributed": True, "join_timeout": 9}
    monkeypatch.setenv(names[0], values[0])
    assert hosts.of_flags(flags) == hosts.Hosts(None, None, None, 9)  # JAX reads an address
    monkeypatch.setenv(names[1], values[1])
    with pytest.raises(SettingError, match=r"^.JAX_PROCESS_ID is a number beside .JAX_COORD"):
        hosts.of_flags(flags)
    monkeypatch.setenv(names[2], values[2])
    assert hosts.of_flags(flags) == hosts.Hosts("10.0.0.1:1234", 4, 3, 9)
    monkeypatch.setenv(names[2], "4")
    with pytest.raises(SettingError, match=r"^.JAX_PROCESS_ID is 0 to 3 of .JAX_NUM_PROCESSES=4"):
        hosts.of_flags(flags)
    monkeypatch.delenv(names[0])
    with pytest.raises(SettingError, match=r"^.JAX_COORDINATOR_ADDRESS is host:port such as"):
        hosts.of_flags(flags)


SLURM = {"JOB_ID": "4096", "STEP_NODELIST": "gpu[07-08],cpu1", "NTASKS": "8", "PROCID": "5"}
SLURM = {f"SLURM_{name}": value for name, value in SLURM.items()} | {"SLURM_LOCALID": "1"}
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "8192.0;tcp://127.0.0.1,10.148.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
}


def test_no_cluster_is_told_with_what_to_set():
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "OMPI", "KUBERN"))}
    done = subprocess.run(
        [sys.executable, "-c", ALONE], env=kept, capture_output=True, text=True, timeout=30
    )
    assert re.search(r"RunError: --distributed found no .*SLURM: start by srun", done.stderr)
    assert "JAX_NUM_PROCESSES" in done.stderr.splitlines()[-1]


def in_seconds(seconds):
    return time.monotonic() + seconds


def test_a_coordinator_that_does_not_answer_is_told_in_time_with_its_address(capfd):
    address, began = f"127.0.0.1:{free_port()}", time.monotonic()
    with pytest.raises(RunError, match=f"no answer from {address} in 1 s .Connection refused"):
        hosts._reach(hosts.Hosts(address, 2, 1, 1), in_seconds(1))
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("variables", "address"),
    [(SLURM, "gpu07:61440"), (OPEN_MPI | {"JAX_COORDINATOR_PORT": "80"}, "127.0.0.1:80")],
)
def test_processes_of_a_cluster_that_do_not_all_come_end_in_time_with_the_address(
    variables, address
):
    done = subprocess.run(
        [sys.executable, "-c", ALONE],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 1
    told = f"launch.py: not all processes met at {address} within 1 s: start the same"
    assert told in done.stderr.splitlines()[-1]


def test_whoever_waits_says_so(capfd):
    heard = hosts._Heard(hosts.Hosts("a:1", 2, 1, 60))
    with hosts._waiting(heard, in_seconds(60), every=0.1):
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
            hosts._reach(hosts.Hosts(f"127.0.0.1:{port}", 2, 0, 1), in_seconds(1))


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
        both[0].send_signal(signal.SIGTERM)  # which a command other than training does not keep
        _, said = both[1].communicate(timeout=60)
    finally:
        for process in both:
            process.kill()
            process.wait()
    assert both[0].returncode == -signal.SIGTERM
    assert both[1].returncode != 0
    assert said.strip().splitlines()[-1] == hosts.ENDED
    assert len(said.strip().splitlines()) == 1, said
