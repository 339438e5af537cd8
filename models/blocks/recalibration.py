"""Recalibration of predictive distributions by a smooth map of their PIT."""

import torch
from torch import Tensor

ORDERS = 4
CELLS = 512


def pit_moments(pit: Tensor) -> Tensor:
    """Means of the Legendre polynomials P_k(2u - 1), k = 1 to `ORDERS`, over PIT values u."""
    return _legendre(pit.double().clamp(0, 1)).mean(0)


def for_ensemble(single: Tensor, several: Tensor, n_several: int, n_all: int) -> Tensor:
    """Moments of an ensemble of ``n_all`` members from those of one and of ``n_several``.

    The PIT of an ensemble is the mean of its members' PITs, so that its variance is linear in 1/m:
    exactly for the second moment, nearly for the higher. A held-out object has only ``n_several``
    members that did not learn from it; this is how they foretell the whole ensemble.
    """
    if n_several == 1:
        return single
    slope = (single - several) / (1 - 1 / n_several)
    return several + slope * (1 / n_all - 1 / n_several)


def pit_map(moments: Tensor, n: int, ridge: float = 1.0) -> Tensor:
    """The cumulative distribution R of the PIT at `CELLS` + 1 equal steps of [0, 1].

    If F is the predicted cumulative distribution, R(F) is the recalibrated one. The density of the
    PIT is exp(sum_k a_k P_k(2u - 1)) / Z (the smooth alternatives of Neyman 1937); its likelihood
    depends on the data by the moments alone, is convex in a, and is penalised by ``ridge``, so
    that a small number ``n`` of values changes nothing.
    """
    basis = _legendre((torch.arange(CELLS, dtype=torch.float64) + 0.5) / CELLS)
    a = torch.zeros(ORDERS, dtype=torch.float64)
    for _ in range(50):
        weight = torch.softmax(basis @ a, 0)
        mean = weight @ basis
        gradient = mean - moments.cpu() + ridge * a / n
        hessian = (basis * weight[:, None]).T @ basis - torch.outer(mean, mean)
        hessian += torch.eye(ORDERS, dtype=torch.float64) * ridge / n
        step = torch.linalg.solve(hessian, gradient)
        a = a - step * min(1.0, 1.0 / float(step.abs().max().clamp_min(1e-12)))
        if float(step.abs().max()) < 1e-10:
            break
    mass = torch.softmax(basis @ a, 0)
    return torch.cat([torch.zeros(1, dtype=torch.float64), mass.cumsum(0)]).float()


def apply_pit_map(table: Tensor, cdf: Tensor) -> Tensor:
    """R(cdf), of any shape; monotonic, from 0 to 1."""
    position = cdf.clamp(0, 1) * (len(table) - 1)
    low = position.long().clamp_max(len(table) - 2)
    return torch.lerp(table[low], table[low + 1], position - low)


def _legendre(u: Tensor) -> Tensor:
    """Shifted Legendre polynomials of order 1 to `ORDERS`, (..., ORDERS)."""
    x = 2 * u - 1
    values = [torch.ones_like(x), x]
    for k in range(2, ORDERS + 1):
        values.append(((2 * k - 1) * x * values[-1] - (k - 1) * values[-2]) / k)
    return torch.stack(values[1:], -1)
