"""Autoguidance of samples, beside classifier-free guidance: what is estimated, and at what cost."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffusion.helpers import (
    LEVELS,
    SHAPE,
    VARIABLES,
    Formula,
    T,
    column,
    keys_of,
    model,
    with_memory,
)

from aigc_jax.diffusion.process import Level
from aigc_jax.family import Variables
from aigc_jax.sampling.driver import Driver

BOTH = {"sampler": "ddim", "steps": T, "clip": False, "guidance": 3.0}
BOTH |= {"autoguidance": 2.0, "weak": "RUN", "guidance_low": 0.1, "guidance_high": 0.4}
OF_BOTH = Variables({"net": {"says": jnp.float32(1.0)}}, {}, {}, {"weak": {"net": {"says": 0.5}}})


class Saying(Formula):
    """A network with one parameter, a factor of what the formula says."""

    def apply(self, variables, x, t, label, **kwargs):
        return variables["params"]["says"] * super().apply(variables, x, t, label, **kwargs)


def of_both(of, **sampling):
    """A model that a weaker one with half its parameter guides."""
    made = model(of, 2, sampling=BOTH | sampling)
    return replace(made, network=Saying(of, 2))


def patterned(label):
    """An estimate [n, 2, 2, 1] by label, wider within an example for some labels."""
    return column(LEVELS[label]) * jnp.array([1.0, 2.0, 3.0, 5.0]).reshape(1, 2, 2, 1)


@pytest.mark.parametrize("rescale", [0.0, 0.5])
def test_autoguidance_goes_on_from_classifier_free_guidance_within_one_interval(rescale):
    made = of_both(lambda x, t, label, train: patterned(label), guidance_rescale=rescale)
    label = jnp.array([0, 1])
    given, none = patterned(label), patterned(jnp.array([2, 2]))
    free = none + 3 * (given - none)
    width = given.std((1, 2, 3), keepdims=True) / free.std((1, 2, 3), keepdims=True)
    free = free * (1 + rescale * (width - 1))
    guided = given / 2 + 2 * (free - given / 2)
    for ratio, expected in ((0.05, given), (0.2, guided), (0.5, given)):
        level = Level(*(jnp.float32(a) for a in (1.0, 1.0, ratio)))
        found = made.denoise(OF_BOTH, {"label": label}, jnp.zeros((2, *SHAPE)), level).x0
        np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "rows"),
    [
        ({"guidance_low": 0.0, "guidance_high": 0.0}, 3 * T),
        ({"guidance": 1.0, "guidance_low": 0.0, "guidance_high": 0.0}, 2 * T),
        ({}, None),
    ],
)
def test_calls_of_the_weak_network_are_counted_too(changes, rows):
    seen = []

    def of(x, t, label, train):
        jax.debug.callback(lambda _: seen.append(len(x)), x[:1])
        return 0.3

    drawing = of_both(of, **changes).family().drawing
    driver = Driver(drawing, "cpu")
    driver(OF_BOTH, keys_of(4), {"label": jnp.zeros(4, jnp.int32)})
    jax.effects_barrier()
    assert sum(seen) == 4 * drawing.calls
    assert drawing.calls == rows if rows else T < drawing.calls < 3 * T


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weak": ""}, r"sampling.autoguidance=2.0 .* sampling.weak=RUN, or RUN@STEP"),
        ({"autoguidance": 1.0}, r"sampling.weak=RUN has no part in samples while"),
    ],
)
def test_a_weight_and_a_weak_model_go_together(changes, words):
    with pytest.raises(ValueError, match=words):
        model(with_memory, 2, sampling=BOTH | changes)


def test_variables_without_the_weak_model_are_refused():
    made = of_both(with_memory)
    level = Level(*(jnp.float32(1.0) for _ in range(3)))
    with pytest.raises(FileNotFoundError, match=r"needs a weak model: sampling.weak"):
        made.denoise(VARIABLES, {}, jnp.zeros((2, *SHAPE)), level)
