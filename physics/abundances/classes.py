"""Classes of stars by their abundances, and their definitions.

Each takes [X/Fe] by element, dex, tensors of one shape, and gives where the star is of the class.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor


class StarClass(NamedTuple):
    """Name, the elements without which it cannot be told, its meaning, and the test."""

    name: str
    needs: tuple[str, ...]
    meaning: str
    holds: Callable[[Mapping[str, Tensor]], Tensor]


ALPHA = ("Mg", "Si", "Ca", "Ti")


def _mean_alpha(x_fe: Mapping[str, Tensor]) -> Tensor:
    return (x_fe["Mg"] + x_fe["Si"] + x_fe["Ca"] + x_fe["Ti"]) / len(ALPHA)


def _second_generation(x_fe: Mapping[str, Tensor]) -> Tensor:
    """Sodium above, oxygen below the field's (Carretta et al. 2009, A&A 505, 117)."""
    return (x_fe["Na"] > 0.3) & (x_fe["O"] - x_fe["Na"] < 0.1)


CLASSES = (
    StarClass(
        "carbon_enhanced", ("C",),
        "[C/Fe] > .7 (Aoki et al. 2007), as measured: no correction for the evolution of giants",
        lambda x: x["C"] > 0.7,
    ),
    StarClass(
        "r_1", ("Eu", "Ba"), ".3 <= [Eu/Fe] <= 1 and [Ba/Eu] < 0 (Beers & Christlieb 2005)",
        lambda x: (x["Eu"] >= 0.3) & (x["Eu"] <= 1) & (x["Ba"] < x["Eu"]),
    ),
    StarClass(
        "r_2", ("Eu", "Ba"), "[Eu/Fe] > 1 and [Ba/Eu] < 0 (Beers & Christlieb 2005)",
        lambda x: (x["Eu"] > 1) & (x["Ba"] < x["Eu"]),
    ),
    StarClass(
        "s_process", ("Eu", "Ba"), "[Ba/Fe] > 1 and [Ba/Eu] > .5 (Beers & Christlieb 2005)",
        lambda x: (x["Ba"] > 1) & (x["Ba"] - x["Eu"] > 0.5),
    ),
    StarClass(
        "alpha_poor", ALPHA, "mean of [Mg, Si, Ca, Ti/Fe] below .1", lambda x: _mean_alpha(x) < 0.1
    ),
    StarClass(
        "second_generation", ("O", "Na"),
        "[Na/Fe] > .3 and [O/Na] < .1: a later generation of a globular cluster (Carretta et al. "
        "2009)", _second_generation,
    ),
)  # fmt: skip
