"""Metric Gaussian variational inference (Knollmueller & Ensslin 2019, arXiv:1901.11033).

The posterior of standard normal latents u, given data d = f(u) + noise, is taken to be normal with
the inverse covariance M = 1 + J^T N^-1 J at its mean, J = df/du. Samples need no matrix: if e1 and
e2 are unit normal, n = J^T N^-1/2 e1 + e2 has the covariance M, and M^-1 n that of the posterior.
The mean minimises the energy averaged over such samples, whose residuals are fixed meanwhile.
`nonlinear_update` lets samples follow f where it is curved.

Everything is batched over samples, (samples, latents); with several processes each holds its own
samples, and what is averaged over samples is averaged over processes.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from orrery.models.inference.matrix_free import (
    LinearOperator,
    leading_eigenvectors,
    log_determinant,
)


class Linear(Protocol):
    """The model linearised about latents u (samples, latents)."""

    value: Tensor  # f(u), (samples, data)

    def jvp(self, v: Tensor) -> Tensor:
        """J v, (samples, data), of v (samples or 1, latents)."""

    def vjp(self, w: Tensor) -> Tensor:
        """J^T w, (samples, latents), of w (samples, data)."""

    def vjp_mean(self, w: Tensor) -> Tensor:
        """The mean over samples of J^T w, (1, latents)."""

    def metric(self, weight: Tensor) -> LinearOperator:
        """v -> the mean over samples of J^T ``weight`` J v; v (any, latents), weight (data,)."""


class Data(NamedTuple):
    value: Tensor  # (data,)
    variance: Tensor  # (data,), of the noise


Model = Callable[[Tensor], Linear]

PROBES_AT_ONCE = 8


class Solver(NamedTuple):
    """How equations of the metric are solved: by conjugate gradients."""

    tolerance: float
    max_steps: int
    preconditioner: LinearOperator = torch.clone  # the identity, or `preconditioner`

    def __call__(self, product: LinearOperator, b: Tensor, start: Tensor | None = None) -> Tensor:
        start = torch.zeros_like(b) if start is None else start
        return conjugate_gradients(
            product, b, start, self.preconditioner, self.tolerance, self.max_steps
        )


def preconditioner(model: Model, data: Data, mean: Tensor, among: Tensor, k: int) -> LinearOperator:
    """An approximate inverse of the metric at ``mean`` (1, latents), for (any, latents).

    It holds the ``k`` directions that data constrain most among the latents ``among`` (n,), and
    divides them by how much more they are constrained than any other. A hundred save two thirds of
    the steps of conjugate gradients.
    """
    metric = model(mean).metric(1 / data.variance)

    def product(v: Tensor) -> Tensor:
        padded = v.new_zeros(len(v), mean.shape[1])
        padded[:, among] = v
        return metric(padded)[:, among]

    values, vectors = leading_eigenvectors(product, len(among), k, mean, powers=0)
    shrink = (1 + values[-1]) / (1 + values) - 1
    return lambda r: r.index_add(1, among, ((r[:, among] @ vectors) * shrink) @ vectors.T)


def standard_deviations(model: Model, data: Data, mean: Tensor, probes: Tensor) -> Tensor:
    """One over the root of the diagonal of M, (1, latents), at ``mean`` (1, latents).

    The diagonal is the mean square of J^T N^-1/2 e over ``probes`` e (n, data), unit normal: to a
    relative error of (2 / n)^(1/2) for every latent.
    """
    at, root = model(mean), data.variance.rsqrt()
    squares = [at.vjp(root * e).square().sum(0, keepdim=True) for e in probes.split(PROBES_AT_ONCE)]
    return (1 + torch.stack(squares).sum(0) / len(probes)).rsqrt()


def residuals(
    model: Model, data: Data, mean: Tensor, e1: Tensor, e2: Tensor, solve: Solver
) -> Tensor:
    """Draws from N(0, M^-1), (pairs, latents); ``mean`` (1, latents).

    ``e1`` (pairs, data) and ``e2`` (pairs, latents): unit normal. The solver starts at ``e2``, a
    draw of the prior: where it has not converged, samples are too wide rather than too narrow.
    """
    at = model(mean)
    weight = 1 / data.variance
    n = at.vjp(weight.sqrt() * e1) + e2
    metric = at.metric(weight)
    return solve(lambda v: v + metric(v), n, e2)


def nonlinear_update(
    model: Model, data: Data, mean: Tensor, e1: Tensor, e2: Tensor, linear: Tensor, free: Tensor,
    steps: int, solve: Solver,
) -> Tensor:  # fmt: skip
    """Residuals of samples that follow f where it is curved, (samples, latents).

    The residual r of a sample, ``linear``, has the least |N^-1/2 J r - e1|^2 + |r - e2|^2. Here
    it has the least |N^-1/2 (f(mean + r) - f(mean)) - e1|^2 + |r - e2|^2, by so many ``steps`` of
    Gauss and Newton from the linear one: randomised maximum likelihood (Oliver, He & Reynolds
    1996) about the mean. To first order in the curvature it does what geometric variational
    inference does (Frank, Leike & Ensslin 2021, arXiv:2105.10470), by least squares. Latents
    whose ``free`` (1, latents) is 0 in place of 1 keep their linear residuals: in least squares
    of a field and its amplitude the amplitude would grow, since that makes |r - e2| of the field
    less.
    """
    weight, start = 1 / data.variance, model(mean).value
    target = start + data.variance.sqrt() * e1

    def energy(at: Linear, r: Tensor) -> Tensor:
        misfit = (weight * (at.value - target).square()).sum(1)
        return 0.5 * (misfit + (r - e2).square().sum(1))

    r, at = linear, model(mean + linear)
    least = energy(at, r)
    for _ in range(steps):
        gradient = free * (at.vjp(weight * (at.value - target)) + r - e2)

        def metric(v: Tensor, at: Linear = at) -> Tensor:
            return v + free * at.vjp(weight * at.jvp(free * v))

        step = solve(metric, gradient)
        for shorter in (0.5, 0.5, 0.5, 0.5, 0.0, 0.0):
            tried = model(mean + r - step)
            reached = energy(tried, r - step)
            worse = reached > least
            if not bool(worse.any()):
                break
            step = torch.where(worse[:, None], shorter * step, step)
        r, at, least = r - step, tried, reached
    return r


def newton(
    model: Model, data: Data, mean: Tensor, residuals: Tensor, max_steps: int, solve: Solver
) -> tuple[Tensor, Tensor]:
    """The mean of the least energy, averaged over mean + ``residuals`` (samples, latents).

    Newton's method with the metric in place of the Hessian; a step that increases the energy is
    halved. Returns the mean (1, latents) and its energy, nats.
    """
    weight = 1 / data.variance
    offset = mean_over_ranks(residuals.mean(0, keepdim=True))  # 0 of mirrored samples
    spread = mean_over_ranks(0.5 * residuals.square().sum(1).mean())

    def energy(at: Linear, u: Tensor) -> Tensor:
        misfit = 0.5 * (weight * (at.value - data.value).square()).sum(1).mean()
        return mean_over_ranks(misfit) + (u * (0.5 * u + offset)).sum() + spread

    at = model(mean + residuals)
    least = energy(at, mean)
    for _ in range(max_steps):
        gradient = mean_over_ranks(at.vjp_mean(weight * (at.value - data.value))) + mean + offset
        metric = at.metric(weight)
        step = solve(lambda v, metric=metric: v + mean_over_ranks(metric(v)), gradient)  # type: ignore[misc]
        before = least
        for _ in range(6):
            tried = model(mean - step + residuals)
            reached = energy(tried, mean - step)
            if bool(reached < least):
                mean, at, least = mean - step, tried, reached
                break
            step = 0.5 * step
        if bool(before - least < 1e-2):  # nats
            break
    return mean, least


def evidence_bound(
    model: Model, data: Data, mean: Tensor, linear: Tensor, nonlinear: Tensor | None = None
) -> float:
    """The ELBO: a lower bound of ln p(data), from draws ``linear`` (pairs, latents) of N(0, M^-1).

    The divergence from the prior is (|mean|^2 - tr(J M^-1 J^T / N) + ln det M) / 2. With
    ``nonlinear`` (2 pairs, latents), these draws and their mirror images after `nonlinear_update`,
    it is an estimate for those, which are taken to fill the volume of the linear ones.
    """
    at, root = model(mean), data.variance.sqrt()
    constrained = (
        torch.cat([at.jvp(d) / root for d in linear.split(PROBES_AT_ONCE)]).square().sum(1).mean()
    )
    log_det = log_determinant(
        lambda y: y + at.jvp(at.vjp(y / root)) / root, len(data.value), data.value
    )
    divergence = 0.5 * (mean.square().sum() - constrained + log_det)
    residuals = torch.cat([linear, -linear])
    if nonlinear is not None:
        divergence += (mean * nonlinear).sum(1).mean()
        divergence += 0.5 * (nonlinear.square() - residuals.square()).sum(1).mean()
        residuals = nonlinear
    norm = (2 * torch.pi * data.variance).log().sum()
    return float(-0.5 * (chi_squared(model, data, mean, residuals) + norm) - divergence)


def chi_squared(model: Model, data: Data, mean: Tensor, residuals: Tensor) -> Tensor:
    """chi^2 of the data, its average over mean + ``residuals`` (samples, latents)."""
    parts = [
        ((model(mean + d).value - data.value).square() / data.variance).sum(1)
        for d in residuals.split(PROBES_AT_ONCE)
    ]
    return torch.cat(parts).mean()


def conjugate_gradients(
    product: LinearOperator,
    b: Tensor,
    x: Tensor,
    preconditioner: LinearOperator,
    tolerance: float,
    max_steps: int,
) -> Tensor:
    """x (samples, latents) of ``product``(x) = b for a positive definite product of each sample.

    Starts at ``x``; ``preconditioner`` P is an approximate inverse of ``product``, positive
    definite. Stops when r P r of all residuals r, of all processes, is below ``tolerance``^2 b P b:
    so that any number of processes gives the samples of one.
    """
    goal = tolerance**2 * (b * preconditioner(b)).sum(1, keepdim=True)
    r = b - product(x)
    p = preconditioner(r)
    size = (r * p).sum(1, keepdim=True)
    for i in range(max_steps):
        q = product(p)
        alpha = size / (p * q).sum(1, keepdim=True).clamp_min(1e-30)
        x, r = x + alpha * p, r - alpha * q
        z = preconditioner(r)
        new = (r * z).sum(1, keepdim=True)
        # every few steps only: a test on the host makes a GPU wait
        if i % 5 == 4 and on_all_ranks((new <= goal).all()):
            break
        p = z + (new / size.clamp_min(1e-30)) * p
        size = new
    return x


def on_all_ranks(done: Tensor) -> bool:
    """Whether all processes are ``done``; a collective call."""
    if dist.is_initialized():
        done = done.float()
        dist.all_reduce(done, dist.ReduceOp.MIN)
    return bool(done)


def mean_over_ranks(x: Tensor) -> Tensor:
    """The mean over processes of equally many samples; a collective call."""
    if dist.is_initialized():
        dist.all_reduce(x)
        x = x / dist.get_world_size()
    return x
