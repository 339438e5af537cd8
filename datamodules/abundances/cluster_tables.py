"""The tables of Roediger et al. (2014, ApJS 210, 10): stars of globular clusters by many authors.

A file such as NGC0104.tbl has a section per paper, a row per star, and below a line of = the
statistics of the cluster. Columns come in pairs, a value and its error; "-" is a blank. Not so of
[Fe/H]: it is the paper's mean of the cluster, in the first row of a section, and what follows it is
a relative weight (1.00, .33), not an error: the weighted mean of the file is that with 1/weight.
"""

import os
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from orrery.physics.abundances.species import read_label

LEAST_ERROR = 0.1  # dex, of abundances of these tables whose error is not stated
_NAME = re.compile(r"(ngc|ic|pal|m)\s*0*(\d+)", re.I)


class ClusterStars(NamedTuple):
    """Canonical columns, (rows,) each, a row per star and paper; sentences for the user."""

    columns: dict[str, np.ndarray]
    notes: list[str]


def is_cluster_table(path: str | os.PathLike[str]) -> bool:
    """Whether a .tbl file has this layout."""
    if not os.fspath(path).lower().endswith(".tbl"):
        return False
    with open(path, encoding="utf-8", errors="replace") as file:
        words = file.readline().split()
    return words[:2] == ["Star", "Source"] and "[Fe/H]" in words


def read_cluster_tables(paths: Sequence[str | os.PathLike[str]]) -> ClusterStars:
    """Stars of all files, each with the cluster that the file's name states, "NGC 104"."""
    made = [_read(os.fspath(path)) for path in paths]
    roles = list(dict.fromkeys(role for stars in made for role in stars.columns))
    columns = {role: np.concatenate([_or_blank(m.columns, role) for m in made]) for role in roles}
    return ClusterStars(columns, [note for stars in made for note in stars.notes])


def _or_blank(columns: dict[str, np.ndarray], role: str) -> np.ndarray:
    return columns.get(role, np.full(len(columns["name"]), np.nan))


def _read(path: str) -> ClusterStars:
    with open(path, encoding="utf-8") as file:
        lines = file.read().splitlines()
    header = lines[0].split()
    quantities = header[2 : -1 if header[-1] == "Comments" else None]
    fields = len(header) + len(quantities)
    sections, rows, end = [], [], len(lines)
    paper = ""
    for number, line in enumerate(lines[2:], start=3):
        words = line.split()
        if "=====" in line:
            end = number
            break
        if not words:
            continue
        if len(words) == 1 and words[0].endswith(":"):
            paper = words[0].rstrip(":")
            continue
        if len(words) < fields:
            raise ValueError(
                f"{path}, line {number}: {len(words)} fields; expected {fields}: a star, a source, "
                f"{len(quantities)} pairs of numbers, and a comment or -"
            )
        sections.append(paper)
        rows.append([*words[: 2 + 2 * len(quantities)], str(number)])
    if not rows:
        raise ValueError(f"{path}: there are no stars below its header")
    cells = np.array(rows)
    papers = np.array(sections)
    pairs = {
        quantity: (_numbers(cells, 2 + 2 * k, path), _numbers(cells, 3 + 2 * k, path))
        for k, quantity in enumerate(quantities)
    }
    return _stars(path, cells[:, 0], papers, pairs, _summary(lines[end:], quantities))


def _numbers(cells: np.ndarray, column: int, path: str) -> np.ndarray:
    values = np.full(len(cells), np.nan)
    for i, text in enumerate(cells[:, column]):
        if text != "-":
            try:
                values[i] = float(text)
            except ValueError as error:
                raise ValueError(
                    f"{path}, line {cells[i, -1]}: '{text}' is no number; expected one, or -"
                ) from error
    return values


def _summary(lines: Sequence[str], quantities: Sequence[str]) -> tuple[float, float]:
    """Mean [Fe/H] of the cluster and its scatter between papers, of the file's last lines."""
    k, found = list(quantities).index("[Fe/H]"), {}
    for line in lines:
        words = line.split()
        if words and words[0] in ("WMean:", "WSigma:", "Mean:", "Sigma:") and len(words) > k + 1:
            found[words[0]] = float(words[k + 1])
    mean = found.get("WMean:", found.get("Mean:", np.nan))
    return mean, found.get("WSigma:", found.get("Sigma:", np.nan))


def _stars(
    path: str,
    names: np.ndarray,
    papers: np.ndarray,
    pairs: dict[str, tuple[np.ndarray, np.ndarray]],
    summary: tuple[float, float],
) -> ClusterStars:
    file, notes = os.path.basename(path), []
    star = names != "-"
    if (~star).any():
        notes.append(f"{file}: {int((~star).sum())} rows are of the whole cluster, and left out")
    columns: dict[str, np.ndarray] = {"name": names[star], "reference": papers[star]}
    match = _NAME.search(file)
    cluster = f"{match[1].upper()} {match[2]}" if match else os.path.splitext(file)[0]
    columns["structure"] = np.full(int(star.sum()), cluster)
    columns["type"] = np.full(int(star.sum()), "cluster")
    iron, notes_on_iron = _iron(pairs["[Fe/H]"][0], papers, summary, file)
    columns |= {"fe_h": iron[star], "fe_h_error": np.full(int(star.sum()), summary[1])}
    filled = 0
    for quantity, (value, error) in pairs.items():
        label = read_label(quantity)
        if label is None or quantity == "[Fe/H]":
            continue
        value, error = value[star], error[star]
        blank = np.isfinite(value) & ~(np.nan_to_num(error) > 0)
        stated = error[np.isfinite(value) & ~blank]
        median = float(np.median(stated)) if len(stated) else 0.0
        filled += int(blank.sum())
        columns[label.role] = value
        columns[f"{label.role}_error"] = np.where(
            np.isnan(value), np.nan, np.where(blank, max(median, LEAST_ERROR), error)
        )
    if filled:
        notes.append(
            f"{file}: {filled:,} abundances have no error, or one of 0; theirs is the median of "
            f"the element's in this file, but {LEAST_ERROR} dex or more"
        )
    repeated = len(columns["name"]) - len(set(columns["name"].tolist()))
    if repeated:
        notes.append(
            f"{file}: {repeated} rows are of stars that others measured too; authors are kept apart"
        )
    return ClusterStars(columns, notes_on_iron + notes)


def _iron(
    value: np.ndarray, papers: np.ndarray, summary: tuple[float, float], file: str
) -> tuple[np.ndarray, list[str]]:
    """[Fe/H] of each row: the paper's mean of the cluster, else that of the file."""
    by_paper = {str(p): float(v) for p, v in zip(papers, value, strict=True) if np.isfinite(v)}
    if np.isnan(summary).any():
        raise ValueError(f"{file}: its last lines lack the mean and scatter of [Fe/H]")
    iron = np.array([by_paper.get(str(paper), summary[0]) for paper in papers])
    return iron, [
        f"{file}: [Fe/H] is the mean of the cluster, {summary[0]:.2f}, or that of the paper, with "
        f"an error of {summary[1]:.2f}, the scatter between papers; the file has none of single "
        f"stars"
    ]
