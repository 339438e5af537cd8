"""The committed tables of the benchmarks, and which of their rows an evaluation stands beside."""

import csv
from collections.abc import Collection
from pathlib import Path

import numpy as np

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def peers(
    component: str, test_sha256: str | None, metrics: Collection[str]
) -> dict[str, dict[str, float]]:
    """These metrics of the other methods that were scored on the file with this hash, by method.

    Means over the seeds in the tables of ``benchmarks/``; empty if none of them knows that hash.
    """
    if not test_sha256:
        return {}
    rows = []
    for path in sorted(BENCHMARKS.glob("*.csv")):
        with path.open(newline="") as file:
            rows += [row for row in csv.DictReader(file) if row.get("test_sha256") == test_sha256]
    found = {}
    for method in dict.fromkeys(row["method"] for row in rows if row["method"] != component):
        mine = [row for row in rows if row["method"] == method]
        columns = [name for name in metrics if mine[0].get(name)]
        found[method] = {
            name: float(np.mean([float(row[name]) for row in mine])) for name in columns
        }
    return found
