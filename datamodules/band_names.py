"""Names of columns of photometry: the patterns they follow, and the instruments they name."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher

from orrery.datamodules.photometry import near_column

# Words in names of columns -> the word of a filter's name, as astro-sedpy spells it
INSTRUMENTS = {
    "uvista": "vista", "vista": "vista", "vircam": "vista", "video": "vista", "viking": "vista",
    "vhs": "vista", "hsc": "hsc", "suprime": "subaru", "suprimecam": "subaru", "sc": "subaru",
    "subaru": "subaru", "cfht": "cfht", "cfhtls": "cfht", "megacam": "cfht", "megaprime": "cfht",
    "ukidss": "ukirt", "wfcam": "ukirt", "ukirt": "ukirt", "irac": "spitzer", "spitzer": "spitzer",
    "acs": "acs", "wfc3": "wfc3", "nircam": "jwst", "jwst": "jwst", "sdss": "sdss", "des": "decam",
    "decam": "decam", "lsst": "lsst", "rubin": "lsst", "twomass": "twomass", "2mass": "twomass",
    "hawki": "hawki", "isaac": "isaac", "wircam": "wircam", "fourstar": "fourstar",
    "galex": "galex", "kids": "omegacam", "vst": "omegacam",
}  # fmt: skip
OTHER_LETTERS = frozenset("uUrRiIzZyY")  # single letters that are two filters, small and large
# How the name of a flux or magnitude becomes that of its error
_ERRORS = (
    (r"^f_", "e_"), (r"^F_", "E_"), (r"^f", "e"),
    *((r"(?i)flux", error) for error in
      ("FLUXERR", "fluxerr", "flux_err", "FLUX_ERR", "fluxErr", "eflux", "err", "ERR")),
    *((r"(?i)mag", error) for error in ("MAGERR", "magerr", "mag_err", "MAG_ERR", "magErr")),
    (r"_tot", "_etot"),
    *((r"$", error) for error in ("_err", "_ERR", "err", "Err", "_error")),
    *((r"^", error) for error in ("e", "e_", "err_", "E_")),
)  # fmt: skip


def near_columns(
    columns: Sequence[str], names: Sequence[str], taken: Sequence[str]
) -> dict[str, str]:
    """Column outside ``taken`` -> the one of ``columns``, not there, that is most like it."""
    found: dict[str, tuple[float, str]] = {}
    for column in columns:
        if like := near_column(column, names, taken):
            ratio = SequenceMatcher(None, column.lower(), like.lower()).ratio()
            found[like] = max(found.get(like, (0.0, "")), (ratio, column))
    return {like: column for like, (_, column) in found.items()}


def suggested_settings(names: Sequence[str], bands: Sequence[str]) -> str:
    """Settings by which most ``bands`` have a column and an error; "" if fewer than two have."""
    there = set(names)
    folded = {band.lower() for band in bands}
    counts: Counter[tuple[str, str]] = Counter()
    for name in names:
        for match in re.finditer(r"[A-Za-z0-9]+", name):
            if match[0].lower() not in folded:
                continue
            before, after = name[: match.start()], name[match.end() :]
            pattern = f"{before}{{band}}{after}"
            for find, instead in _ERRORS:
                error = re.sub(find, instead, pattern, count=1)
                if error != pattern and error.replace("{band}", match[0]) in there:
                    counts[pattern, error] += 1
                    break
    if not counts:
        return ""
    (value, error), count = counts.most_common(1)[0]
    kind = "mag" if "mag" in value.lower() else "flux"
    settings = f"data.columns.{kind}='{value}' data.columns.{kind}_err='{error}'"
    return settings if count > 1 else ""


def of_other_instruments(columns: Mapping[str, str], filters: Mapping[str, str]) -> dict[str, str]:
    """Band -> its column, of ``columns``, whose name is of another instrument than its filter.

    ``filters``: band -> name of its filter; of those that name no instrument nothing is known.
    """
    return {
        band: column
        for band, column in columns.items()
        if (said := _instruments(column))
        and (own := _instruments(filters[band]))
        and not said & own
    }


def in_other_letters(columns: Mapping[str, str], patterns: Mapping[str, object]) -> dict[str, str]:
    """Band -> its column, where that has Y and the band is y: these may be two filters.

    Columns that the user has named by the band, in ``patterns``, are meant.
    """
    return {
        band: column
        for band, column in columns.items()
        if band in OTHER_LETTERS
        and not {f"{kind}_{band}" for kind in ("flux", "mag")} & patterns.keys()
        and band not in re.split(r"[^A-Za-z0-9]+", column)
        and band.swapcase() in re.split(r"[^A-Za-z0-9]+", column)
    }


def _instruments(name: str) -> set[str]:
    words = re.split(r"[^a-z0-9]+", name.lower())
    return {INSTRUMENTS[word] for word in words if word in INSTRUMENTS}


def shortened(names: Sequence[str], most: int = 60) -> str:
    """A list of columns, of which a survey has thousands, the first of them."""
    more = f" ... and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
