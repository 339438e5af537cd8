"""Rotation periods and colours: of open clusters, for training, or of any stars."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch

from orrery.datamodules.base import CatalogueData, Rows
from orrery.datamodules.batches import PredictionBatch
from orrery.datamodules.columns import CatalogueColumn, Column, located
from orrery.datamodules.reddening import extinction_columns
from orrery.datamodules.values import refuse
from orrery.physics.rotation import colours, gyrochrones
from orrery.physics.rotation.gyrochrones import (
    EVOLVED_LOGG,
    EVOLVED_MAG,
    MISSING_COLOUR_ERROR,
    MISSING_PERIOD_ERROR,
    POSSIBLE_COLOURS,
    POSSIBLE_PERIODS,
)
from orrery.tables import Catalogue

MIN_CLUSTERS = 3
MISSING_ERRORS = {"teff": 100.0, "b_v0": 0.03, "g_rp0": 0.02}  # K, mag
A_G = 2.74  # per E(B - V) of a G star: Casagrande & VandenBerg (2018), table 2
# E(B - V) per mag of each measure of reddening
EBV_PER_MAG = {"ebv": 1.0, "a_v": 1 / 3.1, "ebpminrp": 1 / colours.REDDENING["bp_rp0"]}
# names of columns that hold another measure of colour
OTHER_MEASURES = {
    "g_rp0": r"(phot_)?g_?(mean_?)?(minus_|-)?_?rp.*", "b_v0": r"b_?(minus_|-)?_?v.*",
    "teff": r".*teff.*|.*temperature.*",
}  # fmt: skip
DEFAULT_AGE_ERROR = 0.05  # dex, of a cluster without one
MAX_REDDENED_COLOUR = 25.0  # mag, before dereddening
NO_ID = ("", "nan", "--", "None", "0", "-1", "-9", "-99", "-999", "-9999")
OVERLUMINOSITY_LIMITS = (-1.5, 3.0)  # mag, to which it is clipped


def _optional(name: str, unit: str | None, meaning: str, low: float, high: float) -> Column:
    """A column whose values are unknown where absent or impossible, -999 and 99 among them."""
    return Column(name, unit, meaning, low, high, missing=np.nan, training="optional")


def _instead(name: str, unit: str, meaning: str, low: float, high: float) -> Column:
    """A column in place of another one, where the user names it."""
    return replace(_optional(name, unit, meaning, low, high), training="chosen")


class GyroData(CatalogueData):
    """Periods, d, and colours (BP - RP)_0, mag, with their errors; in training also clusters' ages.

    A batch holds, each (batch,), ``log_period`` (log10 d), ``log_period_error`` (dex), ``colour``
    and ``colour_error`` (mag), ``mem_prob``, ``overluminosity`` (mag above the sequence of dwarfs,
    0 where unknown) and ``valid`` (bool); ``log_age`` (log10 Myr) where the catalogue has ages. In
    training also ``log_age_error`` (dex), ``cluster`` (int64) and ``weight``; in prediction
    ``is_evolved`` and ``is_duplicate`` (bool).

    Errors and memberships are optional, and so are ``g0`` with ``parallax`` and ``logg``, which
    identify stars that are not dwarfs. With ``columns.ebv`` or ``columns.a_v`` colours and G are
    dereddened. A star without a valid period or colour is refused in training, and gets no age in
    prediction.

    Without ``path``: the simulation of `physics.rotation.gyrochrones`, clusters of known ages.

    Args:
        n_clusters: clusters of the simulation.
        n_train: stars of the simulation.
        n_test: test stars of the simulation, of other clusters.
        clusters: name -> log10 age, Myr; of the training data, by ``setup``.
        weight_power: a star is weighted by its cluster's number of stars to minus this power.
        leave_out: a cluster that is not trained on; its stars are the test split.
        catalogue: settings of `CatalogueData`.
    """

    decided_by_training: ClassVar = frozenset(("clusters",))
    declared: ClassVar = {
        "prot": Column(
            "prot_d", "d", "rotation period", *POSSIBLE_PERIODS, "()", missing=np.nan, strict=True,
            typical=(0, 60), typical_hint="are they hours?",
        ),
        "e_prot": replace(
            _optional("e_prot_d", "d", "error of the period; 2% where unknown", 0, 500),
            unit_of="prot",
        ),
        "bp_rp0": Column(
            "bp_rp0", "mag", "colour BP - RP, dereddened or corrected here", -2,
            MAX_REDDENED_COLOUR, missing=np.nan, strict=True,
        ),
        "e_bp_rp0": replace(
            _optional("e_bp_rp0", "mag", "error of the colour", 0, 5),
            missing=MISSING_COLOUR_ERROR,
            unit_of="bp_rp0",
        ),
        "teff": _instead("teff", "K", "effective temperature, in place of the colour", 2000, 9000),
        "b_v0": _instead("b_v0", "mag", "B - V, in place of the colour", -1, 25),
        "g_rp0": _instead("g_rp0", "mag", "G - RP, in place of the colour", -1, 15),
        "e_teff": _instead("e_teff", "K", "error of the temperature; 100 K where unknown", 0, 5000),
        "e_b_v0": _instead("e_b_v0", "mag", "error of B - V; 0.03 where unknown", 0, 5),
        "e_g_rp0": _instead("e_g_rp0", "mag", "error of G - RP; 0.02 where unknown", 0, 5),
        "e_prot_lower": _instead("e_prot_lower", "d", "downward error of the period", 0, 500),
        "e_prot_upper": _instead("e_prot_upper", "d", "upward error of the period", 0, 500),
        "mem_prob": replace(
            _optional("mem_prob", None, "membership probability", 0, 1),
            missing=1.0,
            above_high="expected fractions from 0 to 1; are they per cent?",
        ),
        "g0": _optional("g0", "mag", "apparent magnitude G, dereddened or corrected here", -2, 30),
        "parallax": _optional("parallax_mas", "mas", "parallax", 1e-3, 2000),
        "logg": _optional("logg", None, "log10 of the surface gravity, cm/s2", -1, 6),
        "id": Column(
            "star_id", meaning="identifier; duplicates within a group are counted once",
            kind="text", training="unused", prediction="optional",
        ),
        "age": Column(
            "age_myr", "Myr", "age of the cluster", low=0, ends="()", truth=True,
            typical=(14, 14_000), typical_hint="are they Gyr, or years?",
        ),
        "e_age": Column(
            "e_age_dex", meaning="error of log10 age", low=0, high=2, missing=DEFAULT_AGE_ERROR,
            training="optional", prediction="unused",
        ),
        "cluster": Column("cluster", meaning="cluster's name", kind="text", prediction="unused"),
        "ebv": Column(
            "ebv", "mag", "E(B - V), to deredden colour and G", -0.3, 20,
            missing=np.nan, training="named",
        ),
        "a_v": Column(
            "a_v", "mag", "A_V, in place of E(B - V)", -1, 60, missing=np.nan, training="named"
        ),
        "ebpminrp": Column(
            "ebpminrp", "mag", "E(BP - RP), in place of E(B - V)", -0.4, 30,
            missing=np.nan, training="named",
        ),
        "good": Column(
            "good", meaning="quality: training takes the stars where it is 1", kind="flag",
            training="unused", prediction="unused",
        ),
    }  # fmt: skip

    def __init__(
        self,
        n_clusters: int = 24,
        n_train: int = 6000,
        n_test: int = 2000,
        clusters: Mapping[str, float] | None = None,
        weight_power: float = 0.5,
        leave_out: str | None = None,
        **catalogue: Any,
    ) -> None:
        super().__init__(**catalogue)
        self.n_clusters, self.n_stars = n_clusters, (n_train, n_test)
        self.clusters = dict(clusters or {})  # name -> log10 age, Myr
        self.weight_power, self.leave_out = weight_power, leave_out
        self._cluster_index: dict[str, int] = {}  # by name, in order of appearance
        self._star_ids: set[tuple[str, str]] = set()  # (group, identifier)

    def roles(self, catalogue: Catalogue, training: bool) -> Mapping[str, CatalogueColumn]:
        if len(both := [role for role in EBV_PER_MAG if role in self.columns]) > 1:
            raise ValueError(f"data.columns.{' and data.columns.'.join(both)}: name one of them")
        if len(both := [role for role in colours.MEASURES if role in self.columns]) > 1:
            raise ValueError(f"data.columns.{' and data.columns.'.join(both)}: name one of them")
        colour = str(self.columns.get("bp_rp0", ""))
        for measure, pattern in OTHER_MEASURES.items():
            if re.fullmatch(pattern, colour, re.I):
                raise ValueError(
                    f"data.columns.bp_rp0={colour}: by its name this is no BP - RP; name it "
                    f"data.columns.{measure}={colour}, from which the colour is estimated"
                )
        roles = dict(super().roles(catalogue, training))
        for role, column in self.declared.items():
            if column.training == "chosen" and role in self.columns:
                roles[role] = located(self.declared, self.columns, catalogue, role)
        is_corrected = not EBV_PER_MAG.keys().isdisjoint(self.columns)
        found = extinction_columns(catalogue.names)
        if colour and found and not is_corrected and not self.is_simulation:
            self.warn_once(
                f"{self.label}: {', '.join(found[:5])} not used, and '{colour}' is taken as "
                f"dereddened. If it is not, name one: data.columns.ebv=<column> (or a_v, ebpminrp)"
            )
        if both:
            roles.pop("bp_rp0", None)
        if not self.group_by:
            roles.pop("id", None)
        return roles

    def to_batch(self, columns: Mapping[str, np.ndarray], training: bool) -> Rows:
        prot = columns["prot"]
        absolute_g = columns["g0"] + 5 * np.log10(columns["parallax"] / 100)
        ebv = next((f * columns[role] for role, f in EBV_PER_MAG.items() if role in columns), None)
        colour, colour_error = self._colour(columns, 0.0 if ebv is None else ebv)
        if ebv is not None:
            absolute_g = absolute_g - A_G * ebv
        impossible = ~((colour > POSSIBLE_COLOURS[0]) & (colour < POSSIBLE_COLOURS[1]))
        if training:
            name = self.columns.get("bp_rp0", "bp_rp0")
            expected = "mag, -1.5 to 6, after dereddening"
            refuse(impossible, name, colour, "is not a valid colour", expected, "drop those stars")
        valid = ~(np.isnan(prot) | impossible)
        prot, colour = np.where(valid, prot, 1.0), np.where(valid, colour, 1.0)
        e_prot = columns["e_prot"]
        if "e_prot_lower" in columns and "e_prot_upper" in columns:
            e_prot = np.sqrt(0.5 * (columns["e_prot_lower"] ** 2 + columns["e_prot_upper"] ** 2))
        e_prot = np.where(e_prot > 0, e_prot / prot, MISSING_PERIOD_ERROR)
        dwarf_colour = colour.clip(gyrochrones.DWARF_COLOUR[0], gyrochrones.DWARF_COLOUR[-1])
        overluminosity = gyrochrones.dwarf_magnitude(dwarf_colour) - absolute_g
        overluminosity = np.nan_to_num(overluminosity.clip(*OVERLUMINOSITY_LIMITS))
        batch = {
            "log_period": torch.from_numpy(np.log10(prot)).float(),
            "log_period_error": torch.from_numpy(e_prot / np.log(10)).float(),
            "colour": torch.from_numpy(colour).float(),
            "colour_error": torch.from_numpy(colour_error).float(),
            "mem_prob": torch.from_numpy(columns["mem_prob"]).float(),
            "overluminosity": torch.from_numpy(overluminosity).float(),
            "valid": torch.from_numpy(valid),
        }
        if "age" in columns:
            batch["log_age"] = torch.from_numpy(np.log10(columns["age"])).float()
        if training:
            return batch | {
                "log_age_error": torch.from_numpy(columns["e_age"]).float(),
                "cluster": self._cluster_indices(columns["cluster"]),
            }
        is_evolved = (overluminosity > EVOLVED_MAG) | (columns["logg"] < EVOLVED_LOGG)
        return batch | {
            "is_evolved": torch.from_numpy(is_evolved),
            "is_duplicate": torch.from_numpy(self._is_duplicate(columns)),
        }

    def _colour(
        self, columns: Mapping[str, np.ndarray], ebv: np.ndarray | float
    ) -> tuple[np.ndarray, np.ndarray]:
        """(BP - RP)_0 and its error, mag, of the colour or of what stands in its place."""
        measure = next((role for role in colours.MEASURES if role in columns), "bp_rp0")
        values = columns[measure] - colours.REDDENING[measure] * ebv
        if measure == "bp_rp0":
            return values, columns["e_bp_rp0"]
        typical = np.full(len(values), MISSING_ERRORS[measure])
        errors = columns.get(f"e_{measure}", typical)
        colour, error = colours.bp_rp(measure, values, np.where(np.isnan(errors), typical, errors))
        return colour, np.nan_to_num(error, nan=MISSING_COLOUR_ERROR)

    def prediction_batches(self, rank: int = 0, world: int = 1) -> Iterator[PredictionBatch]:
        self._star_ids.clear()  # duplicates are those of one pass
        if world > 1 and self.group_by:
            self.warn_once(
                f"{self.label}: duplicates are counted once only within each process; use one "
                f"process for data.group_by"
            )
        yield from super().prediction_batches(rank, world)

    def _cluster_indices(self, names: np.ndarray) -> torch.Tensor:
        index = self._cluster_index
        return torch.tensor([index.setdefault(str(name), len(index)) for name in names])

    def _is_duplicate(self, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        """Mask of the stars whose identifier came before in the same group and pass."""
        mask = np.zeros(len(columns["prot"]), bool)
        if "id" in columns and "group_by" in columns:
            for i, star in enumerate(zip(columns["group_by"], columns["id"], strict=True)):
                key = (str(star[0]), str(star[1]).strip())
                mask[i] = key in self._star_ids
                if key[1] not in NO_ID:
                    self._star_ids.add(key)
        if mask.any():
            name = self.columns.get("id", self.declared["id"].name)
            self.warn_once(
                f"{self.label}: duplicate stars, by column '{name}'; each is counted once"
            )
        return mask

    def _chosen_rows(self, catalogue: Catalogue) -> np.ndarray | None:
        """Mask of the stars with a period and a colour, and ``good`` if there, within the cuts."""
        cuts = super()._chosen_rows(catalogue)
        mask = self._has_quality(catalogue)
        mask = mask if cuts is None else mask & cuts
        if (removed := len(catalogue) - int(mask.sum())) and self.path is not None:
            self.warn_once(
                f"{self.label}: {removed:,} of {len(catalogue):,} stars are left out of training: "
                f"no period or colour, good != 1, or a cut"
            )
        return mask & ~self._is_left_out(catalogue) if self.leave_out else mask

    def _has_quality(self, catalogue: Catalogue) -> np.ndarray:
        """Mask of the stars with a possible period and colour, and ``good`` 1 where it is there."""
        mask = np.ones(len(catalogue), bool)
        for role, (low, high) in {
            "prot": POSSIBLE_PERIODS,
            "bp_rp0": POSSIBLE_COLOURS,
            "good": (0.5, 1.5),
        }.items():
            values = self._values(catalogue, role)
            if values is not None:
                mask &= (values > low) & (values < high)
        return mask

    def _is_left_out(self, catalogue: Catalogue) -> np.ndarray:
        """Mask of the stars of the cluster that is not trained on."""
        column = self.columns.get("cluster", "cluster")
        names = np.concatenate([c[column].astype(str) for c in catalogue.chunks([column])])
        if not (mask := names == self.leave_out).any():
            raise ValueError(
                f"data.leave_out: there is no cluster '{self.leave_out}' in {self.label}; there "
                f"are {', '.join(sorted(set(names)))}"
            )
        return mask

    def _predicted_rows(self, catalogue: Catalogue) -> np.ndarray | None:
        if self.split == "test" and self.path is not None and self.leave_out:
            return self._is_left_out(catalogue) & self._has_quality(catalogue)
        return super()._predicted_rows(catalogue)

    def setup(self, stage: str | None = None) -> None:
        if stage != "fit" or self.rows:
            return
        super().setup(stage)
        names = sorted(self._cluster_index)
        if "" in names or len(names) < MIN_CLUSTERS:
            raise ValueError(
                f"{self.label}: clusters {', '.join(map(repr, names))}; each network leaves one "
                f"out: expected {MIN_CLUSTERS} or more, each with a name"
            )
        sorted_index = torch.tensor([names.index(name) for name in self._cluster_index])
        for rows in self.rows.values():
            rows["cluster"] = sorted_index[rows["cluster"]]
        log_age, cluster = (
            torch.cat([rows[key] for rows in self.rows.values()]) for key in ("log_age", "cluster")
        )
        self.clusters = {n: float(log_age[cluster == i].median()) for i, n in enumerate(names)}
        train = self.rows["train"]
        count = torch.bincount(train["cluster"], minlength=len(names)).clamp_min(1).float()
        mean = (count[train["cluster"]] ** -self.weight_power).mean()
        for rows in self.rows.values():
            rows["weight"] = count[rows["cluster"]] ** -self.weight_power / mean

    def augment(self, batch: Rows, generator: torch.Generator) -> Rows:
        """Ages drawn within their errors, the same shift for all stars of a cluster."""
        shift = torch.randn(len(self.clusters), generator=generator)[batch["cluster"]]
        return {**batch, "log_age": batch["log_age"] + shift * batch["log_age_error"]}

    def model_arguments(self) -> dict[str, Any]:
        return {"clusters": self.clusters}

    def inferred_settings(self) -> dict[str, Any]:
        return {"clusters": self.clusters}

    def simulate(self, split: str) -> dict[str, np.ndarray]:
        """Stars of clusters; ages have the literature's errors in training, none in the test."""
        test = split == "test"
        random = np.random.default_rng([self.seed, test])
        error = 0.0 if test else DEFAULT_AGE_ERROR
        return gyrochrones.simulate(random, self.n_clusters, self.n_stars[test], error)

    def true_log_density(self) -> Callable[..., np.ndarray] | None:
        """The density from which the simulation draws periods; None of a catalogue."""
        return gyrochrones.log_density if self.is_simulation else None

    def provenance(self) -> dict[str, Any]:
        if self.path is not None:
            return super().provenance()
        sizes = {"n_clusters": self.n_clusters, "n_train": self.n_stars[0]}
        return super().provenance() | sizes | {"n_test": self.n_stars[1]}
