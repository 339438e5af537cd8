"""Mean-field variational inference: a normal posterior of standard normal latents without
correlations. A baseline for `models.inference.mgvi`, whose `newton` finds its mean, too.

Its standard deviations are `mgvi.standard_deviations`: variances of one over the diagonal of the
metric maximise the evidence bound, for a linear model exactly.
"""

import torch
from torch import Tensor

from orrery.models.inference.mgvi import Data, Model, chi_squared


def evidence_bound(model: Model, data: Data, mean: Tensor, std: Tensor, residuals: Tensor) -> float:
    """The ELBO, nats, from draws minus the mean, ``residuals`` (samples, latents)."""
    norm = (2 * torch.pi * data.variance).log().sum()
    divergence = 0.5 * (mean.square() + std.square() - 1 - 2 * std.log()).sum()
    return float(-0.5 * (chi_squared(model, data, mean, residuals) + norm) - divergence)
