"""Bagpipes' fit of one galaxy's photometry and spectrum, as `benchmarks.feniks bagpipes` runs it.

As its users fit massive quiescent galaxies: a double power law of star formation, dust of Salim et
al. (2018), a dispersion, a polynomial of calibration and a factor of the errors, the redshift free
within a window, by nautilus. Its own populations, those of Bruzual & Charlot (2003) with MILES and
the initial mass function of Kroupa, are those of the mocks. Their wavelengths are in air, so the
spectrum's are converted as those at rest would be.

- ``missing() -> list[str]``: packages that are not installed.
- ``fit(photometry, spectrum, curves, window, n_live, name) -> Found``.
"""

import contextlib
import functools
import importlib.util
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from orrery.models.feniks.observed_spectrum import Spectrum
from orrery.physics.sps.cosmology import age_of_universe
from orrery.physics.sps.filters import Filter
from orrery.physics.sps.population import in_vacuum

PACKAGES = {"bagpipes": "bagpipes", "nautilus": "nautilus-sampler", "spectres": "spectres"}
YEARS_PER_GYR = 1e9
SHORTEST = 0.1  # Gyr, of the history's time scale


class Found(NamedTuple):
    """Draws of the posterior: redshift, log10 Msun of living stars, lookback time Gyr; CPU time."""

    zred: np.ndarray
    log_stellar_mass: np.ndarray
    t50: np.ndarray
    seconds: float


def missing() -> list[str]:
    return [name for module, name in PACKAGES.items() if not importlib.util.find_spec(module)]


def fit(
    photometry: np.ndarray,
    spectrum: Spectrum,
    curves: list[Filter],
    window: tuple[float, float],
    n_live: int,
    name: str,
) -> Found:
    """Of ``photometry``, flux and error (bands, 2), uJy, of ``curves``; redshifts in ``window``.

    Each galaxy has a ``name`` of its own. Its random numbers cannot be chosen.
    """
    observed = spectrum.wavelength.double()
    at_rest = observed / (1 + 0.5 * sum(window))
    in_air = observed * at_rest / in_vacuum(at_rest)
    pixels = np.stack([x.double().numpy() for x in (in_air, spectrum.flux, spectrum.error)], 1)
    folder = Path(_folder().name)
    with contextlib.chdir(folder):
        import bagpipes  # which writes where it is imported

        galaxy = bagpipes.galaxy(
            name,
            lambda _: (pixels.copy(), photometry),
            filt_list=[_written(curve, folder) for curve in curves],
            spec_units="mujy",
        )
        start = time.process_time()
        found = bagpipes.fit(galaxy, _model(window))
        found.fit(sampler="nautilus", n_live=n_live, use_MPI=False)
        seconds = time.process_time() - start
        samples, history = found.posterior.samples, found.posterior.sfh
    formed = samples["sfh"] * history.age_widths
    return Found(
        samples["redshift"],
        samples["stellar_mass"],
        time_of_half(formed, history.age_lhs / YEARS_PER_GYR),
        seconds,
    )


def _model(window: tuple[float, float]) -> dict[str, Any]:
    """Bagpipes' description of the fit: ranges of what is free, and priors that are not uniform."""
    longest = float(age_of_universe(torch.tensor(window[0])))
    calibration: dict[str, Any] = {"type": "polynomial_bayesian"}
    for name, mean in (("0", 1.0), ("1", 0.0), ("2", 0.0)):
        calibration |= {
            name: (mean - 0.5, mean + 0.5), f"{name}_prior": "Gaussian",
            f"{name}_prior_mu": mean, f"{name}_prior_sigma": 0.25,
        }  # fmt: skip
    return {
        "redshift": window,
        "t_bc": 0.01,
        "dblplaw": {
            "tau": (SHORTEST, longest),
            "alpha": (0.01, 1000.0), "alpha_prior": "log_10",
            "beta": (0.01, 1000.0), "beta_prior": "log_10",
            "massformed": (8.5, 12.5),
            "metallicity": (0.1, 2.5), "metallicity_prior": "log_10",
        },
        "dust": {
            "type": "Salim", "B": 0.0, "eta": 2.0, "Av": (0.0, 4.0),
            "delta": (-0.8, 0.4), "delta_prior": "Gaussian", "delta_prior_mu": 0.0,
            "delta_prior_sigma": 0.3,
        },
        "nebular": {"logU": -3.0},
        "veldisp": (40.0, 500.0), "veldisp_prior": "log_10",
        "calib": calibration,
        "noise": {"type": "white_scaled", "scaling": (1.0, 10.0), "scaling_prior": "log_10"},
    }  # fmt: skip


def time_of_half(formed: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Lookback times (n,), before which half of the mass ``formed`` (n, bins) had formed."""
    younger = np.cumsum(formed, 1) / formed.sum(1, keepdims=True)
    younger = np.pad(younger, ((0, 0), (1, 0)))
    return np.array([np.interp(0.5, each, edges) for each in younger])


def _written(curve: Filter, folder: Path) -> str:
    path = folder / f"{curve.name.replace(':', '_')}.dat"
    np.savetxt(path, np.stack([curve.wavelength, curve.transmission], 1), fmt="%.10g")
    return str(path)


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()
