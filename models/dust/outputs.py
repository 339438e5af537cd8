"""What the dust map says of places and stars: a row for each."""

import math

from torch import Tensor

from orrery.models.base import Batch, Output
from orrery.models.dust.field import Stars
from orrery.physics.densities import log_student
from orrery.physics.dust.extinction import mean_and_variance

OUTPUTS = {
    "extinction": Output("", "mean, E of Zhang, Green & Rix (2023); A_V = 2.8 E"),
    "extinction_std": Output("", "its posterior standard deviation"),
    "extinction_std_distance": Output("", "what the star's distance error adds"),
    "extinction_samples": Output("", "posterior samples, which keep sightlines together"),
    "flags": Output(
        "",
        "1 nearer than the map, 2 beyond it: extinction to its edge, 4 no star behind it",
    ),
    "log_density": Output("", "of the catalogue's extinction, if there is one"),
    "pull": Output("", "of it: deviation over all errors together"),
    "extinction_true": Output("", "of the catalogue, E"),
}


def rows(
    rho: Tensor, boundaries: Tensor, n_stars: Tensor, stars: Stars, batch: Batch
) -> dict[str, Tensor]:
    """`OUTPUTS`, but ``log_density``; rho (samples, pixels, shells), n_stars (pixels,)."""
    mean, variance = mean_and_variance(rho[:, stars.pixel], stars.paths, boundaries.diff().to(rho))
    distance = 1e3 / batch["parallax"].clamp_min(1e-6)  # a negative one is of a star far away
    flags = (distance < boundaries[0]).short() + 2 * (distance > boundaries[-1]).short()
    found = {
        "extinction": mean.mean(0),
        "extinction_std": mean.std(0, correction=0),
        "extinction_std_distance": variance.mean(0).sqrt(),
        "extinction_samples": mean.T.contiguous(),
        "flags": flags + 4 * (n_stars[stars.pixel] == 0).short(),
    }
    if "extinction" in batch:
        total = found["extinction_std"].square() + variance.mean(0)
        total = total + batch["extinction_error"].square()
        found["extinction_true"] = batch["extinction"]
        found["pull"] = (batch["extinction"] - found["extinction"]) / total.sqrt()
    return found


def log_density(
    rho: Tensor, widths: Tensor, stars: Stars, batch: Batch, dof: float | None
) -> Tensor:
    """Of the measured extinctions, (stars,); ``dof``: see `physics.densities.log_student`."""
    along = rho[:, stars.pixel]
    mean, variance = mean_and_variance(along, stars.paths, widths)
    variance = variance + batch["extinction_error"].square()
    log_p = log_student(batch["extinction"], mean, variance, dof)
    return log_p.logsumexp(0) - math.log(len(along))
