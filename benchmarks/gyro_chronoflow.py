"""ChronoFlow (Van-Lane et al. 2025, arXiv:2412.12244), the peer of `gyro`, for `benchmarks.gyro`.

It is the successor, by the same author, of GyroNet, whose repository could not be had. Its weights,
`chronoflow/model_artifacts/weights.pth` of github.com/philvanlane/chronoflow, are plain tensors,
which `torch.load(..., weights_only=True)` reads. The flow is zuko's, the mixture with outliers, the
flat prior on log age and the error of colours without one are those of its paper's code. It was
fitted to all ten of the benchmark clusters.
"""

import math
from pathlib import Path

import numpy as np
import torch
import zuko
from torch import Tensor

from orrery.evaluation.timing import best_of_five

WEIGHTS = "chronoflow/model_artifacts/weights.pth"  # in its repository
RENAMED = {"base._0": "base.loc", "base._1": "base.scale"}  # since its version of zuko, 1.1
MIN_SLOPE = 1e-4  # of its splines, the default of zuko 1.1; zuko has 1e-3 today
LOG_AGES = torch.linspace(0, 4.14, 1000)  # log10 Myr, its own
OUTLIERS, LOG_PERIODS = 0.05, (-1.75, 2.5)  # fraction; dex over which they are uniform
LOG_COLOUR_ERROR = -1.55  # log10 mag, where there is none
LEVELS = (0.16, 0.5, 0.84)

Array = np.ndarray


class ChronoFlow:
    """p(log10 P) of stars, given age, colour and its error; ``folder`` is a clone of the code."""

    def __init__(self, folder: Path):
        self.flow = zuko.flows.NSF(1, 3, transforms=3, slope=MIN_SLOPE)
        weights = torch.load(folder / WEIGHTS, map_location="cpu", weights_only=True)
        self.flow.load_state_dict({RENAMED.get(name, name): w for name, w in weights.items()})

    @torch.no_grad()
    def log_likelihood(
        self, prot: Array, colour: Array, colour_error: Array, log_ages: Tensor
    ) -> Tensor:
        """ln p(log10 P) per dex, with outliers, (stars, ages), of log10 ages in Myr."""
        log_error = np.log10(colour_error, where=colour_error > 0, out=np.full(len(prot), np.nan))
        log_error = np.where(np.isfinite(log_error), log_error, LOG_COLOUR_ERROR)
        stars = torch.tensor(np.stack([colour, log_error], 1), dtype=torch.float32)
        period = torch.tensor(np.log10(prot), dtype=torch.float32)[:, None]
        given = torch.cat(
            [
                log_ages.float().expand(len(stars), -1)[..., None],
                stars[:, None].expand(-1, len(log_ages), -1),
            ],
            -1,
        )
        found = self.flow(given).log_prob(period[:, None].expand(-1, len(log_ages), -1))
        outlier = math.log(OUTLIERS / (LOG_PERIODS[1] - LOG_PERIODS[0]))
        return torch.logaddexp(found + math.log(1 - OUTLIERS), torch.tensor(outlier))

    def ages(self, log_likelihood: Tensor) -> Array:
        """Quantiles at LEVELS, Gyr, of stars of one age, from their (stars, LOG_AGES)."""
        log_p = log_likelihood.double().sum(0)
        cdf = (log_p - log_p.max()).exp().cumsum(0)
        return 10 ** (np.interp(LEVELS, cdf / cdf[-1], LOG_AGES) - 3)

    def cpu_seconds(self) -> float:
        """Per star, of the posteriors of a hundred alike."""
        sun = np.full(100, 25.4), np.full(100, 0.82), np.full(100, 0.03)
        return best_of_five(lambda: self.log_likelihood(*sun, LOG_AGES)) / 100
