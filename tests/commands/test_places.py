"""Where commands read and write: home folders, a run and its images, outputs before the model."""

import pathlib
import re

import numpy as np
import pytest
import specs
from PIL import Image

from aigc_jax import files
from aigc_jax.commands import (
    denoise,
    edit,
    encode,
    evaluate,
    export,
    report,
    sample,
    train,
    translate,
)
from aigc_jax.data import datasets, images
from aigc_jax.errors import UserError
from aigc_jax.evaluation import features
from aigc_jax.formats import diffusers, torch_file
from aigc_jax.runs import edits, extractors
from aigc_jax.runs import folder as folders
from aigc_jax.runs.image_folder import check_output
from aigc_jax.vae.perceptual import Perceptual
from configs import cyclegan_maps, ddpm_digits, dvae_mnist, vae_digits


def made_run(folder, config, spec):
    """A run's folder before its first checkpoint."""
    files.write_json(folder / "config.json", folders.as_dict(config))
    folders.write_spec(folder, spec)
    return folder


def of_folder(path):
    config = vae_digits.get_config("smoke")
    with config.unlocked():
        config.data.update({"name": "folder", "path": str(path), "image_size": 8})
    return config


def weights_at(path):
    return torch_file.locate(path, "x.npz", what="weights", setting="a setting")


def opened(path):
    with images.open_folder(path).open("a.png") as file:
        return file.name


def perceptual(path):
    return Perceptual((8, 8, 1), "vgg16", weights=path).variables()


# What is said of a path, or made of it. None of these is there but image/.
GIVEN = {
    "data.data_dir": lambda path: (datasets.load("digits", data_dir=path), [*HOME.rglob("*")])[1],
    "data.path": lambda path: opened("~/images"),
    "init_from, a run": lambda path: folders.run_of("~/run"),
    "init_from, of diffusers": diffusers.read_network,
    "evaluation.weights": lambda path: features.load("lenet", path, None, None),
    "evaluation.statistics": features.load_statistics,
    "vae.perceptual.weights": perceptual,
    "AIGC_WEIGHTS": lambda path: weights_at(None),
    "AIGC_CACHE": lambda path: extractors.cache_folder(),
    "output": lambda path: check_output("~/images", "~/images/out"),
    "export": lambda path: export.run("~/run", "~/images"),
    "train": lambda path: train.run(of_folder("~/images"), "~/images/run"),
    "sample": sample.run,
    "evaluate": evaluate.run,
    "report": report.run,
    "encode": encode.run,
    "denoise": lambda path: denoise.run(path, "~/images"),
    "translate": lambda path: translate.run(path, "~/images"),
    "edit": lambda path: edit.run(path, "~/images", "vary"),
    "edit, a file": lambda path: edits.opened("~/images/a.png", "--input").open("a.png").name,
}
HOME = pathlib.Path()


@pytest.mark.parametrize("name", GIVEN)
def test_a_tilde_is_the_home_folder_in_whatever_names_a_path(name, tmp_path, monkeypatch):
    home = tmp_path / "home"
    (home / "images").mkdir(parents=True)
    made_run(home / "run", ddpm_digits.get_config("smoke"), specs.images((8, 8, 1), 10))
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(home / "images" / "a.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(globals(), "HOME", home)
    for variable in ("HOME", "AIGC_WEIGHTS", "AIGC_CACHE"):
        monkeypatch.setenv(variable, str(home) if variable == "HOME" else "~/gone")
    try:
        told = GIVEN[name]("~/gone")
    except UserError as error:
        told = error
    assert str(home) in str(told)
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_a_run_and_its_images_do_not_lie_in_one_another(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "a.png")
    told = re.escape(f"--workdir={folder}/run would lie in data.path, {folder}: name a folder out")
    with pytest.raises(ValueError, match=told):
        train.run(of_folder(folder), folder / "run")
    told = re.escape(f"data.path={folder} lies in --workdir={tmp_path}: name another folder by")
    with pytest.raises(ValueError, match=told):
        train.run(of_folder(folder), tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == ["images", "a.png"]


@pytest.mark.parametrize(
    ("command", "module", "spec"),
    [
        (denoise, dvae_mnist, specs.images((28, 28, 1), 10)),
        (translate, cyclegan_maps, specs.images((32, 32, 3), domains=2)),
        (encode, vae_digits, specs.images((8, 8, 1), 10)),
        (export, ddpm_digits, specs.images((8, 8, 1), 10)),
    ],
)
def test_an_output_that_is_taken_is_refused_before_the_model_is_read(
    command, module, spec, tmp_path
):
    folder = made_run(tmp_path / "run", module.get_config("smoke"), spec)
    given = [tmp_path / "in"] if command in (denoise, translate) else []
    output = tmp_path / "out"
    output.mkdir()
    (output / "train.npz").touch()
    with pytest.raises(files.OutputError):
        command.run(folder, *given, output=output)
    with pytest.raises(FileNotFoundError, match="no checkpoints"):  # the first that is missing
        command.run(folder, *given, output=tmp_path / "new")
