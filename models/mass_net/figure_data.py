"""Arrays that the figures of `mass_net` draw."""

from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import torch

from orrery.models.base import Batch, Data
from orrery.models.mass_net.outputs import BIT
from orrery.physics.wide_binaries import motion, sequences

if TYPE_CHECKING:
    from orrery.models.mass_net import MassNet


@runtime_checkable
class HasTrueAlpha(Protocol):
    """Data that know the exponent of eccentricity of their orbits, as a simulation does."""

    def true_alpha(self, log_separation: np.ndarray) -> np.ndarray | None:
        """At log10 of separations, AU, (n,); None of a catalogue."""


MAX_POINTS = 20_000
BP_RP_RANGE, ABS_G_RANGE = (-0.6, 4.8), (-1.5, 16.0)
U_EDGES = np.linspace(0, 3, 61)
NOISE_OF_PAIRS = 0.1  # of u: pairs of more noise are not in its histogram


@torch.no_grad()
def figure_data(model: "MassNet", pairs: Batch, data: Data) -> dict[str, dict[str, np.ndarray]]:
    """``diagram``, ``mass_relation``, and of pairs ``motion`` and ``separation``."""
    figures = {"diagram": diagram_arrays(model), "mass_relation": relation_arrays(model)}
    if pairs:
        bp_rp, abs_g = pairs["bp_rp"].flatten(), pairs["abs_g"].flatten()
        chosen = slice(0, MAX_POINTS)
        figures["diagram"] |= {
            "bp_rp": bp_rp[chosen].numpy(), "abs_g": abs_g[chosen].numpy(),
            "mass": model.mean_log_mass(bp_rp[chosen], abs_g[chosen]).exp().numpy(),
        }  # fmt: skip
        figures["motion"] = motion_arrays(model, pairs)
        figures["separation"] = separation_arrays(model, pairs, data)
    return figures


def diagram_arrays(model: "MassNet") -> dict[str, np.ndarray]:
    """Mass over the diagram, (y, x), NaN where it is extrapolated."""
    x, y = np.linspace(*BP_RP_RANGE, 220), np.linspace(*ABS_G_RANGE, 280)
    xx, yy = np.meshgrid(x, y)
    answer = model.mass(xx, yy)
    known = (answer["flags"] & BIT["extrapolated"]) == 0
    return {
        "x": x, "y": y, "mass_map": np.where(known, answer["mass"], np.nan),
        "std_map": np.where(known, answer["lnm_std"], np.nan),
    }  # fmt: skip


def relation_arrays(model: "MassNet") -> dict[str, np.ndarray]:
    """Mass against M_G along the sequence of dwarfs, beside the table's."""
    abs_g = np.linspace(1.0, 15.0, 141)
    answer = model.mass(sequences.dwarf_colour(abs_g), abs_g)
    return {
        "abs_g": abs_g, "mass": answer["mass"], "low": answer["mass_q16"],
        "high": answer["mass_q84"], "known": (answer["flags"] & BIT["extrapolated"]) == 0,
        "table_mass": sequences.dwarf_mass(abs_g),
    }  # fmt: skip


def motion_arrays(model: "MassNet", pairs: Batch) -> dict[str, np.ndarray]:
    """Histogram of |u| of precise pairs, and the model's density."""
    places = model.places(pairs)
    total = torch.stack([model.mean_log_mass(x, y).exp() for x, y in places]).sum(0)
    noise = (0.5 * pairs["covariance"].diagonal(dim1=1, dim2=2).sum(1) / total).sqrt()
    precise = noise < NOISE_OF_PAIRS
    u = (pairs["motion"].norm(dim=1) / total.sqrt())[precise].numpy()
    log_s = pairs["log_separation"][precise].numpy()
    counts, _ = np.histogram(u, U_EDGES)
    centre = 0.5 * (U_EDGES[1:] + U_EDGES[:-1])
    statistics = model.statistics_at(log_s)
    alpha = torch.full((1,), float(np.mean(statistics["alpha"])))
    fraction = float(np.mean(statistics["outlier_fraction"]))
    angle = torch.linspace(0, np.pi / 2, 33)
    plane = torch.from_numpy(centre).float()[:, None, None] * torch.stack(
        [angle.cos(), angle.sin()], -1
    )
    bound = motion.noisy_density(plane, torch.full(plane.shape[:2], 0.05))
    bound = (bound * motion.alpha_weights(alpha)[0]).sum(-1).mean(1)
    zeros = torch.zeros(len(centre), 2, 2)
    w = torch.from_numpy(np.stack([centre, 0 * centre], 1)).float()
    log_p = model.statistics.log_outlier_density(w, zeros, torch.zeros(1, len(centre)))
    outlier = log_p.exp().mean(0).numpy() * 2 * np.pi * centre
    return {
        "edges": U_EDGES, "counts": counts, "n": np.array(len(u)), "u": centre,
        "bound": (1 - fraction) * bound.numpy() * 2 * np.pi * centre, "outlier": fraction * outlier,
        "thermal": motion.thermal_density(torch.from_numpy(centre)).numpy(),
    }  # fmt: skip


def separation_arrays(model: "MassNet", pairs: Batch, data: Data) -> dict[str, np.ndarray]:
    """alpha and the fraction of outliers against log10 of the separation, with errors."""
    low, high = np.percentile(pairs["log_separation"].numpy(), (1, 99))
    x = np.linspace(low, high, 60)
    # published for wide binaries of Gaia by their angles: Hwang et al. (2022, arXiv:2111.01789)
    true = data.true_alpha(x) if isinstance(data, HasTrueAlpha) else None
    published = 0.91 * np.tanh((x - 2.29) / 0.61) + 0.44
    arrays = {"log_separation": x, "published_alpha": published, **model.statistics_at(x)}
    return arrays if true is None else arrays | {"true_alpha": true}
