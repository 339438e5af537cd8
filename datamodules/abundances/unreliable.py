"""Abundances that a survey itself does not trust, and its numbers for unknown, as blanks."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from orrery.datamodules.values import equals_any
from orrery.physics.abundances.species import read_label
from orrery.tables import Catalogue
from orrery.tables.derived import Derived

LARGEST_ABUNDANCE = 20  # dex: other numbers stand for unknown
_VALUES = ("h", "fe", "logeps")


def flags_of_quality(names: Sequence[str]) -> dict[str, str]:
    """Column of an abundance -> that of its flag: MG_FE_FLAG of APOGEE, flag_Mg_fe of GALAH."""
    lower = {name.lower(): name for name in names}
    found = {}
    for name in names:
        text = name.lower()
        if text.startswith("flag_"):
            core = text.removeprefix("flag_")
        elif text.endswith("_flag"):
            core = text.removesuffix("_flag")
        else:
            continue
        label = read_label(lower[core]) if core in lower else None
        if label is not None and label.quantity in _VALUES:
            found[lower[core]] = name
    return found


class WithoutUnreliable(Derived):
    """The catalogue with NaN where the flag of an abundance is not 0, and for ``sentinels``.

    ``flags``: column of an abundance -> its flag's; a blank flag is 0. ``sentinels`` are replaced
    in columns of real numbers.
    """

    def __init__(
        self, catalogue: Catalogue, flags: Mapping[str, str], sentinels: Sequence[float] = ()
    ) -> None:
        super().__init__(catalogue, catalogue.names, [])
        self._flags, self._sentinels = flags, sentinels

    def chunks(
        self,
        columns: Sequence[str],
        rows: int = 65_536,
        start: int = 0,
        stop: int | None = None,
    ) -> Iterator[dict[str, np.ndarray]]:
        flags = [self._flags[name] for name in columns if name in self._flags]
        needed = list(dict.fromkeys([*columns, *flags]))
        for chunk in self._catalogue.chunks(needed, rows, start, stop):
            yield {name: self._reliable(name, chunk) for name in columns}

    def _reliable(self, name: str, chunk: Mapping[str, np.ndarray]) -> np.ndarray:
        values = chunk[name]
        if values.dtype.kind == "f" and len(self._sentinels):
            values = np.where(equals_any(values, self._sentinels), np.nan, values)
        if name in self._flags:
            bad = is_flagged(chunk[self._flags[name]], self._flags[name], name)
            if values.dtype.kind in "UO":
                values = np.where(bad, "", values.astype(object))
            else:
                values = np.where(bad, np.nan, np.ma.filled(np.ma.asarray(values, float), np.nan))
        return values


def is_flagged(cells: np.ndarray, column: str, of: str) -> np.ndarray:
    """Mask (rows,) of the flags that are not 0; a blank is 0."""
    try:
        given: np.ma.MaskedArray = np.ma.asarray(np.where(cells == "", "0", cells), float)
        flags: np.ndarray = np.ma.filled(given, 0.0)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"column '{column}' is taken as the flag of quality of '{of}', and holds '{cells[0]}'; "
            f"expected numbers, 0 where the abundance is good. If it marks limits, rename it "
            f"l_{of}; data.quality_flags=false leaves flags unread"
        ) from error
    return np.asarray(np.nan_to_num(flags) != 0)


def note_on_flags(catalogue: Catalogue, flags: Mapping[str, str]) -> list[str]:
    """That flags are used, and on how many abundances of the first rows."""
    if not flags:
        return []
    chunk = next(iter(catalogue.chunks([*flags, *flags.values()])), {})
    known, left_out = 0, 0
    for name, flag in flags.items():
        values = chunk.get(name, np.zeros(0))
        if values.dtype.kind == "f":
            there = np.abs(np.ma.filled(np.ma.asarray(values), np.nan)) < LARGEST_ABUNDANCE
            known += int(there.sum())
            left_out += int((there & is_flagged(chunk[flag], flag, name)).sum())
    first = next(iter(flags.values()))
    more = f" and {len(flags) - 1} more" if len(flags) > 1 else ""
    return [
        f"'{first}'{more} are flags of quality: abundances whose flag is not 0 are left out, "
        f"{left_out:,} of {known:,} in the first rows; data.quality_flags=false takes them all"
    ]
