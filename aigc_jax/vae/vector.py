"""VQ-VAE as a family: each vector of an encoder's map becomes the nearest of K codes.

van den Oord et al. 2017 (arXiv:1711.00937), eq. 3, with the codebook of its appendix A.1: it
follows the encoder by moving averages, in `extra`, and has no gradient.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.family import Family, Phase
from aigc_jax.vae import likelihood as likelihoods
from aigc_jax.vae import objectives, quantize

PRIORS = ("frequency", "uniform")


def vq(
    network: Any,
    image_shape: tuple[int, int, int],
    likelihood: likelihoods.Likelihood,
    *,
    codes: int,
    decay: float,
    commitment: float,
    restart: float,
    prior: str,
) -> Family:
    """An autoencoder whose code is a map of indices into a codebook of `codes` vectors.

    Samples decode indices drawn one by one, as if the places of a map had nothing to do with each
    other. They look like it: good ones need a prior learned over whole maps, which is not here.

    Args:
      network: module with `encode(x, label) -> (z, unused)`, `decode(z_q, label) -> outputs`.
      image_shape: (H, W, C).
      likelihood: what `outputs` say of an image.
      decay: of the codebook's moving averages, a step.
      commitment: what a unit of |z - z_q|^2 costs, in nats; both are summed over the image.
      restart: codes that are used less often than this in a batch, on average, start anew at a
        vector of the batch; 0 lets them be.
      prior: of the indices of samples: "uniform", or "frequency", as often as in training.
    """
    if codes < 2:
        raise ValueError(f"vae.codes is at least 2, not {codes}")
    if not 0 <= decay < 1:
        raise ValueError(f"vae.code_decay must lie in [0, 1), not {decay}")
    if commitment <= 0:  # or nothing would hold the encoder near its codes
        raise ValueError(f"vae.commitment must be above 0, not {commitment}")
    if restart < 0:
        raise ValueError(f"vae.restart is at least 0, not {restart}")
    if prior not in PRIORS:
        raise ValueError(f"sampling.prior is one of {', '.join(PRIORS)}, not {prior!r}")
    num_classes = network.num_classes
    dims = int(np.prod(image_shape))
    *places, width = network.latent_shape
    rate = math.prod(places) * math.log(codes)  # nats: the KL to the uniform prior, section 3.2

    def init(key: jax.Array) -> tuple[dict, dict]:
        params = dict(network.init(key, jnp.zeros((1, *image_shape)))["params"])
        scalars = {name: jnp.float32(value) for name, value in likelihood.parameters.items()}
        codebook = quantize.init(jax.random.fold_in(key, 1), codes, width)
        # A copy: a donated state must not hold one buffer twice.
        return {"net": {"network": params, **scalars}}, jax.tree.map(jnp.copy, codebook)

    def apply(params: Any, method: Callable, *args: Any) -> Any:
        return network.apply({"params": params["net"]["network"]}, *args, method=method)

    def label_of(batch: Any) -> Any:
        return batch["label"] if num_classes else None

    def encode(params: Any, extra: Any, batch: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        """z and z_q [B, *places, width] and the index int [B, *places]."""
        z = apply(params, network.encode, batch["image"], label_of(batch))[0]
        return z, *quantize.quantize(z, extra["codebook"])

    def terms(params: Any, batch: Any, z: jax.Array, z_q: jax.Array) -> tuple:
        """log p(x|z_q) and |z - z_q|^2, each [B]."""
        outputs = apply(params, network.decode, z_q, label_of(batch))
        scalars = {name: params["net"][name] for name in likelihood.parameters}
        log_p = likelihood.log_prob(outputs, batch["image"], **scalars)
        return log_p, quantize.commitment(z, z_q)

    def loss(params: Any, extra: Any, batch: Any, key: jax.Array) -> tuple:
        z, z_q, index = encode(params, extra, batch)
        log_p, distance = terms(params, batch, z, z_q)
        metrics = {
            "distortion": -jnp.mean(log_p),
            "commitment": jnp.mean(distance),
            "perplexity": quantize.perplexity(quantize.usage(index, codes)),
        }
        moved = quantize.update(extra, z, index, decay)
        moved = quantize.restart(moved, z, key, restart)
        return jnp.mean(commitment * distance - log_p), (metrics, moved)

    def evaluate(params: Any, extra: Any, batch: Any, key: jax.Array) -> dict[str, jax.Array]:
        """{"neg_elbo", "kl", "distortion": [B]} in nats, bits/dim, and |z - z_q|^2 "commitment".

        The bound is that of the uniform prior over indices, to which the KL is a constant; a
        learned one would lower it. Bits/dim are of bytes, so with likelihood "bernoulli" only for
        images of black and white.
        """
        z, z_q, _ = encode(params, extra, batch)
        log_p, distance = terms(params, batch, z, z_q)
        return {
            "neg_elbo": rate - log_p,
            "kl": jnp.full_like(log_p, rate),
            "distortion": -log_p,
            "commitment": distance,
            "bits_per_dim": objectives.bits_per_dim(log_p - rate, dims, likelihood.bins),
        }

    def codes_of(params: Any, extra: Any, batch: Any) -> dict[str, jax.Array]:
        return {"index": encode(params, extra, batch)[2]}

    def decode(params: Any, extra: Any, z: jax.Array, label: Any) -> jax.Array:
        """Images of indices int [n, *places], or of vectors [n, *places, width], by their codes."""
        if jnp.issubdtype(z.dtype, jnp.integer):
            z_q = extra["codebook"][z]
        else:
            z_q, _ = quantize.quantize(z, extra["codebook"])
        return likelihood.mean(apply(params, network.decode, z_q, label))

    def restore(params: Any, extra: Any, batch: Any, key: jax.Array) -> dict[str, tuple]:
        x, (_, z_q, _) = batch["image"], encode(params, extra, batch)
        outputs = apply(params, network.decode, z_q, label_of(batch))
        return {"reconstruction": (x, likelihood.mean(outputs))}

    @jax.jit
    def sample(params: Any, extra: Any, keys: jax.Array, cond: Mapping[str, Any]) -> jax.Array:
        counts = extra["counts"] if prior == "frequency" else jnp.ones(codes)
        draw = partial(jax.random.categorical, logits=jnp.log(counts), shape=tuple(places))
        index = jax.vmap(draw)(keys)
        return decode(params, extra, index, cond.get("label") if num_classes else None)

    return Family(
        init,
        (Phase("net", loss),),
        sample,
        evaluate,
        averaged=("net",),
        num_classes=num_classes,
        restore=restore,
        codes=codes_of,
        decode=decode,
        diagnose=partial(diagnose, size=codes),
        carried=("codebook", "counts", "sums"),
    )


def diagnose(codes: Mapping[str, np.ndarray], size: int) -> tuple[dict[str, float], str]:
    """How many of `size` codes N images' {"index": [N, ...]} use; see `Family.diagnose`."""
    counts = np.bincount(np.asarray(codes["index"]).reshape(-1), minlength=size)
    used = int((counts > 0).sum())
    metrics = {
        "perplexity": float(quantize.perplexity(jnp.asarray(counts, jnp.float32))),
        "codes_used": float(used),
    }
    if used < 0.1 * size:
        return metrics, (
            f"Codebook collapse: {used} of {size} codes are used. Restart dead codes "
            "(vae.restart) or take fewer (vae.codes)."
        )
    return metrics, ""
