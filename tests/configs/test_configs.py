"""Experiments as files: each with each of its variants builds, and the numbers are published."""

import ast
import functools
import importlib
import math
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import specs

import configs
from aigc_jax import build
from aigc_jax.commands import validation
from aigc_jax.diffusion import family as diffusion
from aigc_jax.family import DataSpec, Variables, View
from aigc_jax.runs.evaluations import plan
from aigc_jax.training.optimizers import per_player
from aigc_jax.training.recipe import recipe
from aigc_jax.vae.perceptual import Perceptual
from configs import cyclegan_maps, ddpm_cifar, ddpm_digits, gan_mnist, r3gan_cifar
from configs.bases import base, gan

FOLDER = pathlib.Path(configs.__file__).parent
NAMES = sorted(path.stem for path in FOLDER.glob("[a-z]*.py"))
MODULES = {name: importlib.import_module(f"configs.{name}") for name in NAMES}
CASES = [(name, variant) for name in NAMES for variant in ("", *MODULES[name].VARIANTS)]
# Variants of all experiments, which change no more than one of each family shows.
CASES += [
    ("ddpm_cifar", "bf16+fsdp+remat"),
    ("dcgan_celeba64", "bf16"),
    ("cyclegan_maps", "bf16"),
    ("vqvae_cifar", "bf16"),
]


def abstract(made, spec: DataSpec):
    """Shapes of parameters, losses and metrics of a family, for a batch of 8."""
    key = jax.random.key(0)
    params, extra = jax.eval_shape(made.init, key)
    batch = {
        name: jax.ShapeDtypeStruct((8, *field.shape), jnp.float32)
        for name, field in spec.fields.items()
    }
    batch["label"] = jax.ShapeDtypeStruct((8,), jnp.int32)
    ema = {player: params[player] for player in made.averaged}
    constants = made.constants() if made.constants else {}
    view = View(params, ema, extra, constants, jax.ShapeDtypeStruct((), jnp.int32))
    losses = [jax.eval_shape(phase.loss, view, batch, key)[0] for phase in made.phases]
    return params, losses, jax.eval_shape(made.evaluate, Variables(params, extra), batch, key)


FOUND = {}


def shapes(made, config, spec):
    """`abstract`, once for all experiments that differ in numbers only."""
    own = [config[name] for name in ("vae", "gan", "cyclegan") if name in config]
    if config.family == "diffusion":
        names = ("prediction", "conditional", "variance", "ends")
        own = [config.diffusion[name] for name in names]
    if config.family == "hierarchical_vae":  # half a minute to trace, whatever the KL costs
        own = (config.vae.likelihood,)
    of_all = (config.train.precision, config.train.remat)
    key = (config.family, of_all, str(config.network), str(own), str(spec))
    if key not in FOUND:
        FOUND[key] = abstract(made, spec)
    return FOUND[key]


@pytest.fixture
def no_frozen_network(monkeypatch):
    """In place of weights of others, which no checkout has: an image is its own map of features."""
    of_none = {"network": {}, "channels": [np.ones(3, np.float32)]}
    monkeypatch.setattr(Perceptual, "variables", lambda _: of_none)
    monkeypatch.setattr(Perceptual, "_maps", lambda _, variables, images: [images])


@functools.cache
def compiled(call, module, settings):
    return jax.jit(lambda given, named: call(module, *given, **named, **dict(settings)))


def traced_once(call):
    """`Module.apply` or `init`, traced once for all equal modules, settings and shapes.

    Most variants leave the network as it is, and tracing it is nearly all that their tests do.
    """

    def fits(value):
        return all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(value))

    def called(module, *given, mutable=False, **named):
        mutable = tuple(mutable) if isinstance(mutable, list) else mutable
        settings = {k: v for k, v in named.items() if not fits(v) or v is None}
        arrays = {k: v for k, v in named.items() if k not in settings}
        settings |= {"mutable": mutable} if mutable else {}
        assert fits(given)
        return compiled(call, module, tuple(settings.items()))(given, arrays)

    return called


@pytest.fixture
def tracing_once(monkeypatch):
    monkeypatch.setattr(nn.Module, "apply", traced_once(nn.Module.apply))
    monkeypatch.setattr(nn.Module, "init", traced_once(nn.Module.init))


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_every_config_builds_with_every_variant(name, variant, no_frozen_network, tracing_once):
    spec = specs.OF_CONFIGS[name.split("_")[-1]]
    if name == "ddpm_celeba64" and variant == "conditional":  # CelebA itself has no classes
        variant, spec = "folder+conditional", specs.images(spec.shape, 2)
    config = MODULES[name].get_config(variant)
    with config.unlocked():
        best, config.checkpoint.best = config.checkpoint.best, ""  # below, without another trace
    made = validation.validate(config, spec)
    params, losses, values = shapes(made, config, spec)
    assert [(loss.shape, loss.dtype) for loss in losses] == [((), jnp.float32)] * len(made.phases)
    assert values
    assert all(value.shape == (8,) for value in values.values())
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    for player, optimizer in per_player(config.optimizer, dict.fromkeys(params, 1)).items():
        jax.eval_shape(optimizer.init, params[player])
    assert set(made.averaged) <= set(params)
    assert plan(config.evaluations, config.evaluation)
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
    assert (network.groups, network.dropout, config.train.precision) == (32, 0.1, "float32")
    diffusion = config.diffusion
    assert (diffusion.process.schedule, diffusion.process.timesteps) == ("linear", 1000)
    assert (diffusion.process.beta_min, diffusion.process.beta_max) == (1e-4, 0.02)
    assert (diffusion.prediction, diffusion.weighting.name) == ("eps", "simple")
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
    made = build.build(config, specs.OF_CONFIGS["cifar"])
    run = recipe(
        made,
        specs.OF_CONFIGS["cifar"],
        batch_size=config.train.batch_size,
        optimizer=config.optimizer,
        ema=config.ema,
        augment=config.augment,
    )
    assert float(run.ema_decay(jnp.int32(0))) == pytest.approx(0.9999, abs=1e-7)
    params, *_ = shapes(made, config, specs.OF_CONFIGS["cifar"])
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == 35_746_307
    published = {metric: value for metric, value, _ in config.published}
    assert published == {"fid": 3.17, "inception_score": 9.46, "bits_per_dim": 3.75}


def test_variants_join_from_left_to_right():
    config = ddpm_digits.get_config("x0+cosine+v")
    assert (config.diffusion.process.schedule, config.diffusion.prediction) == ("cosine", "v")
    assert ddpm_digits.get_config("") == ddpm_digits.get_config()


FID_OF_5_STEPS = {"metric": "fid", "sampling": {"steps": 5}}


def test_a_variant_replaces_a_whole_part_by_a_mapping_and_leaves_others_alone():
    variants = {
        "small": {"data.name": "digits", "augment": {"jitter": 3}},
        "two": {
            "evaluations": {"fid": {}, "fid_ddim": {"metric": "fid", "sampling": {"steps": 5}}}
        },
        "more": {"evaluations.fid": {"count": 100}},
    }
    config = base.finish(base.base(), variants, "small+two+more")
    assert config.augment.to_dict() == {"jitter": 3}
    assert config.evaluations.to_dict() == {
        "fid": {"count": 100},
        "fid_ddim": FID_OF_5_STEPS,
    }
    assert all(settings == {} for settings in base.base().evaluations.to_dict().values())
    with pytest.raises((AttributeError, KeyError)):  # locked, the new parts too
        config.evaluations.fid_ddim.sampling.stesp = 3


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


@pytest.mark.parametrize("loss", gan.LOSSES)
def test_the_losses_of_gan_mnist_are_those_of_a_dcgan(loss):
    found, plain = gan_mnist.get_config(loss), gan.gan()
    plain.update_from_flattened_dict(gan.LOSSES[loss])
    if loss == "diffaugment":
        found = gan_mnist.get_config("non_saturating+diffaugment")
    for key in gan_mnist.PLAIN:
        *path, last = key.split(".")
        parts = [functools.reduce(getattr, path, config) for config in (found, plain)]
        assert parts[0][last] == parts[1][last], key


def test_the_best_checkpoint_is_that_of_the_test_split_whichever_that_is():
    config = ddpm_digits.get_config()
    assert config.checkpoint.best == "test/loss"
    config.data.test_split = "train[90%:]"
    assert config.checkpoint.best == "train[90%:]/loss"
    config.checkpoint.best = ""
    assert config.data.test_split == "train[90%:]"


@pytest.mark.parametrize("module", [ddpm_digits, cyclegan_maps], ids=lambda m: m.__name__)
def test_samples_are_compared_with_what_is_trained_on_whichever_that_is(module):
    config = module.get_config()
    assert config.evaluation.reference_split == config.data.train_split
    config.data.train_split = "train[:1000]"
    assert config.evaluation.reference_split == "train[:1000]"
    config.evaluation.reference_split = "train"
    assert config.data.train_split == "train[:1000]"


def test_an_unknown_variant_names_the_near_ones():
    with pytest.raises(LookupError, match=r"unknown variant 'cosin': did you mean cosine\?"):
        ddpm_digits.get_config("smoke+cosin")
    with pytest.raises(LookupError, match=r"unknown variant 'zzz': There are bf16, conditional"):
        ddpm_digits.get_config("zzz")


def test_a_half_life_halves():
    decay = 0.5 ** (128 / base.half_life(0.9999, 128))
    assert decay == pytest.approx(0.9999)


def test_an_unknown_family_is_told_the_near_one():
    config = ddpm_digits.get_config()
    config.family = "difusion"
    with pytest.raises(ValueError, match=r"not 'difusion'; did you mean 'diffusion'\?"):
        build.build(config, specs.OF_CONFIGS["digits"])


# One experiment for each family and each kind of network.
OF_EVERY_KIND = {
    "ddpm_digits": "digits",
    "meanflow_digits": "digits",
    "ect_cifar": "cifar",
    "distil_cifar": "cifar",
    "vae_digits": "digits",
    "vae_mnist:conv": "mnist",
    "hvae_cifar": "cifar",
    "vqvae_cifar": "cifar",
    "kl_autoencoder_celeba64": "celeba64",
    "gan_digits": "digits",
    "gan_mixture": "mixture",
    "wgan_gp_cifar": "cifar",
    "r3gan_cifar": "cifar",
    "cyclegan_maps": "maps",
}
READ_ELSEWHERE = {  # sections that `build` does not read
    *("seed", "init_from", "data", "augment", "train", "optimizer", "ema", "log"),
    *("checkpoint", "evaluations", "evaluation", "published", "family"),
}


def sections(config, prefix=""):
    """{"vae.kl": settings} of all parts that a family reads."""
    found = {}
    for name, value in config.items():
        if isinstance(value, dict) and (prefix or name not in READ_ELSEWHERE):
            found[prefix + name] = value
            found |= sections(value, f"{prefix}{name}.")
    return found


@pytest.mark.parametrize("experiment", OF_EVERY_KIND)
def test_a_config_with_a_wrong_key_says_which(experiment, no_frozen_network):
    name, _, variant = experiment.partition(":")
    spec = specs.OF_CONFIGS[OF_EVERY_KIND[experiment]]

    def fresh():
        return MODULES[name].get_config(variant or "smoke").to_dict()

    build.build(fresh(), spec)
    for path in sections(fresh()):
        config = fresh()
        sections(config)[path]["nonsense"] = 1
        with pytest.raises(ValueError, match="nonsense"):
            build.build(config, spec)
        for key in sections(fresh())[path]:
            config = fresh()
            del sections(config)[path][key]
            if isinstance(found := error_of(config, spec), ValueError):
                assert key in str(found)
            else:
                assert found is None  # it has a default


def error_of(config, spec):
    try:
        build.build(config, spec)
    except Exception as error:
        return error


# What every experiment of a family has to say.
NEEDED = {
    "ddpm_digits": ("diffusion.process", "diffusion.prediction", "sampling.guidance"),
    "meanflow_digits": ("diffusion.times", "diffusion.end_times", "sampling.steps"),
    "ect_cifar": ("diffusion.consistency", "diffusion.process", "sampling.mid"),
    "distil_cifar": ("diffusion.teacher_steps", "diffusion.stage_steps", "sampling.steps"),
    "vae_digits": ("vae.noise", "vae.adversary", "vae.kl.beta", "vae.likelihood.sigma"),
    "hvae_cifar": ("vae.kl", "vae.likelihood", "sampling.temperature"),
    "vqvae_cifar": ("vae.codebook.size", "vae.codebook", "sampling.prior"),
    "gan_digits": ("gan.loss", "gan.prior", "gan.penalty", "sampling.truncation"),
    "cyclegan_maps": ("cyclegan.pool", "cyclegan.loss", "network.generator"),
}


@pytest.mark.parametrize(("name", "key"), [(n, key) for n, keys in NEEDED.items() for key in keys])
def test_a_config_of_an_older_version_says_which_key_it_lacks(name, key):
    config = MODULES[name].get_config("smoke").to_dict()
    path, _, last = key.rpartition(".")
    del sections(config)[path][last]
    with pytest.raises(ValueError, match=rf"config.{path} lacks '{last}'.*older version"):
        build.build(config, specs.OF_CONFIGS[OF_EVERY_KIND[name]])


@pytest.mark.parametrize("section", ["network", "vae", "sampling"])
def test_a_config_without_a_section_says_which(section):
    config = MODULES["vae_digits"].get_config().to_dict()
    del config[section]
    with pytest.raises(ValueError, match=rf"lacks the section '{section}'"):
        build.build(config, specs.OF_CONFIGS["digits"])


def test_a_mistake_within_a_family_is_not_taken_for_one_of_the_config(monkeypatch):
    def broken(config, spec):
        return {}["nothing"] + None

    monkeypatch.setattr(diffusion, "build", broken)
    with pytest.raises(KeyError, match="nothing"):
        build.build(ddpm_digits.get_config(), specs.OF_CONFIGS["digits"])
