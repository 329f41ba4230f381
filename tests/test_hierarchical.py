"""The ladder as a family: its bound, its devices, its samples, what it says of collapse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from aigc_jax import build
from aigc_jax.data.datasets import DataSpec
from aigc_jax.networks.ladder import Ladder
from aigc_jax.sampling import draw
from aigc_jax.training import loop, step
from aigc_jax.training.sharding import make_mesh, put
from aigc_jax.vae import hierarchical, likelihood, objectives
from configs import hvae_cifar

SHAPE, GROUPS = (2, 2, 1), 3  # up to 2x2 a ladder has no 3x3 convolution: it compiles at once
LIKELIHOODS = {
    "gaussian": likelihood.build("gaussian_learned", 1),
    "mixture": likelihood.build("logistic_mixture", 1, components=2),
}
PLAIN = objectives.kl_cost("constant")
IMAGES = jax.random.uniform(jax.random.key(1), (8, *SHAPE), minval=-1.0)


def ladder(channels=1):
    return Ladder(SHAPE, channels, 8, 2, "2d2,1x1", "1x1,2m1,2x1")


def family(name="gaussian", cost=PLAIN, temperature=1.0):
    of = LIKELIHOODS[name]
    return hierarchical.ladder(ladder(of.channels), SHAPE, of, cost, temperature=temperature)


@functools.cache
def state(name="gaussian"):
    """Parameters of a new network with noise in the tensors that start at zero, and `extra`."""
    params, extra = jax.jit(family(name).init)(jax.random.key(0))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(9), len(leaves))
    leaves = [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, leaves), extra


@functools.cache
def evaluate():
    return jax.jit(family().evaluate)


def loss(made, extra=None, key=0):
    params, own = state()
    return jax.jit(made.phases[0].loss)(
        params, own if extra is None else extra, {"image": IMAGES}, jax.random.key(key)
    )


def groups_of(key=0):
    """KL [B, J] of the network itself, with the keys that the family gives it."""
    params = {"params": state()[0]["net"]["network"]}
    keys = jax.random.split(jax.random.key(key), len(IMAGES))
    return np.asarray(jax.jit(ladder().apply)(params, IMAGES, keys)[1]).T


def test_the_bound_is_the_distortion_and_the_kl_of_every_group():
    params, extra = state()
    found = evaluate()(params, extra, {"image": IMAGES}, jax.random.key(3))
    kl = groups_of(3)
    assert kl.shape == (8, GROUPS)
    assert (kl.mean(0) > 0.01).all()
    np.testing.assert_allclose(found["kl"], kl.sum(1), rtol=1e-5)
    np.testing.assert_allclose(found["neg_elbo"], found["kl"] + found["distortion"], rtol=1e-5)
    bits = found["neg_elbo"] / 4 / np.log(2) + np.log2(127.5)
    np.testing.assert_allclose(found["bits_per_dim"], bits, rtol=1e-5)


def test_the_loss_is_the_bounds_mean_and_counts_its_steps():
    value, (metrics, extra) = loss(family(), key=3)
    found = evaluate()(*state(), {"image": IMAGES}, jax.random.key(3))
    np.testing.assert_allclose(value, found["neg_elbo"].mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["neg_elbo"], found["neg_elbo"].mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["kl"], found["kl"].mean(), rtol=1e-5)
    assert int(extra["step"]) == 1


def test_what_the_kl_costs_is_asked_of_each_group():
    annealed = family(cost=objectives.kl_cost("linear", steps=4, beta=2.0))
    half, (metrics, _) = loss(annealed, {"step": jnp.int32(1)})
    plain = metrics["neg_elbo"]
    np.testing.assert_allclose(plain - half, metrics["kl"] / 2, rtol=1e-4)
    kl = groups_of().mean(0)
    floor = float(np.sort(kl)[:2].mean())  # between the smallest and the next
    free, _ = loss(family(cost=objectives.kl_cost("constant", free_bits=floor)))
    assert (kl < floor).sum() == 1
    np.testing.assert_allclose(free - plain, np.maximum(kl, floor).sum() - kl.sum(), rtol=1e-3)


def test_eight_devices_see_the_loss_of_one():
    params, extra = state()
    made = family()

    def run(devices):
        mesh = make_mesh(jax.devices()[:devices])
        batch = put(mesh, {"image": np.asarray(IMAGES)})
        value_and_grad = jax.jit(jax.value_and_grad(made.phases[0].loss, has_aux=True))
        (value, (metrics, _)), grads = value_and_grad(params, extra, batch, jax.random.key(0))
        return value, metrics, grads

    for one, eight in zip(toys.arrays(run(1)), toys.arrays(run(8)), strict=True):
        np.testing.assert_allclose(one, eight, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_a_sample_depends_on_its_key_alone_and_not_on_devices(name):
    params, extra = state(name)
    made = family(name)

    def drawn(devices, count, size):
        mesh = make_mesh(jax.devices()[:devices])
        return np.concatenate(
            list(draw(made.sample, params, extra, mesh, seed=0, count=count, batch_size=size))
        )

    one, eight = drawn(1, 4, 4), drawn(8, 16, 16)
    assert eight.shape == (16, *SHAPE)
    np.testing.assert_array_equal(one, eight[:4])  # uint8
    assert len(np.unique(eight.reshape(16, -1), axis=0)) == 16


def test_the_temperature_is_of_the_latents():
    params, extra = state()
    # Pixels would add noise of their own: one with a tiny deviation.
    params = {"net": {**params["net"], "log_sigma": jnp.float32(-20.0)}}
    keys = jax.random.split(jax.random.key(0), 6)
    cold = np.asarray(family(temperature=0.0).sample(params, extra, keys, {}))
    warm = np.asarray(family().sample(params, extra, keys, {}))
    assert cold.std(0).max() < 0.02
    assert warm.std(0).max() > 0.1


def test_samples_of_a_mixture_are_bytes():
    params, extra = state("mixture")
    images = family("mixture").sample(params, extra, jax.random.split(jax.random.key(0), 4), {})
    levels = (np.asarray(images, np.float64) + 1) * 127.5
    np.testing.assert_allclose(levels, levels.round(), atol=1e-4)
    assert levels.min() >= 0
    assert levels.max() <= 255


def test_restored_images_are_of_all_groups_and_of_the_upper_ones():
    params, extra = state()
    key = jax.random.key(4)
    pairs = jax.jit(family().restore)(params, extra, {"image": IMAGES}, key)
    assert set(pairs) == {"reconstruction", "groups=1"}
    keys = jax.random.split(key, len(IMAGES))
    for name, groups in {"reconstruction": GROUPS, "groups=1": 1}.items():
        given, restored = pairs[name]
        np.testing.assert_array_equal(given, IMAGES)
        outputs = ladder().apply(
            {"params": params["net"]["network"]},
            IMAGES,
            keys,
            groups,
            hierarchical.REST,
            method="reconstruct",
        )
        np.testing.assert_allclose(restored, jnp.clip(outputs, -1, 1), rtol=1e-4, atol=1e-5)


def test_codes_are_the_kl_of_each_group():
    params, extra = state()
    codes = jax.jit(family().codes)(params, extra, {"image": IMAGES})
    np.testing.assert_allclose(codes["kl"], groups_of(0), rtol=1e-4, atol=1e-6)


def test_the_diagnosis_counts_groups_and_warns_of_collapse():
    used = np.full((5, 4), 2.0)
    used[:, 2] = 3.0
    found, warning = hierarchical.diagnose({"kl": used})
    assert (found["active_groups"], found["largest_kl"], found["largest_kl_group"]) == (4, 3, 2)
    assert warning == ""
    found, warning = hierarchical.diagnose({"kl": used * [0, 1, 0, 0]})
    assert found["active_groups"] == 1
    assert warning.startswith("Only 1 of 4 groups")
    found, warning = hierarchical.diagnose({"kl": used * 1e-4})
    assert found["active_groups"] == 0
    assert warning.startswith("Posterior collapse: none of 4 groups")
    assert "not finite" in hierarchical.diagnose({"kl": used * np.nan})[1]


def test_it_trains_through_the_shared_step():
    made = family()
    config = toys.config("one", {"optimizer": toys.optimizer("adam", learning_rate=0.02)})
    plan = loop.recipe(config, made)
    now = jax.jit(functools.partial(step.init_state, plan))(jax.random.key(0))
    run = jax.jit(functools.partial(step.train_step, plan, (0,)))
    shades = np.linspace(20, 230, 8, dtype=np.uint8)  # all that differs is the brightness
    batch = {"image": np.broadcast_to(shades[None, :, None, None, None], (1, 8, *SHAPE))}
    seen = []
    for _ in range(100):
        now, metrics = run(now, batch)
        seen.append(float(metrics["net/neg_elbo"]))
    assert np.mean(seen[-5:]) < np.mean(seen[:5]) - 1
    assert int(now.skipped) == 0
    assert int(now.extra["step"]) == 100


def test_the_config_is_the_published_recipe():
    config = hvae_cifar.get_config()
    network, optimizer = config.network, config.optimizer
    assert (network.width, network.latent, network.bottleneck) == (384, 16, 0.25)
    assert network.encoder == "32x11,32d2,16x6,16d2,8x6,8d2,4x3,4d4,1x3"
    assert network.decoder == "1x1,4m1,4x2,8m4,8x5,16m8,16x10,32m16,32x21"
    assert (optimizer.name, optimizer.learning_rate, optimizer.warmup) == ("adamw", 2e-4, 100)
    assert (optimizer.b1, optimizer.b2, optimizer.weight_decay) == (0.9, 0.9, 0.01)
    assert optimizer.clip == 200 * 3072
    assert config.train.batch_size == 32
    assert (config.vae.likelihood, config.vae.components) == ("logistic_mixture", 10)


@pytest.mark.parametrize(
    ("key", "value"),
    [("noise", "gaussian"), ("importance", 5), ("binarise", "dynamic"), ("codes", 8)],
)
def test_a_setting_that_a_ladder_cannot_follow_is_refused(key, value):
    config = hvae_cifar.get_config("smoke")
    config.vae[key] = value
    with pytest.raises(ValueError, match=rf"with a ladder vae\.{key} is"):
        build.build(config, DataSpec((32, 32, 3), 10, {}))
