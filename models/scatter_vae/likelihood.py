"""The normal likelihood of coefficients whose errors are correlated, star by star.

A star has n residuals r, in units of their errors, with the covariance K = R + diag(t): R is its
own correlation matrix of the errors (`physics.gaia_xp.correlations`), t >= 0 the ratio of intrinsic
to error variance. Then

    nll = 1/2 (r^T K^-1 r + ln det K + n ln 2 pi)
    d nll / d r = K^-1 r,  d nll / d t = 1/2 (diag K^-1 - (K^-1 r)^2)

All is computed in float32, also under autocast, or in float64 if r is. At a condition number of
1e4 float32 gives the nll to 1e-3 nats and its gradients to 3e-4 of their length.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from orrery.physics.gaia_xp.correlations import in_tiles, precise, refuse, unpack


def covariant_nll(r: Tensor, t: Tensor, packed: Tensor) -> Tensor:
    """nll, (batch,), differentiable in r and t, (batch, n); NaN where K is not positive definite.

    NaN rather than an error, which would make a GPU synchronise at every step.
    """
    return _Nll.apply(precise(r), precise(t), packed)


def whitener(t: Tensor, packed: Tensor) -> tuple[Tensor, Tensor]:
    """L^-1, (batch, n, n), and ln det K, (batch,), with K = L L^T; without gradients."""
    upper, log_det = in_tiles(_inverse_root, precise(t), packed)
    refuse(log_det.isnan(), "the covariance R + diag(t)")
    return upper.mT, log_det


def lowrank_nll(r: Tensor, t: Tensor, factor: Tensor) -> Tensor:
    """nll, (batch,), with R = U U^T + diag(1 - sum U^2); ``factor`` is U, (batch, n, k).

    Woodbury: with D = diag(1 - sum U^2 + t) and M = 1 + U^T D^-1 U, det K = det D det M and
    r^T K^-1 r = r^T D^-1 r - |M^-1/2 U^T D^-1 r|^2.
    """
    r, t, U = precise(r), precise(t), precise(factor)
    with torch.autocast(r.device.type, enabled=False):
        d = 1 - U.square().sum(2) + t
        scaled = (U / d[..., None]).mT
        M = torch.eye(U.shape[2], dtype=U.dtype, device=U.device) + scaled @ U
        L = torch.linalg.cholesky_ex(M).L
        z = torch.linalg.solve_triangular(L, scaled @ r[..., None], upper=False)
    quadratic = (r.square() / d).sum(1) - z.square().sum((1, 2))
    log_det = d.log().sum(1) + 2 * L.diagonal(dim1=1, dim2=2).log().sum(1)
    return _normal(quadratic, log_det, r.shape[1])


def mode_nll(r: Tensor, t: Tensor, modes: Tensor) -> Tensor:
    """nll, (batch,), of W r, whose covariance is 1 + W diag(t) W^T; ``modes`` is W, (m, n)."""
    r, t = precise(r), precise(t)
    with torch.autocast(r.device.type, enabled=False):
        root = torch.linalg.cholesky_ex(mode_covariance(t, modes)).L
        z = torch.linalg.solve_triangular(root, (r @ modes.T)[..., None], upper=False)
    log_det = 2 * root.diagonal(dim1=1, dim2=2).log().sum(1)
    return _normal(z.square().sum((1, 2)), log_det, len(modes))


def mode_covariance(t: Tensor, modes: Tensor) -> Tensor:
    """1 + W diag(t) W^T, (batch, m, m), of ``modes`` W (m, n) and ``t`` (batch, n)."""
    covariance = (modes * t[:, None]) @ modes.T
    covariance.diagonal(dim1=1, dim2=2).add_(1)
    return covariance


class _Nll(torch.autograd.Function):
    """Gradients are computed with the value, since both need K^-1, and saved in place of it."""

    @staticmethod
    def forward(ctx: Any, r: Tensor, t: Tensor, packed: Tensor) -> Tensor:
        nll, by_r, by_t = in_tiles(_value_and_gradient, r, t, packed)
        ctx.save_for_backward(by_r, by_t)
        return nll

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, None]:
        by_r, by_t = ctx.saved_tensors
        return upstream[:, None] * by_r, upstream[:, None] * by_t, None


def _value_and_gradient(r: Tensor, t: Tensor, packed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    y, log_det, inverse = _whiten(r, t, packed)
    solved = (inverse @ y[..., None])[..., 0]
    by_t = 0.5 * (inverse.square().sum(2) - solved.square())
    return _normal(y.square().sum(1), log_det, r.shape[1]), solved, by_t


def _whiten(r: Tensor, t: Tensor, packed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """L^-1 r, (batch, n), ln det K, (batch,), and L^-T, (batch, n, n); NaN if there are none."""
    inverse, log_det = _inverse_root(t, packed)
    return (inverse.mT @ r[..., None])[..., 0], log_det, inverse


def _inverse_root(t: Tensor, packed: Tensor) -> tuple[Tensor, Tensor]:
    """L^-T, (batch, n, n), and ln det K, (batch,); NaN where K is not positive definite."""
    K = unpack(packed, t.shape[1]).to(t.dtype)
    K.diagonal(dim1=1, dim2=2).add_(t)
    # L^T solved from the right is a third faster than L from the left, by LAPACK's layout
    upper, info = torch.linalg.cholesky_ex(K, upper=True)
    upper.diagonal(dim1=1, dim2=2).masked_fill_((info > 0)[:, None], torch.nan)
    one = torch.eye(t.shape[1], dtype=t.dtype, device=t.device).expand_as(K)
    inverse = torch.linalg.solve_triangular(upper, one, upper=True, left=False)
    return inverse, 2 * upper.diagonal(dim1=1, dim2=2).log().sum(1)


def _normal(quadratic: Tensor, log_det: Tensor, n: int) -> Tensor:
    return 0.5 * (quadratic + log_det + n * math.log(2 * math.pi))
