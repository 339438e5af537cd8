"""Metric Gaussian variational inference (Knollmueller & Ensslin 2019, arXiv:1901.11033), and
geometric variational inference (Frank, Leike & Ensslin 2021, arXiv:2105.10470).

The posterior of standard normal latents u, given data d = f(u) + noise, is taken to be normal with
the inverse covariance M = 1 + J^T N^-1 J at its mean, J = df/du. Samples need no matrix: if e1 and
e2 are unit normal, n = J^T N^-1/2 e1 + e2 has the covariance M, and M^-1 n that of the posterior.
The mean minimises the energy averaged over such samples, which are held as they are meanwhile.
So far MGVI. Where f is far from linear such samples leave what the data allow, or are too narrow
in order not to; those of geoVI are normal in coordinates g in which the posterior nearly is:

    g(r) = r + J^T N^-1 (f(mean + r) - f(mean)) = n,

solved for the residual r, of which M^-1 n is the linear solution.

Everything is batched over samples, (samples, latents); with several processes each holds its own
samples, and what is averaged over samples is averaged over processes.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

BENDS = 8  # steps of Newton's method for a bent sample
ALIKE = 1.0  # squared misfit of all data together, in errors, below which it is found
BEND_TOLERANCE, MOST_BICG = 0.05, 40

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
    model: Model,
    data: Data,
    mean: Tensor,
    e1: Tensor,
    e2: Tensor,
    tolerance: float,
    most: int,
    bend: bool = False,
) -> Tensor:
    """Pairs of draws about ``mean`` (1, latents), (2 pairs, latents): mirrored but for the bending.

    ``e1`` (pairs, data) and ``e2`` (pairs, latents): unit normal.
    """
    at = model(mean)
    weight = 1 / data.variance
    n = at.vjp(weight.sqrt() * e1) + e2
    half = conjugate_gradients(lambda v: v + at.vjp(weight * at.jvp(v)), n, tolerance, most)
    both = torch.cat([half, -half])
    return bent(model, data, mean, both, torch.cat([n, -n])) if bend else both


def bent(model: Model, data: Data, mean: Tensor, linear: Tensor, n: Tensor) -> Tensor:
    """r of g(r) = ``n`` (samples, latents), from the linear solutions.

    With l = N^-1/2 (f(mean + r) - f(mean)) the equation is r = n - J^T N^-1/2 l: so many unknowns
    as there are data. Newton's method for l; its matrix is not symmetric, as J is at two places.
    """
    at, root = model(mean), data.variance.sqrt()
    found = at.jvp(linear) / root  # l

    def place(l: Tensor) -> tuple[Tensor, Linear, Tensor]:
        r = n - at.vjp(l / root)
        there = model(mean + r)
        return r, there, (there.value - at.value) / root - l

    r, there, off = place(found)
    for _ in range(BENDS):
        misfit = off.square().sum(1, keepdim=True)
        if everywhere((misfit < ALIKE).all()):
            break
        here = there  # for the closure below
        step = stabilized_bicg(
            lambda y, here=here: y + here.jvp(at.vjp(y / root)) / root,  # type: ignore[misc]
            off,
            BEND_TOLERANCE,
            MOST_BICG,
        )
        for _ in range(6):  # a sample whose misfit does not fall takes half the step
            tried = found + step
            closer = place(tried)[2].square().sum(1, keepdim=True) < misfit
            if everywhere(closer.all()):
                break
            step = torch.where(closer, step, 0.5 * step)
        found = found + step
        r, there, off = place(found)
    return r


def newton(
    model: Model, data: Data, mean: Tensor, both: Tensor, steps: int, tolerance: float, most: int
) -> tuple[Tensor, Tensor]:
    """The mean that has the least energy, averaged over ``mean`` + ``both`` (samples, latents).

    Newton's method with the metric in place of the Hessian; a step that does not lead down is
    halved. Also the energy there.
    """
    weight = 1 / data.variance
    middle = over_ranks(both.mean(0, keepdim=True))

    def energy(at: Linear, u: Tensor) -> Tensor:
        misfit = (weight * (at.value - data.value).square()).sum(1)
        return over_ranks(0.5 * (misfit + (u + both).square().sum(1)).mean())

    at = model(mean + both)
    least = energy(at, mean)
    for _ in range(steps):
        here = at  # for the closures below
        gradient = over_ranks(here.vjp_mean(weight * (here.value - data.value)))
        gradient = gradient + mean + middle
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


def stabilized_bicg(product: Product, b: Tensor, tolerance: float, most: int) -> Tensor:
    """x (samples, n) of ``product``(x) = b for a product that is not symmetric (van der Vorst 1992).

    Stops as `conjugate_gradients`.
    """
    x, r, p, v = torch.zeros_like(b), b, torch.zeros_like(b), torch.zeros_like(b)
    rho = alpha = omega = torch.ones_like(b[:, :1])
    goal = tolerance**2 * b.square().sum(1, keepdim=True)

    def dot(x: Tensor, y: Tensor) -> Tensor:
        return (x * y).sum(1, keepdim=True)

    for i in range(most):
        old, rho = rho, dot(b, r)
        p = r + _ratio(rho, old) * _ratio(alpha, omega) * (p - omega * v)
        v = product(p)
        alpha = _ratio(rho, dot(b, v))
        s = r - alpha * v
        q = product(s)
        omega = _ratio(dot(q, s), dot(q, q))
        x, r = x + alpha * p + omega * s, s - omega * q
        if i % 5 == 4 and everywhere((dot(r, r) <= goal).all()):
            break
    return x


def _ratio(x: Tensor, y: Tensor) -> Tensor:
    """x / y, and 0 where y is: of samples that are solved already."""
    return torch.where(y.abs() > 1e-30, x / y, 0.0)


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
