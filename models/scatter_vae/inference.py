"""The posterior of a star's latent numbers: the encoder's guess, refined by Gauss-Newton steps."""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.func import jvp

from orrery.models.scatter_vae.likelihood import mode_covariance, whitener

MAX_COST_INCREASE = 0.1  # nats: of the last step, as much as rounding
MAX_STEP = 3.0  # of a latent number
MIN_P = 1e-300


class Whitening:
    """L^-1 of each star's covariance K = L L^T, in units of its errors; 0 for missing bands.

    ``t`` (batch, n): intrinsic over error variance. ``batch`` has ``observed`` (batch, bands) and,
    where errors are correlated, ``correlations_{band}``, packed.
    """

    def __init__(self, t: Tensor, batch: Mapping[str, Tensor], bands: Mapping[str, int]) -> None:
        self.sizes = list(bands.values())
        self.observed = batch["observed"]
        self.parts: list[Tensor] = []
        self.log_det = torch.zeros_like(t[:, 0])
        for i, (band, part) in enumerate(zip(bands, t.split(self.sizes, 1), strict=True)):
            packed = batch.get(f"correlations_{band}")
            if packed is None:
                inverse, log_det = (1 + part).rsqrt(), torch.log1p(part).sum(1)
            else:
                inverse, log_det = whitener(part, packed)
            self.parts.append(inverse)
            self.log_det = self.log_det + log_det * self.observed[:, i]

    def __call__(self, v: Tensor) -> Tensor:
        """L^-1 v of ``v`` (batch, n, k)."""
        parts = []
        for i, (inverse, part) in enumerate(zip(self.parts, v.split(self.sizes, 1), strict=True)):
            white = inverse @ part if inverse.ndim == 3 else inverse[..., None] * part
            parts.append(white * self.observed[:, i, None, None])
        return torch.cat(parts, 1)


class ModeWhitening:
    """L^-1 W, where errors are independent in the rows of W alone, with 1 + W diag(t) W^T = L L^T.

    ``t`` (batch, n): as of `Whitening`. ``modes``: W (m, n), of errors in units of their sizes, see
    `physics.gaia_xp.sampled`. n residuals become m whitened ones.
    """

    def __init__(self, t: Tensor, modes: Tensor) -> None:
        root = torch.linalg.cholesky(mode_covariance(t, modes))
        expanded = modes.expand(len(t), *modes.shape)
        self.inverse = torch.linalg.solve_triangular(root, expanded, upper=False)
        self.log_det = 2 * root.diagonal(dim1=1, dim2=2).log().sum(1)

    def __call__(self, v: Tensor) -> Tensor:
        """L^-1 W v, (batch, m, k), of ``v`` (batch, n, k)."""
        return self.inverse @ v


class Whitens(Protocol):
    """`Whitening` or `ModeWhitening`."""

    log_det: Tensor

    def __call__(self, v: Tensor) -> Tensor: ...


class LatentPosterior(NamedTuple):
    """A normal distribution of z for each star, and the residuals of the data at its mean."""

    mean: Tensor  # (batch, latent)
    covariance: Tensor  # (batch, latent, latent)
    residual: Tensor  # whitened, (batch, m); m = n but for `ModeWhitening`
    log_det: Tensor  # of K, (batch,)
    jacobian: Tensor  # of the decoder at the mean, (batch, n, latent)
    leverage: Tensor  # of each whitened residual, (batch, m): the fraction of its noise that z fits

    def divergence(self, k: int) -> Tensor:
        """KL of the first k numbers from their standard normal prior, nats, (batch,)."""
        mean, covariance = self.mean[:, :k], self.covariance[:, :k, :k]
        trace = covariance.diagonal(dim1=1, dim2=2).sum(1)
        log_det = torch.logdet(covariance.double()).float()
        return 0.5 * (trace + mean.square().sum(1) - k - log_det)

    def n_fitted(self) -> Tensor:
        """Effective number of fitted parameters, (batch,)."""
        return self.leverage.sum(1)

    def marginal_nll(self, log_errors: Tensor, n: Tensor) -> Tensor:
        """-ln p of the data with z integrated over its prior, by Laplace's method, (batch,).

        ``log_errors`` and ``n``: as of `gaussian_nll`.
        """
        squares = self.residual.square().sum(1) + self.mean.square().sum(1)
        determinant = torch.logdet(self.covariance.double()).float()
        return gaussian_nll(squares, self.log_det - determinant, log_errors, n)

    def studentised(self) -> Tensor:
        """Residuals over their standard deviation after the fit of z, (batch, m)."""
        return self.residual / (1 - self.leverage).clamp_min(1e-3).sqrt()


def posterior(
    z: Tensor,
    decode: Callable[[Tensor], Tensor],
    y: Tensor,
    error: Tensor,
    whitening: Callable[[Tensor], Whitens],
    steps: int,
) -> LatentPosterior:
    """From the guess ``z`` (batch, latent), by ``steps`` Gauss-Newton steps towards the maximum.

    Data ``y`` and their ``error`` (batch, n), 0 and 1 where nothing was observed; the covariance is
    updated once, half-way, since the scatter varies slowly with z. Levenberg's damping: a step that
    raises the cost is undone and the next is shorter. The posterior's
    covariance is that of the last linearisation, (1 + J^T K^-1 J)^-1.
    """
    white = whitening(z)
    one = torch.eye(z.shape[1], dtype=torch.float64, device=z.device)

    def hessian_of(j: Tensor) -> Tensor:
        """1 + J^T K^-1 J, float64: it is ill-conditioned for stars of a high S/N."""
        return one + j.double().mT @ j.double()

    damping = torch.full_like(z[:, :1, None], 1e-2)
    least = torch.full_like(z[:, 0], torch.inf)
    best_z = z
    for step in range(steps + 1):
        if step == (steps + 1) // 2 and step:
            white, z, least = whitening(best_z), best_z, torch.full_like(least, torch.inf)
        w = white(((y - decode(z)) / error)[..., None])[..., 0]
        cost = w.square().sum(1) + z.square().sum(1)
        improved = cost < least
        best_z = torch.where(improved[:, None], z, best_z)
        least = torch.where(improved, cost, least)
        damping = torch.where(improved[:, None, None], damping / 10, damping * 30)
        if step == steps:
            break
        j, gradient, _ = _linearised(best_z, decode, y, error, white)
        hessian = hessian_of(j)
        diagonal = hessian.diagonal(dim1=1, dim2=2).diag_embed()
        damped = hessian + damping * diagonal
        step_z = torch.linalg.solve(damped, gradient[..., None].double())[..., 0]
        z = best_z + step_z.clamp(-MAX_STEP, MAX_STEP).float()
    white = whitening(best_z)
    if steps:
        # a last full step, unless it diverges: where rounding of the cost ended the others would
        # depend on which stars are computed together
        j, gradient, _ = _linearised(best_z, decode, y, error, white)
        step_z = torch.linalg.solve(hessian_of(j), gradient[..., None].double())[..., 0]
        last = best_z + step_z.clamp(-MAX_STEP, MAX_STEP).float()
        costs = []
        for z in (best_z, last):
            w = white(((y - decode(z)) / error)[..., None])[..., 0]
            costs.append(w.square().sum(1) + z.square().sum(1))
        best_z = torch.where(
            (costs[1] < 1.001 * costs[0] + MAX_COST_INCREASE)[:, None], last, best_z
        )
        white = whitening(best_z)
    j, _, jacobian = _linearised(best_z, decode, y, error, white)
    covariance = torch.linalg.inv(hessian_of(j)).float()
    w = white(((y - decode(best_z)) / error)[..., None])[..., 0]
    leverage = ((j @ covariance) * j).sum(2).clamp(0, 1)
    return LatentPosterior(best_z, covariance, w, white.log_det, jacobian, leverage)


def _linearised(
    z: Tensor,
    decode: Callable[[Tensor], Tensor],
    y: Tensor,
    error: Tensor,
    white: Whitens,
) -> tuple[Tensor, Tensor, Tensor]:
    """L^-1 J, minus the gradient of half the cost, and J, (batch, n, latent)."""
    jacobian = derivative(decode, z)
    j = white(jacobian / error[..., None])
    w = white(((y - decode(z)) / error)[..., None])
    return j, (j.mT @ w)[..., 0] - z, jacobian


def derivative(decode: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """(batch, n, latent): forward mode, a pass for each latent number."""
    with torch.inference_mode(False), torch.no_grad():
        z = z.clone()
        columns = []
        for k in range(z.shape[1]):
            along = torch.zeros_like(z)
            along[:, k] = 1
            columns.append(jvp(decode, (z,), (along,))[1].detach())
    return torch.stack(columns, 2)


def log_tail(chi2: Tensor, dof: Tensor) -> Tensor:
    """ln P(chi^2 > ``chi2``); where P underflows, the leading terms for chi^2 far above ``dof``."""
    a, x = dof.double() / 2, chi2.double() / 2
    p = torch.special.gammaincc(a, x)
    far = (a - 1) * x.log() - x - torch.lgamma(a) - torch.log1p(-((a - 1) / x).clamp(max=0.9))
    return torch.where(p > 1e-30, p.clamp_min(MIN_P).log(), far).float()


def gaussian_nll(squares: Tensor, log_det: Tensor, log_errors: Tensor, n: Tensor) -> Tensor:
    """-ln p of n numbers whose whitened residuals have the sum of ``squares``, (batch,).

    ``log_det``: of their covariance in units of the errors, ``log_errors``: the sum of these' ln.
    """
    return 0.5 * (squares + log_det + n * math.log(2 * math.pi)) + log_errors
