"""Arrays of the figures, by figure."""

from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from orrery.models.base import Batch, Data, PredictedRows
from orrery.physics.ejections.clusters import Clusters
from orrery.physics.ejections.mock import mock_catalogue
from orrery.physics.ejections.population import cluster_draws
from orrery.physics.milky_way.frames import galactocentric, observed
from orrery.physics.milky_way.orbits import snapshots
from orrery.physics.milky_way.potentials import milky_way

if TYPE_CHECKING:
    from orrery.models.gems import Gems

N_SKY = 5000  # ejected stars on the map of the sky
EXAMPLE = "NGC 3201"  # whose stars are drawn on the sky, if it is among the clusters
N_MOCK, MOCK_GYR = 1000, 1.0
ORBIT_GYR, ORBIT_POINTS = 0.3, 600  # before and after today


@runtime_checkable
class HasSimulatedClusters(Protocol):
    """Data that simulate what clusters eject; `datamodules.gems.GemsData` is one."""

    clusters: Clusters
    potential: str
    duration: float


def figure_data(model: "Gems", rows: PredictedRows, data: Data) -> dict[str, dict[str, np.ndarray]]:
    """Of `figures.gems`."""
    figures: dict[str, dict[str, np.ndarray]] = {"actions": actions(model, rows)}
    known = np.isfinite(rows["rank_true"]) if "rank_true" in rows else np.zeros(0, bool)
    if not known.any():
        return figures
    figures["confusion"] = confusion(model, rows, known)
    if isinstance(data, HasSimulatedClusters):
        figures["mock"] = mock(data)
    true, p = rows["host_true"], 1 - rows["p_field"]
    known_host = (true >= 0) & np.isfinite(p)
    field = len(model.names)
    of_clusters = (1 - rows["p_field"][known]).clip(1e-30)
    figures["calibration"] = {
        "p_host": (rows["p_host"][known] / of_clusters).clip(0, 1),
        "is_host": rows["rank_true"][known] == 1,
    }
    if (true[known_host] == field).any():
        figures["calibration"] |= {
            "p_ejected": p[known_host],
            "is_ejected": true[known_host] != field,
        }
        figures["purity"] = {"p": p[known_host], "ejected": true[known_host] != field}
    return figures


def actions(model: "Gems", rows: PredictedRows) -> dict[str, np.ndarray]:
    """Actions of stars, of the clusters' means, and the posterior of one star."""
    names = ("J_R", "L_z", "J_z")
    stars = np.stack([rows[name] for name in names], 1)
    mean = model.hosts_table().moments.mean.cpu().numpy()
    clusters = np.stack([mean[:, 0] ** 2, 30.0 * mean[:, 1], mean[:, 2] ** 2], 1)
    arrays = {"stars": stars[np.isfinite(stars).all(1)][:N_SKY], "clusters": clusters}
    examples = rows["p_clusters"]
    if len(examples) and np.isfinite(examples).any():
        p = np.nan_to_num(examples)
        # the star of the examples whose host is known, but not beyond doubt
        first, second = np.sort(np.c_[p, np.zeros(len(p))], 1)[:, [-1, -2]].T
        i = int((np.abs(first - 0.5) + np.abs(second - 0.25)).argmin())
        arrays |= {
            "star": stars[i], "p": p[i], "names": np.array(model.names),
            "star_error": np.array([rows[f"{name}_error"][i] for name in names]),
        }  # fmt: skip
    return arrays


def confusion(model: "Gems", rows: PredictedRows, known: np.ndarray) -> dict[str, np.ndarray]:
    """How often a star of one cluster is given to another, and where clusters are on the sky."""
    n = len(model.names)
    true, host = rows["host_true"][known].astype(int), rows["host"][known].astype(int)
    counts = np.bincount(true * n + host, minlength=n * n).reshape(n, n)
    table = model.hosts_table().table.cpu().numpy()
    return {"counts": counts, "ra": table[0], "dec": table[1], "names": np.array(model.names)}


def mock(data: HasSimulatedClusters) -> dict[str, np.ndarray]:
    """What one cluster has thrown out, as of today on the sky, and its orbit."""
    names = data.clusters.names
    name = EXAMPLE if EXAMPLE in names else names[0]
    cluster = data.clusters.select([name])
    duration = min(data.duration, MOCK_GYR)
    parts = list(mock_catalogue(N_MOCK, cluster, data.potential, duration, seed=0))
    arrays = {key: np.concatenate([part[key] for part in parts])
              for key in ("ra", "dec", "distance")}  # fmt: skip
    x, v = (part[0] for part in cluster_draws(1, cluster, torch.Generator()))
    galaxy = milky_way(data.potential)
    back, ahead = (
        snapshots(x, v, galaxy, 0.0, end, ORBIT_POINTS) for end in (-ORBIT_GYR, ORBIT_GYR)
    )
    path = (torch.cat([b[0].flip(0), a[0]]) for b, a in zip(back, ahead, strict=True))
    orbit = observed(*path)
    return arrays | {
        "orbit_ra": orbit.ra.numpy(), "orbit_dec": orbit.dec.numpy(), "name": np.array(name),
        "cluster_ra": cluster.ra.numpy(), "cluster_dec": cluster.dec.numpy(),
    }  # fmt: skip


def mean_phase_space(batch: Batch) -> tuple[Tensor, Tensor]:
    """Positions, kpc, and velocities, km/s, of stars at their measurements, (batch, 3) each."""
    distance = torch.where(
        batch["distance"].isfinite(), batch["distance"], 1 / batch["parallax"].clamp_min(0.01)
    )
    velocity = torch.nan_to_num(batch["radial_velocity"])
    return galactocentric(
        batch["ra"],
        batch["dec"],
        distance.nan_to_num(10.0),
        batch["pmra"],
        batch["pmdec"],
        velocity,
    )
