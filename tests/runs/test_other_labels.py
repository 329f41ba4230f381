"""Weights of a model with other labels: the body is taken over, what depends on labels is new."""

import importlib

import jax
import numpy as np
import pytest
import specs

from aigc_jax import build, checks, streams
from aigc_jax.runs import folder as folders
from aigc_jax.runs import model as models


def config_of(experiment, variant, changes=()):
    config = importlib.import_module(f"configs.{experiment}").get_config(variant)
    config.update_from_flattened_dict(dict(changes))
    return config


def names(tree):
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(p, simple=True, separator="/"): np.asarray(x) for p, x in leaves}


@pytest.fixture
def start(monkeypatch):
    """(weights of one model, what another starts from, that other one new), each {name: array}.

    Of two of (variant, number of classes); the weights are random, and lie in no file.
    """

    def call(experiment, theirs, ours, side=8, changes=(), **more):
        rng, learned = np.random.default_rng(0), []
        shape = (side, side, 1 if side == 8 else 3)
        for (variant, classes), own in ((theirs, ()), (ours, changes)):
            config, spec = config_of(experiment, variant, own), specs.images(shape, classes)
            family = build.build(config, spec)
            abstract = jax.eval_shape(family.init, streams.init(0)[0])
            weights = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), abstract)
            learned.append((*weights, checks.flatten(folders.as_dict(config)), classes))
        monkeypatch.setattr(models, "_learned", lambda source: learned[0])
        monkeypatch.setattr(models.weights, "check_process", lambda source, diffusion: None)
        made = models.initial("elsewhere", config, family, spec, **more)
        new = jax.jit(family.init)(streams.init(config.seed)[0])
        new = dict(new[0]), {name: new[1][name] for name in made[1]}
        assert jax.tree.map(np.shape, made) == jax.tree.map(np.shape, new)
        return names(learned[0][:2]), names(made), names(new)

    return call


def changed(weights, made):
    """Names of arrays that are not simply taken over."""
    return {k for k, x in made.items() if k not in weights or not np.array_equal(weights[k], x)}


TABLE = "0/net/label/embedding"
# Experiment, weights, model, shape of images, arrays that are new, and those taken but for their
# last inputs: {name: how many of these are labels'}.
CASES = [
    ("ddpm_digits", ("smoke+conditional", 3), ("smoke+conditional", 2), 8, {TABLE}, {}),
    ("ddpm_digits", ("smoke+conditional", 3), ("smoke", 3), 8, set(), {}),
    ("ddpm_digits", ("smoke", 0), ("smoke+conditional", 3), 8, {TABLE}, {}),
    (
        "vae_digits",
        ("smoke+conditional", 3),
        ("smoke+conditional", 5),
        8,
        set(),
        {f"0/net/network/{part}/hidden_0/kernel": 5 for part in ("encoder", "decoder")},
    ),
    (
        "cgan_mnist",
        ("smoke", 3),
        ("smoke", 2),
        8,
        {"0/discriminator/embedding/kernel"},
        {"0/generator/in/kernel": 2},
    ),
    (
        "cgan_mnist",
        ("smoke+classifier", 3),
        ("smoke+classifier", 2),
        8,
        {"0/discriminator/classes/kernel", "0/discriminator/classes/bias"},
        {"0/generator/in/kernel": 2},
    ),
    (
        "cgan_mnist",
        ("smoke+concat", 2),
        ("smoke", 3),
        8,
        {"0/discriminator/embedding/kernel"},
        {"0/generator/in/kernel": 3, "0/discriminator/down_0/kernel": 0},
    ),
    (
        "r3gan_cifar",
        ("smoke", 3),
        ("smoke+unconditional", 0),
        32,
        {"0/discriminator/out/kernel"},
        {"0/generator/in/kernel": 0},
    ),
]


@pytest.mark.parametrize(("experiment", "theirs", "ours", "side", "new", "partly"), CASES)
def test_all_but_what_depends_on_labels_is_taken_over(
    start, capsys, experiment, theirs, ours, side, new, partly
):
    weights, made, fresh = start(experiment, theirs, ours, side)
    assert changed(weights, made) == new | partly.keys()
    for name in new:
        np.testing.assert_array_equal(made[name], fresh[name])
    for name, labels in partly.items():
        body = made[name].shape[-2] - labels
        expected = [weights[name][..., :body, :], fresh[name][..., body:, :]]
        np.testing.assert_array_equal(made[name], np.concatenate(expected, axis=-2))
    taken = len(made) - len(new) - len(partly)
    said = capsys.readouterr().out
    assert said.startswith(f"elsewhere: {taken} of {len(made)} arrays are taken over (")
    assert all(name.partition("/")[2] in said for name in (*new, *partly))


def test_gains_of_classes_and_their_spectral_vectors_are_new(start):
    """Of SNGAN with projection; the statistics of its batch norms are no one class's."""
    weights, made, _ = start("sngan_cifar", ("smoke+projection", 3), ("smoke+projection", 2), 32)
    gains = {
        f"0/generator/up_{i}/norm{j}/{x}"
        for i in range(3)
        for j in (1, 2)
        for x in ("scale", "bias")
    }
    of_head = {"0/discriminator/embedding/kernel", "1/discriminator/embedding/v"}
    assert changed(weights, made) == gains | of_head
    assert "1/generator/up_0/norm1/mean" in made


def test_labels_excuse_no_other_difference(start):
    """What does not fit with the labels of the weights either is an error, and no label's table."""
    wider = {"network.width": 16}
    with pytest.raises(ValueError, match=r"is \(8,\) there, \(16,\) here; .* more$") as told:
        start("ddpm_digits", ("smoke+conditional", 3), ("smoke+conditional", 2), changes=wider)
    assert "absent" not in str(told.value)


def test_only_training_makes_new_tables(start):
    given = r"elsewhere use labels otherwise: give --config.diffusion.conditional=True"
    with pytest.raises(ValueError, match=given):
        start("ddpm_digits", ("smoke+conditional", 3), ("smoke", 3), training=False)
