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
from orrery.datamodules.values import LARGEST, refuse
from orrery.memory import refuse_too_large
from orrery.physics.dust import dust_sky
from orrery.physics.gaussian_process.icr_grid import Grid, grids
from orrery.tables import Catalogue

GALACTIC, EQUATORIAL = ("l", "b"), ("ra", "dec")
ECLIPTIC = ("ecl_lon", "ecl_lat", "elon", "elat", "lambda", "beta")
FEWEST = 100  # stars to make a map of
EXTINCTIONS = ("E", "A_V")  # units of extinction: of Zhang, Green & Rix (2023), and magnitudes
A_V_PER_E = 2.8  # Zhang, Green & Rix (2023), sec. 3
# their catalogue, doi:10.5281/zenodo.7811871: stellar parameters (stars, 5) and their errors, of
# which the last two are E and the parallax, mas
ZGR23 = {"estimates": "stellar_params_est", "errors": "stellar_params_err"}
MEASURED = ("extinction", "extinction_error")


def _place(name: str, unit: str, meaning: str, low: float, high: float) -> Column:
    return Column(name, unit, meaning, low, high, training="chosen")


def _of_zgr23(name: str, what: str) -> Column:
    return Column(
        name,
        meaning=f"{what} of Zhang, Green & Rix (2023), in place of parallax and extinction",
        kind="vector",
        training="chosen",
        special="the last two are E and the parallax, mas, with their ranges",
    )


class DustData(CatalogueData):
    """Directions, distances and extinctions of stars.

    Columns by role: ``l b`` or ``ra dec``, deg; ``parallax parallax_error``, mas, or ``distance``,
    pc, with or without ``distance_error``; ``extinction extinction_error``, in ``extinction_unit``:
    E of Zhang, Green & Rix (2023), or A_V, which is 2.8 E. Their catalogue is read as it is, of
    which those of ``train_where="quality_flags<8"`` are reliable. For predictions only place and
    distance are needed. Stars of a parallax below ``min_parallax_snr`` errors, and those beyond the
    grid, are left out of a training set.

    Without ``path``: `physics.dust.dust_sky` on the voxels of ``nside`` x ``n_radial`` from
    ``nearest`` to ``farthest``, pc, with ``n_stars`` before the cut.
    """

    declared: ClassVar = {
        "l": _place("l", "deg", "Galactic longitude, with b", -360, 360),
        "b": _place("b", "deg", "Galactic latitude", -90, 90),
        "ra": _place("ra", "deg", "right ascension, ICRS, with dec in place of l and b", -360, 360),
        "dec": _place("dec", "deg", "declination", -90, 90),
        "parallax": _place("parallax", "mas", "parallax", -900, 2000),
        "parallax_error": _place("parallax_error", "mas", "error of the parallax", 0, LARGEST),
        "distance": replace(
            _place("distance", "pc", "distance, in place of the parallax", 0, LARGEST), ends="(]"
        ),
        "distance_error": replace(
            _place("distance_error", "pc", "error of the distance; 0 without", 0, LARGEST),
            unit_of="distance",
        ),
        "extinction": Column(
            "extinction", None, "extinction, in data.extinction_unit", -10, 100, "()", truth=True,
            prediction="chosen",
        ),
        "extinction_error": Column(
            "extinction_error", None, "error of the extinction", 0, ends="()", truth=True,
            prediction="chosen", required_with="extinction",
        ),
        "estimates": _of_zgr23(ZGR23["estimates"], "parameters"),
        "errors": _of_zgr23(ZGR23["errors"], "errors of them"),
    }  # fmt: skip

    def __init__(
        self,
        nside: int,
        n_radial: int,
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
        self.sky = (nside, n_radial, nearest, farthest, base_nside)
        self.n_stars, self.min_snr = n_stars, min_parallax_snr
        if extinction_unit not in EXTINCTIONS:
            raise ValueError(
                f"data.extinction_unit is '{extinction_unit}'; it is E, of Zhang, Green & Rix "
                f"(2023), or A_V = {A_V_PER_E} E"
            )
        self.per_unit = 1.0 if extinction_unit == "E" else 1 / A_V_PER_E
        self.process, self.clouds = (mean, amplitude, scale), clouds
        self.sigma = sigma
        self._true: tuple[Tensor, dust_sky.Stars] | None = None

    # --- reading ------------------------------------------------------------------------------

    def roles(self, catalogue: Catalogue, training: bool) -> Mapping[str, CatalogueColumn]:
        names = set(catalogue.names)

        def column(role: str) -> CatalogueColumn:
            return located(self.declared, self.columns, catalogue, role)

        def wanted(role: str) -> bool:
            return role in self.columns or column(role).name in names

        pair = next((p for p in (GALACTIC, EQUATORIAL) if column(p[0]).name in names), None)
        if pair is None:
            found = [name for name in ECLIPTIC if name in names]
            if found:
                raise ValueError(
                    f"{self.label} has ecliptic coordinates, {' and '.join(found)}; expected "
                    f"Galactic l and b, or ra and dec: convert them"
                )
            pair = GALACTIC
        roles = list(pair)
        if column("extinction").name not in names and set(ZGR23.values()) <= names:
            return {role: column(role) for role in (*roles, *ZGR23)}
        if wanted("distance"):
            roles += ["distance", *(["distance_error"] if wanted("distance_error") else [])]
        else:
            roles += ["parallax", "parallax_error"]
        measured = {role: self._measured(catalogue, column(role)) for role in MEASURED}
        missing = [c.name for c in measured.values() if c.name not in names]
        if training or not missing:
            return {role: column(role) for role in roles} | measured
        named = [name for name in missing if name in self.columns.values()]
        if named or len(missing) == 1:
            self.warn_once(
                f"{self.label} has no column {' and '.join(named or missing)}: nothing is scored"
            )
        return {role: column(role) for role in roles}

    def _measured(self, catalogue: Catalogue, found: CatalogueColumn) -> CatalogueColumn:
        unit = self._unit(catalogue, found.name)
        return replace(found, column=replace(found.column, unit=unit))

    def _unit(self, catalogue: Catalogue, column: str) -> str | None:
        """What a column of extinctions is converted to, if it says what it is in."""
        unit = catalogue.units.get(column)
        if unit is None or unit == u.dimensionless_unscaled:
            return None
        if self.per_unit == 1:
            self.warn_once(
                f"{self.label}: column '{column}' is in {unit}, and is taken as E of Zhang, Green "
                f"& Rix (2023); of A_V, which is {A_V_PER_E} E, say data.extinction_unit=A_V"
            )
        return "mag"

    def to_batch(self, columns: Mapping[str, np.ndarray], training: bool) -> Rows:
        values = dict(columns)
        if "estimates" in values:
            for role, more in (("estimates", ""), ("errors", "_error")):
                both = values.pop(role)[:, -2:].T
                for name, cells in zip((f"extinction{more}", f"parallax{more}"), both, strict=True):
                    column = CatalogueColumn(self.declared[name], ZGR23[role])
                    values[name] = column.checked(cells, training)
        if "extinction" in values:  # one without the other is unknown
            values["extinction"] = values["extinction"] + 0 * values["extinction_error"]
        batch = {"direction": self._direction(values)}
        if "distance" in values:
            parallax = 1e3 / values["distance"]
            error = parallax * values.get("distance_error", 0 * parallax) / values["distance"]
        else:
            parallax, error = values["parallax"], values["parallax_error"]
            name = str(self.columns.get("parallax", "parallax"))
            refuse((parallax <= 0) & (error == 0), name, parallax,
                   "is not positive and exact: no distance", "mas, above 0",
                   "drop those stars")  # fmt: skip
        batch |= {"parallax": torch.from_numpy(parallax), "parallax_error": torch.from_numpy(error)}
        for name in ("extinction", "extinction_error"):
            if name in values:
                batch[name] = torch.from_numpy(values[name] * self.per_unit).float()
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
        farthest = self.sky[3]
        for name, rows in self.rows.items():
            sure = rows["parallax"] > self.min_snr * rows["parallax_error"]
            within = rows["parallax"] > 1e3 / farthest
            if not bool((sure & within).all()):
                self.warn_once(
                    f"{self.label}, {name}: {int((~sure).sum()):,} stars of a parallax below "
                    f"{self.min_snr:g} errors and {int((sure & ~within).sum()):,} beyond "
                    f"{farthest:g} pc are left out"
                )
            self.rows[name] = {key: value[sure & within] for key, value in rows.items()}
            self.rows[name]["row"] = torch.arange(int((sure & within).sum()))
        if len(self.rows["train"]["row"]) < FEWEST:
            raise ValueError(
                f"{len(self.rows['train']['row'])} stars are left to make a map of; expected "
                f"{FEWEST} at the least"
            )

    def train_dataloader(self) -> DataLoader:
        """All stars at once, in every process: processes share out samples, not stars."""
        return DataLoader([self.rows["train"]], batch_size=None)  # type: ignore[arg-type]

    # --- the synthetic sky --------------------------------------------------------------------

    def true_density(self) -> Tensor | None:
        """Extinction per pc in the voxels, (pixels, shells); None where it is not known."""
        return None if self.path is not None or self.table is not None else self._simulation()[0]

    def _simulation(self) -> tuple[Tensor, dust_sky.Stars]:
        if self._true is None:
            generator = torch.Generator().manual_seed(self.seed)
            grid: Grid = grids(*self.sky)[-1]
            refuse_too_large(
                200 * math.prod(grid.shape), f"a synthetic sky of {math.prod(grid.shape):,} voxels",
                "model.nside=<less> model.n_radial=<less>",
            )  # fmt: skip
            rho = dust_sky.density(grid, *self.process, self.clouds, generator)
            n, snr, sigma = self.n_stars, self.min_snr, self.sigma
            self._true = rho, dust_sky.stars(grid, rho, n, snr, sigma, generator)
        return self._true

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
