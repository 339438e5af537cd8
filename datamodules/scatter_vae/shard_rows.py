"""The rows of a file of XP coefficients, checked and in the types of a shard."""

from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np

from orrery.datamodules.scatter_vae.shards import BANDS
from orrery.tables import Catalogue
from orrery.tables.vectors import flatten

# Taken along where the file has them: to normalise by, and to colour figures.
CARRIED = ("phot_g_mean_flux", "phot_g_mean_mag", "bp_rp")
# Correlations are float32 in the archive, where 1 may have become 1.0000001.
_ROUNDING = 1e-6


class Rows:
    """A pass over a file: its good rows in `chunks`, and how many were `dropped` for what.

    `correlations` is the type that they are kept in, None to leave them out. Bad rows are an
    error unless `skip_bad`. Rows have one length per band, `sizes`; a band without any has that
    of the other.
    """

    def __init__(self, catalogue: Catalogue, correlations: type | None, skip_bad: bool) -> None:
        self._catalogue, self._correlations, self._skip_bad = catalogue, correlations, skip_bad
        self._names = _names(catalogue, correlations is not None)
        self.sizes = _sizes(catalogue)
        self.dropped: Counter[str] = Counter()
        self._seen = np.zeros(0, np.int64)  # source_ids, ordered

    def chunks(self, rows: int) -> Iterator[dict[str, np.ndarray]]:
        """Columns of a shard, up to `rows` rows at a time."""
        first = 0
        for chunk in self._catalogue.chunks(self._names, rows):
            ids = chunk["source_id"]
            if ids.dtype.kind not in "iu":
                raise ValueError(
                    f"{self._catalogue.path}: source_id is {ids.dtype}, such as {ids[0]}; expected "
                    "integers, for a float does not hold the 19 digits: write the file anew"
                )
            columns, faults = self._read(chunk)
            self._find_repeated(ids, faults)
            bad = np.flatnonzero(faults != "")
            if len(bad) and not self._skip_bad:
                row = int(bad[0])
                raise ValueError(
                    f"{self._catalogue.path}: row {first + row} (source_id {ids[row]}): "
                    f"{faults[row]}; {len(bad)} of the rows {first} to {first + len(ids) - 1} are "
                    "bad: mend the file, or leave such rows out with --skip-bad"
                )
            self.dropped.update(faults[bad].tolist())
            first += len(ids)
            yield {name: np.delete(values, bad, axis=0) for name, values in columns.items()}

    def _read(self, chunk: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """The columns of a shard, and (rows,) what is wrong with each row, "" for nothing."""
        columns = {"source_id": chunk["source_id"].astype(np.int64)}
        faults = np.full(len(chunk["source_id"]), "", object)
        absent = np.ones(len(faults), bool)
        for band, k in self.sizes.items():
            values, errors, correlations = (f"{band}_{name}" for name in _VECTORS)
            flux, missing = _vectors(chunk, values, k, faults)
            columns[values] = flux.astype(np.float32)
            _blame(faults, ~missing & ~np.isfinite(flux).all(1), f"{values} are not all finite")
            error, blank = _vectors(chunk, errors, k, faults)
            columns[errors] = error.astype(np.float32)
            _blame(faults, missing != blank, f"{band} has coefficients or errors, but not both")
            bad = ~((error > 0) & np.isfinite(error)).all(1)
            _blame(faults, ~missing & bad, f"{errors} are not all positive and finite")
            absent &= missing
            if self._correlations is not None:
                matrix, blank = _vectors(chunk, correlations, k * (k - 1) // 2, faults)
                columns[correlations] = matrix.astype(self._correlations)
                _blame(faults, ~missing & blank, f"{correlations} are missing")
                bad = ~(np.abs(matrix) <= 1 + _ROUNDING).all(1)
                _blame(faults, ~missing & bad, f"{correlations} are not all from -1 to 1")
        _blame(faults, absent, "neither band has coefficients")
        for name in self._names:
            if name in CARRIED:
                columns[name] = chunk[name].astype(np.float32)
        return columns, faults

    def _find_repeated(self, ids: np.ndarray, faults: np.ndarray) -> None:
        """Blame rows whose source_id a good row before them has."""
        good = np.flatnonzero(faults == "")
        _, firsts = np.unique(ids[good], return_index=True)
        repeated = np.ones(len(good), bool)
        repeated[firsts] = False
        place = np.searchsorted(self._seen, ids[good])
        repeated |= np.append(self._seen, -1)[place] == ids[good]
        faults[good[repeated]] = "its source_id is that of an earlier row"
        new = np.sort(ids[good[~repeated]])
        self._seen = np.insert(self._seen, np.searchsorted(self._seen, new), new)


_VECTORS = ("coefficients", "coefficient_errors", "coefficient_correlations")


def _names(catalogue: Catalogue, correlations: bool) -> list[str]:
    """The columns to read, by the archive's names."""
    vectors = _VECTORS if correlations else _VECTORS[:2]
    needed = ["source_id", *(f"{band}_{name}" for band in BANDS for name in vectors)]
    if missing := [name for name in needed if name not in catalogue.names]:
        only = all(name.endswith("correlations") for name in missing)
        mend = "give --correlations none" if only else "shards are made of the archive's columns"
        raise ValueError(f"{catalogue.path}: has no column {', '.join(missing)}; {mend}")
    return needed + [name for name in CARRIED if name in catalogue.names]


def _sizes(catalogue: Catalogue) -> dict[str, int]:
    """How many coefficients each band has, as most of the first stars have it."""
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
    """((rows, size) float64, (rows,) whether it is blank); NaN where the row is at fault."""
    numbers, lengths = flatten(chunk[name], name, spoilt=True)
    whole = lengths == size
    array = np.full((len(lengths), size), np.nan)
    array[whole] = numbers[np.repeat(whole, np.maximum(lengths, 0))].reshape(-1, size)
    _blame(faults, lengths < 0, f"{name} is no array of numbers")
    for length in np.unique(lengths[~whole & (lengths > 0)]).tolist():
        _blame(faults, lengths == length, f"{name} has {length} numbers, expected {size}")
    return array, np.isnan(array).all(1)


def _blame(faults: np.ndarray, rows: np.ndarray, what: str) -> None:
    """What is wrong with `rows`, where nothing was before."""
    faults[rows & (faults == "")] = what
