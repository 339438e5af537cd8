"""Metric Gaussian variational inference (Knollmueller & Ensslin 2019, arXiv:1901.11033).

The posterior of standard normal latents u, given data d = f(u) + noise, is taken to be normal with
the inverse covariance M = 1 + J^T N^-1 J at its mean, J = df/du. Samples need no matrix: if e1 and
e2 are unit normal, n = J^T N^-1/2 e1 + e2 has the covariance M, and M^-1 n that of the posterior.
The mean minimises the energy averaged over such samples, which are held as they are meanwhile.
`bend` lets samples follow f where it is curved.

Everything is batched over samples, (samples, latents); with several processes each holds its own
samples, and what is averaged over samples is averaged over processes.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from orrery.models.inference.matrix_free import leading, log_determinant

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

    def metric(self, weight: Tensor) -> Product:
        """v -> the mean over samples of J^T ``weight`` J v; v (any, latents), weight (data,)."""


class Data(NamedTuple):
    value: Tensor  # (data,)
    variance: Tensor  # (data,), of the noise


Model = Callable[[Tensor], Linear]

AT_ONCE = 8  # probes


class Solver(NamedTuple):
    """How equations of the metric are solved: by conjugate gradients."""

    tolerance: float
    most: int  # steps
    inverse: Product = torch.clone  # about that of the metric: `inverse`

    def __call__(self, product: Product, b: Tensor, start: Tensor | None = None) -> Tensor:
        start = torch.zeros_like(b) if start is None else start
        return conjugate_gradients(product, b, start, self.inverse, self.tolerance, self.most)


def inverse(model: Model, data: Data, mean: Tensor, among: Tensor, k: int) -> Product:
    """About that of the metric at ``mean`` (1, latents), for (any, latents), to precondition with.

    It knows the ``k`` directions that data constrain most among the latents ``among`` (n,), and
    divides them by as much as they are constrained more than any other. A hundred or so take two
    thirds of the steps off conjugate gradients.
    """
    metric = model(mean).metric(1 / data.variance)

    def product(v: Tensor) -> Tensor:
        whole = v.new_zeros(len(v), mean.shape[1])
        whole[:, among] = v
        return metric(whole)[:, among]

    values, vectors = leading(product, len(among), k, mean, powers=0)
    shrink = (1 + values[-1]) / (1 + values) - 1
    return lambda r: r.index_add(1, among, ((r[:, among] @ vectors) * shrink) @ vectors.T)


def deviations(model: Model, data: Data, mean: Tensor, probes: Tensor) -> Tensor:
    """One over the root of the diagonal of M, (1, latents), at ``mean`` (1, latents).

    The diagonal is the mean square of J^T N^-1/2 e over ``probes`` e (n, data), unit normal: to a
    relative error of (2 / n)^(1/2) for every latent.
    """
    at, root = model(mean), data.variance.rsqrt()
    squares = [at.vjp(root * e).square().sum(0, keepdim=True) for e in probes.split(AT_ONCE)]
    return (1 + torch.stack(squares).sum(0) / len(probes)).rsqrt()


def residuals(
    model: Model, data: Data, mean: Tensor, e1: Tensor, e2: Tensor, solve: Solver
) -> Tensor:
    """Draws from N(0, M^-1), (pairs, latents); ``mean`` (1, latents).

    ``e1`` (pairs, data) and ``e2`` (pairs, latents): unit normal. The solver starts at ``e2``, a
    draw of the prior: where it has not come to yet, samples are too wide rather than too narrow.
    """
    at = model(mean)
    weight = 1 / data.variance
    n = at.vjp(weight.sqrt() * e1) + e2
    metric = at.metric(weight)
    return solve(lambda v: v + metric(v), n, e2)


def bend(
    model: Model, data: Data, mean: Tensor, e1: Tensor, e2: Tensor, straight: Tensor, free: Tensor,
    steps: int, solve: Solver,
) -> Tensor:  # fmt: skip
    """Samples from the mean that fit the data as far as f is curved, (samples, latents).

    The residual r of a sample, ``straight``, has the least |N^-1/2 J r - e1|^2 + |r - e2|^2. Here
    it has the least |N^-1/2 (f(mean + r) - f(mean)) - e1|^2 + |r - e2|^2, by so many ``steps`` of
    Gauss and Newton from the straight one: randomised maximum likelihood (Oliver, He & Reynolds
    1996) about the mean. To first order in the curvature it does what geometric variational
    inference does (Frank, Leike & Ensslin 2021, arXiv:2105.10470), by least squares. Latents
    whose ``free`` (1, latents) is 0 in place of 1 stay straight: least squares of a field and its
    amplitude would let the amplitude grow, since that makes |r - e2| of the field less.
    """
    weight, start = 1 / data.variance, model(mean).value
    wanted = start + data.variance.sqrt() * e1

    def energy(at: Linear, r: Tensor) -> Tensor:
        misfit = (weight * (at.value - wanted).square()).sum(1)
        return 0.5 * (misfit + (r - e2).square().sum(1))

    r, at = straight, model(mean + straight)
    least = energy(at, r)
    for _ in range(steps):
        gradient = free * (at.vjp(weight * (at.value - wanted)) + r - e2)

        def metric(v: Tensor, at: Linear = at) -> Tensor:
            return v + free * at.vjp(weight * at.jvp(free * v))

        step = solve(metric, gradient)
        for shorter in (0.5, 0.5, 0.5, 0.5, 0.0, 0.0):
            tried = model(mean + r - step)
            found = energy(tried, r - step)
            worse = found > least
            if not bool(worse.any()):
                break
            step = torch.where(worse[:, None], shorter * step, step)
        r, at, least = r - step, tried, found
    return r


def newton(
    model: Model, data: Data, mean: Tensor, both: Tensor, steps: int, solve: Solver
) -> tuple[Tensor, Tensor]:
    """The mean that has the least energy, averaged over ``mean`` + ``both`` (samples, latents).

    Newton's method with the metric in place of the Hessian; a step that does not lead down is
    halved. Also the energy there.
    """
    weight = 1 / data.variance
    middle = over_ranks(both.mean(0, keepdim=True))  # 0 of mirrored samples
    spread = over_ranks(0.5 * both.square().sum(1).mean())

    def energy(at: Linear, u: Tensor) -> Tensor:
        misfit = 0.5 * (weight * (at.value - data.value).square()).sum(1).mean()
        return over_ranks(misfit) + (u * (0.5 * u + middle)).sum() + spread

    at = model(mean + both)
    least = energy(at, mean)
    for _ in range(steps):
        gradient = over_ranks(at.vjp_mean(weight * (at.value - data.value))) + mean + middle
        metric = at.metric(weight)
        step = solve(lambda v, metric=metric: v + over_ranks(metric(v)), gradient)  # type: ignore[misc]
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


def evidence_bound(
    model: Model, data: Data, mean: Tensor, half: Tensor, bent: Tensor | None = None
) -> float:
    """The ELBO: a lower bound of ln p(data), from draws ``half`` (pairs, latents) of N(0, M^-1).

    The divergence from the prior is (|mean|^2 - tr(J M^-1 J^T / N) + ln det M) / 2. With ``bent``
    (2 pairs, latents), the same draws and their mirror images after `bend`, it is that of those,
    an estimate: they are taken to fill the volume of straight ones.
    """
    at, root = model(mean), data.variance.sqrt()
    constrained = torch.cat([at.jvp(d) / root for d in half.split(8)]).square().sum(1).mean()
    log_det = log_determinant(
        lambda y: y + at.jvp(at.vjp(y / root)) / root, len(data.value), data.value
    )
    divergence = 0.5 * (mean.square().sum() - constrained + log_det)
    both = torch.cat([half, -half])
    if bent is not None:
        divergence += (mean * bent).sum(1).mean()
        divergence += 0.5 * (bent.square() - both.square()).sum(1).mean()
        both = bent
    norm = (2 * torch.pi * data.variance).log().sum()
    return float(-0.5 * (misfit(model, data, mean, both) + norm) - divergence)


def misfit(model: Model, data: Data, mean: Tensor, both: Tensor) -> Tensor:
    """chi2 of the data, its mean over ``mean`` + ``both`` (samples, latents)."""
    found = [
        ((model(mean + d).value - data.value).square() / data.variance).sum(1)
        for d in both.split(AT_ONCE)
    ]
    return torch.cat(found).mean()


def conjugate_gradients(
    product: Product, b: Tensor, x: Tensor, inverse: Product, tolerance: float, most: int
) -> Tensor:
    """x (samples, latents) of ``product``(x) = b for a positive definite product of each sample.

    From ``x``; ``inverse`` is about that of ``product``, positive definite. Stops when r P r of
    all residuals r, of all processes, is below ``tolerance``^2 b P b, P that inverse: so that any
    number of processes gives the samples of one.
    """
    goal = tolerance**2 * (b * inverse(b)).sum(1, keepdim=True)
    r = b - product(x)
    p = inverse(r)
    size = (r * p).sum(1, keepdim=True)
    for i in range(most):
        q = product(p)
        alpha = size / (p * q).sum(1, keepdim=True).clamp_min(1e-30)
        x, r = x + alpha * p, r - alpha * q
        z = inverse(r)
        new = (r * z).sum(1, keepdim=True)
        # asked every few steps: an answer makes a GPU wait
        if i % 5 == 4 and everywhere((new <= goal).all()):
            break
        p = z + (new / size.clamp_min(1e-30)) * p
        size = new
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
