"""Stars in phase space: simulated ejections from clusters, and catalogues of stars."""

import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from astropy.table import Table
from numpy.ma import MaskedArray

from orrery.datamodules.base import CatalogueData, Rows
from orrery.datamodules.columns import HINT, CatalogueColumn, located
from orrery.datamodules.gems.columns import DECLARED, MOST_RV_ERROR, RV_ERRORS
from orrery.datamodules.gems.mock import MockRequest
from orrery.datamodules.gems.settings import (
    checked_duration,
    checked_errors,
    checked_kick,
    checked_potential,
    chosen_clusters,
)
from orrery.datamodules.values import BadValue, refuse
from orrery.physics.ejections import population
from orrery.physics.ejections.clusters import Clusters
from orrery.physics.ejections.field import draw_field
from orrery.physics.ejections.structure import core_structure
from orrery.physics.milky_way.actions import staeckel_actions
from orrery.physics.milky_way.frames import galactocentric, observed
from orrery.physics.milky_way.potentials import milky_way
from orrery.tables import Catalogue, read_table
from orrery.tables.columns import resolve

__all__ = ["GemsData", "MockRequest"]

PARALLAX_ZERO_POINT = -0.04  # mas, the mean of Gaia DR3 for faint stars: Lindegren et al. (2021)
GOOD_PARALLAX = 5.0  # errors: of stars to learn the field from
FIELD = "field"
TEST_SEED = 7919  # of the simulated test stars, to differ from those trained on
MANY = 20  # stars, whose positions tell whether they are in degrees
FEWEST_OF_FIELD = 100  # stars of a catalogue with a velocity, to learn the field from
GALACTIC = (("l", "b"), ("glon", "glat"))  # names of places in Galactic coordinates

# Names of radial velocities in surveys, and not of their errors
VELOCITIES = re.compile(
    r"(?i)^(?!.*(err|^e_|scatter|flag|nb_)).*(radial_vel|^rv|_rv$|rv_|vhelio|vrad|^hrv|v_?hel)"
)

NOT_THERE = {
    "radial_velocity": "there is no radial velocity, and all are thought possible: hosts are "
    "uncertain",
    "pmra_error": "there are no errors of proper motions in RA, which are taken as exact",
    "pmdec_error": "there are no errors of proper motions in declination, which are taken as exact",
    "radial_velocity_error": "there are no errors of radial velocities, which are taken as exact",
}


class GemsData(CatalogueData):
    """Stars with position, distance and velocity; for training, simulated ejections and a field.

    Training simulates ejections of every cluster (`physics.ejections.population`) and a field
    (`physics.ejections.field`); with ``data.path`` the field is that of the catalogue. The test
    stars are ejections of each cluster, moved on to today, and ``field_ratio`` times as many field
    stars, observed with ``errors``; with ``data.path`` the latter are the catalogue's held out.

    A training batch holds ``J`` (batch, 3), kpc km/s, and ``host`` (batch,), the number of the
    cluster, the field the last. Other batches hold, float64, each (batch,): ``ra``, ``dec`` (deg),
    ``distance``, ``distance_error`` (kpc), ``parallax``, ``parallax_error`` (mas; zero point
    taken off), ``pmra``, ``pmdec`` and their errors (mas/yr), ``pmra_pmdec_corr``,
    ``radial_velocity`` and its error (km/s), NaN where they are not known; ``host`` where a truth
    is, -1 where it is blank.

    Args:
        n_per_cluster: simulated ejections of each cluster.
        n_field: simulated field stars.
        n_test_per_cluster: ejections of each cluster to test on.
        field_ratio: field stars per ejected one among the test stars.
        clusters: a table of clusters (ECSV), or names of the Galaxy's to take; null: all of them.
        potential: of the Galaxy, one of `POTENTIALS`.
        duration: Gyr, over which clusters eject stars.
        kick: median (km/s) and sigma of lognormal speeds of ejection; null: encounters of three
            stars in the cluster's core.
        errors: of the test stars: relative one of the distance, of proper motions (mas/yr), of
            radial velocities (km/s).
        parallax_zero_point: mas, taken off parallaxes.
        catalogue: settings of `CatalogueData`.
    """

    declared: ClassVar = DECLARED
    decided_by_training: ClassVar = frozenset(("clusters", "potential"))

    def __init__(
        self,
        n_per_cluster: int = 2000,
        n_field: int = 100_000,
        n_test_per_cluster: int = 20,
        field_ratio: float = 10.0,
        clusters: str | Sequence[str] | None = None,
        potential: str = "mwpotential2014",
        duration: float = 5.0,
        kick: Mapping[str, float] | None = None,
        errors: Mapping[str, float] | None = None,
        parallax_zero_point: float = PARALLAX_ZERO_POINT,
        **catalogue: Any,
    ) -> None:
        super().__init__(**catalogue)
        self._asked_clusters = clusters
        self.n_per_cluster, self.n_field = n_per_cluster, n_field
        self.n_test_per_cluster, self.field_ratio = n_test_per_cluster, field_ratio
        self.potential, self.duration = checked_potential(potential), checked_duration(duration)
        self.kick = checked_kick(kick)
        self.errors = checked_errors(errors or {})
        self.parallax_zero_point = parallax_zero_point
        if not isinstance(clusters, str):
            _ = self.clusters  # misspelt names are refused here, and a table when it is needed

    @cached_property
    def clusters(self) -> Clusters:
        """Clusters that eject stars; a table of them is not needed to predict."""
        return chosen_clusters(self._asked_clusters)

    def model_arguments(self) -> dict[str, Any]:
        return {
            "clusters": list(self.clusters.names),
            "potential": self.potential,
            "duration": self.duration,
        }

    def cluster_table(self) -> torch.Tensor:
        """See `physics.ejections.population.cluster_table`."""
        return population.cluster_table(self.clusters, self.kick)

    # --- training -----------------------------------------------------------------------------

    def setup(self, stage: str | None = None) -> None:
        if stage != "fit" or self.rows:
            return
        if self.path is not None or self.table is not None:
            field = self._field_of_catalogue(stage)
        else:
            field = self.field_actions(self.n_field)
        J = population.sprayed_actions(
            self.n_per_cluster, self.clusters, self.potential, self.duration, self.kick, self.seed
        )
        host = torch.arange(len(self.clusters)).expand(J.shape[:2])
        J = torch.cat([J.flatten(0, 1), field])
        host = torch.cat([host.flatten(), host.new_full((len(field),), len(self.clusters))])
        bound = J.isfinite().all(1)
        rows = {"J": J[bound], "host": host[bound]}
        order = torch.randperm(len(rows["J"]), generator=_generator(self.seed, 2))
        n_val = max(1, round(self.val_fraction * len(order)))
        for name, index in (("val", order[:n_val]), ("train", order[n_val:])):
            self.rows[name] = {key: values[index] for key, values in rows.items()}
            self.rows[name]["row"] = torch.arange(len(index))

    def _field_of_catalogue(self, stage: str) -> torch.Tensor:
        """Actions of the catalogue's stars that are not held out, (n, 3)."""
        super().setup(stage)
        J = torch.cat([self.rows[part]["J"] for part in ("train", "val")])
        self.rows = {}
        known = J[J.isfinite().all(1)]
        if len(known) < FEWEST_OF_FIELD:
            raise ValueError(
                f"{self.label}: {len(known):,} of {len(J):,} stars have a distance and a velocity "
                f"with which they are bound to the Galaxy; expected {FEWEST_OF_FIELD} or more to "
                f"learn the field from. Simulate it: data.path=null"
            )
        self.print_once(f"{self.label}: the field is learned from {len(known):,} of its stars")
        return known

    def field_actions(self, n: int) -> torch.Tensor:
        """Actions of simulated field stars, (n, 3); NaN where one is not bound."""
        x, v, _ = draw_field(n, _generator(self.seed, 1), milky_way(self.potential).axisymmetric)
        return self._actions(x, v)

    def _actions(self, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        galaxy = milky_way(self.potential).axisymmetric
        return population.action_vector(staeckel_actions(x, v, galaxy))

    # --- reading ------------------------------------------------------------------------------

    def roles(self, catalogue: Catalogue, training: bool) -> Mapping[str, CatalogueColumn]:
        names = set(catalogue.names)
        found = {role: located(self.declared, self.columns, catalogue, role)
                 for role in self.declared}  # fmt: skip
        there = {r for r, column in found.items() if r in self.columns or column.name in names}
        lower = {name.lower() for name in names}
        lacks = not {"ra", "dec"} <= there and not lower >= {"ra", "dec"}
        if lacks and any(lower >= set(pair) for pair in GALACTIC):
            raise ValueError(
                f"{self.label}: there are Galactic coordinates, and no ra and dec; positions and "
                f"proper motions are needed in ICRS: SkyCoord(l=..., b=..., pm_l_cosb=..., "
                f"pm_b=..., frame='galactic').icrs of astropy converts both"
            )
        roles = dict(super().roles(catalogue, training))
        for role in self._distances(catalogue, roles, there):
            for name in (role, f"{role}_error"):
                roles[name] = found[name]
        velocity = found["radial_velocity"].name
        if "radial_velocity" in there and (frame := re.search("(?i)gsr|lsr", velocity)):
            raise ValueError(
                f"{self.label}: column '{velocity}' is relative to the {frame[0].upper()} by its "
                f"name; expected barycentric velocities, as Gaia's: convert it, or rename it"
            )
        for role, text in NOT_THERE.items():
            of_what = role.removesuffix("_error")
            known = of_what == role or of_what in roles
            if role not in roles and known and not self.is_simulation:
                near = (
                    [n for n in catalogue.names if VELOCITIES.search(n)] if of_what == role else []
                )
                likely = f" (near: {', '.join(near[:5])})" if near else ""
                self.warn_once(f"{self.label}: {text}; data.columns.{role}=<column>{likely}")
        return roles

    def _distances(
        self, catalogue: Catalogue, roles: Mapping[str, CatalogueColumn], there: set[str]
    ) -> list[str]:
        """Which of distance and parallax is read: both, if there are, with their errors."""
        if not there & {"distance", "parallax"}:
            needed = {role: column.name for role, column in roles.items()}
            try:
                resolve(catalogue.names, {**needed, "distance": "distance"}, self.label)
            except ValueError as error:
                raise ValueError(
                    f"{error}\n  a parallax does as well: data.columns.parallax=<column>"
                ) from error
        both = {"distance", "parallax"} <= there and "parallax" not in self.columns
        if both and "parallax_error" not in there:
            self.warn_once(
                f"{self.label}: column 'parallax' has no error, and is not used; "
                f"data.columns.parallax_error=<column>"
            )
            return ["distance"]
        return [role for role in ("distance", "parallax") if role in there]

    def to_batch(self, columns: Mapping[str, np.ndarray], training: bool) -> Rows:
        n = len(columns["ra"])
        self._check_errors_of_velocity(columns)
        self._ask_about_angles(columns["ra"], columns["dec"])
        batch = {}
        for role, column in self.declared.items():
            if column.kind == "text":
                continue
            values = columns.get(role)
            if values is None:  # errors of velocities that are not there are 0, as `roles` warns
                exact = role in ("pmra_error", "pmdec_error", "radial_velocity_error")
                values = np.full(n, 0.0 if exact else np.nan)
            batch[role] = torch.from_numpy(values)
        batch["parallax"] = batch["parallax"] - self.parallax_zero_point
        unknown = batch["distance_error"].isnan()
        batch["distance"] = batch["distance"].masked_fill(unknown, torch.nan)
        if training:
            good = batch["parallax"] > GOOD_PARALLAX * batch["parallax_error"]
            from_parallax = (1 / batch["parallax"]).where(good, torch.nan)
            distance = torch.where(batch["distance"].isnan(), from_parallax, batch["distance"])
            x, v = galactocentric(
                batch["ra"], batch["dec"], distance,
                batch["pmra"], batch["pmdec"], batch["radial_velocity"],
            )  # fmt: skip
            return {"J": self._actions(x, v)}
        if "host" in columns:
            batch["host"] = torch.from_numpy(self._hosts(columns["host"]))
        return batch

    def _check_errors_of_velocity(self, columns: Mapping[str, np.ndarray]) -> None:
        """Those of radial velocities, where there are any: blank only where these are."""
        error = columns.get("radial_velocity_error")
        if error is None:
            return
        unknown = np.isnan(columns["radial_velocity"]) & np.isnan(error)
        bad = ~((error >= 0) & (error <= MOST_RV_ERROR)) & ~unknown
        name = str(self.columns.get("radial_velocity_error", "radial_velocity_error"))
        refuse(bad, name, error, "is not a valid error", f"km/s, {RV_ERRORS}", HINT)
        exact_zero = (columns["radial_velocity"] == 0) & (error == 0)
        refuse(exact_zero, name, error, "is the error of a radial velocity of exactly 0",
               "a measurement, or a blank", "blank both where they are unknown")  # fmt: skip

    def _ask_about_angles(self, ra: np.ndarray, dec: np.ndarray) -> None:
        """Where stars all over the declinations are within the numbers of hours, or of radians."""
        if self.is_simulation or len(ra) < MANY:
            return
        if np.abs(dec).max() <= np.pi / 2 and np.abs(ra).max() <= 2 * np.pi and np.ptp(ra) > np.pi:
            unit = "radians: data.units.ra=rad data.units.dec=rad"
        elif np.abs(ra).max() <= 24 and np.ptp(ra) > 12 and np.ptp(dec) > 60:
            unit = "hours: data.units.ra=hourangle"
        else:
            return
        self.warn_once(
            f"{self.label}: all right ascensions are below {np.abs(ra).max():.3g}, and are taken "
            f"as degrees; if they are {unit} says so"
        )

    def _hosts(self, names: np.ndarray) -> np.ndarray:
        """Numbers of hosts: clusters', the field's, -1 where it is blank."""
        blank = np.ma.getmaskarray(np.ma.asarray(names))
        text = np.array([
            "" if masked or name is None or name != name else str(name).strip()
            for name, masked in zip(np.ma.getdata(names), blank, strict=True)
        ])  # fmt: skip
        found, which = np.unique(text, return_inverse=True)
        numbers = [self._host(str(name), text) for name in found]
        return np.asarray(numbers, np.int64)[which]

    def _host(self, name: str, text: np.ndarray) -> int:
        if not name:
            return -1
        if name == FIELD:
            return len(self.clusters)
        try:
            return self.clusters.index(name)
        except ValueError as error:
            bad = text == name
            column = self.columns.get("host", "host")
            raise BadValue(
                f"column '{column}': {name!r} is no host", int(bad.argmax()), int(bad.sum()),
                f"a cluster of the model, '{FIELD}', or a blank: {error}",
            ) from error  # fmt: skip

    # --- the test -----------------------------------------------------------------------------

    @property
    def _tests_a_catalogue(self) -> bool:
        """Whether the stars to predict are those held out of a catalogue of the field."""
        return self.path is not None and self.split == "test"

    def open(self, which: str) -> AbstractContextManager[Catalogue]:
        if which != "test" or not self._tests_a_catalogue:
            return super().open(which)
        if which not in self._simulated:
            self._simulated[which] = self._held_out_among_ejected()
        return read_table(self._simulated[which])

    def _predicted_rows(self, catalogue: Catalogue) -> np.ndarray | None:
        return None if self._tests_a_catalogue else super()._predicted_rows(catalogue)

    def _held_out_among_ejected(self) -> Table:
        """The catalogue's stars that are held out, as the field, and simulated ejections."""
        with super().open("fit") as catalogue:
            roles = {r: c for r, c in self.columns_of(catalogue, False).items() if r != "host"}
            chosen = super()._predicted_rows(catalogue)
            chunks = [columns for _, columns in
                      self._read(catalogue, roles, 0, len(catalogue), chosen)]  # fmt: skip
        held_out: dict[str, Any] = {
            role: np.concatenate([column.values(chunk[role], False) for chunk in chunks])
            for role, column in roles.items()
        }
        n = len(held_out["ra"])
        held_out["host"] = np.full(n, FIELD)
        ejected = self._ejected(max(1, round(n / self.field_ratio / len(self.clusters))))
        n_ejected = len(ejected["ra"])
        table = Table()
        for role in dict.fromkeys((*roles, "distance", "distance_error", "host")):
            name = str(self.columns.get(role, self.declared[role].name))
            parts = (held_out.get(role, np.full(n, np.nan)),
                     ejected.get(role, np.full(n_ejected, np.nan)))  # fmt: skip
            table[name] = np.concatenate(parts)
            table[name].unit = self.declared[role].unit
        for name in self.keep:
            values = np.ma.concatenate([chunk[f"keep:{name}"] for chunk in chunks])
            blank: MaskedArray = np.ma.masked_all(n_ejected, values.dtype)
            table[name] = np.ma.concatenate([values, blank])
        return table

    def simulate(self, split: str) -> dict[str, np.ndarray]:
        """Ejected stars as of today and field stars, as they are observed."""
        ejected = self._ejected(self.n_test_per_cluster)
        generator = _generator(self.seed, TEST_SEED + 1)
        n = round(self.field_ratio * len(ejected["ra"]))
        x, v, _ = draw_field(n, generator, milky_way(self.potential).axisymmetric)
        field = {**self.observe(x, v, generator), "host": np.full(n, FIELD)}
        return {name: np.concatenate([ejected[name], field[name]]) for name in ejected}

    def _ejected(self, n: int) -> dict[str, np.ndarray]:
        """``n`` stars of each cluster as of today, those that stay bound, as they are observed."""
        generator = _generator(self.seed, TEST_SEED)
        orbits = population.cluster_orbits(self.clusters, self.potential, self.duration, generator)
        core = core_structure(self.clusters)
        stars = population.eject(n, orbits, core, self.kick, generator)
        bound = self._actions(stars.x, stars.v).isfinite().all(-1)
        stars = population.Ejected(*(values[bound] for values in stars))
        host = torch.arange(len(self.clusters)).expand(bound.shape)[bound]
        table = self.observe(*population.to_today(stars, self.potential), generator)
        return {**table, "host": np.array(self.clusters.names)[host.numpy()]}

    def observe(
        self, x: torch.Tensor, v: torch.Tensor, generator: torch.Generator
    ) -> dict[str, np.ndarray]:
        """Columns of stars at x, kpc, v, km/s, (n, 3), with ``errors``."""
        true = observed(x, v)._asdict()
        error = {
            "distance": self.errors["distance"] * true["distance"],
            "pmra": torch.full_like(true["ra"], self.errors["pm"]),
            "pmdec": torch.full_like(true["ra"], self.errors["pm"]),
            "v_los": torch.full_like(true["ra"], self.errors["rv"]),
        }
        table = {}
        for name, values in true.items():
            column = {"v_los": "radial_velocity"}.get(name, name)
            if name in error:
                noise = torch.randn(len(values), generator=generator, dtype=torch.float64)
                values = values + error[name] * noise
                table[f"{column}_error"] = error[name].numpy()
            table[column] = values.numpy()
        # an error of 10% leaves no distance near 0; one of 50% may
        table["distance"] = np.maximum(table["distance"], 1e-3)
        return table

    def provenance(self) -> dict[str, Any]:
        asked = self._asked_clusters
        settings = {
            "clusters": asked if isinstance(asked, str) else len(self.clusters),
            "potential": self.potential,
            "ejections": f"{self.n_per_cluster:,} of each cluster, over {self.duration:g} Gyr",
        }
        return super().provenance() | settings


def _generator(seed: int, part: int) -> torch.Generator:
    return torch.Generator().manual_seed(1_000_003 * seed + part)
