"""Tables for the tests of `orrery.tables`, and what writes and reads them."""

from pathlib import Path

import numpy as np
from conftest import ROOT, fresh_python

from orrery.tables import Writer, open_catalogue

ENDINGS = [".fits", ".ecsv", ".csv", ".parquet", ".hdf5"]


def columns(rows=1000, vectors=True):
    rng = np.random.default_rng(3)
    table = {
        "zeta": np.arange(rows, dtype=np.int64) + 2**60,  # not in alphabetical order
        "z": rng.normal(size=rows),
        "flux": rng.normal(size=rows).astype(np.float32),
        "mag": rng.normal(size=rows),
        "count": np.arange(rows, dtype=np.uint16) + 40_000,
        "good": np.arange(rows) % 3 == 0,
        "name": np.array([f"star {i}, 'the' \"{i % 7}\"" for i in range(rows)]),
    }
    if vectors:
        table["pz"] = rng.normal(size=(rows, 5))
        table["cov"] = rng.normal(size=(rows, 2, 3))
    return table


def write(path, table, step=300, **about):
    with Writer(path, **about) as out:
        for first in range(0, max(len(next(iter(table.values()))), 1), step):
            out.write({name: values[first : first + step] for name, values in table.items()})


def read(path, names=None, **how):
    group = how.pop("group", None)
    with open_catalogue(path, group) as catalogue:
        names = names or catalogue.names
        pieces = list(catalogue.chunks(names, **how))
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in names}


def run(program, *arguments):
    """What a program prints that runs by itself in this folder."""
    done = fresh_python("-c", program, *arguments, cwd=Path.cwd(), PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    return done.stdout
