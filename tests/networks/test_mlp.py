"""The fully connected network of points, and what its first weights let it learn."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from aigc_jax.data import mixtures
from aigc_jax.diffusion import precondition
from aigc_jax.diffusion.process import EDM
from aigc_jax.networks.mlp import MLP


@pytest.mark.parametrize("name", ["ring", "grid"])
def test_a_mixture_is_learned_whose_linear_part_edm_has_taken_out(name):
    """No linear map is better than zeros there: a network that starts as one stays so."""
    x0 = jnp.asarray(mixtures.arrays(name, "test"))
    spread = float(x0.std())
    prediction = precondition.edm(spread)
    network = MLP(2, width=64, depth=2)
    level = EDM().level(jnp.full(256, 0.15 * spread))

    def loss(params, key):
        keys = jax.random.split(key)
        batch = jax.random.choice(keys[0], x0, (256,))
        eps = jax.random.normal(keys[1], batch.shape)
        given = prediction.given(batch + 0.15 * spread * eps, level)
        output = network.apply({"params": params}, given, jnp.log(level.t) / 4)
        return jnp.mean((output - prediction.target_of(batch, eps, level)) ** 2)

    rule = optax.adam(5e-3)

    def step(carry, key):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params, key)
        updates, state = rule.update(grads, state)
        return (optax.apply_updates(params, updates), state), value

    params = network.init(jax.random.key(0), jnp.zeros((1, 2)), jnp.zeros(1))["params"]
    keys = jax.random.split(jax.random.key(1), 400)
    losses = np.asarray(jax.jit(lambda p: jax.lax.scan(step, (p, rule.init(p)), keys)[1])(params))
    assert losses[-50:].mean() < 0.8
