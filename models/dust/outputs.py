"""The columns that the dust map predicts for places and stars."""

import math

from torch import Tensor

from orrery.models.base import Batch, Output
from orrery.models.dust.stars import Stars
from orrery.physics.densities import log_student
from orrery.physics.dust.extinction import is_poor, mean_and_variance, voxel_squares

FLAGS = {
    "nearer": "nearer than the map: dust has one density in all directions, if any",
    "beyond": "beyond the map, extinction to its edge",
    "empty_pixel": "no training star in this pixel",
    "poor_distance": "parallax below 3 errors: the distance rests on a prior, and is uncertain",
}
BIT = {name: 1 << i for i, name in enumerate(FLAGS)}
OUTPUTS = {
    "extinction": Output("", "posterior mean, E of Zhang, Green & Rix (2023); A_V = 2.8 E"),
    "extinction_std": Output(
        "", "posterior standard deviation of extinction, of the mean of voxels"
    ),
    "extinction_std_distance": Output("", "standard deviation that the distance error adds"),
    "extinction_std_within": Output(
        "", "scatter of stars about the mean of their voxels, of structure within those"
    ),
    "extinction_samples": Output(
        "", "posterior samples, joint for all sightlines", axes=("sample",)
    ),
    "flags": Output("", "bits", bits=FLAGS),
    "log_density": Output("", "log density of the catalogue's extinction, if there is one"),
    "pull": Output("", "catalogue's extinction minus the map's, over their total error"),
    "extinction_true": Output("", "the catalogue's extinction, E"),
}


def predicted_rows(
    rho: Tensor,
    edges: Tensor,
    n_stars: Tensor,
    stars: Stars,
    batch: Batch,
    substructure: float,
) -> dict[str, Tensor]:
    """`OUTPUTS` but ``log_density``, (stars,) each, and (stars, samples) of the samples.

    ``rho`` (samples, pixels, shells), 1/pc, from the Sun to the edge of the map, and ``edges``
    (shells + 1,), pc; the first shell is inside the inner boundary. ``n_stars`` (pixels,), of the
    training set; ``substructure``: see `models.dust.Dust`.
    """
    along = stars.along(rho)
    mean, variance = mean_and_variance(along, stars.paths, edges.diff().to(rho))
    within = substructure**2 * voxel_squares(along, stars.paths).mean(0)
    distance = 1e3 / batch["parallax"].clamp_min(1e-6)  # a star of negative parallax is far away
    flags = (distance < edges[1]).short() + 2 * (distance > edges[-1]).short()
    columns = {
        "extinction": mean.mean(0),
        "extinction_std": mean.std(0, correction=0),
        "extinction_std_distance": variance.mean(0).sqrt(),
        "extinction_std_within": within.sqrt(),
        "extinction_samples": mean.T.contiguous(),
        "flags": flags
        + 4 * (n_stars[stars.pixel] == 0).short()
        + 8 * is_poor(batch["parallax"], batch["parallax_error"]).short(),
    }
    if "extinction" in batch:
        total = columns["extinction_std"].square() + variance.mean(0) + within
        total = total + batch["extinction_error"].square()
        columns["extinction_true"] = batch["extinction"]
        columns["pull"] = (batch["extinction"] - columns["extinction"]) / total.sqrt()
    return columns


def log_density(
    rho: Tensor,
    widths: Tensor,
    stars: Stars,
    batch: Batch,
    dof: float | None,
    substructure: float,
) -> Tensor:
    """Of the measured extinctions, (stars,); ``dof``: see `physics.densities.log_student`."""
    along = stars.along(rho)
    mean, variance = mean_and_variance(along, stars.paths, widths)
    variance = variance + substructure**2 * voxel_squares(along, stars.paths)
    variance = variance + batch["extinction_error"].square()
    log_p = log_student(batch["extinction"], mean, variance, dof)
    return log_p.logsumexp(0) - math.log(len(rho))
