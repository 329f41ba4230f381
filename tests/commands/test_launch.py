"""The command line: help, flags by command, and every mistake as one line."""

import importlib
import json
import os
import types

import pytest

import launch as launcher
from aigc_jax.commands import common
from aigc_jax.errors import SettingError
from configs import ddpm_digits

DIGITS = "--config=configs/ddpm_digits.py"
EVALUATE = ["--mode=evaluate", "--workdir=RUN", f"{DIGITS}:smoke+conditional"]
HOSTS = {"distributed", "coordinator", "processes", "process", "join_timeout"}

MISTAKES = [
    ([f"{DIGITS}:smok"], "unknown variant 'smok': did you mean smoke?"),
    ([f"{DIGITS}:smoke+cosin"], "unknown variant 'cosin': did you mean cosine?"),
    ([DIGITS, "--config.network.widht=3"], 'no key widht. Did you mean "width"'),
    ([DIGITS, "--config.netwrok.width=3"], 'Did you mean "network"'),
    ([DIGITS, "--config.network.width=wide"], "--config.network.width=wide: invalid literal"),
    ([DIGITS, "--config.network.width=1.5"], "--config.network.width=1.5: invalid literal"),
    (["--config=configs/ddpm_digit.py"], "no config file configs/ddpm_digit.py; configs/ has ddpm"),
    (
        ["--mode=trian"],
        "--mode=trian: value should be one of <train|sample|evaluate",
    ),
    ([], "name the experiment, as in --config=configs/ddpm_digits.py"),
    (["--mode=sample"], "name the experiment"),
    (["--confg=x"], "Unknown command line flag 'confg'. Did you mean: config"),
    ([DIGITS, "smoke"], "what is 'smoke'? Settings are given as --name=value"),
    ([DIGITS, "--config.data.name=digit"], "unknown data set 'digit': did you mean digits"),
    ([DIGITS, "--config.family=difusion"], "did you mean 'diffusion'?"),
    ([f"{DIGITS}:smoke", "--config.network.multipliers=(1,2,2,2,2)"], "nearest sizes that do: 16"),
    ([f"{DIGITS}:smoke", "--config.sampling.guidance=2.0"], "needs diffusion.conditional=True"),
    ([f"{DIGITS}:smoke", "--config.sampling.steps=21"], "sampling.steps must lie in 1..20"),
    ([f"{DIGITS}:smoke", "--config.diffusion.prediction=noise"], "is one of eps, x0, v"),
    ([f"{DIGITS}:smoke", "--config.init_from=gone"], "no folder gone: download a checkpoint"),
    (["--mode=sample", "--workdir=RUN-typo"], "(runs beside it: digits): train first"),
    (["--mode=export", "--workdir=RUN-typo"], "(runs beside it: digits): train first"),
    (["--mode=sample", "--workdir=RUN", "--labels=3,12"], "labels 12 are not in 0..9"),
    (["--mode=sample", "--workdir=RUN", "--labels=-1"], "labels -1 are not in 0..9"),
    (["--mode=sample", "--workdir=RUN", "--labels=three"], "labels three are not in 0..9"),
    (["--mode=sample", "--workdir=RUN", "--num=0"], "--num=0: 0 is not a positive integer"),
    (["--mode=sample", "--workdir=RUN", "--steps=21"], "sampling.steps must lie in 1..20"),
    (
        ["--mode=sample", "--workdir=RUN", "--sampler=ddmi"],
        "predictor_corrector, not 'ddmi'; did you mean 'ddim'?",
    ),
    (
        [f"{DIGITS}:smoke", "--config.sampling.sampler=heun", "--config.sampling.eta=0.5"],
        "sampling.eta is of sampler=ddim, euler_ancestral, dpmpp_2m_sde, dpmpp_3m_sde alone, and",
    ),
    (
        [DIGITS, "--mode=sample", "--workdir=RUN", "--sampler=heun", "--config.sampling.eta=0.5"],
        "heun would ignore it",
    ),
    (["--mode=sample", "--workdir=RUN", "--gif"], "an animation needs a number of frames"),
    (["--mode=sample", "--workdir=RUN", "--step=3"], "no checkpoint of step 3"),
    (["--mode=sample", "--workdir=RUN", "--save=jpg"], "--save=jpg: value should be one of"),
    (["--mode=evaluate", "--workdir=RUN-typo"], "(runs beside it: digits): train first"),
    (["--mode=report", "--workdir=RUN-typo"], "train first"),
    (["--mode=evaluate", "--workdir=RUN", "--num=1"], "at least 2 samples"),
    ([*EVALUATE, "--config.evaluation.network=inception"], "give their file by evaluation.weights"),
    ([*EVALUATE, "--config.evaluation.network=incption"], "is one of inception, resnet56, lenet"),
    ([*EVALUATE, "--config.evaluation.weights=x.npz"], "'digits' has no file of weights"),
    ([DIGITS, "--config.data.path=faces"], "data.path='faces' is of data.name='folder'"),
    ([f"{DIGITS}:smoke+"], "unknown variant ''"),
    (["--config=README.md"], "README.md is no config file"),
    ([DIGITS, "--config.init_from=a\nb"], "'--config.init_from=a\\nb' holds a character"),
    ([*EVALUATE, "--evaluations=diagnosis"], "'diffusion' has no values of diagnosis: ask for"),
    ([*EVALUATE, "--evaluations=fdi"], "not 'fdi'; did you mean 'fid'?"),
    ([*EVALUATE, "--config.evaluation.statistics=gone.npz"], "gone.npz"),
    ([*EVALUATE, "--config.evaluation.reference_split=trian"], "has no split 'trian'"),
    # A flag that the command does not take, though another does.
    (
        [DIGITS, "--seed=3"],
        "--mode=train takes no --seed: it is a flag of sample, evaluate, edit, ema; for training "
        "set --config.seed",
    ),
    ([DIGITS, "--nogif"], "--mode=train takes no --gif: it is a flag of sample"),
    ([*EVALUATE, "--labels=3"], "--mode=evaluate takes no --labels: it is a flag of sample"),
    (["--mode=report", "--workdir=RUN", "--batch=64"], "--mode=report takes no --batch: it is a"),
    (
        ["--mode=sample", "--workdir=RUN", "--input=x"],
        "takes no --input: it is a flag of denoise, translate",
    ),
    ([DIGITS, "--config.train.steps=abc"], "train.steps"),
    ([DIGITS, "--config.train.steps=2.5"], "train.steps"),
    (
        [DIGITS, "--config.optimizer.clip=-1"],
        "config.optimizer.clip is a number at least 0, not -1.0",
    ),
    (
        ["--mode=sample", "--workdir=RUN", "--guidance=nan"],
        "config.sampling.guidance is a number at least 0, not nan",
    ),
    (["--config=configs/ablations/gan_mixture.py"], "of an ablation: give it to --mode=ablate"),
    (["--mode=ablate", DIGITS], "takes the config of an ablation"),
    ([DIGITS, "--processes=2"], "several processes need all of --coordinator=host:port"),
]


@pytest.mark.parametrize(("arguments", "words"), MISTAKES, ids=lambda x: str(x)[-40:])
def test_a_mistake_is_told_in_one_line(run, launch, tmp_path, arguments, words):
    arguments = [a.replace("RUN", str(run[0])) for a in arguments]
    if not any(a.startswith("--workdir") for a in arguments) and len(arguments) > 1:
        arguments.append(f"--workdir={tmp_path}/new")
    with pytest.raises(SystemExit) as caught:
        launch(*arguments)
    message = str(caught.value)
    assert message.startswith("launch.py: ")
    assert words in message
    assert len(message.strip().splitlines()) == 1
    assert not (tmp_path / "new" / "config.json").exists()


@pytest.mark.parametrize("number", [0, 2, 12])
def test_a_mistake_ends_the_process_with_one_line_and_no_traceback(number, command):
    arguments, words = MISTAKES[number]
    done = command(*arguments)
    assert done.returncode == 1
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


@pytest.mark.parametrize("number", [0, 12])
def test_debug_shows_where_a_mistake_was_found(number, command):
    arguments, words = MISTAKES[number]
    done = command(*arguments, "--debug")
    assert done.returncode == 1
    assert "Traceback (most recent call last)" in done.stderr
    assert words in done.stderr


def test_a_run_of_an_earlier_version_says_so_in_one_line(launch, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    config = {"family": "diffusion", "sampling": {"steps": 10}, "evaluations": ["fid"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    spec = {"image_shape": [8, 8, 1], "num_classes": 10, "splits": {"train": 1501}}
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    for mode in ("sample", "evaluate", "denoise", "translate", "encode", "edit", "export", "ema"):
        given = ["--input=x"] if mode in ("denoise", "translate", "edit") else []
        given += ["--sigma-rel=0.1"] * (mode == "ema") + ["--edit=vary"] * (mode == "edit")
        with pytest.raises(SystemExit, match=r"run of an earlier version.*train it again") as told:
            launch(f"--mode={mode}", f"--workdir={tmp_path}", *given)
        assert len(str(told.value).splitlines()) == 1


@pytest.mark.parametrize("mode", launcher.COMMANDS)
def test_a_command_takes_flags_that_exist_and_reads_all_of_them(mode, monkeypatch):
    module = importlib.import_module(launcher.COMMANDS[mode])
    about, taken = launcher.command(mode)
    assert taken[: len(module.FLAGS)] == module.FLAGS
    assert about.endswith((".", ":"))
    read = set()

    class Flags:
        def __getattr__(self, name):
            read.add(name)
            known = {"origin": dict, "config": {"train": {"steps": 2}}}
            return {**known, "labels": None, "evaluations": None}.get(name, "given")

    state = types.SimpleNamespace(step=2)  # of training
    monkeypatch.setattr(module, "run", lambda *_, **__: state)
    module.main(Flags())
    assert read - {"config", "workdir", "origin"} == set(taken) - HOSTS
    assert set(taken) >= HOSTS or not HOSTS & set(taken)


def test_every_flag_is_taken_by_some_command():
    taken = {name for mode in launcher.COMMANDS for name in launcher.command(mode).flags}
    assert taken == set(launcher.OWN)


def test_help_of_a_command_shows_its_own_flags(launch, capsys):
    with pytest.raises(SystemExit) as ended:
        launch("--mode=evaluate", "--help")
    assert ended.value.code == 0
    said = capsys.readouterr().out
    shown = {line.split()[0].strip("-:") for line in said.splitlines() if "    --" in line}
    common = {"config", "mode", "workdir", "debug", "config.KEY"}
    assert shown == common | set(launcher.command("evaluate").flags)
    assert "table" in said.splitlines()[0]  # what it does


def test_help_shows_every_command_and_flag(launch, capsys):
    with pytest.raises(SystemExit):
        launch("--help")
    said = capsys.readouterr().out
    for mode in launcher.COMMANDS:
        about, taken = launcher.command(mode)
        assert f"  {mode}: {about}" in said
        assert all(f"--{name}" in said for name in taken)
    assert all(f"    --{name}: " in said for name in launcher.OWN)


def test_help_and_a_wrong_flag_do_not_wait_for_jax(command):
    program = (
        "import sys, launch\n"
        "try: launch.run(launch.parse(sys.argv))\n"
        "except SystemExit as end: print(end.code)\n"
        "print('jax' in sys.modules)"
    )
    for arguments in (["--mode=sample", "--help"], ["--mode=sample", "--workdir=x", "--input=y"]):
        done = command(*arguments, program=("-c", program))
        assert done.stdout.splitlines()[-1] == "False", done.stderr


def test_what_a_config_holds_for_another_sampler_waits(tmp_path):
    config = ddpm_digits.get_config()
    config.sampling.eta = 0.5  # of ddim and others, not of "ancestral"
    common.check_given(config, ["sampling.steps", "train.steps"], None)
    common.check_given(config, ["sampling.eta"], "ddim")
    config.evaluations = {"fid": {"sampling": {"sampler": "ddim"}}}
    common.check_given(config, ["sampling.eta"], None)  # of that evaluation
    settings, (words, *_) = common.with_sampling(tmp_path, config, {"sampler": "heun"})
    assert settings["sampling"]["eta"] == 0.5
    assert words == "sampler_heun"
    with pytest.raises(SettingError, match="heun would ignore it"):
        common.with_sampling(tmp_path, config, {"sampler": "heun", "eta": 0.5})


def test_a_command_makes_a_cpu_as_many_devices(run, launch, monkeypatch):
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES")  # which the fixture sets, and which ends with it
    launch("--mode=report", f"--workdir={run[0]}")
    assert os.environ["JAX_NUM_CPU_DEVICES"] == "8"  # as $XLA_FLAGS say


def test_a_cpu_is_as_many_devices_as_its_cores_share_the_batch(monkeypatch, tmp_path):
    monkeypatch.setattr(launcher.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setenv("XLA_FLAGS", "")
    assert [launcher.cpu_devices(n) for n in (64, 6, 5, 1)] == [4, 3, 1, 1]
    monkeypatch.setattr(launcher.os, "sched_getaffinity", lambda _: {0, 3})
    assert launcher.cpu_devices(64) == 2
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
    assert launcher.cpu_devices(64) == 8
    assert launcher.global_batch({"train": {"batch_size": 32}}, tmp_path) == 32
    assert launcher.global_batch(None, tmp_path) == 1
    (tmp_path / "config.json").write_text('{"train": {"batch_size": 20}}')
    assert launcher.global_batch(None, tmp_path) == 20
