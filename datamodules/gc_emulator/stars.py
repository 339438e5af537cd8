"""A list of stars, of which the posterior of a cluster is inferred."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from orrery.datamodules.base import CatalogueData, Rows
from orrery.datamodules.columns import CatalogueColumn, Column, located
from orrery.datamodules.gc_emulator.mock import ARCMIN, simulate_survey
from orrery.datamodules.values import refuse
from orrery.physics.clusters import cluster_stars
from orrery.physics.clusters.lowered_isothermal import solve, solve_rh_ra
from orrery.physics.clusters.observations import PhaseSpaceStars, SkySelection, SkyStars
from orrery.tables import Catalogue, open_catalogue

PHASE = {  # role -> unit
    **dict.fromkeys(("x", "y", "z"), "pc"),
    **dict.fromkeys(("vx", "vy", "vz"), "km/s"),
}
SKY = ("ra", "dec")
MEASUREMENTS = {  # roles: a list, and a star, has all or none of each
    "errors of the directions": ("ra_error", "dec_error"),
    "proper motions": ("pm_ra", "pm_dec", "pm_ra_error", "pm_dec_error"),
    "parallaxes": ("parallax", "parallax_error"),
    "velocities along the line of sight": ("rv", "rv_error"),
}
MIN_SKY_STARS = 10
# mas: a mean of Gaia's EDR3 and DR3, which goes from about -0.02 (faint stars) to -0.05
GAIA_ZERO_POINT = -0.04
LINDEGREN = "lindegren"  # zero points star by star, arXiv:2012.01742
ZERO_POINT_COLUMNS = {  # of the archive, in the order of the arguments of `zpt.get_zpt`
    "phot_g_mean_mag": "mag",
    "nu_eff_used_in_astrometry": "um-1",
    "pseudocolour": "um-1",
    "ecl_lat": "deg",
    "astrometric_params_solved": "",
}
SOLUTIONS = (31, 95)  # astrometric_params_solved of five and of six parameters
MAX_ZERO_POINT = 1.0  # mas: more is another unit
TRUTH_NAMES = ("W0", "g", "log10_mass", "log10_rh")  # of an anisotropic cluster rh_ra, too
SKY_TRUTH_NAMES = ("ra", "dec", "distance", "pm_ra", "pm_dec", "rv")  # deg, kpc, mas/yr, km/s


def _required(name: str, unit: str, meaning: str, limit: float = np.inf) -> Column:
    return Column(name, unit, meaning, -limit, limit, training="chosen")


def _measured(name: str, unit: str, meaning: str) -> Column:
    """Of some stars; where it is blank the rest of its group is not used either."""
    return Column(name, unit, meaning, missing=np.nan, training="chosen")


def _error(name: str, unit: str, of: str) -> Column:
    return replace(_measured(name, unit, f"error of {of}"), low=0, ends="()", blank_only=True)


class GCStars(CatalogueData):
    """Stars in phase space, or on the sky in the columns of the Gaia archive.

    In phase space: ``x y z``, pc, and ``vx vy vz``, km/s, relative to the centre. On the sky:
    ``ra dec`` and, where the list has them, ``pmra pmdec``, ``parallax`` and ``radial_velocity``,
    each with its error, and ``ra_error dec_error``; all but ``ra dec`` may be masked for some
    stars. It is on the sky if a column of the sky is mapped (``columns``), in phase space if one of
    phase space is; otherwise in phase space if all six columns are there. Without ``path``: a mock.

    Settings:
        distance, distance_error: kpc, a normal prior, for stars on the sky. null: the distance
            follows from the parallaxes.
        parallax_zero_point: mas, subtracted from the parallaxes: the true parallax is that of the
            catalogue minus the zero point, which of Gaia's is negative. null: `GAIA_ZERO_POINT`,
            the mean of Gaia's EDR3 and DR3, unless the name of the column has "corr", as of
            parallaxes that are corrected. "lindegren": of each star, by its magnitude, colour and
            place (Lindegren et al. 2021), from `ZERO_POINT_COLUMNS` by the package
            gaiadr3-zeropoint. A mock has the zero point that is set; null: none.
        parallax_zero_point_error: mas, of the zero point, an error in common of all parallaxes.
        parallax_error_inflation: factor of the errors of parallaxes, which are independent.
        centre, radius: stars were selected at ``radius`` [min, max], arcmin, about ``centre``
            [ra, dec], deg; others are dropped.
        completeness: path of a table with columns ``radius``, arcmin, and ``completeness``, the
            fraction of stars that the list includes there.
        field: whether some of the stars may be field stars; of a mock a third are.
        outliers: whether a few stars in phase space, 10% at most, may not be bound to the cluster.
        n_stars: of the mock.
        truth: parameters of the mock: W0, g, log10_mass (Msun), log10_rh (pc), of an anisotropic
            cluster rh_ra = r_h / r_a; on the sky also ra, dec (deg), distance (kpc), pm_ra, pm_dec
            (mas/yr), rv (km/s).
        mock_error, mock_rv_error: of the mock, mas and mas/yr, and km/s; null: not measured.
    """

    declared: ClassVar = {
        **{role: _required(role, unit, f"{role} about the centre") for role, unit in PHASE.items()},
        "ra": _required("ra", "deg", "right ascension, in place of x y z vx vy vz", 360),
        "dec": _required("dec", "deg", "declination", 90),
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
        **{
            name: _measured(name, unit, f"for data.parallax_zero_point={LINDEGREN}")
            for name, unit in ZERO_POINT_COLUMNS.items()
        },
    }

    def __init__(
        self,
        n_stars: int = 1000,
        truth: Mapping[str, float] | None = None,
        distance: float | None = None,
        distance_error: float | None = None,
        parallax_zero_point: float | str | None = None,
        parallax_zero_point_error: float = 0.01,
        parallax_error_inflation: float = 1.0,
        centre: Sequence[float] | None = None,
        radius: Sequence[float] | None = None,
        completeness: str | None = None,
        field: bool = False,
        outliers: bool = True,
        mock_error: float | None = 0.1,
        mock_rv_error: float | None = None,
        **catalogue: Any,
    ) -> None:
        super().__init__(**{**catalogue, "split": "all"})  # nothing is held out
        self.n_stars, self.field, self.outliers = n_stars, field, outliers
        self.distance, self.distance_error = distance, distance_error
        self.parallax_zero_point = parallax_zero_point
        self.parallax_zero_point_error = parallax_zero_point_error
        self.parallax_error_inflation = parallax_error_inflation
        self.centre, self.radius = centre, radius
        self.completeness = completeness
        self.mock_error, self.mock_rv_error = mock_error, mock_rv_error
        self.star_rows: dict[str, np.ndarray] = {}  # of `stars`: row in the catalogue, kept columns
        self.true_parameters = {k: float(v) for k, v in (truth or {}).items()}
        known = set(self.true_parameters) - {"rh_ra"}
        if self.path is None and known not in (set(TRUTH_NAMES), {*TRUTH_NAMES, *SKY_TRUTH_NAMES}):
            raise ValueError(
                f"data.truth of a mock names {', '.join(TRUTH_NAMES)}, of an anisotropic cluster "
                f"rh_ra, and on the sky {', '.join(SKY_TRUTH_NAMES)}; got {self.true_parameters}"
            )
        if field and radius is None:
            raise ValueError(
                "data.field=true needs data.radius=[<min>,<max>], arcmin: where field stars are"
            )
        if (radius is not None or completeness) and centre is None and self.path is not None:
            raise ValueError(
                "a selection on the sky needs its centre: data.centre=[<ra>,<dec>], deg"
            )
        for name, value in (("distance", distance), ("distance_error", distance_error)):
            if value is not None and not 0 < value < np.inf:
                raise ValueError(f"data.{name} is {value}; expected kpc, a positive number")
        mean = None if parallax_zero_point == LINDEGREN else parallax_zero_point
        if mean is not None and (isinstance(mean, str) or not abs(mean) < MAX_ZERO_POINT):
            raise ValueError(
                f"data.parallax_zero_point is {parallax_zero_point}; expected mas, within "
                f"{MAX_ZERO_POINT:g} of 0, such as {GAIA_ZERO_POINT:g}, or {LINDEGREN}"
            )
        if self.path is None and parallax_zero_point == LINDEGREN:
            raise ValueError(
                f"data.parallax_zero_point={LINDEGREN} is for Gaia's stars; of a mock expected mas"
            )
        if not 0 <= parallax_zero_point_error < MAX_ZERO_POINT:
            raise ValueError(
                f"data.parallax_zero_point_error is {parallax_zero_point_error}; expected mas, "
                f"0 to {MAX_ZERO_POINT:g}"
            )
        if not 0 < parallax_error_inflation < np.inf:
            raise ValueError(
                f"data.parallax_error_inflation is {parallax_error_inflation}; expected a factor "
                f"above 0"
            )

    # --- reading ------------------------------------------------------------------------------

    def roles(self, catalogue: Catalogue, training: bool) -> Mapping[str, CatalogueColumn]:
        roles = self._star_columns(catalogue)
        unitless = [
            f"{column.name} ({column.column.unit})"
            for column in roles.values()
            if column.column.unit and column.name in catalogue.names
            if column.name not in catalogue.units
        ]
        if unitless and (self.path is not None or self.table is not None):
            self.warn_once(
                f"{self.label}: columns without a unit are taken as {', '.join(unitless)}"
            )
        return roles

    def _star_columns(self, catalogue: Catalogue) -> dict[str, CatalogueColumn]:
        """The columns of phase space or of the sky, by role."""
        names = catalogue.names
        columns = {r: located(self.declared, self.columns, catalogue, r) for r in self.declared}
        if self._in_space(columns, names):
            return {role: columns[role] for role in PHASE}
        roles = {role: columns[role] for role in SKY}
        for quantity, group in MEASUREMENTS.items():
            missing = [columns[role].name for role in group if columns[role].name not in names]
            named = any(role in self.columns for role in group)
            incomplete = len(missing) < len(group)
            # an incomplete proper motion is likely to be a misspelt column: it is refused
            if not missing or named or (incomplete and quantity == "proper motions"):
                roles |= {role: columns[role] for role in group}
            elif incomplete or quantity == "proper motions":
                self.warn_once(
                    f"{self.label} has no column {', '.join(missing)}: no {quantity} are used"
                )
        if self.parallax_zero_point == LINDEGREN and "parallax" in roles:
            roles |= {name: columns[name] for name in ZERO_POINT_COLUMNS}
        return roles

    def _in_space(self, columns: Mapping[str, CatalogueColumn], names: Collection[str]) -> bool:
        """Whether the stars are in phase space, not on the sky, by columns mapped or else there.

        ``columns``: by role; ``names``: of the columns in the file.
        """
        here = [columns[role].name for role in PHASE if columns[role].name in names]
        lacking = [columns[role].name for role in PHASE if columns[role].name not in names]
        mapped = [role for role in self.columns if role in self.declared]
        to_sky = "for stars on the sky: data.columns.ra=<column> data.columns.dec=<column>"
        if any(role in PHASE for role in mapped):
            if on_sky := [role for role in mapped if role not in PHASE]:
                raise ValueError(
                    f"data.columns maps {', '.join(mapped)}: stars are either in phase space, "
                    f"{' '.join(PHASE)}, or on the sky; leave out {', '.join(on_sky)}, or the "
                    f"others"
                )
            return True
        if mapped:
            return False
        has_sky = columns["ra"].name in names
        if has_sky and here and not lacking:
            self.warn_once(
                f"{self.label} has {', '.join(here)}, and is taken as of stars in phase space; "
                f"{to_sky}"
            )
        elif has_sky and len(here) > 1:
            self.warn_once(
                f"{self.label} is taken as of stars on the sky: it has no column "
                f"{', '.join(lacking)}, so that {', '.join(here)} are not used"
            )
        elif here and lacking and not has_sky:
            raise ValueError(
                f"{self.label} has {', '.join(here)}, of stars in phase space, but no column "
                f"{', '.join(map(repr, lacking))}; map it: data.columns.{lacking[0]}=<column>, or "
                f"{to_sky}\n  columns in the file: {', '.join(sorted(names))}"
            )
        elif not here and not has_sky:
            raise ValueError(
                f"{self.label} has neither ra and dec, of stars on the sky, nor x y z vx vy vz; "
                f"map them: data.columns.ra=<column> data.columns.dec=<column>, and so on\n"
                f"  columns in the file: {', '.join(sorted(names))}"
            )
        return not lacking

    def to_batch(self, columns: Mapping[str, np.ndarray], training: bool) -> Rows:
        values = {role: columns[role] for role in columns if role in self.declared}
        for group in MEASUREMENTS.values():
            if present := [name for name in group if name in values]:
                missing = np.isnan([values[name] for name in present]).any(0)
                values |= {name: np.where(missing, np.nan, values[name]) for name in present}
        return {name: torch.from_numpy(value) for name, value in values.items()}

    def observations(self) -> PhaseSpaceStars | SkyStars:
        """The selected stars of the list, or of the mock."""
        stars = self.stars()
        if "ra" not in stars:
            phase = torch.stack([stars[name] for name in PHASE], -1)
            return PhaseSpaceStars(phase, self.outliers, self.star_rows)
        distance = self.distance_prior(stars)
        error = self.parallax_zero_point_error if "parallax" in stars else 0.0
        return SkyStars(stars, distance, self.selection(), self.field, self.star_rows, error)

    def stars(self) -> dict[str, Tensor]:
        """The selected stars by role, (n,): in the units of `PHASE`, or deg, mas, mas/yr, km/s.

        The zero point is subtracted from the parallaxes, and their errors are inflated.
        """
        batches = list(self.prediction_batches())
        names = [name for name in batches[0] if name != "row"]
        stars = {name: torch.cat([batch[name] for batch in batches]) for name in names}
        self.star_rows = {"row": torch.cat([batch["row"] for batch in batches]).numpy()}
        for name in self.keep:
            self.star_rows[name] = np.concatenate(
                [batch.carried.columns[name] for batch in batches]
            )
        if "ra" not in stars:
            if self.radius is not None or self.completeness or self.field:
                raise ValueError(
                    f"{self.label} is of stars in phase space; data.radius, data.completeness and "
                    f"data.field are for stars on the sky"
                )
            return stars
        if len(stars["ra"]) < MIN_SKY_STARS:
            raise ValueError(
                f"{self.label} has {len(stars['ra'])} stars; expected {MIN_SKY_STARS} or more on "
                f"the sky, where the centre of the cluster is inferred, too"
            )
        if "parallax" in stars:
            stars["parallax"] = stars["parallax"] - self.zero_point(stars)
            stars = {name: x for name, x in stars.items() if name not in ZERO_POINT_COLUMNS}
            stars["parallax_error"] = stars["parallax_error"] * self.parallax_error_inflation
        selection = self.selection()
        if selection is None:
            return stars
        ra, dec = (np.radians(stars[name].numpy()) for name in ("ra", "dec"))
        ra0, dec0 = np.radians(selection.centre)
        half = np.sin(0.5 * (dec - dec0)) ** 2
        half += np.cos(dec) * np.cos(dec0) * np.sin(0.5 * (ra - ra0)) ** 2
        rho = 2 * np.arcsin(np.sqrt(half)) / ARCMIN
        inside = torch.from_numpy((rho >= selection.radius[0]) & (rho <= selection.radius[-1]))
        if not bool(inside.any()):
            raise ValueError(
                f"none of the {len(ra):,} stars of {self.label} lies {selection.radius[0]:g} to "
                f"{selection.radius[-1]:g} arcmin from data.centre={list(selection.centre)}"
            )
        if not bool(inside.all()):
            self.warn_once(
                f"{int((~inside).sum()):,} of {len(ra):,} stars lie outside of "
                f"{selection.radius[0]:g} to {selection.radius[-1]:g} arcmin and are dropped"
            )
        self.star_rows = {name: value[inside.numpy()] for name, value in self.star_rows.items()}
        return {name: value[inside] for name, value in stars.items()}

    def zero_point(self, stars: Mapping[str, Tensor]) -> float | Tensor:
        """Of the parallaxes of these stars, mas: the same for all, or (n,)."""
        if self.parallax_zero_point == LINDEGREN:
            return self._zero_point_by_star(stars)
        if self.parallax_zero_point is not None:
            return float(self.parallax_zero_point)
        column = str(self.columns.get("parallax", "parallax"))
        if (self.path is None and self.table is None) or "corr" in column.lower():
            return 0.0
        self.warn_once(
            f"{self.label}: the mean zero point of Gaia DR3, {GAIA_ZERO_POINT:g} ± "
            f"{self.parallax_zero_point_error:g} mas, is subtracted from the column {column!r}; "
            f"if that is corrected already: data.parallax_zero_point=0"
        )
        return GAIA_ZERO_POINT

    def _zero_point_by_star(self, stars: Mapping[str, Tensor]) -> Tensor:
        """The published zero points; of stars outside of their domain the mean, with a warning."""
        try:
            from zero_point import zpt
        except ImportError as error:
            raise ValueError(
                f"data.parallax_zero_point={LINDEGREN} needs a package: pip install "
                f"gaiadr3-zeropoint; or give the mean, {GAIA_ZERO_POINT:g}"
            ) from error
        zpt.load_tables()
        arguments = [stars[name].numpy() for name in ZERO_POINT_COLUMNS]
        solved = np.isin(arguments[-1], SOLUTIONS)
        found = np.full(len(solved), np.nan)
        if solved.any():
            found[solved] = zpt.get_zpt(*(x[solved] for x in arguments), _warnings=False)
        unknown = np.isnan(found) & ~stars["parallax"].isnan().numpy()
        if unknown.any():
            self.warn_once(
                f"{self.label}: {int(unknown.sum()):,} of {len(unknown):,} stars lie outside the "
                f"magnitudes (6 to 21) and colours of Lindegren et al. (2021), or lack a column of "
                f"{', '.join(ZERO_POINT_COLUMNS)}; their zero point is taken as "
                f"{GAIA_ZERO_POINT:g} mas"
            )
        return torch.from_numpy(np.where(np.isnan(found), GAIA_ZERO_POINT, found))

    def selection(self) -> SkySelection | None:
        """Which stars are in the list; None: all."""
        if self.radius is None and not self.completeness:
            return None
        truth = self.true_parameters
        centre = self.centre or (truth["ra"], truth["dec"])
        low, high = map(float, self.radius) if self.radius is not None else (0.0, np.inf)
        if not 0 <= low < high:
            raise ValueError(f"data.radius={[low, high]}; expected [<min>, <max>] in arcmin")
        r, fraction = np.array([low, high]), np.ones(2)
        if self.completeness:
            knots, fractions = _read_completeness(self.completeness)
            low, high = np.clip([low, high], knots[0], knots[-1])
            r = np.array([low, *knots[(knots > low) & (knots < high)], high])
            fraction = np.interp(r, knots, fractions)
        return SkySelection((float(centre[0]), float(centre[1])), r, fraction)

    def distance_prior(self, stars: Mapping[str, Tensor]) -> tuple[float, float | None]:
        """Mean and standard deviation, kpc; None: the distance follows from the parallaxes.

        The mean is then a first guess, from the median star, since some may be field stars.
        """
        distance, error = self.distance, self.distance_error
        if distance is None and "parallax" in stars:
            known = stars["parallax"].isfinite()
            parallax, weight = stars["parallax"][known], stars["parallax_error"][known] ** -2.0
            order = parallax.argsort()
            middle = torch.searchsorted(weight[order].cumsum(0), 0.5 * weight.sum())
            median = float(parallax[order][middle]) if len(order) else 0.0
            error2 = 1 / float(weight.sum()) if len(order) else np.inf
            if median > 5 * (error2 + self.parallax_zero_point_error**2) ** 0.5:
                return 1 / median, None
        if distance is None:
            raise ValueError(
                f"the distance of {self.label} is not known, and its parallaxes do not give it to "
                f"5 sigma: data.distance=<kpc> data.distance_error=<kpc>"
            )
        return float(distance), float(error) if error is not None else 0.05 * float(distance)

    # --- a mock -------------------------------------------------------------------------------

    def simulate(self, split: str) -> dict[str, np.ndarray]:
        W0, g, log_mass, log_rh = (
            torch.tensor([self.true_parameters[name]], dtype=torch.float64) for name in TRUTH_NAMES
        )
        generator = torch.Generator().manual_seed(self.seed)
        on_sky = "distance" in self.true_parameters
        n_field = self.n_stars // 3 if self.field and on_sky else 0
        n = self.n_stars - n_field
        rh_ra = torch.tensor([self.true_parameters.get("rh_ra", 0.0)], dtype=torch.float64)
        model = solve_rh_ra(W0, g, rh_ra) if rh_ra else solve(W0, g)
        stars = cluster_stars.draw(model, 10**log_mass, 10**log_rh, 4 * n, generator)[0]
        if not on_sky:
            return dict(zip(PHASE, stars[:n].numpy().T, strict=True))
        centre = torch.tensor(
            [self.true_parameters[name] for name in SKY_TRUTH_NAMES], dtype=torch.float64
        )
        centre[:2], centre[2] = centre[:2].deg2rad(), 1e3 * centre[2]
        sky = cluster_stars.to_sky(stars + cluster_stars.from_sky(centre))
        errors = (self.mock_error, self.mock_rv_error)
        columns = simulate_survey(sky, centre, n, n_field, errors, self.selection(), generator)
        if "parallax" in columns:
            columns["parallax"] = columns["parallax"] + self.zero_point({})
        return columns

    def truth(self) -> dict[str, float]:
        if self.path is not None or self.table is not None:
            return {}
        names = {k: f"centre_{k}" if k in SKY_TRUTH_NAMES else k for k in self.true_parameters}
        truth = {names[k]: v for k, v in self.true_parameters.items()}
        if self.field:
            truth["field_share"] = (self.n_stars // 3) / self.n_stars
        return truth


def _read_completeness(path: str) -> tuple[np.ndarray, np.ndarray]:
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
    r, fraction = (np.concatenate([np.asarray(p[n], float) for p in parts])
                   for n in ("radius", "completeness"))  # fmt: skip
    possible = (fraction >= 0) & (fraction <= 1)
    refuse(~possible, "completeness", fraction, "is not a fraction", "0 to 1", "correct the table")
    if len(r) < 2 or not np.all(np.diff(r) > 0):
        raise ValueError(f"{path}: 'radius' must rise from row to row, in two rows or more")
    return r, fraction
