"""Yields: the mass of each element that supernovae, AGB stars and the r-process eject.

The numbers are in yields.ecsv, whose column descriptions name their sources. The core-collapse
column mixes theory with plateaus of metal-poor stars (in LTE, so that Al and Cr are low): its
column ``ccsn_basis`` says which. Yields do not depend on metallicity but those of AGB stars.
"""

import difflib
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from astropy.table import Table
from torch import Tensor

TABLE = Path(__file__).with_name("yields.ecsv")
AGB_METALLICITY = {  # column: [Fe/H] of the stars at birth
    "agb_m215": -2.15,
    "agb_m115": -1.15,
    "agb_m067": -0.67,
    "agb_m037": -0.37,
    "agb_m000": 0.0,
}
HYDROGEN = 0.75  # mass fraction of the gas of a metal-poor galaxy; primordial: .753


class Yields(NamedTuple):
    """Of k elements; masses per mass of stars formed, but ``snia`` in Msun per event."""

    elements: tuple[str, ...]
    solar: Tensor  # (k,) solar mass relative to hydrogen
    ccsn: Tensor  # (k,) core-collapse supernovae
    snia: Tensor  # (k,) supernovae Ia
    agb: Tensor  # (k, metallicities of AGB_METALLICITY)
    r_process: Tensor  # (k,) that makes [Eu/Mg] = 0

    def to(self, like: Tensor) -> "Yields":
        """The same numbers in the precision and on the device of ``like``."""
        return Yields(self.elements, *(x.to(like) for x in self[1:]))  # type: ignore[arg-type]


@cache
def table() -> Table:
    """The table of yields; its columns' descriptions are their sources."""
    return Table.read(TABLE, format="ascii.ecsv")


def known_elements() -> tuple[str, ...]:
    """Symbols of the elements that have yields."""
    return tuple(str(x) for x in table()["element"])


@cache
def yields(elements: tuple[str, ...]) -> Yields:
    """Yields of the elements (symbols), float64; a ``ValueError`` of unknown ones."""
    known = known_elements()
    for element in elements:
        if element not in known:
            near = difflib.get_close_matches(str(element).capitalize(), known, n=3, cutoff=0.4)
            hint = (
                f"; did you mean {' or '.join(near)}?" if near else f"; known: {', '.join(known)}"
            )
            raise ValueError(f"there are no yields of the element {element!r}{hint}")
    rows = table()[[known.index(x) for x in elements]]

    def column(name: str) -> Tensor:
        return torch.tensor(rows[name].tolist(), dtype=torch.float64)

    return Yields(
        elements=tuple(elements),
        solar=column("weight") / 1.008 * 10 ** (column("solar") - 12),
        ccsn=column("ccsn"),
        snia=column("snia"),
        agb=torch.stack([column(name) for name in AGB_METALLICITY], -1),
        r_process=column("r_process"),
    )
