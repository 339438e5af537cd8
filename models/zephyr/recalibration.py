"""Recalibration of predictive distributions by a smooth map of their PIT."""

import torch
from torch import Tensor

ORDERS = 4
CELLS = 512


def pit_moments(pit: Tensor) -> Tensor:
    """Means of the Legendre polynomials P_k(2u - 1), k = 1 to `ORDERS`, over PIT values u."""
    return _legendre(pit.double().clamp(0, 1)).mean(0)


def for_ensemble(pits: Tensor, fold: Tensor) -> Tensor:
    """Moments of the PIT of an ensemble, for objects that no member has learned.

    ``pits`` (members of a fold, folds, n), of each member by itself; the members of fold f have not
    learned the objects whose ``fold`` (n,), int64, is f.

    The PIT of an ensemble is the mean of its members' PITs. Its variance exceeds that of infinitely
    many members by what a member's random start scatters, over the number of members, and what the
    rows that it learned scatter, over the number of folds; the higher moments do so nearly. The
    members to which an object is new are all of one fold, and tell of the first scatter alone. The
    second is to the first as it is for objects that the members have learned.
    """
    per_fold, folds, n = pits.shape
    turn = (fold + torch.arange(folds, device=fold.device)[:, None]) % folds
    pits = pits.gather(1, turn.expand(per_fold, folds, n))
    unseen, seen = pits[:, 0], pits[:, 1:]
    together = pit_moments(unseen.mean(0))
    if per_fold == 1:
        return together
    of_start = (pit_moments(unseen.flatten()) - together) / (1 - 1 / per_fold)
    ratio = 0.0
    if folds > 2:
        ratio = float(seen.mean(0).var(0).mean() / seen.var(0).mean()) - 1 / per_fold
    return together - of_start * (1 / per_fold + max(0.0, ratio)) * (1 - 1 / folds)


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
