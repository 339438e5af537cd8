"""Every benchmark with its peers: which can run here, run them, and the ratios of all in one table.

    python -m benchmarks                    # what is installed, and what each lacks
    python -m benchmarks zephyr gc_emulator # run these one after the other; those that lack a peer
                                            # are named and left out
    python -m benchmarks --summary          # summary.csv, from the tables; what is new goes into
                                            # history.csv and .png

A ratio is ours over the peer's, of the same rows, in the same run; below 1 ours is better. The
tables, `benchmarks/<name>.csv`, are those that are committed, or that a run has just renewed: the
summary runs nothing.
"""

import argparse
import csv
import platform
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import numpy as np

HERE = Path(__file__).resolve().parent
Row = dict[str, str]


class Benchmark(NamedTuple):
    """A benchmark, ``python -m benchmarks.<name>``, and the distributions of its peers."""

    words: str  # of its command line
    needs: tuple[str, ...]
    data: str = ""  # what it needs besides, in words


class Headline(NamedTuple):
    """One comparison of a committed table: the mean over seeds of a number of which less is better.

    ``rows``: values by column of the rows that count.
    """

    name: str
    table: str
    quantity: str
    column: str
    peer: str
    ours: Row
    theirs: Row
    of: Callable[[np.ndarray], float] = np.mean


RAIL = ("pz-rail-base", "pz-rail-flexzboost", "pz-rail-pzflow", "scikit-learn")
BENCHMARKS = {
    "zephyr": Benchmark("zephyr", RAIL, "--data <folder of zcosmos_*.hdf5>"),
    "gyro": Benchmark("gyro compare", ("gyrointerp",), "--data <folder of the clusters>"),
    "gc_emulator": Benchmark("gc_emulator", ("astro-limepy",)),
    "gc_pyro": Benchmark("gc_pyro", ("pyro-ppl",)),
    "gc_profile": Benchmark("gc_profile", ("astro-limepy", "emcee")),
    "dust": Benchmark("dust", ("nifty", "jax")),
    "scatter_vae": Benchmark("scatter_vae", ("gaiaxpy",)),
    "gems": Benchmark("gems", ("galpy",)),
    "mass_net": Benchmark("mass_net", ()),
    "sed_emulator": Benchmark("sed_emulator", ("bagpipes",)),
    "feniks": Benchmark(
        "feniks bagpipes --n 10 --seed 700", ("bagpipes", "nautilus-sampler", "spectres")
    ),
    "abundances": Benchmark("abundances", (), "the tables of stars"),
}


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))


HEADLINES = (
    *(
        Headline(f"zephyr, {data}", "zephyr", "CRPS", "crps", name,
                 {"set": data, "method": "zephyr"}, {"set": data, "method": peer})
        for data in ("dc2", "zcosmos")
        for peer, name in (("rf", "random forest"), ("flexzboost", "FlexZBoost"),
                           ("pzflow", "PZFlow"))
    ),
    Headline("zephyr, dc2", "zephyr", "CPU seconds of training", "train_seconds", "FlexZBoost",
             {"set": "dc2", "method": "zephyr"}, {"set": "dc2", "method": "flexzboost"}),
    Headline("gyro", "gyro", "rms of log age", "offset_dex", "gyrointerp",
             {"set": "cluster", "method": "gyro", "counted": "1"},
             {"set": "cluster", "method": "gyrointerp", "counted": "1"}, rms),
    Headline("gyro, in sample", "gyro", "rms of log age", "offset_dex", "ChronoFlow",
             {"set": "cluster, in sample", "method": "gyro", "counted": "1"},
             {"set": "cluster", "method": "ChronoFlow", "counted": "1"}, rms),
    Headline("gc_emulator", "gc_emulator", "worst error of f", "f_max_rel_error", "LIMEPY",
             {"method": "zoo"}, {"method": "limepy"}),
    Headline("gc_emulator, HMC", "gc_pyro", "seconds", "seconds", "Pyro's NUTS",
             {"method": "zoo"}, {"method": "pyro NUTS"}),
    Headline("dust", "dust", "seconds of an iteration", "iteration_seconds", "nifty.re",
             {"method": "orrery, mgvi"}, {"method": "nifty.re"}),
    Headline("scatter_vae", "scatter_vae", "nats short of the truth", "nll_minus_truth",
             "the published network", {"set": "reference", "method": "scatter_vae"},
             {"set": "reference", "method": "paper"}),
    Headline("scatter_vae", "scatter_vae", "nats short of the truth", "nll_minus_truth",
             "PCA of 20", {"set": "reference", "method": "scatter_vae"},
             {"set": "reference", "method": "pca20"}),
    Headline("scatter_vae, real", "scatter_vae", "-ln p of real spectra", "marginal_nll",
             "PCA of 20", {"set": "real", "method": "scatter_vae_sampled"},
             {"set": "real", "method": "pca20"}),
    Headline("gems", "gems", "-ln p of the host", "log_loss", "kernel densities",
             {"test": "toy", "method": "gems"}, {"test": "toy", "method": "kernels"}),
    Headline("sed_emulator", "sed_emulator_speed", "ms per galaxy", "ms", "Bagpipes",
             {"method": "sed_emulator", "case": "dust", "batch": "2048"},
             {"method": "Bagpipes", "case": "dust"}),
    Headline("feniks", "feniks_bagpipes", "rms of log t50", "t50_error_dex", "Bagpipes",
             {"method": "feniks"}, {"method": "Bagpipes"}, rms),
    Headline("feniks", "feniks_bagpipes", "CPU seconds", "seconds", "Bagpipes",
             {"method": "feniks"}, {"method": "Bagpipes"}),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], epilog="words after -- go to the benchmark"
    )
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(BENCHMARKS))
    parser.add_argument("--summary", action="store_true", help="the ratios of the tables")
    parser.add_argument("--out", type=Path, default=HERE / "summary.csv")
    words, _, more = " ".join(sys.argv[1:]).partition(" -- ")
    options = parser.parse_args(words.split())
    if unknown := [name for name in options.names if name not in BENCHMARKS]:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    if not (options.names or options.summary):
        print(listing())
        return
    for name in options.names:
        run(name, more.split())
    write_summary(options.out)


def missing(name: str) -> list[str]:
    """The peers of a benchmark that are not installed."""
    return [peer for peer in BENCHMARKS[name].needs if not installed(peer)]


def installed(distribution: str) -> str:
    """Its version; empty if it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""


def listing() -> str:
    """A line per benchmark: its peers with their versions, or what it lacks."""
    lines = []
    for name, benchmark in BENCHMARKS.items():
        peers = ", ".join(f"{p} {installed(p)}" for p in benchmark.needs) or "no peer to install"
        lacks = missing(name)
        state = f"lacks {', '.join(lacks)}" if lacks else f"can run: {peers}"
        lines.append(f"{name:14}{state}{f'; {benchmark.data}' if benchmark.data else ''}")
    return "\n".join([*lines, 'peers: pip install -c constraints.txt -e ".[bench]"'])


def run(name: str, words: list[str]) -> None:
    """Run a benchmark in a process of its own; one that lacks a peer is named and left out."""
    if lacks := missing(name):
        print(f"{name} is left out: {', '.join(lacks)} is not installed")
        return
    command = [sys.executable, "-m", *f"benchmarks.{BENCHMARKS[name].words}".split(), *words]
    subprocess.run(command, cwd=HERE.parent, check=True)


def ratios() -> list[Row]:
    """A row per headline: ours, the peer's, and their ratio."""
    rows = []
    for headline in HEADLINES:
        path = HERE / f"{headline.table}.csv"
        with path.open(newline="") as file:
            found = ratio(headline, list(csv.DictReader(file)))
        rows.append({**found, "table": path.name, "table_date": last_change(path)})
    return rows


def ratio(headline: Headline, table: list[Row]) -> Row:
    """Of one headline, from the rows of its table."""
    ours, theirs = (number(table, wanted, headline) for wanted in (headline.ours, headline.theirs))
    return {
        "benchmark": headline.name,
        "quantity": headline.quantity,
        "peer": headline.peer,
        "ours": f"{ours:.4g}",
        "theirs": f"{theirs:.4g}",
        "ratio": f"{ours / theirs:.4g}",
    }


def last_change(table: Path) -> str:
    """The day of the last commit of a table; empty where git does not know it."""
    command = ["git", "log", "-1", "--format=%cs", "--", table.name]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def number(table: list[Row], wanted: Row, headline: Headline) -> float:
    """The headline's number of the rows whose columns have the wanted values."""
    found = [row for row in table if all(row[key] == value for key, value in wanted.items())]
    if not found:
        raise ValueError(f"{headline.table}.csv has no row {wanted}: run that benchmark anew")
    return float(headline.of(np.array([float(row[headline.column]) for row in found])))


def write_summary(path: Path) -> None:
    """Write the ratios, with the machine, date and versions of this summary.

    What is new goes into the history beside it, which is drawn.

    ``table_date`` is that of the measurement.
    """
    from orrery.benchmarks import history  # which imports this

    peers = sorted({peer for benchmark in BENCHMARKS.values() for peer in benchmark.needs})
    names = ("orrery", "torch", "numpy", *peers)
    there = {name: installed(name) for name in names}
    stamp = {
        "machine": f"{platform.machine()} {platform.system()}",
        "date": date.today().isoformat(),
        "versions": " ".join(f"{name}={number}" for name, number in there.items() if number),
    }
    rows = [{**row, **stamp} for row in ratios()]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        verdict = "" if float(row["ratio"]) < 1 else "   the peer is better"
        print(
            f"{row['benchmark']:28}{row['quantity']:26}{row['peer']:24}{row['ratio']:>10}{verdict}"
        )
    past, picture = path.with_name("history.csv"), path.with_name("history.png")
    history.extend(
        (
            {**row, "date": row["table_date"] or row["date"], "version": there["orrery"]}
            for row in rows
        ),
        past,
    )
    history.draw(history.read(past), picture)
    print(f"{path}, {past.name} and {picture.name}")


if __name__ == "__main__":
    main()
