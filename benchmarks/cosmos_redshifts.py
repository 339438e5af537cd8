"""Photometric redshifts of COSMOS2020 galaxies that have spectra, compared with a template fit.

    pip install -c constraints.txt -e ".[bench]" ppxf
    python -m benchmarks.cosmos_redshifts --data ../shared/data/sed             # feniks; 10 minutes
    python -m benchmarks.cosmos_redshifts --data ../shared/data/sed --checkpoint cosmos/best.ckpt

The 3,681 galaxies of cosmos2020_specz_*.txt, z 2.5 to 3.5, are split in two halves by a hash of
their numbers and seed 24. On every fourth of the first, at the known redshifts, each band gets a
zero point, a factor and a floor of its errors, by galaxies whose free redshift is right, for a
galaxy with a wrong redshift tells nothing of a band; then all errors get one common factor, by
which 68% of the 68% intervals of free redshifts hold the known one. The second half is predicted
with the errors as published (a floor of 2%), with those of the bands, and with the common factor.

"templates": 24 galaxies drawn from the prior of `sed_emulator_spectra`, mixed by non-negative least
squares at each of a grid of redshifts, with the same photometry and a template error of 5% of the
flux, 20% shortward of Lyman alpha; no prior. `refuted`: galaxies of which no mix of templates
within 0.03 of the spectroscopic redshift has a chi^2 within 50 of the best one elsewhere, of errors
by which the median chi^2 is the number of bands; `refuted_outliers`: share of the outliers that
are. `agree`: share of the model's outliers whose redshift templates find too, within 0.15.

Writes benchmarks/cosmos_redshifts.csv: a row for each fit, dz over 1 + z; `guess` is the redshift
2.9 for all galaxies, of which, in so narrow a range, none is an outlier. Rows `pair` need no model:
`scatter` of the ln ratio of the fluxes of two bands of nearly the same wavelength, where both are 5
sigma, and that which the published errors give, `stated`; `beyond_half`: share of the galaxies
whose ln ratio is more than 0.5 from the median.
"""

import argparse
import hashlib
import os
import warnings
from pathlib import Path
from typing import Any, NamedTuple

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import numpy as np
import torch
from scipy.optimize import nnls

from orrery import pretrained
from orrery.benchmarks.dust_hmc import write_rows
from orrery.benchmarks.sed_emulator_cosmos import (
    COLUMNS,
    FILES,
    FLOORS,
    LIMIT_SIGMA,
    OUTLIER,
    SCALES,
    Batch,
    Row,
    fluxes,
    free,
    take,
)
from orrery.datamodules.sed_emulator import SedEmulatorData
from orrery.models.sed_emulator import SedEmulator

SEED = 24
LABELS = {"us": "ustar", "Y": "vista_Y", "J": "vista_J", "H": "vista_H", "Ks": "vista_Ks"}
CALIBRATED = 400  # galaxies
ROUNDS = 3
FREEDOM = 4  # of the Student's t of a band's residuals
FACTORS = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0)
N_TEMPLATES = 24
TEMPLATE_STEP = 0.01  # of ln(1 + z)
TEMPLATE_ERROR, LYMAN_ERROR, LYMAN_ALPHA = 0.05, 0.2, 1216.0
NEAR, REFUTED = 0.03, 50.0
GUESS = 2.9
PAIRS = (("g", "gp"), ("r", "rp"), ("i", "ip"), ("i", "f814w"), ("z", "zpp"))
DETECTED = 5.0  # sigma
NAMES = (
    *("fit", "n", "factor", "sigma_mad", "outliers", "beyond_005", "bias", "coverage"),
    *("refuted", "refuted_outliers", "agree", "scatter", "stated", "beyond_half"),
)


class Noise(NamedTuple):
    """Of each band, (bands,): zero point, mag, factor of errors, and their relative floor."""

    zero_point: np.ndarray
    scale: np.ndarray
    floor: np.ndarray


def columns_of(model: SedEmulator) -> dict[str, str]:
    """Band of the model -> column of the catalogue."""
    named = {band if band in model.bands else LABELS[band]: c for band, c in COLUMNS.items()}
    if missing := set(named) - set(model.bands):
        raise SystemExit(f"the model lacks the bands {', '.join(sorted(missing))} of COSMOS2020")
    return named


def read(model: SedEmulator, folder: Path, noise: Noise) -> tuple[Batch, np.ndarray]:
    """Photometry of all galaxies, calibrated, uJy, and whether each is of the first half."""
    named = columns_of(model)
    columns = {"zred": "redshift"} | {f"flux_{b}": "none" for b in model.bands if b not in named}
    for band, column in named.items():
        columns |= {f"flux_{band}": column, f"flux_err_{band}": f"{column}_err"}
    each = [dict(zip(model.bands, values.tolist(), strict=True)) for values in noise]
    data = SedEmulatorData(
        path=str(folder / FILES), split="all", columns=columns, units={"flux": "mJy"},
        bands=model.filters, limit_sigma=LIMIT_SIGMA, zero_points=each[0], error_scale=each[1],
        error_floor=each[2],
    )  # fmt: skip
    batches = list(data.prediction_batches())
    batch = {name: torch.cat([each[name] for each in batches]) for name in batches[0]}
    numbers = [int(n) for path in sorted(folder.glob(FILES)) for n in np.loadtxt(path, usecols=0)]
    hashed = [hashlib.sha256(f"{SEED}:{number}".encode()).hexdigest() for number in numbers]
    return batch, np.array([int(value, 16) % 2 == 0 for value in hashed])


def half(model: SedEmulator, folder: Path, noise: Noise, first: bool) -> Batch:
    batch, is_first = read(model, folder, noise)
    rows = torch.from_numpy(np.flatnonzero(is_first == first))
    return take(batch, rows[:: len(rows) // CALIBRATED] if first else rows)


def predict(model: SedEmulator, batch: Batch, factor: float = 1.0) -> dict[str, np.ndarray]:
    """Rows of fits with free redshifts and errors times a factor."""
    larger = free(batch) | {"flux_error": factor * batch["flux_error"]}
    return {name: values.numpy() for name, values in model.predict_step(larger).items()}


def row(name: str, batch: Batch, z: np.ndarray, low: Any = np.nan, high: Any = np.nan) -> Row:
    true = batch["zred"].numpy()
    error = (z - true) / (1 + true)
    centre = float(np.median(error))
    return {
        "fit": name, "n": len(true),
        "sigma_mad": float(1.4826 * np.median(np.abs(error - centre))),
        "outliers": float(np.mean(np.abs(error) > OUTLIER)),
        "beyond_005": float(np.mean(np.abs(error) > 0.05)), "bias": centre,
        "coverage": float(np.mean((true > low) & (true < high))),
    }  # fmt: skip


def pair_rows(model: SedEmulator, batch: Batch) -> list[Row]:
    """How far bands of nearly the same wavelength differ, by a batch with published errors."""
    found = []
    for names in PAIRS:
        both = [model.bands.index(name) for name in names]
        flux, error = (batch[name].numpy()[:, both] for name in ("flux", "flux_error"))
        counted = batch["observed"].numpy()[:, both] & ~batch["is_limit"].numpy()[:, both]
        rows = (counted & (flux > DETECTED * error)).all(1)
        ratio = np.log(flux[rows, 1] / flux[rows, 0])
        distance = np.abs(ratio - np.median(ratio))
        found.append({
            "fit": f"pair {names[0]} {names[1]}", "n": len(ratio),
            "scatter": float(1.4826 * np.median(distance)),
            "stated": float(np.median(np.hypot(*(error / flux)[rows].T))),
            "beyond_half": float(np.mean(distance > 0.5)),
        })  # fmt: skip
    return found


def is_outlier(z: np.ndarray, true: np.ndarray) -> np.ndarray:
    return np.asarray(np.abs(z - true) / (1 + true) > OUTLIER)


# --- the first half -------------------------------------------------------------------------------


def calibrate(model: SedEmulator, folder: Path) -> Noise:
    """Zero points and errors of the bands, by galaxies whose free redshift is right."""
    n = len(model.bands)
    stated = Noise(np.zeros(n), np.ones(n), np.zeros(n))
    noise = stated._replace(floor=np.full(n, 0.05))
    used = [model.bands.index(band) for band in columns_of(model)]
    sky = half(model, folder, stated, True)["flux_error"].numpy()
    for number in range(ROUNDS):
        batch = half(model, folder, noise, True)
        if number != 1:
            found = predict(model, batch)
            print(row(f"round {number}", batch, found["zred"]), flush=True)
            right = ~is_outlier(found["zred"], batch["zred"].numpy())
        flux, _ = fluxes(model, batch)
        zero_point, scale, floor = (values.copy() for values in noise)
        for band in used:
            rows = right & batch["observed"].numpy()[:, band]
            rows &= ~batch["is_limit"].numpy()[:, band]
            observed, expected = batch["flux"].numpy()[rows, band], flux[rows, band]
            bright = expected > np.median(expected)
            zero_point[band] += 2.5 * np.log10(np.median((observed / expected)[bright]))
            own = sky[rows, band] * 10 ** (-0.4 * noise.zero_point[band])
            scale[band], floor[band] = noise_of(observed - expected, own, expected)
        zero_point[used] -= np.median(zero_point[used])  # that of all bands is the galaxies' mass
        noise = Noise(zero_point, scale, floor)
    return noise


def noise_of(residual: np.ndarray, sky: np.ndarray, flux: np.ndarray) -> tuple[float, float]:
    """Factor and floor of errors ``sky``, the likeliest of residuals that are Student's t."""
    best = (np.inf, 1.0, 0.0)
    for floor in (0.0, *FLOORS):
        for scale in SCALES[::2]:
            variance = (scale * sky) ** 2 + (floor * flux) ** 2
            tail = 0.5 * (FREEDOM + 1) * np.log1p(residual**2 / variance / FREEDOM)
            misfit = float(np.mean(0.5 * np.log(variance) + tail))
            best = min(best, (misfit, float(scale), float(floor)))
    return best[1:]


def common_factor(model: SedEmulator, batch: Batch) -> float:
    """Factor of all errors by which 68% of intervals of free redshifts hold the known one."""
    covered = []
    for factor in FACTORS:
        found = predict(model, batch, factor)
        rows = row(f"x {factor}", batch, found["zred"], found["zred_q16"], found["zred_q84"])
        print(rows, flush=True)
        covered.append(rows["coverage"])
        if covered[-1] > 0.68:
            break
    return float(np.interp(0.68, covered, FACTORS[: len(covered)]))


# --- templates ------------------------------------------------------------------------------------


class Templates(NamedTuple):
    """Fluxes (redshifts, templates, bands) at redshifts (k,)."""

    z: np.ndarray
    flux: np.ndarray


def templates(model: SedEmulator) -> Templates:
    """Galaxies drawn from the prior, in the catalogue's bands."""
    spectra = pretrained.load("sed_emulator_spectra")
    names = spectra.names
    drawn = spectra.priors.draw(N_TEMPLATES, torch.Generator().manual_seed(SEED)).numpy()
    z = np.expm1(np.arange(np.log(1.2), np.log(7.0), TEMPLATE_STEP))
    z = z[z < float(spectra.priors.high[names.index("zred")])]
    every = np.tile(drawn, (len(z), 1))
    every[:, names.index("zred")] = np.repeat(z, N_TEMPLATES)
    every[:, names.index("logmass")] = 10.0
    flux = spectra.photometry(every, [model.filters[band] for band in columns_of(model)])["flux"]
    return Templates(z, flux.reshape(len(z), N_TEMPLATES, -1))


def template_chi2(model: SedEmulator, batch: Batch, made: Templates) -> np.ndarray:
    """chi^2 (galaxies, redshifts) of the best mixes of templates."""
    used = [model.bands.index(band) for band in columns_of(model)]
    rest = np.array(model.wavelengths)[used] / (1 + made.z[:, None])
    relative = np.where(rest < LYMAN_ALPHA, LYMAN_ERROR, TEMPLATE_ERROR)
    flux, error, observed, is_limit = (
        batch[name].numpy()[:, used] for name in ("flux", "flux_error", "observed", "is_limit")
    )
    flux = np.where(is_limit, 0.0, flux).astype(float)
    scale = 1 / made.flux.sum(2, keepdims=True)
    chi2 = np.empty((len(flux), len(made.z)))
    for i, bands in enumerate(observed):
        for k in range(len(made.z)):
            sigma = np.hypot(error[i, bands], relative[k, bands] * np.abs(flux[i, bands]))
            mixed = (scale[k] * made.flux[k])[:, bands] / sigma
            chi2[i, k] = nnls(mixed.T, flux[i, bands] / sigma, maxiter=500)[1] ** 2
    return chi2


def refuted(chi2: np.ndarray, batch: Batch, z: np.ndarray) -> np.ndarray:
    """Galaxies (n,) whose known redshift templates do not allow; see the top of this file."""
    distance = np.abs(np.log1p(z) - np.log1p(batch["zred"].numpy())[:, None])
    scaled = chi2 / np.median(chi2.min(1) / batch["observed"].numpy().sum(1))
    at_known = np.where(distance < NEAR, scaled, np.inf).min(1)
    return np.asarray(at_known - scaled.min(1) > REFUTED)


# --- the second half ------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the catalogue")
    parser.add_argument("--checkpoint", default="feniks")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/cosmos_redshifts.csv"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    model = pretrained.load(options.checkpoint)
    n = len(model.bands)
    noise = calibrate(model, options.data)
    factor = common_factor(model, half(model, options.data, noise, True))
    floor = Noise(np.zeros(n), np.ones(n), np.full(n, 0.02))
    stated, batch = (half(model, options.data, each, False) for each in (floor, noise))
    true = batch["zred"].numpy()
    table = [row("guess", batch, np.full_like(true, GUESS))]
    for name, photometry, times in (
        ("errors as published", stated, 1.0),
        ("zero points and errors of bands", batch, 1.0),
        ("and the common factor", batch, factor),
    ):
        found = predict(model, photometry, times)
        ends = found["zred_q16"], found["zred_q84"]
        table.append(row(name, batch, found["zred"], *ends) | {"factor": times})
    made = templates(model)
    chi2 = template_chi2(model, batch, made)
    z = made.z[chi2.argmin(1)]
    wrong, impossible = is_outlier(found["zred"], true), refuted(chi2, batch, made.z)
    table[-1] |= {
        "refuted_outliers": float(impossible[wrong].mean()),
        "agree": float(np.mean(~is_outlier(found["zred"], z)[wrong])),
    }
    table.append(
        row("templates", batch, z)
        | {
            "refuted": float(impossible.mean()),
            "refuted_outliers": float(impossible[is_outlier(z, true)].mean()),
        }
    )
    allowed = ~impossible
    kept = take(batch, torch.from_numpy(np.flatnonzero(allowed)))
    ends = found["zred_q16"][allowed], found["zred_q84"][allowed]
    table.append(row("the same without the refuted", kept, found["zred"][allowed], *ends))
    published = half(model, options.data, Noise(np.zeros(n), np.ones(n), np.zeros(n)), False)
    table += pair_rows(model, published)
    write_rows(options.out, table, NAMES)
    for each in table:
        print(each)


if __name__ == "__main__":
    main()
