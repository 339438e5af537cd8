"""Which spectrum is of which row of a catalogue, by names of files or ids of galaxies."""

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

from orrery.tables import READERS

EXAMPLES = 5  # names in a message


def stem(path: str) -> str:
    """A file's name without the ending of its format."""
    name = Path(path).name
    endings = [e for e in (*READERS, ".spec") if name.lower().endswith(e)]
    return name[: -len(max(endings, key=len))] if endings else Path(name).stem


def contains(name: str, key: str) -> bool:
    """Whether an id is a part of a name: 15 is of zf-15_K, zf0015 and K.15.1d, not of 2015 or 15b.

    Numbers may follow zeros and letters, and are no part of a longer or a decimal number; other
    ids are bounded by what is neither letter nor digit.
    """
    escaped = re.escape(key)
    if key.isdigit():
        whole = rf"(?<!\d)(?<!\d\.)0*{escaped}(?![0-9A-Za-z])(?!\.\d+(?![0-9A-Za-z]))"
        return bool(re.search(whole, name))
    return bool(re.search(rf"(?<![0-9A-Za-z]){escaped}(?![0-9A-Za-z])", name))


def rows_of_spectra(
    names: Mapping[str, str], ids: Sequence[str], label: str
) -> tuple[dict[str, str], list[str]]:
    """Id of the row -> spectrum, and the spectra without a row.

    ``names``: spectrum -> name that is the row's id or contains it. Raises ``ValueError`` for ids
    that occur twice, for names that fit several rows, for two spectra of one row, and where no
    spectrum has a row.
    """
    _refuse_twice(ids, label)
    known = set(ids)
    found: dict[str, str] = {}
    without = []
    for spectrum, name in names.items():
        fits = [name] if name in known else [key for key in ids if contains(name, key)]
        if len(fits) > 1:
            raise ValueError(
                f"{label}: the spectrum {spectrum} fits the rows of {' and '.join(fits[:3])}; name "
                f"the file of each row in a column: data.columns.spectrum=<column>"
            )
        if not fits:
            without.append(spectrum)
        elif fits[0] in found:
            raise ValueError(
                f"{label}: two spectra of '{fits[0]}', {found[fits[0]]} and {spectrum}; expected "
                f"one: combine them, or choose by data.spectra"
            )
        else:
            found[fits[0]] = spectrum
    if names and not found:
        first = next(iter(names.values()))
        near = get_close_matches(first, list(ids), 3) or list(ids[:EXAMPLES])
        raise ValueError(
            f"{label}: no spectrum has its row: '{first}' contains none of the ids, such as "
            f"{', '.join(near)}; name the column of ids, data.columns.id=<column>, or of files, "
            f"data.columns.spectrum=<column>"
        )
    return found, without


def _refuse_twice(ids: Sequence[str], label: str) -> None:
    seen: dict[str, int] = {}
    for row, key in enumerate(ids):
        if key in seen:
            raise ValueError(
                f"{label}: the id '{key}' is in row {seen[key]:,} and in row {row:,}, counted from "
                f"0; a spectrum belongs to one row: expected each once"
            )
        seen[key] = row


def some_of(names: Sequence[str]) -> str:
    """The first of them, for a message."""
    more = f" and {len(names) - EXAMPLES:,} more" if len(names) > EXAMPLES else ""
    return ", ".join(names[:EXAMPLES]) + more
