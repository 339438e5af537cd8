"""The Sun's composition by several authors, and what changes with the choice.

[X/H] = log eps(X) - log eps(X) of the Sun, so that a table's values hang on the solar scale that
its authors took; between scales they differ by a constant per element. solar.ecsv holds log eps of
each scale, and its papers.
"""

import difflib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from astropy.table import Table

from orrery.physics.abundances.species import read_species

TABLE = Path(__file__).with_name("solar.ecsv")
SCALES = ("asplund2009", "asplund2021", "lodders2009", "grevesse1998", "anders1989")
# Rounding: log eps and [X/H] are printed to .01, and so is their difference
_TOLERANCE = 0.0151
_LEAST_SHARE = 0.9  # of a table's elements that have to agree with a scale


@cache
def _scales() -> dict[str, dict[str, float]]:
    """Scale -> element -> log eps; elements that a scale lacks are left out."""
    table = Table.read(TABLE, format="ascii.ecsv")
    elements = [str(element) for element in table["element"]]
    return {
        scale: {e: float(v) for e, v in zip(elements, table[scale], strict=True) if np.isfinite(v)}
        for scale in SCALES
    }


def known_scale(scale: str) -> str:
    """The scale by its name; ``ValueError`` with near matches for an unknown one."""
    if scale in SCALES:
        return scale
    near = difflib.get_close_matches(scale.lower(), SCALES, 2, 0.5)
    hint = f"; near: {', '.join(near)}" if near else ""
    raise ValueError(f"'{scale}' is no solar scale{hint}; known are {', '.join(SCALES)}")


def solar(element: str, scale: str) -> float:
    """log eps = 12 + log10 N(X)/N(H) of the Sun, dex.

    Raises ``ValueError`` with near matches for an unknown element or scale, and where the scale
    lacks the element.
    """
    values, symbol = _scales()[known_scale(scale)], read_species(element).element
    if symbol not in values:
        others = [s for s in SCALES if symbol in _scales()[s]]
        have = f"; {', '.join(others)} have it" if others else ", nor has another"
        raise ValueError(f"solar scale {scale} has no value for {symbol}{have}")
    return values[symbol]


def offset(element: str, from_scale: str, to_scale: str, relative_to: str = "H") -> float:
    """What is added to [X/H] on one solar scale to have it on another, dex.

    ``relative_to``: "Fe" for [X/Fe], which iron's own offset changes too.
    """
    if relative_to not in ("H", "Fe"):
        raise ValueError(f"relative_to is '{relative_to}'; expected 'H' or 'Fe'")
    change = solar(element, from_scale) - solar(element, to_scale)
    return change - offset("Fe", from_scale, to_scale) if relative_to == "Fe" else change


def identify_scale(elements: Sequence[str], log_eps: np.ndarray, x_h: np.ndarray) -> str | None:
    """The solar scale of a table that has both log eps and [X/H], (rows,); None if none fits.

    The median of log eps - [X/H] per element is compared with each scale. A scale fits if nine of
    ten elements agree within rounding; of several the best, unless two are equally good.
    """
    symbols = np.array([read_species(element).element for element in elements])
    difference = np.asarray(log_eps, float) - np.asarray(x_h, float)
    known = np.isfinite(difference)
    medians = {
        str(symbol): float(np.median(difference[known & (symbols == symbol)]))
        for symbol in np.unique(symbols[known])
    }
    fits: list[tuple[float, float, str]] = []
    for scale, values in _scales().items():
        apart = np.array([abs(medians[e] - values[e]) for e in medians if e in values])
        if len(apart) and np.mean(apart < _TOLERANCE) >= _LEAST_SHARE:
            fits.append((-float(np.mean(apart < _TOLERANCE)), float(apart.mean()), scale))
    fits.sort()
    if not fits or (len(fits) > 1 and np.allclose(fits[0][:2], fits[1][:2], atol=1e-6)):
        return None
    return fits[0][2]
