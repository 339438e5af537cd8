"""Columns that `abundances` predicts."""

from collections.abc import Sequence

from orrery.models.base import Output
from orrery.physics.abundances.classes import CLASSES, StarClass

BITS = {
    "nothing_measured": "no element of the model is measured: the row says what stars are like",
    "one_element": "one element is measured: the others follow from its trend alone",
    "outside": "[Fe/H] lies outside that of 99.9% of the training stars",
}


def classes_of(elements: Sequence[str]) -> list[StarClass]:
    """The classes that these elements can tell, with iron."""
    return [c for c in CLASSES if {"Fe", *c.needs} <= set(elements)]


def outputs_of(elements: Sequence[str]) -> dict[str, Output]:
    columns = {
        "p_value": Output(
            "", "probability that a star of the training's density is as unusual: twice the "
            "smaller of p_density and p_elements", unusual="low",
        ),
        "p_density": Output(
            "", "share of stars drawn from the model, with the elements and errors of this one, "
            "whose measurements are as unlikely; limits are left out",
        ),
        "p_elements": Output(
            "", "the smallest p-value of an element, corrected for their number (Sidak)"
        ),
        "most_unusual": Output(
            "", "element of the smallest p-value, given the others", labels=tuple(elements)
        ),
        "log_density": Output("", "ln of the density of all measurements and limits, nat"),
        "n_measured": Output("", "elements of the model that are measured", dtype="int32"),
        "n_limits": Output("", "elements of the model with a limit", dtype="int32"),
        **{f"p_{c.name}": Output("", f"probability: {c.meaning}") for c in classes_of(elements)},
    }  # fmt: skip
    for element in elements:
        x, name = element.lower(), f"[{element}/H]"
        columns |= {
            f"{x}_h_expected": Output(
                "dex", f"mean of {name}, given the star's other elements and {element}'s own limit"
            ),
            f"{x}_h_std": Output("dex", f"standard deviation of {name}"),
            f"{x}_h_low95": Output("dex", f"2.5% quantile of {name}"),
            f"{x}_h_low68": Output("dex", f"16% quantile of {name}"),
            f"{x}_h_high68": Output("dex", f"84% quantile of {name}"),
            f"{x}_h_high95": Output("dex", f"97.5% quantile of {name}"),
            f"{x}_p_value": Output(
                "", f"probability of a measurement (two-sided) or limit of {element} as far from "
                "what the other elements say; not corrected for the number of elements",
            ),
        }  # fmt: skip
    columns["flags"] = Output("", "0: none", bits=BITS)
    return columns
