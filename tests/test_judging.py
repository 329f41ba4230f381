"""A model judged: the same values on any number of devices, in any batch; what cannot be judged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax import build, judging
from aigc_jax.data import datasets
from aigc_jax.evaluation import evaluators
from aigc_jax.training import sharding
from configs import ddpm_digits

DATASET = datasets.load("digits")


def config(**changes):
    made = ddpm_digits.get_config("smoke")
    with made.unlocked():
        made.update_from_flattened_dict({"network.multipliers": (1,), **changes})
    return made


def rows(family, params, devices, batch_size, count=40, names=evaluators.NAMES, **changes):
    setting = config(**changes)
    mesh = sharding.make_mesh(jax.devices()[:devices])
    eye = judging.open_eye(setting, DATASET, mesh, batch_size)
    subject = judging.subject(
        setting,
        family,
        DATASET,
        mesh,
        eye,
        jax.device_put(params, sharding.replicated(mesh)),
        {},
        count=count,
        seed=3,
        batch_size=batch_size,
    )
    protocol = judging.protocol(setting, weights="EMA", seed=3)
    return {row.metric: row for row in evaluators.run(subject, names, **protocol)}


@pytest.fixture(scope="module")
def model():
    family = build.build(config(), DATASET.spec)
    params = family.init(jax.random.key(0))[0]
    noisy = jax.tree.map(  # layers that start at zero too
        lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), params
    )
    return family, jax.device_get(noisy)


def test_no_value_depends_on_devices_or_batches(model):
    expected = rows(*model, 1, 40)
    assert {"loss", "bits_per_dim", "psnr/t=2", "fd_digits", "copies_digits"} <= set(expected)
    assert all(np.isfinite(row.value) for row in expected.values())
    for devices, batch_size in ((8, 40), (1, 16)):
        found = rows(*model, devices, batch_size)
        assert list(found) == list(expected)
        for metric, row in expected.items():
            np.testing.assert_allclose(
                found[metric].value, row.value, rtol=1e-6, atol=1e-6, err_msg=metric
            )


def test_rows_state_the_protocol_they_were_measured_by(model):
    changes = {"sampling.sampler": "ddim", "sampling.guidance": 1.0}
    fid = rows(*model, 8, 40, names=("fid",), **changes)["fd_digits"]
    assert (fid.sampler, fid.steps, fid.seed, fid.n) == ("ddim", 4, 3, 40)
    assert fid.reference == "digits train (1501)"
    swapped = rows(*model, 8, 40, names=("fid",), **{"evaluation.reference_split": "test"})
    assert swapped["fd_digits"].reference == "digits test (296)"
    assert swapped["fd_digits"].real != fid.real


def family_of(image):
    """A family that draws one image, whatever the noise."""

    def sample(params, extra, keys, cond):
        return jnp.broadcast_to(jnp.asarray(image, jnp.float32), (len(keys), 8, 8, 1))

    return build.build(config(), DATASET.spec)._replace(sample=sample)


@pytest.mark.parametrize(
    ("image", "match"),
    [
        (np.nan, r"samples are not finite: the model has diverged; take an earlier --step"),
        (0.3, r"all 40 samples have the same features.*--mode=sample"),
    ],
)
def test_samples_that_are_no_images_are_told(image, match):
    with pytest.raises(ValueError, match=match):
        rows(family_of(image), {}, 8, 40, names=("fid",))


def test_one_sample_is_no_distribution(model):
    with pytest.raises(ValueError, match="at least 2 samples"):
        rows(*model, 1, 1, count=1)


def test_samples_are_held_as_bytes(model):
    mesh = sharding.make_mesh()
    eye = judging.open_eye(config(), DATASET, mesh)
    subject = judging.subject(
        config(), model[0], DATASET, mesh, eye, model[1], {}, count=40, seed=0, batch_size=16
    )
    assert [batch.dtype for batch in subject.sample()] == [np.uint8] * 3
    assert subject.drawn[0].nbytes == 40 * 64


def test_without_a_metric_of_distributions_no_feature_network_is_needed(model, monkeypatch):
    monkeypatch.delenv("AIGC_WEIGHTS", raising=False)
    wanted = {"evaluation.network": "inception", "evaluations": ("restoration",)}
    found = rows(*model, 1, 40, names=("restoration",), **wanted)
    assert {"psnr/t=2", "l1/t=2"} <= set(found)
    with pytest.raises(FileNotFoundError, match="no weights of feature network 'inception'"):
        rows(*model, 1, 40, **wanted | {"evaluations": ("restoration", "fid")})
