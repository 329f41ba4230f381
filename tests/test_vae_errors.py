"""Settings of a VAE that cannot be: one clear error each, before anything runs."""

import pytest
from vae_toys import DIGITS, config, mlp

from aigc_jax import build


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"network__latent": 0}, r"network\.latent is at least 1, not 0"),
        ({"network__name": "gru"}, r"network\.name is one of .*mlp.*, not 'gru'"),
        ({"vae__likelihood": "poisson"}, r"vae\.likelihood is one of bernoulli.*, not 'poisson'"),
        ({"vae__binarise": "half"}, r"vae\.binarise is one of none, .*, not 'half'"),
        ({"vae__noise": "snow"}, r"vae\.noise is one of none, .*, not 'snow'"),
        ({"vae__kl": "sigmoid"}, r"vae\.kl is one of constant, .*, not 'sigmoid'"),
        ({"sampling__prior": "flow"}, r"sampling\.prior is normal or mixture, not 'flow'"),
        ({"vae__free_bits": 1.0, "vae__beta": 0.0}, r"free_bits does nothing where vae\.beta is 0"),
        ({"vae__importance": 0}, r"vae\.importance is at least 1, not 0"),
        ({"vae__noise": "gaussian"}, r"vae\.noise_level must be above 0, not 0"),
        ({"vae__likelihood": "gaussian", "vae__sigma": 0.0}, r"vae\.sigma must be above 0, not 0"),
        ({"vae__likelihood": "laplace", "vae__scale": 0.0}, r"vae\.scale must be above 0, not 0"),
        ({"vae__noise": "salt_pepper", "vae__noise_level": 1.5}, r"a share of pixels, .*not 1\.5"),
        ({"vae__likelihood": "gaussian_optimal", "vae__importance": 2}, "gaussian_optimal is none"),
        ({"vae__feature_network": "alexnet"}, r"feature_network is one of vgg16, .*not 'alexnet'"),
        (
            {"vae__feature_network": "vgg16", "vae__importance": 2},
            "takes no terms beside the bound",
        ),
        ({"vae__feature_network": "vgg16", "vae__codes": 4}, "with a codebook vae.feature_network"),
    ],
)
def test_a_setting_that_cannot_be_is_told(changes, match):
    with pytest.raises(ValueError, match=match):
        mlp(**changes)


def test_labels_are_asked_of_data_that_have_them():
    with pytest.raises(ValueError, match=r"vae\.conditional needs data with labels"):
        build.build(config(vae__conditional=True), DIGITS._replace(num_classes=0))


@pytest.mark.parametrize("name", ["bernoulli", "continuous_bernoulli", "logistic_mixture"])
def test_points_of_the_plane_are_no_pixels(name):
    points = DIGITS._replace(image_shape=(1, 1, 2))
    with pytest.raises(ValueError, match=rf"likelihood={name} needs data in \[0, 1\].*gaussian"):
        build.build(config(vae__likelihood=name), points)
    build.build(config(vae__likelihood="gaussian"), points)
