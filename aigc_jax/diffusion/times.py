"""Which times a loss sees, and how much the error at each time counts."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from aigc_jax.checks import Finite, Positive, arguments, choice
from aigc_jax.diffusion.precondition import Prediction
from aigc_jax.diffusion.process import Level, Process
from aigc_jax.errors import SettingError

TAIL = 1e-6  # of the distribution at both ends, where no time is drawn: a weight may be infinite


def uniform(u: jax.Array, process: Process, *, shift: Positive = 1.0) -> jax.Array:
    """Times spread evenly over the process, then shifted to where there is more noise.

    Args:
      shift: s of t <- s t / (1 + (s - 1) t) (Esser et al. 2024, arXiv:2403.03206, eq. 23), t being
        a share of the process; 1 is none.
    """
    return _at_share(process, shift * u / (1 + (shift - 1) * u))


def logit_normal(
    u: jax.Array,
    process: Process,
    *,
    mean: Finite = 0.0,
    std: Positive = 1.0,
    shift: Positive = 1.0,
) -> jax.Array:
    """Shares t with a normal ln(t / (1 - t)) (Esser et al. 2024, eq. 19); then shifted."""
    share = jax.nn.sigmoid(mean + std * _normal(u))
    return _at_share(process, shift * share / (1 + (shift - 1) * share))


def log_normal(
    u: jax.Array, process: Process, *, mean: Finite = -1.2, std: Positive = 1.2
) -> jax.Array:
    """Times at which ln(sigma / alpha) is normal (Karras et al. 2022, table 1)."""
    t = process.time(jnp.exp(mean + std * _normal(u)))
    t = jnp.round(t) if process.total else t
    return jnp.clip(t, process.low, process.high)


def _normal(u: jax.Array) -> jax.Array:
    return jax.scipy.special.ndtri(u)


def _at_share(process: Process, share: jax.Array) -> jax.Array:
    """The time at a share 0..1 of a process: a whole number where it is discrete."""
    if process.total:
        return jnp.minimum(jnp.floor(share * process.total), process.high)
    return process.low + (process.high - process.low) * share


# {config.diffusion.times.name: (u in 0..1, process, settings) -> times of these quantiles}
TIMES = {"uniform": uniform, "logit_normal": logit_normal, "log_normal": log_normal}


@dataclass(frozen=True)
class Times:
    """How a batch's times are drawn.

    Attributes:
      quantile: u in 0..1 [B] -> times [B].
      stratified: whether a training batch, like a test batch, has a time in each of B equal parts
        of the distribution (Kingma et al. 2021, arXiv:2107.00630, appendix I.1).
    """

    quantile: Callable[[jax.Array], jax.Array]
    stratified: bool = False

    def train(self, key: jax.Array, count: int) -> jax.Array:
        """Times of a training batch, float32 [count]."""
        if self.stratified:
            return self.test(*jax.random.split(key), count)
        return self._of(jax.random.uniform(key, (count,)))

    def test(self, key: jax.Array, order_key: jax.Array, count: int) -> jax.Array:
        """Times of a test batch, float32 [count], one of each of `count` equal parts, shuffled.

        A mean over them varies much less than one over times drawn independently. They come in
        random order: padding lies at a batch's end, and without it a last, short batch would see
        the least noisy times alone.
        """
        u = (jnp.arange(count) + jax.random.uniform(key, (count,))) / count
        return self._of(jax.random.permutation(order_key, u))

    def _of(self, u: jax.Array) -> jax.Array:
        return self.quantile(jnp.clip(u, TAIL, 1 - TAIL))


def build(settings: Mapping[str, Any], process: Process, section: str = "diffusion.times") -> Times:
    """The times of a section of the config: a name of `TIMES`, its settings, and `stratified`.

    Raises:
      ValueError: an unknown name or setting, or one out of its range.
    """
    name, others = choice(section, settings, TIMES)
    others = arguments(section, TIMES[name], others, ("u", "process"), {"stratified": bool})
    stratified = others.pop("stratified", False)
    return Times(partial(TIMES[name], process=process, **others), stratified)


def simple(level: Level, error: Any, process: Process, sigma_data: float) -> Any:
    """Errors of the prediction as they are (Ho et al. 2020, L_simple)."""
    return jnp.ones_like(error)


def snr(level: Level, error: Any, process: Process, sigma_data: float) -> Any:
    """An error in x_0 by SNR = alpha^2 / sigma^2, whatever is predicted."""
    return _snr(level) / error


def min_snr(
    level: Level, error: Any, process: Process, sigma_data: float, *, gamma: Positive = 5.0
) -> Any:
    """An error in x_0 by min(SNR, gamma) (Hang et al. 2023, arXiv:2303.09556)."""
    return jnp.minimum(_snr(level), gamma) / error


def soft_min_snr(
    level: Level, error: Any, process: Process, sigma_data: float, *, gamma: Positive = 4.0
) -> Any:
    """An error in x_0 by SNR gamma / (SNR + gamma) (Crowson et al. 2024, arXiv:2401.11605)."""
    return gamma / (1 + gamma * level.ratio**2) / error


def edm(level: Level, error: Any, process: Process, sigma_data: float) -> Any:
    """An error in x_0 by SNR + 1 / sigma_data^2 (Karras et al. 2022, table 1)."""
    return (_snr(level) + sigma_data**-2) / error


def likelihood(level: Level, error: Any, process: Process, sigma_data: float) -> Any:
    """The bound on the likelihood in nats: half of -dSNR / dt (Kingma et al. 2021, eq. 17).

    Of times drawn uniformly.
    """
    return 0.5 * process.noise_rate(level.t) * _snr(level) / error


def _snr(level: Level) -> Any:
    return (level.alpha / level.sigma) ** 2


# {config.diffusion.weighting.name: (level, `Prediction.error` there, process, standard deviation of
# the data, settings) -> factor}
WEIGHTINGS = {
    "simple": simple,
    "snr": snr,
    "min_snr": min_snr,
    "soft_min_snr": soft_min_snr,
    "edm": edm,
    "likelihood": likelihood,
}


def weighting(
    settings: Mapping[str, Any], prediction: Prediction, process: Process, sigma_data: float = 0.5
) -> Callable[[Level], jax.Array]:
    """The factor on a prediction's squared error at levels [B], of `config.diffusion.weighting`.

    Raises:
      ValueError: an unknown name or setting, or one out of its range.
    """
    name, others = choice("diffusion.weighting", settings, WEIGHTINGS)
    others = arguments(
        "diffusion.weighting", WEIGHTINGS[name], others, ("level", "error", "process", "sigma_data")
    )
    if name == "likelihood" and (process.ends.alpha[-1] == 0 or process.total == 1):
        raise SettingError(
            "diffusion.weighting.name='likelihood' needs a process of several times whose noisiest "
            "holds something of x_0: take another weighting or diffusion.process"
        )

    def factor(level: Level) -> jax.Array:
        error = prediction.error(level.alpha, level.sigma)
        return WEIGHTINGS[name](level, error, process, sigma_data, **others)

    return factor
