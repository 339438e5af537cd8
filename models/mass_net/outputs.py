"""Columns of a predicted row with their meaning."""

from orrery.models.base import Output
from orrery.models.mass_net.diagram import NEAR_TEXT

# how many pairs without noise, of two equal stars of which one is known, the training pairs about a
# place must be worth for a mass there: their error of ln m is .73 over the root, here .3
MIN_INFORMATION = 6.0
LARGE_ERROR = 0.3  # mag, of M_G
LARGE_MISFIT = 0.15  # of ln m
FLAGS = {
    "extrapolated": f"training pairs {NEAR_TEXT} of a star tell ln m to 0.3 at best",
    "no_mass": "colour or magnitude is missing or impossible",
    "poor_magnitude": f"the error of an absolute magnitude is above {LARGE_ERROR} mag",
    "no_motion": "no relative motion is known of the pair, or its parallax is below five errors",
    "contradicted": f"training pairs {NEAR_TEXT}, or thrice that, ask for another mass, by "
    f"{LARGE_MISFIT:.0%} or more",
}
BIT = {name: 1 << i for i, name in enumerate(FLAGS)}


def _star(suffix: str, of: str) -> dict[str, Output]:
    return {
        f"mass{suffix}": Output("Msun", f"mean mass at the place of the star in the diagram{of}"),
        f"mass_q16{suffix}": Output("Msun", "its 16% quantile, as far as pairs tell it"),
        f"mass_q84{suffix}": Output("Msun", "its 84% quantile, as far as pairs tell it"),
        f"lnm_std{suffix}": Output("", f"standard deviation of ln mass{of}"),
        f"n_near{suffix}": Output("", f"training stars {NEAR_TEXT}"),
        f"ood{suffix}": Output(
            "", "fraction of the training stars that lie in denser parts of the diagram",
            unusual="high",
        ),
    }  # fmt: skip


OUTPUTS = {
    **_star("", ", of pairs that of star 1"),
    "flags": Output("", "bits", bits=FLAGS),
    **_star("_2", " of star 2 of a pair"),
    "u": Output("", "relative velocity of a pair, v sqrt(s / G M): below sqrt 2 if it is bound"),
    "p_outlier": Output("", "probability that the pair's motion is not that of its orbit"),
    "nll": Output("", "-ln p of the pair's relative motion"),
    "mass_true": Output("Msun", "mass of the catalogue, of pairs that of star 1"),
    "mass_true_2": Output("Msun", "mass of the catalogue, of star 2"),
}
