"""What tests of networks share: parameters that hide nothing, and programs compiled once."""

import functools

import jax
import numpy as np


def random_like(params, seed=2):
    """Noise in every tensor: zero-initialised ones hide what is before them."""
    rng = np.random.default_rng(seed)

    def draw(path, a):
        noise = rng.normal(size=a.shape).astype(np.float32)
        if a.ndim == 1:
            return 0.1 * noise + (path[-1].key == "scale")
        return noise / np.sqrt(a.size / a.shape[-1], dtype=np.float32)

    return jax.tree_util.tree_map_with_path(draw, params)


@functools.cache
def program(net, **static):
    """A network's `apply`, compiled once for all tests."""
    return jax.jit(functools.partial(net.apply, **static))


def apply(net, params, *args, rngs=None, train=None, **inputs):
    static = {} if train is None else {"train": train}
    return program(net, **static)({"params": params}, *args, rngs=rngs, **inputs)


def size_of(params):
    return sum(a.size for a in jax.tree.leaves(params))


def without_gradient(net, params, *args, **inputs):
    """The parameters, by path, that a loss of the network's output does not reach."""

    def loss(params):
        return (net.apply({"params": params}, *args, **inputs) ** 2).mean()

    grads = jax.jit(jax.grad(loss))(params)
    return [
        jax.tree_util.keystr(path)
        for path, g in jax.tree_util.tree_leaves_with_path(grads)
        if not np.abs(g).max() > 0
    ]
