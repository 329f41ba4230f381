"""The programs of a run: what they are fed, how often each runs, what their samples take."""

import jax.numpy as jnp
import pytest
import toys

from aigc_jax.family import DataSpec, Field
from aigc_jax.planning import cost, programs
from aigc_jax.training import sharding

B, N = 16, 8
FORWARD = 2 * (toys.LATENT * toys.WIDTH + toys.WIDTH * toys.PIXELS)  # of a sample's decoder
CRITIC = 2 * (toys.PIXELS * toys.WIDTH + toys.WIDTH)


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh()


def test_lazy_phases_count_by_their_share_of_the_steps(mesh):
    """A penalty every fourth step, and in the other three all phases but it."""
    recipe = toys.recipe_of(toys.two_players(), toys.config("two"))
    with_it, without = programs.training(recipe, toys.SPEC, mesh, batch_size=B, mode="replicated")
    assert (with_it.name, with_it.often) == ("critic0+critic1+r1+generator", 0.25)
    assert (without.name, without.often) == ("critic0+critic1+generator", 0.75)
    # A critic sees a real and a generated image, of which no gradient is asked for; a generator
    # goes back through the critic, of whose parameters none is.
    first, last = 2 * toys.PIXELS * toys.WIDTH, 2 * toys.WIDTH
    critic = FORWARD + 2 * (CRITIC + first + 2 * last)
    generator = FORWARD + 2 * CRITIC + 2 * (toys.LATENT + 2 * toys.PIXELS) * toys.WIDTH
    assert without.flops() == B * (2 * critic + generator)
    assert with_it.flops() > without.flops()


def test_a_step_and_samples_are_compiled_for_all_devices(mesh):
    family = toys.one_player()
    recipe = toys.recipe_of(family, toys.config())
    (step,) = programs.training(recipe, toys.SPEC, mesh, batch_size=B, mode="replicated")
    found = programs.compiled(step, N)
    (reduced,) = (one for one in found.collectives if one.kind == "all-reduce")
    (parameters,) = programs.parameters(family).values()
    assert reduced.size >= 4 * parameters  # with the loss and the statistics of a batch
    # The decoder's products, and of its gradients all but that of its noise.
    assert found.flops == pytest.approx(B * (2 * FORWARD + 2 * toys.WIDTH * toys.PIXELS) / N)
    start, finish = programs.sampling(family, mesh, count=B, mode="replicated")
    drawn = cost.added([(programs.compiled(part, N), part.often) for part in (start, finish)])
    assert drawn.flops == B * FORWARD / N
    assert drawn.collectives == ()


def test_a_step_is_fed_what_sources_give():
    family, image = toys.two_players(), Field("image", (4, 4, 1))
    pair = DataSpec({"x": image, "other": image}, {}, {})
    found = programs.batch_of(family, pair, B)
    assert {name: (x.shape, x.dtype) for name, x in found.items()} == {
        "x": ((1, 2, B, 4, 4, 1), jnp.uint8),
        "other": ((1, 2, B, 4, 4, 1), jnp.uint8),
    }
    points = DataSpec({"x": Field("points", (2,))}, {"label": toys.LABEL}, {})
    found = programs.batch_of(toys.one_player(), points, B)
    assert {name: (x.shape, x.dtype) for name, x in found.items()} == {
        "x": ((1, 1, B, 2), jnp.float32),
        "label": ((1, 1, B), jnp.int32),
    }


def test_what_has_no_samples_to_plan_says_why():
    drawing = toys.one_player().drawing
    assert programs.cannot_sample(drawing) == ""
    assert "draws no samples" in programs.cannot_sample(None)
    fitted = drawing._replace(prepare=lambda *_: None, fitted=True)
    assert "fitted to codes" in programs.cannot_sample(fitted)
