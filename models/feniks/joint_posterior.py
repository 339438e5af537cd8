"""One galaxy's joint posterior near a mode of p(z): parameters, redshift and dispersion.

- ``joint_target(network, emulator, photometry, spectrum, z, width, model) -> JointTarget``: ln
  posterior density (n,) of coordinates ``u`` (n, p + 1); ``.parameters(u)``, ``.sigma_v(u)``.
- ``sample(target, parameters, n, seed) -> Sampled``: `spectroscopic_redshift.Draws`, and R-hat.
- ``posterior_spectrum(spectrum, draws, model) -> Tensor (3, m)``: 16, 50 and 84% of the model.

Coordinates are the standard normal numbers of parameters, of which that of redshift is (ln(1 + z) -
that of the mode) / width, and one more of ln sigma_v.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from orrery.models.feniks.observed_spectrum import Spectrum
from orrery.models.feniks.photometric_redshift import known_redshift
from orrery.models.feniks.rest_spectra import at_own_redshift, rest_grid, rest_spectra
from orrery.models.feniks.spectroscopic_redshift import Draws
from orrery.models.feniks.spectrum_fit import DEFAULT, Data, Fit, SpectrumModel, prepared
from orrery.models.feniks.templates import MARGIN, SIGMA_V
from orrery.models.inference import ensemble
from orrery.models.inference.ensemble import MAX_RHAT, Target, temper, worst_rhat
from orrery.models.sed_emulator.posterior import (
    LARGEST_X,
    Emulator,
    Photometry,
    log_posterior,
    to_parameters,
)
from orrery.models.sed_emulator.spectra import SpectrumNetwork
from orrery.physics.sps.priors import Priors

LARGEST_SCATTER = 4.0  # of ln sigma_v
LARGEST_SHIFT = 30.0  # widths of the mode, at which walkers turn back
WALKERS = 80  # of each of two ensembles
BETWEEN = 6  # steps at a temperature
STEPS = 120  # of the posterior itself
LONGER, ATTEMPTS = 240, 2  # more steps, and how often, where ensembles disagree


class Sampled(NamedTuple):
    """Draws of the posterior, and R-hat of the worst coordinate."""

    draws: Draws
    rhat: float


class JointTarget(NamedTuple):
    """ln posterior density of one galaxy near redshift ``z``, see the module."""

    network: SpectrumNetwork
    emulator: Emulator
    photometry: Photometry
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
        return middle * torch.exp(scatter * u[:, -1].clamp(-LARGEST_SCATTER, LARGEST_SCATTER))

    def parameters(self, u: Tensor) -> Tensor:
        """(n, p)."""
        zred = torch.expm1(self.log_ratio(u)).to(u)
        return to_parameters(self.priors, u[:, :-1], zred)

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
        known, error = known_redshift(self.photometry)
        pull = 0.0 if math.isnan(known) else (zred - known) / error
        value = self._photometric(u) - 0.5 * torch.as_tensor(pull).square()
        value = value + Fit.of(self.data, self.shapes(u), log_ratio, self.model).log_likelihood()
        value = value + self.priors.each[self.z_index].log_prob(zred) + log_ratio
        return torch.where(self._is_inside(u), value, -torch.inf)

    def of_photometry(self, u: Tensor) -> Tensor:
        """The same without the spectrum, (n,), where redshift is normal about the mode."""
        value = self._photometric(u) - 0.5 * u[:, self.z_index].double().square()
        return torch.where(self._is_inside(u), value, -torch.inf)

    def _photometric(self, u: Tensor) -> Tensor:
        """ln posterior density of photometry at given redshifts, and prior of the dispersion."""
        zred = torch.expm1(self.log_ratio(u)).to(u)
        rows = self.photometry.rows(torch.zeros(len(u), dtype=torch.long))
        rows = rows._replace(zred=zred, zred_error=torch.zeros(len(u)))
        x = u[:, :-1].clone()
        x[:, self.z_index] = 0
        value = log_posterior(self.emulator, rows, x).double()
        return value - 0.5 * u[:, -1].double().square()

    def _is_inside(self, u: Tensor) -> Tensor:
        return u[:, self.z_index].abs() < LARGEST_SHIFT


def joint_target(
    network: SpectrumNetwork,
    emulator: Emulator,
    photometry: Photometry,
    spectrum: Spectrum,
    z: float,
    width: float,
    model: SpectrumModel = DEFAULT,
) -> JointTarget:
    """The target near the mode at ``z``, of a ``width`` in redshift: above its standard deviation.

    ``photometry``: of one galaxy.
    """
    data = prepared(spectrum, model.order)
    scale = width / (1 + z)
    reach = LARGEST_SHIFT * scale + MARGIN
    ends = (data.log_wavelength[[0, -1]] - math.log1p(z)).tolist()
    grid = rest_grid(math.exp(ends[0] - reach), math.exp(ends[1] + reach))
    return JointTarget(network, emulator, photometry, data, grid, z, scale, model)


@torch.no_grad()
def sample(target: JointTarget, parameters: Tensor, n: int, seed: int = 0) -> Sampled:
    """``n`` draws by two ensembles that begin at fits to the photometry alone.

    ``parameters`` (T, p): draws of the posterior of photometry at a redshift near the mode. Their
    density goes over to that of photometry and spectrum (`models.inference.ensemble.temper`).
    Ensembles that disagree go on, for `LONGER` steps at a time.
    """
    start = _start(target, parameters, seed)[None]
    times = max(4, math.ceil(n / start.shape[1] / WALKERS))
    first, joint = _grouped(target.of_photometry), _grouped(target.__call__)
    found = temper(first, joint, start, BETWEEN, STEPS, times, seed)
    for attempt in range(ATTEMPTS):
        if float(worst_rhat(found)) <= MAX_RHAT:
            break
        found = ensemble.sample(joint, found[:, :, :, -1], LONGER, times, seed + 2 + attempt)
    u = found.flatten(0, 3)
    u = u[torch.randperm(len(u), generator=torch.Generator().manual_seed(seed))[:n]]
    z = torch.expm1(target.log_ratio(u))
    shapes = torch.cat([target.shapes(part) for part in u.split(64)])
    draws = Draws(z, target.parameters(u), target.sigma_v(u), shapes)
    return Sampled(draws, float(worst_rhat(found)))


def _start(target: JointTarget, parameters: Tensor, seed: int) -> Tensor:
    """Coordinates (2, `WALKERS`, p + 1) of two ensembles, without the spectrum."""
    generator = torch.Generator().manual_seed(seed)
    n = 2 * WALKERS
    order = torch.randperm(len(parameters), generator=generator)
    chosen = parameters[order[torch.arange(n) % len(parameters)]]
    u = target.priors.to_normal(chosen).clamp(-LARGEST_X, LARGEST_X)
    u[:, target.z_index] = torch.randn(n, generator=generator)
    sigma_v = torch.randn(n, 1, generator=generator)
    return torch.cat([u, sigma_v], 1).unflatten(0, (2, WALKERS))


def _grouped(density: Target) -> Target:
    """ln density (1, n) of one posterior at positions (1, n, dim)."""
    return lambda x: density(x[0])[None]


@torch.no_grad()
def posterior_spectrum(spectrum: Spectrum, draws: Draws, model: SpectrumModel = DEFAULT) -> Tensor:
    """16, 50 and 84% of f_nu, uJy, at the pixels, (3, m), with calibration and narrow lines."""
    data = prepared(spectrum, model.order)
    best = Fit.of(data, draws.shapes, torch.log1p(draws.z), model).best()
    return best.quantile(torch.tensor([0.16, 0.5, 0.84]).to(best), dim=0)
