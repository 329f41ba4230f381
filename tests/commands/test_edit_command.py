"""Editing by command: each edit end to end, and every mistake before weights are read."""

import json

import numpy as np
import pytest
from PIL import Image

import launch as launcher
from aigc_jax.commands import edit
from aigc_jax.family import DataSpec, Drawing, Family, Field
from aigc_jax.runs.model import Model


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with images (in/), small ones (small/), others (wide/) and masks."""
    place, rng = tmp_path_factory.mktemp("edits"), np.random.default_rng(0)
    for i in range(3):
        save(place / "in" / f"{i}.png", rng.integers(0, 256, (8, 8)))
        save(place / "small" / f"{i}.png", rng.integers(0, 256, (4, 4)))
    save(place / "wide" / "0.png", rng.integers(0, 256, (8, 16)))
    save(place / "mask.png", np.tile([0, 255], (8, 4)))
    save(place / "black.png", np.zeros((8, 8)))
    save(place / "large.png", np.full((16, 16), 255))
    save(place / "masks" / "0.png", np.full((8, 8), 255))
    return place


def test_every_edit_end_to_end(run, launch, place, tmp_path, capsys):
    base = ["--mode=edit", f"--workdir={run[0]}", "--steps=3"]

    def called(name, *flags, source="in"):
        launch(*base, f"--edit={name}", f"--input={place / source}", *flags,
               f"--output={tmp_path / name}")  # fmt: skip
        said = capsys.readouterr().out.splitlines()[-1]
        return said, {p.relative_to(tmp_path).as_posix() for p in tmp_path.glob(f"{name}*/*.png")}

    images = {"0.png", "1.png", "2.png"}
    said, made = called("vary", "--strength=0.7", "--sampler=ddim", "--frames=2", "--gif")
    assert said.startswith("vary by step 4, 2 network calls an image: ")
    assert made == {f"vary/{name}" for name in images}
    assert Image.open(tmp_path / "vary-frames_2.gif").n_frames == 2
    said, _ = called("inpaint", f"--mask={place / 'mask.png'}", "--resample=2", "--labels=3,7")
    assert said.startswith("inpaint by step 4, 5 network calls an image: ")
    before, after = (
        np.asarray(Image.open(f / "1.png")) for f in (place / "in", tmp_path / "inpaint")
    )
    np.testing.assert_array_equal(before[:, ::2], after[:, ::2])
    assert (before[:, 1::2] != after[:, 1::2]).any()
    _, made = called("upscale", source="small")
    assert made == {f"upscale/{name}" for name in images}
    assert Image.open(tmp_path / "upscale" / "0.png").size == (8, 8)
    said, _ = called("invert", "--resize", "--guidance=2", "--labels=3", source="wide")
    errors = json.loads((tmp_path / "invert-errors.json").read_text())
    assert f"6 + 6 network calls an image, PSNR {errors['psnr']:.2f} dB" in said
    assert Image.open(tmp_path / "invert" / "0.png").size == (16, 8)
    said, made = called("interpolate", "--frames=4")
    assert said.endswith(f"shown in {tmp_path / 'interpolate-frames_4-strip.png'}")
    assert len(list((tmp_path / "interpolate").glob("*/*.png"))) == 8


MISTAKES = [
    ([], "name the images to edit, as in --input=FOLDER"),
    (["--input=PLACE/in"], "name the edit, as in --edit=vary: there are vary, inpaint"),
    (["--input=PLACE/in", "--edit=varry"], "--edit=varry: value should be one of"),
    (["--input=PLACE/gone", "--edit=vary"], "set --input"),
    (["--input=PLACE/in", "--edit=vary", "--strength=0"], "above 0 and at most 1, not 0"),
    (["--input=PLACE/in", "--edit=vary", "--strength=1.5"], "above 0 and at most 1, not 1.5"),
    (["--input=PLACE/in", "--edit=vary", "--strength=nan"], "above 0 and at most 1, not nan"),
    (
        ["--input=PLACE/in", "--edit=vary", "--factor=2"],
        "takes no --factor: it is of --edit=upscal",
    ),
    (["--input=PLACE/in", "--edit=invert", "--seed=1"], "takes no --seed: it is of --edit=vary, "),
    (["--input=PLACE/in", "--edit=invert", "--sampler=ddim"], "takes no --sampler: it is of"),
    (["--input=PLACE/in", "--edit=vary", "--gif"], "needs a number of frames"),
    (["--input=PLACE/in", "--edit=vary", "--labels=10"], "labels 10 are not in 0..9"),
    (
        ["--input=PLACE/wide", "--edit=vary"],
        "not of 8x8 pixels, such as 0.png with 8x16: scale them, or give --resize",
    ),
    (["--input=PLACE/in", "--edit=inpaint"], "name what is painted anew, as in --mask=mask.png"),
    (["--input=PLACE/in", "--edit=inpaint", "--mask=PLACE/gone.png"], "set --mask"),
    (["--input=PLACE/in", "--edit=inpaint", "--mask=PLACE/masks"], "2 of 3 images have no mask"),
    (["--input=PLACE/in", "--edit=inpaint", "--mask=PLACE/large.png"], "has 16x16 pixels and its"),
    (["--input=PLACE/in", "--edit=inpaint", "--mask=PLACE/black.png"], "has nothing white"),
    (
        ["--input=PLACE/in", "--edit=inpaint", "--mask=PLACE/mask.png", "--resample=0"],
        "how often each step is made, 1 or more, not 0",
    ),
    (["--input=PLACE/small", "--edit=upscale", "--factor=3"], "images of 8x8, not 3"),
    (
        ["--input=PLACE/in", "--edit=upscale"],
        "not of 4x4 pixels, such as 0.png with 8x8: scale them, or name another --factor",
    ),
    (["--input=PLACE/small", "--edit=upscale", "--resize"], "takes no --resize"),
    (["--input=PLACE/in", "--edit=interpolate", "--frames=1"], "at least --frames=2"),
    (["--input=PLACE/wide", "--edit=interpolate", "--resize"], "there is one image in"),
    (["--input=PLACE/in", "--edit=interpolate", "--labels=1,2"], "have one label"),
    (["--input=PLACE/in", "--edit=vary", "--output=PLACE/in/out"], "would lie in the input"),
    (["--input=PLACE/in", "--edit=vary", "--output=PLACE/masks"], "masks is not empty: name anoth"),
    (["--input=PLACE/in", "--edit=vary", "--output=PLACE/mask.png"], "in the way of a folder"),
    (["--input=PLACE/in", "--edit=vary", "--steps=21"], "sampling.steps must lie in 1..20"),
]


@pytest.mark.parametrize(("arguments", "words"), MISTAKES, ids=lambda x: str(x)[-40:])
def test_a_mistake_is_told_before_weights_are_read(
    run, launch, place, monkeypatch, arguments, words
):
    def load(*args, **kwargs):
        raise AssertionError("weights are read")

    monkeypatch.setattr(edit.models, "load", load)
    before = sorted(place.rglob("*"))
    arguments = [a.replace("PLACE", str(place)) for a in arguments]
    with pytest.raises(SystemExit) as caught:
        launch("--mode=edit", f"--workdir={run[0]}", *arguments)
    assert words in str(caught.value)
    assert len(str(caught.value).strip().splitlines()) == 1
    assert sorted(place.rglob("*")) == before
    assert not (run[0] / "edited").exists()


def test_a_picture_beside_the_output_is_not_written_over(run, launch, place, tmp_path):
    taken = save(tmp_path / "out-compared.png", np.zeros((8, 8)))
    before = taken.read_bytes()
    with pytest.raises(SystemExit, match=r"out-compared\.png is there already"):
        launch("--mode=edit", f"--workdir={run[0]}", "--edit=vary", f"--input={place / 'in'}",
               f"--output={tmp_path / 'out'}")  # fmt: skip
    assert taken.read_bytes() == before


def outline(kind="image", diffusion=None, family="vae"):
    spec = DataSpec({"x": Field(kind, (8, 8, 1))}, {}, {})
    config = {"family": family} | ({"diffusion": diffusion} if diffusion else {})
    return Model(config, spec, Family(None, (), None, (), drawing=Drawing(None, None)), None, 0)


def test_a_family_that_cannot_edit_says_so():
    with pytest.raises(
        ValueError, match="family 'vae' of image data has no edit 'vary': take a di"
    ):
        edit.drawings_of(outline(), "vary", {})
    with pytest.raises(ValueError, match="family 'diffusion' of points data has no edit 'invert'"):
        edit.drawings_of(outline("points", family="diffusion"), "invert", {})


def test_a_model_of_labels_alone_asks_for_them():
    alone, dropped = ({"conditional": True, "label_dropout": p} for p in (0.0, 0.1))
    with pytest.raises(ValueError, match="trained with the label of every image: name those"):
        edit.labels_of(outline(diffusion=alone), "vary", None)
    assert edit.labels_of(outline(diffusion=dropped), "vary", None) is None
    with pytest.raises(ValueError, match="labels were asked for, but this model was trained with"):
        edit.labels_of(outline(diffusion={"conditional": False}), "vary", ["3"])


def test_the_flag_names_every_edit():
    assert launcher.flags.FLAGS["edit"].parser.enum_values == list(edit.EDITS)
