"""Columns of stars with abundances, by role."""

from typing import Literal

import numpy as np

from orrery.datamodules.columns import Column

CAUSES = {"diron": "[Fe/H]", "dteff": "Teff", "dlogg": "log g", "dvt": "v_t", "dmh": "[M/H]"}
VALUE = (-9.0, 9.0)  # dex, of [X/H] and [X/Fe]
ABOVE_ZERO = "above 0 where the abundance is measured; a limit's may be blank"


def _dex(role: str, meaning: str, low: float = -np.inf, high: float = np.inf) -> Column:
    ends: Literal["[]", "()"] = "()" if (low, high) == VALUE else "[]"  # 9 and -9 are sentinels
    return Column(
        role, None, meaning, low, high, ends, missing=np.nan, blank_only=True, training="chosen"
    )


def _error(of: str, quantity: str) -> Column:
    return Column(
        f"{of}_error", None, f"error of {quantity}, dex", training="chosen", special=ABOVE_ZERO
    )


DECLARED = {
    "{element}_h": _dex("{element}_h", "[X/H], dex, or its limit: fe_h, mg_h...", *VALUE),
    "{element}_h_error": _error("{element}_h", "[X/H]"),
    "{element}_fe": _dex("{element}_fe", "[X/Fe], dex, or its limit: mg_fe...", *VALUE),
    "{element}_fe_error": _error("{element}_fe", "[X/Fe]"),
    "{element}_logeps": _dex(
        "{element}_logeps", "log eps(X) = 12 + log N(X)/N(H), where there is no ratio", -9, 15
    ),
    "{element}_logeps_error": _error("{element}_logeps", "log eps(X)"),
    "{element}_limit": _dex(
        "{element}_limit", "1 where the value is an upper limit, -1 a lower one; 0 or blank: "
        "measured", -1, 1,
    ),
    "{element}_significance": _dex(
        "{element}_significance", "of the limit, in sigma of the line; or data.limit_significance",
        0, 1000,
    ),
    **{
        f"{{element}}_{cause}": _dex(
            f"{{element}}_{cause}", f"change of [X/H] for one standard deviation of {name}", -9, 9
        )
        for cause, name in CAUSES.items()
    },
    "type": Column(
        "type", None, "type of the star's structure: dwarf, stream, cluster, halo", kind="text",
        training="chosen", prediction="chosen",
    ),
    "true_{element}_h": Column(
        "true_{element}_h", None, "true [X/H], to compare with", *VALUE, truth=True,
        training="chosen", prediction="chosen",
    ),
}  # fmt: skip
