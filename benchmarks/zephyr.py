"""Photometric redshifts: this zoo, FlexZBoost, PZFlow and a regression forest, in one run.

    pip install -c constraints.txt -e ".[bench]"
    python -m benchmarks.zephyr --data <folder of zcosmos_*.hdf5> --out benchmarks/zephyr.csv

One environment holds zoo and peers. The DC2 catalogue comes inside pz-rail-base; the zCOSMOS files
are needed for that set alone. `--sets`, `--methods` and `--seeds` choose a part: its rows are
renewed in the table and the others stay, so that the table can be filled bit by bit.

Every method trains on the same rows, answers on the same grid and is scored by the same function
(`benchmarks.photoz_metrics`). Times are CPU seconds of this process and its children on one thread;
`objects_per_second` is the best of five passes over 1,000 objects. `matmul_ms` is the time of a
1024^3 float32 matrix product in the same run, to compare machines by.
"""

import os

# One thread for everything: read by numpy, torch, XGBoost, joblib and JAX when they are imported.
os.environ.update(
    OMP_NUM_THREADS="1",
    OPENBLAS_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    LOKY_MAX_CPU_COUNT="1",
    JAX_PLATFORMS="cpu",
)

import argparse
import csv
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from orrery.benchmarks.photoz_data import SETS, Array, PhotozSet, load, write_files
from orrery.benchmarks.photoz_metrics import photoz_metrics
from orrery.benchmarks.photoz_peers import Predict, flexzboost, forest, pzflow

TIMED_OBJECTS, PASSES = 1000, 5
KEY = ("set", "method", "seed")
RECOVERED = ("label_sigma_1", "label_catastrophic_1")  # of the corrupted source of `stress`


def main() -> None:
    """Run the chosen methods on the chosen sets, and renew their rows of the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("data/photoz"), help="zCOSMOS files")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/zephyr.csv"))
    parser.add_argument("--scratch", type=Path, default=Path("outputs/benchmarks/zephyr"))
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--summary", action="store_true", help="print the table as it is, no run")
    options = parser.parse_args()
    if options.summary:
        print(summary(options.out))
        return
    if hasattr(os, "sched_setaffinity"):  # JAX sizes its thread pool by the cores that it may use
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

    for name in options.sets:
        data = load(name, options.data)
        for method in options.methods:
            for seed in options.seeds:
                row = run(method, data, seed, options.scratch)
                update(options.out, row)
                print(*(f"{key}={value}" for key, value in row.items()), flush=True)


def run(method: str, data: PhotozSet, seed: int, scratch: Path) -> dict[str, str]:
    """Train one method on one set, score it on the test rows: one row of the table."""
    folder = scratch.resolve() / f"{data.name}_{seed}"
    start = cpu_seconds()
    predict = zephyr(data, seed, folder) if method == "zephyr" else PEERS[method](data, seed)
    train_seconds = cpu_seconds() - start
    # This pass also compiles what a method compiles, so the timed ones follow it.
    scores = photoz_metrics(predict(data.test), data.grid, data.test["redshift"])
    ours = method == "zephyr"
    # `evaluate.py` measures itself by the same rule, without its start
    speed = (
        test_metrics(folder)["objects_per_second"] if ours else objects_per_second(predict, data)
    )
    numbers = {
        **scores,
        "train_seconds": train_seconds,
        "objects_per_second": speed,
        "matmul_ms": matmul_ms(),
    }
    text = {key: f"{value:.4g}" for key, value in numbers.items()}
    recovered = test_metrics(folder) if ours and data.name == "stress" else {}
    text |= {key: f"{recovered[key]:.4g}" if key in recovered else "" for key in RECOVERED}
    counts = {"n_train": str(len(data.train["redshift"])), "n": str(len(data.test["redshift"]))}
    key = {"set": data.name, "method": method, "seed": str(seed)}
    return {**key, **counts, **text, "test_sha256": data.test_sha256}


def zephyr(data: PhotozSet, seed: int, folder: Path) -> Predict:
    """This zoo, through its two commands, as a user would run it."""
    import qp

    train_file, test_file = (path.resolve() for path in write_files(data, folder))
    command(
        "train.py", "model=zephyr", f"data.path={train_file}", f"seed={seed}",
        f"hydra.run.dir={folder}", "data.test_fraction=0", *OVERRIDES[data.name],
    )  # fmt: skip

    def predict(test: dict[str, Array]) -> Array:
        del test  # the command reads the same rows from the file
        command(
            "evaluate.py", f"checkpoint={folder / 'best.ckpt'}", f"data.path={test_file}",
            f"hydra.run.dir={folder / 'test'}", f"output={folder / 'pz.hdf5'}",
        )  # fmt: skip
        return np.asarray(qp.read(str(folder / "pz.hdf5")).pdf(data.grid), float).clip(min=0)

    return predict


def test_metrics(folder: Path) -> dict[str, float]:
    """metrics.json of our evaluation of the test file."""
    metrics: dict[str, float] = json.loads((folder / "test" / "metrics.json").read_text())
    return metrics


def command(script: str, *overrides: str) -> None:
    """Run a command of this repository, whose folder holds `benchmarks`."""
    root = Path(__file__).resolve().parent.parent
    subprocess.run([sys.executable, script, *overrides], cwd=root, check=True)


# Which column holds the source of a redshift, and which source is clean; the rest is the default.
# DC2's labels are many and exact: on held-out folds 120 epochs have less NMAD and CRPS than 80.
OVERRIDES: dict[str, tuple[str, ...]] = {
    "dc2": ("model.epochs=120",),
    "zcosmos": (),
    "zcosmos_all": ("data.columns.source=secure", "data.clean_source=1"),
    "stress": ("data.columns.source=source", "data.clean_source=0"),
    "stress_clean": (),
}

PEERS: dict[str, Callable[[PhotozSet, int], Predict]] = {
    "rf": forest,
    "flexzboost": flexzboost,
    "pzflow": pzflow,
}
METHODS = (*PEERS, "zephyr")


def summary(path: Path) -> str:
    """The table in Markdown, for README: zephyr and the peer of the best CRPS on each set.

    Means over the seeds, the better in bold.
    """
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    columns = ("crps", "nmad", "outlier_fraction", "nll", "pit_ks", "objects_per_second")
    lines = ["| set | method | seeds | CRPS | NMAD | outliers | NLL | PIT KS | objects/s |"]
    lines.append("|" + "---|" * 9)
    for name in dict.fromkeys(row["set"] for row in rows):
        in_set = [row for row in rows if row["set"] == name]
        means = {}
        for method in dict.fromkeys(row["method"] for row in in_set):
            seeds = [row for row in in_set if row["method"] == method]
            values = [float(np.mean([float(row[c]) for row in seeds])) for c in columns]
            means[method] = len(seeds), values
        peers = sorted((m for m in means if m != "zephyr"), key=lambda m: means[m][1][0])
        if "zephyr" not in means:
            continue
        means = {m: means[m] for m in (*peers[:1], "zephyr")}
        best = [min(values[i] for _, values in means.values()) for i in range(5)]
        for method, (n_seeds, values) in means.items():
            cells = [f"{v:.4f}" if i != 3 else f"{v:.2f}" for i, v in enumerate(values[:5])]
            cells = [
                f"**{c}**" if v == b and len(means) > 1 else c
                for c, v, b in zip(cells, values, best, strict=False)
            ]
            cells.append(f"{values[5]:,.0f}")
            lines.append(f"| {name} | {method} | {n_seeds} | {' | '.join(cells)} |")
    return "\n".join(lines)


def objects_per_second(predict: Predict, data: PhotozSet) -> float:
    """Objects per CPU second, best of five passes."""
    sample = {name: column[:TIMED_OBJECTS] for name, column in data.test.items()}
    predict(sample)  # JAX compiles anew for each batch size
    return len(sample["redshift"]) / best_seconds(lambda: predict(sample))


def matmul_ms() -> float:
    """CPU milliseconds of a 1024^3 float32 matrix product, best of five."""
    matrix = np.random.default_rng(0).standard_normal((1024, 1024)).astype(np.float32)
    return 1e3 * best_seconds(lambda: matrix @ matrix)


def best_seconds(work: Callable[[], object]) -> float:
    """CPU seconds of the quickest of five calls."""
    times = []
    for _ in range(PASSES):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def cpu_seconds() -> float:
    """CPU seconds so far of this process and of the children that have ended."""
    return sum(os.times()[:4])


def update(path: Path, row: dict[str, str]) -> None:
    """Put a row into the CSV table, in the place of the one with its set, method and seed."""
    rows = {}
    if path.exists():
        with path.open(newline="") as file:
            rows = {tuple(old[key] for key in KEY): old for old in csv.DictReader(file)}
    rows[tuple(row[key] for key in KEY)] = row
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(row), lineterminator="\n")
        writer.writeheader()
        names = [*SETS, *METHODS]
        writer.writerows(
            rows[key] for key in sorted(rows, key=lambda k: (*map(names.index, k[:2]), int(k[2])))
        )
    partial.replace(path)


if __name__ == "__main__":
    main()
