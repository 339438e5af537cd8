"""Galaxies of COSMOS2020 with spectroscopic redshifts, fitted by the emulator.

    pip install -c constraints.txt -e ".[bench,sps]" ppxf
    python train.py model=sed_emulator experiment=sed_emulator_cosmos hydra.run.dir=cosmos
    python -m benchmarks.sed_emulator_cosmos checkpoint=cosmos/best.ckpt data=../shared/data/sed

The 3,681 galaxies of cosmos2020_specz_*.txt, z 2.5 to 3.5, are split in two halves by seed 0. On
the first, at the known redshifts, zero points, factors of the errors and their floors are fitted:
a band's zero point by the median ratio of its fluxes and those of fits to all bands; its factor and
floor so that, in thirds of its signal to noise, 68% of fluxes are within the predicted interval of
fits without this band. The second half is opened once, with these.

Writes benchmarks/sed_emulator_cosmos.csv. Rows `band`: `zero_point`, mag, `error_scale` and
`error_floor` as fitted; of the second half, `offset`, mag, median of observed - predicted of fits
to all bands and `coverage` of their 68% intervals, which are in-sample; `offset_left_out` and
`coverage_left_out` of fits without the band, which are not; `limits`: upper limits; `refuted`:
share of them that are 3 sigma below the flux of fits without the band. Rows `redshift`: of free
redshifts, `sigma_mad` of dz / (1 + z), `outliers` with |dz| / (1 + z) > .15, `bias`, its median,
and `coverage` of the 68% interval; `mass_bias` and `mass_scatter`, dex: median and 68% of log
stellar mass with the redshift free minus that with it known, where dz is no outlier. They are of
all galaxies, of those whose chi^2 is below 99.9% of the model's (`poor_fit` is not set), and of a
mock of all: the fits at known redshifts with noise of the same errors, which is what this
photometry could give if galaxies were as the model has them.
"""

import os
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import numpy as np
import torch

from orrery import pretrained
from orrery.benchmarks.dust_hmc import write_rows
from orrery.datamodules.sed_emulator import SedEmulatorData
from orrery.models.sed_emulator import SedEmulator
from orrery.models.sed_emulator.fitting import predicted_fluxes
from orrery.models.sed_emulator.outputs import BIT
from orrery.models.sed_emulator.posterior import photometry

FILES = "cosmos2020_specz_*.txt"
INTERMEDIATE = ("427", "464", "484", "505", "527", "574", "624", "679", "709", "738", "767", "827")
# band of experiment=sed_emulator_cosmos -> column. `u` and `u_1` are CLAUDS u and u*; of Subaru's,
# the names without + are HSC
COLUMNS = {
    "u": "cfht.megacam.u",
    "us": "cfht.megacam.u_1",
    **{band: f"subaru.suprime.{band}" for band in "griz"},
    "y": "subaru.suprime.Y",
    **{band: f"paranal.vircam.{band}" for band in ("Y", "J", "H", "Ks")},
    **{f"ia{number}": f"subaru.suprime.IB{number}" for number in INTERMEDIATE},
    "nb711": "subaru.suprime.NB711",
    "nb816": "subaru.suprime.NB816",
    **{band: f"subaru.suprime.{band}" for band in "BV"},
    **{f"{band}p": f"subaru.suprime.{band}+" for band in "griz"},
    "zpp": "subaru.suprime.z++",
    "irac1": "spitzer.irac.I1",
    "irac2": "spitzer.irac.I2",
    "f814w": "hst.acs.wfc.F814W",
}
# errors below 0 are written where the flux was, which then equals their size: limits of 1 sigma
LIMIT_SIGMA = 1.0
ROUNDS = 5
LEFT_OUT = 300  # galaxies that are fitted without a band, for each band
SCALES = np.geomspace(0.5, 6, 51)
FLOORS = np.array([0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.07, 0.1, 0.14, 0.2, 0.28])
OUTLIER = 0.15
SEED = 0
BAND_COLUMNS = (
    *("zero_point", "error_scale", "error_floor", "n", "offset", "coverage", "n_left_out"),
    *("offset_left_out", "coverage_left_out", "limits", "refuted"),
)
REDSHIFT_COLUMNS = ("sigma_mad", "outliers", "bias", "mass_bias", "mass_scatter")
Row = dict[str, Any]
Batch = dict[str, torch.Tensor]
Rows = dict[str, np.ndarray]


class Calibration(NamedTuple):
    """Of each band, (bands,): zero point, mag, factor of errors, and their relative floor."""

    zero_point: np.ndarray
    error_scale: np.ndarray
    error_floor: np.ndarray


def read(model: SedEmulator, folder: Path, calibration: Calibration) -> Batch:
    """Photometry of all galaxies, calibrated, uJy."""
    columns = {"zred": "redshift"}
    for band, column in COLUMNS.items():
        columns |= {f"flux_{band}": column, f"flux_err_{band}": f"{column}_err"}
    by_band = {
        name: dict(zip(model.bands, values.tolist(), strict=True))
        for name, values in calibration._asdict().items()
    }
    data = SedEmulatorData(
        path=str(folder / FILES), split="all", columns=columns, units={"flux": "mJy"},
        bands=model.filters, limit_sigma=LIMIT_SIGMA, zero_points=by_band["zero_point"],
        error_scale=by_band["error_scale"], error_floor=by_band["error_floor"],
    )  # fmt: skip
    batches = list(data.prediction_batches())
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def halves(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    order = torch.randperm(n, generator=torch.Generator().manual_seed(SEED))
    return order[: n // 2], order[n // 2 :]


def take(batch: Batch, rows: torch.Tensor) -> Batch:
    return {name: values[rows] for name, values in batch.items()}


def fit(model: SedEmulator, batch: Batch) -> Rows:
    """Rows of the component's predictions."""
    return {name: values.numpy() for name, values in model.predict_step(batch).items()}


def free(batch: Batch) -> Batch:
    """With unknown redshifts."""
    return batch | {"zred": torch.full_like(batch["zred"], torch.nan)}


class Predicted(NamedTuple):
    """Of galaxies in one band, (n,): flux and its error, as measured and as predicted.

    ``is_limit``: the flux is an upper limit.
    """

    flux: np.ndarray
    error: np.ndarray
    model: np.ndarray
    model_error: np.ndarray
    is_limit: np.ndarray

    @property
    def total(self) -> np.ndarray:
        return np.hypot(self.error, self.model_error)

    def detected(self) -> "Predicted":
        return Predicted(*(values[~self.is_limit] for values in self))

    def coverage(self) -> float:
        """Share of fluxes within the 68% interval."""
        return float(np.mean(np.abs(self.flux - self.model) < self.total))

    def offset(self) -> float:
        """Median of observed - predicted magnitude, of the half that is predicted brighter."""
        ratio = (self.flux / self.model)[self.model >= np.median(self.model)]
        return float(-2.5 * np.log10(np.median(ratio)))


def fluxes(model: SedEmulator, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Fluxes and errors, (n, bands), that fits at known redshifts predict."""
    data = photometry(batch)
    parts = [data.rows(rows) for rows in torch.arange(len(data.flux)).split(512)]
    emulator = model.of_catalogue(batch)
    found = [predicted_fluxes(model, part, emulator.modes(part)[0]) for part in parts]
    flux, error = (torch.cat(each).numpy() for each in zip(*found, strict=True))
    return flux, error


def of_band(batch: Batch, predicted: tuple[np.ndarray, np.ndarray], band: int) -> Predicted:
    """Of a batch and its predicted fluxes, galaxies that are observed in a band."""
    observed = batch["observed"].numpy()[:, band]
    measured = (batch[name].numpy() for name in ("flux", "flux_error"))
    columns = (*measured, *predicted, batch["is_limit"].numpy())
    return Predicted(*(values[observed, band] for values in columns))


def left_out(model: SedEmulator, batch: Batch, band: int) -> Predicted:
    """Predictions of a band by fits, at known redshifts, to the others."""
    few = take(batch, batch["observed"][:, band].nonzero()[:LEFT_OUT, 0])
    others = few["observed"].clone()
    others[:, band] = False
    return of_band(few, fluxes(model, few | {"observed": others}), band)


# --- the first half -------------------------------------------------------------------------------


def calibrate(model: SedEmulator, folder: Path) -> Calibration:
    """Zero points, factors and floors of errors, of the first half."""
    n = len(model.bands)
    calibration = Calibration(np.zeros(n), np.full(n, 2.0), np.full(n, 0.05))
    for _ in range(ROUNDS):
        batch = read(model, folder, calibration)
        batch = take(batch, halves(len(batch["zred"]))[0])
        predicted = fluxes(model, batch)
        shift = np.array([of_band(batch, predicted, band).detected().offset() for band in range(n)])
        zero_point = calibration.zero_point - shift
        zero_point -= np.median(zero_point)  # that of all bands is the galaxies' mass
        noise = [
            noise_of(left_out(model, batch, band).detected(), *errors)
            for band, errors in enumerate(zip(*calibration[1:], strict=True))
        ]
        scale, floor = np.array(noise).T
        calibration = Calibration(zero_point, scale, floor)
        print(f"largest change of zero points: {np.abs(shift).max():.3f} mag", flush=True)
    return calibration


def noise_of(band: Predicted, scale: float, floor: float) -> tuple[float, float]:
    """Factor and floor of a band's errors, which hold ``scale`` and ``floor`` already."""
    flux = np.abs(band.flux)
    sky = np.sqrt(np.clip(band.error**2 - (floor * flux) ** 2, 1e-12, None)) / scale
    residual = np.abs(band.flux - band.model)
    thirds = np.array_split(np.argsort(band.model / sky), 3)
    best = (np.inf, scale, floor)
    for new_floor in FLOORS:
        for new_scale in SCALES:
            variance = band.model_error**2 + (new_scale * sky) ** 2 + (new_floor * flux) ** 2
            whitened = residual / np.sqrt(variance)
            misfit = sum(np.log(np.quantile(whitened[part], 0.68)) ** 2 for part in thirds)
            best = min(best, (float(misfit), float(new_scale), float(new_floor)))
    return best[1:]


# --- the second half ------------------------------------------------------------------------------


def band_rows(model: SedEmulator, batch: Batch, calibration: Calibration) -> list[Row]:
    found, fitted = [], fluxes(model, batch)
    for band, name in enumerate(model.bands):
        within = of_band(batch, fitted, band).detected()
        predicted = left_out(model, batch, band)
        without = predicted.detected()
        limits = Predicted(*(values[predicted.is_limit] for values in predicted))
        refuted = limits.model - limits.flux > 3 * limits.total
        found.append({
            "set": "band", "name": name, "zero_point": calibration.zero_point[band],
            "error_scale": calibration.error_scale[band],
            "error_floor": calibration.error_floor[band],
            "n": len(within.flux), "offset": within.offset(), "coverage": within.coverage(),
            "n_left_out": len(without.flux), "offset_left_out": without.offset(),
            "coverage_left_out": without.coverage(),
            "limits": int((batch["is_limit"][:, band]).sum()),
            "refuted": float(refuted.mean()) if len(refuted) else np.nan,
        })  # fmt: skip
    return found


def mock_of(batch: Batch, fixed: Rows) -> Batch:
    """Galaxies as the fits at known redshifts have them, with noise of the errors of the batch."""
    noise = torch.randn(batch["flux"].shape, generator=torch.Generator().manual_seed(SEED))
    flux = torch.from_numpy(fixed["flux_model"]) + batch["flux_error"] * noise
    return batch | {
        "flux": torch.where(batch["observed"], flux, 0.0),
        "is_limit": torch.zeros_like(batch["is_limit"]),
    }


def redshift_rows(batch: Batch, fixed: Rows, rows: Rows) -> list[Row]:
    """Rows of fits with free redshifts, compared with those of ``fixed`` ones."""
    true = batch["zred"].numpy()
    scaled = (rows["zred"] - true) / (1 + true)
    inside = (true > rows["zred_q16"]) & (true < rows["zred_q84"])
    mass = rows["log_stellar_mass"] - fixed["log_stellar_mass"]
    is_good = np.abs(scaled) < OUTLIER
    masks = {"all": np.ones(len(true), bool), "well fitted": rows["flags"] & BIT["poor_fit"] == 0}
    found = []
    for name, mask in masks.items():
        error, centre = scaled[mask], float(np.median(scaled[mask]))
        change = mass[mask & is_good]
        found.append({
            "set": "redshift", "name": name, "n": int(mask.sum()),
            "sigma_mad": float(1.4826 * np.median(np.abs(error - centre))),
            "outliers": float(np.mean(np.abs(error) > OUTLIER)), "bias": centre,
            "coverage": float(inside[mask].mean()), "mass_bias": float(np.median(change)),
            "mass_scatter": float(np.quantile(np.abs(change - np.median(change)), 0.68)),
        })  # fmt: skip
    return found


def main() -> None:
    options = dict(word.split("=", 1) for word in sys.argv[1:])
    if options.keys() != {"checkpoint", "data"}:
        raise SystemExit("usage: python -m benchmarks.sed_emulator_cosmos checkpoint=... data=...")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    model, folder = pretrained.load(options["checkpoint"]), Path(options["data"])
    if set(COLUMNS) != set(model.bands):
        raise SystemExit(
            f"{options['checkpoint']} has the bands {', '.join(model.bands)}; expected those of "
            f"experiment=sed_emulator_cosmos"
        )
    calibration = calibrate(model, folder)
    batch = read(model, folder, calibration)
    batch = take(batch, halves(len(batch["zred"]))[1])
    fixed = fit(model, batch)
    table = band_rows(model, batch, calibration)
    table += redshift_rows(batch, fixed, fit(model, free(batch)))
    mock = mock_of(batch, fixed)
    table.append(
        redshift_rows(mock, fit(model, mock), fit(model, free(mock)))[0] | {"name": "mock"}
    )
    names = ("set", "name", *BAND_COLUMNS, *REDSHIFT_COLUMNS)
    write_rows(Path("benchmarks/sed_emulator_cosmos.csv"), table, names)
    for row in table:
        print(*(f"{v:9.3f}" if isinstance(v, float) else f"{v!s:>9}" for v in row.values()))


if __name__ == "__main__":
    main()
