"""Larger errors for photometry that no galaxy of the model fits.

Zero points, apertures and filters of a survey are off by a few percent of the flux, and galaxies
differ from their models: stated errors leave that out, and the posterior would be far too narrow.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

LARGEST = 0.5  # of the flux
STEPS = 30  # of bisection


def added_error(rows: Mapping[str, Tensor]) -> Tensor:
    """Error (n,), relative to the model's flux, by which chi^2 of the best fit is as expected.

    It is added in quadrature to all bands, at most `LARGEST`. ``rows``: those of `SedEmulator`.
    Bands count as independent.
    """
    measured = rows["flux_observed"].isfinite() & rows["flux_error"].isfinite()
    residual = torch.where(measured, rows["flux_observed"] - rows["flux_model"], 0.0)
    variance = torch.where(measured, rows["flux_error"], 1.0).square()
    expected = (measured.sum(1) - rows["n_constrained"]).clamp_min(1.0)
    low, high = torch.zeros_like(expected), torch.full_like(expected, LARGEST)
    for _ in range(STEPS):
        middle = 0.5 * (low + high)
        total = variance + (middle[:, None] * rows["flux_model"]).square()
        too_large = (residual.square() / total).sum(1) < expected
        high, low = torch.where(too_large, middle, high), torch.where(too_large, low, middle)
    return high
