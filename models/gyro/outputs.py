"""Columns of a predicted row, and the flags of a star."""

from torch import Tensor

from orrery.models.base import Constant, Output
from orrery.models.gyro.ages import MAX_ERRORS
from orrery.models.layers import grid
from orrery.physics.rotation.gyrochrones import EVOLVED_LOGG, EVOLVED_MAG

QUANTILES = {"age_q025": 0.025, "age_q16": 0.16, "age_q50": 0.5, "age_q84": 0.84, "age_q975": 0.975}
FLAGS = {
    "no_age": "no period or colour",
    "extrapolated_colour": "outside the colours of training clusters of similar age",
    "extrapolated_age": "median outside the ages of the training clusters",
    "extrapolated_error": f"error above {MAX_ERRORS['colour']:g} mag or "
    f"{MAX_ERRORS['log_period']:g} dex of the period, taken as that",
    "fast_rotator": "period below half of the slow sequence's at this colour and age",
    "evolved": f"evolved or pre-main-sequence star: {EVOLVED_MAG:g} mag above the dwarfs or "
    f"log g below {EVOLVED_LOGG:g}",
    "misfit": "period that no age explains",
}
OF_PERIODS = ("age_mean", "log_evidence", "period_rank", "period_draws", "log_likelihood")
N_LEVELS = 1001  # of the densities of training stars, in equal steps of their rank
BIT = {name: 1 << i for i, name in enumerate(FLAGS)}


def outputs(edges: Tensor) -> dict[str, Output | Constant]:
    """The columns in their order; ``edges``: of the cells of log10 age, Myr."""
    return {
        **{name: Output("Gyr", f"{100 * q:g}% quantile of age") for name, q in QUANTILES.items()},
        "age_mean": Output("Gyr", "mean of age"),
        "log_evidence": Output("", "ln p(log10 P | colour), per dex, with ages by their prior"),
        "period_rank": Output(
            "",
            "fraction of the training stars whose periods are less probable at their colours",
            unusual="low",
        ),
        "flags": Output("", "bits", bits=FLAGS),
        "period_draws": Output(
            "d", "periods expected at this colour, age by its posterior", axes=("draw",)
        ),
        "log_likelihood": Output(
            "", "ln p(log10 P | age, colour) on the grid log10_age_myr", axes=("log10_age_myr",)
        ),
        "age_true": Output("Gyr", "age of the catalogue"),
        "pit": Output("", "cumulative posterior at age_true, NaN where the prior excludes it"),
        "nll": Output("", "-ln p(log10 P) at age_true, per dex"),
        "log10_age_myr": Constant(grid.centres(edges).cpu().numpy(), "log10_age_myr"),
    }
