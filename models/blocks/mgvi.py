"""Metric Gaussian variational inference (Knollmueller & Ensslin 2019, arXiv:1901.11033).

The posterior of standard normal latents u, given data d = f(u) + noise, is taken to be normal with
the inverse covariance M = 1 + J^T N^-1 J at its mean, J = df/du. Samples need no matrix: if e1 and
e2 are unit normal, n = J^T N^-1/2 e1 + e2 has the covariance M, and M^-1 n that of the posterior.
The mean minimises the energy averaged over such samples, which are held as they are meanwhile.

Everything is batched over samples, (samples, latents); with several processes each holds its own
samples, and what is averaged over samples is averaged over processes.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from models.blocks.spectrum import log_determinant

Product = Callable[[Tensor], Tensor]


class Linear(Protocol):
    """The model linearised about latents u (samples, latents)."""

    value: Tensor  # f(u), (samples, data)

    def jvp(self, v: Tensor) -> Tensor:
        """J v, (samples, data), of v (samples or 1, latents)."""

    def vjp(self, w: Tensor) -> Tensor:
        """J^T w, (samples, latents), of w (samples, data)."""

    def vjp_mean(self, w: Tensor) -> Tensor:
        """The mean over samples of J^T w, (1, latents)."""


class Data(NamedTuple):
    value: Tensor  # (data,)
    variance: Tensor  # (data,), of the noise


Model = Callable[[Tensor], Linear]


def residuals(
    model: Model, data: Data, mean: Tensor, e1: Tensor, e2: Tensor, tolerance: float, most: int
) -> Tensor:
    """Draws from N(0, M^-1), (pairs, latents); ``mean`` (1, latents).

    ``e1`` (pairs, data) and ``e2`` (pairs, latents): unit normal.
    """
    at = model(mean)
    weight = 1 / data.variance
    n = at.vjp(weight.sqrt() * e1) + e2
    return conjugate_gradients(lambda v: v + at.vjp(weight * at.jvp(v)), n, tolerance, most)


def newton(
    model: Model, data: Data, mean: Tensor, both: Tensor, steps: int, tolerance: float, most: int
) -> tuple[Tensor, Tensor]:
    """The mean that has the least energy, averaged over ``mean`` + ``both`` (samples, latents).

    Newton's method with the metric in place of the Hessian; a step that does not lead down is
    halved. Also the energy there.
    """
    weight = 1 / data.variance
    spread = over_ranks(0.5 * both.square().sum(1).mean())

    def energy(at: Linear, u: Tensor) -> Tensor:
        misfit = 0.5 * (weight * (at.value - data.value).square()).sum(1).mean()
        return over_ranks(misfit) + 0.5 * u.square().sum() + spread

    at = model(mean + both)
    least = energy(at, mean)
    for _ in range(steps):
        here = at  # for the closures below
        gradient = over_ranks(here.vjp_mean(weight * (here.value - data.value))) + mean
        step = conjugate_gradients(
            lambda v, here=here: v + over_ranks(here.vjp_mean(weight * here.jvp(v))),  # type: ignore[misc]
            gradient,
            tolerance,
            most,
        )
        before = least
        for _ in range(6):
            tried = model(mean - step + both)
            found = energy(tried, mean - step)
            if bool(found < least):
                mean, at, least = mean - step, tried, found
                break
            step = 0.5 * step
        if bool(before - least < 1e-2):  # nats
            break
    return mean, least


def evidence_bound(model: Model, data: Data, mean: Tensor, half: Tensor) -> float:
    """The ELBO: a lower bound of ln p(data), from draws ``half`` (pairs, latents) of N(0, M^-1).

    The divergence from the prior is (|mean|^2 - tr(J M^-1 J^T / N) + ln det M) / 2.
    """
    at, root = model(mean), data.variance.sqrt()
    misfit = [
        ((model(mean + d).value - data.value) / root).square().sum(1).mean()
        for d in torch.cat([half, -half]).split(len(half))
    ]
    constrained = torch.cat([at.jvp(d) / root for d in half.split(8)]).square().sum(1).mean()
    log_det = log_determinant(
        lambda y: y + at.jvp(at.vjp(y / root)) / root, len(data.value), data.value
    )
    divergence = 0.5 * (mean.square().sum() - constrained + log_det)
    norm = (2 * torch.pi * data.variance).log().sum()
    return float(-0.5 * (torch.stack(misfit).mean() + norm) - divergence)


def conjugate_gradients(product: Product, b: Tensor, tolerance: float, most: int) -> Tensor:
    """x (samples, latents) of ``product``(x) = b for a positive definite product of each sample.

    Stops when the squared residual of every sample, of all processes, is below ``tolerance``^2
    |b|^2: so that any number of processes gives the samples of one.
    """
    x, r, p = torch.zeros_like(b), b, b
    rr = b.square().sum(1, keepdim=True)
    goal = tolerance**2 * rr
    for i in range(most):
        q = product(p)
        alpha = rr / (p * q).sum(1, keepdim=True).clamp_min(1e-30)
        x, r = x + alpha * p, r - alpha * q
        new = r.square().sum(1, keepdim=True)
        # asked every few steps: an answer makes a GPU wait
        if i % 5 == 4 and everywhere((new <= goal).all()):
            break
        p = r + (new / rr.clamp_min(1e-30)) * p
        rr = new
    return x


def everywhere(done: Tensor) -> bool:
    """Whether all processes are ``done``, which each of them asks at the same time."""
    if dist.is_initialized():
        done = done.float()
        dist.all_reduce(done, dist.ReduceOp.MIN)
    return bool(done)


def over_ranks(x: Tensor) -> Tensor:
    """The mean over processes, which hold as many samples each."""
    if dist.is_initialized():
        dist.all_reduce(x)
        x = x / dist.get_world_size()
    return x
