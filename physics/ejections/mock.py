"""A mock catalogue of the stars, and binaries, that three-body encounters throw out of clusters."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from orrery.physics.ejections import population
from orrery.physics.ejections.clusters import Clusters
from orrery.physics.ejections.structure import core_structure
from orrery.physics.ejections.three_body import Ejections, draw_ejections
from orrery.physics.milky_way.actions import staeckel_actions
from orrery.physics.milky_way.frames import observed
from orrery.physics.milky_way.potentials import milky_way

STARS_AT_ONCE = 60_000
STAR, BINARY = 0, 1


def mock_catalogue(
    n: int,
    clusters: Clusters,
    potential: str,
    duration: float,
    seed: int,
    positions: bool = True,
) -> Iterator[dict[str, np.ndarray]]:
    """``n`` stars of each cluster, and the binaries that escape by recoil, chunk by chunk.

    Stars leave over the last ``duration`` Gyr and are moved on to today where ``positions`` are
    asked for, which takes by far the longest. Columns: ``cluster`` and ``kind`` (numbers), ``mass``
    (Msun), ``v_core``, ``v_infinity`` (km/s), ``time`` (Gyr, negative), ``J_R``, ``L_z``, ``J_z``
    (kpc km/s) at the ejection, NaN of unbound ones; with positions what is `observed` of today.
    """
    generator = torch.Generator().manual_seed(seed)
    orbits = population.cluster_orbits(clusters, potential, duration, generator)
    core = core_structure(clusters)
    at_once = max(1, STARS_AT_ONCE // len(clusters))
    for start in range(0, n, at_once):
        size = min(at_once, n - start)
        ejections = draw_ejections(size, core.rho0, core.sigma0, core.v_esc, generator)
        at = population.released(orbits, torch.zeros_like(ejections.direction), generator)
        yield _rows(ejections, at, potential, positions)


def _rows(
    ejections: Ejections, at: population.Ejected, potential: str, positions: bool
) -> dict[str, np.ndarray]:
    recoil = -ejections.v_inf_binary[..., None] * ejections.direction
    cluster = torch.arange(recoil.shape[1]).expand(recoil.shape[:2])
    escapes = ejections.binary_escapes

    def both(star: Tensor, binary: Tensor) -> Tensor:
        return torch.cat([star.flatten(0, 1), binary[escapes]])

    x, v = both(at.x, at.x), both(at.v + ejections.kick, at.v + recoil)
    stars = population.Ejected(x, v, both(at.time, at.time), both(at.flight, at.flight))
    J = population.action_vector(staeckel_actions(x, v, milky_way(potential).axisymmetric))
    columns = {
        "cluster": both(cluster, cluster),
        "kind": both(torch.full_like(cluster, STAR), torch.full_like(cluster, BINARY)),
        "mass": both(ejections.m_escaper, ejections.m_1 + ejections.m_2),
        "v_core": both(ejections.v, ejections.v_binary),
        "v_infinity": both(ejections.v_inf, ejections.v_inf_binary),
        "time": stars.time,
        "J_R": J[:, 0], "L_z": J[:, 1], "J_z": J[:, 2],
    }  # fmt: skip
    if positions:
        today = observed(*population.to_today(stars, potential))._asdict()
        columns |= {"radial_velocity" if k == "v_los" else k: value for k, value in today.items()}
    return {name: values.numpy() for name, values in columns.items()}
