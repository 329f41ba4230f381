"""What solvers and their grids can be set to: the settings of `config.sampling`."""

from typing import Annotated, NamedTuple

from aigc_jax.checks import OR_EMPTY, NonNegative, OneOf, Positive, Probability, Range

VARIANCES = ("fixed_small", "fixed_large", "learned")
PREDICTORS = ("ancestral", "reverse_diffusion")


class Settings(NamedTuple):
    """Every solver and every grid reads its own of them, and leaves the others to others.

    A config may hold those of several solvers, of which --sampler takes one; what the command line
    gives beside a solver that ignores it is refused (`solvers.check_read`). A ratio is
    sigma / alpha.

    Attributes:
      rho: of spacing "karras": how much finer its levels are near x_0.
      shift: of spacing "flow_shift": the factor on every ratio; above 1 more levels are noisy.
      sigma_min, sigma_max: ratios of the last and the first level; 0 for the process's own ends.
      sigmas: the ratios of a grid of one's own, descending; x_0 (0) behind them may be left out.
      variance: of "ancestral": the posterior's, that of the forward process, or the network's.
      eta: how much of the noise a step adds, 0..1; None for 0 of "ddim", 1 of "euler_ancestral",
        "dpmpp_2m_sde" and "dpmpp_3m_sde".
      order: of "unipc" and "deis": how many estimates of x_0 a step goes by.
      churn: of "heun": S_churn of Karras et al. 2022, the noise added over the whole run.
      churn_min, churn_max: S_min and S_max, the ratios between which it is added.
      churn_noise: S_noise, the standard deviation of that noise.
      predictor: of "predictor_corrector".
      snr: of "predictor_corrector": how large its Langevin steps are, r of Song et al. 2021.
    """

    rho: Positive = 7.0
    shift: Positive = 1.0
    sigma_min: NonNegative = 0.0
    sigma_max: NonNegative = 0.0
    sigmas: Annotated[tuple[NonNegative, ...], OR_EMPTY] = ()
    variance: Annotated[str, OneOf(VARIANCES)] = "fixed_large"
    eta: Probability | None = None
    order: Annotated[int, Range(1, 3)] = 2
    churn: NonNegative = 0.0
    churn_min: NonNegative = 0.0
    churn_max: Positive = 1000.0
    churn_noise: Positive = 1.0
    predictor: Annotated[str, OneOf(PREDICTORS)] = "ancestral"
    snr: Positive = 0.16


DEFAULTS = Settings()
