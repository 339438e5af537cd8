"""Rotation periods and colours: stars of open clusters to learn from, or any to be aged."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch

from orrery.datamodules.base import CatalogueData, Rows
from orrery.datamodules.batches import PredictionBatch
from orrery.datamodules.columns import CatalogueColumn, Column
from orrery.datamodules.values import refuse
from orrery.physics.rotation import gyrochrones
from orrery.physics.rotation.gyrochrones import (
    MISSING_COLOUR_ERROR,
    MISSING_PERIOD_ERROR,
    POSSIBLE_COLOURS,
    POSSIBLE_PERIODS,
)
from orrery.tables import Catalogue

FEWEST_CLUSTERS = 3
REDDENING = {"ebv": 1.0, "a_v": 1 / 3.1}  # E(B - V) of each
E_BP_RP, A_G = 1.339, 2.74  # of E(B - V), of a G star: Casagrande & VandenBerg (2018), table 2
AGE_ERROR = 0.05  # dex, of a cluster without one
REDDEST = 25.0  # mag, of a colour before it is dereddened
NO_ID = ("", "nan", "--", "None", "0")
ABOVE = (-1.5, 3.0)  # mag above the dwarfs, beyond which it is taken as that
EVOLVED, EVOLVED_LOGG = 0.9, 4.1  # mag above the dwarfs, more than any binary's; log g below


def _optional(name: str, unit: str | None, meaning: str, low: float, high: float) -> Column:
    """Unknown where it is not there or impossible, -999 and 99 among them."""
    return Column(name, unit, meaning, low, high, missing=np.nan, training="optional")


class GyroData(CatalogueData):
    """Periods, d, and colours (BP - RP)_0, mag, with their errors; in training also clusters' ages.

    Columns by role: ``prot`` and ``e_prot``, ``bp_rp0`` and ``e_bp_rp0``, ``mem_prob``; in training
    ``cluster``, ``age``, Myr, and ``e_age``, dex. Errors and memberships are optional, and so are
    ``g0`` with ``parallax``, mas, and ``logg``: they tell stars that are no dwarfs. With
    ``columns.ebv`` or ``columns.a_v`` colours and G are dereddened. A star whose period or colour
    is no number is an error in training, and gets no age in prediction. ``leave_out``: a cluster
    that is not trained on; its stars are the test.

    Without ``path``: `physics.rotation.gyrochrones`, clusters of known ages, drawn apart for the
    test.
    """

    declared: ClassVar = {
        "prot": Column(
            "prot_d", "d", "rotation period", *POSSIBLE_PERIODS, "()", missing=np.nan, strict=True
        ),
        "e_prot": replace(
            _optional("e_prot_d", "d", "error of the period; 2% where unknown", 0, 500),
            unit_of="prot",
        ),
        "bp_rp0": Column(
            "bp_rp0", "mag", "colour BP - RP, dereddened or to be", -2, REDDEST, missing=np.nan,
            strict=True,
        ),
        "e_bp_rp0": replace(
            _optional("e_bp_rp0", "mag", "error of the colour", 0, 5),
            missing=MISSING_COLOUR_ERROR,
            unit_of="bp_rp0",
        ),
        "mem_prob": replace(
            _optional("mem_prob", None, "probability to be a member", 0, 1),
            missing=1.0,
            above_high="they are to be from 0 to 1; are they per cent?",
        ),
        "g0": _optional("g0", "mag", "apparent magnitude G, dereddened or to be", -2, 30),
        "parallax": _optional("parallax_mas", "mas", "parallax", 1e-3, 2000),
        "logg": _optional("logg", None, "log10 of the surface gravity, cm/s2", -1, 6),
        "id": Column(
            "star_id", meaning="name, by which stars of a group that come twice are counted once",
            kind="text", training="unused", prediction="optional",
        ),
        "age": Column("age_myr", "Myr", "age of the cluster", low=0, ends="()", truth=True),
        "e_age": Column(
            "e_age_dex", meaning="error of log10 age", low=0, high=2, missing=AGE_ERROR,
            training="optional", prediction="unused",
        ),
        "cluster": Column("cluster", meaning="its name", kind="text", prediction="unused"),
        "ebv": Column(
            "ebv", "mag", "E(B - V), by which colour and G are dereddened", -0.3, 20,
            missing=np.nan, training="named",
        ),
        "a_v": Column(
            "a_v", "mag", "A_V, in place of E(B - V)", -1, 60, missing=np.nan, training="named"
        ),
        "good": Column(
            "good", meaning="1: of good quality, to be trained on", kind="flag",
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
        self._seen: dict[str, int] = {}  # names of clusters in the order in which they come
        self._ids: set[tuple[str, str]] = set()

    def roles(self, catalogue: Catalogue, training: bool) -> Mapping[str, CatalogueColumn]:
        if len(both := [role for role in REDDENING if role in self.columns]) > 1:
            raise ValueError(f"data.columns.{' and data.columns.'.join(both)}: name one of them")
        roles = dict(super().roles(catalogue, training))
        if not self.group_by:
            roles.pop("id", None)
        return roles

    def to_batch(self, columns: Mapping[str, np.ndarray], training: bool) -> Rows:
        prot, colour = columns["prot"], columns["bp_rp0"]
        bright = columns["g0"] + 5 * np.log10(columns["parallax"] / 100)
        for role, per_mag in REDDENING.items():
            if role in columns:
                ebv = per_mag * columns[role]
                colour, bright = colour - E_BP_RP * ebv, bright - A_G * ebv
        self._check_scale(prot)
        odd = ~((colour > POSSIBLE_COLOURS[0]) & (colour < POSSIBLE_COLOURS[1]))
        if training:
            name = self.columns.get("bp_rp0", "bp_rp0")
            expected = "mag, -1.5 to 6, after dereddening"
            refuse(odd, name, colour, "is not a valid colour", expected, "drop those stars")
        bad = np.isnan(prot)
        valid = ~(bad | odd)
        prot, colour = np.where(valid, prot, 1.0), np.where(valid, colour, 1.0)
        e_prot = np.where(columns["e_prot"] > 0, columns["e_prot"] / prot, MISSING_PERIOD_ERROR)
        known = colour.clip(gyrochrones.DWARF_COLOUR[0], gyrochrones.DWARF_COLOUR[-1])
        above = (gyrochrones.dwarf_magnitude(known) - bright).clip(*ABOVE)
        above = np.nan_to_num(above)
        batch = {
            "log_period": torch.from_numpy(np.log10(prot)).float(),
            "log_period_error": torch.from_numpy(e_prot / np.log(10)).float(),
            "colour": torch.from_numpy(colour).float(),
            "colour_error": torch.from_numpy(columns["e_bp_rp0"]).float(),
            "mem_prob": torch.from_numpy(columns["mem_prob"]).float(),
            "above": torch.from_numpy(above).float(),
            "valid": torch.from_numpy(valid),
        }
        if "age" in columns:
            batch["log_age"] = torch.from_numpy(np.log10(columns["age"])).float()
        if training:
            return batch | {
                "log_age_error": torch.from_numpy(columns["e_age"]).float(),
                "cluster": self._cluster(columns["cluster"]),
            }
        evolved = (above > EVOLVED) | (columns["logg"] < EVOLVED_LOGG)
        batch |= {
            "evolved": torch.from_numpy(evolved),
            "repeated": torch.from_numpy(self._repeated(columns)),
        }
        return batch

    def prediction_batches(self, rank: int = 0, world: int = 1) -> Iterator[PredictionBatch]:
        self._ids.clear()  # who comes twice, comes twice in one pass
        if world > 1 and self.group_by:
            self.warn_once(
                f"{self.label}: of stars that come twice those are found that one process meets; "
                f"groups are safer with one process"
            )
        yield from super().prediction_batches(rank, world)

    def _check_scale(self, prot: np.ndarray) -> None:
        good = prot[np.isfinite(prot) & (prot > 0)]
        if len(good) >= 20 and np.median(good) > 60:
            self.warn_once(
                f"{self.label}: most of column '{self.columns.get('prot', 'prot_d')}' is above 60: "
                f"are the periods in hours? They are taken as days; divide them by 24, or give the "
                f"column its unit"
            )

    def _cluster(self, names: np.ndarray) -> torch.Tensor:
        found = [self._seen.setdefault(str(name), len(self._seen)) for name in names]
        return torch.tensor(found)

    def _repeated(self, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        """Of stars that shall have one age: which were there before, by their id."""
        repeated = np.zeros(len(columns["prot"]), bool)
        if "id" in columns and "group_by" in columns:
            for i, star in enumerate(zip(columns["group_by"], columns["id"], strict=True)):
                key = (str(star[0]), str(star[1]).strip())
                repeated[i] = key in self._ids
                if key[1] not in NO_ID:
                    self._ids.add(key)
        if repeated.any():
            name = self.columns.get("id", self.declared["id"].name)
            self.warn_once(f"{self.label}: stars come twice, by column '{name}'; each counts once")
        return repeated

    def _chosen_rows(self, catalogue: Catalogue) -> np.ndarray | None:
        """Besides the cuts: stars with a period and a colour, of good quality if told."""
        chosen = super()._chosen_rows(catalogue)
        mask = self._of_quality(catalogue)
        mask = mask if chosen is None else mask & chosen
        if (left := len(catalogue) - int(mask.sum())) and self.path is not None:
            self.warn_once(
                f"{self.label}: {left:,} of {len(catalogue):,} stars are left out of training: no "
                f"period or colour, good != 1, or a cut"
            )
        return mask & ~self._left_out(catalogue) if self.leave_out else mask

    def _of_quality(self, catalogue: Catalogue) -> np.ndarray:
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

    def _left_out(self, catalogue: Catalogue) -> np.ndarray:
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
            return self._left_out(catalogue) & self._of_quality(catalogue)
        return super()._predicted_rows(catalogue)

    def setup(self, stage: str | None = None) -> None:
        if stage != "fit" or self.rows:
            return
        super().setup(stage)
        names = sorted(self._seen)
        if "" in names or len(names) < FEWEST_CLUSTERS:
            raise ValueError(
                f"{self.label}: clusters {', '.join(map(repr, names))}; each network leaves one "
                f"out, so that there are to be {FEWEST_CLUSTERS} or more, each with a name"
            )
        place = torch.tensor([names.index(name) for name in self._seen])
        for rows in self.rows.values():
            rows["cluster"] = place[rows["cluster"]]
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
        """Ages within their errors, the same for all stars of a cluster."""
        shift = torch.randn(len(self.clusters), generator=generator)[batch["cluster"]]
        return {**batch, "log_age": batch["log_age"] + shift * batch["log_age_error"]}

    def model_arguments(self) -> dict[str, Any]:
        return {"clusters": self.clusters}

    def inferred_settings(self) -> dict[str, Any]:
        return {"clusters": self.clusters}

    def simulate(self, split: str) -> dict[str, np.ndarray]:
        """Ages of clusters are as the literature would have them, those of the test are true."""
        test = split == "test"
        random = np.random.default_rng([self.seed, test])
        error = 0.0 if test else AGE_ERROR
        return gyrochrones.simulate(random, self.n_clusters, self.n_stars[test], error)

    def provenance(self) -> dict[str, Any]:
        if self.path is not None:
            return super().provenance()
        sizes = {"n_clusters": self.n_clusters, "n_train": self.n_stars[0]}
        return super().provenance() | sizes | {"n_test": self.n_stars[1]}
