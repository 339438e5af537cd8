"""The catalogues of `benchmarks.zephyr`, and the files of them that this zoo reads."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from orrery.tables import sha256

Array = NDArray[np.float64]
NOT_DETECTED = 99.0


# What RAIL puts in the place of an undetected LSST magnitude (its default `mag_limits`, the depth
# of ten years); every peer that needs a number there gets this one.
LSST_LIMITS = {"u": 27.79, "g": 29.04, "r": 29.06, "i": 28.62, "z": 27.98, "y": 27.05}
SETS = ("dc2", "zcosmos", "zcosmos_all", "stress", "stress_clean")


@dataclass
class PhotozSet:
    """One benchmark: two tables of equal columns, and the grid on which p(z) is scored.

    `train` and `test` hold (n,) columns `mag_<band>` and `mag_err_<band>` (AB magnitudes; 99: no
    magnitude) and `redshift`; `train` of the stress sets also `source`.
    """

    name: str
    bands: list[str]  # magnitude columns, blue to red
    errors: list[str]
    reference: str  # the magnitude that joins the colours
    limits: dict[str, float]  # per magnitude column
    train: dict[str, Array]
    test: dict[str, Array]
    grid: Array
    test_sha256: str = ""  # of the published test file; empty where the training labels are ours


def load(name: str, data: Path) -> PhotozSet:
    """Read one of `SETS`; `data` is the folder of the zCOSMOS files.

    `dc2` are the 10,225 + 20,449 simulated LSST galaxies inside pz-rail-base. `stress` is DC2
    with `corrupted` training redshifts, `stress_clean` its clean third alone. `zcosmos` trains on
    the secure redshifts, `zcosmos_all` on all of them.
    """
    if name.startswith("zcosmos"):
        suffix, step, points = "", 0.0025, 641
        train_file, test_file = data / "zcosmos_train.hdf5", data / "zcosmos_test.hdf5"
        train, test = _read(train_file), _read(test_file)
        if name == "zcosmos":
            train = _rows(train, train["secure"] == 1)
        bands = list("ubgvrizjk")
    elif name in SETS:
        suffix, step, points = "_lsst", 0.005, 621
        test_file = _rail_examples() / "test_dc2_validation_9816.hdf5"
        train, test = _read(_rail_examples() / "test_dc2_training_9816.hdf5"), _read(test_file)
        bands = list(LSST_LIMITS)
    else:
        raise ValueError(f"unknown set {name!r}: expected one of {', '.join(SETS)}")
    grid = step * np.arange(points, dtype=float)
    if name.startswith("stress"):
        train = corrupted(train, grid)
    if name == "stress_clean":
        train = _rows(train, train["source"] == 0)
    columns = [f"mag_{band}{suffix}" for band in bands]
    if suffix:
        limits = {c: LSST_LIMITS[band] for c, band in zip(columns, bands, strict=True)}
    else:  # no published limit: the faintest magnitude that was measured
        limits = {c: float(train[c][train[c] < NOT_DETECTED].max()) for c in columns}
    errors = [f"mag_err_{band}{suffix}" for band in bands]
    digest = "" if name.startswith("stress") else sha256(test_file)
    return PhotozSet(name, columns, errors, f"mag_i{suffix}", limits, train, test, grid, digest)


def corrupted(train: dict[str, Array], grid: Array, seed: int = 0) -> dict[str, Array]:
    """A catalogue with corrupted redshifts, as of a bad spectroscopic campaign.

    30 % of the rows keep their redshift (`source` 0). The others (`source` 1) get a Gaussian
    scatter of 0.03 (1 + z), and 15 % of these instead a redshift drawn uniformly from the grid's
    range. Photometry does not change.
    """
    rng = np.random.default_rng(seed)
    truth = train["redshift"]
    noisy = rng.permutation(len(truth)) >= round(0.3 * len(truth))
    scattered = truth + 0.03 * (1 + truth) * rng.standard_normal(len(truth))
    catastrophic = rng.random(len(truth)) < 0.15
    labels = np.where(catastrophic, rng.uniform(grid[0], grid[-1], len(truth)), scattered)
    # Published redshifts are positive, and FlexZBoost needs them inside its range.
    redshift = np.where(noisy, np.clip(labels, 0.001, grid[-1]), truth)
    return {**train, "redshift": redshift, "source": noisy.astype(float)}


def write_files(photoz: PhotozSet, folder: Path) -> tuple[Path, Path]:
    """Write `<set>_train.hdf5` and `<set>_test.hdf5`, group `photometry`, for this zoo."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / f"{photoz.name}_train.hdf5", folder / f"{photoz.name}_test.hdf5"
    for path, table in zip(paths, (photoz.train, photoz.test), strict=True):
        with h5py.File(path, "w") as file:
            for name, column in table.items():
                file.create_dataset(f"photometry/{name}", data=column)
    return paths


def fill_undetected(table: dict[str, Array], limits: dict[str, float]) -> dict[str, Array]:
    """A copy of the table with the 99 of each magnitude replaced by the limit of its band."""
    filled = {name: np.array(column) for name, column in table.items()}
    for band, limit in limits.items():
        filled[band][filled[band] >= NOT_DETECTED] = limit
    return filled


def _rows(table: dict[str, Array], keep: NDArray[np.bool_]) -> dict[str, Array]:
    return {name: column[keep] for name, column in table.items()}


def _read(path: Path) -> dict[str, Array]:
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: point --data at the folder that holds it")
    with h5py.File(path) as file:
        return {name: column[()].astype(float) for name, column in file["photometry"].items()}


def _rail_examples() -> Path:
    """The folder of DC2 test data inside the installed pz-rail-base, without importing it."""
    spec = find_spec("rail")
    for folder in spec.submodule_search_locations or [] if spec else []:
        if (Path(folder) / "examples_data" / "testdata").is_dir():
            return Path(folder) / "examples_data" / "testdata"
    raise ModuleNotFoundError(
        'the DC2 files come with pz-rail-base: pip install -c constraints.txt -e ".[bench]"'
    )
