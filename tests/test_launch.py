"""The command line: one experiment from end to end, and every mistake as one line."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from aigc_jax import build, weights
from aigc_jax.training import rundir

ROOT = pathlib.Path(__file__).resolve().parents[1]
DIGITS = "--config=configs/ddpm_digits.py"


# One device and no optimisation by LLVM: compiling is nearly all that these processes do.
QUICK = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"}


def command(*arguments, program=("launch.py",)):
    return subprocess.run(
        [sys.executable, *program, *map(str, arguments)],
        cwd=ROOT,
        env=QUICK,
        capture_output=True,
        text=True,
        timeout=400,
    )


@pytest.fixture
def launch(monkeypatch):
    """launch.py's parse and run within this process, from the repository's root."""
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    from absl import flags

    import launch as module

    def call(*arguments):
        argv = ["launch.py", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", argv)  # where ml_collections looks for --config.x=y
        flags.FLAGS.unparse_flags()
        for name in [name for name in flags.FLAGS if name.startswith("config.")]:
            delattr(flags.FLAGS, name)
        for flag in flags.FLAGS.get_flags_for_module(module):
            flag.unparse()
        module.run(module.parse(argv))

    return call


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A conditional model of the digits, trained by the smoke variant in a process of its own."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    done = command(
        f"{DIGITS}:smoke+conditional", f"--workdir={folder}", "--config.evaluation.count=40"
    )
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def losses_of_test(folder, name="test/loss"):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [row[name] for row in rows if name in row]
    assert losses
    return losses


def pictures(folder):
    return sorted(path.name for path in folder.rglob("*.*"))


def test_smoke_trains_evaluates_and_samples(run):
    folder, said = run
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = {row["step"] for row in rows if "net/loss" in row}
    assert steps == {2, 4}
    assert np.isfinite(losses_of_test(folder)).all()
    assert (folder / "samples" / "00000004.png").is_file()
    saved = [p.name for p in (folder / "checkpoints").iterdir() if p.name.isdigit()]
    assert sorted(map(int, saved)) == [2, 4]
    assert "starting at step 0 of 4" in said
    assert "done: step 4" in said
    # The evaluation at the end: rows beside what real images get, as a table and as JSON.
    table = [line.split() for line in said.splitlines()]
    assert next(line for line in table if line[0] == "metric")[:3] == ["metric", "value", "real"]
    (path,) = (folder / "evaluations").glob("step00000004-seed0-n40-digits.json")
    rows = {row["metric"]: row for row in json.loads(path.read_text())["rows"]}
    assert {"loss", "bits_per_dim", "fd_digits", "recall_digits", "agreement_digits"} <= set(rows)
    fd = rows["fd_digits"]
    assert fd["n"] == 40
    assert (fd["network"], fd["reference"]) == ("digits", "digits train (1501)")
    assert (fd["sampler"], fd["steps"], fd["weights"], fd["seed"]) == ("ancestral", 4, "EMA", 0)
    assert 0 < fd["real"] < fd["value"]  # four steps of training draw nothing like a digit
    scheduled = json.loads((folder / "evaluations" / "scheduled-00000004.json").read_text())
    assert {row["n"] for row in scheduled["rows"]} == {50}
    assert (folder / "restored" / "00000004.png").is_file()
    assert (folder / "evaluations" / f"{path.stem}-nearest.png").is_file()
    page = (folder / "report.html").read_text()
    assert "fd_digits" in page
    origin = json.loads((folder / "origin.json").read_text())
    assert origin["config"] == "configs/ddpm_digits.py:smoke+conditional"
    assert origin["base"]["train"]["steps"] == 4000
    assert [session["step"] for session in origin["sessions"]] == [0]
    assert origin["sessions"][0]["packages"]["jax"] == jax.__version__


FAST = "-sampler_ddim-steps_3-guidance_2.0"  # how a file's name tells what was asked for


def test_samples_are_written_with_labels_frames_and_arrays(run, tmp_path):
    folder, _ = run
    done = command(
        "--mode=sample", f"--workdir={folder}", "--num=6", "--labels=3,7", "--sampler=ddim",
        "--steps=3", "--guidance=2", "--save=npz", "--frames=4", f"--output={tmp_path}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    name = f"step00000004-seed0-n6{FAST}"
    assert pictures(tmp_path) == [f"{name}-strip.png", f"{name}.npz", f"{name}.png"]
    arrays = np.load(tmp_path / f"{name}.npz")
    assert arrays["image"].shape == (6, 8, 8, 1)
    assert arrays["image"].dtype == np.uint8
    assert arrays["label"].tolist() == [3, 7, 3, 7, 3, 7]
    strip = Image.open(tmp_path / f"{name}-strip.png")
    assert strip.width / strip.height == pytest.approx(4 / 6, abs=0.02)
    assert f"6 samples of step 4: {tmp_path / name}.png" in done.stdout


def test_every_image_and_an_animation(run, tmp_path, launch):
    folder, _ = run
    sample = ["--mode=sample", f"--workdir={folder}", "--num=6", "--labels=3,7"]
    fast = ["--sampler=ddim", "--steps=3", "--guidance=2"]
    launch(*sample, *fast, "--save=png", "--frames=3", "--gif", f"--output={tmp_path}/a")
    singles = sorted((tmp_path / "a" / f"step00000004-seed0-n6{FAST}").glob("*.png"))
    assert [path.name for path in singles] == [f"{i:06d}.png" for i in range(6)]
    animation = Image.open(tmp_path / "a" / f"step00000004-seed0-n6{FAST}.gif")
    assert animation.n_frames == 3
    # The same images whatever the batch, the number and the process that drew them.
    launch(*sample, *fast, "--save=npz", "--num=3", "--batch=8", f"--output={tmp_path}/b")
    arrays = np.load(tmp_path / "b" / f"step00000004-seed0-n3{FAST}.npz")["image"]
    drawn = np.stack([np.asarray(Image.open(path)) for path in singles[:3]])
    assert np.abs(arrays[..., 0].astype(int) - drawn).max() <= 1
    launch(*sample, "--raw", "--step=2", "--seed=5", "--num=2", f"--output={tmp_path}/c", *fast)
    assert pictures(tmp_path / "c") == [f"step00000002-seed5-n2-raw{FAST}.png"]


def test_another_evaluation_of_a_checkpoint(run, launch, capsys, tmp_path):
    folder, _ = run
    evaluate = ["--mode=evaluate", f"--workdir={folder}", "--sampler=ddim", "--steps=3"]
    launch(*evaluate, "--num=16", "--step=2", "--raw", "--seed=7", "--batch=8")
    said = capsys.readouterr().out
    name = "step00000002-seed7-n16-digits-raw-sampler_ddim-steps_3"
    content = json.loads((folder / "evaluations" / f"{name}.json").read_text())
    assert content["step"] == 2
    assert not content["scheduled"]
    row = next(row for row in content["rows"] if row["metric"] == "kd_digits")
    protocol = [row[key] for key in ("n", "sampler", "steps", "weights", "seed")]
    assert protocol == [16, "ddim", 3, "raw", 7]
    assert "ddim, 3 steps, raw, seed 7" in said
    elsewhere = tmp_path / "elsewhere"  # weights of another run, without one here
    launch("--mode=evaluate", f"{DIGITS}:smoke+conditional", f"--config.init_from={folder}",
           f"--workdir={elsewhere}", "--num=16", "--config.evaluations=('fid',)")  # fmt: skip
    (path,) = elsewhere.rglob("*.json")
    assert json.loads(path.read_text())["rows"][0]["weights"] == "as given"
    launch("--mode=report", f"--workdir={folder}")
    assert str(folder / "report.html") in capsys.readouterr().out


def test_a_finished_run_has_nothing_to_do_and_a_changed_one_is_refused(run, launch, capsys):
    folder, _ = run
    train = [
        f"{DIGITS}:smoke+conditional",
        f"--workdir={folder}",
        "--config.evaluation.at_end=False",
    ]
    launch(*train)
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"another config:\n  optimizer.learning_rate: 0.001 -> 1"):
        launch(*train, "--config.optimizer.learning_rate=1.0")
    with pytest.raises(SystemExit, match=r"another config:\n  family: diffusion -> vae"):
        launch(*train, "--mode=evaluate", "--config.family=vae")


def params_of(folder):
    config = rundir.read(folder, "config.json")
    state, step = weights.restore(folder, config, build.build(config, weights.read_spec(folder)))
    assert step == 4
    return state.params["net"], state.ema["net"]


def test_a_run_starts_from_the_average_of_another(run, tmp_path):
    folder, _ = run
    done = command(
        f"{DIGITS}:smoke+conditional", f"--workdir={tmp_path}", f"--config.init_from={folder}",
        "--config.seed=1", "--config.evaluation.at_end=False", "--config.log.sample_every=0",
        "--config.log.eval_every=0",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (new, _), (_, average) = params_of(tmp_path), params_of(folder)
    moved = jax.tree.map(lambda a, b: float(np.abs(np.asarray(a) - b).max()), new, average)
    # Adam moves no weight by more than its rate a step; another seed moves them by more.
    assert 0 < max(jax.tree.leaves(moved)) < 4.1e-3


EVALUATE = ["--mode=evaluate", "--workdir=RUN", f"{DIGITS}:smoke+conditional"]


def test_a_vae_trains_evaluates_denoises_and_gives_codes(launch, tmp_path, capsys):
    folder = tmp_path / "vae"
    launch("--config=configs/vae_digits.py:smoke", f"--workdir={folder}",
           "--config.evaluation.at_end=True", "--config.evaluation.count=40")  # fmt: skip
    said = capsys.readouterr().out
    (path,) = (folder / "evaluations").glob("step*.json")
    rows = {row["metric"] for row in json.loads(path.read_text())["rows"]}
    assert {"neg_elbo", "neg_log_p_iw4", "active_units", "psnr/reconstruction"} <= rows
    assert "fd_digits" in said
    assert "interpolations" in str(json.loads(path.read_text())["pictures"])
    launch("--mode=sample", f"--workdir={folder}", "--num=10", "--frames=4", "--pictures")
    names = [path.stem.split("-")[-1] for path in (folder / "generated").glob("*.png")]
    assert sorted(names) == ["interpolations", "n10", "strip", "traversals"]
    launch("--mode=evaluate", "--config=configs/vae_digits.py:smoke+mixture", "--num=40",
           f"--workdir={folder}", "--config.evaluations=('fid',)")  # fmt: skip
    assert "mixture, EMA" in capsys.readouterr().out
    assert len(list((folder / "evaluations").glob("step*.json"))) == 2  # beside the other
    launch("--mode=encode", f"--workdir={folder}")
    codes = np.load(folder / "codes" / "train.npz")
    assert codes["mean"].shape == (1501, 4)
    for i in range(3):
        picture = Image.fromarray(np.full((8, 8), 40 * i, np.uint8))
        save = tmp_path / "in" / f"{i}.png"
        save.parent.mkdir(exist_ok=True)
        picture.save(save)
    launch("--mode=denoise", f"--workdir={folder}", f"--input={tmp_path / 'in'}")
    assert len(list((folder / "denoised").glob("*.png"))) == 4
    with pytest.raises(SystemExit, match="name the images to denoise"):
        launch("--mode=denoise", f"--workdir={folder}")


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
    (["--mode=sample", "--workdir=RUN-typo"], "(runs there: digits): train first"),
    (["--mode=export", "--workdir=RUN-typo"], "(runs there: digits): train first"),
    (["--mode=sample", "--workdir=RUN", "--labels=3,12"], "labels [12] are not in 0..9"),
    (["--mode=sample", "--workdir=RUN", "--labels=-1"], "labels [-1] are not in 0..9"),
    (["--mode=sample", "--workdir=RUN", "--labels=three"], "--labels are numbers such as 3,7"),
    (["--mode=sample", "--workdir=RUN", "--num=0"], "--num=0: 0 is not a positive integer"),
    (["--mode=sample", "--workdir=RUN", "--steps=21"], "sampling.steps must lie in 1..20"),
    (["--mode=sample", "--workdir=RUN", "--sampler=ddmi"], "is one of ancestral, ddim, not 'ddmi'"),
    (["--mode=sample", "--workdir=RUN", "--gif"], "an animation needs a number of frames"),
    (["--mode=sample", "--workdir=RUN", "--step=3"], "no checkpoint of step 3"),
    (["--mode=sample", "--workdir=RUN", "--save=jpg"], "--save=jpg: value should be one of"),
    (["--mode=evaluate", "--workdir=RUN-typo"], "(runs there: digits): train first"),
    (["--mode=report", "--workdir=RUN-typo"], "train first"),
    (["--mode=evaluate", "--workdir=RUN", "--num=1"], "at least 2 samples"),
    ([*EVALUATE, "--config.evaluation.network=inception"], "give their file by evaluation.weights"),
    ([*EVALUATE, "--config.evaluation.network=incption"], "is one of inception, resnet56, lenet"),
    ([*EVALUATE, "--config.evaluations=('fdi',)"], "not 'fdi'; did you mean 'fid'?"),
    ([*EVALUATE, "--config.evaluation.statistics=gone.npz"], "gone.npz"),
    ([*EVALUATE, "--config.evaluation.reference_split=trian"], "has no split 'trian'"),
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
def test_a_mistake_ends_the_process_with_one_line_and_no_traceback(number):
    arguments, words = MISTAKES[number]
    done = command(*arguments)
    assert done.returncode == 1
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


TRAIN = """
import importlib, json, sys
from aigc_jax import experiment
for name, variant, workdir, changes in json.loads(sys.argv[1]):
    config = importlib.import_module(f"configs.{name}").get_config(variant)
    config.update_from_flattened_dict(changes)
    state = experiment.train(config, workdir)
    assert (int(state.step), int(state.skipped)) == (4, 0)
"""


TESTED = {
    "ddpm_cifar": ("test/loss", "samples"),
    "kl_autoencoder_celeba64": ("test/distortion", "restored"),
    "dcgan_celeba64": ("test/logit_real", "samples"),
    "fewshot_celeba64": ("test/logit_real", "samples"),
}


def test_smoke_of_the_other_experiments_trains_on_their_data(shared_tfds, celeba_zip, tmp_path):
    data, faces = {"data.data_dir": shared_tfds}, {"data.path": celeba_zip}
    few = faces | {"init_from": f"{tmp_path}/c"}
    jobs = [
        ("ddpm_cifar", "smoke", f"{tmp_path}/a", data | {"data.in_memory": False}),
        ("kl_autoencoder_celeba64", "smoke+folder", f"{tmp_path}/b", faces),
        ("dcgan_celeba64", "smoke+folder+relativistic+adaptive", f"{tmp_path}/c", faces),
        ("fewshot_celeba64", "smoke", f"{tmp_path}/f", few),
    ]
    done = command(json.dumps(jobs), program=("-c", TRAIN))
    assert done.returncode == 0, done.stderr
    for name, _, folder, _ in jobs:
        found, pictures = TESTED[name]
        assert np.isfinite(losses_of_test(pathlib.Path(folder), found)).all()
        assert (pathlib.Path(folder) / pictures / "00000004.png").is_file()
