"""Hierarchical variational autoencoders as a family: groups of latents, each given those above.

Child 2020 (arXiv:2011.10650), sec. 2: log p(x) >= E log p(x|z) - sum_j KL(q(z_j|z_<j, x) ||
p(z_j|z_<j)), each KL in closed form given the z_<j that were drawn. J groups, the first at the top.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.family import Family, Phase
from aigc_jax.networks.ladder import parse
from aigc_jax.vae import likelihood as likelihoods
from aigc_jax.vae import objectives

REST = 0.1  # temperature of what the prior fills in below given groups (openai/vdvae:train.py)
ACTIVE = 0.01  # nats of KL of a group that is used


def ladder(
    network: Any,
    image_shape: tuple[int, int, int],
    likelihood: likelihoods.Likelihood,
    cost: objectives.Cost,
    *,
    temperature: float,
) -> Family:
    """A VAE with as many groups of latents as `network.decoder` spells blocks.

    Args:
      network: a `Ladder`.
      image_shape: (H, W, C).
      likelihood: what the network's outputs say of an image.
      cost: (kl [B, J], step) -> what the KL costs in training, [B]: a group is what is called a
        dimension there.
      temperature: of the prior's deviations in samples.
    """
    dims = int(np.prod(image_shape))
    groups = len(parse(network.decoder))
    few = max(1, groups // 4)

    def init(key: jax.Array) -> tuple[dict, dict]:
        x = jnp.zeros((1, *image_shape))
        params = dict(network.init(key, x, jax.random.split(key, 1))["params"])
        scalars = {name: jnp.float32(value) for name, value in likelihood.parameters.items()}
        return {"net": {"network": params, **scalars}}, {"step": jnp.zeros((), jnp.int32)}

    def apply(params: Any, method: Callable, *args: Any) -> Any:
        return network.apply({"params": params["net"]["network"]}, *args, method=method)

    def scalars_of(params: Any) -> dict[str, jax.Array]:
        return {name: params["net"][name] for name in likelihood.parameters}

    def bound(params: Any, x: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """log p(x|z) [B] and the KL [B, J], from one z."""
        outputs, kl = apply(params, network.__call__, x, jax.random.split(key, len(x)))
        return likelihood.log_prob(outputs, x, **scalars_of(params)), kl.T

    def loss(params: Any, extra: Any, batch: Any, key: jax.Array) -> tuple:
        log_p, kl = bound(params, batch["image"], key)
        value = jnp.mean(cost(kl, extra["step"]) - log_p)
        metrics = {
            "neg_elbo": -jnp.mean(objectives.elbo(log_p, kl)),
            "kl": jnp.mean(objectives.per_example(kl)),
        }
        return value, (metrics, {**extra, "step": extra["step"] + 1})

    def evaluate(params: Any, extra: Any, batch: Any, key: jax.Array) -> dict[str, jax.Array]:
        """{"neg_elbo", "kl", "distortion": [B]} in nats, from one z, and bits/dim of the first.

        The last is of bytes, so with likelihood "bernoulli" only for images of black and white.
        """
        log_p, kl = bound(params, batch["image"], key)
        elbo = objectives.elbo(log_p, kl)
        return {
            "neg_elbo": -elbo,
            "kl": objectives.per_example(kl),
            "distortion": -log_p,
            "bits_per_dim": objectives.bits_per_dim(elbo, dims, likelihood.bins),
        }

    @jax.jit
    def sample(params: Any, extra: Any, keys: jax.Array, cond: Mapping[str, Any]) -> jax.Array:
        """Images drawn from p(x|z), as by VDVAE: a mixture's mean is a colour none of it has."""
        keys = jax.vmap(jax.random.split)(keys)
        outputs = apply(params, network.generate, keys[:, 0], temperature)
        return jax.vmap(partial(likelihood.sample, **scalars_of(params)))(outputs, keys[:, 1])

    def restore(params: Any, extra: Any, batch: Any, key: jax.Array) -> dict[str, tuple]:
        """The mean image of a z of all groups, and of the upper quarter of them.

        What these leave open the prior fills in, near its means.
        """
        x = batch["image"]
        keys = jax.random.split(key, len(x))

        def restored(given: int) -> jax.Array:
            return likelihood.mean(apply(params, network.reconstruct, x, keys, given, REST))

        return {"reconstruction": (x, restored(groups)), f"groups={few}": (x, restored(few))}

    def codes(params: Any, extra: Any, batch: Any) -> dict[str, jax.Array]:
        """{"kl": [B, J]} nats, from one z: always the same one of an image at that place."""
        return {"kl": bound(params, batch["image"], jax.random.key(0))[1]}

    return Family(
        init,
        (Phase("net", loss),),
        sample,
        evaluate,
        averaged=("net",),
        restore=restore,
        codes=codes,
        diagnose=diagnose,
    )


def diagnose(codes: Mapping[str, np.ndarray]) -> tuple[dict[str, float], str]:
    """Which groups are used, of N images' {"kl": [N, J]}; see `Family.diagnose`.

    A group counts as active where the mean of its KL is above 0.01 nats.
    """
    kl = np.asarray(codes["kl"], np.float64).mean(0)
    n, total = int((kl > ACTIVE).sum()), float(kl.sum())
    metrics = {
        "active_groups": float(n),
        "largest_kl": float(kl.max()),
        "largest_kl_group": float(kl.argmax()),  # 0 is the top
        "top_kl": float(kl[0]),
    }
    cure = "Lower beta, anneal it from 0, or give free bits."
    if not np.isfinite(total):
        return metrics, "The KL is not finite: a log deviation or a mean has run away."
    if n == 0:
        return metrics, (
            f"Posterior collapse: none of {len(kl)} groups of latents is active and the KL is "
            f"{total:.3g} nats, so the decoder ignores them all. {cure}"
        )
    if n < 0.5 * len(kl):
        return metrics, f"Only {n} of {len(kl)} groups of latents are active. {cure}"
    return metrics, ""
