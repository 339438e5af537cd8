"""A mock survey of a cluster's stars: selection, with errors, among field stars."""

import numpy as np
import torch
from torch import Tensor

from orrery.physics.clusters.observations import SkySelection

ARCMIN = np.pi / 180 / 60


def simulate_survey(
    sky: Tensor,
    centre: Tensor,
    n_members: int,
    n_field: int,
    errors: tuple[float | None, float | None],
    selection: SkySelection | None,
    generator: torch.Generator,
) -> dict[str, np.ndarray]:
    """The first ``n_members`` selection stars of ``sky``, and field stars, in Gaia's columns.

    ``sky`` (stars, 6) and ``centre`` (6,) as of `physics.clusters.cluster_stars.to_sky`;
    ``errors``: in mas and mas/yr, and of velocities along the line of sight in km/s; None: not
    measured.
    """

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def uniform(m: int) -> Tensor:
        return torch.rand(m, generator=generator, dtype=torch.float64)

    if selection is not None:
        ra, dec = np.radians(selection.centre)
        east = torch.remainder(sky[:, 0] - ra + np.pi, 2 * np.pi) - np.pi
        rho = torch.hypot(east * np.cos(dec), sky[:, 1] - dec) / ARCMIN
        r, completeness = (torch.from_numpy(x) for x in (selection.radius, selection.completeness))
        probability = torch.from_numpy(np.interp(rho, r, completeness, left=0, right=0))
        sky = sky[uniform(len(sky)) < probability]
        if len(sky) < n_members:
            raise ValueError(
                f"fewer than {n_members} stars of the mock lie in the selection; widen "
                f"data.radius, or lower data.n_stars"
            )
    sky = sky[:n_members]
    if n_field and selection is not None:  # nearer stars, with a wide distribution of velocities
        lo, hi = float(r[0]), float(r[-1])
        rho = (lo**2 + uniform(40 * n_field) * (hi**2 - lo**2)).sqrt()
        accepted = uniform(len(rho)) < torch.from_numpy(np.interp(rho, r, completeness))
        rho = ARCMIN * rho[accepted][:n_field]
        angle = 2 * np.pi * uniform(n_field)
        field = normal(n_field, 6)
        field[:, 0] = ra + rho * angle.cos() / np.cos(dec)
        field[:, 1] = dec + rho * angle.sin()
        field[:, 2] = 1e3 / (1.2e3 / centre[2] + 0.3e3 / centre[2] * field[:, 2]).clamp_min(1e-2)
        field[:, 3:5] = centre[3:5] * 0.5 + 3.0 * field[:, 3:5]
        field[:, 5] = 60 * field[:, 5]
        sky = torch.cat([sky, field])
    n, (error, rv_error) = len(sky), errors
    columns = {"ra": sky[:, 0].rad2deg().numpy(), "dec": sky[:, 1].rad2deg().numpy()}
    if error is not None:
        offset = error * normal(2, n) * ARCMIN / 6e4
        measured = {
            "ra": (sky[:, 0] + offset[0] / sky[:, 1].cos()).rad2deg(),
            "dec": (sky[:, 1] + offset[1]).rad2deg(),
            "pmra": sky[:, 3] + error * normal(n),
            "pmdec": sky[:, 4] + error * normal(n),
            "parallax": 1e3 / sky[:, 2] + error * normal(n),
        }
        columns = {name: value.numpy() for name, value in measured.items()}
        columns |= {f"{name}_error": np.full(n, error) for name in measured}
    if rv_error is not None:
        columns["radial_velocity"] = (sky[:, 5] + rv_error * normal(n)).numpy()
        columns["radial_velocity_error"] = np.full(n, rv_error)
    columns["ra"] = columns["ra"] % 360
    return columns
