"""HMC of one galaxy's joint posterior near a mode of p(z): parameters, redshift and dispersion.

- ``joint_target(network, emulator, photometry, spectrum, z, width, model) -> JointTarget``: ln
  posterior density (n,) of coordinates ``u`` (n, p + 1); ``.parameters(u)``, ``.sigma_v(u)``,
  ``.start(draws)``.
- ``sample(target, draws, precision, chains, warmup, n, seed) -> Chains``: `redshift.Draws`, and
  R-hat.
- ``posterior_spectrum(spectrum, draws, model) -> Tensor (3, m)``: 16, 50 and 84% of the model.

Coordinates are the standard normal numbers of parameters, of which that of redshift is (ln(1 + z) -
that of the mode) / width, and one more of ln sigma_v.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from orrery.models.feniks.observed_spectrum import Spectrum
from orrery.models.feniks.rest_spectra import at_own_redshift, rest_grid, rest_spectra
from orrery.models.feniks.spectroscopic_redshift import Draws
from orrery.models.feniks.spectrum_fit import DEFAULT, Data, Fit, SpectrumModel, prepared
from orrery.models.feniks.templates import MARGIN, SIGMA_V
from orrery.models.inference.diagnostics import rhat
from orrery.models.inference.hmc import HMC
from orrery.models.sed_emulator import fitting
from orrery.models.sed_emulator.covariance import cholesky
from orrery.models.sed_emulator.spectra import SpectrumNetwork
from orrery.physics.sps.priors import Priors

LARGEST_X = 4.0  # of ln sigma_v
LARGEST_SHIFT = 30.0  # widths of the mode, at which chains turn back
MAX_STEPS = 8  # of a trajectory
FARTHEST = 50.0  # coordinate of a chain


class Chains(NamedTuple):
    """Draws of the posterior, and R-hat of the worst coordinate."""

    draws: Draws
    rhat: float


class JointTarget(NamedTuple):
    """ln posterior density of one galaxy near redshift ``z``, see the module."""

    network: SpectrumNetwork
    emulator: fitting.Emulator
    photometry: fitting.Photometry
    data: Data
    grid: Tensor
    z: float
    width: float  # of ln(1 + z), of which the coordinate of redshift is in units
    model: SpectrumModel

    @property
    def priors(self) -> Priors:
        return self.emulator.priors

    @property
    def z_index(self) -> int:
        return self.priors.names.index("zred")

    def log_ratio(self, u: Tensor) -> Tensor:
        """ln(1 + z) (n,) of coordinates (n, p + 1), float64."""
        return math.log1p(self.z) + self.width * u[:, self.z_index].double()

    def sigma_v(self, u: Tensor) -> Tensor:
        """km/s, (n,)."""
        middle, scatter = SIGMA_V
        return middle * torch.exp(scatter * u[:, -1].clamp(-LARGEST_X, LARGEST_X))

    def parameters(self, u: Tensor) -> Tensor:
        """(n, p)."""
        zred = torch.expm1(self.log_ratio(u)).to(u)
        return fitting.to_parameters(self.priors, u[:, :-1], zred)

    def shapes(self, u: Tensor) -> Tensor:
        """Templates at the pixels, of any scale, (n, m)."""
        flux = rest_spectra(
            self.network, self.parameters(u), self.sigma_v(u), self.data.resolution, self.grid
        )
        return at_own_redshift(flux, self.grid, self.data.log_wavelength, self.log_ratio(u))

    def __call__(self, u: Tensor) -> Tensor:
        """(n,), float64, of float32 coordinates."""
        log_ratio = self.log_ratio(u)
        zred = torch.expm1(log_ratio)
        rows = self.photometry.rows(torch.zeros(len(u), dtype=torch.long))
        rows = rows._replace(zred=zred.to(u), zred_error=torch.zeros(len(u)))
        i = self.z_index
        x = torch.cat([u[:, :i], torch.zeros_like(u[:, :1]), u[:, i + 1 : -1]], 1)
        value = fitting.log_posterior(self.emulator, rows, x).double()
        value = value - 0.5 * u[:, -1].double().square()
        fit = Fit.of(self.data, self.shapes(u), log_ratio, self.model)
        value = value + fit.log_likelihood()
        value = value + self.priors.each[i].log_prob(zred) + log_ratio
        inside = u[:, i].abs() < LARGEST_SHIFT
        return torch.where(inside, value, -torch.inf)

    def start(self, draws: Draws) -> Tensor:
        """Coordinates (n, p + 1) of draws."""
        u = self.priors.to_normal(draws.parameters)
        u = u.clamp(-fitting.LARGEST_X, fitting.LARGEST_X)
        u[:, self.z_index] = ((torch.log1p(draws.z) - math.log1p(self.z)) / self.width).to(u)
        middle, scatter = SIGMA_V
        return torch.cat([u, ((draws.sigma_v / middle).log() / scatter)[:, None]], 1)


def joint_target(
    network: SpectrumNetwork,
    emulator: fitting.Emulator,
    photometry: fitting.Photometry,
    spectrum: Spectrum,
    z: float,
    width: float,
    model: SpectrumModel = DEFAULT,
) -> JointTarget:
    """The target near the mode at ``z``, of a ``width`` in redshift: a rough standard deviation.

    ``photometry``: of one galaxy.
    """
    data = prepared(spectrum, model.order)
    scale = width / (1 + z)
    reach = LARGEST_SHIFT * scale + MARGIN
    ends = (data.log_wavelength[[0, -1]] - math.log1p(z)).tolist()
    grid = rest_grid(math.exp(ends[0] - reach), math.exp(ends[1] + reach))
    return JointTarget(network, emulator, photometry, data, grid, z, scale, model)


@torch.inference_mode(False)  # for HMC needs gradients
def sample(
    target: JointTarget,
    draws: Draws,
    precision: Tensor,
    chains: int = 8,
    warmup: int = 30,
    n: int = 200,
    seed: int = 0,
) -> Chains:
    """``n`` draws by HMC; chains begin at the most probable ``draws``, of the same mode.

    ``precision`` (p, p): of the photometry's fit nearby (`redshift.PhotometricNodes.precision`),
    with which the metric begins that is adapted during ``warmup``.
    """
    u = target.start(draws).unique(dim=0)
    with torch.no_grad():
        log_p = torch.cat([target(part) for part in u.split(64)])
    order = log_p.argsort(descending=True)
    covariance = torch.eye(u.shape[1]).double()
    covariance[:-1, :-1] = torch.cholesky_inverse(cholesky(precision.double()))
    start = u[order[torch.arange(chains) % len(order)]].double()[None]

    def density(position: Tensor) -> Tensor:
        u = position[0].float()  # of a trajectory that is lost: anything
        lost = ~(u.abs() < FARTHEST).all(1)
        return torch.where(lost, -torch.inf, target(torch.where(lost[:, None], 0.0, u)))[None]

    sampler = HMC(density, start, warmup, seed, covariance=covariance[None], max_steps=MAX_STEPS)
    for _ in range(warmup):
        sampler.advance()
    kept = torch.stack([sampler.advance()[0] for _ in range(math.ceil(n / chains))], 1)
    flat = kept.flatten(0, 1)[:n].float()
    with torch.no_grad():
        z = torch.expm1(target.log_ratio(flat))
        shapes = torch.cat([target.shapes(part) for part in flat.split(64)])
        found = Draws(z, target.parameters(flat), target.sigma_v(flat), shapes, torch.zeros_like(z))
    return Chains(found, float(rhat(kept).max()))


@torch.no_grad()
def posterior_spectrum(spectrum: Spectrum, draws: Draws, model: SpectrumModel = DEFAULT) -> Tensor:
    """16, 50 and 84% of f_nu, uJy, at the pixels, (3, m), with calibration and narrow lines."""
    data = prepared(spectrum, model.order)
    best = Fit.of(data, draws.shapes, torch.log1p(draws.z), model).best()
    return best.quantile(torch.tensor([0.16, 0.5, 0.84]).to(best), dim=0)
