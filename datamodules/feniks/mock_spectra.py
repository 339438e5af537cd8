"""Spectra of mock galaxies as a spectrograph takes them in one night or in many."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from orrery.physics.sps.cosmology import LIGHT_SPEED
from orrery.physics.sps.observed import (
    FWHM,
    line_profiles,
    microjansky,
    sampled,
    sigma_of,
)
from orrery.physics.sps.population import N_PIXELS, fine_wavelengths, wavelengths
from orrery.physics.sps.star_formation import StarFormation
from orrery.physics.sps.synthesis import Synthesis

SIGMA_V = 250.0  # km/s, of stars and gas: of massive quiescent galaxies at z > 3
K_BAND = (19_500.0, 23_800.0, 8.0)  # Angstrom: ends of spectra, and width of their pixels
SIGNAL_TO_NOISE = (3.0, 5.0, 8.0)
WITH_SPECTRA = (3.0, 4.5)  # redshifts of galaxies of which surveys take these
SAMPLES = 4  # of a pixel, over which its flux is averaged
AT_ONCE = 64  # galaxies
SIGNAL_WIDTH = 20.0  # Angstrom, for which signal-to-noise ratios are stated
# Broad lines: H-beta and [O III], Angstrom in vacuum, the latter in the ratio of Storey & Zeippen
# (2000, MNRAS 312, 813)
H_BETA = 4862.68
O_III = ((5008.24, 1.0), (4960.30, 1 / 2.98))
SHIFTS, WIDTHS = (-3000.0, 3000.0), (1000.0, 6000.0)  # km/s: shift, and FWHM
EQUIVALENT_WIDTHS = (20.0, 100.0)  # Angstrom at rest, of broad H-beta
O_III_RATIOS = (0.2, 2.0)  # of [O III] 5008 to H-beta, both broad


class MockSpectra(NamedTuple):
    """``wavelength`` (m,), Angstrom; ``flux``, ``error`` (n, m), uJy; ``is_broad`` (n,)."""

    wavelength: np.ndarray
    flux: np.ndarray
    error: np.ndarray
    is_broad: np.ndarray


def pixels(low: float, high: float, width: float) -> np.ndarray:
    """Middles (m,) of pixels of ``width`` that begin at ``low``."""
    return low + width * (np.arange(math.floor((high - low) / width)) + 0.5)


def draw_spectra(
    synthesis: Synthesis,
    parameters: Tensor,
    history: StarFormation | None,
    wavelength: np.ndarray,
    resolution: float,
    signal_to_noise: Sequence[float],
    broad_share: float,
    seed: int,
) -> MockSpectra:
    """Noisy spectra of galaxies ``parameters`` (n, p) with ``history``, or that of their ratios.

    ``signal_to_noise``: in 20 Angstrom of the median pixel: one for each galaxy is drawn of them.
    The noise is white in f_nu. A share has broad H-beta and [O III], of those galaxies in whose
    spectra they lie.
    """
    random = np.random.default_rng([seed, 0x5BEC])
    width = float(np.diff(wavelength).mean())
    parts = []
    for start in range(0, len(parameters), AT_ONCE):
        rows = slice(start, start + AT_ONCE)
        part = None if history is None else history.rows(rows)
        parts.append(observed_flux(synthesis, parameters[rows], part, wavelength, resolution))
    flux = torch.cat(parts).double().numpy()
    zred = parameters[:, synthesis.names.index("zred")].double().numpy()
    middle = H_BETA * (1 + zred)
    inside = (middle > wavelength[0]) & (middle < wavelength[-1])
    is_broad = inside & (random.random(len(flux)) < broad_share)
    lines = broad_lines(wavelength, zred, random)
    continuum = np.median(flux, axis=1, keepdims=True)
    flux = flux + np.where(is_broad[:, None], continuum * lines, 0.0)
    ratio = random.choice(np.asarray(signal_to_noise, float), len(flux))[:, None]
    error = np.broadcast_to(continuum / ratio * math.sqrt(SIGNAL_WIDTH / width), flux.shape)
    noisy = flux + error * random.standard_normal(flux.shape)
    return MockSpectra(wavelength, noisy, error.copy(), is_broad)


@torch.no_grad()
def observed_flux(
    synthesis: Synthesis,
    parameters: Tensor,
    history: StarFormation | None,
    wavelength: np.ndarray,
    resolution: float,
) -> Tensor:
    """f_nu (n, m), uJy, averaged over pixels, with `SIGMA_V` and at a resolution."""
    parameters = parameters.to(synthesis.wavelength)
    p = synthesis.by_name(parameters)
    width = float(np.diff(wavelength).mean())
    offsets = (np.arange(SAMPLES) + 0.5) / SAMPLES - 0.5
    places = torch.from_numpy((wavelength[:, None] + width * offsets).ravel())
    sigma = sigma_of(resolution, torch.full_like(p["zred"], SIGMA_V))

    def common() -> Tensor:
        known = synthesis.spectrum(parameters, history)  # in the pixels that bands can need
        first = int(torch.searchsorted(wavelengths().float(), synthesis.wavelength[0]))
        return torch.nn.functional.pad(known, (first, N_PIXELS - first - known.shape[1]))

    fine, lines = synthesis.fine_spectrum(parameters, history)
    flux = sampled(fine, common, places, p["zred"], sigma)
    if lines.shape[1]:
        line, grid = synthesis.population.line_wavelength, fine_wavelengths()
        resolved = (line > grid[0]) & (line < grid[-1])  # beyond, `common` has lines of its own
        flux = flux + line_profiles(lines[:, resolved], line[resolved], places, p["zred"], sigma)
    flux = microjansky(flux, p["zred"], p["logmass"])
    return flux.unflatten(1, (len(wavelength), SAMPLES)).mean(2)


def broad_lines(
    wavelength: np.ndarray, zred: np.ndarray, random: np.random.Generator
) -> np.ndarray:
    """f_nu of broad H-beta and [O III], over that of the continuum: (n, m)."""
    n = len(zred)
    velocity = random.uniform(*SHIFTS, n) / LIGHT_SPEED
    sigma = random.uniform(*WIDTHS, n) / FWHM / LIGHT_SPEED
    strength = _log_uniform(random, EQUIVALENT_WIDTHS, n)
    ratio = _log_uniform(random, O_III_RATIOS, n)
    rest = np.log(wavelength) - (np.log1p(zred) + np.log1p(velocity))[:, None]
    total = np.zeros(rest.shape)
    for line, relative in ((H_BETA, np.ones(n)), *((x, share * ratio) for x, share in O_III)):
        # a Gaussian in ln wavelength: its area, in Angstrom, is the equivalent width
        height = strength * relative / (line * math.sqrt(2 * math.pi) * sigma)
        t = (rest - math.log(line)) / sigma[:, None]
        total += height[:, None] * np.exp(-0.5 * t**2)
    return total


def _log_uniform(random: np.random.Generator, limits: tuple[float, float], n: int) -> np.ndarray:
    low, high = (math.log(limit) for limit in limits)
    return np.exp(random.uniform(low, high, n))
