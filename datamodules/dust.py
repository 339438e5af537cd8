"""Stars behind dust: a catalogue of extinctions, or a synthetic sky."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from astropy import units as u
from astropy.coordinates import SkyCoord
from torch import Tensor
from torch.utils.data import DataLoader

from orrery.datamodules.base import CatalogueData, Rows
from orrery.datamodules.columns import CatalogueColumn, Column, located
from orrery.datamodules.values import refuse
from orrery.memory import refuse_too_large
from orrery.physics.dust import dust_sky
from orrery.physics.gaussian_process.icr_grid import Grid, grids
from orrery.tables import Catalogue

GALACTIC, EQUATORIAL = ("l", "b"), ("ra", "dec")
ECLIPTIC = ("ecl_lon", "ecl_lat", "elon", "elat", "lambda", "beta")
MIN_STARS = 100  # of a training set
STARS_PER_PIXEL = 4  # training stars, of the resolution that is chosen
COARSEST, FINEST = 8, 32  # Nside that is chosen
A_V_PER_E = 2.8  # Zhang, Green & Rix (2023), sec. 3
# Kinds of extinction: its ratio to E, and the relative scatter of that from star to star. A_G, A_BP
# and A_RP: mean and scatter of the ratios to A_V of Gaia Collaboration, Babusiaux et al. (2018),
# A&A 616, A10, table 1, over (BP - RP)_0 from 0.3 to 1.8 and A_V from 0 to 2. E(B-V): R_V of 3.1
# with the scatter of Schlafly et al. (2016), ApJ 821, 78.
EXTINCTIONS = {
    "E": (1.0, 0.0),
    "A_V": (A_V_PER_E, 0.0),
    "A_G": (A_V_PER_E * 0.78, 0.08),
    "A_BP": (A_V_PER_E * 1.03, 0.04),
    "A_RP": (A_V_PER_E * 0.58, 0.02),
    "E_BV": (A_V_PER_E / 3.1, 0.06),
}
# their catalogue, doi:10.5281/zenodo.7811871: stellar parameters (stars, 5) and their errors, of
# which the last two are E and the parallax, mas
ZGR23 = {"estimates": "stellar_params_est", "errors": "stellar_params_err"}
PERCENTILES = ("distance_lower", "distance_upper")  # 16th and 84th
MEASURED = ("extinction", "extinction_error")


def resolution(n_stars: float, nside: int | None, n_radial: int | None) -> tuple[int, int]:
    """Nside and shells of a map of ``n_stars``; those that are not None stay.

    The finest pixels that hold `STARS_PER_PIXEL` stars on average, and shells to match.
    """
    if nside is None:
        nside = COARSEST
        while nside < FINEST and 12 * (2 * nside) ** 2 * STARS_PER_PIXEL <= n_stars:
            nside *= 2
    return nside, 4 + 4 * nside if n_radial is None else n_radial


def _position(name: str, unit: str, meaning: str, low: float, high: float) -> Column:
    return Column(name, unit, meaning, low, high, training="chosen")


def _zgr23_column(name: str, quantity: str) -> Column:
    return Column(
        name,
        meaning=f"{quantity} of Zhang, Green & Rix (2023), in place of parallax and extinction",
        kind="vector",
        training="chosen",
        special="the last two are E and the parallax, mas, with their ranges",
    )


class DustData(CatalogueData):
    """Directions, distances and extinctions of stars: a catalogue, or a synthetic sky.

    Columns by role: ``l b`` or ``ra dec``, deg; ``parallax parallax_error``, mas, or ``distance``,
    pc, with or without ``distance_error``, or ``distance_lower distance_upper``, its percentiles;
    ``extinction extinction_error``. The catalogue of Zhang, Green & Rix (2023) is read as it is;
    ``train_where="quality_flags<8"`` keeps its reliable stars. Predictions need only position and
    distance. A batch: ``direction`` (batch, 3), Galactic unit vectors; ``parallax`` and
    ``parallax_error`` (batch,), mas; ``extinction`` and ``extinction_error`` (batch,), E, NaN where
    unknown.

    Args:
        nside, n_radial, nearest, farthest, base_nside: the grid, as of `models.dust.Dust`. Of None
            the number of training stars decides: see `resolution`.
        n_stars: of the synthetic sky (`physics.dust.dust_sky`), before the cut in parallax.
        min_parallax_snr: stars whose parallax is less than so many errors are left out of a
            training set, as are those beyond the grid.
        extinction_unit: "E", of Zhang, Green & Rix (2023), or another of `EXTINCTIONS`, which is
            converted: the scatter of the conversion is added to the errors.
        mean, amplitude, scale: of the synthetic sky's ln density, 1/pc, and its scale, pc.
        clouds: compact clouds in the synthetic sky.
        sigma: error of its extinctions, E.
        catalogue: settings of `CatalogueData`.
    """

    may_be_zero: ClassVar = frozenset(("clouds",))
    decided_by_training: ClassVar = frozenset(
        ("nside", "n_radial", "nearest", "farthest", "base_nside")
    )
    declared: ClassVar = {
        "l": _position("l", "deg", "Galactic longitude, with b", -360, 360),
        "b": _position("b", "deg", "Galactic latitude", -90, 90),
        "ra": _position("ra", "deg", "ICRS right ascension, with dec, or l and b", -360, 360),
        "dec": _position("dec", "deg", "declination", -90, 90),
        "parallax": replace(
            _position("parallax", "mas", "parallax", -900, 2000),
            typical=(0.02, 100), typical_hint="are they arcsec?",
        ),
        "parallax_error": _position("parallax_error", "mas", "error of the parallax", 0, 1e6),
        "distance": replace(
            _position("distance", "pc", "distance, in place of the parallax", 1, 1e7),
            typical=(20, 1e5), typical_hint="are they kpc?",
        ),
        "distance_error": replace(
            _position("distance_error", "pc", "error of the distance; 0 without", 0, 1e9),
            unit_of="distance",
        ),
        "distance_lower": replace(
            _position("distance_lower", "pc", "16th percentile of the distance", 1, 1e7),
            required_with="distance_upper",
        ),
        "distance_upper": replace(
            _position("distance_upper", "pc", "84th percentile of the distance", 1, 1e7),
            required_with="distance_lower",
        ),
        "extinction": Column(
            "extinction", None, "extinction, in data.extinction_unit", -10, 100, "()", truth=True,
            prediction="chosen",
        ),
        "extinction_error": Column(
            "extinction_error", None, "error of the extinction", 0, ends="()", truth=True,
            prediction="chosen", required_with="extinction",
        ),
        "estimates": _zgr23_column(ZGR23["estimates"], "parameters"),
        "errors": _zgr23_column(ZGR23["errors"], "errors of parameters"),
    }  # fmt: skip

    def __init__(
        self,
        nside: int | None,
        n_radial: int | None,
        nearest: float,
        farthest: float,
        base_nside: int = 4,
        n_stars: int = 5000,
        min_parallax_snr: float = 3.0,
        extinction_unit: str = "E",
        mean: float = -8.1,
        amplitude: float = 1.0,
        scale: float = 150.0,
        clouds: int = 12,
        sigma: float = 0.03,
        **catalogue: Any,
    ) -> None:
        super().__init__(**catalogue)
        self.resolution, self.radii, self.base_nside = (
            (nside, n_radial),
            (nearest, farthest),
            base_nside,
        )
        self.n_stars, self.min_parallax_snr = n_stars, min_parallax_snr
        if extinction_unit not in EXTINCTIONS:
            raise ValueError(
                f"data.extinction_unit is '{extinction_unit}'; it is E, of Zhang, Green & Rix "
                f"(2023), or one of {', '.join(list(EXTINCTIONS)[1:])}"
            )
        self.per_e, self.conversion_scatter = EXTINCTIONS[extinction_unit]
        self.log_density, self.clouds = (mean, amplitude, scale), clouds
        self.sigma = sigma
        self._sky: tuple[Tensor, dust_sky.Stars] | None = None

    # --- reading ------------------------------------------------------------------------------

    def roles(self, catalogue: Catalogue, training: bool) -> Mapping[str, CatalogueColumn]:
        names = set(catalogue.names)

        def column(role: str) -> CatalogueColumn:
            return located(self.declared, self.columns, catalogue, role)

        def wanted(role: str) -> bool:
            return role in self.columns or column(role).name in names

        pair = next((p for p in (GALACTIC, EQUATORIAL) if column(p[0]).name in names), None)
        if pair is None:
            ecliptic = [name for name in ECLIPTIC if name in names]
            if ecliptic:
                raise ValueError(
                    f"{self.label} has ecliptic coordinates, {' and '.join(ecliptic)}; expected "
                    f"Galactic l and b, or ra and dec: convert them"
                )
            pair = GALACTIC
        roles = list(pair)
        if column("extinction").name not in names and set(ZGR23.values()) <= names:
            return {role: column(role) for role in (*roles, *ZGR23)}
        if any(wanted(role) for role in PERCENTILES):
            roles += PERCENTILES
        elif wanted("distance"):
            roles += ["distance", *(["distance_error"] if wanted("distance_error") else [])]
        else:
            roles += ["parallax", "parallax_error"]
        measured = {role: self._in_magnitudes(catalogue, column(role)) for role in MEASURED}
        missing = [c.name for c in measured.values() if c.name not in names]
        if training or not missing:
            return {role: column(role) for role in roles} | measured
        named = [name for name in missing if name in self.columns.values()]
        if named or len(missing) == 1:
            self.warn_once(
                f"{self.label} has no column {' and '.join(named or missing)}: nothing is scored"
            )
        return {role: column(role) for role in roles}

    def _in_magnitudes(self, catalogue: Catalogue, column: CatalogueColumn) -> CatalogueColumn:
        unit = self._unit(catalogue, column.name)
        return replace(column, column=replace(column.column, unit=unit))

    def _unit(self, catalogue: Catalogue, column: str) -> str | None:
        """The unit that a column of extinctions is converted to, None if it has no unit."""
        unit = catalogue.units.get(column)
        if unit is None or unit == u.dimensionless_unscaled:
            return None
        if self.per_e == 1:
            self.warn_once(
                f"{self.label}: column '{column}' is in {unit}, and is taken as E of Zhang, Green "
                f"& Rix (2023); if it is A_V = {A_V_PER_E} E, set data.extinction_unit=A_V, or "
                f"one of {', '.join(list(EXTINCTIONS)[2:])}"
            )
        return "mag"

    def to_batch(self, columns: Mapping[str, np.ndarray], training: bool) -> Rows:
        values = dict(columns)
        if "estimates" in values:
            for role, suffix in (("estimates", ""), ("errors", "_error")):
                names = f"extinction{suffix}", f"parallax{suffix}"
                for name, cells in zip(names, values.pop(role)[:, -2:].T, strict=True):
                    column = CatalogueColumn(self.declared[name], ZGR23[role])
                    values[name] = column.checked(cells, training)
        if "extinction" in values:  # NaN where its error is unknown
            values["extinction"] = values["extinction"] + 0 * values["extinction_error"]
        batch = {"direction": self._direction(values)}
        if "distance_lower" in values:
            low, high = (values[role] for role in PERCENTILES)
            refuse(low >= high, str(self.columns.get("distance_lower", "distance_lower")), low,
                   "is not below the 84th percentile", "pc, the 16th percentile",
                   "swap the columns, or drop those stars")  # fmt: skip
            # 1/d is normal, with these percentiles
            parallax, error = 0.5 * (1e3 / low + 1e3 / high), 0.5 * (1e3 / low - 1e3 / high)
        elif "distance" in values:
            parallax = 1e3 / values["distance"]
            error = parallax * values.get("distance_error", 0 * parallax) / values["distance"]
        else:
            parallax, error = values["parallax"], values["parallax_error"]
            name = str(self.columns.get("parallax", "parallax"))
            refuse((parallax <= 0) & (error == 0), name, parallax,
                   "without an error gives no distance", "mas, above 0",
                   "drop those stars")  # fmt: skip
        batch |= {"parallax": torch.from_numpy(parallax), "parallax_error": torch.from_numpy(error)}
        if "extinction" in values:
            e, error = (values[name] / self.per_e for name in MEASURED)
            error = np.hypot(error, self.conversion_scatter * np.abs(e))
            batch |= {"extinction": torch.from_numpy(e).float()}
            batch |= {"extinction_error": torch.from_numpy(error).float()}
        return batch

    def _direction(self, values: Mapping[str, np.ndarray]) -> Tensor:
        """Galactic unit vectors, (n, 3)."""
        if "l" in values:
            place = SkyCoord(values["l"] * u.deg, values["b"] * u.deg, frame="galactic")
        else:
            place = SkyCoord(values["ra"] * u.deg, values["dec"] * u.deg).galactic
        return torch.from_numpy(np.ascontiguousarray(place.cartesian.xyz.value.T))

    def setup(self, stage: str | None = None) -> None:
        if stage != "fit" or self.rows:
            return
        super().setup(stage)
        farthest = self.radii[1]
        for name, rows in self.rows.items():
            precise = rows["parallax"] > self.min_parallax_snr * rows["parallax_error"]
            within = rows["parallax"] > 1e3 / farthest
            kept = precise & within
            if not bool(kept.all()):
                self.warn_once(
                    f"{self.label}, {name}: {int((~precise).sum()):,} stars of a parallax below "
                    f"{self.min_parallax_snr:g} errors and {int((precise & ~within).sum()):,} "
                    f"beyond {farthest:g} pc are left out"
                )
            self._keep(name, kept)
        if len(self.rows["train"]["row"]) < MIN_STARS:
            raise ValueError(
                f"{len(self.rows['train']['row'])} stars are left to make a map of; expected "
                f"{MIN_STARS} or more"
            )

        self.resolution = resolution(len(self.rows["train"]["row"]), *self.resolution)

    def model_arguments(self) -> dict[str, Any]:
        return dict(zip(("nside", "n_radial"), self.resolution, strict=True))

    def inferred_settings(self) -> dict[str, Any]:
        return self.model_arguments()

    def train_dataloader(self) -> DataLoader:
        """All stars as one batch, in every process: processes share out samples, not stars."""
        return DataLoader([self.rows["train"]], batch_size=None)  # type: ignore[arg-type]

    # --- the synthetic sky --------------------------------------------------------------------

    def true_density(self) -> Tensor | None:
        """Extinction per pc of the voxels, (pixels, shells); None for a catalogue."""
        return None if self.path is not None or self.table is not None else self._simulation()[0]

    def _simulation(self) -> tuple[Tensor, dust_sky.Stars]:
        if self._sky is None:
            generator = torch.Generator().manual_seed(self.seed)
            n_training = self.n_stars * (1 - self.test_fraction)
            self.resolution = resolution(n_training, *self.resolution)
            grid: Grid = grids(*self.resolution, *self.radii, self.base_nside)[-1]
            refuse_too_large(
                200 * math.prod(grid.shape), f"a synthetic sky of {math.prod(grid.shape):,} voxels",
                "model.nside=<less> model.n_radial=<less>",
            )  # fmt: skip
            rho = dust_sky.density(grid, *self.log_density, self.clouds, generator)
            n, snr, sigma = self.n_stars, self.min_parallax_snr, self.sigma
            self._sky = rho, dust_sky.stars(grid, rho, n, snr, sigma, generator)
        return self._sky

    def simulate(self, split: str) -> dict[str, np.ndarray]:
        """The stars of ``split``: the last ``test_fraction`` of them are held out."""
        stars = self._simulation()[1]
        n = round(len(stars.parallax) * (1 - self.test_fraction))
        chosen = slice(None, n) if split == "fit" else slice(n, None)
        galactic = SkyCoord(*stars.direction.T.numpy(), representation_type="cartesian",
                            frame="galactic").represent_as("unitspherical")  # fmt: skip
        columns = {
            "l": galactic.lon.deg,
            "b": galactic.lat.deg,
            "parallax": stars.parallax.numpy(),
            "parallax_error": stars.parallax_error.numpy(),
            "extinction": stars.extinction.numpy(),
            "extinction_error": stars.extinction_error.numpy(),
        }
        return {name: values[chosen] for name, values in columns.items()}
