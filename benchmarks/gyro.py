"""Ages from rotation: this zoo and its peers on the same stars, and a summary of the sweep.

    pip install -c constraints.txt -e ".[bench]"
    python -m benchmarks.gyro compare --data ../shared/data/gyro              # 6 min of CPU
    python -m benchmarks.gyro summarise multirun/left_out

`compare`: the shipped model, gyrointerp, and with --chronoflow <a clone of
github.com/philvanlane/chronoflow> ChronoFlow. Rows `cluster`: at most 40 stars of a cluster, drawn
with seed 0 from those that pass quality cuts, 0.70 < (BP-RP)_0 < 1.84; `counted` is 0 for two
clusters whose ages are disputed. Ours are of networks that hold the cluster out, the interval with
the discrepancy of the other nine; those of the set `cluster, in sample` are of all networks.
gyrointerp was fitted to eight of the ten, ChronoFlow to all.
`log_density`: mean ln p(log10 P) per dex at the literature's age, with outliers (gyrointerp has
none: it is given 5%). `pull`: of log age, against half the 68% interval. Rows `star`: the Sun and
eleven stars of asteroseismic age; nine are older than the 4 Gyr to which gyrointerp is calibrated.
`cpu_seconds`: per star, one thread; ours of a batch of 8,192, ChronoFlow's of 100, gyrointerp's
of single calls at its defaults.

`summarise`: of each run of experiment=gyro_leave_one_cluster_out, the age of the cluster that was
left out, by all its stars in the same colours: printed, and written to left_out.csv there.
benchmarks/gyro_left_out.csv is that of the real clusters, seed 0.
"""

import argparse
import csv
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import numpy as np
import torch

from orrery import pretrained
from orrery.datamodules.gyro import GyroData
from orrery.evaluation.timing import best_of_five
from orrery.models.gyro import groups
from orrery.models.gyro.discrepancy import (
    COLOUR_OFFSETS,
    joint_cdf,
    without_colour_offset,
)
from orrery.models.gyro.left_out import AGE_SENSITIVE_COLOURS, MAX_WEIGHT
from orrery.models.layers import grid
from orrery.physics.rotation.seismic_stars import STARS, SUN
from orrery.runs import data_for

DISPUTED_CLUSTERS = ("NGC2516", "M34")
TIMED_CLUSTERS = ("Pleiades", "Praesepe", "M67")  # gyrointerp: the first star of each, and the Sun
IN_SAMPLE = "cluster, in sample"
LEVELS = torch.tensor([[0.16, 0.5, 0.84]])
COLUMNS = (
    *("set", "method", "name", "counted", "n", "age_gyr", "q16", "q50", "q84", "offset_dex"),
    *("pull", "log_density", "cpu_seconds", "matmul_ms"),
)
Row = dict[str, Any]
Table = dict[str, np.ndarray]


def read(path: Path) -> Table:
    """Columns of a csv as numbers, NaN where empty, or as text."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    table = {}
    for name in rows[0]:
        try:
            table[name] = np.array([float(row[name] or "nan") for row in rows])
        except ValueError:
            table[name] = np.array([row[name] for row in rows])
    return table


def sample(table: Table, cluster: str) -> Table:
    """At most 40 stars of a cluster, of colours at which periods depend on age."""
    colour, (bluest, reddest) = table["bp_rp0"], AGE_SENSITIVE_COLOURS
    informative = (colour > bluest) & (colour < reddest) & (table["good"] == 1)
    rows = np.flatnonzero(informative & (table["cluster"] == cluster))
    drawn = np.random.default_rng(0).choice(rows, min(MAX_WEIGHT, len(rows)), replace=False)
    return {name: values[np.sort(drawn)] for name, values in table.items()}


def age_row(name: str, age: float, low: float, mid: float, high: float) -> Row:
    """A true age and quantiles of its posterior, Gyr, with offset and pull."""
    offset = np.log10(mid / age)
    pull = abs(offset) / (0.5 * np.log10(high / low))
    return {"name": name, "age_gyr": age, "q16": low, "q50": mid, "q84": high,
            "offset_dex": offset, "pull": pull}  # fmt: skip


# --- the two methods ------------------------------------------------------------------------------


def gyro_rows(samples: dict[str, Table]) -> Iterator[Row]:
    model = pretrained.load("gyro")
    names = list(model.clusters)
    for name, table in samples.items():
        data = GyroData(split="all")
        data.table = table
        batch = next(data.prediction_batches())
        i = names.index(name)
        with torch.no_grad():
            log_p = model.log_likelihood_left_out(batch, i)
            shifted = [
                model.log_likelihood_left_out({**batch, "colour": batch["colour"] + offset}, i)
                for offset in COLOUR_OFFSETS
            ]
        joint = without_colour_offset(torch.stack(shifted).sum(1), model.field_scatter)
        cdf = joint_cdf(joint, model.cluster_log_prior(), model.discrepancies[i], model.edges)
        ages = 10 ** (grid.quantile(cdf, model.edges, LEVELS)[0] - 3)
        cell = int(torch.bucketize(torch.tensor(model.clusters[name]), model.edges)) - 1
        row = age_row(name, 10 ** model.clusters[name] / 1e3, *ages.tolist())
        yield row | {"set": "cluster", "log_density": float(log_p[:, cell].mean())}
        known = groups.log_likelihoods(model, batch)  # (stars, colour offsets, ages)
        known = known[known.isfinite().all((1, 2))]
        ages = 10 ** (
            grid.quantile(groups.group_cdf(model, known.sum(0)), model.edges, LEVELS)[0] - 3
        )
        row = age_row(name, 10 ** model.clusters[name] / 1e3, *ages.tolist())
        density = float(known[:, len(COLOUR_OFFSETS) // 2, cell].mean())
        yield row | {"set": IN_SAMPLE, "log_density": density}
    for star in (SUN, *STARS):
        age = model.age(star.period, star.colour, star.period_error, star.colour_error)
        row = age_row(star.name, star.age, age["age_q16"], age["age_q50"], age["age_q84"])
        yield row | {"set": "star"}
    data = GyroData(n_test=8192, predict_batch_size=8192)
    batch = next(data.prediction_batches())
    seconds = best_of_five(lambda: model.predict_step(batch)) / 8192
    yield {"set": "speed", "name": "a star of 8,192", "cpu_seconds": seconds}


def gyrointerp_rows(samples: dict[str, Table]) -> Iterator[Row]:
    from orrery.benchmarks import gyro_peer as peer

    stars = {
        name: peer.stars_of(table["prot_d"], table["e_prot_d"], table["bp_rp0"])
        for name, table in samples.items()
    }
    seismic = np.array([[s.period, s.period_error, s.colour] for s in (SUN, *STARS)])
    stars[""] = peer.stars_of(*seismic.T)
    all_stars = peer.Stars(*(np.concatenate(part) for part in zip(*stars.values(), strict=True)))
    parts = np.cumsum([len(sample.prot) for sample in stars.values()])[:-1]
    likelihood = np.split(peer.likelihood(all_stars, peer.AGES), parts)
    posteriors = [peer.age_posterior(p, peer.AGES) for p in likelihood]
    for (name, table), posterior in zip(samples.items(), posteriors, strict=False):
        age = float(np.median(table["age_myr"]))
        ages = peer.quantiles(peer.joint(posterior, peer.AGES), peer.AGES) / 1e3
        log_p = peer.with_outliers(peer.density(stars[name], age)).mean()
        yield age_row(name, age / 1e3, *ages) | {"set": "cluster", "log_density": log_p}
    for star, posterior in zip((SUN, *STARS), posteriors[-1], strict=True):
        ages = peer.quantiles(posterior, peer.AGES) / 1e3
        yield age_row(star.name, star.age, *ages) | {"set": "star"}
    for name in ("", *TIMED_CLUSTERS):
        seconds = peer.cpu_seconds(stars[name], 0)
        yield {"set": "speed", "name": name or SUN.name, "cpu_seconds": seconds}


def chronoflow_rows(clone: Path, samples: dict[str, Table]) -> Iterator[Row]:
    from orrery.benchmarks import gyro_chronoflow as peer

    flow = peer.ChronoFlow(clone)
    for name, table in samples.items():
        age = float(np.median(table["age_myr"]))
        stars = table["prot_d"], table["bp_rp0"], table["e_bp_rp0"]
        ages = flow.ages(flow.log_likelihood(*stars, peer.LOG_AGES))
        at_age = flow.log_likelihood(*stars, torch.tensor([age]).log10())
        density = {"set": "cluster", "log_density": float(at_age.mean())}
        yield age_row(name, age / 1e3, *ages) | density
    for star in (SUN, *STARS):
        period, colour, error = np.array([[star.period], [star.colour], [star.colour_error]])
        ages = flow.ages(flow.log_likelihood(period, colour, error, peer.LOG_AGES))
        yield age_row(star.name, star.age, *ages) | {"set": "star"}
    yield {"set": "speed", "name": "a star of 100", "cpu_seconds": flow.cpu_seconds()}


def compare(folder: Path, out: Path, chronoflow: Path | None) -> None:
    table = read(folder / "clusters.csv")
    samples = {name: sample(table, name) for name in (*benchmark_clusters(), *DISPUTED_CLUSTERS)}
    square = torch.ones(1024, 1024)
    matmul_ms = 1e3 * best_of_five(lambda: square @ square)
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        methods: dict[str, Callable[[dict[str, Table]], Iterator[Row]]] = {"gyro": gyro_rows}
        methods["gyrointerp"] = gyrointerp_rows
        if chronoflow:
            methods["ChronoFlow"] = partial(chronoflow_rows, chronoflow)
        for method, run in methods.items():
            rows = []
            for row in run(samples):
                name = row["name"]
                row |= {"method": method, "matmul_ms": matmul_ms}
                row["counted"] = int(name not in DISPUTED_CLUSTERS)
                row["n"] = len(samples[name]["prot_d"]) if name in samples else 1
                writer.writerow(
                    {k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()}
                )
                rows.append(row)
            print_summary(method, rows)


def benchmark_clusters() -> list[str]:
    """Those of the shipped model, in its order."""
    model = pretrained.load("gyro")
    return [
        name
        for name, is_benchmark in zip(model.clusters, model.is_benchmark, strict=True)
        if is_benchmark
    ]


def print_summary(method: str, rows: list[Row]) -> None:
    clusters = [row for row in rows if row["set"] == "cluster" and row["counted"]]
    known = [r["offset_dex"] for r in rows if r["set"] == IN_SAMPLE and r["counted"]]
    offset = np.array([row["offset_dex"] for row in clusters])
    stars = [row for row in rows if row["set"] == "star" and row["name"] != SUN.name]
    seismic = np.array([row["offset_dex"] for row in stars])
    inside = np.mean([row["q16"] < row["age_gyr"] < row["q84"] for row in stars])
    sun = next(row for row in rows if row["name"] == SUN.name)
    density = np.average([r["log_density"] for r in clusters], weights=[r["n"] for r in clusters])
    seconds = [row["cpu_seconds"] for row in rows if row["set"] == "speed"]
    print(
        f"{method}: {len(offset)} clusters rms {np.sqrt(np.mean(offset**2)):.3f}, median "
        f"{np.median(np.abs(offset)):.3f} dex, worst pull {max(r['pull'] for r in clusters):.1f}, "
        f"ln p {density:.3f}; {len(seismic)} seismic stars rms {np.sqrt(np.mean(seismic**2)):.3f}, "
        f"{inside:.0%} inside; Sun {sun['q50']:.2f} [{sun['q16']:.2f}, {sun['q84']:.2f}] Gyr; "
        f"CPU per star {np.mean(seconds):.2g} s"
        + (f"; in sample rms {np.sqrt(np.mean(np.square(known))):.3f}" if known else "")
    )


# --- the sweep ------------------------------------------------------------------------------------


def summarise(folder: Path) -> None:
    rows = []
    for path in sorted(folder.glob("*/best.ckpt")):
        model = pretrained.load(path)
        name = model.record["config"]["data"]["leave_out"]
        if name is None or name in model.clusters:
            raise ValueError(f"{path} did not leave out a cluster: data.leave_out is {name}")
        data = data_for(model.record, {})
        total, n, density, age = torch.zeros(()), 0, 0.0, np.nan
        middle = len(COLOUR_OFFSETS) // 2
        for batch in data.prediction_batches():
            log_p = groups.log_likelihoods(model, batch)
            log_p = log_p[log_p[:, 0].isfinite().all(1)]
            age = float(batch["log_age"].nanmedian())
            cell = int(torch.bucketize(torch.tensor(age), model.edges)) - 1
            total, n = total + log_p.sum(0), n + len(log_p)
            density += float(log_p[:, middle, min(max(cell, 0), log_p.shape[2] - 1)].sum())
        cdf = groups.group_cdf(model, total)
        ages = 10 ** (grid.quantile(cdf, model.edges, LEVELS)[0] - 3)
        row = age_row(name, 10 ** (age - 3), *ages.tolist())
        rows.append({"cluster": row.pop("name"), "n": n, **row, "log_density": density / n})
    if not rows:
        raise ValueError(f"{folder} holds no */best.ckpt: is it the folder of a sweep?")
    with (folder / "left_out.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows
        )
    for row in rows:
        print(*(f"{v:>9.3f}" if isinstance(v, float) else f"{v!s:>12}" for v in row.values()))
    undisputed = [row for row in rows if row["cluster"] not in DISPUTED_CLUSTERS]
    offset = np.array([row["offset_dex"] for row in undisputed])
    weights = [min(row["n"], MAX_WEIGHT) for row in undisputed]
    density = np.average([row["log_density"] for row in undisputed], weights=weights)
    print(
        f"{len(offset)} clusters, without {' and '.join(DISPUTED_CLUSTERS)}: rms "
        f"{np.sqrt(np.mean(offset**2)):.3f}, median {np.median(np.abs(offset)):.3f} dex, worst "
        f"pull {max(row['pull'] for row in undisputed):.1f}, mean ln p {density:.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    peers = commands.add_parser("compare")
    peers.add_argument("--data", type=Path, default=Path("../shared/data/gyro"))
    peers.add_argument("--out", type=Path, default=Path("benchmarks/gyro.csv"))
    peers.add_argument("--chronoflow", type=Path, help="a clone of philvanlane/chronoflow")
    commands.add_parser("summarise").add_argument("folder", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.command == "compare":
        compare(options.data, options.out, options.chronoflow)
    else:
        summarise(options.folder)


if __name__ == "__main__":
    main()
