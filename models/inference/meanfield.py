"""Mean-field variational inference: a normal posterior of standard normal latents that knows no
correlations. A baseline for `models.inference.mgvi`, with which it shares how the mean is found.

Its deviations are `mgvi.deviations`: variances of one over the diagonal of the metric maximise the
evidence bound, for a linear model exactly.
"""

import torch
from torch import Tensor

from orrery.models.inference.mgvi import Data, Model, misfit


def evidence_bound(model: Model, data: Data, mean: Tensor, std: Tensor, both: Tensor) -> float:
    """The ELBO, from draws ``both`` (samples, latents) from the mean; see `mgvi.evidence_bound`."""
    norm = (2 * torch.pi * data.variance).log().sum()
    divergence = 0.5 * (mean.square() + std.square() - 1 - 2 * std.log()).sum()
    return float(-0.5 * (misfit(model, data, mean, both) + norm) - divergence)
