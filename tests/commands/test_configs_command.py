"""The list of experiments, and how two configs differ."""

import pytest

from aigc_jax.commands import configs
from aigc_jax.errors import SettingError


def test_an_experiment_in_a_line(capsys):
    configs.run(only=["gan_mix*"])
    head, line = capsys.readouterr().out.splitlines()
    assert head.split() == list(configs.Experiment._fields)
    # Generator and discriminator of three layers of 128: 2-128-128-128-2 and 2-128-128-128-1.
    parameters = (3 + 129 + 129) * 128 + 129 * 2 + (3 + 129 + 129) * 128 + 129
    assert line.split()[:5] == ["gan_mixture", "gan", "ring", "2", f"{parameters:,}"]
    assert line.endswith(configs.ours()["gan_mixture"])


def test_cost_and_scores():
    found = configs.described("vae_digits")
    # Encoder 64-128-20 and decoder 10-128-64: a forward pass, and twice that for the gradient,
    # less the first layer's gradient of the image.
    forward = 64 * 128 + 128 * 20 + 10 * 128 + 128 * 64
    assert float(found.gflops) * 1e9 == pytest.approx(2 * (3 * forward - 64 * 128), rel=0.01)
    assert found.published == "–"


def test_the_readme_has_a_score_of_every_experiment():
    assert configs.ours().keys() == set(configs.names())
    assert all(configs.ours().values())
    assert not any("](" in words for words in configs.ours().values())


def test_how_two_differ(capsys, tmp_path):
    configs.run(diff=["ddpm_cifar", "ddpm_cifar:cosine+v"])
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "diffusion.prediction: eps -> v",
        "diffusion.process.schedule: linear -> cosine",
    ]
    configs.run(diff=["vae_digits", "vae_digits"])
    assert capsys.readouterr().out == "the same\n"
    a, b = {"x": {"y": 1}, "z": ()}, {"x": {"y": 1, "w": None}}
    assert configs.difference(a, b) == ["x.w: (absent) -> None", "z: () -> (absent)"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"diff": ["vae_digits"]}, "--diff takes two"),
        ({"diff": ["vae_digits", "vae_digit"]}, "did you mean 'vae_digits'"),
        ({"diff": ["vae_digits", "vae_digits:beta5"]}, "did you mean beta4"),
        ({"diff": ["vae_digits", "tests"]}, "tests holds no run"),
        ({"only": ["vea_*"]}, r"--only=vea_\* fits none of"),
    ],
)
def test_what_is_not_there(flags, words):
    with pytest.raises(SettingError, match=words):
        configs.run(**flags)
