"""Long tables, with a row per star and species, as one row per star."""

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from orrery.datamodules.abundances.cells import (
    LOWER,
    UPPER,
    note_on_scale,
    read_cells,
    read_flags,
    significance_in,
    texts,
)
from orrery.physics.abundances.species import ELEMENTS, Species, is_species, read_species
from orrery.tables import Catalogue

STARS = ("star", "name", "star_name", "starname", "object", "id", "target", "source_id")
SPECIES = ("species", "element", "elem", "el", "ion", "atom")
REFERENCES = ("reference", "ref", "source", "author", "bibcode", "paper")
STRUCTURES = ("structure", "stream", "system", "galaxy", "cluster", "host")
SIGNIFICANCE = ("significance", "nsigma", "n_sigma")
ERRORS = ("error", "err", "sigma", "unc", "e_abund", "e_ab", "stdev")  # of whichever value
LIMITS = ("ul", "limit", "lim", "upper_limit", "ulim", "f_lim")
# Quantity -> how a long table spells its column
_VALUES = {
    "h": re.compile(r"\[?(X|El)[/_]?H\]?", re.I),
    "fe": re.compile(r"\[?(X|El)[/_]?Fe\]?", re.I),
    "logeps": re.compile(r"log_?\s?\(?eps(ilon)?\)?(\(?X\)?)?|A\(X\)|loge", re.I),
}
_ERROR = r"(e|err|error|sigma|sig|u|s)_?({0})|({0})_?(err|error|sigma|unc)"
_LIMIT = re.compile(r"(l|lim|ul)_.+", re.I)
# Responses to stellar parameters, as Ji et al. (2020) and others write them
RESPONSES = {
    "dteff": re.compile(r"d(elta)?_?T(eff)?", re.I),
    "dlogg": re.compile(r"d(elta)?_?(log_?)?g", re.I),
    "dvt": re.compile(r"d(elta)?_?(v(t|mic)?|xi|vturb)", re.I),
    "dmh": re.compile(r"d(elta)?_?(M(H|_?H|etal)?|\[M/H\]|mh)", re.I),
}
_TOLERANCE = 0.021  # of sums of three numbers that are rounded to .01
_CONFLICT = 3.0  # sigma


class _Columns(NamedTuple):
    """Names of the columns of a long table; "" where there is none."""

    star: str
    species: str
    values: dict[str, str]  # by quantity
    errors: dict[str, str]
    limit: str
    significance: str
    responses: dict[str, str]
    reference: str
    structure: str


def is_long(catalogue: Catalogue) -> bool:
    """Whether it has a row per star and species: a column of species, and one of any [X/H]."""
    found = _find(catalogue.names, {})
    if found is None or not found.values:
        return False
    first = next(iter(catalogue.chunks([found.species])), None)
    if first is None:
        return False
    cells = texts(first[found.species][:200])
    return bool(np.mean([is_species(cell) for cell in cells]) > 0.5)


def stars_of_long(
    catalogue: Catalogue, given: Mapping[str, str] | None
) -> tuple[dict[str, np.ndarray], dict[str, str], list[str]]:
    """Canonical columns, the columns that they come from by role, and sentences for the user."""
    found = _find(catalogue.names, given or {})
    assert found is not None  # `is_long`
    if not found.star:
        raise ValueError(
            "a table with a row per star and species needs a column of stars; map it: "
            "data.columns.name=<column>"
        )
    wanted = [found.star, found.species, *found.values.values(), *found.errors.values()]
    wanted += [found.limit, found.significance, *found.responses.values()]
    wanted += [found.reference, found.structure]
    wanted = list(dict.fromkeys(name for name in wanted if name))
    parts = list(catalogue.chunks(wanted))
    cells = {name: np.concatenate([part[name] for part in parts]) for name in wanted}
    rows, notes = _read_rows(found, cells, catalogue)
    _check_errors(rows)
    keep, more = _without_repetitions(rows)
    columns, names = _pivot(rows, keep, found)
    notes += more + _by_other_species(rows, keep) + _note_on_responses(rows)
    return columns, names, notes


class _Rows:
    """The rows of a long table that have a value, read."""

    def __init__(self) -> None:
        self.row = np.zeros(0, int)  # in the file
        self.star = self.reference = self.structure = np.zeros(0, "<U1")
        self.species: list[Species] = []
        self.quantity = ""
        self.value_name = self.error_name = ""
        self.value = self.error = self.significance = np.zeros(0)
        self.limit = np.zeros(0, int)
        self.responses: dict[str, np.ndarray] = {}
        self.logeps: np.ndarray | None = None

    def at(self, i: int) -> str:
        return f"row {self.row[i]:,}, counted from 0, {self.star[i]}, {self.species[i]}"


def _find(names: list[str], given: Mapping[str, str]) -> _Columns | None:
    lower = {name.lower(): name for name in reversed(names)}

    def first(words: tuple[str, ...]) -> str:
        return next((lower[word] for word in words if word in lower), "")

    species = given.get("species", first(SPECIES))
    if not species:
        return None
    values: dict[str, str] = {}
    errors: dict[str, str] = {}
    for quantity, pattern in _VALUES.items():
        error = re.compile(_ERROR.format(pattern.pattern), re.I)
        for name in names:
            if pattern.fullmatch(name):
                values.setdefault(quantity, name)
            elif error.fullmatch(name):
                errors.setdefault(quantity, name)
    if error_of_any := first(ERRORS):
        errors[""] = error_of_any
    responses = {
        role: n for role, pattern in RESPONSES.items() for n in names if pattern.fullmatch(n)
    }
    limit = first(LIMITS) or next((n for n in names if _LIMIT.fullmatch(n)), "")
    return _Columns(
        given.get("name", first(STARS)), species, values, errors, given.get("limit", limit),
        given.get("significance", first(SIGNIFICANCE)), responses, first(REFERENCES),
        given.get("structure", first(STRUCTURES)),
    )  # fmt: skip


def _error_of(quantity: str, found: _Columns) -> str:
    """The column of errors; those of log eps and [X/H] are the same."""
    same = {"h": ("h", "logeps"), "logeps": ("logeps", "h"), "fe": ("fe",)}[quantity]
    return next((found.errors[q] for q in (*same, "") if q in found.errors), "")


def _read_rows(
    found: _Columns, cells: Mapping[str, np.ndarray], catalogue: Catalogue
) -> tuple[_Rows, list[str]]:
    rows = _Rows()
    read = {q: read_cells(cells[name], name) for q, name in found.values.items()}
    rows.quantity = next(q for q in ("h", "logeps", "fe") if q in read)
    rows.value_name = found.values[rows.quantity]
    rows.error_name = _error_of(rows.quantity, found)
    if not rows.error_name:
        raise ValueError(
            f"column '{rows.value_name}' has no column of errors; expected e_{rows.value_name}"
        )
    value, flags = read[rows.quantity]
    keep = np.isfinite(value)
    rows.row = np.flatnonzero(keep)
    star, species = texts(cells[found.star]), texts(cells[found.species])
    if (keep & (star == "")).any():
        row = int(np.flatnonzero(keep & (star == ""))[0])
        raise ValueError(f"column '{found.star}': a blank (row {row:,}, counted from 0); no star")
    known: dict[str, Species] = {}
    for i in rows.row:
        if species[i] not in known:
            try:
                known[species[i]] = read_species(species[i])
            except ValueError as error:
                raise ValueError(
                    f"column '{found.species}': {error} (row {i:,}, counted from 0)"
                ) from error
    rows.species = [known[species[i]] for i in rows.row]
    rows.star, rows.value = star[keep], value[keep]
    rows.error = read_cells(cells[rows.error_name], rows.error_name)[0][keep]
    limit = flags[keep]
    rows.significance = np.full(len(limit), np.nan)
    if found.limit:
        flag = read_flags(cells[found.limit], found.limit)[keep]
        limit = np.where(flag != 0, flag, limit)
        stated = significance_in(catalogue.descriptions.get(found.limit, ""))
        if stated is not None:
            rows.significance = np.where(limit != 0, stated, np.nan)
    if found.significance:
        rows.significance = read_cells(cells[found.significance], found.significance)[0][keep]
    rows.limit = limit
    rows.responses = {
        role: read_cells(cells[name], name)[0][keep] for role, name in found.responses.items()
    }
    none = np.full(len(limit), "")
    rows.reference = texts(cells[found.reference])[keep] if found.reference else none
    rows.structure = texts(cells[found.structure])[keep] if found.structure else none
    others = {q: v[0][keep] for q, v in read.items()}
    notes = _notes_on_ratios(rows, others, found, catalogue)
    if {"h", "logeps"} <= set(others):
        elements = [one.element for one in rows.species]
        notes += note_on_scale(elements, others["logeps"], others["h"])
    return rows, notes


def _notes_on_ratios(
    rows: _Rows, values: Mapping[str, np.ndarray], found: _Columns, catalogue: Catalogue
) -> list[str]:
    """That [X/H] and [X/Fe] are what their labels say, by the rows of iron, else ``ValueError``."""
    notes = []
    iron = np.array([species.element == "Fe" for species in rows.species])
    if "h" in values and iron.sum() >= 5 and np.all(np.abs(values["h"][iron]) < 0.005):
        raise ValueError(
            f"column '{found.values['h']}' is 0 for iron in all {int(iron.sum())} rows, so that it "
            f"holds [X/Fe], not [X/H]; rename it"
        )
    if set(values) == {"fe"}:
        name, of_iron = found.values["fe"], np.abs(values["fe"][iron])
        if len(of_iron) and np.median(of_iron) > 0.05:
            raise ValueError(
                f"column '{name}' is {np.median(values['fe'][iron]):.2f} for iron (median), where "
                f"[X/Fe] is 0: it holds [X/H]; rename it"
            )
        raise ValueError(
            f"column '{name}' holds [X/Fe] alone, from which [X/H] does not follow; add a column "
            f"[X/H] or logeps"
        )
    for quantity, name in found.values.items():
        text = catalogue.descriptions.get(name, "")
        if re.search(r"uncertaint|error", text, re.I) and (negative := values[quantity] < 0).any():
            how = ""
            if {"h", "fe"} <= set(values):
                share = _share_by_iron(rows, values, iron)
                how = f", and [X/H] - [Fe/H] for {share:.0%} of the rows"
            notes.append(
                f"column '{name}' is described as '{text}', but is negative in "
                f"{int(negative.sum()):,} rows{how}: it is taken as its label says"
            )
    return notes


def _share_by_iron(rows: _Rows, values: Mapping[str, np.ndarray], iron: np.ndarray) -> float:
    """Share of the rows where [X/H] - [X/Fe] is the star's [Fe/H], of Fe I or Fe II."""
    by_star: dict[str, list[float]] = {}
    for i in np.flatnonzero(iron):
        by_star.setdefault(str(rows.star[i]), []).append(float(values["h"][i]))
    right = [
        any(abs(h - fe - value) < _TOLERANCE for value in by_star.get(str(star), []))
        for star, h, fe in zip(rows.star, values["h"], values["fe"], strict=True)
    ]
    return float(np.mean(right))


def _check_errors(rows: _Rows) -> None:
    """Raise ``ValueError`` for an error of a measurement that is zero, negative or blank."""
    bad = (rows.limit == 0) & ~(np.nan_to_num(rows.error) > 0)
    if bad.any():
        i = int(np.flatnonzero(bad)[0])
        got = "a blank" if np.isnan(rows.error[i]) else rows.error[i]
        more = f"; {int(bad.sum()) - 1:,} more like it" if bad.sum() > 1 else ""
        raise ValueError(
            f"column '{rows.error_name}': {got} ({rows.at(i)}) is no error of a measurement; "
            f"expected a positive number in dex: blank the abundance, or state its error{more}"
        )


def _without_repetitions(rows: _Rows) -> tuple[np.ndarray, list[str]]:
    """Rows to keep, one per star, species and reference; what is repeated is combined.

    Rows that are alike are one. Measurements that differ are averaged with inverse variances as
    weights, and the error of the mean is widened by sqrt(chi2 / (n - 1)) where that exceeds one, as
    the Particle Data Group does. A measurement goes before limits; of limits the tightest counts.
    """
    groups: dict[tuple[str, Species, str], list[int]] = {}
    for i in range(len(rows.row)):
        key = (str(rows.star[i]), rows.species[i], str(rows.reference[i]))
        groups.setdefault(key, []).append(i)
    keep = np.ones(len(rows.row), bool)
    alike, combined, worst = 0, 0, (0.0, 0)
    for members in groups.values():
        if len(members) == 1:
            continue
        keep[members[1:]] = False
        distinct = {(rows.value[i], rows.limit[i], _key(rows.error[i])) for i in members}
        if len(distinct) == 1:
            alike += len(members) - 1
            continue
        combined += 1
        first, pull = members[0], _combine(rows, members)
        worst = max(worst, (pull, first))
    notes = []
    if alike:
        notes.append(f"{alike:,} rows are another's repetition, and left out")
    if combined:
        pull, i = worst
        notes.append(
            f"{combined:,} species of a star are there several times, and combined with inverse "
            f"variances as weights; the worst disagreement is {pull:.1f} sigma ({rows.at(i)})"
        )
    return keep, notes


def _key(number: float) -> float | None:
    return None if np.isnan(number) else float(number)


def _combine(rows: _Rows, members: list[int]) -> float:
    """Combine rows into the first of them; their largest disagreement in sigma."""
    first = members[0]
    measured = [i for i in members if rows.limit[i] == 0]
    if not measured:
        upper = [i for i in members if rows.limit[i] == UPPER]
        lower = [i for i in members if rows.limit[i] == LOWER]
        best = (
            min(upper, key=lambda i: rows.value[i])
            if upper
            else max(lower, key=lambda i: rows.value[i])
        )
        _copy(rows, best, first)
        return 0.0
    value, error = rows.value[measured], rows.error[measured]
    weight = error**-2
    mean, variance = np.sum(weight * value) / weight.sum(), 1 / weight.sum()
    chi2 = np.sum(weight * (value - mean) ** 2) / max(len(measured) - 1, 1)
    for role, response in rows.responses.items():
        known = np.isfinite(response[measured])
        if known.any():
            w = weight[known]
            rows.responses[role][first] = np.sum(w * response[measured][known]) / w.sum()
    rows.value[first], rows.error[first] = mean, np.sqrt(variance * max(chi2, 1.0))
    rows.limit[first], rows.significance[first] = 0, np.nan
    return float((value.max() - value.min()) / np.hypot(*error[[value.argmax(), value.argmin()]]))


def _copy(rows: _Rows, source: int, target: int) -> None:
    arrays = [rows.value, rows.error, rows.limit, rows.significance, *rows.responses.values()]
    for array in arrays:
        array[target] = array[source]


def _pivot(
    rows: _Rows, keep: np.ndarray, found: _Columns
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """A row per star (and reference), in the order in which they come; of each element the best."""
    chosen = _best(rows, keep)
    keys = list(dict.fromkeys(key for key, _ in _stars(rows)))
    place = {key: i for i, key in enumerate(keys)}
    columns: dict[str, np.ndarray] = {"name": np.array([star for star, _ in keys])}
    if found.reference:
        columns["reference"] = np.array([reference for _, reference in keys])
    if found.structure:
        structure = dict(zip(_keys(rows), rows.structure, strict=True))
        columns["structure"] = np.array([structure[key] for key in keys])
    names = {"name": found.star}
    sources = {"": rows.value, "_error": rows.error}
    for element in ELEMENTS:
        members = [i for (_, e), i in chosen.items() if e == element]
        if not members:
            continue
        x, stars = element.lower(), [place[_keys(rows)[i]] for i in members]

        role = f"{x}_{rows.quantity}"
        columns |= {
            f"{role}{end}": _placed(source[members], stars, len(keys))
            for end, source in sources.items()
        }
        names |= {role: rows.value_name, f"{role}_error": rows.error_name}
        if np.any(rows.limit[members] != 0):
            columns[f"{x}_limit"] = _placed(rows.limit[members], stars, len(keys), 0.0)
            columns[f"{x}_significance"] = _placed(rows.significance[members], stars, len(keys))
            names |= {f"{x}_limit": found.limit or rows.value_name}
        for response, source in rows.responses.items():
            columns[f"{x}_{response}"] = _placed(source[members], stars, len(keys))
    return columns, names


def _placed(values: np.ndarray, places: list[int], n: int, blank: float = np.nan) -> np.ndarray:
    """``values`` at their ``places`` among ``n``, and ``blank`` at the others."""
    column = np.full(n, blank)
    column[places] = values
    return column


def _keys(rows: _Rows) -> list[tuple[str, str]]:
    return [(str(s), str(r)) for s, r in zip(rows.star, rows.reference, strict=True)]


def _stars(rows: _Rows) -> list[tuple[tuple[str, str], int]]:
    return [(key, i) for i, key in enumerate(_keys(rows))]


def _best(rows: _Rows, keep: np.ndarray) -> dict[tuple[tuple[str, str], str], int]:
    """Row of each star and element: a measurement before a limit, then by `Species.rank`."""
    best: dict[tuple[tuple[str, str], str], int] = {}
    for key, i in _stars(rows):
        if not keep[i]:
            continue
        species = rows.species[i]
        place = (key, species.element)
        old = best.get(place)
        if old is None or (rows.limit[i] != 0, species.rank) < (
            rows.limit[old] != 0,
            rows.species[old].rank,
        ):
            best[place] = i
    return best


def _by_other_species(rows: _Rows, keep: np.ndarray) -> list[str]:
    """Of which elements stars have another species than most, and of how many."""
    chosen = _best(rows, keep)
    by_element: dict[str, dict[Species, int]] = {}
    for (_, element), i in chosen.items():
        counts = by_element.setdefault(element, {})
        counts[rows.species[i]] = counts.get(rows.species[i], 0) + 1
    several = {s.element for s in rows.species if s != _first_of(rows, s.element)}
    parts = []
    for element in sorted(several, key=ELEMENTS.index):
        taken = sorted(by_element[element].items(), key=lambda item: item[0].rank)
        parts.append(" and ".join(f"{species} of {count:,}" for species, count in taken))
    return [f"of elements with several species, stars have {', '.join(parts)}"] if parts else []


def _note_on_responses(rows: _Rows) -> list[str]:
    """That the errors do not hold the responses, if they do not, each being of one sigma."""
    if not rows.responses:
        return []
    square = np.sum([response**2 for response in rows.responses.values()], axis=0)
    known = np.isfinite(square) & (rows.limit == 0)
    rounding = 0.01  # of the error and of the responses
    more = known & (np.sqrt(np.where(known, square, 0)) > rows.error + rounding)
    if not more.any():
        return []
    return [
        f"the responses to stellar parameters add in squares to more than the error for "
        f"{int(more.sum()):,} of {int(known.sum()):,} abundances: the errors of the parameters are "
        f"correlated"
    ]


def _first_of(rows: _Rows, element: str) -> Species:
    return next(s for s in rows.species if s.element == element)
