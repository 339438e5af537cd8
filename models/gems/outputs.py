"""Columns of a predicted row with their meaning."""

import numpy as np

from orrery.models.base import Constant, Output

N_LISTED = 5  # hosts that are named
FLAGS = {
    "unbound": "half or more of the draws of the star are not bound to the Galaxy",
    "no_radial_velocity": "all radial velocities are thought possible",
    "poor_distance": "the distance is unknown, or known to less than 20%",
    "in_cluster": "the star is within a cluster's tidal radius, and may be its member",
    "unusual": "fewer than a thousandth of the simulated stars have actions as rare",
}
BIT = {name: 1 << i for i, name in enumerate(FLAGS)}


def outputs(clusters: list[str]) -> dict[str, Output | Constant]:
    """Of a model of these clusters."""
    names = (*clusters, "field")
    columns: dict[str, Output | Constant] = {}
    for i in range(min(N_LISTED, len(clusters))):
        suffix, which = (f"_{i + 1}", f"{i + 1}. likeliest") if i else ("", "likeliest")
        columns[f"host{suffix}"] = Output("", f"the {which} cluster", labels=names)
        columns[f"p_host{suffix}"] = Output("", f"probability of the {which} cluster")
    columns |= {
        "p_field": Output("", "probability of the field"),
        "log_bayes": Output("", "ln of likelihood of the likeliest cluster over the field's"),
        "p_recent": Output(
            "", "probability that it left the likeliest cluster so recently that it is still near"
        ),
        "t_recent": Output("Myr", "time since then, of stars where p_recent is above a half"),
        "J_R": Output("kpc km s-1", "radial action, mean over the star's errors"),
        "J_R_error": Output("kpc km s-1", "its standard deviation"),
        "L_z": Output("kpc km s-1", "angular momentum about the Galaxy's axis, > 0 with the disc"),
        "L_z_error": Output("kpc km s-1", "its standard deviation"),
        "J_z": Output("kpc km s-1", "vertical action"),
        "J_z_error": Output("kpc km s-1", "its standard deviation"),
        "energy": Output("km2 s-2", "energy, 0 far from the Galaxy"),
        "energy_error": Output("km2 s-2", "its standard deviation"),
        "ood": Output(
            "", "share of the simulated stars, field included, in denser parts of action space",
            unusual="high",
        ),
        "flags": Output("", "bits", bits=FLAGS),
        "p_clusters": Output("", "probability of each cluster", axes=("clusters",)),
        "clusters": Constant(np.array(clusters), "clusters"),
        "host_true": Output("", "where the star comes from, by the catalogue", labels=names),
        "p_true": Output("", "probability of where it comes from"),
        "rank_true": Output("", "place of the true cluster among all clusters, 1 the likeliest"),
    }  # fmt: skip
    return columns


def mock_outputs(clusters: tuple[str, ...], positions: bool) -> dict[str, Output | Constant]:
    """Columns of `physics.ejections.mock`."""
    columns: dict[str, Output | Constant] = {
        "cluster": Output("", "where the star comes from", labels=clusters),
        "kind": Output(
            "", "an escaped star, or the binary that it left", labels=("star", "binary")
        ),
        "mass": Output("Msun", "mass of the star, or of both stars of the binary"),
        "v_core": Output("km/s", "speed after the encounter, in the core"),
        "v_infinity": Output("km/s", "speed relative to the cluster, outside of it"),
        "time": Output("Gyr", "when it was thrown out; today is 0"),
        "J_R": Output("kpc km s-1", "radial action when it was thrown out; NaN: unbound"),
        "L_z": Output("kpc km s-1", "angular momentum about the Galaxy's axis, > 0 with the disc"),
        "J_z": Output("kpc km s-1", "vertical action"),
    }
    if positions:
        columns |= {
            "ra": Output("deg", "right ascension of today, ICRS"),
            "dec": Output("deg", "declination"),
            "distance": Output("kpc", "distance from the Sun"),
            "pmra": Output("mas/yr", "proper motion in right ascension, with cos(dec)"),
            "pmdec": Output("mas/yr", "proper motion in declination"),
            "radial_velocity": Output("km/s", "line-of-sight velocity"),
        }
    return columns
