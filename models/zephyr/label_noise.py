"""Noise of redshift labels from several sources, learned and deconvolved."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

QUADRATURE_NODES = 33  # within 4 sigma of a label
N_Z_CELLS = 64  # of the n(z) from which catastrophic labels may be drawn
PRIOR_SIGMA = 3.0  # in `refit`, of log sigma (a factor of 20) and of logit_uniform


class LabelNoise(nn.Module):
    """Per member and source: a Gaussian of width sigma_s (1 + z), and a catastrophic fraction f_s.

    The source ``clean`` has the fixed width ``clean_sigma`` and no catastrophic labels; the others
    are learned. Catastrophic labels follow a learned mixture of uniform in [0, z_max] and n(z).
    Any label is uniform with probability ``uniform_fraction``, which bounds the gradient of a
    single label.
    """

    def __init__(
        self,
        members: int,
        n_sources: int,
        clean: int,
        clean_sigma: float,
        z_max: float,
        uniform_fraction: float,
    ) -> None:
        super().__init__()
        self.clean, self.clean_sigma, self.z_max = clean, clean_sigma, z_max
        self.uniform_fraction = uniform_fraction
        self.log_sigma = nn.Parameter(torch.full((members, n_sources), math.log(0.02)))
        self.logit_catastrophic = nn.Parameter(torch.full((members, n_sources), -2.5))
        self.logit_uniform = nn.Parameter(torch.zeros(members, n_sources))
        # sigma_s and f_s estimated from held-out densities, (2, sources); 0 before `refit`
        self.held_out: Tensor
        self.register_buffer("held_out", torch.zeros(2, n_sources))
        self.n_z: Tensor
        self.register_buffer("n_z", torch.full((N_Z_CELLS,), 1.0 / z_max))

    def fit(self, z: Tensor) -> None:
        """Take n(z) from the labels ``z`` (n,)."""
        counts = torch.histc(z, N_Z_CELLS, 0, self.z_max) + 1
        self.n_z = counts / counts.sum() * N_Z_CELLS / self.z_max

    def refit(self, cdf: Tensor, edges: Tensor, z: Tensor, source: Tensor) -> None:
        """Estimate sigma_s and f_s anew, from densities that were not trained on these labels.

        A network that overfits noisy labels explains part of their noise, and the kernel that is
        trained with it is too narrow. ``cdf`` (n, cells + 1) at ``edges`` are held-out densities of
        the true redshift; ``z`` and ``source`` (n,) the labels.

        Densities wider than the noise leave the likelihood flat towards sigma = 0: a prior, worth
        a single label or less, keeps the estimate finite. In float64, for the masses of narrow
        cells are differences of ``cdf``.
        """
        n_sources = self.log_sigma.shape[1]
        single = LabelNoise(
            1, n_sources, self.clean, self.clean_sigma, self.z_max, self.uniform_fraction
        )
        single.n_z = self.n_z
        single.double().cpu()
        cdf, edges, z = (values.double().cpu() for values in (cdf, edges, z))
        source = source.cpu()
        priors = [(p, p.detach().clone()) for p in (single.log_sigma, single.logit_uniform)]
        step, no_error = edges[1] - edges[0], torch.zeros_like(z)

        def interpolated_cdf(true_z: Tensor) -> Tensor:
            """The held-out cdf at (1, n, nodes), linear within cells."""
            position = ((true_z[0] - edges[0]) / step).clamp(0, cdf.shape[1] - 1 - 1e-4)
            low = position.detach().long()
            left, right = cdf.gather(1, low), cdf.gather(1, low + 1)
            return (left + (position - low) * (right - left))[None]

        optimizer = torch.optim.LBFGS(
            single.parameters(), max_iter=60, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            log_p = single.log_likelihood(torch.zeros_like, interpolated_cdf, z, source, no_error)
            log_posterior = log_p.sum()
            for parameter, centre in priors:
                deviation = (parameter - centre) / PRIOR_SIGMA
                log_posterior = log_posterior - 0.5 * deviation.square().sum()
            loss = -log_posterior / len(z)
            loss.backward()
            return loss

        with torch.enable_grad():
            optimizer.step(closure)
        estimates = torch.cat([values.detach() for values in single.sigma_and_fraction()])
        self.held_out = estimates.to(self.held_out)

    def sigma_and_fraction(self) -> tuple[Tensor, Tensor]:
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
        missed. The likelihood of a label without any noise is the density itself.
        """
        sigma, catastrophic = self.sigma_and_fraction()
        exact = (source == self.clean) & (self.clean_sigma == 0) & (label_error == 0)
        variance = sigma[:, source].square() + (label_error / (1 + z)).square()
        sigma = torch.where(exact, 1.0, variance).sqrt()  # of exact labels it is not used
        t = torch.linspace(-4, 4, QUADRATURE_NODES, device=z.device)
        width = sigma[..., None]
        true_z = ((1 + z)[:, None] / (1 + width * t).clamp_min(0.05) - 1).clamp_min(-0.5)
        mass = -cdf(true_z).diff(dim=-1).clamp_max(0)  # true_z falls with t
        mid = 0.5 * (t[1:] + t[:-1])
        normal = torch.exp(-0.5 * mid.square()) / math.sqrt(2 * math.pi)
        kernel = normal * (1 + width * mid) / (width * (1 + z)[:, None])
        f = catastrophic[:, source]
        noisy = (1 - f) * (mass * kernel).sum(-1) + f * self._catastrophic_density(z, source)
        uniform = self.uniform_fraction
        noisy = torch.log((1 - uniform) * noisy + uniform / self.z_max)
        return torch.where(exact, log_p(z), noisy)

    def _catastrophic_density(self, z: Tensor, source: Tensor) -> Tensor:
        """p_cat(z), (members, batch)."""
        uniform = torch.sigmoid(self.logit_uniform)[:, source]
        cell = (z / self.z_max * N_Z_CELLS).long().clamp(0, N_Z_CELLS - 1)
        return uniform / self.z_max + (1 - uniform) * self.n_z[cell]
