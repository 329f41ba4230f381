"""Settings of a VAE that cannot be: one clear error each, before anything runs."""

import pytest
import specs
from vae_toys import DIGITS, config, mlp

from aigc_jax import build
from configs import hvae_cifar


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"network__name": "gru"}, r"network\.name is one of .*mlp.*, not 'gru'"),
        ({"network__name": "ladder"}, r"network\.name is one of mlp, .*, not 'ladder'"),
        (
            {"vae__likelihood__name": "poisson"},
            r"vae\.likelihood\.name is one of bernoulli.*, not 'poisson'",
        ),
        ({"vae__binarise": "half"}, r"vae\.binarise is one of none, .*, not 'half'"),
        ({"vae__noise__kind": "snow"}, r"vae\.noise\.kind is one of none, .*, not 'snow'"),
        ({"vae__kl__weight": "sigmoid"}, r"vae\.kl\.weight is one of constant, .*, not 'sigmoid'"),
        ({"sampling__prior": "flow"}, r"sampling\.prior is one of normal, mixture, not 'flow'"),
        (
            {"vae__kl__free_bits": 1.0, "vae__kl__beta": 0.0},
            r"free_bits does nothing where vae\.kl\.beta is 0",
        ),
        (
            {"vae__importance__samples": 2, "vae__kl__beta": 2.0},
            r"vae\.importance\.samples above 1 weighs no KL",
        ),
        (
            {"vae__importance__samples": 2, "vae__kl__weight": "capacity"},
            r"vae\.importance\.samples above 1 weighs no KL",
        ),
        ({"vae__noise__kind": "gaussian"}, r"vae\.noise\.level must be above 0, not 0"),
        (
            {"vae__noise__kind": "salt_pepper", "vae__noise__level": 1.5},
            r"a share of pixels, .*not 1\.5",
        ),
        (
            {"vae__likelihood__name": "gaussian_optimal", "vae__importance__samples": 2},
            "gaussian_optimal is none",
        ),
        (
            {"vae__perceptual__network": "alexnet"},
            r"perceptual\.network is one of '', vgg16, .*not 'alexnet'",
        ),
        (
            {"vae__perceptual__network": "vgg16", "vae__importance__samples": 2},
            "takes no terms beside the bound",
        ),
        (
            {"vae__adversary__weight": 0.5, "vae__importance__samples": 2},
            "takes no terms beside the bound",
        ),
    ],
)
def test_a_setting_that_cannot_be_is_told(changes, match):
    with pytest.raises(ValueError, match=match):
        mlp(**changes)


@pytest.mark.parametrize(
    ("part", "key"),
    [("vae", "codebook"), ("vae.kl", "betta"), ("network", "widht"), ("sampling", "steps")],
)
def test_a_key_that_a_section_does_not_have_is_told_by_its_name(part, key):
    setting = config()
    with setting.unlocked():
        inner = setting
        for name in part.split("."):
            inner = inner[name]
        inner[key] = 1
    with pytest.raises(ValueError, match=rf"config\.{part} has no key '{key}'"):
        build.build(setting, DIGITS)


def test_labels_are_asked_of_data_that_have_them():
    with pytest.raises(ValueError, match=r"vae\.conditional needs data with labels"):
        build.build(config(vae__conditional=True), specs.images((8, 8, 1)))


@pytest.mark.parametrize("name", ["bernoulli", "continuous_bernoulli", "logistic_mixture"])
def test_points_of_the_plane_are_no_pixels(name):
    with pytest.raises(ValueError, match=rf"name={name} needs data in \[0, 1\].*gaussian"):
        build.build(config(vae__likelihood__name=name), specs.points())
    build.build(config(vae__likelihood__name="gaussian"), specs.points())


@pytest.mark.parametrize("part", ["perceptual", "adversary"])
def test_what_compares_images_is_not_for_points(part):
    changes = {"perceptual": {"vae__perceptual__network": "vgg16"}}
    changes |= {"adversary": {"vae__adversary__weight": 1.0}}
    with pytest.raises(ValueError, match=rf"vae\.{part} compares images, and the data are points"):
        build.build(config(vae__likelihood__name="gaussian", **changes[part]), specs.points())


@pytest.mark.parametrize("network", ["conv", "residual"])
def test_a_convolution_of_points_is_refused(network):
    setting = config(vae__likelihood__name="gaussian")
    with setting.unlocked():
        setting.network = {"name": network, "latent": 2}
    message = rf"network\.name={network} takes images, and the data are points: only mlp"
    with pytest.raises(ValueError, match=message):
        build.build(setting, specs.points())


def test_a_ladder_of_points_is_refused():
    setting = hvae_cifar.get_config("smoke")
    with setting.unlocked():
        setting.vae.likelihood.name = "gaussian"
    with pytest.raises(ValueError, match=r"network\.name=ladder takes images, and the data are po"):
        build.build(setting, specs.points())
