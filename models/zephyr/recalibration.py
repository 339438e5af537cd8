"""Recalibration of predictive distributions by a smooth map of their PIT."""

import torch
from torch import Tensor

MAX_ORDER = 4  # of the Legendre polynomials
PIT_CELLS = 512  # in which the map is tabulated


def pit_moments(pit: Tensor) -> Tensor:
    """Means of the Legendre polynomials P_k(2u - 1), k = 1 to `MAX_ORDER`, over PIT values u."""
    return _legendre(pit.double().clamp(0, 1)).mean(0)


def ensemble_pit_moments(pits: Tensor, fold: Tensor) -> Tensor:
    """Moments of the PIT of an ensemble, for objects that no member was trained on.

    ``pits`` (members of a fold, folds, n): the PIT of each member alone; the members of fold f were
    not trained on objects whose ``fold`` (n,), int64, is f. Returns (`MAX_ORDER`,).

    The PIT of an ensemble is the mean of its members' PITs. Its variance exceeds that of
    infinitely many members by two terms: the scatter due to a member's random initialisation,
    divided by the number of members, and the scatter due to the rows that it was trained on,
    divided by the number of folds; the higher moments behave nearly so. The members for which an
    object is held out share one fold and measure the first term alone. The second follows from it
    by the ratio of the two terms among the members that were trained on the object.
    """
    per_fold, folds, n = pits.shape
    held_out_first = (fold + torch.arange(folds, device=fold.device)[:, None]) % folds
    pits = pits.gather(1, held_out_first.expand(per_fold, folds, n))
    held_out, trained = pits[:, 0], pits[:, 1:]
    fold_moments = pit_moments(held_out.mean(0))
    if per_fold == 1:
        return fold_moments
    initialisation = (pit_moments(held_out.flatten()) - fold_moments) / (1 - 1 / per_fold)
    ratio = 0.0
    if folds > 2:
        ratio = float(trained.mean(0).var(0).mean() / trained.var(0).mean()) - 1 / per_fold
    return fold_moments - initialisation * (1 / per_fold + max(0.0, ratio)) * (1 - 1 / folds)


def pit_map(moments: Tensor, n: int, ridge: float = 1.0) -> Tensor:
    """Cumulative distribution R of the PIT at `PIT_CELLS` + 1 equal steps of [0, 1].

    If F is the predicted cumulative distribution, R(F) is the recalibrated one. The density of the
    PIT is exp(sum_k a_k P_k(2u - 1)) / Z (the smooth alternatives of Neyman 1937); its likelihood
    depends on the ``n`` PIT values by their ``moments`` alone (`pit_moments`), is convex in a, and
    is penalised by ``ridge``, so that a few values change nothing.
    """
    basis = _legendre((torch.arange(PIT_CELLS, dtype=torch.float64) + 0.5) / PIT_CELLS)
    a = torch.zeros(MAX_ORDER, dtype=torch.float64)
    for _ in range(50):
        weight = torch.softmax(basis @ a, 0)
        mean = weight @ basis
        gradient = mean - moments.cpu() + ridge * a / n
        hessian = (basis * weight[:, None]).T @ basis - torch.outer(mean, mean)
        hessian += torch.eye(MAX_ORDER, dtype=torch.float64) * ridge / n
        step = torch.linalg.solve(hessian, gradient)
        a = a - step * min(1.0, 1.0 / float(step.abs().max().clamp_min(1e-12)))
        if float(step.abs().max()) < 1e-10:
            break
    mass = torch.softmax(basis @ a, 0)
    return torch.cat([torch.zeros(1, dtype=torch.float64), mass.cumsum(0)]).float()


def apply_pit_map(table: Tensor, cdf: Tensor) -> Tensor:
    """R(cdf) by linear interpolation in ``table`` (`pit_map`); of the shape of ``cdf``."""
    position = cdf.clamp(0, 1) * (len(table) - 1)
    low = position.long().clamp_max(len(table) - 2)
    return torch.lerp(table[low], table[low + 1], position - low)


def _legendre(u: Tensor) -> Tensor:
    """Shifted Legendre polynomials of order 1 to `MAX_ORDER`, (..., MAX_ORDER)."""
    x = 2 * u - 1
    values = [torch.ones_like(x), x]
    for k in range(2, MAX_ORDER + 1):
        values.append(((2 * k - 1) * x * values[-1] - (k - 1) * values[-2]) / k)
    return torch.stack(values[1:], -1)
