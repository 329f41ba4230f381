"""Real data in batches on the devices, and the codes of them."""

import jax
import jax.numpy as jnp
import numpy as np
import toys

from aigc_jax.data import datasets
from aigc_jax.family import Codec, Variables
from aigc_jax.runs import examples
from aigc_jax.runs.examples import RealData
from aigc_jax.training import sharding

DATA = RealData("digits", datasets.load("digits"), "train", "test", 40)
NOTHING = Variables({}, {})


def test_examples_are_in_the_models_range_and_padding_is_masked():
    mesh = sharding.make_mesh()
    batches = list(examples.examples(DATA, mesh))
    assert len(batches) == 8  # 296 = 7 x 40 + 16
    assert [float(b["mask"].sum()) for b in batches] == [40] * 7 + [16]
    pixels = DATA.dataset.sources["test"].fetch(np.arange(40))
    np.testing.assert_allclose(batches[0]["x"], pixels["x"] / 127.5 - 1, atol=1e-6)
    np.testing.assert_array_equal(batches[0]["label"], pixels["label"])
    assert len(list(examples.examples(DATA, mesh, 41))) == 2
    assert len(list(examples.examples(DATA, mesh, 80, split="train"))) == 2


def test_a_batch_that_does_not_divide_over_the_devices_is_whole_on_each():
    data, drawn = DATA._replace(batch_size=20), {}
    for devices in (1, 8):
        mesh = sharding.make_mesh(jax.devices()[:devices])
        batch = next(examples.examples(data, mesh))
        assert batch["x"].shape == (20, 8, 8, 1)
        assert len(batch["x"].sharding.device_set) == devices
        noise = jax.jit(lambda x: jax.random.normal(jax.random.key(0), x.shape))(batch["x"])
        drawn[devices] = np.asarray(batch["x"] + noise)
    np.testing.assert_allclose(drawn[8], drawn[1], rtol=1e-6)


def encode(variables, batch):
    """The mean pixel of each image."""
    return {"mean": jnp.mean(batch["x"], axis=(1, 2, 3))[:, None]}


def test_codes_are_of_real_rows_alone_and_of_as_many_training_examples_as_asked_for():
    mesh = sharding.make_mesh()
    family = toys.one_player()._replace(codec=Codec(encode, None, lambda codes: ({}, "")))
    found = examples.codes(family, NOTHING, examples.examples(DATA, mesh))["mean"]
    pixels = DATA.dataset.sources["test"].fetch(np.arange(296))["x"]
    np.testing.assert_allclose(
        found[:, 0], (pixels / 127.5 - 1).mean((1, 2, 3)), rtol=1e-5, atol=1e-6
    )
    found = examples.training_codes(family, NOTHING, DATA, mesh, 100)
    assert found["mean"].shape == (120, 1)  # whole batches
    assert examples.prepare(family, NOTHING, mesh, None) is NOTHING
