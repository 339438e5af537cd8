"""XP coefficients in the archive's layout, for GaiaXPy and other tools that read it."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from orrery.physics.gaia_xp import xp
from orrery.physics.gaia_xp.xp_noise import pack
from orrery.tables import Writer, open_catalogue

BASIS = {"bp": 56, "rp": 57}  # identifiers of the functions of DR3
STARS_AT_ONCE = 1000  # 40 kB of text each


def export(predictions: str | Path, out: str | Path) -> int:
    """Write reconstructed spectra, predicted to ``predictions``, as ``out`` (.csv); returns rows.

    Their covariance is that of the reconstruction and of the intrinsic scatter about it. Raises
    ``ValueError`` where the file lacks a column; rows without a ``source_id`` are numbered.
    """
    if Path(out).suffix != ".csv":
        raise ValueError(f"--out {out}: expected a .csv, which GaiaXPy reads")
    needed = ["reconstruction", "reconstruction_factor", "scatter"]
    with open_catalogue(predictions) as catalogue, Writer(out) as writer:
        if missing := [name for name in needed if name not in catalogue.names]:
            raise ValueError(
                f"{predictions}: has no column {', '.join(missing)}; predictions are made by "
                f"`python evaluate.py checkpoint=scatter_vae data.path=... output=xp.h5 "
                f"data.keep=[source_id]`, without columns="
            )
        sizes = {band: len(i.functions) for band, i in xp.instrument().items()}
        known = ["source_id"] if "source_id" in catalogue.names else []
        first = 0
        for chunk in catalogue.chunks(needed + known, STARS_AT_ONCE):
            n = len(chunk["scatter"])
            ids = chunk.get("source_id", np.arange(first, first + n))
            first += n
            factor, scatter = chunk["reconstruction_factor"], chunk["scatter"]
            if scatter.shape[1] != sum(sizes.values()):
                raise ValueError(
                    f"{predictions}: {scatter.shape[1]} coefficients per star, expected "
                    f"{' + '.join(map(str, sizes.values()))}, the functions of DR3 that GaiaXPy is "
                    f"told of by this command; take `reconstruction` as it is"
                )
            table = {"source_id": ids}
            parts = np.split(np.arange(scatter.shape[1]), [sizes["bp"]])
            for band, part in zip(xp.BANDS, parts, strict=True):
                f = factor[:, part].astype(float)
                covariance = f @ f.transpose(0, 2, 1)
                covariance[:, range(len(part)), range(len(part))] += scatter[:, part] ** 2
                error = np.sqrt(np.einsum("bnn->bn", covariance))
                table[f"{band}_coefficients"] = chunk["reconstruction"][:, part]
                table[f"{band}_coefficient_errors"] = error
                table[f"{band}_coefficient_correlations"] = pack(
                    covariance / error[:, :, None] / error[:, None, :]
                )
            writer.write(as_archived(table))
    return first


def as_archived(table: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The columns of the archive's ``xp_continuous_mean_spectrum``, arrays as text "(1.0, 2.0)".

    ``table``: ``source_id`` (n,) and for each band ``_coefficients`` and ``_coefficient_errors``
    (n, k), and ``_coefficient_correlations`` (n, k (k - 1) / 2). What only a real
    fit has, such as its number of measurements, gets a value without effect.
    """
    n = len(table["source_id"])
    columns: dict[str, np.ndarray] = {
        "source_id": table["source_id"],
        "solution_id": np.zeros(n, np.int64),
    }
    for band in xp.BANDS:
        k = table[f"{band}_coefficients"].shape[1]
        columns |= {
            f"{band}_basis_function_id": np.full(n, BASIS[band], np.int16),
            f"{band}_degrees_of_freedom": np.full(n, 0, np.int16),
            f"{band}_n_parameters": np.full(n, k, np.int16),
            f"{band}_n_measurements": np.full(n, 0, np.int16),
            f"{band}_n_rejected_measurements": np.full(n, 0, np.int16),
            f"{band}_standard_deviation": np.ones(n, np.float32),
            f"{band}_chi_squared": np.zeros(n, np.float32),
        }
        for kind in ("coefficients", "coefficient_errors", "coefficient_correlations"):
            columns[f"{band}_{kind}"] = _texts(table[f"{band}_{kind}"])
        columns |= {
            f"{band}_n_relevant_bases": np.full(n, k, np.int16),
            f"{band}_relative_shrinking": np.ones(n, np.float32),
        }
    return columns


def _texts(values: np.ndarray) -> np.ndarray:
    """(n,) of "(1.0, 2.0)"; "" for a row of NaN."""
    texts = [f"({', '.join(map(repr, row))})" for row in values.astype(float).tolist()]
    blank = np.isnan(values).all(1)
    return np.array([t if not b else "" for t, b in zip(texts, blank, strict=True)], object)
