"""Blocks whose activations are computed again: the same numbers from less memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.networks.edm_unet import EDMUNet
from aigc_jax.networks.fourier import FourierUNet
from aigc_jax.networks.gan.r3gan import Discriminator
from aigc_jax.networks.transformer import DiT
from aigc_jax.networks.unet import UNet
from aigc_jax.networks.vae.autoencoder import Residual

SIDE = 8
TINY = {"width": 8, "multipliers": (1, 2), "blocks": 1}
OF_UNETS = {"out_channels": 1, "attention": (4,), "dropout": 0.3, **TINY}
NETWORKS = {
    # Blocks, and attentions: 2 on the way down, 2 in the middle, 4 on the way up.
    "unet": (UNet(groups=4, **OF_UNETS), 8 + 4),
    "fourier_unet": (FourierUNet(groups=4, **OF_UNETS), 8 + 4),
    "edm_unet": (EDMUNet(**OF_UNETS), 8 + 2),
    "dit": (DiT(out_channels=1, depth=3, width=16, heads=2), 3),
    "autoencoder": (Residual(shape=(SIDE, SIDE, 1), groups=4, **TINY), 4 + 1),
    "r3gan": (Discriminator((SIDE, SIDE, 1), widths=(8,), blocks=(2,), cardinality=(2,)), 2),
}


def loss(net):
    """(parameters, x) -> a number that depends on every activation."""
    x = jax.random.normal(jax.random.key(0), (4, SIDE, SIDE, 1))
    of_time = isinstance(net, UNet | EDMUNet | DiT)
    args = (x, jnp.arange(4.0)) if of_time else (x,)
    train = {"train": True} if of_time else {}
    method = Residual.encode if isinstance(net, Residual) else None
    params = jax.eval_shape(lambda: net.init(jax.random.key(1), *args, method=method))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(leaf.dtype), params)

    def of(params):
        rngs = {"dropout": jax.random.key(2)}
        y = net.apply(params, *args, **train, rngs=rngs, method=method)
        return sum(jnp.sin(leaf).sum() for leaf in jax.tree.leaves(y))

    return of, params


def checkpoints(jaxpr) -> int:
    return sum(eqn.primitive.name in ("checkpoint", "remat2", "remat") for eqn in jaxpr.eqns)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_block_of_a_network_is_one(name):
    net, blocks = NETWORKS[name]
    (plain, params), (again, own) = loss(net), loss(net.clone(remat=True))
    assert jax.tree.structure(params) == jax.tree.structure(own)
    assert checkpoints(jax.make_jaxpr(plain)(params).jaxpr) == 0
    assert checkpoints(jax.make_jaxpr(again)(params).jaxpr) == blocks


def test_gradients_are_the_same_with_dropout_too():
    net = NETWORKS["unet"][0].clone(multipliers=(1,), attention=())
    (plain, params), (again, _) = loss(net), loss(net.clone(remat=True))
    programs = [jax.jit(jax.value_and_grad(f)).lower(params).compile() for f in (plain, again)]
    expected, found = (program(params) for program in programs)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected
    )
