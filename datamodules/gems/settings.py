"""Settings of simulated ejections: checked, and clusters by their names."""

import difflib
from collections.abc import Mapping, Sequence

import numpy as np

from orrery.physics.ejections import population
from orrery.physics.ejections.clusters import Clusters, milky_way_clusters, read_clusters
from orrery.physics.milky_way.potentials import POTENTIALS

ERRORS = {"distance": 0.1, "pm": 0.05, "rv": 2.0}  # relative; mas/yr; km/s


def chosen_clusters(asked: str | Sequence[str] | None) -> Clusters:
    """Clusters of a table by its path, or of the Galaxy by name; None: all of the Galaxy's."""
    if asked is None:
        return milky_way_clusters()
    if isinstance(asked, str) and asked.endswith(".ecsv"):
        return read_clusters(asked)
    names = [asked] if isinstance(asked, str) else list(asked)
    if not names:
        raise ValueError("data.clusters=[] names no cluster; null takes all of the Galaxy's")
    try:
        chosen = milky_way_clusters().select(names)
    except ValueError as error:
        raise ValueError(
            f"data.clusters: {error} A table of clusters of your own is a file .ecsv."
        ) from error
    if twice := {name for name in chosen.names if chosen.names.count(name) > 1}:
        raise ValueError(f"data.clusters: {', '.join(sorted(twice))} is named twice")
    return chosen


def checked_potential(name: str) -> str:
    if name in POTENTIALS:
        return name
    near = difflib.get_close_matches(name, POTENTIALS, 1)
    hint = f"; near: {near[0]}" if near else ""
    raise ValueError(f"data.potential={name} is none of {', '.join(POTENTIALS)}{hint}")


def checked_duration(gyr: float) -> float:
    if not 0 < gyr <= 14:
        raise ValueError(f"data.duration={gyr}; expected Gyr, above 0 and up to 14")
    return float(gyr)


def checked_errors(changed: Mapping[str, float]) -> dict[str, float]:
    for name, value in changed.items():
        if name not in ERRORS:
            raise ValueError(f"data.errors.{name} is none of {', '.join(ERRORS)}")
        if not 0 <= value < np.inf:
            raise ValueError(f"data.errors.{name}={value}; expected an error, 0 or more")
    return {**ERRORS, **changed}


def checked_kick(settings: Mapping[str, float] | None) -> population.Kick:
    if settings is None:
        return population.three_body_kicks
    if set(settings) != {"median", "sigma"} or not all(v > 0 for v in settings.values()):
        raise ValueError(
            f"data.kick={dict(settings)}; expected {{median: km/s, sigma: of its ln}}, above 0"
        )
    return population.lognormal_kicks(settings["median"], settings["sigma"])
