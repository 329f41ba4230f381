"""The ladder as a family: its bound, its devices, its samples, what it says of collapse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import specs
import toys
from vae_toys import viewed

from aigc_jax import build, streams
from aigc_jax.family import Variables
from aigc_jax.modalities.image import to_uint8
from aigc_jax.networks.vae.ladder import Ladder
from aigc_jax.sampling.driver import Driver, draw
from aigc_jax.training import step
from aigc_jax.training.sharding import make_mesh, put
from aigc_jax.vae import hierarchical, likelihood, objectives
from configs import hvae_cifar

SHAPE, GROUPS = (2, 2, 1), 2  # up to 2x2 a ladder has no 3x3 convolution: it compiles at once
LIKELIHOODS = {
    "gaussian": likelihood.build("gaussian_learned", 1),
    "mixture": likelihood.build("logistic_mixture", 1, components=2),
}
PLAIN = objectives.kl_cost("constant")
BATCH = {"x": jax.random.uniform(jax.random.key(1), (8, *SHAPE), minval=-1.0)}


def ladder(channels=1):
    return Ladder(SHAPE, channels, 8, 2, "2d2", "1x1,2m1")


@functools.cache
def vae(name="gaussian", cost=PLAIN, temperature=1.0):
    of = LIKELIHOODS[name]
    return hierarchical.HierarchicalVAE(
        network=ladder(of.channels),
        shape=SHAPE,
        likelihood=of,
        kl_cost=cost,
        temperature=temperature,
    )


@functools.cache
def driver(name="gaussian", temperature=1.0):
    return Driver(vae(name, temperature=temperature).family().drawing, "cpu")


@functools.cache
def variables(name="gaussian"):
    """Of a new network, with noise in the tensors that start at zero."""
    params, extra = jax.jit(vae(name).init)(jax.random.key(0))
    assert extra == {}
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(9), len(leaves))
    leaves = [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return Variables(jax.tree.unflatten(tree, leaves), extra)


ANNEALED = objectives.kl_cost("linear", steps=4, beta=2.0)


@functools.cache
def computed():
    """(key, step) -> what the model and the network itself make of the batch, compiled once.

    One program: the network that they have in common is compiled once.
    """

    def run(variables, batch, key, at):
        view = viewed(variables)._replace(step=at)
        keys = jax.random.split(key, len(batch["x"]))
        params = {"params": variables.params["net"]["network"]}
        return {
            "evaluate": vae().evaluate(variables, batch, key),
            "loss": vae().loss(view, batch, key),
            "annealed": vae(cost=ANNEALED).loss(view, batch, key),
            "groups": ladder().apply(params, batch["x"], keys)[1].T,  # [B, J]
            "codes": vae().encode(variables, batch),
        }

    run = jax.jit(run)
    return lambda key, at=0: run(variables(), BATCH, jax.random.key(key), jnp.int32(at))


def test_the_bound_is_the_distortion_and_the_kl_of_every_group():
    found = computed()(3)
    kl, found = found["groups"], found["evaluate"]
    assert kl.shape == (8, GROUPS)
    assert vae().groups == GROUPS
    assert (kl.mean(0) > 0.01).all()
    np.testing.assert_allclose(found["kl"], kl.sum(1), rtol=1e-5)
    np.testing.assert_allclose(found["neg_elbo"], found["kl"] + found["distortion"], rtol=1e-5)
    bits = found["neg_elbo"] / 4 / np.log(2) + np.log2(127.5)
    np.testing.assert_allclose(found["bits_per_dim"], bits, rtol=1e-5)


def test_the_loss_is_the_bounds_mean():
    found = computed()(3)
    (value, (metrics, extra)), found = found["loss"], found["evaluate"]
    np.testing.assert_allclose(value, found["neg_elbo"].mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["neg_elbo"], found["neg_elbo"].mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["kl"], found["kl"].mean(), rtol=1e-5)
    assert extra == {}


def test_what_the_kl_costs_follows_the_runs_steps_and_is_asked_of_each_group():
    for at, weight in ((0, 0.0), (1, 0.5), (2, 1.0), (9, 2.0)):
        found = computed()(0, at)
        value, (metrics, _) = found["annealed"]
        expected = found["loss"][0] + (weight - 1) * metrics["kl"]
        np.testing.assert_allclose(value, expected, rtol=1e-4)
    kl = np.asarray(found["groups"]).mean(0)
    floor = float(kl.mean())  # between the smallest and the next
    made = vae(cost=objectives.kl_cost("constant", free_bits=floor))
    free, _ = jax.jit(made.loss)(viewed(variables()), BATCH, jax.random.key(0))
    assert (kl < floor).sum() == 1
    expected = np.maximum(kl, floor).sum() - kl.sum()
    np.testing.assert_allclose(free - found["loss"][0], expected, rtol=1e-3)


def test_eight_devices_see_the_loss_of_one():
    value_and_grad = jax.value_and_grad(
        lambda params, batch: vae().loss(viewed(Variables(params, {})), batch, jax.random.key(0)),
        has_aux=True,
    )

    def run(devices):
        mesh = make_mesh(jax.devices()[:devices])
        batch = put(mesh, {"x": np.asarray(BATCH["x"])})
        (value, (metrics, _)), grads = jax.jit(value_and_grad)(variables().params, batch)
        return value, metrics, grads

    for one, eight in zip(toys.arrays(run(1)), toys.arrays(run(8)), strict=True):
        np.testing.assert_allclose(one, eight, rtol=2e-5, atol=2e-5)


def drawn(of, given, devices=8, count=16):
    """Samples [count, 2, 2, 1] by a driver on so many devices."""
    mesh = make_mesh(jax.devices()[:devices])
    return np.concatenate(list(draw(of, given, mesh, seed=0, count=count, batch_size=count)))


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_a_sample_depends_on_its_key_alone_and_not_on_devices(name):
    one, eight = (drawn(driver(name), variables(name), *how) for how in ((1, 4), (8, 16)))
    assert eight.shape == (16, *SHAPE)
    np.testing.assert_allclose(one, eight[:4], atol=1e-5)
    np.testing.assert_array_equal(to_uint8(one), to_uint8(eight[:4]))
    assert len(np.unique(eight.reshape(16, -1), axis=0)) == 16


def test_the_temperature_is_of_the_latents():
    params = variables().params
    # Pixels would add noise of their own: one with a tiny deviation.
    still = Variables({"net": {**params["net"], "log_sigma": jnp.float32(-20.0)}}, {})
    cold, warm = (drawn(of, still) for of in (driver(temperature=0.0), driver()))
    assert cold.std(0).max() < 0.02
    assert warm.std(0).max() > 0.1


def test_samples_of_a_mixture_are_bytes():
    images = drawn(driver("mixture"), variables("mixture"))
    levels = (np.asarray(images, np.float64) + 1) * 127.5
    np.testing.assert_allclose(levels, levels.round(), atol=1e-4)
    assert levels.min() >= 0
    assert levels.max() <= 255


def test_reconstructions_are_of_all_groups_and_of_the_upper_ones():
    def run(variables, batch, key):
        params = {"params": variables.params["net"]["network"]}
        keys = jax.random.split(key, len(batch["x"]))
        temperature = hierarchical.FILL_TEMPERATURE
        outputs = {
            name: ladder().apply(params, batch["x"], keys, n, temperature, method="reconstruct")
            for name, n in {"reconstruction": GROUPS, "groups=1": 1}.items()
        }
        return vae().reconstruct(variables, batch, key), outputs

    pairs, outputs = jax.jit(run)(variables(), BATCH, jax.random.key(4))
    assert pairs.keys() == outputs.keys()
    for name, (given, image) in pairs.items():
        np.testing.assert_array_equal(given, BATCH["x"])
        np.testing.assert_allclose(image, jnp.clip(outputs[name], -1, 1), rtol=1e-4, atol=1e-5)
    assert np.abs(pairs["reconstruction"][1] - pairs["groups=1"][1]).max() > 1e-2


def test_codes_are_the_kl_of_each_group():
    codes = computed()(3)["codes"]["kl"]  # with the same draw whatever the key
    np.testing.assert_allclose(codes, computed()(0)["groups"], rtol=1e-4, atol=1e-6)
    assert vae().family().codec.decode is None


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
    config = toys.config("one", {"optimizer": toys.optimizer("adam", learning_rate=0.02)})
    plan = toys.recipe_of(vae().family(), config)
    state = jax.jit(functools.partial(step.init_state, plan))(*streams.init(0))
    run = jax.jit(lambda state, batch: step.train_step(plan, (0,), state, {}, batch))
    shades = np.linspace(20, 230, 8, dtype=np.uint8)  # all that differs is the brightness
    batch = {"x": np.broadcast_to(shades[None, :, None, None, None], (1, 8, *SHAPE))}
    values = []
    for _ in range(100):
        state, metrics = run(state, batch)
        values.append(float(metrics["net/neg_elbo"]))
    assert np.mean(values[-5:]) < np.mean(values[:5]) - 1
    assert int(state.skipped) == 0
    assert int(state.step) == 100


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
    likelihood = config.vae.likelihood
    assert (likelihood.name, likelihood.components) == ("logistic_mixture", 10)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("noise", {"kind": "gaussian"}),
        ("importance", {"samples": 5}),
        ("binarise", "dynamic"),
        ("codebook", {"size": 8}),
        ("conditional", True),
        ("perceptual", {"network": "vgg16"}),
        ("adversary", {"weight": 0.5}),
    ],
)
def test_a_setting_that_a_ladder_cannot_follow_is_refused(key, value):
    config = hvae_cifar.get_config("smoke")
    with config.unlocked():
        config.vae[key] = value
    with pytest.raises(ValueError, match=rf"config\.vae has no key '{key}'"):
        build.build(config, specs.images((32, 32, 3), 10))


def test_a_network_of_one_group_is_refused():
    config = hvae_cifar.get_config("smoke")
    config.network.name = "mlp"
    with pytest.raises(ValueError, match=r"network\.name is one of ladder, not 'mlp'"):
        build.build(config, specs.images((32, 32, 3), 10))
