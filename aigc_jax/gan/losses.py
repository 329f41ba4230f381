"""What the two players of a GAN minimise, and the penalties that keep the critic smooth.

D(x) is a logit: sigmoid(D) is the probability of "real" where a paper has probabilities. Logits are
[B], or a patch map [B, h, w] or [B, h, w, 1]; every loss is one value per example [B], the mean
over its map. log means nats.

A penalty is returned without any weight: one half is the caller's where a paper has it, as in
(gamma / 2) R1. So is an expectation over the batch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import relu, softplus
from jax.scipy.special import logsumexp

from aigc_jax.checks import Count, NonNegative, OneOf, Positive, one_of

Critic = Callable[[jax.Array], jax.Array]  # examples [B, ...] -> logits, [B] or a map
# Added below the root of a gradient's norm, whose own gradient would be infinite at 0.
NORM_EPS = 1e-12


class Loss(NamedTuple):
    """A game between two players, each of which minimises its own.

    Attributes:
      discriminator, generator: (logits of real, logits of generated examples) -> [B].
      relativistic: whether the generator's loss depends on the logits of real examples too. They
        are paired with generated ones by their position in the batch (and in the map).
    """

    discriminator: Callable[[jax.Array, jax.Array], jax.Array]
    generator: Callable[[jax.Array, jax.Array], jax.Array]
    relativistic: bool = False


def build(name: str, setting: str = "gan.loss") -> Loss:
    """The loss `name`, one of `LOSSES`; ValueError that names the setting for another."""
    one_of(setting, name, LOSSES)
    return LOSSES[name]


def map_mean(values: jax.Array) -> jax.Array:
    """The mean of each example's values, [B, ...] -> [B]."""
    return jnp.mean(values.reshape(len(values), -1), axis=1)


def cross_entropy(real: jax.Array, fake: jax.Array) -> jax.Array:
    """-log sigmoid(D(x)) - log(1 - sigmoid(D(G(z)))), Goodfellow et al. 2014, eq. 1.

    2 log 2 at D = 0. Its minimum over D is 2 log 2 - 2 JSD(data, generated), their theorem 1.
    """
    # log sigmoid(t) = -softplus(-t): finite, with a finite gradient, at any logit.
    return map_mean(softplus(-real)) + map_mean(softplus(fake))


def squares(real: jax.Array, fake: jax.Array) -> jax.Array:
    """((D(x) - 1)^2 + D(G(z))^2) / 2; 1/2 at D = 0."""
    return 0.5 * map_mean((real - 1.0) ** 2) + 0.5 * map_mean(fake**2)


def margins(real: jax.Array, fake: jax.Array) -> jax.Array:
    """max(0, 1 - D(x)) + max(0, 1 + D(G(z))); 2 at D = 0."""
    return map_mean(relu(1.0 - real)) + map_mean(relu(1.0 + fake))


LOSSES = {
    # Goodfellow et al. 2014 (arXiv:1406.2661), eq. 1: G minimises log(1 - sigmoid(D(G(z)))), whose
    # gradient vanishes where D is sure of itself. At D = 0: 2 log 2 and -log 2.
    "minimax": Loss(cross_entropy, lambda real, fake: -map_mean(softplus(fake))),
    # The same paper's section 3: G minimises -log sigmoid(D(G(z))). At D = 0: 2 log 2 and log 2.
    "non_saturating": Loss(cross_entropy, lambda real, fake: map_mean(softplus(-fake))),
    # Mao et al. 2017 (arXiv:1611.04076), eq. 2 with a = 0 and b = c = 1. At D = 0: 1/2 and 1/2.
    "least_squares": Loss(squares, lambda real, fake: 0.5 * map_mean((fake - 1.0) ** 2)),
    # Lim & Ye 2017 (arXiv:1705.02894); Miyato et al. 2018 (arXiv:1802.05957), eq. 16 and 17.
    # At D = 0: 2 and 0.
    "hinge": Loss(margins, lambda real, fake: -map_mean(fake)),
    # Arjovsky et al. 2017 (arXiv:1701.07875), eq. 2, for a critic that a penalty or spectral norm
    # keeps 1-Lipschitz: D's loss is minus its estimate of the distance. At D = 0: 0 and 0.
    "wasserstein": Loss(
        lambda real, fake: map_mean(fake) - map_mean(real),
        lambda real, fake: -map_mean(fake),
    ),
    # Relativistic pairing, Jolicoeur-Martineau 2019 (arXiv:1807.00734), in the form of R3GAN,
    # Huang et al. 2024 (arXiv:2501.05441), with f(t) = -softplus(-t): only differences between a
    # real and a generated example count, so D + c is the same game. At D = 0: log 2 and log 2.
    "relativistic": Loss(
        lambda real, fake: map_mean(softplus(fake - real)),
        lambda real, fake: map_mean(softplus(real - fake)),
        relativistic=True,
    ),
}


def squared_slope(logit: Critic, x: jax.Array) -> jax.Array:
    """|grad_x D(x)|^2 of each example of x [B, ...], [B].

    The gradient is that of the logits' sum over the batch: each example's own where the critic
    treats examples one by one. So batch norm is refused. `minibatch_std` is not: with it the slope
    counts what an example does to its group's logits too, as in published code. A patch map is
    summed as well; the papers' critics put out one number.
    """
    slope = jax.grad(lambda x: jnp.sum(logit(x)))(x)
    return jnp.sum(slope.reshape(len(x), -1) ** 2, axis=1)


def r1(logit: Critic, real: jax.Array) -> jax.Array:
    """|grad D|^2 at real examples; (gamma / 2) times it is Mescheder et al. 2018's eq. 9.

    arXiv:1801.04406. The penalty is zero for a D that is 0 on the data, which makes training
    converge locally.
    """
    return squared_slope(logit, real)


def r2(logit: Critic, fake: jax.Array) -> jax.Array:
    """|grad D|^2 at generated examples; (gamma / 2) times it is Mescheder et al. 2018's eq. 10."""
    return squared_slope(logit, fake)


def gradient_penalty(logit: Critic, real: jax.Array, fake: jax.Array, key: jax.Array) -> jax.Array:
    """(|grad D| - 1)^2 at a point between real and generated, WGAN-GP's eq. 3 without lambda.

    Gulrajani et al. 2017 (arXiv:1704.00028). Each example's point is uniform on the line between
    the two examples at its position.
    """
    shape = (len(real),) + (1,) * (real.ndim - 1)
    t = jax.random.uniform(key, shape, real.dtype)
    return _far_from_one(squared_slope(logit, t * real + (1.0 - t) * fake))


def dragan(logit: Critic, real: jax.Array, key: jax.Array) -> jax.Array:
    """(|grad D| - 1)^2 near real examples, Kodali et al. 2017 (arXiv:1705.07215).

    Their two-sided E (|grad D(x + delta)| - k)^2, delta ~ N(0, c I), with k = 1 and sqrt(c) half
    the standard deviation of all values of the batch, the size of the noise in the authors' code
    (which draws it uniform and positive).
    """
    noise = jax.random.normal(key, real.shape, real.dtype)
    return _far_from_one(squared_slope(logit, real + 0.5 * jnp.std(real) * noise))


# (logit, real, fake, key) -> [B]; each uses what it needs of these.
PENALTIES = {
    "gradient_penalty": gradient_penalty,
    "r1": lambda logit, real, fake, key: r1(logit, real),
    "r2": lambda logit, real, fake, key: r2(logit, fake),
    "dragan": lambda logit, real, fake, key: dragan(logit, real, key),
}
# name -> the penalties that are added up, and what the weight is multiplied by.
COMPOSED = {
    "none": ((), 0.0),
    "gradient_penalty": (("gradient_penalty",), 1.0),
    "dragan": (("dragan",), 1.0),
    "r1": (("r1",), 0.5),  # gamma / 2, Mescheder et al. 2018
    "r1_r2": (("r1", "r2"), 0.5),
}


@dataclass(frozen=True)
class Penalty:
    """What keeps a discriminator smooth: the settings of `gan.penalty`.

    Attributes:
      name: of `COMPOSED`.
      weight: lambda of gradient_penalty and dragan, gamma of (gamma / 2) R1.
      weight_end: where the weight ends if it follows a schedule.
      every: steps from one penalty to the next, the weight being multiplied by their number (lazy
        regularisation, Karras et al. 2020, arXiv:1912.04958, appendix B).
    """

    name: Annotated[str, OneOf(COMPOSED)] = "none"
    weight: Positive = 10.0
    weight_end: NonNegative = 0.0
    every: Count = 1

    @property
    def terms(self) -> tuple[str, ...]:
        """Names in `PENALTIES` of what is added up; () where there is no penalty."""
        return COMPOSED[self.name][0]

    @property
    def factor(self) -> float:
        """What the papers multiply the weight by."""
        return COMPOSED[self.name][1]


def class_loss(class_logits: jax.Array, label: jax.Array) -> jax.Array:
    """-log p(label | x) of logits [B, K] and labels int [B], nats [B]; log K where all are equal.

    -L_C of AC-GAN, Odena et al. 2017 (arXiv:1610.09585), eq. 3: both players minimise it, D on real
    and generated images, G on its own. NaN for a label of K or more.
    """
    chosen = jnp.take_along_axis(class_logits, label[:, None], axis=1)[:, 0]
    return logsumexp(class_logits, axis=1) - chosen


def l1(x: jax.Array, other: jax.Array) -> jax.Array:
    """Mean |x - other| of each example [B], as in Zhu et al. 2017 (arXiv:1703.10593), eq. 2.

    The mean over pixels and channels, as with the published weight of 10, in place of the norm.
    """
    return map_mean(jnp.abs(x - other))


def _far_from_one(squared: jax.Array) -> jax.Array:
    return (jnp.sqrt(squared + NORM_EPS) - 1.0) ** 2
