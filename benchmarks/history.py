"""The headlines of the benchmarks over time: a line per run and version in `history.csv`, drawn.

`python -m benchmarks --summary` adds what is new. ``python -m benchmarks.history`` draws it anew,
and with ``--from-git`` adds what the tables were in earlier commits of this clone.
"""

import argparse
import csv
import subprocess
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from orrery.benchmarks import __main__ as benchmarks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HISTORY = benchmarks.HERE / "history.csv"
COLUMNS = ("date", "version", "benchmark", "quantity", "peer", "ours", "theirs", "ratio")
OF_HEADLINE = ("benchmark", "quantity", "peer")
MEASURED = (*OF_HEADLINE, "ours", "theirs")

Row = dict[str, str]


def read(path: Path = HISTORY) -> list[Row]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def extend(found: Iterable[Row], path: Path = HISTORY) -> int:
    """Add the rows (of `COLUMNS`) whose numbers are not those of their headline before; how many.

    A table that was not measured again adds nothing.
    """
    rows = read(path)
    known = {tuple(row[name] for name in MEASURED) for row in rows}
    new = []
    for row in found:
        key = tuple(row[name] for name in MEASURED)
        if key not in known:
            known.add(key)
            new.append({name: row[name] for name in COLUMNS})
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted([*rows, *new], key=lambda row: [row[n] for n in COLUMNS[2:5]]
                                + [row["date"]]))  # fmt: skip
    return len(new)


def from_git() -> list[Row]:
    """Rows of what the tables were in each commit, the oldest first."""
    rows = []
    for headline in benchmarks.HEADLINES:
        table = f"{headline.table}.csv"
        for commit, day in _commits(table):
            text = _git("show", f"{commit}:./{table}")
            try:
                one = benchmarks.ratio(headline, list(csv.DictReader(text.splitlines())))
            except (ValueError, KeyError):  # a table of that time had other rows or columns
                continue
            rows.append({**one, "date": day, "version": _version(commit)})
    return rows


def _commits(table: str) -> list[tuple[str, str]]:
    lines = _git("log", "--reverse", "--format=%H %cs", "--", table).splitlines()
    return [(line.split()[0], line.split()[1]) for line in lines]


def _version(commit: str) -> str:
    lines = _git("show", f"{commit}:../pyproject.toml").splitlines()
    found = (line.split('"')[1] for line in lines if line.startswith("version = "))
    return next(found, "")


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=benchmarks.HERE, capture_output=True, text=True)
    return done.stdout


def draw(rows: list[Row], path: Path) -> None:
    """A line per headline: the ratios of its measurements, the last one filled, and its date."""
    import numpy as np

    from orrery.figures import style

    by_headline: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_headline[f"{row['benchmark']}: {row['quantity']} / {row['peer']}"].append(row)

    @style.figure
    def ratios_over_time() -> "Figure":
        """Ours over the peer's, of which less is better: earlier measurements and the last."""
        fig, axes = style.new(1, 1, size=(15, 1.5 + 0.5 * len(by_headline)))
        axis = axes[0, 0]
        for y, of_one in enumerate(by_headline.values()):
            *earlier, last = np.log10([float(row["ratio"]) for row in of_one])
            axis.plot([*earlier, last], np.full(len(of_one), y), color=style.PALETTE[0], lw=1)
            axis.plot(earlier, np.full(len(earlier), y), "o", mfc="white", color=style.PALETTE[0])
            axis.plot(last, y, "o", ms=11, color=style.PALETTE[0 if last < 0 else 1])
            text = f"{of_one[-1]['ratio']}   {of_one[-1]['date']}"
            axis.text(1.01, y, text, va="center", transform=axis.get_yaxis_transform())
        axis.axvline(0, color=style.TRUTH, lw=1.6)
        axis.set_yticks(range(len(by_headline)), list(by_headline))
        axis.invert_yaxis()
        axis.set(xlabel="log10 of ours / the peer's: left of 0 ours is better")
        return fig

    style.save(ratios_over_time(), path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--from-git", action="store_true", help="add what earlier commits had")
    parser.add_argument("--out", type=Path, default=HISTORY)
    options = parser.parse_args()
    if options.from_git:
        print(f"{extend(from_git(), options.out)} lines were added")
    draw(read(options.out), options.out.with_suffix(".png"))
    print(f"{options.out} and {options.out.with_suffix('.png').name}")


if __name__ == "__main__":
    main()
