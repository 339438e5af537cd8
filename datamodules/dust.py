"""Stars behind dust: a catalogue of extinctions, or a synthetic sky."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from astropy import units as u
from astropy.coordinates import SkyCoord
from torch import Tensor
from torch.utils.data import DataLoader

from orrery.datamodules.base import CatalogueData, Rows
from orrery.datamodules.values import numbers, refuse
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


PLACE = (*GALACTIC, *EQUATORIAL, "parallax", "parallax_error", "distance", "distance_error")
MEASURED = ("extinction", "extinction_error")
POSSIBLE = (-10.0, 100.0)  # extinctions; -999 and the like are none


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

    known_roles: ClassVar = {role: role for role in (*PLACE, *MEASURED)}

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

    def roles(self, catalogue: Catalogue, training: bool) -> dict[str, tuple[str, str | None]]:
        names = set(catalogue.names)

        def column(role: str) -> str:
            return str(self.columns.get(role, role))

        pair = next((p for p in (GALACTIC, EQUATORIAL) if column(p[0]) in names), None)
        if pair is None:
            found = [name for name in ECLIPTIC if name in names]
            if found:
                raise ValueError(
                    f"{self.label} has ecliptic coordinates, {' and '.join(found)}; expected "
                    f"Galactic l and b, or ra and dec: convert them"
                )
            pair = GALACTIC
        roles: dict[str, tuple[str, str | None]] = {role: (column(role), "deg") for role in pair}
        if column("extinction") not in names and set(ZGR23.values()) <= names:
            return roles | {role: (name, None) for role, name in ZGR23.items()}
        if column("distance") in names or "distance" in self.columns:
            roles["distance"] = (column("distance"), "pc")
            if column("distance_error") in names or "distance_error" in self.columns:
                roles["distance_error"] = (column("distance_error"), "pc")
        else:
            roles |= {r: (column(r), "mas") for r in ("parallax", "parallax_error")}
        known = [column(r) in names for r in MEASURED]
        if training or all(known):
            roles |= {r: (column(r), self._unit(catalogue, column(r))) for r in MEASURED}
        elif missing := [
            column(r) for r in MEASURED if r in self.columns and column(r) not in names
        ]:
            self.say(f"{self.label} has no column {' and '.join(missing)}: nothing is scored")
        return roles

    def _unit(self, catalogue: Catalogue, column: str) -> str | None:
        """What a column of extinctions is converted to, if it says what it is in."""
        unit = catalogue.units.get(column)
        if unit is None or unit == u.dimensionless_unscaled:
            return None
        if self.per_unit == 1:
            self.say(
                f"{self.label}: column '{column}' is in {unit}, and is taken as E of Zhang, Green "
                f"& Rix (2023); of A_V, which is {A_V_PER_E} E, say data.extinction_unit=A_V"
            )
        return "mag"

    def to_batch(self, columns: Mapping[str, np.ndarray], training: bool) -> Rows:
        values: dict[str, np.ndarray] = {
            name: numbers(v, str(self.columns.get(name, name)))
            for name, v in columns.items()
            if name != "group_by"
        }
        if "estimates" in values:
            for role, more in (("estimates", ""), ("errors", "_error")):
                both = values.pop(role)[:, -2:].T
                values |= {f"extinction{more}": both[0], f"parallax{more}": both[1]}
        if "extinction" in values and not training:
            value = values["extinction"]
            possible = (value > POSSIBLE[0]) & (value < POSSIBLE[1])
            values["extinction"] = np.where(possible, value, np.nan)
        for name, value in values.items():
            column = str(self.columns.get(name, name))
            optional = name.startswith("extinction") and not training
            if not optional:
                refuse(~np.isfinite(value), column, value, "is not measured", "a number",
                       "drop those stars")  # fmt: skip
            if name == "extinction_error":
                refuse(value <= 0, column, value, "is no error", "above 0", "drop those stars")
            if name in ("parallax_error", "distance_error"):
                refuse(value < 0, column, value, "is no error", "0 or more", "drop those stars")
            if name == "extinction":
                wrong = (value <= POSSIBLE[0]) | (value >= POSSIBLE[1])
                refuse(wrong, column, value, "is no extinction", "-10 to 100", "drop those stars")
            if name in ("b", "dec"):
                refuse(np.abs(value) > 90, column, value, "is no latitude", "deg, -90 to 90",
                       "drop or mend those rows")  # fmt: skip
            if name == "distance":
                refuse(value <= 0, column, value, "is no distance", "pc, above 0", "mend it")
        batch = {"direction": self._direction(values)}
        if "distance" in values:
            parallax = 1e3 / values["distance"]
            error = parallax * values.get("distance_error", 0 * parallax) / values["distance"]
        else:
            parallax, error = values["parallax"], values["parallax_error"]
            refuse((parallax <= 0) & (error == 0), str(self.columns.get("parallax", "parallax")),
                   parallax, "is not positive and exact: no distance", "mas, above 0",
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
                self.say(
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
