"""What one evaluation may set for itself: another average, how a likelihood is computed."""

import jax
import jax.numpy as jnp
import pytest
import toys
from samplers import NOTHING, Sampler, by_metric, evaluator

from aigc_jax.family import Drawing, Variables
from aigc_jax.runs.extractors import FeatureExtractors
from aigc_jax.training import sharding


@pytest.fixture(scope="module")
def extractors():
    """{number of devices: networks on them}."""
    meshes = {n: sharding.make_mesh(jax.devices()[:n]) for n in (1, 8)}
    return {n: FeatureExtractors(mesh) for n, mesh in meshes.items()}


def test_an_evaluation_of_another_average_is_of_that_one_and_shares_nothing_with_others(extractors):
    """What it is of stands in its rows; what is drawn of one average is no samples of another."""
    made, asked = toys.one_player(), []

    def start(variables, keys, cond):
        return jax.vmap(lambda key: jax.random.normal(key, (8, 8, 1)))(keys)

    def finish(variables, x):
        return jnp.clip(0.1 * x + variables.params["level"], -1, 1)

    def evaluate_example(variables, batch, key):
        return {"level": jnp.zeros(len(batch["x"])) + variables.params["level"]}

    family = made._replace(evaluate=evaluate_example, drawing=Drawing(start, finish), codec=None)

    def average(half_life):
        asked.append(half_life)
        return Variables({"level": jnp.float32(1.0)}, {})

    given = {
        "fid": {},
        "fid_short": {"metric": "fid", "ema": 5.0},
        "examples": {},
        "examples_short": {"metric": "examples", "ema": 5.0},
    }
    judge = evaluator(extractors, family, given)
    own = Variables({"level": jnp.float32(0.0)}, {})
    rows = by_metric(judge.run(own, seed=0, weights="EMA", averages=average).rows)
    assert rows["fid_short/fd_digits"].value > 1.1 * rows["fd_digits"].value
    assert (rows["level"].value, rows["examples_short/level"].value) == (0.0, 1.0)
    assert rows["fd_digits"].weights == rows["level"].weights == "EMA"
    assert rows["fid_short/fd_digits"].weights == rows["examples_short/level"].weights == "EMA 5"
    assert set(asked) == {5.0}
    alone = by_metric(evaluator(extractors, family, {"fid": {}}).run(own, seed=0, weights="").rows)
    assert alone["fd_digits"].value == rows["fd_digits"].value


def test_an_exact_likelihood_is_computed_as_its_evaluation_says(extractors):
    seen = []

    def density(variables, batch, key, *, probes, tolerance):
        seen.append((probes, tolerance))
        return {"bits_per_dim_ode": batch["x"].mean((1, 2, 3))}

    family = Sampler().family()._replace(density=density)
    given = {
        "exact_likelihood": {"likelihood_count": 40},
        "finer": {"metric": "exact_likelihood", "probes": 0, "tolerance": 1e-7},
    }
    made = evaluator(extractors, family, given, probes=3)
    rows = made.run(NOTHING, seed=0, weights="EMA").rows
    assert [(row.key, row.n) for row in rows] == [
        ("bits_per_dim_ode", 40),
        ("finer/bits_per_dim_ode", 80),
    ]
    assert list(dict.fromkeys(seen)) == [(3, 1e-5), (0, 1e-7)]
