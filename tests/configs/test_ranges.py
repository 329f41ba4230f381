"""Every key of every config refuses what it cannot be: in one line, and before anything is done."""

import copy
import functools
import importlib
import math
import pathlib
import re

import pytest
import specs

import configs
from aigc_jax import checks
from aigc_jax.commands import train, validation
from configs import vae_digits

NAMES = sorted(p.stem for p in pathlib.Path(configs.__file__).parent.glob("[a-z]*.py"))
OF_A_FAMILY = ("network", "diffusion", "vae", "gan", "cyclegan", "sampling")

# What follows is said here once more, and not read from the annotations: they are what is tested.
# Numbers that may be 0: "none", "never", "all of them", or a limit that makes sense.
ZERO = {
    *("seed", "data.image_size", "data.crop", "train.max_skipped"),
    "train.steps_per_dispatch",
    *("augment.shift", "augment.jitter", "augment.rotation", "augment.scale"),
    *("optimizer.learning_rate", "optimizer.warmup", "optimizer.decay_steps"),
    *("optimizer.decay_start", "optimizer.learning_rate_end", "optimizer.clip", "optimizer.b1"),
    *("optimizer.b2", "optimizer.b2_end", "optimizer.momentum", "optimizer.weight_decay"),
    *("optimizer.skip_above", "ema.half_life", "ema.ramp", "ema.snapshot_every"),
    *("log.every", "log.eval_every", "log.sample_every", "log.first_sample", "log.samples"),
    *("checkpoint.every", "evaluation.likelihood_count", "evaluation.examples"),
    "evaluation.probes",
    *("evaluation.scheduled_count", "network.dropout", "diffusion.label_dropout"),
    *("sampling.steps", "sampling.eta", "sampling.guidance", "sampling.truncation"),
    *("sampling.temperature", "vae.kl.beta", "vae.kl.free_bits", "vae.kl.gamma"),
    *("vae.kl.capacity", "vae.noise.level", "vae.adversary.weight", "vae.adversary.start"),
    *("vae.codebook.decay", "vae.codebook.restart", "gan.decay_steps", "gan.frozen"),
    *("gan.penalty.weight_end", "gan.augment.probability", "gan.augment.probability_end"),
    *("gan.augment.target", "gan.classifier.weight", "gan.classifier.weight_generator"),
    *("cyclegan.adversarial", "cyclegan.cycle_a", "cyclegan.cycle_b", "cyclegan.identity"),
    *("cyclegan.pool", "diffusion.bound_weight", "sampling.dynamic_threshold"),
    *("sampling.guidance_rescale", "sampling.guidance_low", "sampling.guidance_high"),
    "sampling.autoguidance",
    *("diffusion.augment", "sampling.churn"),
    *("network.augment_dim", "network.depth", "network.head_dim"),
    *("network.downsample_padding", "network.freq_shift"),
    *("diffusion.ratio", "diffusion.norm_p", "diffusion.guidance_weight"),
    *("diffusion.consistency.k", "diffusion.consistency.stage_steps"),
    *("diffusion.consistency.huber", "diffusion.consistency.warmup"),
}
# Numbers that may not be 0.
NOT_ZERO = {
    "train.microbatches",
    *("train.batch_size", "train.steps", "optimizer.eps", "checkpoint.keep", "ema.snapshots"),
    *("evaluation.count", "evaluation.manifold_count", "evaluation.tolerance"),
    *("network.width", "network.blocks", "network.heads", "network.groups", "network.latent"),
    *("network.bottleneck", "network.generator.latent", "network.generator.width"),
    *("network.generator.blocks", "network.generator.embed", "network.generator.expansion"),
    *("network.discriminator.width", "network.discriminator.layers"),
    "network.discriminator.expansion",
    *("diffusion.process.timesteps", "diffusion.process.beta_min", "diffusion.process.beta_max"),
    *("diffusion.weighting.gamma", "diffusion.times.shift", "diffusion.sigma_data"),
    *("diffusion.process.sigma_min", "diffusion.process.sigma_max", "diffusion.times.std"),
    *("sampling.churn_noise", "sampling.rho", "network.patch", "network.norm_eps"),
    *("sampling.components", "vae.likelihood.sigma", "vae.likelihood.scale"),
    *("vae.likelihood.components", "vae.kl.steps", "vae.importance.samples"),
    *("vae.importance.test_samples", "vae.importance.chunk", "vae.perceptual.weight"),
    *("vae.codebook.size", "vae.codebook.commitment", "gan.critics", "gan.generator_batch"),
    *("gan.penalty.weight", "gan.penalty.every", "gan.augment.images"),
    *("diffusion.times.std", "diffusion.end_times.std", "diffusion.end_times.shift"),
    *("diffusion.norm_eps", "diffusion.process.sigma_min", "diffusion.process.sigma_max"),
    *("diffusion.consistency.q", "diffusion.consistency.b"),
    *("diffusion.consistency.norm", "sampling.mid", "diffusion.teacher_steps"),
    *("diffusion.student_steps", "diffusion.stage_steps"),
}
OF_A_SIZE = {"network.width", "network.heads"}  # 0 for those of DiT's `size`
# Numbers of any sign.
ANY_SIGN = {
    *("diffusion.times.mean", "diffusion.end_times.mean"),
    *("diffusion.process.gamma_min", "diffusion.process.gamma_max"),
}
# Too much for numbers that have a bound above, of their own or another key's.
ABOVE = {
    **dict.fromkeys(("optimizer.b1", "optimizer.b2", "optimizer.b2_end", "optimizer.momentum"), 1),
    **dict.fromkeys(("network.dropout", "diffusion.label_dropout", "vae.codebook.decay"), 1.0),
    **dict.fromkeys(("diffusion.process.beta_min", "diffusion.process.beta_max"), 1.0),
    **{
        "gan.augment.target": 1.0,
        "sampling.dynamic_threshold": 1.01,
        "sampling.guidance_rescale": 1.01,
    },
    **dict.fromkeys(("gan.augment.probability", "gan.augment.probability_end"), 1.01),
    **dict.fromkeys(("network.downsample_padding", "network.freq_shift"), 2),
    **{"network.bottleneck": 1.01, "sampling.eta": 1.01, "augment.rotation": 181.0},
    **dict.fromkeys(("data.image_size", "data.crop"), 16_385),
    **{"diffusion.ratio": 1.01, "diffusion.consistency.q": 1.0},
    **{"seed": 2**63, "optimizer.warmup": 5, "sampling.steps": 1001, "augment.shift": 64},
}
# Text that no list of names bounds: names of data and files, and what data or Orbax know.
FREE_TEXT = {
    *("init_from", "data.name", "data.train_split", "data.test_split"),
    *("evaluation.reference_split", "evaluation.statistics", "data.data_dir", "data.path"),
    *("evaluation.weights", "vae.perceptual.weights", "data.labels_from"),
    *("evaluation.lpips_weights", "sampling.weak"),
}
MAY_BE_EMPTY = {"published", "network.attention", "gan.augment.policy", "ema.others"}
FRACTIONS = {"ema.others"}  # tuples of numbers that need not be whole
MAY_BE_NONE = {
    *("data.data_dir", "data.path", "data.in_memory", "data.labels_from", "data.splits_from"),
    *("data.channels", "evaluation.weights", "vae.perceptual.weights", "sampling.eta"),
    "evaluation.lpips_weights",
}
NAN, INFINITY = math.nan, math.inf
NOT_FINITE = (NAN, INFINITY, -INFINITY)


def wrong_values(key, now):
    """Values that a key with the value `now` may not have."""
    values = [{"a": 1}] if key in MAY_BE_NONE else [{"a": 1}, None]
    if isinstance(now, bool) or key == "data.in_memory":
        return [*values, "yes", "True", 1, 0, 2.5, NAN, ()]
    if key == "data.channels":
        return [*values, 2, 0, -1, 4, 2.5, NAN, "3", "nonsense", True, ()]
    if key in ANY_SIGN:
        return [*values, *NOT_FINITE, "1", "nonsense", True, (), (1,)]
    if isinstance(now, int | float):
        assert (key in ZERO) != (key in NOT_ZERO), f"say in this test whether {key} may be 0"
        values += [*NOT_FINITE, -1, -1e-6, "1", "nonsense", True, (), (1,)]
        values += [2.5, 2**31 if key != "seed" else 2**63] if isinstance(now, int) else [-2.5]
        values += [0] if key in NOT_ZERO else []
        return [*values, ABOVE[key]] if key in ABOVE else values
    if isinstance(now, tuple):
        values += [
            3,
            "nonsense",
            True,
            ("nonsense",),
            (NAN,),
            (-1,),
            (0,),
            *([] if key in FRACTIONS else [(2.5,)]),
            (None,),
            (True,),
        ]
        return values if key in MAY_BE_EMPTY else [*values, ()]
    values += [3, 2.5, NAN, True, ("a",)]
    return values if key in FREE_TEXT else [*values, "nonsense"]


def leaves(config, prefix=""):
    """(key, value) of every setting; an empty section is none."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def sections(config, prefix=""):
    """Keys of every section, but evaluations, whose names are anyone's."""
    for name, value in config.items():
        if isinstance(value, dict) and name != "evaluations":
            yield prefix + name
            yield from sections(value, f"{prefix}{name}.")


@functools.cache
def walk():
    """{(where a key is read, key): (config, spec)}, each once over all configs and variants.

    Sections of a run are read in one way whatever the family; a network by its module.
    """
    found = {}
    for name in NAMES:
        module, spec = (
            importlib.import_module(f"configs.{name}"),
            specs.OF_CONFIGS[name.split("_")[-1]],
        )
        for variant in ("smoke", "", *module.VARIANTS):  # the smallest first: it is taken
            config = module.get_config(variant).to_dict()
            if name == "ddpm_celeba64" and config["diffusion"]["conditional"]:
                continue  # CelebA itself has no classes
            for key in (*dict(leaves(config)), *sections(config)):
                where = (spec.kind if key.startswith("augment") else "",)
                if key.split(".")[0] in OF_A_FAMILY:
                    where = (config["family"], str(names_of(config["network"])))
                    where = where if key.startswith("network") else where[:1]
                found.setdefault((where, key), (config, spec))
    return found


def names_of(network):
    """The name of a network, or of each player's."""
    return [network.get("name"), *(v.get("name") for v in network.values() if isinstance(v, dict))]


def changed(config, key, value):
    """The config with another value of a key."""
    config = copy.deepcopy(config)
    *path, last = key.split(".")
    functools.reduce(lambda part, name: part[name], path, config)[last] = value
    return config


def refusal(key, value, config, spec):
    """What is wrong with how a value is refused; None where nothing is."""
    try:
        validation.validate(changed(config, key, value), spec)
    except ValueError as error:
        text = str(error)
        told = key in text and (checks.shown(value) in text or value == {"a": 1})
        return None if told and len(text.splitlines()) == 1 else f"{key}={value!r}: {text}"
    except Exception as error:
        return f"{key}={value!r}: {type(error).__name__}: {error}"
    return f"{key}={value!r} is accepted"


def test_every_key_of_every_config_refuses_what_it_cannot_be():
    wrong, tried, seen = [], 0, set()
    for (where, key), (config, spec) in walk().items():
        now = functools.reduce(lambda part, name: part[name], key.split("."), config)
        if isinstance(now, dict):
            values = [3, None, "nonsense", (), NAN, True]
        else:
            values = wrong_values(key, now)
        if key in OF_A_SIZE and "dit" in where[-1]:
            values.remove(0)
        seen.add(key)
        tried += len(values)
        wrong += filter(None, (refusal(key, value, config, spec) for value in values))
    assert not wrong, "\n".join(wrong)
    assert tried > 2000
    assert seen >= (
        ZERO | NOT_ZERO | ANY_SIGN | set(ABOVE) | FREE_TEXT | MAY_BE_EMPTY | MAY_BE_NONE
    )


def check_told(changes, words, base="vae_digits"):
    """That an experiment's smoke with these changes is refused in one line of these words."""
    config = importlib.import_module(f"configs.{base}").get_config("smoke").to_dict()
    for key, value in changes.items():
        config = changed(config, key, value)
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        validation.validate(config, specs.OF_CONFIGS[base.split("_")[-1]])
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optimizer.clip": -1.0}, "config.optimizer.clip is a number at least 0, not -1.0"),
        ({"train.steps": 2.5}, "config.train.steps is a whole number in [1, 2**31), not 2.5"),
        ({"optimizer.b1": 1.0}, "config.optimizer.b1 is a number in [0, 1), not 1.0"),
        ({"network.hidden": ()}, "not empty, of a whole number in [1, 2**31), not ()"),
        ({"network.activation": "reul"}, "is one of relu, tanh, not 'reul'; did you mean 'relu'?"),
        ({"data.in_memory": "yes"}, "config.data.in_memory is True or False or None, not 'yes'"),
        ({"published": (("fid", "3", "paper"),)}, "maybe empty, of (text, a number that is finite"),
        ({"train": {"batch_size": 8}}, "config.train lacks 'steps', 'precision', 'remat', "),
        ({"optimzer": {}}, "not 'optimzer'; did you mean 'optimizer'?"),
        ({"gan": {}}, "a section of a config of family 'vae' is one of family, seed, "),
        ({"log.evrey": 3}, "config.log has no key 'evrey' (did you mean 'every'?)"),
    ],
)
def test_a_refusal_has_key_value_and_range(changes, words):
    check_told(changes, words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"optimizer.warmup": 5, "optimizer.schedule": "constant"},
            "config.optimizer.warmup is at most config.train.steps (4), not 5",
        ),
        ({"optimizer.warmup": 5}, "decay_steps (4) must exceed optimizer.warmup (5)"),
        (
            {"optimizer.schedule": "linear", "optimizer.decay_steps": 9},
            "config.optimizer.decay_steps is at most config.train.steps (4), not 9",
        ),
        ({"vae.kl.weight": "linear"}, "config.vae.kl.steps is at most config.train.steps (4)"),
        ({"log.samples": 0}, "log.samples is at least 1, not 0"),
        ({"checkpoint.best": "loss"}, "checkpoint.best begins with test/ or"),
        ({"checkpoint.best": "test/neg_elb"}, "not 'test/neg_elb'; did you mean 'test/neg_elbo'"),
        ({"checkpoint.best": "test/x"}, "test/active_units, test/mutual_information, "),
        ({"checkpoint.best": "eval/fd_digits"}, "but no samples are judged on the schedule"),
        (
            {"checkpoint.best": "eval/fid", "evaluation.scheduled_count": 8},
            "not 'eval/fid'; did you mean 'eval/fd_digits'?",
        ),
        ({"evaluations": 3}, "config.evaluations gives each evaluation its settings"),
        ({"evaluations": {"fidd": {}}}, "evaluations.fidd.metric is one of examples, "),
        ({"evaluations": {"a": {"metric": 3}}}, "evaluations.a.metric is one of examples, "),
        (
            {"evaluations": {"fid": {"count": 0}}},
            "config.evaluations.fid.count is a whole number in [1, 2**31), not 0",
        ),
        ({"evaluations": {"fid": {"sampling": 3}}}, "evaluations.fid.sampling is a section"),
        ({"evaluations": {"fid": {"ema": -1.0}}}, "config.evaluations.fid.ema is a number above 0"),
        (
            {"evaluations": {"fid": {"ema": 7.0}}, "ema.others": (5.0, 9.0)},
            "evaluations.fid.ema: no average of half-life 7 is kept: there are 5, 9 beside",
        ),
        ({"ema.sigma_rels": (0.3,)}, "of a number in (0, 0.288], not (0.3,)"),
        ({"ema.snapshots": 3}, "config.ema.snapshots is a whole number in [4, 2**31), not 3"),
        (
            {"evaluations": {"fid": {"sampling": {"temperature": -1.0}}}},
            "config.sampling.temperature is a number at least 0, not -1.0",
        ),
        (
            {"evaluations": {"fid": {"sampling": {"steps": 3}}}},
            "sampling is one of components, prior, ",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_told(changes, words):
    check_told(changes, words)


def test_other_schedules_end_within_the_run_too():
    words = "config.gan.decay_steps is at most config.train.steps (4), not 9"
    check_told({"gan.decay_steps": 9}, words, "gan_digits")
    words = "config.vae.adversary.start is at most config.train.steps (4), not 5"
    changes = {"vae.adversary.weight": 1.0, "vae.adversary.start": 5}
    check_told(changes, words, "kl_autoencoder_celeba64")
    players = {name: {"learning_rate": 1.0, "warmup": 4} for name in ("generator", "discriminator")}
    players["discriminator"]["warmup"] = 5
    words = "config.optimizer.discriminator.warmup is at most config.train.steps (4), not 5"
    check_told({"optimizer": players}, words, "gan_digits")
    players["discriminator"]["clip"] = -1
    check_told({"optimizer": players}, "config.optimizer.discriminator.clip is", "gan_digits")


def test_every_name_of_a_best_metric_that_exists_is_taken():
    config = vae_digits.get_config("smoke").to_dict()
    config["evaluation"]["scheduled_count"] = 8
    config["evaluations"] = {"fid": {}, "few": {"metric": "modes"}}
    best = ("test/kl", "test/aggregate_variance", "eval/fd_digits", "eval/few/sure_digits")
    for name in best:
        validation.validate(changed(config, "checkpoint.best", name), specs.OF_CONFIGS["digits"])
    labelled = "eval/few/agreement_digits"
    conditional = changed(config, "vae.conditional", True)
    validation.validate(
        changed(conditional, "checkpoint.best", labelled), specs.OF_CONFIGS["digits"]
    )
    changes = {k: config[k] for k in ("evaluation", "evaluations")} | {"checkpoint.best": labelled}
    check_told(changes, "not 'eval/few/agreement_digits'")


@pytest.mark.parametrize(
    "changes", [{"optimizer.clip": -1.0}, {"vae.kl.beta": NAN}, {"checkpoint.best": "test/fid"}]
)
def test_training_refuses_before_it_writes_anything(changes, tmp_path):
    config = vae_digits.get_config("smoke")
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    (key,) = changes
    with pytest.raises(ValueError, match=key):
        train.run(config, tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_a_number_without_a_range_is_a_mistake_of_its_signature():
    def made(*, width: int = 3, rate: float = 0.1, anything=None): ...

    for settings in ({"width": 3}, {"rate": 0.1}, {"anything": 1}):
        with pytest.raises(TypeError, match="states no range: see How to add a setting"):
            checks.arguments("network", made, settings)
