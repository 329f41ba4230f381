"""What the CycleGAN experiments share: a config with every key."""

from ml_collections import ConfigDict

from configs.bases import base

SMOKE = base.SMOKE | {
    "data.image_size": 32,
    "augment.jitter": 4,
    "network.generator.width": 4,
    "network.generator.blocks": 1,
    "network.discriminator.width": 4,
    "network.discriminator.layers": 2,
    "train.batch_size": 8,
}


def cyclegan() -> ConfigDict:
    """A config with every key that a CycleGAN experiment has: Zhu et al. 2017's at 256x256."""
    config = base.base()
    config.family = "cyclegan"
    # The splits of data.name="folder" are the subfolders trainA, trainB, testA and testB.
    config.data.update(
        {"train_split": "trainA+trainB", "test_split": "testA+testB", "image_size": 256}
    )
    config.augment.flip = True
    config.augment.jitter = 30  # pixels: enlarged to 286, then a random 256
    config.network = ConfigDict(
        {
            "generator": {"width": 64, "blocks": 9},
            "discriminator": {  # a patch has 70x70 pixels
                "width": 64,
                "layers": 3,
                "norm": "instance",  # or "none"
            },
        }
    )
    config.cyclegan = ConfigDict(
        {
            "loss": "least_squares",  # or another of aigc_jax/gan/losses.py
            "adversarial": 2.0,  # a generator's is published without the half that this loss has
            "cycle_a": 10.0,  # lambda of A to B to A
            "cycle_b": 10.0,  # lambda of B to A to B
            "identity": 0.5,  # times these: images of a generator's target shall stay; 0: none
            "pool": 50,  # earlier translations of which a discriminator is shown some; 0: none
        }
    )
    config.sampling = ConfigDict()  # nothing is drawn from noise
    config.train.batch_size = 1
    half = config.train.get_oneway_ref("steps") // 2
    config.optimizer.update({"learning_rate": 2e-4, "b1": 0.5, "clip": 0.0})
    config.optimizer.update({"schedule": "linear", "decay_start": half})
    config.ema.update({"half_life": 0.0, "ramp": 0.0})  # none, as published
    config.log.update({"eval_every": 5000, "sample_every": 5000})
    config.checkpoint.every = 5000
    config.evaluations = ConfigDict({"examples": {}, "reconstruction": {}})
    return config
