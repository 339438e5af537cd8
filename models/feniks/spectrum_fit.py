"""How well template spectra fit an observed one.

The observed f_nu is a template at a redshift times a polynomial in wavelength (flux calibration and
slit losses), plus narrow emission lines. Coefficients of both are normal a priori, and integrated
over exactly. Errors may be too small by one factor, over whose values the mean is taken. Pixels
have errors each, or a covariance.

- ``prepared(spectrum, order) -> Data``
- ``Fit.of(data, shapes, log_ratio, model)``: of templates at the pixels, which can be
  differentiated; ``.log_likelihood()``; ``.best()``, the model with its coefficients.
- ``log_likelihood(spectrum, grid, templates, log_ratio, model) -> Tensor (k, T)``: the same of all
  templates at all redshifts.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from orrery.models.feniks.observed_spectrum import Spectrum
from orrery.models.feniks.rest_spectra import shifted
from orrery.physics.sps.emission import (
    FWHM,
    H_BETA,
    NARROW,
    O_III,
    instrument_sigma,
    line_shapes,
    seen,
)

REDSHIFTS_AT_ONCE = 16
HUGE = 1e12
FAINTEST = 1.0  # errors of the mean flux: a spectrum without light is normalised to this


class SpectrumModel(NamedTuple):
    """What is integrated over, beside the templates.

    ``amplitude`` and ``slope``: prior errors, relative, of the mean flux and of each higher
    coefficient of the polynomial, in Legendre's, up to ``order``. ``equivalent_width``: prior
    error, Angstrom at rest, of narrow lines of the dispersion ``line_sigma``, km/s, and
    ``line_share``: the prior probability that there are any beyond those of the templates.
    ``jitter``: factors of the errors, equally probable. ``broad``: ln(1 + z) and FWHM, km/s, of
    broad H beta and [O III] that there are as well, of equivalent widths of ``broad_width``.
    """

    order: int = 3
    amplitude: float = 0.5
    slope: float = 0.1
    equivalent_width: float = 10.0
    line_sigma: float = 200.0
    line_share: float = 0.25
    jitter: tuple[float, ...] = (1.0, 1.2, 1.5, 2.0)
    broad: tuple[float, float] | None = None
    broad_width: float = 40.0


DEFAULT = SpectrumModel()


class Data(NamedTuple):
    """A spectrum of m pixels in double precision, with its ``polynomials`` (m, order + 1).

    ``whitening``: of residuals, (m,), inverse errors, or (m, m), the inverse of the covariance's
    Cholesky factor. ``weight`` (m,) and ``mean`` (): inverse variances, and the mean by them.
    """

    log_wavelength: Tensor
    flux: Tensor
    whitening: Tensor
    weight: Tensor
    mean: Tensor
    polynomials: Tensor
    resolution: float

    def whitened(self, values: Tensor) -> Tensor:
        """Values (..., m, n) of n kinds at the pixels, in errors and without correlation."""
        whitening = self.whitening.to(values)
        return whitening @ values if whitening.ndim == 2 else whitening[:, None] * values


def prepared(spectrum: Spectrum, order: int) -> Data:
    """What all fits to a spectrum share. All its pixels count: see `observed_spectrum.usable`."""
    log_wavelength = spectrum.wavelength.double().log()
    x = 2 * (log_wavelength - log_wavelength[0]) / (log_wavelength[-1] - log_wavelength[0]) - 1
    error, flux = spectrum.error.double(), spectrum.flux.double()
    weight = 1 / error.square()
    total = weight.sum()
    mean = (weight * flux).sum().clamp_min(FAINTEST * total.sqrt()) / total
    whitening = 1 / error
    if spectrum.covariance is not None:
        root = torch.linalg.cholesky(spectrum.covariance.double())
        whitening = torch.linalg.solve_triangular(
            root, torch.eye(len(root), dtype=torch.float64), upper=False
        )
    polynomials = legendre(x, order)
    resolution = float(spectrum.resolution)
    return Data(log_wavelength, flux, whitening, weight, mean, polynomials, resolution)


class Fit(NamedTuple):
    """The linear model of spectra (..., m), each a template at a redshift.

    ``shapes`` (..., m): templates of the mean flux, by polynomials the first ``n_poly`` columns;
    ``lines`` (k, m, l): the others; ``normal`` (..., q + 1, q + 1), of which the lower triangle
    counts: products by the inverse covariance of all columns, and of the residual, which comes
    last; ``precision`` (q,): of the coefficients a priori, which are relative to the template.
    """

    data: Data
    shapes: Tensor
    lines: Tensor
    normal: Tensor
    precision: Tensor
    n_poly: int
    model: SpectrumModel

    @classmethod
    def of(
        cls,
        data: Data,
        shapes: Tensor,
        log_ratio: Tensor,
        model: SpectrumModel = DEFAULT,
    ) -> "Fit":
        """``shapes`` (k, m) or (k, T, m): templates of any scale at pixels, at ln(1 + z) (k,)."""
        weight = data.weight.to(shapes)
        mean = (shapes @ weight) / weight.sum()
        shapes = shapes * (data.mean.to(shapes) / mean)[..., None]
        lines = _narrow_lines(data, log_ratio, model).to(shapes)
        sigma = [model.amplitude] + [model.slope] * model.order
        sigma += [model.equivalent_width] * lines.shape[-1]
        if model.broad is not None:
            broad = broad_lines(data, torch.tensor(model.broad[:1]), model.broad[1]).to(shapes)
            sigma += [model.broad_width] * broad.shape[-1]
            lines = torch.cat([lines, broad.expand(len(lines), -1, -1)], -1)
        is_correlated = data.whitening.ndim == 2
        products = _products_of_correlated if is_correlated else _products_of_independent
        precision = shapes.new_tensor(sigma).square().reciprocal()
        normal = products(data, shapes, lines)
        return cls(data, shapes, lines, normal, precision, model.order + 1, model)

    @property
    def columns(self) -> Tensor:
        """(..., m, q), uJy for a coefficient of 1."""
        return _columns(self.data, self.shapes, self.lines)

    def root(self, jitter: float) -> tuple[Tensor, Tensor]:
        """Of the coefficients' precision, the Cholesky factor L (..., q, q), and L^-1 force.

        With errors larger by a factor. The square of L^-1 force (..., q) is what coefficients take
        off chi^2.
        """
        q = len(self.precision)
        diagonal = torch.cat([self.precision, self.precision.new_tensor([HUGE])])
        root, _ = torch.linalg.cholesky_ex(self.normal / jitter**2 + torch.diag(diagonal))
        return root[..., :q, :q], root[..., q, :q]

    def log_likelihoods(self) -> Tensor:
        """For each of the factors of the errors, (jitters, ...)."""
        return torch.stack([self.log_likelihood_of(jitter) for jitter in self.model.jitter])

    def log_likelihood_of(self, jitter: float) -> Tensor:
        """For one factor of the errors, (...)."""
        root, gain = self.root(jitter)
        volume = root.diagonal(dim1=-2, dim2=-1).log() - 0.5 * self.precision.log()
        each = 0.5 * gain.square() - volume
        chi2 = self.normal[..., -1, -1] / jitter**2
        value = -0.5 * chi2 - len(self.data.flux) * math.log(jitter)
        value = value + each[..., : self.n_poly].sum(-1)
        share = self.model.line_share
        if each.shape[-1] > self.n_poly:
            lines = each[..., self.n_poly :].sum(-1) + math.log(share)
            if share < 1:
                lines = torch.logaddexp(lines, lines.new_tensor(math.log1p(-share)))
            value = value + lines
        return value

    def log_likelihood(self) -> Tensor:
        """ln of the likelihood (...), up to a constant of the spectrum: the mean over factors."""
        return self.log_likelihoods().logsumexp(0) - math.log(len(self.model.jitter))

    def best(self) -> Tensor:
        """The spectra (..., m), uJy, with the most probable coefficients."""
        root, gain = self.root(1.0)
        coefficients = torch.linalg.solve_triangular(root.mT, gain[..., None], upper=True)
        return self.shapes + (self.columns @ coefficients)[..., 0]


@torch.no_grad()
def log_likelihood(
    spectrum: Spectrum,
    grid: Tensor,
    templates: Tensor,
    log_ratio: Tensor,
    model: SpectrumModel = DEFAULT,
) -> Tensor:
    """ln likelihood (k, T) of ``templates`` (n, T) at ln(1 + z) ``log_ratio`` (k,).

    Redshifts at which the spectrum is not covered by the ``grid`` raise ``ValueError``.
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
    parts = []
    for some in log_ratio.split(REDSHIFTS_AT_ONCE):
        shapes = shifted(templates, grid, data.log_wavelength, some)
        parts.append(Fit.of(data, shapes, some, model).log_likelihood())
    return torch.cat(parts)


def _columns(data: Data, shapes: Tensor, lines: Tensor) -> Tensor:
    """`Fit.columns`."""
    by_polynomials = shapes[..., None] * data.polynomials.to(shapes)
    if shapes.ndim == 3:
        lines = lines[:, None].expand(-1, shapes.shape[1], -1, -1)
    return torch.cat([by_polynomials, lines], -1)


def _products_of_correlated(data: Data, shapes: Tensor, lines: Tensor) -> Tensor:
    """`Fit.normal` for any covariance of the pixels."""
    residual = data.flux.to(shapes) - shapes
    white = data.whitened(torch.cat([_columns(data, shapes, lines), residual[..., None]], -1))
    return white.mT @ white


def _products_of_independent(data: Data, shapes: Tensor, lines: Tensor) -> Tensor:
    """The same where pixels have errors each, in less time."""
    s = shapes.reshape(len(lines), -1, shapes.shape[-1])  # (k, T, m)
    residual = data.flux.to(s) - s
    weight, polynomials = data.weight.to(s), data.polynomials.to(s)
    weighted, heavy = weight[:, None] * polynomials, weight[:, None] * lines
    n, n_lines = polynomials.shape[1], lines.shape[-1]
    row, column = torch.tril_indices(n, n)
    normal = s.new_zeros(*s.shape[:2], n + n_lines + 1, n + n_lines + 1)
    normal[..., row, column] = s.square() @ (weighted[:, row] * polynomials[:, column])
    normal[..., -1, :n] = (s * residual) @ weighted
    normal[..., -1, -1] = residual.square() @ weight
    by_polynomials = (heavy[..., None] * polynomials[:, None]).flatten(-2)  # (k, m, l n)
    normal[..., n:-1, :n] = (s @ by_polynomials).unflatten(-1, (n_lines, n))
    normal[..., n:-1, n:-1] = (heavy.mT @ lines)[:, None]
    normal[..., -1, n:-1] = residual @ heavy
    return normal.reshape(*shapes.shape[:-1], *normal.shape[2:])


def _narrow_lines(data: Data, log_ratio: Tensor, model: SpectrumModel) -> Tensor:
    """Narrow lines (k, m, lines), uJy for an equivalent width of 1 A."""
    ends = data.log_wavelength[0] - log_ratio.max(), data.log_wavelength[-1] - log_ratio.min()
    low, high = (float(end.detach().exp()) for end in ends)
    groups = seen(NARROW, low, high) if model.line_share > 0 else []
    if not groups:
        return data.flux.new_zeros(len(log_ratio), len(data.flux), 0)
    sigma = math.hypot(model.line_sigma, instrument_sigma(data.resolution))
    return line_shapes(groups, data.log_wavelength.exp(), log_ratio, sigma) * data.mean


def broad_lines(data: Data, log_ratio: Tensor, fwhm: float) -> Tensor:
    """The same of broad H beta and [O III] at ln(1 + z) (k,), (k, m, 2)."""
    sigma = math.hypot(fwhm / FWHM, instrument_sigma(data.resolution))
    lines = line_shapes((H_BETA, O_III), data.log_wavelength.exp(), log_ratio, sigma)
    return lines * data.mean


def legendre(x: Tensor, order: int) -> Tensor:
    """Legendre polynomials of degrees 0 to ``order`` at x (m,), -1 to 1: (m, order + 1)."""
    values = [torch.ones_like(x), x]
    for n in range(1, order):
        values.append(((2 * n + 1) * x * values[-1] - n * values[-2]) / (n + 1))
    return torch.stack(values[: order + 1], 1)
