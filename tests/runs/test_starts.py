"""Families that start from a trained model of another one: what they take, and what they refuse."""

import jax
import numpy as np
import pytest
import specs
from runs.test_weights import random_run

from aigc_jax import build
from aigc_jax.runs import model as models
from configs import ddpm_digits, distil_cifar, ect_cifar, edm_cifar, gan_digits, meanflow_digits

SPEC = specs.images((8, 8, 1), 10, {"train": 1501, "test": 296})


def changed(module, changes):
    config = module.get_config("smoke")
    config.data.name = "digits"
    with config.unlocked():
        for key, value in changes.items():
            *path, last = key.split(".")
            part = config
            for name in path:
                part = part[name]
            part[last] = value
    return config.to_dict()


def start(source, module, changes):
    config = changed(module, changes)
    return models.initial(source, config, build.build(config, SPEC), SPEC)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A run of the diffusion family with random weights, in DDPM's cosine process, by v."""
    folder = tmp_path_factory.mktemp("teacher")
    random_run(
        folder,
        changed(
            ddpm_digits,
            {"diffusion.prediction": "v"},
        ),
    )
    return folder


@pytest.fixture(scope="module")
def edm(tmp_path_factory):
    """One of EDM's process and prediction."""
    folder = tmp_path_factory.mktemp("edm")
    random_run(folder, changed(edm_cifar, {}))
    return folder


def test_a_student_begins_with_what_its_teacher_learned(teacher):
    params, extra = start(teacher, distil_cifar, {})
    assert extra == {}
    theirs = models.load(teacher).variables.params
    jax.tree.map(np.testing.assert_array_equal, params, dict(theirs))


def test_a_consistency_model_begins_with_the_weights_of_edm(edm):
    params, _ = start(edm, ect_cifar, {})
    theirs = models.load(edm).variables.params
    jax.tree.map(np.testing.assert_array_equal, params, dict(theirs))


@pytest.mark.parametrize(
    ("module", "changes", "words"),
    [
        (distil_cifar, {"diffusion.process.schedule": "linear"}, "linear here, cosine there"),
        (distil_cifar, {"diffusion.prediction": "x0"}, "diffusion.prediction: x0 here, v there"),
        (distil_cifar, {"data.name": "mnist"}, "data.name: mnist here, digits there"),
        (distil_cifar, {"network.width": 16}, "do not fit config.network"),
        (ect_cifar, {}, "diffusion.process.name: edm here, discrete there"),
        (meanflow_digits, {}, "init_from takes those of meanflow"),
        (gan_digits, {}, "are of family 'diffusion', this config of 'gan'"),
    ],
)
def test_weights_that_do_not_fit_are_refused(teacher, module, changes, words):
    with pytest.raises(ValueError) as caught:  # noqa: PT011  (the words below)
        start(teacher, module, changes)
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_another_deviation_of_the_data_is_another_model(edm):
    with pytest.raises(ValueError, match=r"sigma_data: 0.7 here, 0.5 there"):
        start(edm, ect_cifar, {"diffusion.sigma_data": 0.7})


def test_a_student_without_a_teacher_is_told_to_name_one():
    with pytest.raises(ValueError, match=r"starts from the weights .* --config.init_from=RUN"):
        start("", distil_cifar, {})


def test_networks_without_heads_start_from_others_too(tmp_path):
    config = changed(distil_cifar, {"network": {"name": "mlp"}, "init_from": str(tmp_path)})
    random_run(tmp_path, changed(ddpm_digits, {}))
    assert models.with_network(config, tmp_path / "new")["network"] == {"name": "mlp"}
