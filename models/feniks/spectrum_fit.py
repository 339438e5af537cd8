"""How well template spectra fit an observed one, at many redshifts at once.

The observed f_nu is a template at a redshift times a polynomial in wavelength (flux calibration and
slit losses), plus narrow emission lines. Coefficients of both are normal a priori, and integrated
over exactly. Errors may be too small by one factor, over whose values the mean is taken.

Public functions, all on tensors:

- ``usable(spectrum) -> Spectrum``: the good pixels alone; ``rebinned(spectrum)``: these, averaged
  in bins of at most 240 km/s, for speed.
- ``rest_grid(low, high) -> Tensor (n,)``: ln rest wavelength, in steps of `STEP` (60 km/s).
- ``rest_templates(network, parameters, sigma_v, resolution, grid) -> Tensor (n, T)``: broadened
  f_nu at rest of any scale.
- ``rest_spectra(...) -> Tensor (T, n)``: the same as rows, which can be differentiated.
- ``log_likelihood(spectrum, grid, templates, log_ratio, model, broad) -> Tensor (k, T)``: ln of the
  likelihood at ln(1 + z) of ``log_ratio`` (k,), up to a constant of the spectrum.
- ``prepared(spectrum, order) -> Data``; ``Fit.of(data, shapes, log_ratio, model)``: the same for a
  redshift per template (n, m), which can be differentiated: ``.log_likelihood()`` (n,),
  ``.best()`` (n, m) the model with its coefficients.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from orrery.models.sed_emulator.covariance import cholesky
from orrery.models.sed_emulator.spectra import SpectrumNetwork
from orrery.physics.sps.attenuation import behind_dust
from orrery.physics.sps.cosmology import LIGHT_SPEED
from orrery.physics.sps.emission import (
    H_BETA,
    NARROW,
    O_III,
    instrument_sigma,
    line_shapes,
    seen,
)
from orrery.physics.sps.observed import FWHM, line_profiles
from orrery.physics.sps.population import (
    FINE_FWHM,
    FINE_START,
    FINE_STEP,
    LOG_START,
    LOG_STEP,
    N_FINE,
    N_PIXELS,
)
from orrery.physics.sps.synthesis import DUST

STEP = FINE_STEP  # of ln wavelength, and of ln(1 + z)
TAILS = 4.0  # sigma, at which a Gaussian ends
REDSHIFTS_AT_ONCE = 16
# shifts and FWHM, km/s, whose sum is like any broad component
BROAD = ((-1500.0, 2500.0), (0.0, 2500.0), (1500.0, 2500.0), (0.0, 5500.0))
BROAD_WIDTH = 30.0  # Angstrom at rest: prior error of the equivalent width of each
HUGE = 1e12
REBINNED = 240.0  # km/s: wider pixels lose what galaxies of 200 km/s show
FAINTEST = 1.0  # errors of the mean flux: a spectrum without light is normalised to this


class Spectrum(NamedTuple):
    """One observed spectrum.

    ``wavelength`` (m,): Angstrom in vacuum, float64, rising; ``flux`` and ``error`` (m,): f_nu,
    uJy; ``good`` (m,): pixels that count; ``resolution`` (): wavelength over FWHM.
    """

    wavelength: Tensor
    flux: Tensor
    error: Tensor
    good: Tensor
    resolution: Tensor


class SpectrumModel(NamedTuple):
    """What is integrated over, beside the templates.

    ``amplitude`` and ``slope``: prior errors, relative, of the mean flux and of each higher
    coefficient of the polynomial, in Legendre's, up to ``order``. ``equivalent_width``: prior
    error, Angstrom at rest, of narrow lines of the dispersion ``line_sigma``, km/s, and
    ``line_share``: the prior probability that there are any beyond those of the templates.
    ``jitter``: factors of the errors, equally probable.
    """

    order: int = 3
    amplitude: float = 0.5
    slope: float = 0.1
    equivalent_width: float = 10.0
    line_sigma: float = 200.0
    line_share: float = 0.25
    jitter: tuple[float, ...] = (1.0, 1.2, 1.5, 2.0)


DEFAULT = SpectrumModel()


def usable(spectrum: Spectrum) -> Spectrum:
    """The good pixels alone."""
    good = spectrum.good
    return Spectrum(
        spectrum.wavelength[good],
        spectrum.flux[good],
        spectrum.error[good],
        good[good],
        spectrum.resolution,
    )


def rebinned(spectrum: Spectrum, width: float = REBINNED) -> Spectrum:
    """Good pixels, averaged with their weights in bins of at most ``width``, km/s.

    The width of a bin counts as a loss of resolution: the variance of a box is width^2 / 12.
    """
    spectrum = usable(spectrum)
    log_wavelength = spectrum.wavelength.double().log()
    pixel = float(log_wavelength.diff().median()) * LIGHT_SPEED
    n = int(width / pixel)
    if n < 2:
        return spectrum
    bins = ((log_wavelength - log_wavelength[0]) / (n * pixel / LIGHT_SPEED) + 1e-6).long()
    weight = 1 / spectrum.error.double().square()
    size = int(bins[-1]) + 1

    def summed(values: Tensor) -> Tensor:
        return values.new_zeros(size).index_add(0, bins, values)

    total = summed(weight)
    kept = total > 0
    total = total[kept]
    sigma = math.hypot(instrument_sigma(float(spectrum.resolution)), n * pixel / math.sqrt(12))
    return Spectrum(
        summed(weight * spectrum.wavelength)[kept] / total,
        summed(weight * spectrum.flux)[kept] / total,
        total.rsqrt(),
        torch.ones_like(total, dtype=torch.bool),
        spectrum.resolution.new_tensor(LIGHT_SPEED / (FWHM * sigma)),
    )


# --- templates --------------------------------------------------------------------------------


def rest_grid(low: float, high: float) -> Tensor:
    """ln of rest wavelengths between ``low`` and ``high``, Angstrom, pixels of the fine grid."""
    first = math.floor((math.log(low) - FINE_START) / STEP)
    last = math.ceil((math.log(high) - FINE_START) / STEP)
    return FINE_START + STEP * torch.arange(first, last + 1, dtype=torch.float64)


@torch.no_grad()
def rest_templates(
    network: SpectrumNetwork, parameters: Tensor, sigma_v: Tensor, resolution: float, grid: Tensor
) -> Tensor:
    """`rest_spectra` as columns, (n, T)."""
    parts = [
        rest_spectra(network, parameters[rows], sigma_v[rows], resolution, grid)
        for rows in torch.arange(len(parameters)).split(128)
    ]
    return torch.cat(parts).T.contiguous()


def rest_spectra(
    network: SpectrumNetwork, parameters: Tensor, sigma_v: Tensor, resolution: float, grid: Tensor
) -> Tensor:
    """L_nu at rest, (T, n), of galaxies (T, p) on a `rest_grid` (n,), with their lines.

    ``sigma_v`` (T,): velocity dispersion of stars and gas, km/s; ``resolution`` of the
    spectrograph. Of 1 Msun formed. Beyond 3,000 to 7,500 A spectra have pixels of 750 km/s. Can be
    differentiated by parameters and dispersions.
    """
    light = network.light(parameters)
    first = round((float(grid[0]) - FINE_START) / STEP)
    start, stop = max(first, 0), min(first + len(grid), N_FINE)
    dust = [network.column(parameters, name) for name in DUST]
    if start == first and stop == first + len(grid):
        pixels = slice(N_PIXELS + start, N_PIXELS + stop)
        basis = network.basis[:, pixels]
        bright, clouds = light.bright @ basis, light.clouds @ basis
        flux = behind_dust(network.wavelength[pixels], bright, clouds, *dust)
    else:
        coarse = network.common_spectrum(parameters, light, slice(0, N_PIXELS), True, False)
        flux = _stitched(network.rest_spectrum(parameters, light), coarse, grid)
    flux = broadened(flux, grid, sigma_v, resolution)
    if network.lines:
        sigma = torch.hypot(sigma_v, sigma_v.new_tensor(instrument_sigma(resolution)))
        place = network.line_wavelength
        near = (place.log() > grid[0]) & (place.log() < grid[-1])
        strength = network.rest_lines(parameters, light)[:, near]
        zero = torch.zeros_like(sigma)
        width = sigma / LIGHT_SPEED
        flux = flux + line_profiles(strength, place[near], grid.exp(), zero, width)
    return flux


def _stitched(fine: Tensor, coarse: Tensor, grid: Tensor) -> Tensor:
    """``fine`` where it is, else ``coarse``, (T, n) on ``grid`` (n,)."""
    place = (grid - LOG_START) / LOG_STEP
    low = place.floor().long().clamp(0, N_PIXELS - 2)
    values = torch.lerp(coarse[:, low], coarse[:, low + 1], (place - low).to(coarse))
    pixel = ((grid - FINE_START) / STEP).round().long()
    inside = (pixel >= 0) & (pixel < N_FINE)
    values[:, inside] = fine[:, pixel[inside]]
    return values


def broadened(flux: Tensor, grid: Tensor, sigma_v: Tensor, resolution: float) -> Tensor:
    """Spectra (T, n) on ``grid`` seen at ``resolution`` with dispersions ``sigma_v`` (T,), km/s.

    Those of the library have a FWHM of 2.5 A already. At the ends the last pixel is repeated.
    """
    sigma = torch.hypot(sigma_v, sigma_v.new_tensor(instrument_sigma(resolution))) / LIGHT_SPEED
    own = (FINE_FWHM / FWHM * (-grid).exp()).to(flux)
    width = (sigma.square()[:, None] - own.square()).clamp_min((0.5 * STEP) ** 2).sqrt() / STEP
    reach = math.ceil(TAILS * float(width.detach().max()))
    padded = torch.nn.functional.pad(flux[None], (reach, reach), mode="replicate")[0]
    exponent = -0.5 / width.square()
    total, norm = flux.clone(), torch.ones_like(flux)
    n = flux.shape[1]
    for k in range(1, reach + 1):
        weight = torch.exp(exponent * k * k)
        total += weight * (
            padded[:, reach - k : reach - k + n] + padded[:, reach + k : reach + k + n]
        )
        norm += 2 * weight
    return total / norm


# --- the likelihood ---------------------------------------------------------------------------


class Data(NamedTuple):
    """A spectrum in single precision, about its ``mean``, with its ``polynomials`` (m, n)."""

    log_wavelength: Tensor
    flux: Tensor  # less the mean
    weight: Tensor
    mean: Tensor
    polynomials: Tensor
    resolution: float


def prepared(spectrum: Spectrum, order: int) -> Data:
    log_wavelength = spectrum.wavelength.double().log()
    x = 2 * (log_wavelength - log_wavelength[0]) / (log_wavelength[-1] - log_wavelength[0]) - 1
    weight = 1 / spectrum.error.double().square()
    total = weight.sum()
    mean = (weight * spectrum.flux).sum().clamp_min(FAINTEST * total.sqrt()) / total
    return Data(
        log_wavelength,
        (spectrum.flux - mean).float(),
        weight.float(),
        mean.float(),
        legendre(x, order).float(),
        float(spectrum.resolution),
    )


@torch.no_grad()
def log_likelihood(
    spectrum: Spectrum,
    grid: Tensor,
    templates: Tensor,
    log_ratio: Tensor,
    model: SpectrumModel = DEFAULT,
    broad: bool = False,
) -> Tensor:
    """ln likelihood (k, T) of ``templates`` (n, T) at ln(1 + z) ``log_ratio`` (k,).

    ``broad``: with a broad component of H beta and [O III], as a sum of `BROAD` Gaussians.

    All pixels of ``spectrum`` count: see `usable`. Templates are normalised to its mean flux.
    Redshifts at which the spectrum is not covered by the grid raise ``ValueError``.
    """
    data = prepared(spectrum, model.order)
    if bool(data.log_wavelength[0] - log_ratio.max() < grid[0]) or bool(
        data.log_wavelength[-1] - log_ratio.min() > grid[-1]
    ):
        raise ValueError(
            f"the templates cover {float(grid[0].exp()):.0f} to {float(grid[-1].exp()):.0f} A at "
            f"rest; the spectrum at z {float(log_ratio.min().expm1()):.2f} to "
            f"{float(log_ratio.max().expm1()):.2f} needs more"
        )
    parts = [
        _chunk(data, grid, templates, part, model, broad)
        for part in log_ratio.split(REDSHIFTS_AT_ONCE)
    ]
    return torch.cat(parts)


def _chunk(
    data: Data,
    grid: Tensor,
    templates: Tensor,
    log_ratio: Tensor,
    model: SpectrumModel,
    broad: bool,
) -> Tensor:
    """`log_likelihood` of some redshifts.

    Templates and data are taken about the mean flux, so that single precision is enough: s = mean +
    t is multiplied by the polynomial, and the residual is flux - t.
    """
    weight, mean, n_t = data.weight, data.mean, templates.shape[1]
    k, n_poly = len(log_ratio), data.polynomials.shape[1]
    t = shifted(templates, grid, data.log_wavelength, log_ratio)  # (k, m, T)
    scale = mean * weight.sum() / (weight @ t)  # (k, T)
    t.mul_(scale[:, None]).sub_(mean)
    row, column = torch.tril_indices(n_poly, n_poly)
    weighted = (weight[:, None] * data.polynomials).T  # (n_poly, m)
    products = weighted[row] * data.polynomials.T[column]
    rows = [products, weighted * data.flux]
    lines = _lines(data, log_ratio, model)
    n_narrow = lines.shape[1]
    if broad:
        lines = torch.cat([lines, _broad_lines(data, log_ratio)], 1)
        model = model._replace(line_share=1.0)
    n_lines, heavy = lines.shape[1], lines * data.weight
    fixed = torch.cat(rows).expand(k, -1, -1)
    cross = (heavy[:, :, None] * data.polynomials.T).flatten(1, 2)  # (k, lines n_poly, m)
    linear = torch.cat([fixed, cross], 1) @ t  # (k, ., T)
    square = products @ t.square()  # (k, pairs, T)
    first, force_flux, cross_t = linear.split([len(products), n_poly, n_lines * n_poly], 1)

    size = n_poly + n_lines
    matrix = templates.new_zeros(k, n_t, size + 1, size + 1)
    total = products.sum(1)[:, None]
    matrix[..., row, column] = (square + 2 * mean * first + mean.square() * total).mT
    degree = [i for i in range(len(column)) if int(column[i]) == 0]  # products with P_0 = 1
    force = force_flux - square[:, degree] - mean * first[:, degree]
    force = force + mean * (weighted @ data.flux)[:, None]
    matrix[..., size, :n_poly] = force.mT
    constant = weight @ data.flux.square()
    chi2 = constant - 2 * force_flux[:, 0] + square[:, 0]
    if n_lines:
        both = cross_t.unflatten(1, (n_lines, n_poly))
        whole = both + mean * cross.sum(2).unflatten(1, (n_lines, n_poly))[..., None]
        matrix[..., n_poly:size, :n_poly] = whole.movedim(3, 1)
        matrix[..., n_poly:size, n_poly:size] = (heavy @ lines.mT)[:, None]
        matrix[..., size, n_poly:size] = ((heavy @ data.flux)[..., None] - both[:, :, 0]).mT
    sigma = [model.amplitude] + [model.slope] * (n_poly - 1)
    sigma += [model.equivalent_width] * n_narrow + [BROAD_WIDTH] * (n_lines - n_narrow)
    precision = templates.new_tensor(sigma).square().reciprocal()
    found = [
        _log_evidence(matrix, chi2, precision, factor, len(weight), n_poly, model)
        for factor in model.jitter
    ]
    return torch.stack(found).logsumexp(0) - math.log(len(model.jitter))


def _lines(data: Data, log_ratio: Tensor, model: SpectrumModel) -> Tensor:
    """Narrow lines (k, lines, m), uJy for an equivalent width of 1 A."""
    ends = data.log_wavelength[0] - log_ratio.max(), data.log_wavelength[-1] - log_ratio.min()
    low, high = (float(end.detach().exp()) for end in ends)
    groups = seen(NARROW, low, high) if model.line_share > 0 else []
    if not groups:
        return data.weight.new_zeros(len(log_ratio), 0, len(data.weight))
    sigma = math.hypot(model.line_sigma, instrument_sigma(data.resolution))
    lines = line_shapes(groups, data.log_wavelength.exp(), log_ratio, sigma).mT.float()
    return lines * data.mean


def _broad_lines(data: Data, log_ratio: Tensor) -> Tensor:
    """The same of `BROAD` components, (k, 2 components, m)."""
    shapes = [
        line_shapes((H_BETA, O_III), data.log_wavelength.exp(), log_ratio, width / FWHM, shift)
        for shift, width in BROAD
    ]
    return torch.cat(shapes, 2).mT.float() * data.mean


def _log_evidence(
    matrix: Tensor,
    chi2: Tensor,
    precision: Tensor,
    jitter: float,
    n_pixels: int,
    n_poly: int,
    model: SpectrumModel,
) -> Tensor:
    """ln evidence (k, T) from the normal equations, with errors larger by a factor.

    ``matrix``: the lower triangle of the normal matrix, and the force below it, so that its
    Cholesky factor has below it what the square of the best fit is the sum of. Without lines it is
    the sum of the polynomial's part alone, which comes first.
    """
    size = len(precision)
    scaled = matrix / jitter**2
    diagonal = torch.cat([precision, precision.new_tensor([HUGE])])
    scaled.diagonal(dim1=-2, dim2=-1).add_(diagonal)
    root, _ = torch.linalg.cholesky_ex(scaled)
    gain = 0.5 * root[..., size, :size].square()
    volume = root.diagonal(dim1=-2, dim2=-1)[..., :size].log() - 0.5 * precision.log()
    each = gain - volume
    base = -0.5 * chi2 / jitter**2 - n_pixels * math.log(jitter) + each[..., :n_poly].sum(-1)
    if size == n_poly:
        return base
    share = model.line_share
    with_lines = each[..., n_poly:].sum(-1) + math.log(share)
    if share == 1:
        return base + with_lines
    return base + torch.logaddexp(with_lines, torch.full_like(base, math.log1p(-share)))


class Fit(NamedTuple):
    """The linear model of spectra (n, m), each at a redshift of its own, in double precision.

    ``columns`` (n, m, q): templates times polynomials, and narrow lines; ``residual`` (n, m): of
    templates without either; ``precision`` (q,): of the coefficients a priori, which are relative
    to those of the template; ``n_poly``: how many are polynomials.
    """

    data: Data
    columns: Tensor
    residual: Tensor
    precision: Tensor
    n_poly: int
    model: SpectrumModel

    @classmethod
    def of(cls, data: Data, shapes: Tensor, log_ratio: Tensor, model: SpectrumModel) -> "Fit":
        """``shapes`` (n, m): templates of any scale at the pixels, at ln(1 + z) (n,)."""
        weight, shapes = data.weight.double(), shapes.double()
        mean = (shapes @ weight) / weight.sum()
        shapes = shapes * (data.mean.double() / mean)[:, None]
        lines = _lines(data, log_ratio, model)
        polynomials = data.polynomials.double()
        columns = torch.cat([shapes[..., None] * polynomials, lines.double().mT], 2)
        n_poly, n_lines = polynomials.shape[1], lines.shape[1]
        sigma = [model.amplitude] + [model.slope] * (n_poly - 1)
        sigma += [model.equivalent_width] * n_lines
        precision = shapes.new_tensor(sigma).square().reciprocal()
        residual = data.flux.double() + data.mean.double() - shapes
        return cls(data, columns, residual, precision, n_poly, model)

    def normal(self, jitter: float) -> tuple[Tensor, Tensor]:
        """Cholesky factor (n, q, q) of the coefficients' precision, and their force (n, q)."""
        weight = self.data.weight.double() / jitter**2
        weighted = self.columns * weight[:, None]
        root = cholesky(weighted.mT @ self.columns + torch.diag(self.precision))
        return root, (weighted.mT @ self.residual[..., None])[..., 0]

    def log_likelihoods(self) -> Tensor:
        """For each of the factors of the errors, (jitters, n)."""
        found = []
        for jitter in self.model.jitter:
            root, force = self.normal(jitter)
            y = torch.linalg.solve_triangular(root, force[..., None], upper=False)[..., 0]
            volume = root.diagonal(dim1=1, dim2=2).log() - 0.5 * self.precision.log()
            each = 0.5 * y.square() - volume
            weight = self.data.weight.double() / jitter**2
            value = -0.5 * self.residual.square() @ weight - len(weight) * math.log(jitter)
            value = value + each[:, : self.n_poly].sum(1)
            share = self.model.line_share
            if len(self.precision) > self.n_poly:
                lines = each[:, self.n_poly :].sum(1) + math.log(share)
                if share < 1:
                    lines = torch.logaddexp(lines, lines.new_tensor(math.log1p(-share)))
                value = value + lines
            found.append(value)
        return torch.stack(found)

    def log_likelihood(self) -> Tensor:
        """(n,), as `log_likelihood`."""
        return self.log_likelihoods().logsumexp(0) - math.log(len(self.model.jitter))

    def best(self) -> Tensor:
        """The spectra (n, m), uJy, with the most probable coefficients."""
        root, force = self.normal(1.0)
        coefficients = torch.cholesky_solve(force[..., None], root)
        observed = self.data.flux.double() + self.data.mean.double()
        return observed - self.residual + (self.columns @ coefficients)[..., 0]


def at_own_redshift(flux: Tensor, grid: Tensor, data: Data, log_ratio: Tensor) -> Tensor:
    """Rest spectra (n, pixels) at the observed pixels, each from its own ln(1 + z) (n,): (n, m)."""
    place = (data.log_wavelength - log_ratio.double()[:, None] - grid[0]) / STEP
    low = place.detach().floor().long().clamp(0, len(grid) - 2)
    share = place - low
    return torch.lerp(flux.gather(1, low).double(), flux.gather(1, low + 1).double(), share)


def shifted(templates: Tensor, grid: Tensor, log_wavelength: Tensor, log_ratio: Tensor) -> Tensor:
    """Templates (n, T) at observed ln wavelengths (m,) seen from ln(1 + z) (k,): (k, m, T)."""
    place = (log_wavelength - log_ratio.double()[:, None] - grid[0]) / STEP
    low = place.floor().long().clamp(0, len(grid) - 2)
    share = (place - low).to(templates)[..., None]
    return torch.lerp(templates[low], templates[low + 1], share)


def legendre(x: Tensor, order: int) -> Tensor:
    """Legendre polynomials of degrees 0 to ``order`` at x (m,), -1 to 1: (m, order + 1)."""
    values = [torch.ones_like(x), x]
    for n in range(1, order):
        values.append(((2 * n + 1) * x * values[-1] - n * values[-2]) / (n + 1))
    return torch.stack(values[: order + 1], 1)
