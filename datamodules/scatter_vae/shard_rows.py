"""The rows of a file of XP coefficients, checked and in the types of a shard."""

from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np

from orrery.datamodules.scatter_vae.shards import BANDS
from orrery.tables import Catalogue
from orrery.tables.vectors import flatten

# Copied where the file has them: to normalise by, and to colour figures.
CARRIED = ("phot_g_mean_flux", "phot_g_mean_mag", "bp_rp")
# Correlations are float32 in the archive, where 1 may have become 1.0000001.
ROUNDING = 1e-6


class ValidRows:
    """A pass over a file: its valid rows in `chunks`, and how many were `dropped`, by reason.

    `correlations` is the type of correlations, None to leave them out. Invalid rows are an error
    unless `skip_bad`. Vectors have one length per band, `sizes`; a band without any has that of the
    other.
    """

    def __init__(self, catalogue: Catalogue, correlations: type | None, skip_bad: bool) -> None:
        self._catalogue, self._correlations, self._skip_bad = catalogue, correlations, skip_bad
        self._names = _names(catalogue, correlations is not None)
        self.sizes = _sizes(catalogue)
        self.dropped: Counter[str] = Counter()
        self._ids = np.zeros(0, np.int64)  # source_ids, ordered

    def chunks(self, rows: int) -> Iterator[dict[str, np.ndarray]]:
        """Columns of a shard, up to `rows` rows at a time."""
        first = 0
        for chunk in self._catalogue.chunks(self._names, rows):
            ids = chunk["source_id"]
            if ids.dtype.kind not in "iu":
                raise ValueError(
                    f"{self._catalogue.path}: source_id is {ids.dtype}, such as {ids[0]}; expected "
                    "integers, since a float has fewer than its 19 digits: write the file again"
                )
            columns, faults = self._read(chunk)
            self._mark_repeated(ids, faults)
            bad = np.flatnonzero(faults != "")
            if len(bad) and not self._skip_bad:
                row = int(bad[0])
                raise ValueError(
                    f"{self._catalogue.path}: row {first + row} (source_id {ids[row]}): "
                    f"{faults[row]}; {len(bad)} of the rows {first} to {first + len(ids) - 1} are "
                    "invalid: correct the file, or leave such rows out with --skip-bad"
                )
            self.dropped.update(faults[bad].tolist())
            first += len(ids)
            yield {name: np.delete(values, bad, axis=0) for name, values in columns.items()}

    def _read(self, chunk: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """The columns of a shard, and the fault of each row, (rows,), "" for none."""
        columns = {"source_id": chunk["source_id"].astype(np.int64)}
        faults = np.full(len(chunk["source_id"]), "", object)
        absent = np.ones(len(faults), bool)
        for band, k in self.sizes.items():
            values, errors, correlations = (f"{band}_{name}" for name in VECTORS)
            flux, missing = _vectors(chunk, values, k, faults)
            columns[values] = flux.astype(np.float32)
            _mark(faults, ~missing & ~np.isfinite(flux).all(1), f"{values} are not all finite")
            error, blank = _vectors(chunk, errors, k, faults)
            columns[errors] = error.astype(np.float32)
            _mark(faults, missing != blank, f"{band} has coefficients or errors, but not both")
            bad = ~((error > 0) & np.isfinite(error)).all(1)
            _mark(faults, ~missing & bad, f"{errors} are not all positive and finite")
            absent &= missing
            if self._correlations is not None:
                matrix, blank = _vectors(chunk, correlations, k * (k - 1) // 2, faults)
                columns[correlations] = matrix.astype(self._correlations)
                _mark(faults, ~missing & blank, f"{correlations} are missing")
                bad = ~(np.abs(matrix) <= 1 + ROUNDING).all(1)
                _mark(faults, ~missing & bad, f"{correlations} are not all from -1 to 1")
        _mark(faults, absent, "neither band has coefficients")
        for name in self._names:
            if name in CARRIED:
                columns[name] = chunk[name].astype(np.float32)
        return columns, faults

    def _mark_repeated(self, ids: np.ndarray, faults: np.ndarray) -> None:
        """Mark rows that repeat the source_id of an earlier valid row."""
        valid = np.flatnonzero(faults == "")
        _, firsts = np.unique(ids[valid], return_index=True)
        repeated = np.ones(len(valid), bool)
        repeated[firsts] = False
        position = np.searchsorted(self._ids, ids[valid])
        repeated |= np.append(self._ids, -1)[position] == ids[valid]
        faults[valid[repeated]] = "its source_id is that of an earlier row"
        new = np.sort(ids[valid[~repeated]])
        self._ids = np.insert(self._ids, np.searchsorted(self._ids, new), new)


VECTORS = ("coefficients", "coefficient_errors", "coefficient_correlations")


def _names(catalogue: Catalogue, correlations: bool) -> list[str]:
    """The columns to read, by the archive's names."""
    vectors = VECTORS if correlations else VECTORS[:2]
    needed = ["source_id", *(f"{band}_{name}" for band in BANDS for name in vectors)]
    if missing := [name for name in needed if name not in catalogue.names]:
        only = all(name.endswith("correlations") for name in missing)
        hint = "give --correlations none" if only else "shards are made of the archive's columns"
        raise ValueError(f"{catalogue.path}: has no column {', '.join(missing)}; {hint}")
    return needed + [name for name in CARRIED if name in catalogue.names]


def _sizes(catalogue: Catalogue) -> dict[str, int]:
    """Coefficients of each band: the most frequent number among the first stars."""
    sizes: dict[str, int] = {}
    names = [f"{band}_coefficients" for band in BANDS]
    for chunk in catalogue.chunks(names, rows=1024):
        for band, name in zip(BANDS, names, strict=True):
            lengths = flatten(chunk[name], name, spoilt=True)[1]
            if band not in sizes and (lengths > 0).any():
                sizes[band] = int(np.bincount(lengths[lengths > 0]).argmax())
        if len(sizes) == len(BANDS):
            break
    if not sizes:
        raise ValueError(f"{catalogue.path}: no row has coefficients")
    return {band: sizes.get(band, max(sizes.values())) for band in BANDS}


def _vectors(
    chunk: Mapping[str, np.ndarray], name: str, size: int, faults: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Vectors (rows, size), float64, NaN where they are invalid, and a mask of blank ones."""
    numbers, lengths = flatten(chunk[name], name, spoilt=True)
    complete = lengths == size
    array = np.full((len(lengths), size), np.nan)
    array[complete] = numbers[np.repeat(complete, np.maximum(lengths, 0))].reshape(-1, size)
    _mark(faults, lengths < 0, f"{name} is not an array of numbers")
    for length in np.unique(lengths[~complete & (lengths > 0)]).tolist():
        _mark(faults, lengths == length, f"{name} has {length} numbers, expected {size}")
    return array, np.isnan(array).all(1)


def _mark(faults: np.ndarray, rows: np.ndarray, fault: str) -> None:
    """Set the fault of `rows` (a mask) that have none yet."""
    faults[rows & (faults == "")] = fault
