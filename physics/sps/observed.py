"""What is observed of a rest spectrum: bands at any redshift, and pixels of a spectrograph.

Both are functions that can be differentiated, by the redshift too.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from orrery.physics.sps.cosmology import LIGHT_SPEED, distance_modulus
from orrery.physics.sps.filters import Filter, filter_matrix
from orrery.physics.sps.igm import transmission
from orrery.physics.sps.population import (
    FINE_FWHM,
    FINE_START,
    FINE_STEP,
    L_SUN,
    LIGHT,
    LOG_START,
    LOG_STEP,
    N_FINE,
    N_PIXELS,
    wavelengths,
)

TEN_PARSEC = 3.0856775814913673e19  # cm
AB_ZERO = -48.6  # AB magnitude of 1 erg/s/cm^2/Hz
MICROJANSKY = 1e-29  # erg/s/cm^2/Hz
LYMAN_ALPHA = 1215.67
LYMAN_LIMIT = 911.8
IGM_STEP = 0.01  # of redshift, in the table of transmission
DUST_EMISSION = 1e4  # Angstrom at rest: beyond it dust emits
FAINTEST = 1e-37  # Lsun / Hz of 1 Msun formed: less is taken as this, for float32's sake
FWHM = 2 * math.sqrt(2 * math.log(2))  # of a Gaussian, over its sigma
# Gaussians that are sampled at pixels add up to 1, to 1e-4, if their sigma is this many pixels
LEAST_SIGMA = 0.7
TAILS = 4.0  # sigma, at which a Gaussian ends


def filter_weights(filters: Sequence[Filter]) -> Tensor:
    """`filter_matrix` on the common grid, in the observed frame: (pixels, filters), float32."""
    grid = LOG_START + LOG_STEP * torch.arange(N_PIXELS, dtype=torch.float64)
    return filter_matrix(filters, grid).float()


class FilterLayer:
    """Mean f_nu through filters of spectra on the common grid, at any redshift up to ``z_max``.

    ``weights`` (pixels, filters): `filter_weights`. Spectra are those of the pixels ``rest`` of the
    common grid, a slice, in which ``emits`` says that dust's emission is needed: it takes what dust
    absorbs at any wavelength, however blue.
    """

    def __init__(self, weights: Tensor, z_max: float) -> None:
        used = weights.sum(1).nonzero()[:, 0]
        start, stop = int(used[0]), int(used[-1]) + 1
        self.z_max, self.start = z_max, start
        self.weights = weights[start:stop]
        every = wavelengths()
        self.emits = bool(every[stop - 1] > DUST_EMISSION)
        bluest = min(float(every[start]) / (1 + z_max), LYMAN_LIMIT)
        first = 0 if self.emits else max(_pixel(bluest) - 2, 0)
        last = max(stop + 1, _pixel(LYMAN_ALPHA) + 2)
        self.rest = slice(first, min(last, N_PIXELS))
        wavelength = every[self.rest].float()
        # up to the pixels that hold Lyman alpha
        self.n_blue = int((wavelength < LYMAN_ALPHA * math.exp(LOG_STEP)).sum())
        self.igm = igm_table(wavelength[: self.n_blue], z_max)

    def to(self, target: Any) -> "FilterLayer":
        """Move the tables to a device, a dtype, or those of a tensor; returns itself."""
        self.weights, self.igm = self.weights.to(target), self.igm.to(target)
        return self

    def __call__(self, spectrum: Tensor, zred: Tensor) -> Tensor:
        """Means (n, filters) of rest L_nu (n, rest pixels) as seen at redshifts (n,)."""
        blue = spectrum[:, : self.n_blue] * between_redshifts(self.igm, zred)
        absorbed = torch.cat([blue, spectrum[:, self.n_blue :]], 1)
        return self._shifted(absorbed, zred) @ self.weights

    def _shifted(self, spectrum: Tensor, zred: Tensor) -> Tensor:
        """A rest spectrum (n, rest pixels) on the pixels of the filters.

        A redshift is a shift of the uniform grid in ln wavelength, with linear interpolation.
        """
        shift = self.start - self.rest.start - torch.log1p(zred) / LOG_STEP
        whole = shift.detach().floor()
        share = (shift - whole)[:, None]
        pixel = torch.arange(len(self.weights), device=spectrum.device)
        index = whole.long()[:, None] + pixel
        n = spectrum.shape[1]
        inside = (index >= 0) & (index < n - 1)
        index = index.clamp(0, n - 2)
        low, high = spectrum.gather(1, index), spectrum.gather(1, index + 1)
        return torch.where(inside, torch.lerp(low, high, share), 0.0)


def igm_table(wavelength: Tensor, z_max: float) -> Tensor:
    """Transmission (redshifts, pixels) at redshifts 0, 0.01, ... of pixels up to Lyman alpha."""
    n = math.ceil(z_max / IGM_STEP) + 2
    return transmission(wavelength.clamp_max(LYMAN_ALPHA - 0.01), IGM_STEP * torch.arange(n))


def between_redshifts(table: Tensor, zred: Tensor) -> Tensor:
    """Rows (n, pixels) of `igm_table` at redshifts (n,)."""
    place = zred / IGM_STEP
    low = place.detach().long().clamp(0, len(table) - 2)
    return torch.lerp(table[low], table[low + 1], (place - low)[:, None])


def magnitudes(mean: Tensor, zred: Tensor, logmass: Tensor) -> Tensor:
    """AB magnitudes (n, filters) of means of L_nu, Lsun / Hz of 1 Msun formed."""
    # f_nu = (1 + z) L_nu / 4 pi d^2
    zero = -2.5 * math.log10(L_SUN / (4 * math.pi * TEN_PARSEC**2)) + AB_ZERO
    magnitude = zero - 2.5 * (mean.clamp_min(FAINTEST) * (1 + zred[:, None])).log10()
    return magnitude + (distance_modulus(zred) - 2.5 * logmass)[:, None]


def microjansky(l_nu: Tensor, zred: Tensor, logmass: Tensor) -> Tensor:
    """f_nu, uJy, (n, ...), of L_nu, Lsun / Hz of 1 Msun formed, at redshifts (n,)."""
    unit = math.log10(L_SUN / (4 * math.pi * TEN_PARSEC**2) / MICROJANSKY)
    scale = 10 ** (unit + logmass - 0.4 * distance_modulus(zred)) * (1 + zred)
    return l_nu * scale[:, None]


# --- spectrographs ------------------------------------------------------------------------------


def sampled(
    fine: Tensor, common: Callable[[], Tensor], wavelength: Tensor, zred: Tensor, sigma: Tensor
) -> Tensor:
    """L_nu (n, m) at observed wavelengths (m,), Angstrom, as a spectrograph sees it.

    ``fine`` (n, fine pixels) is convolved with a Gaussian in ln wavelength, which with that of the
    library has the width ``sigma`` (n,); it is never narrower than 0.7 fine pixels. Beyond the fine
    grid what ``common`` gives, (n, pixels), is interpolated, whose pixels are 750 km/s; it is not
    called where nothing is beyond.
    """
    # float64: a fine pixel is 2e-4, and ln wavelength is about 10
    log_rest = wavelength.double().log() - torch.log1p(zred.double())[:, None]
    place = (log_rest - FINE_START) / FINE_STEP
    library = FINE_FWHM / FWHM * (-log_rest).exp()
    extra = (sigma.double()[:, None].square() - library.square()).clamp_min(0).sqrt() / FINE_STEP
    extra = extra.clamp_min(LEAST_SIGMA).to(fine)
    reach = math.ceil(TAILS * float(extra.detach().max()))
    inside = (place > reach) & (place < N_FINE - 1 - reach)
    nearest = place.detach().round().long().clamp(reach, N_FINE - 1 - reach)
    taps = torch.arange(-reach, reach + 1, device=fine.device)
    offset = (nearest - place).to(fine)[..., None] + taps
    weight = torch.exp(-0.5 * (offset / extra[..., None]).square())
    row = torch.arange(len(fine), device=fine.device)[:, None]
    values = fine.unfold(1, len(taps), 1)[row, nearest - reach]
    smooth = (weight * values).sum(-1) / weight.sum(-1)
    if bool(inside.all()):
        return smooth
    coarse = _interpolated(common(), (log_rest - LOG_START) / LOG_STEP)
    return torch.where(inside, smooth, coarse)


def _interpolated(spectrum: Tensor, place: Tensor) -> Tensor:
    """Values (n, m) of spectra (n, pixels) at places (n, m) in pixels; 0 beyond them."""
    n = spectrum.shape[1]
    low = place.detach().floor().long().clamp(0, n - 2)
    share = (place - low).to(spectrum)
    value = torch.lerp(spectrum.gather(1, low), spectrum.gather(1, low + 1), share)
    return torch.where((share >= 0) & (share <= 1), value, 0.0)


def line_profiles(
    luminosity: Tensor, line: Tensor, wavelength: Tensor, zred: Tensor, sigma: Tensor
) -> Tensor:
    """L_nu (n, m) of lines at observed wavelengths (m,): Gaussians in ln wavelength.

    ``luminosity`` (n, lines), Lsun; ``line`` (lines,): rest wavelengths, Angstrom; ``sigma`` (n,):
    their width in ln wavelength.
    """
    log_rest = wavelength.double().log() - torch.log1p(zred.double())[:, None]
    reach = 1.5 * TAILS * float(sigma.detach().max())
    log_line = line.double().log()
    near = (log_line > log_rest.detach().min() - reach) & (log_line < log_rest.max() + reach)
    if not bool(near.any()):
        return luminosity.new_zeros(log_rest.shape)
    middle = log_line[near].mean()  # differences to it are small enough for single precision
    place, at = (log_line[near] - middle).to(luminosity), (log_rest - middle).to(luminosity)
    height = luminosity[:, near] * (line[near] / LIGHT).to(luminosity)  # by frequency
    height = height / (math.sqrt(2 * math.pi) * sigma[:, None])
    flux = luminosity.new_zeros(log_rest.shape)
    first, last = at.detach().aminmax(dim=0)
    for i in range(len(place)):  # each where it is not negligible
        touched = ((last > place[i] - reach) & (first < place[i] + reach)).nonzero()[:, 0]
        if len(touched):
            part = slice(int(touched[0]), int(touched[-1]) + 1)
            shape = torch.exp(-0.5 * ((at[:, part] - place[i]) / sigma[:, None]).square())
            flux[:, part] += height[:, i : i + 1] * shape
    return flux


def sigma_of(resolution: Tensor | float | None, velocity: Tensor) -> Tensor:
    """Width (n,) in ln wavelength of a ``velocity`` dispersion (n,), km/s, seen at a resolution.

    ``resolution``: wavelength over FWHM; None: infinite.
    """
    sigma = velocity / LIGHT_SPEED
    if resolution is None:
        return sigma
    instrument = 1 / (FWHM * torch.as_tensor(resolution).to(sigma))
    return (sigma.square() + instrument.square()).sqrt()


def _pixel(wavelength: float) -> int:
    """The pixel of the common grid at or below a wavelength, Angstrom."""
    return math.floor((math.log(wavelength) - LOG_START) / LOG_STEP)
