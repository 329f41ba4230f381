"""Experiments as files: each with each of its variants builds, and the numbers are published."""

import ast
import functools
import importlib
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax import build
from aigc_jax.data.datasets import DataSpec
from aigc_jax.training.loop import recipe
from aigc_jax.training.optimizers import per_player
from aigc_jax.vae import perceptual
from configs import common, cyclegan_maps, ddpm_cifar, ddpm_digits, gan_mnist, r3gan_cifar

FOLDER = pathlib.Path(common.__file__).parent
SHAPES = {
    "digits": DataSpec((8, 8, 1), 10, {}),
    "mnist": DataSpec((28, 28, 1), 10, {}),
    "cifar": DataSpec((32, 32, 3), 10, {}),
    "celeba64": DataSpec((64, 64, 3), 0, {}),
    "mixture": DataSpec((1, 1, 2), 0, {}),
    "maps": DataSpec((128, 128, 3), 0, {}),
    "horse2zebra": DataSpec((256, 256, 3), 0, {}),
}
NAMES = sorted(path.stem for path in FOLDER.glob("[a-z]*.py") if path.stem != "common")
MODULES = {name: importlib.import_module(f"configs.{name}") for name in NAMES}
CASES = [(name, variant) for name in NAMES for variant in ("", *MODULES[name].VARIANTS)]


def abstract(made, spec):
    """Shapes of parameters, losses and metrics of a family, for a batch of 8."""
    params, extra = jax.eval_shape(made.init, jax.random.key(0))
    batch = {
        "image": jax.ShapeDtypeStruct((8, *spec.image_shape), jnp.float32),
        "label": jax.ShapeDtypeStruct((8,), jnp.int32),
        "other": jax.ShapeDtypeStruct((8, *spec.image_shape), jnp.float32),  # of two domains
    }

    def run(of):
        return jax.eval_shape(of, params, extra, batch, jax.random.key(0))

    return params, [run(phase.loss)[0] for phase in made.phases], run(made.evaluate)


SEEN = {}


def shapes(made, config, spec):
    """`abstract`, once for all experiments that differ in numbers only."""
    own = config[config.family]
    if config.family == "diffusion":
        own = (own.prediction, own.conditional)
    key = (str(config.network), str(own), str(spec))
    if key not in SEEN:
        SEEN[key] = abstract(made, spec)
    return SEEN[key]


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_every_config_builds_with_every_variant(name, variant, monkeypatch):
    # Weights of others, which no checkout has.
    monkeypatch.setattr(perceptual, "_open", lambda *_: (lambda x: [x], [np.ones(3)]))
    spec = SHAPES[name.split("_")[-1]]
    if name == "ddpm_celeba64" and variant == "conditional":  # CelebA itself has no classes
        variant, spec = "folder+conditional", spec._replace(num_classes=2)
    config = MODULES[name].get_config(variant)
    made = build.build(config, spec)
    params, losses, values = shapes(made, config, spec)
    assert [(loss.shape, loss.dtype) for loss in losses] == [((), jnp.float32)] * len(made.phases)
    assert values
    assert all(value.shape == (8,) for value in values.values())
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    for player, optimizer in per_player(config.optimizer, dict.fromkeys(params, 1)).items():
        jax.eval_shape(optimizer.init, params[player])
    assert set(made.averaged) <= set(params)
    best = config.checkpoint.best
    if best.startswith("eval/"):
        assert config.evaluation.scheduled_count
    else:
        assert not best or best.removeprefix("test/") in values
    with pytest.raises((AttributeError, KeyError)):  # locked
        config.network.widht = 3


@pytest.mark.parametrize("name", NAMES)
def test_every_config_tells_its_command_and_has_a_smoke_variant(name):
    module = MODULES[name]
    text = ast.get_docstring(ast.parse((FOLDER / f"{name}.py").read_text()))
    assert f"--config=configs/{name}.py" in text
    smoke = module.get_config("smoke")
    assert smoke.train.steps <= 10
    for metric, value, source in smoke.published:
        assert isinstance(value, float), metric
        assert source


def test_ddpm_cifar_is_the_published_recipe():
    config = ddpm_cifar.get_config()
    network, optimizer, sampling = config.network, config.optimizer, config.sampling
    assert (network.width, network.multipliers) == (128, (1, 2, 2, 2))
    assert (network.blocks, network.attention, network.heads) == (2, (16,), 1)
    assert (network.groups, network.dropout, network.dtype) == (32, 0.1, "float32")
    diffusion = config.diffusion
    assert (diffusion.schedule, diffusion.timesteps) == ("linear", 1000)
    assert (diffusion.beta_min, diffusion.beta_max) == (1e-4, 0.02)
    assert (diffusion.prediction, diffusion.weighting) == ("eps", "simple")
    assert diffusion.conditional is False
    assert (sampling.sampler, sampling.steps, sampling.variance) == (
        "ancestral",
        1000,
        "fixed_large",
    )
    assert sampling.clip is True
    assert (optimizer.name, optimizer.learning_rate) == ("adam", 2e-4)
    assert (optimizer.warmup, optimizer.schedule, optimizer.clip) == (5000, "constant", 1.0)
    assert (optimizer.b1, optimizer.b2, optimizer.weight_decay) == (0.9, 0.999, 0.0)
    assert (config.train.batch_size, config.train.steps) == (128, 800_000)
    assert config.data.name == "cifar10"
    assert config.augment.to_dict() == {"flip": True, "shift": 0, "rotation": 0.0, "scale": 0.0}
    made = build.build(config, SHAPES["cifar"])
    decay = recipe(config, made).ema_decay(jnp.int32(0))
    assert float(decay) == pytest.approx(0.9999, abs=1e-7)
    params, *_ = shapes(made, config, SHAPES["cifar"])
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == 35_746_307
    published = {metric: value for metric, value, _ in config.published}
    assert published == {"fid": 3.17, "inception_score": 9.46, "bits_per_dim": 3.75}


def test_variants_join_from_left_to_right():
    config = ddpm_digits.get_config("x0+cosine+v")
    assert (config.diffusion.schedule, config.diffusion.prediction) == ("cosine", "v")
    assert ddpm_digits.get_config("") == ddpm_digits.get_config()


def test_decay_follows_the_number_of_steps():
    config = ddpm_digits.get_config()
    config.train.steps = 77
    assert config.optimizer.decay_steps == 77


def test_what_follows_the_steps_can_be_set_and_leaves_them_alone():
    config = r3gan_cifar.get_config()
    config.train.steps = 77
    config.optimizer.decay_steps, config.gan.decay_steps = 7, 5
    found = config.train.steps, config.optimizer.decay_steps, config.gan.decay_steps
    assert found == (77, 7, 5)
    config = cyclegan_maps.get_config()
    config.optimizer.decay_start = 9
    assert (config.train.steps, config.optimizer.decay_steps) == (200 * 1096, 200 * 1096)


@pytest.mark.parametrize("loss", common.GAN_LOSSES)
def test_the_losses_of_gan_mnist_are_those_of_a_dcgan(loss):
    found, plain = gan_mnist.get_config(loss), common.gan()
    plain.update_from_flattened_dict(common.GAN_LOSSES[loss])
    if loss == "diffaugment":
        found = gan_mnist.get_config("non_saturating+diffaugment")
    for key in gan_mnist.PLAIN:
        *path, last = key.split(".")
        parts = [functools.reduce(getattr, path, config) for config in (found, plain)]
        assert parts[0][last] == parts[1][last], key


def test_an_unknown_variant_names_the_near_ones():
    with pytest.raises(LookupError, match=r"unknown variant 'cosin': did you mean cosine\?"):
        ddpm_digits.get_config("smoke+cosin")
    with pytest.raises(LookupError, match=r"unknown variant 'zzz': There are bf16, conditional"):
        ddpm_digits.get_config("zzz")


def test_a_half_life_halves():
    decay = 0.5 ** (128 / common.half_life(0.9999, 128))
    assert decay == pytest.approx(0.9999)


def test_an_unknown_family_is_told_the_near_one():
    config = ddpm_digits.get_config()
    config.family = "difusion"
    with pytest.raises(ValueError, match=r"not 'difusion'; did you mean 'diffusion'\?"):
        build.build(config, SHAPES["digits"])


@pytest.mark.parametrize("key", ["adversary_weight", "noise"])
def test_a_config_of_an_older_version_says_which_key_it_lacks(key):
    config = MODULES["vae_digits"].get_config("smoke").to_dict()
    del config["vae"][key]
    with pytest.raises(ValueError, match=rf"does not fit this version .*'{key}'.*older"):
        build.build(config, SHAPES["digits"])
