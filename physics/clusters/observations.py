"""What is observed of a star cluster; from it `models.gc_emulator` infers the cluster's parameters.

A distance (kpc) is a normal prior, (mean, standard deviation).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from orrery.physics.clusters.cluster_profiles import Profile


@dataclass(frozen=True)
class SkySelection:
    """Which stars are in a list: completeness by angular distance from ``centre``."""

    centre: tuple[float, float]  # right ascension and declination, deg
    radius: np.ndarray  # (k,) arcmin, rising
    completeness: np.ndarray  # (k,) from 0 to 1; linear in between, 0 outside


@dataclass(frozen=True)
class PhaseSpaceStars:
    """Stars of known positions and velocities relative to the known centre of their cluster."""

    phase: Tensor  # (n, 6): x y z, pc, and their velocities, km/s
    has_outliers: bool = False  # whether a few of the stars may not be bound
    rows: Mapping[str, np.ndarray] = field(default_factory=dict)  # (n,): row in the catalogue, ids


@dataclass(frozen=True)
class SkyStars:
    """Stars on the sky as a survey measures them, about a centre that is not known.

    ``columns``, each (n,), NaN where a star was not measured: ``ra`` and ``dec``, deg; ``pm_ra``,
    times cos dec, and ``pm_dec``, mas/yr; ``parallax``, mas; ``rv``, km/s; and the error of each,
    such as ``rv_error``, those of ``ra`` (times cos dec) and ``dec`` in mas. All but ``ra`` and
    ``dec`` are optional.

    ``distance``: without a standard deviation parallaxes decide, and the mean is a first guess.
    """

    columns: Mapping[str, Tensor]
    distance: tuple[float, float | None]
    selection: SkySelection | None = None  # None: every star is in the list
    has_field_stars: bool = False  # whether some of the stars may not be members
    rows: Mapping[str, np.ndarray] = field(default_factory=dict)  # (n,): row in the catalogue, ids
    parallax_offset_error: float = 0.0  # mas: of an error that all parallaxes have in common


@dataclass(frozen=True)
class BinnedProfiles:
    """Profiles of one cluster in bins of projected radius."""

    profiles: Sequence[Profile]
    distance: tuple[float, float]


@dataclass(frozen=True)
class SimulatedSets:
    """Data sets that are yet to be simulated, each of a cluster drawn from the prior.

    In phase space, or on the ``sky``: with errors of ``error`` mas and mas/yr in directions,
    parallaxes and proper motions, and without velocities along the line of sight.
    """

    n_sets: int
    n_stars: int  # of each set
    sky: bool
    error: float
    distance: tuple[float, float]
    seed: int
