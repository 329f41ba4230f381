"""Real data in batches on the devices, and the codes of them."""

import jax.numpy as jnp
import numpy as np
import pytest
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
    with pytest.raises(ValueError, match="does not divide over 8 devices"):
        next(examples.examples(DATA._replace(batch_size=12), mesh))


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
    assert examples.prepared(family, NOTHING, DATA, mesh) is NOTHING
