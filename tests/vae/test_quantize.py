"""Vector quantisation against brute force, closed forms and pythae's codebook."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.vae import quantize

PARTS = {"codebook", "counts", "sums"}


def vectors(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("offset", [0.0, 1000.0])  # far from 0, digits cancel
def test_the_code_is_the_nearest_one(offset):
    z, codebook = vectors(2, 5, 5, 8) + offset, vectors(40, 8, seed=1) + offset
    z_q, index = jax.jit(quantize.quantize)(z, codebook)
    distance = np.linalg.norm(z.astype(float)[..., None, :] - codebook.astype(float), axis=-1)
    np.testing.assert_array_equal(index, distance.argmin(axis=-1))
    np.testing.assert_array_equal(z_q, codebook[index])


def test_gradients_go_straight_to_the_encoder():
    z, codebook, upstream = vectors(6, 4), vectors(10, 4, seed=1), vectors(6, 4, seed=2)

    def loss(z, codebook):
        return jnp.sum(upstream * quantize.quantize(z, codebook)[0])

    to_z, to_codebook = jax.grad(loss, argnums=(0, 1))(z, codebook)
    np.testing.assert_array_equal(to_z, upstream)
    np.testing.assert_array_equal(to_codebook, 0)


def test_commitment_is_summed_and_moves_only_the_encoder():
    z, codebook = vectors(3, 2, 2, 4), vectors(10, 4, seed=1)
    z_q, index = quantize.quantize(z, codebook)
    found = quantize.commitment(z, z_q)
    np.testing.assert_allclose(found, ((z - codebook[index]) ** 2).sum(axis=(1, 2, 3)), rtol=1e-6)

    def loss(z):
        return jnp.sum(quantize.commitment(z, quantize.quantize(z, codebook)[0]))

    np.testing.assert_allclose(jax.grad(loss)(z), 2 * (z - codebook[index]), rtol=1e-5)
    through = jax.grad(lambda z_q: jnp.sum(quantize.commitment(z, z_q)))(z_q)
    np.testing.assert_array_equal(through, 0)


def test_a_new_codebook_is_small_and_agrees_with_its_averages():
    state = quantize.init(jax.random.key(0), 64, 8)
    assert set(state) == PARTS
    assert state["codebook"].shape == (64, 8)
    assert jnp.abs(state["codebook"]).max() <= 1 / 64
    np.testing.assert_array_equal(state["sums"] / state["counts"][:, None], state["codebook"])


def test_an_update_is_the_papers_moving_average():
    state = quantize.init(jax.random.key(0), 5, 3)
    z, index, decay = vectors(2, 4, 4, 3), np.arange(32).reshape(2, 4, 4) % 4, 0.9
    new = jax.jit(quantize.update, static_argnums=3)(state, z, index, decay)
    for code in range(5):
        mine = z[index == code]
        count = 0.9 * 1 + 0.1 * len(mine)
        total = 0.9 * np.asarray(state["sums"][code]) + 0.1 * mine.sum(axis=0)
        np.testing.assert_allclose(new["counts"][code], count, rtol=1e-6)
        np.testing.assert_allclose(new["sums"][code], total, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(new["codebook"][code], total / count, rtol=1e-4, atol=1e-5)


def test_an_unused_code_stays_finite():
    state = quantize.init(jax.random.key(0), 4, 3)
    z, index = vectors(16, 3), np.zeros(16, np.int32)
    step = jax.jit(lambda state: quantize.update(state, z, index, 0.5))
    for _ in range(200):
        state = step(state)
    assert all(np.isfinite(part).all() for part in state.values())
    np.testing.assert_allclose(state["counts"], [16, 0, 0, 0], atol=1e-5)
    np.testing.assert_allclose(state["codebook"][0], z.mean(axis=0), rtol=1e-3, atol=1e-4)


def test_an_update_is_pythaes():
    pythae = pytest.importorskip("pythae.models.vq_vae.vq_vae_utils")
    torch = pytest.importorskip("torch")
    from types import SimpleNamespace

    theirs = pythae.QuantizerEMA(
        SimpleNamespace(embedding_dim=3, num_embeddings=6, commitment_loss_factor=0.25, decay=0.95)
    )
    theirs.embeddings.copy_(torch.tensor(vectors(6, 3, seed=1)))
    theirs.cluster_size.fill_(1.0)
    theirs.ema_embed.copy_(theirs.embeddings)
    codebook = jnp.asarray(vectors(6, 3, seed=1))
    state = {"codebook": codebook, "counts": jnp.ones(6), "sums": codebook}
    z = vectors(4, 5, 5, 3)
    out = theirs(torch.tensor(z))
    z_q, index = quantize.quantize(z, codebook)
    state = quantize.update(state, z, index, 0.95)
    np.testing.assert_array_equal(index, out.quantized_indices[:, 0])
    np.testing.assert_allclose(z_q, out.quantized_vector.permute(0, 2, 3, 1), rtol=1e-6)
    np.testing.assert_allclose(state["codebook"], theirs.embeddings, rtol=1e-5, atol=1e-6)
    # Theirs is the mean over all elements.
    found = 0.25 * quantize.commitment(z, z_q).sum() / z.size
    np.testing.assert_allclose(found, out.loss, rtol=1e-5)


def test_sharded_over_devices_an_update_sees_the_whole_batch():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    state = quantize.init(jax.random.key(0), 16, 4)
    z = vectors(32, 3, 4)

    @jax.jit
    def step(z):
        _, index = quantize.quantize(z, state["codebook"])
        return quantize.restart(quantize.update(state, z, index, 0.9), z, jax.random.key(1), 0.95)

    alone, spread = step(z), step(jax.device_put(z, sharded))
    for part in PARTS:
        np.testing.assert_allclose(alone[part], spread[part], rtol=1e-5, atol=1e-6)


def test_dead_codes_take_encoder_outputs_and_live_ones_stay():
    state = quantize.init(jax.random.key(0), 6, 3)
    state["counts"] = jnp.array([0.0, 2.0, 0.4, 1.0, 0.99, 5.0])
    z = vectors(2, 4, 3)
    new = jax.jit(quantize.restart)(state, z, jax.random.key(1), 1.0)
    dead = np.array([True, False, True, False, True, False])
    for part in PARTS:
        np.testing.assert_array_equal(new[part][~dead], state[part][~dead])
    taken = np.asarray(new["codebook"])[dead]
    assert (taken[:, None] == z.reshape(1, -1, 3)).all(axis=-1).any(axis=1).all()
    np.testing.assert_array_equal(new["counts"][dead], 1.0)
    np.testing.assert_array_equal(new["sums"][dead], new["codebook"][dead])
    other = quantize.restart(state, z, jax.random.key(2), 1.0)
    assert (other["codebook"] != new["codebook"]).any()


def test_restarts_let_a_small_codebook_reach_far_clusters():
    centres = 10 * np.eye(8, dtype=np.float32)
    z = np.repeat(centres, 16, axis=0) + 0.1 * vectors(128, 8)

    @jax.jit
    def step(state, key):
        _, index = quantize.quantize(z, state["codebook"])
        state = quantize.update(state, z, index, 0.8)
        return quantize.restart(state, z, key, 1.0), quantize.usage(index, 16)

    state = quantize.init(jax.random.key(0), 16, 8)
    for i in range(40):
        state, counts = step(state, jax.random.key(i))
    z_q, _ = quantize.quantize(z, state["codebook"])
    assert quantize.commitment(z, z_q).max() < 1
    assert counts.sum() == 128
    assert quantize.perplexity(counts) > 7.9


def test_perplexity_counts_the_codes_in_use():
    np.testing.assert_allclose(quantize.perplexity(jnp.full(512, 3.0)), 512, rtol=1e-5)
    assert quantize.perplexity(jnp.array([0, 7, 0])) == 1
    assert quantize.perplexity(jnp.zeros(4)) == 1
    p = np.array([0.5, 0.25, 0.25])
    np.testing.assert_allclose(quantize.perplexity(8 * p), 2**1.5, rtol=1e-6)
    index = jnp.array([[0, 2], [2, 2]])
    np.testing.assert_array_equal(quantize.usage(index, 4), [1, 0, 3, 0])
