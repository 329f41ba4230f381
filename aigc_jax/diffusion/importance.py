"""Times drawn the more often the larger their losses are, each of which then counts for less.

Nichol & Dhariwal 2021, "Improved Denoising Diffusion Probabilistic Models" (arXiv:2102.09672),
section 3.3: the terms of the bound differ by orders of magnitude, and its mean over times drawn
evenly is a noisy one. Drawn with probabilities p_t ~ sqrt(E[L_t^2]), and divided by T p_t, it is
the same mean with the least variance.
"""

import jax
import jax.numpy as jnp

from aigc_jax.diffusion.model import Diffusion
from aigc_jax.family import Batch, Extra, LossValue, Params, View

KEPT = 10  # losses of each time, the latest
UNIFORM = 0.001  # the share of the times that is drawn evenly, so that none is forgotten


class ImportanceSampled(Diffusion):
    """A `Diffusion` over T times whose training draws them by the second moment of their losses.

    `extra` holds the history: "losses", float32 [T, KEPT], a ring for each time, and "count",
    int32 [T], how many of a time there were, as far as it matters. It is of the whole batch, so
    one and the same on all devices, and a skipped step leaves it as it was. Evaluation draws times
    evenly.
    """

    def init(self, key: jax.Array) -> tuple[Params, Extra]:
        """Parameters of the network, and a history without losses."""
        return super().init(key)[0], history(self.process.total)

    def loss(self, view: View, batch: Batch, key: jax.Array) -> LossValue:
        """An unbiased estimate of the mean objective over all times."""
        time_key, *keys = jax.random.split(key, 5)
        p = probabilities(view.extra)
        t = jax.random.choice(time_key, len(p), (len(batch["x"]),), p=p)
        each = self.losses(view, batch, t.astype(jnp.float32), keys)
        new = recorded(view.extra, t, jax.lax.stop_gradient(each))
        return jnp.mean(each / (len(p) * p[t])), ({}, new)


def history(total: int) -> Extra:
    """The history of T times before the first step."""
    return {"losses": jnp.zeros((total, KEPT)), "count": jnp.zeros((total,), jnp.int32)}


def probabilities(history: Extra) -> jax.Array:
    """p_t, float32 [T]: all the same until `KEPT` losses of every time are there."""
    moment = jnp.sqrt(jnp.mean(history["losses"] ** 2, axis=1))
    total = len(moment)
    # Where all losses are 0 no probabilities matter, but they must be numbers.
    share = moment / jnp.maximum(jnp.sum(moment), jnp.finfo(moment.dtype).tiny)
    full = jnp.all(history["count"] >= KEPT)
    return jnp.where(full, (1 - UNIFORM) * share + UNIFORM / total, 1 / total)


def recorded(history: Extra, t: jax.Array, losses: jax.Array) -> Extra:
    """The history and the losses [B] at times t, int [B], each in place of its time's oldest."""
    same = t[:, None] == t[None, :]
    before, after = (jnp.sum(half, axis=1) for half in (jnp.tril(same, -1), jnp.triu(same, 1)))
    place = (history["count"][t] + before) % KEPT
    # Of more than KEPT of one time the last: no place is written twice, in an order that is no
    # one's to choose.
    row = jnp.where(after < KEPT, t, len(history["losses"]))
    count = history["count"].at[t].add(1)
    return {
        "losses": history["losses"].at[row, place].set(losses, mode="drop"),
        "count": jnp.where(count < KEPT, count, KEPT + count % KEPT),  # the same place in the ring
    }
