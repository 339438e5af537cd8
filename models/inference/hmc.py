"""Hamiltonian Monte Carlo of many chains at once, on many posteriors at once.

Chains are rows of one tensor, so that a leapfrog step of all of them is one call of the target's
gradient. Nothing here knows what is sampled: the target is a function of unconstrained vectors.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

DIVERGENT = 1000.0  # error of the energy beyond which a trajectory has left the typical set
WINDOWS = (0.15, 0.3, 0.6)  # shares of the warm-up after which the metric is estimated anew

Target = Callable[[Tensor], Tensor]


class HMC:
    """HMC with a step size, a metric and a trajectory length that adapt during ``warmup``.

    The target maps (groups, chains, dim) to log densities (groups, chains). A group is a posterior
    of its own, such as a data set of a simulation-based calibration: it has its own step size
    (dual averaging, Hoffman & Gelman 2014) and metric, diagonal but for the first coordinates, of
    which ``covariance`` (groups, k, k) is a first guess. The trajectory length is shared and
    maximises ChEES per time (Hoffman, Radul & Sountsov 2021; Sountsov & Hoffman 2021), with jitter.

    `advance` makes one transition and returns the positions; `state` and `restore` stop and resume
    a run exactly. float64.
    """

    def __init__(
        self,
        target: Target,
        start: Tensor,
        warmup: int,
        seed: int = 0,
        accept: float = 0.9,
        covariance: Tensor | None = None,
        max_steps: int = 256,
    ) -> None:
        self.target, self.warmup, self.accept = target, warmup, accept
        groups, _, dim = start.shape
        if covariance is None:
            covariance = start.new_zeros(groups, 0, 0)
        self.dense, self.max_steps = covariance.shape[-1], max_steps
        scale = torch.ones(groups, 1, dim).to(start)
        width = covariance.diagonal(dim1=1, dim2=2).sqrt()
        scale[:, 0, : self.dense] = width
        new = start.new_tensor
        self.generator = torch.Generator().manual_seed(seed)
        self.device = start.device
        log_p, gradient = self._gradient(start)
        if not bool(torch.isfinite(log_p).all()):
            raise ValueError("the target is not finite where the chains start")
        self.values: dict[str, Any] = {
            "iteration": 0,
            "position": start,
            "log_p": log_p,
            "gradient": gradient,
            "scale": scale,  # of the coordinates
            # Cholesky factor of the correlations of the first ones
            "factor": torch.linalg.cholesky(covariance / width[:, None] / width[..., None]),
            "log_step": torch.full((groups,), math.log(0.1)).to(start),
            "mean_log_step": torch.zeros(groups).to(start),
            "excess": torch.zeros(groups).to(start),
            "anchor": torch.full((groups,), math.log(1.0)).to(start),
            "since": 0,
            "log_length": new(math.log(0.5 * math.pi)),  # of a unit normal, half a turn at most
            "moments": new([0.0, 0.0]),  # dC/dT and C of the length, see `_adapt`
            "seen": torch.zeros(3, groups, 1, dim).to(start),  # count, mean, squares
            "cross": torch.zeros_like(covariance),
            "divergences": torch.zeros(groups, dtype=torch.long, device=start.device),
            "accepted": torch.zeros(groups).to(start),
            "gradients": 0,
        }

    # --- one transition -----------------------------------------------------------------------

    def advance(self) -> Tensor:
        """One transition of all chains: (groups, chains, dim)."""
        now = self.values
        warming = now["iteration"] < self.warmup
        jitter = 2 * _halton(now["iteration"] + 1)
        log_step = now["log_step"] if warming else now["mean_log_step"]
        step = log_step.exp()[:, None, None]
        early = now["iteration"] < WINDOWS[0] * self.warmup  # the metric is not known yet
        steps = (jitter * (now["log_length"] - log_step).exp()).round()
        steps = steps.clamp(1, 16 if early else self.max_steps)[:, None, None]
        longest = int(steps.max())

        momentum = self._normal(now["position"].shape)
        position, gradient, log_p = now["position"], now["gradient"], now["log_p"]
        energy = log_p - 0.5 * momentum.square().sum(-1)
        q, p, force = position, momentum, self._whiten(gradient)
        for i in range(longest):
            move = step * (i < steps)  # a group whose trajectory is over stands still
            p = p + 0.5 * move * force
            q = q + self._unwhiten(move * p)
            log_q, gradient_q = self._gradient(q)
            force = self._whiten(gradient_q)
            p = p + 0.5 * move * force
        now["gradients"] += longest
        change = log_q - 0.5 * p.square().sum(-1) - energy
        change = torch.where(torch.isfinite(change), change, -torch.inf)
        accept = change.clamp_max(0).exp()
        taken = self._uniform(accept.shape) < accept
        if warming:
            self._adapt(position, q, p, accept, jitter)
        else:
            now["divergences"] = now["divergences"] + (change < -DIVERGENT).sum(1)
            now["accepted"] = now["accepted"] + accept.mean(1)
        now["position"] = torch.where(taken[..., None], q, position)
        now["gradient"] = torch.where(taken[..., None], gradient_q, gradient)
        now["log_p"] = torch.where(taken, log_q, log_p)
        if warming:
            self._learn_metric()
        now["iteration"] += 1
        return now["position"]

    def _gradient(self, q: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            q = q.detach().requires_grad_()
            log_p = self.target(q)
            (gradient,) = torch.autograd.grad(log_p.sum(), q)
        return log_p.detach(), gradient

    def _unwhiten(self, x: Tensor) -> Tensor:
        """From unit momenta to velocities: covariance^(1/2) x."""
        first = x[..., : self.dense] @ self.values["factor"].mT
        return torch.cat([first, x[..., self.dense :]], -1) * self.values["scale"]

    def _whiten(self, gradient: Tensor) -> Tensor:
        """The transpose of `_unwhiten`, for gradients."""
        x = gradient * self.values["scale"]
        return torch.cat([x[..., : self.dense] @ self.values["factor"], x[..., self.dense :]], -1)

    def _normal(self, shape: torch.Size) -> Tensor:
        x = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        return x.to(self.device)

    def _uniform(self, shape: torch.Size) -> Tensor:
        return torch.rand(shape, generator=self.generator, dtype=torch.float64).to(self.device)

    # --- adaptation ---------------------------------------------------------------------------

    def _adapt(self, start: Tensor, end: Tensor, p: Tensor, accept: Tensor, jitter: float) -> None:
        now = self.values
        now["since"] += 1
        m = now["since"]
        now["excess"] += (self.accept - accept.mean(1) - now["excess"]) / (m + 10)
        now["log_step"] = now["anchor"] + math.log(0.5) - math.sqrt(m) / 0.05 * now["excess"]
        weight = m**-0.75
        now["mean_log_step"] = weight * now["log_step"] + (1 - weight) * now["mean_log_step"]

        # ChEES per time T, in whitened coordinates: C = <(|q'|^2 - |q|^2)^2> / 4
        k = self.dense or start.shape[-1]  # of latent coordinates there are too many to ask
        finite = (accept > 0)[..., None]  # a lost trajectory has no say
        end = torch.where(finite, end, start)
        a, b = (self._standard(q - q.mean(1, keepdim=True))[..., :k] for q in (start, end))
        gain = b.square().sum(-1) - a.square().sum(-1)
        slope = jitter * gain * (b * torch.where(finite, p, 0.0)[..., :k]).sum(-1)
        new = torch.stack([(slope * accept).sum(), (0.25 * gain.square() * accept).sum()])
        now["moments"] = 0.9 * now["moments"] + 0.1 * new
        rise = now["log_length"].exp() * now["moments"][0] / now["moments"][1].clamp_min(1e-12) - 1
        now["log_length"] = (now["log_length"] + 0.05 * rise.clamp(-1, 1)).clamp(0.5, 1.1)

    def _standard(self, q: Tensor) -> Tensor:
        x = q / self.values["scale"]
        first = torch.linalg.solve_triangular(
            self.values["factor"], x[..., : self.dense].mT, upper=False
        )
        return torch.cat([first.mT, x[..., self.dense :]], -1)

    def _learn_metric(self) -> None:
        """Running moments of all chains of a group; at the end of a window they are the metric."""
        now = self.values
        q = now["position"]
        count, mean, squares = now["seen"]
        n = count + q.shape[1]
        delta = q - mean
        new_mean = mean + delta.sum(1, keepdim=True) / n
        squares = squares + (delta * (q - new_mean)).sum(1, keepdim=True)
        d = self.dense
        now["cross"] = now["cross"] + delta[..., :d].mT @ (q - new_mean)[..., :d]
        now["seen"] = torch.stack([n, new_mean, squares])
        ends = [round(share * self.warmup) for share in WINDOWS]
        if now["iteration"] + 1 not in ends:
            return
        # a little towards the metric as it was, for short windows
        n0 = 10.0
        variance = (squares + n0 * now["scale"].square()) / (n + n0)
        scale = variance.sqrt()
        if d:
            s = scale[..., :d]
            correlation = (now["cross"] + n0 * torch.diag_embed(now["scale"][:, 0, :d] ** 2)) / (
                n[..., :1] + n0
            )
            correlation = correlation / (s * s.mT)
            now["factor"] = torch.linalg.cholesky(0.5 * (correlation + correlation.mT))
        now["scale"] = scale
        now["seen"] = torch.zeros_like(now["seen"])
        now["cross"] = torch.zeros_like(now["cross"])
        now["anchor"], now["since"] = now["mean_log_step"].clone(), 0
        now["anchor"] = now["anchor"].clamp_min(math.log(0.05)) + math.log(2.0)
        now["excess"] = torch.zeros_like(now["excess"])

    # --- stop and go --------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        return {**self.values, "generator": self.generator.get_state()}

    def restore(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])
        self.values = {name: value for name, value in state.items() if name != "generator"}


def climb(target: Target, start: Tensor, steps: int = 300, rate: float = 0.05) -> Tensor:
    """Points of higher density near ``start``, for chains to begin at: Adam, whose rate falls."""
    u = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([u], lr=rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        (-target(u).sum()).backward()
        optimizer.step()
        schedule.step()
    return u.detach()


def _halton(i: int) -> float:
    """The i-th number of the base-2 van der Corput sequence, in (0, 1)."""
    value, base = 0.0, 0.5
    while i:
        value += base * (i & 1)
        i, base = i >> 1, base / 2
    return value
