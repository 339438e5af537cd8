"""Metrics of other methods on the same data, from the committed tables of the benchmarks."""

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
    baselines = {}
    for method in dict.fromkeys(row["method"] for row in rows if row["method"] != component):
        own = [row for row in rows if row["method"] == method]
        columns = [name for name in metrics if own[0].get(name)]
        baselines[method] = {
            name: float(np.mean([float(row[name]) for row in own])) for name in columns
        }
    return baselines
