"""The network of gyro for other programs: the likelihood of the ages of a star."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from orrery.models.base import Exported, Input
from orrery.models.gyro.ages import (
    COLOUR_GRID,
    COLOUR_WIDTHS,
    LOG_PERIOD_GRID,
    TYPICAL_ERRORS,
    interpolation,
)

if TYPE_CHECKING:
    from orrery.models.gyro import Gyro


class AgeLikelihood(nn.Module):
    """ln p(log10 P | age, colour) of stars with errors no larger than those of the clusters.

    `DensityTable` holds a table for each size of the errors; here is that of the smallest ones,
    with the scatter of field stars' colours.
    """

    def __init__(self, model: "Gyro") -> None:
        super().__init__()
        self.contamination = model.contamination
        scatter = torch.tensor([model.field_scatter**2])
        low, fraction = interpolation(scatter, COLOUR_WIDTHS.square())
        widths = torch.cat([low, low + 1])
        tables = model.table.convolved(widths, torch.zeros_like(widths))[widths, 0].float()
        self.values: Tensor
        self.register_buffer("values", torch.lerp(tables[0], tables[1], fraction[0]))

    def forward(
        self, colour: Tensor, log_period: Tensor, mem_prob: Tensor, overluminosity: Tensor
    ) -> tuple[Tensor, ...]:
        """Each (rows,); returns (rows, ages)."""
        (i, x), (j, y) = uniform(colour, COLOUR_GRID), uniform(log_period, LOG_PERIOD_GRID)
        values, n = self.values.flatten(0, 1), len(LOG_PERIOD_GRID)
        at = i * n + j
        low = torch.lerp(values[at], values[at + 1], y[:, None])
        high = torch.lerp(values[at + n], values[at + n + 1], y[:, None])
        batch = {
            "log_period": log_period, "mem_prob": mem_prob, "overluminosity": overluminosity
        }  # fmt: skip
        return (self.contamination.added(torch.lerp(low, high, x[:, None]), batch),)


def uniform(x: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """`ages.interpolation` among points at equal steps, without a search."""
    place = ((x - points[0]) / (points[1] - points[0])).clamp(0, len(points) - 1)
    low = place.long().clamp(0, len(points) - 2)
    return low, place - low


def exported(model: "Gyro") -> Exported:
    colours, periods = COLOUR_GRID.tolist(), LOG_PERIOD_GRID.tolist()
    ones = torch.ones(3)
    inputs = {
        "colour": Input(
            "mag",
            "(BP - RP)_0, dereddened",
            torch.tensor([0.82, 1.2, 2.4]),
            colours[0],
            colours[-1],
        ),
        "log_period": Input(
            "dex(d)",
            "log10 of the rotation period",
            torch.tensor([25.4, 9.0, 1.2]).log10(),
            periods[0],
            periods[-1],
        ),
        "mem_prob": Input(
            "",
            "membership in its cluster; of a field star 1",
            torch.tensor([1.0, 0.9, 0.5]),
            0.0,
            1.0,
        ),
        "overluminosity": Input(
            "mag", "above the sequence of dwarfs; 0 where it is not known", 0.1 * ones
        ),
    }
    outputs = {"log_likelihood": model.columns["log_likelihood"]._replace(axes=("log10_age_myr",))}
    return Exported(
        AgeLikelihood(model),
        inputs,
        outputs,
        {"log10_age_myr": model.table.ages},
        [
            *model.domain_of_validity(),
            f"errors of colour and log10 P are at most {TYPICAL_ERRORS['colour']:g} mag and "
            f"{TYPICAL_ERRORS['log_period']:g} dex, and colours have the scatter of field stars, "
            f"{model.field_scatter:g} mag; Orrery takes larger ones into account",
            "the posterior of the age is the likelihood times a prior, normalised over the grid; "
            "Orrery's prior ends at the lifetime of dwarfs of the colour",
        ],
    )
