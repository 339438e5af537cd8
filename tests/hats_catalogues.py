"""HATS catalogues for tests, as hats-import and lsdb lay them out."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from astropy_healpix import lonlat_to_healpix

from orrery.tables.arrow import from_numpy

LON, LAT, INDEX = "sky_lon", "sky_lat", "_healpix_29"  # names that no component reads


def write_hats(
    folder: Path, columns: Mapping[str, np.ndarray], seed: int = 0, **properties: str
) -> np.ndarray:
    """Spread the rows over a patch of the sky; pixels of order 1, and of 2 in one of them.

    Returns the numbers of the rows in the order of the catalogue.
    """
    n = len(next(iter(columns.values())))
    random = np.random.default_rng(seed)
    lon, lat = random.uniform(0, 120, n), random.uniform(-60, 60, n)
    columns = {**columns, LON: lon, LAT: lat}
    index = {k: _pixel(lon, lat, k) for k in (1, 2, 29)}
    divided = index[1] == np.bincount(index[1]).argmax()
    order = np.where(divided, 2, 1)
    pixel = np.where(divided, index[2], index[1])
    rows, listed = [], []
    for k, number in sorted(set(zip(order.tolist(), pixel.tolist(), strict=True)), reverse=True):
        mine = np.flatnonzero((order == k) & (pixel == number))
        place = folder / f"dataset/Norder={k}/Dir=0/Npix={number}.parquet"
        place.parent.mkdir(parents=True, exist_ok=True)
        table = {name: from_numpy(np.asarray(v)[mine]) for name, v in columns.items()}
        pq.write_table(pa.table({**table, INDEX: index[29][mine]}), place)
        listed.append(f"{k},{number}\n")
        rows.append((number << 2 * (29 - k), mine))
    pq.write_metadata(pq.read_schema(place), folder / "dataset/_common_metadata")
    (folder / "partition_info.csv").write_text("".join(["Norder,Npix\n", *listed]))
    known = {
        "obs_collection": folder.name, "dataproduct_type": "object", "hats_nrows": str(n),
        "hats_col_ra": LON, "hats_col_dec": LAT, "hats_col_healpix": INDEX,
        "hats_col_healpix_order": "29", "hats_npix_suffix": ".parquet", "hats_order": "2",
        "hats_cols_default": " ".join([LON, LAT]),
    }  # fmt: skip
    text = "".join(f"{key}={value}\n" for key, value in (known | properties).items())
    (folder / "hats.properties").write_text(f"#HATS catalog\n{text}")
    return np.concatenate([mine for _, mine in sorted(rows, key=lambda row: row[0])])


def _pixel(lon: np.ndarray, lat: np.ndarray, order: int) -> np.ndarray:
    from astropy import units as u

    pixels = lonlat_to_healpix(lon * u.deg, lat * u.deg, 2**order, order="nested")
    return np.asarray(pixels, np.int64)
