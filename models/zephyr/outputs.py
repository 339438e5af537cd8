"""Columns of a predicted row with their meaning, and the point estimates that summarise p(z)."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from orrery.models.base import Constant, Output
from orrery.models.layers import grid
from orrery.models.zephyr.photometry import BIT, FLAGS
from orrery.physics.galaxies.redshift_scores import OUTLIER

SCORES = ("z_true", "pit", "pit_raw", "tarp", "crps", "nll", "cde_loss")  # of known redshifts
QUANTILES = {"z_q025": 0.025, "z_q16": 0.16, "z_median": 0.5, "z_q84": 0.84, "z_q975": 0.975}


def outputs(sources: Sequence[str], samples: bool) -> dict[str, Output]:
    """The columns in their order, at the locations where qp looks for them in an HDF5 file."""
    descriptions = {
        "z_mode": "highest peak of p(z), refined off the grid",
        "z_mean": "mean of p(z)",
        "z_std": "standard deviation of p(z)",
        **{name: f"{100 * q:g}% quantile of p(z)" for name, q in QUANTILES.items()},
        "mag_ref": "asinh magnitude in the reference band, AB",
        **{f"responsibility_{s}": f"weight of source {s} in p(z), 0 to 1" for s in sources},
        "ood": "fraction of the training objects that are less unusual than this one",
        "flags": "bits",
        "pz": "p(z) in the cells of the grid z_grid",
        "z_samples": "independent draws from p(z)",
        "z_true": "redshift of the catalogue",
        "pit": "cumulative p(z) at the true redshift",
        "pit_raw": "the same before recalibration",
        "tarp": "p(z) nearer than the true redshift to a random one, drawn from p(z)",
        "crps": "continuous ranked probability score",
        "nll": "-ln of 0.999 p(z_true) + 0.001 uniform",
        "cde_loss": "integral of p^2 - 2 p(z_true)",
    }
    columns = {name: Output("", text, f"ancil/{name}") for name, text in descriptions.items()}
    columns["mag_ref"] = columns["mag_ref"]._replace(unit="mag")
    columns["ood"] = columns["ood"]._replace(unusual="high")
    columns["flags"] = columns["flags"]._replace(bits=FLAGS)
    columns["pz"] = columns["pz"]._replace(location="data/yvals", axes=("z_grid",))
    columns["z_samples"] = columns["z_samples"]._replace(axes=("draw",))
    if not samples:
        del columns["z_samples"]
    return columns


def constants(edges: Tensor) -> dict[str, Constant]:
    """The grid of ``pz``, and what else qp needs to read the HDF5 file: ``qp.read(path)``."""
    z = grid.centres(edges).cpu().numpy()[None]
    return {
        "z_grid": Constant(z, "meta/xvals"),
        "pdf_name": Constant(np.array([b"interp"]), "meta/pdf_name"),
        "pdf_version": Constant(np.array([0]), "meta/pdf_version"),
    }


def edges_about(z_grid: Sequence[float]) -> Tensor:
    """Edges of the cells whose centres are the user's grid: first, last and step."""
    if len(z_grid) != 3 or not (z_grid[2] > 0 and 0 <= z_grid[0] < z_grid[1]):
        raise ValueError(
            f"model.z_grid is {list(z_grid)}; expected the first, the last and the step of "
            f"redshifts, such as [0,3,0.01]"
        )
    first, last, step = z_grid
    n = round((last - first) / step) + 1
    return first + step * (torch.arange(n + 1) - 0.5)


def summaries(cdf: Tensor, edges: Tensor) -> dict[str, Tensor]:
    """Mode, moments and quantiles, each (batch,), of p(z) whose cumulative values are ``cdf``."""
    mean, std = grid.moments(cdf, edges)
    levels = torch.tensor([list(QUANTILES.values())], device=cdf.device)
    quantiles = grid.quantile(cdf, edges, levels)
    return {
        "z_mode": grid.mode(cdf, edges),
        "z_mean": mean,
        "z_std": std,
        **dict(zip(QUANTILES, quantiles.unbind(1), strict=True)),
    }


def wide_flag(summary: Mapping[str, Tensor]) -> Tensor:
    """The bit of a central 68% wider than 0.3 (1 + z), twice the limit of an outlier; (batch,)."""
    width = summary["z_q84"] - summary["z_q16"]
    return BIT["wide"] * (width > 2 * OUTLIER * (1 + summary["z_median"])).short()
