"""docs/scaling.md: what of its files can be tried without a cluster."""

import itertools
import json
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import yaml

import launch
from aigc_jax.commands import hosts

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "scaling.md").read_text()


def blocks(kind):
    return re.findall(rf"^```{kind}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture
def job():
    jobset = yaml.safe_load(blocks("yaml")[0])
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    return jobset


def arguments():
    """Arguments of launch.py in every block."""
    for line in itertools.chain(
        *(block.replace("\\\n", "").splitlines() for block in blocks(r"\w+"))
    ):
        for command in re.findall(r"python launch\.py ([^\"]*)", line):
            yield shlex.split(command)
    pod = yaml.safe_load(blocks("yaml")[0])["spec"]["replicatedJobs"][0]["template"]["spec"]
    yield pod["template"]["spec"]["containers"][0]["args"]


def test_every_command_of_the_page_has_flags_and_a_config_that_there_are():
    found = list(arguments())
    assert len(found) == 4
    known = {f"--{name}" for name in (*launch.command("train").flags, "config", "workdir")}
    for words in found:
        assert {word.partition("=")[0] for word in words} <= known
        assert "--distributed" in words
        config, _, variant = words[0].removeprefix("--config=").partition(":")
        assert variant in (ROOT / config).read_text()


def test_the_sbatch_file_is_a_script_that_asks_for_a_process_a_gpu(tmp_path):
    (script,) = blocks("sh")
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    given = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", script, re.MULTILINE))
    assert given["ntasks-per-node"] == given["gpus-per-node"]
    assert {"signal": "TERM@300", "requeue": ""}.items() <= given.items()


@pytest.mark.parametrize(("code", "requeued"), [(75, "requeue 7\n"), (0, ""), (1, "")])
def test_the_sbatch_file_goes_back_to_the_queue_where_a_run_was_stopped(tmp_path, code, requeued):
    (script,) = blocks("sh")
    log = tmp_path / "log"
    for name, does in (("srun", f"exit {code}"), ("scontrol", f'echo "$@" > {log}')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "7"}
    done = subprocess.run(["bash"], input=script, text=True, env=env)
    assert done.returncode == code
    assert (log.read_text() if log.exists() else "") == requeued


def test_the_jobset_has_what_jobset_kueue_and_a_tpu_slice_ask_for(job):
    assert job["metadata"]["labels"].keys() == {"kueue.x-k8s.io/queue-name"}
    (workers,) = job["spec"]["replicatedJobs"]
    spec = workers["template"]["spec"]
    assert spec["parallelism"] == spec["completions"]
    assert (spec["completionMode"], spec["backoffLimit"]) == ("Indexed", 0)
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    (container,) = pod["containers"]
    x, y = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    assert container["resources"]["limits"]["google.com/tpu"] * spec["parallelism"] == x * y
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounted.keys() == {volume["name"] for volume in pod["volumes"]}
    assert container["args"][1].startswith(f"--workdir={mounted['shared']}/")


def test_the_variables_of_gpu_pods_name_the_first_pod_of_the_jobset(job, monkeypatch):
    (workers,) = job["spec"]["replicatedJobs"]
    variables = {v["name"]: v.get("value", "2") for v in yaml.safe_load(blocks("yaml")[1])["env"]}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    name, of_pods = job["metadata"]["name"], workers["name"]
    found = hosts.of_flags({"distributed": True, "join_timeout": 600})
    assert found.address.startswith(f"{name}-{of_pods}-0-0.{name}:")
    assert found.processes == workers["template"]["spec"]["parallelism"]
    assert found.process == 2


def test_the_image_holds_all_that_a_command_imports(tmp_path):
    """Its files, copied as its COPY lines say, and what its entry point makes of a command."""
    (dockerfile,) = blocks("dockerfile")
    assert re.search(r"^FROM python:3\.(\d+)", dockerfile)[1] >= "11"
    for device in ("cuda", "tpu"):
        assert (ROOT / f"requirements-{device}.txt").is_file()
    for line in re.findall(r"^COPY (.*)$", dockerfile, re.MULTILINE):
        *sources, target = line.split()
        for source in sources:
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, tmp_path / target)
            else:
                shutil.copy(ROOT / source, tmp_path / target)
    program = json.loads(re.search(r"^ENTRYPOINT (.*)$", dockerfile, re.MULTILINE)[1])
    assert program[0] == "python"
    command = ["--config=configs/ddpm_digits.py:smoke", "--mode=sample", "--workdir=none"]
    done = subprocess.run(
        [sys.executable, *program[1:], *command], cwd=tmp_path, capture_output=True, text=True
    )
    assert "no run in" in done.stderr.splitlines()[-1]
