"""Columns of interstellar extinction in catalogues of stars, by their names."""

import re
from collections.abc import Sequence

_NAMES = re.compile(
    r"(\w+_)?(e_?\(?b_?-?v\)?|ebpminrp(_gspphot)?|e_?\(?bp_?-?rp\)?|a_?[gv0]|azero(_gspphot)?"
    r"|ag_gspphot|av50)(_sfd|_mean|_med(ian)?)?",
    re.IGNORECASE,
)


def extinction_columns(names: Sequence[str]) -> list[str]:
    """Those of ``names`` that are an extinction or colour excess: EBV, ag_gspphot, A_V, AV50."""
    return [name for name in names if _NAMES.fullmatch(name)]
