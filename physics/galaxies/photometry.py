"""Broad-band photometry: magnitudes, luptitudes, survey errors and Galactic extinction.

Fluxes are f_nu in uJy and magnitudes are AB throughout: m = 23.9 - 2.5 log10(flux / uJy).
All functions are pure, elementwise and differentiable; they keep the dtype they are given.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

AB_ZERO_POINT = 23.9  # AB magnitude of 1 uJy (Oke & Gunn 1983)
POGSON = 2.5 / math.log(10.0)  # d(mag) = -POGSON d(ln flux)

LSST_BANDS = ("u", "g", "r", "i", "z", "y")
# Design depth of one visit (5 sigma, point source) and visits per band in ten years:
# Ivezic et al. 2019 (ApJ 873, 111), Table 1; gamma: their Table 2.
LSST_VISIT_DEPTH = (23.9, 25.0, 24.7, 24.0, 23.3, 22.1)
LSST_VISITS_PER_YEAR = (5.6, 8.0, 18.4, 18.4, 16.0, 16.0)
LSST_GAMMA = (0.038, 0.039, 0.039, 0.039, 0.039, 0.039)
LSST_SIGMA_SYS = 0.005  # mag, Ivezic et al. 2019, section 3.2.1

# A_b / E(B-V) for the E(B-V) of Schlegel, Finkbeiner & Davis (1998), Fitzpatrick (1999) law with
# R_V = 3.1: Schlafly & Finkbeiner 2011 (ApJ 737, 103), Table 6. They hold the 14 % recalibration
# of that map, so E(B-V) goes in as read from it.
EXTINCTION_LSST = {"u": 4.145, "g": 3.237, "r": 2.273, "i": 1.684, "z": 1.323, "y": 1.088}
EXTINCTION_SDSS = {"u": 4.239, "g": 3.303, "r": 2.285, "i": 1.698, "z": 1.263}


def mag_to_flux(
    mag: Tensor, mag_err: Tensor, zero_point: float = AB_ZERO_POINT
) -> tuple[Tensor, Tensor]:
    """Flux and its error, uJy for AB magnitudes; errors to first order."""
    flux = 10.0 ** (-0.4 * (mag - zero_point))
    return flux, flux * mag_err / POGSON


def luptitude(flux: Tensor, softening: Tensor | float, zero_point: float = AB_ZERO_POINT) -> Tensor:
    """Asinh magnitude of Lupton, Gunn & Szalay (1999, AJ 118, 1406), eq. 3, in flux units.

    softening: b in uJy, about the 1-sigma error of a faint source. Equal to the magnitude for
    flux >> b, linear in flux around zero, defined for negative flux.
    """
    b = torch.as_tensor(softening, dtype=flux.dtype, device=flux.device)
    return zero_point - POGSON * (torch.asinh(flux / (2 * b)) + torch.log(b))


def luptitude_err(flux: Tensor, flux_err: Tensor, softening: Tensor | float) -> Tensor:
    """Error of `luptitude`, mag: |d luptitude / d flux| flux_err."""
    b = torch.as_tensor(softening, dtype=flux.dtype, device=flux.device)
    return POGSON * flux_err / torch.sqrt(flux**2 + 4 * b**2)


def lsst_depth(years: float) -> Tensor:
    """5-sigma point-source depth (6,), AB mag, of the stack after some years of LSST."""
    if years <= 0:
        raise ValueError(f"lsst_depth: years must be positive, got {years:g}")
    visits = years * torch.tensor(LSST_VISITS_PER_YEAR, dtype=torch.float64)
    return torch.tensor(LSST_VISIT_DEPTH, dtype=torch.float64) + 1.25 * torch.log10(visits)


def lsst_flux_error(
    flux: Tensor, flux5: Tensor, gamma: Tensor | float, sigma_sys: float = LSST_SIGMA_SYS
) -> Tensor:
    """Error of a flux, uJy, of Ivezic et al. 2019, eqs. 4 and 5; negative flux counts as zero.

    flux5: flux of a 5-sigma source, uJy. Eq. 5 is read as (noise / signal)^2, so that a source at
    m5 has a signal-to-noise of exactly 5: sky noise gamma flux5^2, photon noise (0.04 - gamma)
    flux5 flux, and the systematic floor, which is a relative error.
    """
    source = flux.clamp_min(0.0)
    floor = sigma_sys / POGSON * source
    return torch.sqrt(gamma * flux5**2 + (0.04 - gamma) * flux5 * source + floor**2)


def five_sigma_flux(
    flux: Tensor, flux_err: Tensor, gamma: Tensor | float, sigma_sys: float = LSST_SIGMA_SYS
) -> Tensor:
    """Depth `flux5` (uJy) that gives this error at this flux: the inverse of `lsst_flux_error`."""
    source = flux.clamp_min(0.0)
    photon = (0.04 - gamma) * source
    noise = (flux_err**2 - (sigma_sys / POGSON * source) ** 2).clamp_min(0.0)
    # The root gamma f5^2 + photon f5 - noise = 0 in the form that does not cancel.
    return 2 * noise / (photon + torch.sqrt(photon**2 + 4 * gamma * noise))


def is_detected(flux: Tensor, flux_err: Tensor) -> Tensor:
    """False for a non-detection: flux below 1 sigma, negative, or NaN."""
    return flux >= flux_err


def deredden_flux(flux: Tensor, ebv: Tensor, coefficients: Mapping[str, float]) -> Tensor:
    """Fluxes (or flux errors) (..., bands) without Galactic dust: m_b - R_b E(B-V).

    ebv: (...), mag, of the SFD map; coefficients: R_b by band, e.g. `EXTINCTION_LSST`, in the order
    of the last axis.
    """
    return flux * 10.0 ** (0.4 * _extinction(flux, ebv, coefficients))


def _extinction(values: Tensor, ebv: Tensor, coefficients: Mapping[str, float]) -> Tensor:
    if values.shape[-1] != len(coefficients):
        raise ValueError(
            f"deredden: the last axis has {values.shape[-1]} bands but the coefficients name "
            f"{len(coefficients)} ({', '.join(coefficients)}); give one R_b for each band"
        )
    r_b = torch.tensor(list(coefficients.values()), dtype=values.dtype, device=values.device)
    return ebv.to(values.dtype).unsqueeze(-1) * r_b
