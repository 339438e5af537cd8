"""What a survey lists of a cluster's stars: selected, with errors, among stars of the field."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

ARCMIN = np.pi / 180 / 60


class Selected(NamedTuple):
    """Which stars are in the list: completeness by angular distance from ``centre``."""

    centre: tuple[float, float]  # deg
    radius: np.ndarray  # arcmin, rising
    completeness: np.ndarray  # linear in between, none outside


def observed(
    sky: Tensor,
    centre: Tensor,
    n: int,
    of_field: int,
    errors: tuple[float | None, float | None],
    selected: Selected | None,
    generator: torch.Generator,
) -> dict[str, np.ndarray]:
    """The first ``n`` selected stars of ``sky``, and some of a field, in columns as Gaia's.

    ``sky`` (stars, 6) as `physics.clusters.cluster_stars.to_sky` gives it, ``centre`` (6,) too;
    ``errors`` in mas and mas/yr, and of velocities along the line of sight in km/s; None: not
    measured.
    """

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def uniform(m: int) -> Tensor:
        return torch.rand(m, generator=generator, dtype=torch.float64)

    if selected is not None:
        ra, dec = np.radians(selected.centre)
        rho = torch.hypot((sky[:, 0] - ra) * np.cos(dec), sky[:, 1] - dec) / ARCMIN
        r, share = (torch.from_numpy(x) for x in (selected.radius, selected.completeness))
        complete = torch.from_numpy(np.interp(rho, r, share, left=0, right=0))
        sky = sky[uniform(len(sky)) < complete]
        if len(sky) < n:
            raise ValueError(f"fewer than {n} stars of the mock lie in the selection")
    sky = sky[:n]
    if of_field and selected is not None:  # nearer stars, of wide velocities
        lo, hi = float(r[0]), float(r[-1])
        tried = (lo**2 + uniform(40 * of_field) * (hi**2 - lo**2)).sqrt()
        keep = uniform(len(tried)) < torch.from_numpy(np.interp(tried, r, share))
        tried = ARCMIN * tried[keep][:of_field]
        angle = 2 * np.pi * uniform(of_field)
        field = normal(of_field, 6)
        field[:, 0] = ra + tried * angle.cos() / np.cos(dec)
        field[:, 1] = dec + tried * angle.sin()
        field[:, 2] = 1e3 / (1.2e3 / centre[2] + 0.3e3 / centre[2] * field[:, 2]).clamp_min(1e-2)
        field[:, 3:5] = centre[3:5] * 0.5 + 3.0 * field[:, 3:5]
        field[:, 5] = 60 * field[:, 5]
        sky = torch.cat([sky, field])
    m, (error, rv_error) = len(sky), errors
    columns = {"ra": sky[:, 0].rad2deg().numpy(), "dec": sky[:, 1].rad2deg().numpy()}
    if error is not None:
        off = error * normal(2, m) * ARCMIN / 6e4
        found = {
            "ra": (sky[:, 0] + off[0] / sky[:, 1].cos()).rad2deg(),
            "dec": (sky[:, 1] + off[1]).rad2deg(),
            "pmra": sky[:, 3] + error * normal(m),
            "pmdec": sky[:, 4] + error * normal(m),
            "parallax": 1e3 / sky[:, 2] + error * normal(m),
        }
        columns = {name: value.numpy() for name, value in found.items()}
        columns |= {f"{name}_error": np.full(m, error) for name in found}
    if rv_error is not None:
        columns["radial_velocity"] = (sky[:, 5] + rv_error * normal(m)).numpy()
        columns["radial_velocity_error"] = np.full(m, rv_error)
    return columns
