"""A list of a cluster's stars, for inference."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from orrery.datamodules.base import CatalogueData, Rows
from orrery.datamodules.columns import CatalogueColumn, Column, located
from orrery.datamodules.gc_emulator import mock as gc_mock
from orrery.datamodules.gc_emulator.mock import ARCMIN, Selected
from orrery.datamodules.values import refuse
from orrery.physics.clusters import cluster_stars
from orrery.physics.clusters.lowered_isothermal import solve, solve_share
from orrery.tables import Catalogue, open_catalogue

PHASE = {  # role -> unit
    **dict.fromkeys(("x", "y", "z"), "pc"),
    **dict.fromkeys(("vx", "vy", "vz"), "km/s"),
}
SKY = ("ra", "dec")
MEASURED = {  # roles: all or none of each, of a list and of a star
    "errors of the directions": ("ra_error", "dec_error"),
    "proper motions": ("pm_ra", "pm_dec", "pm_ra_error", "pm_dec_error"),
    "parallaxes": ("parallax", "parallax_error"),
    "velocities along the line of sight": ("rv", "rv_error"),
}
FEWEST = 10  # stars on the sky
TRUTH = ("W0", "g", "log10_mass", "log10_rh")  # and of an anisotropic cluster rh_ra
SKY_TRUTH = ("ra", "dec", "distance", "pm_ra", "pm_dec", "rv")  # deg, kpc, mas/yr, km/s


def _needed(name: str, unit: str, meaning: str, limit: float = np.inf) -> Column:
    return Column(name, unit, meaning, -limit, limit, training="chosen")


def _measured(name: str, unit: str, meaning: str) -> Column:
    """Of some stars; of a blank the rest of its group is not used either."""
    return Column(name, unit, meaning, missing=np.nan, training="chosen")


def _error(name: str, unit: str, of: str) -> Column:
    return replace(_measured(name, unit, f"error of {of}"), low=0, ends="()", blank_only=True)


class GCStars(CatalogueData):
    """Stars in phase space, or on the sky as the Gaia archive has them: as the columns say.

    Phase space: ``x y z``, pc, and ``vx vy vz``, km/s, relative to the centre. Sky: ``ra dec``, and
    what there is of ``pmra pmdec``, ``parallax`` and ``radial_velocity``, each with its error, and
    of ``ra_error dec_error`` (any of these may be masked for some stars). ``distance`` and
    ``distance_error``, kpc, are then a normal prior; null: parallaxes tell, whose errors are taken
    as each star's own. What Gaia's have in common, about .01 mas, is the user's to add.

    ``radius`` [r_min, r_max], arcmin about ``centre`` [ra, dec], deg, is where stars were selected;
    others are dropped. ``completeness``: a table with columns ``radius``, arcmin, and
    ``completeness``, the share of the stars that the list has there. With ``field`` some of the
    stars are not of the cluster.

    Without ``path``: a mock of ``n_stars`` of a cluster of parameters ``truth``, with which the
    posterior is compared: W0, g, log10 of M in Msun, log10 of r_h in pc, and rh_ra = r_h / r_a of
    an anisotropic one; on the sky also ra, dec, distance, pm_ra, pm_dec, rv, with errors of
    ``mock_error`` in mas and mas/yr and ``mock_rv_error`` in km/s; null: not measured. With
    ``field`` a third of the stars are of the field.
    """

    product = "stars"
    declared: ClassVar = {
        **{role: _needed(role, unit, f"{role} about the centre") for role, unit in PHASE.items()},
        "ra": _needed("ra", "deg", "right ascension, in place of x y z vx vy vz", 360),
        "dec": _needed("dec", "deg", "declination", 90),
        "ra_error": _error("ra_error", "mas", "ra, times cos dec"),
        "dec_error": _error("dec_error", "mas", "dec"),
        "pm_ra": _measured("pmra", "mas/yr", "proper motion in ra, times cos dec"),
        "pm_dec": _measured("pmdec", "mas/yr", "proper motion in dec"),
        "pm_ra_error": _error("pmra_error", "mas/yr", "pmra"),
        "pm_dec_error": _error("pmdec_error", "mas/yr", "pmdec"),
        "parallax": _measured("parallax", "mas", "parallax"),
        "parallax_error": _error("parallax_error", "mas", "the parallax"),
        "rv": _measured("radial_velocity", "km/s", "velocity along the line of sight"),
        "rv_error": _error("radial_velocity_error", "km/s", "that velocity"),
    }

    def __init__(
        self,
        n_stars: int = 1000,
        truth: Mapping[str, float] | None = None,
        distance: float | None = None,
        distance_error: float | None = None,
        centre: Sequence[float] | None = None,
        radius: Sequence[float] | None = None,
        completeness: str | None = None,
        field: bool = False,
        mock_error: float | None = 0.1,
        mock_rv_error: float | None = None,
        **catalogue: Any,
    ) -> None:
        super().__init__(**{**catalogue, "split": "all"})  # nothing is held out
        self.n_stars, self.field = n_stars, field
        self.asked, self.centre, self.radius = (distance, distance_error), centre, radius
        self.completeness = completeness
        self.mock_error, self.mock_rv_error = mock_error, mock_rv_error
        self.listed: dict[str, np.ndarray] = {}  # of `stars`: rows of the catalogue, what is kept
        self.parameters = {k: float(v) for k, v in (truth or {}).items()}
        known = set(self.parameters) - {"rh_ra"}
        if self.path is None and known not in (set(TRUTH), {*TRUTH, *SKY_TRUTH}):
            raise ValueError(
                f"data.truth of a mock names {', '.join(TRUTH)}, of an anisotropic cluster rh_ra, "
                f"and on the sky {', '.join(SKY_TRUTH)}; got {self.parameters}"
            )
        if field and radius is None:
            raise ValueError(
                "data.field=true needs data.radius=[<min>,<max>], arcmin: how much sky it fills"
            )
        if (radius is not None or completeness) and centre is None and self.path is not None:
            raise ValueError(
                "a selection on the sky is about a point: data.centre=[<ra>,<dec>], deg"
            )
        for name, value in (("distance", distance), ("distance_error", distance_error)):
            if value is not None and not 0 < value < np.inf:
                raise ValueError(f"data.{name} is {value}; expected kpc, a positive number")

    # --- reading ------------------------------------------------------------------------------

    def roles(self, catalogue: Catalogue, training: bool) -> Mapping[str, CatalogueColumn]:
        roles = self._found(catalogue)
        bare = [
            f"{found.name} ({found.column.unit})"
            for found in roles.values()
            if found.name in catalogue.names and found.name not in catalogue.units
        ]
        if bare and (self.path is not None or self.table is not None):
            self.say(f"{self.label}: columns without a unit are taken as {', '.join(bare)}")
        return roles

    def _found(self, catalogue: Catalogue) -> dict[str, CatalogueColumn]:
        """The columns of the stars, in phase space or on the sky, by role."""
        names = catalogue.names
        every = {r: located(self.declared, self.columns, catalogue, r) for r in self.declared}
        in_space = every["x"].name in names or "x" in self.columns
        if not in_space and every["ra"].name not in names:
            raise ValueError(
                f"{self.label} has neither ra and dec, of stars on the sky, nor x y z vx vy vz; "
                f"map them: data.columns.ra=<column> data.columns.dec=<column>, and so on\n"
                f"  columns in the file: {', '.join(sorted(names))}"
            )
        if in_space:
            return {role: every[role] for role in PHASE}
        roles = {role: every[role] for role in SKY}
        for what, group in MEASURED.items():
            missing = [every[role].name for role in group if every[role].name not in names]
            asked = any(role in self.columns for role in group)
            some = len(missing) < len(group)
            # a proper motion that is named badly is not to be overlooked
            if not missing or asked or (some and what == "proper motions"):
                roles |= {role: every[role] for role in group}
            elif some or what == "proper motions":
                self.say(f"{self.label} has no column {', '.join(missing)}: no {what} are used")
        return roles

    def to_batch(self, columns: Mapping[str, np.ndarray], training: bool) -> Rows:
        values = {role: columns[role] for role in columns if role in self.declared}
        for group in MEASURED.values():
            if there := [name for name in group if name in values]:
                gone = np.isnan([values[name] for name in there]).any(0)
                values |= {name: np.where(gone, np.nan, values[name]) for name in there}
        return {name: torch.from_numpy(value) for name, value in values.items()}

    def stars(self) -> dict[str, Tensor]:
        """All by role, (n,): in the units of `PHASE`, or on the sky deg, mas, mas/yr and km/s."""
        batches = list(self.prediction_batches())
        names = [name for name in batches[0] if name != "row"]
        stars = {name: torch.cat([batch[name] for batch in batches]) for name in names}
        self.listed = {"row": torch.cat([batch["row"] for batch in batches]).numpy()}
        for name in self.keep:
            self.listed[name] = np.concatenate([batch.carried.columns[name] for batch in batches])
        if "ra" not in stars:
            if self.radius is not None or self.completeness or self.field:
                raise ValueError(
                    f"{self.label} is of stars in phase space; data.radius, data.completeness and "
                    f"data.field are for stars on the sky"
                )
            return stars
        if len(stars["ra"]) < FEWEST:
            raise ValueError(
                f"{self.label} has {len(stars['ra'])} stars; about a centre that is not known the "
                f"sky says nothing with less than {FEWEST}"
            )
        chosen = self.selected()
        if chosen is None:
            return stars
        ra, dec = (np.radians(stars[name].numpy()) for name in ("ra", "dec"))
        ra0, dec0 = np.radians(chosen.centre)
        half = np.sin(0.5 * (dec - dec0)) ** 2
        half += np.cos(dec) * np.cos(dec0) * np.sin(0.5 * (ra - ra0)) ** 2
        rho = 2 * np.arcsin(np.sqrt(half)) / ARCMIN
        inside = torch.from_numpy((rho >= chosen.radius[0]) & (rho <= chosen.radius[-1]))
        if not bool(inside.any()):
            raise ValueError(
                f"none of the {len(ra):,} stars of {self.label} lies {chosen.radius[0]:g} to "
                f"{chosen.radius[-1]:g} arcmin from data.centre={list(chosen.centre)}"
            )
        if not bool(inside.all()):
            self.say(
                f"{int((~inside).sum()):,} of {len(ra):,} stars lie outside of {chosen.radius[0]:g}"
                f" to {chosen.radius[-1]:g} arcmin and are dropped"
            )
        self.listed = {name: value[inside.numpy()] for name, value in self.listed.items()}
        return {name: value[inside] for name, value in stars.items()}

    def selected(self) -> Selected | None:
        """Where stars were selected on the sky; None: everywhere."""
        if self.radius is None and not self.completeness:
            return None
        truth = self.parameters
        centre = self.centre or (truth["ra"], truth["dec"])
        low, high = map(float, self.radius) if self.radius is not None else (0.0, np.inf)
        if not 0 <= low < high:
            raise ValueError(f"data.radius={[low, high]}; expected [<min>, <max>] in arcmin")
        r, share = np.array([low, high]), np.ones(2)
        if self.completeness:
            r, share = _completeness(self.completeness)
            edges = np.clip([low, high], r[0], r[-1])
            inner = (r > edges[0]) & (r < edges[1])
            r, share = (
                np.array([edges[0], *r[inner], edges[1]]),
                np.array([np.interp(edges[0], r, share), *share[inner],
                          np.interp(edges[1], r, share)]),
            )  # fmt: skip
        return Selected((float(centre[0]), float(centre[1])), r, share)

    def distance(self, stars: Mapping[str, Tensor]) -> tuple[float, float | None]:
        """Mean and standard deviation of the prior of the distance, kpc; None: parallaxes tell.

        The mean is then where to begin: that of the median star, for some may be of the field.
        """
        distance, error = self.asked
        if distance is None and "parallax" in stars:
            known = stars["parallax"].isfinite()
            parallax, weight = stars["parallax"][known], stars["parallax_error"][known] ** -2.0
            order = parallax.argsort()
            middle = torch.searchsorted(weight[order].cumsum(0), 0.5 * weight.sum())
            median = float(parallax[order][middle]) if len(order) else 0.0
            if median * float(weight.sum()) ** 0.5 > 5:
                return 1 / median, None
        if distance is None:
            raise ValueError(
                f"the distance of {self.label} is not known, and its parallaxes do not tell: "
                f"data.distance=<kpc> data.distance_error=<kpc>"
            )
        return float(distance), float(error) if error is not None else 0.05 * float(distance)

    # --- a mock -------------------------------------------------------------------------------

    def simulate(self, split: str) -> dict[str, np.ndarray]:
        W0, g, log_mass, log_rh = (
            torch.tensor([self.parameters[name]], dtype=torch.float64) for name in TRUTH
        )
        generator = torch.Generator().manual_seed(self.seed)
        on_sky = "distance" in self.parameters
        of_field = self.n_stars // 3 if self.field and on_sky else 0
        n = self.n_stars - of_field
        share = torch.tensor([self.parameters.get("rh_ra", 0.0)], dtype=torch.float64)
        model = solve_share(W0, g, share) if share else solve(W0, g)
        stars = cluster_stars.draw(model, 10**log_mass, 10**log_rh, 4 * n, generator)[0]
        if not on_sky:
            return dict(zip(PHASE, stars[:n].numpy().T, strict=True))
        centre = torch.tensor([self.parameters[name] for name in SKY_TRUTH], dtype=torch.float64)
        centre[:2], centre[2] = centre[:2].deg2rad(), 1e3 * centre[2]
        sky = cluster_stars.to_sky(stars + cluster_stars.from_sky(centre))
        errors = (self.mock_error, self.mock_rv_error)
        return gc_mock.observed(sky, centre, n, of_field, errors, self.selected(), generator)

    def truth(self) -> dict[str, float]:
        if self.path is not None or self.table is not None:
            return {}
        names = {k: f"centre_{k}" if k in SKY_TRUTH else k for k in self.parameters}
        truth = {names[k]: v for k, v in self.parameters.items()}
        if self.field:
            truth["field_share"] = (self.n_stars // 3) / self.n_stars
        return truth


def _completeness(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Radius, arcmin, and completeness of a table."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"data.completeness={path}: there is no such file")
    with open_catalogue(path, None) as table:
        missing = {"radius", "completeness"} - set(table.names)
        if missing:
            raise ValueError(
                f"{path} has no column {' and '.join(sorted(missing))}; expected 'radius', arcmin, "
                f"and 'completeness', 0 to 1"
            )
        parts = list(table.chunks(["radius", "completeness"]))
    r, share = (np.concatenate([np.asarray(p[n], float) for p in parts])
                for n in ("radius", "completeness"))  # fmt: skip
    refuse(
        ~((share >= 0) & (share <= 1)), "completeness", share, "is no share", "0 to 1", "mend it"
    )
    if len(r) < 2 or not np.all(np.diff(r) > 0):
        raise ValueError(f"{path}: 'radius' must rise from row to row, and have two of them")
    return r, share
