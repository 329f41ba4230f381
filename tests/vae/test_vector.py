"""The VQ-VAE: what changes the codebook, what reaches the encoder, which entries are used."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import specs
import toys
from vae_toys import viewed

from aigc_jax import build, streams
from aigc_jax.family import Field, Variables
from aigc_jax.sampling.driver import Driver
from aigc_jax.training import step
from aigc_jax.training.sharding import make_mesh, put
from aigc_jax.vae import likelihood, quantize, vector
from configs import vqvae_cifar

SHAPE, SIZE, WIDTH = (4, 4, 1), 6, 3
GAUSSIAN = likelihood.build("gaussian", 1, sigma=0.5)
IMAGES = jax.random.uniform(jax.random.key(1), (8, *SHAPE), minval=-1.0)
BATCH = {"x": IMAGES}


class Linear(NamedTuple):
    """2x2 patches to vectors and back, by one matrix each; a label shifts what is decoded."""

    latent_shape: tuple = (2, 2, WIDTH)

    def init(self, key, x):
        keys = jax.random.split(key)
        sizes = {"in": (4, WIDTH), "out": (WIDTH, 4)}
        draws = zip(keys, sizes.items(), strict=True)
        return {"params": {name: jax.random.normal(k, size) for k, (name, size) in draws}}

    def apply(self, variables, *args, method):
        return method(*args, params=variables["params"])

    def encode(self, x, label, params):
        patches = x.reshape(-1, 2, 2, 2, 2).transpose(0, 1, 3, 2, 4).reshape(-1, 2, 2, 4)
        return patches @ params["in"], None

    def decode(self, z, label, params):
        out = (z @ params["out"]).reshape(-1, 2, 2, 2, 2).transpose(0, 1, 3, 2, 4)
        shift = 0 if label is None else label.reshape(-1, 1, 1, 1).astype(jnp.float32)
        return out.reshape(-1, *SHAPE) + shift


@functools.cache
def vqvae(classes=0, prior="frequency", **changes):
    codebook = {"size": SIZE, "decay": 0.9, "commitment": 0.25, "restart": 0.0} | changes
    return vector.VQVAE(
        network=Linear(),
        shape=SHAPE,
        likelihood=GAUSSIAN,
        conditions={"label": Field("label", (), classes)} if classes else {},
        codebook=vector.Codebook(**codebook),
        prior=prior,
    )


@functools.cache
def variables():
    """Parameters, and a codebook wide enough for several entries to be used."""
    params, extra = vqvae().init(jax.random.key(0))
    codebook = jax.random.normal(jax.random.key(2), (SIZE, WIDTH))
    return Variables(params, {**extra, "codebook": codebook, "sums": codebook})


@functools.cache
def driver(made):
    return Driver(made.family().drawing, "cpu")


def z_of(params):
    return Linear().encode(IMAGES, None, params["net"]["network"])[0]


@functools.cache
def slopes(made):
    """((params, extra), batch) -> the loss, what comes with it, and its gradients."""

    def loss(params, extra, batch):
        return made.loss(viewed(Variables(params, extra)), batch, jax.random.key(0))

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))


def differentiated(made, extra=None, batch=None):
    params, own, *_ = variables()
    return slopes(made)(params, own if extra is None else extra, batch or BATCH)


def test_the_loss_is_the_distortion_and_the_commitment():
    params, extra, *_ = variables()
    z = z_of(params)
    index = np.linalg.norm(z[..., None, :] - extra["codebook"][None, None, None], axis=-1).argmin(
        -1
    )
    z_q = extra["codebook"][index]
    distance = np.sum((z - z_q) ** 2, axis=(1, 2, 3))
    outputs = Linear().decode(z_q, None, params["net"]["network"])
    distortion = -GAUSSIAN.log_prob(outputs, IMAGES)
    (value, (metrics, _)), _ = differentiated(vqvae())
    np.testing.assert_allclose(value, np.mean(distortion + 0.25 * distance), rtol=1e-5)
    np.testing.assert_allclose(metrics["commitment"], distance.mean(), rtol=1e-5)
    counts = np.bincount(index.reshape(-1), minlength=SIZE)
    np.testing.assert_allclose(metrics["perplexity"], quantize.perplexity(counts), rtol=1e-5)
    found = jax.jit(vqvae().evaluate)(variables(), BATCH, jax.random.key(0))
    np.testing.assert_allclose(found["distortion"], distortion, rtol=1e-5)
    np.testing.assert_allclose(found["commitment"], distance, rtol=1e-5)
    # Four places, a uniform prior over the entries.
    np.testing.assert_allclose(found["kl"], 4 * math.log(SIZE), rtol=1e-6)
    np.testing.assert_allclose(found["neg_elbo"], distortion + 4 * math.log(SIZE), rtol=1e-5)
    bits = found["neg_elbo"] / 16 / np.log(2) + np.log2(127.5)
    np.testing.assert_allclose(found["bits_per_dim"], bits, rtol=1e-5)
    codes = jax.jit(vqvae().encode)(variables(), BATCH)
    np.testing.assert_array_equal(codes[vqvae().family().codec.code], index)


def test_the_encoder_gets_the_gradient_at_its_entry_and_the_commitments():
    params, extra, *_ = variables()
    z = z_of(params)
    z_q, _ = quantize.quantize(z, extra["codebook"])

    def distortion(z_q):
        outputs = Linear().decode(z_q, None, params["net"]["network"])
        return -jnp.mean(GAUSSIAN.log_prob(outputs, IMAGES))

    through = jax.grad(distortion)(z_q) + 0.25 * 2 * (z - z_q) / len(z)

    def pulled(kernel):
        return jnp.sum(Linear().encode(IMAGES, None, {"in": kernel})[0] * through)

    expected = jax.grad(pulled)(params["net"]["network"]["in"])
    _, (grads, _) = differentiated(vqvae())
    np.testing.assert_allclose(grads["net"]["network"]["in"], expected, rtol=1e-4, atol=1e-4)
    assert np.abs(expected).max() > 0.1


def test_the_codebook_has_no_gradient_and_follows_by_averages():
    params, extra, *_ = variables()
    (_, (_, updated)), (_, to_extra) = differentiated(vqvae())
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(to_extra))
    z = z_of(params)
    _, index = quantize.quantize(z, extra["codebook"])
    expected = quantize.update(extra, z, index, 0.9)
    assert updated.keys() == expected.keys() == extra.keys()
    for name in expected:
        np.testing.assert_allclose(updated[name], expected[name], rtol=1e-5, atol=1e-6)
    assert np.abs(updated["codebook"] - extra["codebook"]).max() > 0.01


def test_the_averages_change_no_gradient():
    # Nothing depends on what `extra` is to become: the same gradients, whatever the decay.
    _, (a, _) = differentiated(vqvae())
    _, (b, _) = differentiated(vqvae(decay=0.5))
    assert toys.same(a, b)


def test_dead_entries_start_anew_at_vectors_of_the_batch():
    params, extra, *_ = variables()
    far = {**extra, "codebook": extra["codebook"].at[0].set(100.0)}
    far |= {"sums": far["codebook"], "counts": jnp.ones(SIZE)}
    (_, (_, left)), _ = differentiated(vqvae(), far)
    assert np.all(np.abs(left["codebook"][0]) > 99)
    (_, (_, updated)), _ = differentiated(vqvae(restart=0.95), far)  # 1 has become 0.9
    restarted = np.asarray(updated["codebook"])[0]
    distance = np.linalg.norm(np.asarray(z_of(params)).reshape(-1, WIDTH) - restarted, axis=1)
    assert distance.min() < 1e-5
    assert float(updated["counts"][0]) == pytest.approx(0.95)


def test_eight_devices_see_the_loss_and_the_codebook_of_one():
    def run(devices):
        mesh = make_mesh(jax.devices()[:devices])
        batch = put(mesh, {"x": np.asarray(IMAGES)})
        return differentiated(vqvae(restart=1.0), batch=batch)

    for one, eight in zip(toys.arrays(run(1)), toys.arrays(run(8)), strict=True):
        np.testing.assert_allclose(one, eight, rtol=1e-5, atol=1e-5)


def test_a_sample_depends_on_its_key_alone():
    keys = jax.random.split(jax.random.key(0), 8)
    images = np.asarray(driver(vqvae())(variables(), keys, {}))
    few = np.asarray(driver(vqvae())(variables(), keys[2:4], {}))
    np.testing.assert_allclose(few, images[2:4], atol=1e-6)
    assert len(np.unique(images.reshape(8, -1).round(4), axis=0)) > 1


def test_indices_of_samples_are_as_frequent_as_in_training_or_uniform():
    params, extra, *_ = variables()
    counts = jnp.array([0.0, 3.0, 0.0, 1.0, 0.0, 0.0])
    counted = Variables(params, {**extra, "counts": counts})
    keys = jax.random.split(jax.random.key(0), 2000)

    def first_patches(prior):
        return np.asarray(driver(vqvae(prior=prior))(counted, keys, {}))[:, :2, :2]

    def share(images, entry):
        one = jnp.full((1, 2, 2), entry)
        patch = vqvae().decode(counted, one, {})[:, :2, :2]
        return np.isclose(images, patch, atol=1e-5).all(axis=(1, 2, 3)).mean()

    frequent, uniform = first_patches("frequency"), first_patches("uniform")
    assert share(frequent, 1) == pytest.approx(0.75, abs=0.04)
    assert share(frequent, 3) == pytest.approx(0.25, abs=0.04)
    for entry in range(SIZE):
        assert share(uniform, entry) == pytest.approx(1 / SIZE, abs=0.04)


def test_indices_and_vectors_decode_to_the_reconstruction():
    params, extra, *_ = variables()
    made = vqvae()
    pairs = jax.jit(made.reconstruct)(variables(), BATCH, jax.random.key(0))
    given, image = pairs["reconstruction"]
    np.testing.assert_array_equal(given, IMAGES)
    index = made.encode(variables(), BATCH)["index"]
    for code in (index, z_of(params), extra["codebook"][index]):
        images = made.decode(variables(), code, {})
        np.testing.assert_allclose(images, image, atol=1e-5)


def test_labels_reach_the_decoder():
    made = vqvae(classes=2)
    assert made.family().drawing.conditions == {"label": Field("label", (), 2)}
    assert vqvae().family().drawing.conditions == {}
    keys = jax.random.split(jax.random.key(0), 2)
    dark, light = (
        driver(made)(variables(), keys, {"label": jnp.full(2, label)}) for label in (0, 1)
    )
    assert np.mean(light - dark) > 0.2
    index = jnp.zeros((2, 2, 2), jnp.int32)
    dark, light = (made.decode(variables(), index, {"label": jnp.full(2, c)}) for c in (0, 1))
    assert np.mean(light - dark) > 0.2
    found = [
        made.evaluate(variables(), BATCH | {"label": jnp.full(8, label)}, None)["distortion"]
        for label in (0, 1)
    ]
    assert not np.allclose(*found)


def test_the_diagnosis_is_the_perplexity_and_warns_of_unused_entries():
    found, warning = vector.diagnose({"index": np.arange(100).reshape(25, 2, 2)}, size=100)
    assert found == {"perplexity": pytest.approx(100.0, rel=1e-5), "entries_used": 100}
    assert warning == ""
    found, warning = vector.diagnose({"index": np.arange(100).reshape(25, 2, 2) % 2}, size=100)
    assert found == {"perplexity": pytest.approx(2.0, rel=1e-5), "entries_used": 2}
    assert warning.startswith("Codebook collapse: 2 of 100 entries")
    diagnose = vqvae().family().codec.diagnose
    assert diagnose({"index": np.zeros((3, 2, 2), int)})[0]["perplexity"] == 1


def test_a_resumed_run_is_the_uninterrupted_one_with_its_codebook(tmp_path):
    family = vqvae(restart=1.0).family()
    whole, resumed = toys.resumed(tmp_path, family, stop=2, steps=4)
    assert toys.same(resumed, whole)
    assert whole.extra.keys() == {"codebook", "counts", "sums"} == set(family.transferred)


def test_the_smoke_config_trains_through_the_shared_step():
    config = vqvae_cifar.get_config("smoke")
    config.network.update({"multipliers": (1,), "width": 4})  # compiles sooner
    made = build.build(config, specs.images((4, 4, 3), 10))
    plan = toys.recipe_of(made, config)
    state = jax.jit(functools.partial(step.init_state, plan))(*streams.init(0))
    run = jax.jit(lambda state, batch: step.train_step(plan, (0,), state, {}, batch))
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (1, 16, 1, 1, 3), np.uint8)
    batch = {"x": np.broadcast_to(colours, (1, 16, 4, 4, 3))}
    before, values = state.extra, []
    for _ in range(40):
        state, metrics = run(state, batch)
        values.append(float(metrics["net/distortion"]))
    assert np.mean(values[-5:]) < np.mean(values[:5]) - 5
    assert int(state.skipped) == 0
    assert not toys.same(before, state.extra)
    assert float(metrics["net/perplexity"]) > 2


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("kl", {"beta": 4.0}),
        ("importance", {"samples": 5}),
        ("perceptual", {"network": "vgg16"}),
        ("adversary", {"weight": 0.5}),
        ("noise", {"kind": "gaussian"}),
        ("binarise", "dynamic"),
    ],
)
def test_a_setting_that_a_codebook_cannot_follow_is_refused(key, value):
    config = vqvae_cifar.get_config("smoke")
    with config.unlocked():
        config.vae[key] = value
    with pytest.raises(ValueError, match=rf"config\.vae has no key '{key}'"):
        build.build(config, specs.images((32, 32, 3), 10))
