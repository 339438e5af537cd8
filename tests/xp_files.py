"""Small files of XP coefficients for the tests, as the archive, GaiaXPy and others write them."""

import gzip

import numpy as np
from astropy.io import fits
from catalogues import write

from orrery.datamodules.scatter_vae.convert import PIXEL

K = {"bp": 6, "rp": 5}


def stars(n=40, first_pixel=3, sizes=K, seed=0):
    """n stars, four in each pixel of level 8; the second has no BP."""
    random = np.random.default_rng(seed)
    table = {"source_id": (first_pixel + np.arange(n) // 4) * PIXEL + 1000 + np.arange(n)}
    for band, k in sizes.items():
        table[f"{band}_coefficients"] = random.normal(0, 100, (n, k))
        table[f"{band}_coefficient_errors"] = random.uniform(0.1, 2, (n, k)).astype(np.float32)
        matrix = random.uniform(-0.5, 0.5, (n, k * (k - 1) // 2)).astype(np.float32)
        table[f"{band}_coefficient_correlations"] = matrix
    for name in table:
        if name.startswith("bp"):
            table[name][1] = np.nan
    return table


def text(table, left, comma, right, blank):
    """The table as CSV with its arrays between brackets."""
    lines = [",".join(table)]
    for i in range(len(table["source_id"])):
        cells = []
        for values in table.values():
            if values.ndim == 1:
                cells.append(str(values[i]))
            elif np.all(np.isnan(values[i])):
                cells.append(blank)
            else:
                cells.append(f'"{left}{comma.join(map(str, values[i]))}{right}"')
        lines.append(",".join(cells))
    return "\n".join(lines) + "\n"


def save(path, table):
    """Write in the manner of the file's ending: .csv of DataLink, .csv.gz of the bulk download."""
    name = str(path)
    if name.endswith(".csv.gz"):
        header = "# %ECSV 1.0\n# ---\n# delimiter: ','\n# datatype: [{name: x, datatype: int64}]\n"
        content = header + text(table, "[", ",", "]", "null")
        with gzip.open(path, "wt") as file:
            file.write(content)
    elif name.endswith(".csv"):
        path.write_text(text(table, "(", ", ", ")", ""))
    elif name.endswith(".fits"):
        columns = []
        for key, values in table.items():
            if values.ndim == 1:
                columns.append(fits.Column(key, "K" if values.dtype == "i8" else "E", array=values))
                continue
            rows = np.empty(len(values), object)
            rows[:] = [row[:0] if np.isnan(row).all() else row for row in values]
            columns.append(fits.Column(key, "PD()" if values.dtype == "f8" else "PE()", array=rows))
        fits.BinTableHDU.from_columns(columns).writeto(path)
    elif name.endswith(".npz"):
        np.savez(path, wavelength=np.arange(3.0), **table)
    else:
        write(name, table)
    return path
