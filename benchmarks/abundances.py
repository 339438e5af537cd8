r"""The density of abundances compared with extreme deconvolution and one Gaussian, held-out stars.

    python -m benchmarks.abundances density [data.path=kirby18.txt] [seeds=0,1,2]
    python -m benchmarks.abundances stars data.path=ajabacb6t6_mrt.txt
    python -m benchmarks.abundances stars data.path=ajabacb6t6_mrt.txt background=background.ecsv \
        folds=3 model.by_type=true
    python -m benchmarks.abundances background.ecsv kirby18.txt ajabacb6t6_mrt.txt 'NGC*.tbl'

`density`: per seed, which splits the stars and starts the fit, all three are fitted to the same
stars; the number of Gaussians of extreme deconvolution is chosen on the validation stars. Without a
path the stars are simulated, and the true density is scored too.
`stars`: which stars of a table stand out from its others? Each tenth of them is held out in turn,
as no star may take part in what it is compared with. Writes the stars' p-values, and of each
element the coverage of the intervals that a star's other elements give. ``background``: stars to
train on as well, as the last command writes them.

The last one writes several tables as one, with a row per star, to train on: what the shipped
checkpoint has learned from.

Appends to benchmarks/abundances.csv; other settings of train.py may follow.
"""

import csv
import glob
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1")

import numpy as np
from astropy.table import Table, vstack

from orrery import load
from orrery.datamodules.abundances.tables import canonical_columns, open_abundances

RESULTS = Path(__file__).with_suffix(".csv")
COLUMNS = ("data", "case", "seed", "quantity", "model", "n", "value")
FOLDS = 10
TEXT = ("name", "structure", "type")  # columns of a star
PEERS = ("true_density", "extreme_deconvolution", "one_Gaussian")
Row = dict[str, object]


def train(folder: str, settings: Sequence[str]) -> None:
    """A run of train.py, which ends in best.ckpt and, where stars are held out, metrics.json."""
    command = [sys.executable, "train.py", "model=abundances", f"run_dir={folder}", *settings]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def density(path: str, seeds: Sequence[int], settings: Sequence[str]) -> Iterator[Row]:
    where = [f"data.path={path}"] if path else []
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            train(folder, [*where, f"seed={seed}", *settings])
            metrics = json.loads((Path(folder) / "metrics.json").read_text())
        row: Row = {"data": Path(path).name or "simulation", "case": "held out", "seed": seed}
        row |= {"n": int(metrics["n"])}
        yield row | {
            "quantity": "nll_per_element", "model": "ours", "value": metrics["nll_per_element"]
        }  # fmt: skip
        for peer in PEERS:
            if f"nll_per_element_{peer}" in metrics:
                value = metrics[f"nll_per_element_{peer}"]
                yield row | {"quantity": "nll_per_element", "model": peer, "value": value}
        for name in ("coverage_68", "coverage_95", "limit_bias_dex"):
            if name in metrics:
                yield row | {"quantity": name, "model": "ours", "value": metrics[name]}
        for peer in ("limits_dropped", "limits_as_values"):
            if (name := f"limit_bias_dex_{peer}") in metrics:
                yield row | {"quantity": "limit_bias_dex", "model": peer, "value": metrics[name]}


def stars(path: str, background: str, folds: int, settings: Sequence[str]) -> Iterator[Row]:
    """``background``: more stars to train on; those that are named as ones of ``path`` are not."""
    catalogue, _ = open_abundances(path)
    (columns,) = catalogue.chunks(catalogue.names, len(catalogue))
    table = Table(columns)
    more = Table.read(background) if background else None
    if more is not None:
        more = more[~np.isin(np.asarray(more["name"], str), np.asarray(table["name"], str))]
    fold = np.random.default_rng(0).permutation(len(table)) % folds
    inside: dict[str, list[float]] = {}
    data = Path(path).name + (f" with {Path(background).name}" if background else "")
    for number in range(folds):
        held_out = fold == number
        train_on = (
            table[~held_out] if more is None else vstack([more, _canonical(table[~held_out])])
        )
        with tempfile.TemporaryDirectory() as folder:
            others = Path(folder) / "others.ecsv"
            train_on.write(others)
            train(folder, [f"data.path={others}", "data.test_fraction=0", *settings])
            model = load(Path(folder) / "best.ckpt")
            rows = model.predict(table[held_out], keep=["name"])
        row: Row = {"data": data, "seed": 0, "model": "ours", "n": len(train_on)}
        for star in rows:
            for name in ("p_value", "p_density", "p_elements"):
                yield row | {"case": star["name"], "quantity": name, "value": float(star[name])}
        for name in rows.colnames:
            if name.endswith("_p_value"):
                x = name.removesuffix("_p_value")
                limit = f"{x}_limit"
                measured = np.isfinite(rows[name])
                if limit in table.colnames:
                    measured &= np.nan_to_num(table[held_out][limit]) == 0
                inside.setdefault(x, []).extend(rows[name][measured].tolist())
    for x, p in inside.items():
        row = {"data": data, "case": x, "seed": 0, "model": "ours", "n": len(p)}
        for level, least in (("68", 0.32), ("95", 0.05)):
            value = float(np.mean(np.array(p) > least))
            yield row | {"quantity": f"coverage_{level}", "value": value}


def _canonical(table: Table) -> Table:
    """As `union` writes it."""
    return Table({r: c.astype(str) if r in TEXT else c for r, c in table.items()})


def union(output: str, patterns: Sequence[str]) -> None:
    """Write the stars of all tables as one, with canonical columns."""
    tables = []
    for path in sorted(path for pattern in patterns for path in glob.glob(pattern)):
        catalogue, notes = open_abundances(path)
        print(f"{path}: {len(catalogue):,} stars", *notes, sep="\n  ")
        roles = canonical_columns(catalogue.names)
        chunks = list(catalogue.chunks(list(roles.values())))
        columns = {r: np.concatenate([chunk[c] for chunk in chunks]) for r, c in roles.items()}
        columns = _relative_to_hydrogen(columns)
        tables.append(Table({r: c.astype(str) if r in TEXT else c for r, c in columns.items()}))
    whole = vstack(tables, metadata_conflicts="silent")
    for name in whole.colnames:
        if name not in TEXT:
            whole[name] = np.ma.filled(np.ma.asarray(whole[name], float), np.nan)
    whole.write(output, overwrite=True)
    print(f"{output}: {len(whole):,} stars")


def _relative_to_hydrogen(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """[X/H] in place of [X/Fe], of which the error of [Fe/H] is a common cause."""
    ratios = [role for role in columns if role.endswith("_fe")]
    if not ratios:
        return columns
    iron, error = (np.ma.filled(columns[f"fe_h{end}"], np.nan) for end in ("", "_error"))
    columns["fe_diron"] = error
    for role in ratios:
        x = role.removesuffix("_fe")
        columns[f"{x}_h"] = columns.pop(role) + iron
        columns[f"{x}_h_error"] = np.hypot(columns.pop(f"{role}_error"), error)
        columns[f"{x}_diron"] = error
    return columns


def main() -> None:
    what, *words = sys.argv[1:] or [""]
    if what.endswith(".ecsv"):
        return union(what, words)
    given = dict(word.split("=", 1) for word in words if "=" in word)
    path, seeds = given.pop("data.path", ""), given.pop("seeds", "0,1,2,3,4").split(",")
    settings = [f"{name}={value}" for name, value in given.items()]
    if what == "density":
        rows = density(path, [int(seed) for seed in seeds], settings)
    elif what == "stars":
        folds = int(given.pop("folds", FOLDS))
        background = given.pop("background", "")
        settings = [f"{name}={value}" for name, value in given.items()]
        rows = stars(path, background, folds, settings)
    else:
        raise SystemExit(__doc__)
    new = not RESULTS.exists()
    with RESULTS.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        for row in rows:
            print(*row.values(), flush=True)
            writer.writerow(row)
            file.flush()


if __name__ == "__main__":
    main()
