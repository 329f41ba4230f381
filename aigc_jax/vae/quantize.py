"""Vector quantisation: each vector of a code becomes one of the K entries of a codebook.

van den Oord et al. 2017 (arXiv:1711.00937). The codebook follows the encoder by moving averages
(appendix A.1, the form that Razavi et al. 2019, arXiv:1906.00446, use), so it has no gradient and
its state belongs in a family's `extra`.
"""

import jax
import jax.numpy as jnp

State = dict[str, jax.Array]  # {"codebook": [K, D], "counts": [K], "sums": [K, D]}

EPSILON = 1e-5  # counted for every entry, so that an unused one has a finite mean


def init(key: jax.Array, size: int, width: int) -> State:
    """`size` entries of `width`, uniform within 1 / size of 0, each as if used once."""
    codebook = jax.random.uniform(key, (size, width), minval=-1 / size, maxval=1 / size)
    return {"codebook": codebook, "counts": jnp.ones((size,)), "sums": codebook}


def quantize(z: jax.Array, codebook: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The entry nearest to each vector of `z` [..., D]: (z_q [..., D], index int [...]).

    Eq. 1 and 2. The value of z_q is the entry's; its gradient goes to z unchanged (straight
    through, section 3.2) and not to the codebook.
    """
    # |z - c|^2 less |z|^2, both taken from the codebook's mean: far from 0 the digits would cancel.
    # At full precision, because accelerators multiply with few digits by default.
    codebook = jax.lax.stop_gradient(codebook)
    centre = jnp.mean(codebook, axis=0)
    c, flat = codebook - centre[None], _vectors(jax.lax.stop_gradient(z)) - centre[None]
    distance = jnp.sum(c**2, axis=1)[None] - 2 * jnp.matmul(flat, c.T, precision="highest")
    index = jnp.argmin(distance, axis=1).reshape(z.shape[:-1])
    return codebook[index] + (z - jax.lax.stop_gradient(z)), index


def commitment(z: jax.Array, z_q: jax.Array) -> jax.Array:
    """|z - sg(z_q)|^2 of each example [B, ..., D], summed, [B]: eq. 3's last term without beta.

    Summed as the likelihood is, in its units for a Gaussian of sigma^2 = 1/2; the paper's own code
    averages both.
    """
    squared = (z - jax.lax.stop_gradient(z_q)) ** 2
    return jnp.sum(squared.reshape(len(z), -1), axis=1)


def update(state: State, z: jax.Array, index: jax.Array, decay: float) -> State:
    """One step of the moving averages from encoder outputs `z` [..., D] and their entries' indices.

    N_i <- decay N_i + (1 - decay) n_i, m_i likewise of the sums, e_i = m_i / N_i (appendix A.1),
    with Laplace's smoothing of N_i. Under `jit` with a sharded batch the sums are over all of it.
    """
    z = _vectors(jax.lax.stop_gradient(z))
    chosen = jax.nn.one_hot(index.reshape(-1), len(state["counts"]), dtype=z.dtype)
    counts = decay * state["counts"] + (1 - decay) * jnp.sum(chosen, axis=0)
    batch_sums = jnp.matmul(chosen.T, z, precision="highest")
    sums = decay * state["sums"] + (1 - decay) * batch_sums
    total = jnp.sum(counts)
    smoothed = (counts + EPSILON) / (total + len(counts) * EPSILON) * total
    return {"codebook": sums / smoothed[:, None], "counts": counts, "sums": sums}


def restart(state: State, z: jax.Array, key: jax.Array, threshold: float) -> State:
    """Entries used less than `threshold` times become random vectors of `z` [..., D].

    Such an entry starts with a count of `threshold` (as Jukebox does, arXiv:2005.00341). Counts
    are per batch: their mean is the number of vectors in a batch over K.
    """
    z = _vectors(jax.lax.stop_gradient(z))
    dead = state["counts"] < threshold
    taken = z[jax.random.randint(key, dead.shape, 0, len(z))]
    return {
        "codebook": jnp.where(dead[:, None], taken, state["codebook"]),
        "counts": jnp.where(dead, threshold, state["counts"]),
        "sums": jnp.where(dead[:, None], threshold * taken, state["sums"]),
    }


def usage(index: jax.Array, size: int) -> jax.Array:
    """How often each of `size` entries is in `index`, [K]."""
    return jnp.bincount(index.reshape(-1), length=size)


def perplexity(counts: jax.Array) -> jax.Array:
    """exp of the entropy of entries' frequencies [K]: K if all are used alike, 1 if only one is."""
    p = counts / jnp.maximum(jnp.sum(counts), 1e-12)
    return jnp.exp(jnp.sum(jax.scipy.special.entr(p)))


def _vectors(z: jax.Array) -> jax.Array:
    """[..., D] as float32 [n, D]."""
    return z.reshape(-1, z.shape[-1]).astype(jnp.promote_types(z.dtype, jnp.float32))
