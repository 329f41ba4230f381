"""Sampling by command: pictures, arrays, strips and animations of a trained model."""

import json

import numpy as np
import pytest
from PIL import Image

from aigc_jax.commands import evaluate, sample
from aigc_jax.commands.sample import labels_of
from aigc_jax.family import DataSpec, Drawing, Family, Field
from aigc_jax.runs.model import Model

FAST = "-sampler_ddim-steps_3-guidance_2.0"  # how a file's name tells what was asked for


def pictures(folder):
    return sorted(path.name for path in folder.rglob("*.*"))


def test_samples_are_written_with_labels_frames_and_arrays(run, command, tmp_path):
    folder, _ = run
    done = command(
        "--mode=sample", f"--workdir={folder}", "--num=6", "--labels=3,7", "--sampler=ddim",
        "--steps=3", "--guidance=2", "--save=npz", "--frames=4", f"--output={tmp_path}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    name = f"step00000004-seed0-n6-labels_3_7{FAST}"
    strip = f"{name}-frames_4-strip.png"
    assert pictures(tmp_path) == [strip, f"{name}.npz", f"{name}.png"]
    arrays = np.load(tmp_path / f"{name}.npz")
    assert sorted(arrays) == ["label", "x"]
    assert arrays["x"].shape == (6, 8, 8, 1)
    assert arrays["x"].dtype == np.uint8
    assert arrays["label"].tolist() == [3, 7, 3, 7, 3, 7]
    strip = Image.open(tmp_path / strip)
    assert strip.width / strip.height == pytest.approx(4 / 6, abs=0.02)
    assert f"6 samples of step 4: {tmp_path / name}.png" in done.stdout


def test_every_image_and_an_animation(run, tmp_path, launch, capsys):
    folder, _ = run
    sample = ["--mode=sample", f"--workdir={folder}", "--num=6", "--labels=3,7"]
    fast = ["--sampler=ddim", "--steps=3", "--guidance=2"]
    launch(*sample, *fast, "--save=png", "--frames=3", "--gif", f"--output={tmp_path}/a")
    singles = sorted((tmp_path / "a" / f"step00000004-seed0-n6-labels_3_7{FAST}").glob("*.png"))
    assert [path.name for path in singles] == [f"{i:06d}.png" for i in range(6)]
    (animation,) = (tmp_path / "a").glob("*-n6-labels_3_7*-frames_3.gif")
    animation = Image.open(animation)
    assert animation.n_frames == 3
    # The same images whatever the batch, the number and the process that drew them.
    launch(*sample, *fast, "--save=npz", "--num=3", "--batch=8", f"--output={tmp_path}/b")
    arrays = np.load(tmp_path / "b" / f"step00000004-seed0-n3-labels_3_7{FAST}.npz")["x"]
    drawn = np.stack([np.asarray(Image.open(path)) for path in singles[:3]])
    assert np.abs(arrays[..., 0].astype(int) - drawn).max() <= 1
    half = ["--dtype=bfloat16", "--raw", "--step=2", "--seed=5", "--num=2"]
    launch(*sample, *half, f"--output={tmp_path}/c", *fast)
    assert pictures(tmp_path / "c") == [f"step00000002-seed5-n2-raw-bfloat16-labels_3_7{FAST}.png"]
    launch(*sample, *fast, "--best", "--num=2", f"--output={tmp_path}/d")
    assert "2 samples of step 4 (the best): " in capsys.readouterr().out


def test_classes_are_asked_for_by_name_or_number():
    def asked(labels, names=("2", "cat", "dog"), classes=3):
        label = {"label": Field("label", (), classes, names)} if classes else {}
        spec = DataSpec({"x": Field("image", (4, 4, 1))}, label, {})
        drawing = Drawing(
            None, None, conditions={name: f._replace(names=()) for name, f in label.items()}
        )
        family = Family(None, (), None, (), drawing=drawing)
        return labels_of(Model({}, spec, family, None, 0), labels)

    assert asked(["dog", "1", "2", 2]) == [2, 1, 0, 2]  # a word is a name first
    assert asked(["1"], names=()) == [1]
    assert asked(None) == asked([]) == range(3)
    assert asked(None, classes=0) is None
    with pytest.raises(
        ValueError, match=r"labels cta are not in 0\.\.2 and are no .* such as cat$"
    ):
        asked(["cta"])
    with pytest.raises(ValueError, match="trained without them"):
        asked(["cat"], classes=0)


def test_samples_of_other_labels_have_other_names_and_the_same_are_made_again(run, tmp_path):
    folder, _ = run
    settings = {"sampler": "ddim", "steps": 2}
    draw = {"count": 2, "settings": settings}
    named = [sample.run(folder, labels=labels, **draw) for labels in (None, [3], [7], [3] * 99)]
    assert len(set(named)) == 4
    before = named[1].read_bytes()
    assert sample.run(folder, labels=[3], **draw, save="png") == named[1]
    assert named[1].read_bytes() == before
    (named[1].with_suffix("") / "notes.txt").write_text("mine")
    sample.run(folder, labels=[3], **draw, save="png")  # its name says all that it depends on
    assert len(pictures(named[1].with_suffix(""))) == 3
    path = sample.run(folder, **draw, output=tmp_path, save="npz")
    path.write_text("mine")
    with pytest.raises(ValueError, match="is there already: name another --output"):
        sample.run(folder, **draw, output=tmp_path)
    path.rename(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"\.npz is there already"):
        sample.run(folder, **draw, output=tmp_path, save="npz")
    assert (tmp_path / "a.png").read_text() == "mine"


def test_what_can_be_refused_is_refused_before_weights_are_read(run, tmp_path, monkeypatch):
    folder, _ = run

    def load(*args, **kwargs):
        raise AssertionError("weights are read")

    monkeypatch.setattr(sample.models, "load", load)
    (tmp_path / "file").write_text("mine")
    for options, match in [
        ({"pictures": True}, "has no pictures of codes"),
        ({"labels": [10]}, "are not in 0..9"),
        ({"output": tmp_path / "file"}, "is a file, in the way of a folder"),
        ({"output": tmp_path / "file" / "a"}, "is no folder, so there can be no"),
        ({"save": "npz", "count": 10**15}, r"takes .* MB, but .* MB free"),
    ]:
        with pytest.raises(ValueError, match=match):
            sample.run(folder, **options)
    (tmp_path / "evaluations").write_text("mine")
    with pytest.raises(ValueError, match="evaluations is a file, in the way of a folder"):
        evaluate.run(tmp_path, json.loads((folder / "config.json").read_text()))
