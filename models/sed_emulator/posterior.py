"""The posterior of galaxies given their photometry, and its normal approximation at a maximum.

Parameters are functions of standard normal numbers x, one each (`Priors.from_normal`), so that the
prior of x is a unit normal whatever that of the parameters. Fluxes are compared linearly, with the
covariance of the measurement plus that of the emulator.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from orrery.models.base import Batch
from orrery.models.sed_emulator.covariance import Errors, cholesky, woodbury
from orrery.models.sed_emulator.networks import POGSON
from orrery.physics.galaxies.photometry import AB_ZERO_POINT
from orrery.physics.sps.priors import Priors

NO_EVIDENCE = -1e30
LEAST_ERROR = 1e-9  # of a flux, uJy: below that of any survey, and its square is a number
LARGEST_X = 4.5  # standard normal numbers are kept within


class Emulator(Protocol):
    """The model, as far as fits use it."""

    priors: Priors

    def emulate(self, parameters: Tensor) -> Tensor:
        """AB magnitudes (n, bands) of parameters (n, p)."""

    def derivatives(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """These, and their derivatives by parameters, (n, bands, p)."""

    def errors(self, parameters: Tensor) -> Errors:
        """Covariance of the emulator's error."""


class Photometry(NamedTuple):
    """Fluxes of galaxies, uJy, (n, bands).

    ``is_limit``: the flux is an upper limit, whose ``error`` is the width of its edge. ``zred``
    (n,): a known redshift, NaN where it is not known; ``zred_error`` (n,): its error, 0 if exact.
    """

    flux: Tensor
    error: Tensor
    observed: Tensor
    is_limit: Tensor
    zred: Tensor
    zred_error: Tensor

    def rows(self, index: Tensor) -> "Photometry":
        return Photometry(*(values[index] for values in self))

    def of_bands(self, index: Tensor) -> "Photometry":
        return self._replace(
            flux=self.flux[:, index],
            error=self.error[:, index],
            observed=self.observed[:, index],
            is_limit=self.is_limit[:, index],
        )

    @property
    def fixed_zred(self) -> Tensor:
        """The redshift where it is exact, else NaN, (n,)."""
        return torch.where(self.zred_error > 0, torch.nan, self.zred)

    @property
    def measured(self) -> Tensor:
        return self.observed & ~self.is_limit

    @property
    def limited(self) -> Tensor:
        return self.observed & self.is_limit


def photometry(batch: Batch) -> Photometry:
    """The photometry in a batch of `datamodules.sed_emulator`."""
    error = batch.get("zred_error", torch.zeros_like(batch["zred"]))
    flux, observed = batch["flux"], batch["observed"]
    flux_error = batch["flux_error"].clamp_min(LEAST_ERROR)
    return Photometry(flux, flux_error, observed, batch["is_limit"], batch["zred"], error)


def to_parameters(priors: Priors, x: Tensor, zred: Tensor) -> Tensor:
    """Parameters (n, p) of standard normal numbers x (n, p), at the known redshifts (n,)."""
    parameters = priors.from_normal(x.clamp(-LARGEST_X, LARGEST_X))
    i = priors.names.index("zred")
    known = torch.where(zred.isnan(), parameters[:, i], zred)
    return torch.cat([parameters[:, :i], known[:, None], parameters[:, i + 1 :]], 1)


def to_flux(magnitude: Tensor) -> Tensor:
    """uJy."""
    return torch.exp((AB_ZERO_POINT - magnitude) / POGSON)


def log_posterior(emulator: Emulator, data: Photometry, x: Tensor) -> Tensor:
    """ln posterior density (n,) of x (n, p), up to a constant."""
    parameters = to_parameters(emulator.priors, x, data.fixed_zred)
    flux = to_flux(emulator.emulate(parameters))
    errors = emulator.errors(parameters)
    zred = parameters[:, emulator.priors.names.index("zred")]
    return log_posterior_at(data, x, flux, errors, zred)


def log_posterior_at(
    data: Photometry, x: Tensor, flux: Tensor, errors: Errors, zred: Tensor
) -> Tensor:
    """The same from the model's fluxes (n, bands), their errors, and redshifts (n,)."""
    square = x.square().sum(1) + redshift_pull(data, zred)[0].square()
    return _log_likelihood(data, flux, errors) - 0.5 * square


def redshift_pull(data: Photometry, zred: Tensor) -> tuple[Tensor, Tensor]:
    """(known redshift - zred) in its errors, (n,), and 1 / error; 0 where it is exact or free."""
    counted = (data.zred_error > 0) & ~data.zred.isnan()
    weight = torch.where(counted, 1 / data.zred_error, 0.0)
    return torch.where(counted, (data.zred - zred) * weight, 0.0), weight


def _log_likelihood(data: Photometry, flux: Tensor, errors: Errors) -> Tensor:
    slope = flux / POGSON  # |d flux / d mag|
    variance = data.error.square() + slope.square() * errors.variance
    variance = torch.where(data.measured, variance, torch.inf)
    residual = torch.where(data.measured, data.flux - flux, 0.0)
    measured = woodbury(residual, variance, slope[..., None] * errors.factor)
    width = (data.error.square() + slope.square() * errors.total()).sqrt()
    below = torch.special.log_ndtr((data.flux - flux) / width)
    return measured + torch.where(data.limited, below, 0.0).sum(1)


class Mode(NamedTuple):
    """A maximum of the posterior of galaxies, and its normal approximation.

    ``x`` (n, p): standard normal numbers of the parameters; ``precision`` (n, p, p): of x;
    ``log_p`` (n,): posterior density there; ``chi2`` (n,); ``constraint`` (n,): how many parameters
    the data determine, 0 to p.
    """

    x: Tensor
    precision: Tensor
    log_p: Tensor
    chi2: Tensor
    constraint: Tensor

    def log_evidence(self) -> Tensor:
        """ln of the evidence by Laplace's approximation, up to a constant, (n,).

        Of a fit that failed, next to nothing.
        """
        root = cholesky(self.precision)
        evidence = self.log_p - root.diagonal(dim1=1, dim2=2).log().sum(1)
        return evidence.nan_to_num(NO_EVIDENCE)


def pick(modes: list[Mode], index: Tensor) -> Mode:
    """The mode of number ``index`` (n,) of each galaxy."""
    rows = torch.arange(len(index), device=index.device)
    return Mode(*(torch.stack(each, 1)[rows, index] for each in zip(*modes, strict=True)))
