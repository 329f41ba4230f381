"""What every experiment shares: the skeleton of its config, and how variants are applied to it."""

import difflib
import functools
import math
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, FieldReference
from ml_collections.config_dict import placeholder

# {name: settings}. A name is a metric's, or any other with the metric under "metric"; settings
# replace keys of `config.evaluation`, and under "sampling" keys of `config.sampling`. Under "ema"
# stands the half-life of another average, one of `config.ema.others`.
EVALUATIONS: dict[str, dict[str, Any]] = {
    "examples": {},
    "likelihood": {},
    "diagnosis": {},
    "reconstruction": {},
    "fid": {},
    "kid": {},
    "precision_recall": {},
    "inception_score": {},
    "modes": {},
    "diversity": {},
    "memorisation": {},
}

EMA: dict[str, Any] = {
    "half_life": 20_000.0,  # in images
    "ramp": 0.1,  # half-lives are at most this share of the images seen; 0: no such bound
    # Half-lives of further averages, such as (5_000.0, 100_000.0): --ema=5000 takes one. Each costs
    # 4 bytes a parameter on the devices, and as much in every checkpoint.
    "others": (),
    # Post-hoc EMA: averages of any length, made after training by --mode=ema. Steps between
    # snapshots, a thirtieth of train.steps or so; 0: none, and nothing below counts.
    "snapshot_every": 0,
    "sigma_rels": (0.05, 0.1),  # relative widths that are tracked: each costs as one of `others`
    # Most that are kept on disk, each of 4 bytes a parameter and width; then every second one goes.
    "snapshots": 32,
}

# Seconds on a CPU: one small network, a few steps, every part of the loop once.
SMOKE = {
    "train.batch_size": 16,
    "train.steps": 4,
    "log.every": 2,
    "log.eval_every": 4,
    "log.sample_every": 4,
    "log.first_sample": 0,
    "log.samples": 16,
    "checkpoint.every": 2,
    "evaluation.examples": 32,
    "evaluation.count": 32,
    "evaluation.likelihood_count": 32,
    "evaluation.lpips": "",
    "evaluation.at_end": False,
    "evaluation.scheduled_count": 0,
}


def base() -> ConfigDict:
    """What every experiment has, whatever its family."""
    config = ConfigDict()
    config.seed = 0
    config.init_from = ""  # folder of a run, or of diffusers, whose weights this run starts from
    config.data = ConfigDict(
        {
            "name": "",  # any of TFDS, or "digits", "stacked_mnist", "ring", "grid", "folder"
            "data_dir": placeholder(str),  # of TFDS; None: $TFDS_DATA_DIR or ~/tensorflow_datasets
            "path": placeholder(str),  # of "folder": a folder or .zip of images
            # Of "folder"; None finds out, and says what is found (docs/images.md):
            "labels_from": placeholder(str),  # "none", "folders", or a file's name
            "splits_from": placeholder(str),  # "folders" such as train and test, or "names"
            "image_size": 0,  # 0: as they are
            "channels": placeholder(int),  # 1 or 3; None: 1 where all images are grey
            "crop": 0,  # side of a central square that is cut out first; 0: none
            "in_memory": placeholder(bool),  # None: if the decoded data are under 2 GiB
            "on_corrupt": "raise",  # or "skip"
            "train_split": "train",  # or a part of one: "train[:100]", "train[90%:]"
            "test_split": "test",
        }
    )
    config.augment = ConfigDict({"flip": False, "shift": 0, "rotation": 0.0, "scale": 0.0})
    config.train = ConfigDict(
        {
            "batch_size": 128,  # global, as every number here
            "steps": 10_000,
            # Of activations in all networks; or "bfloat16", and parameters, statistics of norms,
            # softmax, embeddings and losses are float32 all the same.
            "precision": "float32",
            # Whether a block's activations are computed again for its gradient, and not kept: less
            # memory, a third more operations.
            "remat": False,
            # Parts of a batch whose gradients are computed one after the other, in less memory.
            "microbatches": 1,
            "sharding": "replicated",  # or "fsdp"
            "max_skipped": 20,  # steps in a row with non-finite gradients before the run stops
            # Steps of one program, between which nothing is logged, saved or stopped; 0: as many as
            # suit the devices, 1 on a CPU.
            "steps_per_dispatch": 0,
        }
    )
    config.optimizer = ConfigDict(
        {
            "name": "adam",
            "learning_rate": 1e-3,
            "schedule": "constant",
            "warmup": 0,
            "decay_steps": config.train.get_oneway_ref("steps"),
            "decay_start": 0,  # step until which the rate is constant
            "learning_rate_end": 0.0,  # from decay_steps on
            "clip": 1.0,
            "b1": 0.9,
            "b2": 0.999,
            "b2_end": 0.0,  # the end of b2, which follows the rate's schedule; 0: b2 is constant
            "eps": 1e-8,
            "momentum": 0.0,
            "weight_decay": 0.0,
        }
    )
    config.ema = ConfigDict(EMA)
    config.log = ConfigDict(
        {
            "every": 100,
            "eval_every": 1000,
            "sample_every": 1000,
            "first_sample": 0,  # step of one more picture, early in a run; 0: none
            "samples": 100,
        }
    )
    config.checkpoint = ConfigDict({"every": 1000, "keep": 2, "best": "", "best_mode": "min"})
    config.evaluations = ConfigDict(EVALUATIONS)
    config.evaluation = _evaluation(config)
    config.published = ()  # rows (metric, value, source)
    return config


def _evaluation(config: ConfigDict) -> ConfigDict:
    """How all evaluations are done that say nothing else."""
    return ConfigDict(
        {
            # Of the features; or resnet56, lenet, stacked_lenet, digits, vgg16, alexnet.
            "network": "inception",
            "weights": placeholder(str),  # its file; None: looked for in $AIGC_WEIGHTS
            "lpips": "auto",  # of reconstructions, by alexnet where it is found; or vgg16; "": none
            "lpips_weights": placeholder(str),  # its file; None: looked for too
            "count": 50_000,  # samples
            # What samples are compared with: all of the images that the model is trained on.
            "reference_split": config.data.get_oneway_ref("train_split"),
            "statistics": "",  # .npz of mu and sigma, to take the Fréchet distance to them instead
            "manifold_count": 10_000,  # most images where all pairs are compared
            "likelihood_count": 0,  # examples whose likelihood is bounded; 0: all
            "probes": 1,  # random ones for the divergence, of "exact_likelihood"; 0: computed
            "tolerance": 1e-5,  # of its ODE
            "at_end": False,  # evaluate at the end of training too, as by --mode=evaluate
            "examples": 0,  # of the test split, every log.eval_every steps; 0: all
            "scheduled_count": 0,  # samples, as often; 0: no metrics of samples
        }
    )


def test_metric(config: ConfigDict, name: str) -> FieldReference:
    """A metric of the test split, whichever that is, as `checkpoint.best` names it."""
    return config.data.get_oneway_ref("test_split") + f"/{name}"


def half_life(decay: float, batch_size: int) -> float:
    """Images after which a weight counts half in an EMA of `decay` a step."""
    return batch_size * math.log(0.5) / math.log(decay)


# Variants of every experiment.
OF_ALL = {
    "bf16": {"train.precision": "bfloat16"},
    "fsdp": {"train.sharding": "fsdp"},
    "remat": {"train.remat": True},
}


def finish(
    config: ConfigDict, variants: Mapping[str, Mapping[str, Any]], chosen: str
) -> ConfigDict:
    """Applies variants, "cosine+v", from left to right, and locks the config.

    Every experiment has the variants of `OF_ALL` too.

    A variant is {"part.key": value}; where the value is a mapping it replaces the whole part, so
    that a network or the evaluations may get other keys.

    Raises:
      LookupError: an unknown variant; it names the near misses.
    """
    variants = OF_ALL | dict(variants)
    for name in chosen.split("+") if chosen else ():
        if name not in variants:
            near = difflib.get_close_matches(name, variants, n=3, cutoff=0.4)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            # No ValueError: config_flags would wrap it in a printed traceback.
            raise LookupError(
                f"unknown variant {name!r}: {hint}There are {', '.join(sorted(variants))}"
            )
        for key, value in variants[name].items():
            if isinstance(value, Mapping):
                *path, last = key.split(".")
                functools.reduce(getattr, path, config)[last] = ConfigDict(value)
            else:
                config.update_from_flattened_dict({key: value})
    return config.lock()
