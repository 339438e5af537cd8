"""Noise of redshift labels from several sources, learned and taken out."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

NODES = 33  # of the quadrature, within 4 sigma of a label
CELLS = 64  # of the n(z) from which catastrophic labels may be drawn
PRIOR_WIDTH = 3.0  # in `refit`, of log sigma (a factor of 20) and of logit_uniform


class LabelNoise(nn.Module):
    """Per member and source: a Gaussian of width sigma_s (1 + z), and a share f_s of catastrophes.

    The source ``clean`` has the given width ``clean_sigma`` and no catastrophes; the others are
    learned. Catastrophic labels follow a learned mixture of uniform in [0, z_max] and n(z). A share
    ``floor`` of any label is uniform, so that no single label can own a step.
    """

    def __init__(
        self,
        members: int,
        n_sources: int,
        clean: int,
        clean_sigma: float,
        z_max: float,
        floor: float,
    ) -> None:
        super().__init__()
        self.clean, self.clean_sigma, self.z_max, self.floor = clean, clean_sigma, z_max, floor
        self.log_sigma = nn.Parameter(torch.full((members, n_sources), math.log(0.02)))
        self.logit_catastrophic = nn.Parameter(torch.full((members, n_sources), -2.5))
        self.logit_uniform = nn.Parameter(torch.zeros(members, n_sources))
        # sigma_s and f_s as held-out densities give them, (2, sources); 0 before `refit`
        self.held_out: Tensor
        self.register_buffer("held_out", torch.zeros(2, n_sources))
        self.n_z: Tensor
        self.register_buffer("n_z", torch.full((CELLS,), 1.0 / z_max))

    def fit(self, z: Tensor) -> None:
        """Take n(z) from the labels ``z`` (n,)."""
        counts = torch.histc(z, CELLS, 0, self.z_max) + 1
        self.n_z = counts / counts.sum() * CELLS / self.z_max

    def refit(self, cdf: Tensor, edges: Tensor, z: Tensor, source: Tensor) -> None:
        """Estimate sigma_s and f_s anew, from densities that did not learn these labels.

        A network that overfits noisy labels takes part of their noise for information, and the
        kernel that is trained with it comes out too narrow. ``cdf`` (n, cells + 1) at ``edges``
        are held-out densities of the true redshift; ``z`` and ``source`` (n,) the labels.

        Densities wider than the noise leave the likelihood flat towards sigma = 0: a prior, worth
        a single label or less, keeps the estimate finite. In float64, for the masses of narrow
        cells are differences of ``cdf``.
        """
        n_sources = self.log_sigma.shape[1]
        single = LabelNoise(1, n_sources, self.clean, self.clean_sigma, self.z_max, self.floor)
        single.n_z = self.n_z
        single.double().cpu()
        cdf, edges, z = (values.double().cpu() for values in (cdf, edges, z))
        source = source.cpu()
        held = [(p, p.detach().clone()) for p in (single.log_sigma, single.logit_uniform)]
        step, none = edges[1] - edges[0], torch.zeros_like(z)

        def at(true_z: Tensor) -> Tensor:
            """The held-out cdf at (1, n, nodes), linear within cells."""
            place = ((true_z[0] - edges[0]) / step).clamp(0, cdf.shape[1] - 1 - 1e-4)
            low = place.detach().long()
            left, right = cdf.gather(1, low), cdf.gather(1, low + 1)
            return (left + (place - low) * (right - left))[None]

        optimizer = torch.optim.LBFGS(
            single.parameters(), max_iter=60, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            log_p = single.log_likelihood(torch.zeros_like, at, z, source, none).sum()
            for parameter, centre in held:
                log_p = log_p - 0.5 * ((parameter - centre) / PRIOR_WIDTH).square().sum()
            loss = -log_p / len(z)
            loss.backward()
            return loss

        with torch.enable_grad():
            optimizer.step(closure)
        found = torch.cat([values.detach() for values in single.values()])
        self.held_out = found.to(self.held_out)

    def values(self) -> tuple[Tensor, Tensor]:
        """sigma_s, in units of 1 + z, and f_s; each (members, sources)."""
        sources = torch.arange(self.log_sigma.shape[1], device=self.log_sigma.device)
        is_clean = sources == self.clean
        sigma = torch.where(is_clean, self.clean_sigma, self.log_sigma.exp())
        return sigma, torch.where(is_clean, 0.0, torch.sigmoid(self.logit_catastrophic))

    def log_likelihood(
        self,
        log_p: Callable[[Tensor], Tensor],
        cdf: Callable[[Tensor], Tensor],
        z: Tensor,
        source: Tensor,
        label_error: Tensor,
    ) -> Tensor:
        """log (1 - f) int p(z') N(z; z', sigma (1 + z')) dz' + f p_cat(z), (members, batch).

        The density of the true redshift is given by ``log_p``, at redshifts (batch,), and ``cdf``,
        at redshifts (members, batch, n); ``z``, ``source`` and ``label_error`` (batch,) describe
        the labels.
        The integral is a sum over cells of z' within 4 sigma of the label: the mass of the density
        in a cell times the kernel at its centre, so that a density narrower than a cell is not
        missed. A label without any noise has its density itself.
        """
        sigma, catastrophic = self.values()
        exact = (source == self.clean) & (self.clean_sigma == 0) & (label_error == 0)
        variance = sigma[:, source].square() + (label_error / (1 + z)).square()
        sigma = torch.where(exact, 1.0, variance).sqrt()  # of the exact ones not used
        t = torch.linspace(-4, 4, NODES, device=z.device)
        width = sigma[..., None]
        true_z = ((1 + z)[:, None] / (1 + width * t).clamp_min(0.05) - 1).clamp_min(-0.5)
        mass = -cdf(true_z).diff(dim=-1).clamp_max(0)  # true_z falls with t
        mid = 0.5 * (t[1:] + t[:-1])
        normal = torch.exp(-0.5 * mid.square()) / math.sqrt(2 * math.pi)
        kernel = normal * (1 + width * mid) / (width * (1 + z)[:, None])
        f = catastrophic[:, source]
        noisy = (1 - f) * (mass * kernel).sum(-1) + f * self._p_cat(z, source)
        noisy = torch.log((1 - self.floor) * noisy + self.floor / self.z_max)
        return torch.where(exact, log_p(z), noisy)

    def _p_cat(self, z: Tensor, source: Tensor) -> Tensor:
        uniform = torch.sigmoid(self.logit_uniform)[:, source]
        cell = (z / self.z_max * CELLS).long().clamp(0, CELLS - 1)
        return uniform / self.z_max + (1 - uniform) * self.n_z[cell]
