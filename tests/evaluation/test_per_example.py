"""Evaluators of held-out examples: means, their errors, and what reconstructions are worth."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.evaluation import evaluators, per_example
from aigc_jax.evaluation.per_example import ModelUnderTest, means


def batches():
    yield {"x": jnp.array([1.0, 2.0]), "mask": jnp.array([1.0, 1.0])}
    yield {"x": jnp.array([6.0, jnp.nan]), "mask": jnp.array([1.0, 0.0])}


def test_means_are_over_examples_and_padding_does_not_count():
    found = means(
        lambda batch, key: {"x": batch["x"], "twice": 2 * batch["x"]}, batches(), jax.random.key(0)
    )
    assert found["x"].value == 3.0
    assert found["twice"].value == 6.0
    assert found["x"].count == 3
    np.testing.assert_allclose(found["x"].error, np.std([1, 2, 6], ddof=1) / 3**0.5, rtol=1e-6)


def test_a_large_mean_leaves_the_error_its_digits():
    rng = np.random.default_rng(0)
    values = (1e5 + rng.normal(size=(4, 50))).astype(np.float32)
    rows = [{"x": jnp.asarray(row), "mask": jnp.ones(50)} for row in values]
    found = means(lambda batch, key: {"x": batch["x"]}, rows, jax.random.key(0))["x"]
    exact = values.astype(np.float64)
    np.testing.assert_allclose(found.value, exact.mean(), rtol=1e-8)
    np.testing.assert_allclose(found.error, exact.std(ddof=1) / 200**0.5, rtol=1e-3)


def test_a_real_value_that_is_not_a_number_is_not_hidden():
    rows = [{"x": jnp.array([1.0, jnp.nan]), "mask": jnp.ones(2)}]
    found = means(lambda batch, key: {"x": batch["x"]}, rows, jax.random.key(0))
    assert np.isnan(found["x"].value)


def test_each_batch_has_a_key_of_its_own_and_each_evaluation_the_same():
    keys = []

    def evaluate(batch, key):
        keys.append(jax.random.key_data(key).tolist())
        return {"x": batch["x"]}

    for _ in range(2):
        means(evaluate, batches(), jax.random.key(3))
    assert keys[:2] == keys[2:]
    assert keys[0] != keys[1]


def model(**changes):
    given = ModelUnderTest(
        evaluate=lambda batch, key: {"loss": batch["x"].mean((1, 2, 3))},
        reconstruct=None,
        bound=None,
        codes=None,
        diagnose=None,
        examples=lambda limit: iter([{"x": jnp.ones((2, 2, 2, 1)), "mask": jnp.ones(2)}]),
        name="toy test",
        are_images=True,
        key=jax.random.key(0),
    )
    return dataclasses.replace(given, **changes)


def rows(given, *names, **options):
    found = (evaluators.of_examples(name, given, **options) for name in names)
    return {row.metric: row for part in found for row in part}


def test_examples_and_reconstructions_are_of_real_data():
    original = np.random.default_rng(0).uniform(-1, 1, (2, 12, 12, 1)).astype(np.float32)

    def reconstruct(batch, key):
        black = jnp.zeros_like(batch["x"])
        return {"t=20": (black, batch["x"] + 0.1), "t=3": (black, batch["x"])}

    batch = {"x": jnp.asarray(original), "mask": jnp.ones(2)}
    given = model(reconstruct=reconstruct, examples=lambda limit: iter([batch]))
    found = rows(given, "reconstruction", "examples", weights="EMA")
    np.testing.assert_allclose(found["psnr/t=20"].value, 20 * np.log10(2 / 0.1), rtol=1e-5)
    np.testing.assert_allclose(found["l1/t=20"].value, 0.1, rtol=1e-5)
    assert found["ssim/t=3"].value == pytest.approx(1.0)
    assert "ms_ssim/t=3" not in found  # five scales need 176 pixels
    assert [name for name in found if "psnr" in name] == ["psnr/t=3", "psnr/t=20"]
    black = 10 * np.log10(4 / (original**2).mean((1, 2, 3)))
    assert found["psnr/t=20"].note == f"given {black.mean():.4g}"
    assert found["loss"].value == pytest.approx(original.mean(), abs=1e-6)
    assert (found["loss"].seed, found["loss"].weights) == (None, "EMA")
    assert found["loss"].reference == "toy test"
    lacking = ("reconstruction", "likelihood", "exact_likelihood", "diagnosis")
    assert rows(model(), *lacking) == {}


def test_a_third_array_is_the_original_that_a_reconstruction_is_compared_with():
    def reconstruct(batch, key):
        return {"cycle": (batch["x"], batch["x"] - 0.5, batch["x"] - 1.0)}

    found = rows(model(reconstruct=reconstruct), "reconstruction")
    assert found["l1/cycle"].value == pytest.approx(0.5)
    assert found["l1/cycle"].note == "given 1"


def test_reconstructions_of_points_have_a_distance_and_no_signal_to_noise_ratio():
    points = {"x": jnp.array([[0.0, 1.0], [4.0, 2.0]]), "mask": jnp.ones(2)}
    given = model(
        reconstruct=lambda batch, key: {"mean": (batch["x"], batch["x"] + 0.25)},
        examples=lambda limit: iter([points]),
        are_images=False,
    )
    found = rows(given, "reconstruction")
    assert [(row.metric, row.value, row.n) for row in found.values()] == [("l1/mean", 0.25, 2)]


def test_an_expensive_bound_is_taken_of_as_many_examples_as_it_is_asked_for():
    limits = []

    def examples(limit):
        limits.append(limit)
        return iter([{"x": jnp.ones((2, 2, 2, 1)), "mask": jnp.ones(2)}])

    given = model(
        bound=lambda batch, key: {"bits_per_dim": 3 * batch["x"].mean((1, 2, 3))},
        examples=examples,
    )
    found = evaluators.of_examples("likelihood", given, limit=2)
    found += evaluators.of_examples("examples", given)
    assert [(row.metric, row.value, row.n) for row in found] == [
        ("bits_per_dim", 3.0, 2),
        ("loss", 1.0, 2),
    ]
    assert limits == [2, 0]


def test_a_diagnosis_is_of_the_codes_and_its_warning_is_a_note():
    given = model(
        codes=lambda batches: {"mean": np.concatenate([np.asarray(b["x"]) for b in batches])},
        diagnose=lambda codes: ({"active_units": len(codes["mean"])}, "they collapse"),
    )
    (row,) = evaluators.of_examples("diagnosis", given, weights="raw")
    assert (row.metric, row.value, row.n, row.note) == ("active_units", 2, 2, "they collapse")
    assert (row.reference, row.weights) == ("toy test", "raw")


def test_names_are_sorted_as_numbers_are():
    names = ["t=100", "t=20", "a", "t=3"]
    assert sorted(names, key=per_example.natural) == ["a", "t=3", "t=20", "t=100"]
