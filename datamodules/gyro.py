"""Rotation periods and colours: stars of open clusters to learn from, or any to be aged."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import torch

from orrery.datamodules.base import CatalogueData, Rows
from orrery.datamodules.batches import PredictionBatch
from orrery.datamodules.values import numbers, refuse
from orrery.physics.rotation import gyrochrones
from orrery.physics.rotation.gyrochrones import (
    MISSING_COLOUR_ERROR,
    MISSING_PERIOD_ERROR,
    POSSIBLE_COLOURS,
    POSSIBLE_PERIODS,
)
from orrery.tables import Catalogue, convert

ROLES = {
    "prot": ("prot_d", "d"),
    "e_prot": ("e_prot_d", "d"),
    "bp_rp0": ("bp_rp0", "mag"),
    "e_bp_rp0": ("e_bp_rp0", "mag"),
    "mem_prob": ("mem_prob", None),
    "g0": ("g0", "mag"),
    "parallax": ("parallax_mas", "mas"),
    "logg": ("logg", None),
    "id": ("star_id", None),
    "age": ("age_myr", "Myr"),
    "e_age": ("e_age_dex", None),
    "cluster": ("cluster", None),
}
FEWEST_CLUSTERS = 3
NEEDED = ("prot", "bp_rp0")
OF_TRAINING = ("age", "cluster")  # needed there
OF_FIT = ("cluster", "e_age")  # read there alone
REDDENING = {"ebv": 1.0, "a_v": 1 / 3.1}  # E(B - V) of each
E_BP_RP, A_G = 1.339, 2.74  # of E(B - V), of a G star: Casagrande & VandenBerg (2018), table 2
AGE_ERROR = 0.05  # dex, of a cluster without one
# What an optional column may hold, or it is taken as unknown: -999, 99 and the like.
PLAUSIBLE: dict[str, tuple[float, float]] = {
    "e_prot": (0, 500),
    "e_bp_rp0": (0, 5),
    "mem_prob": (0, 1),
    "g0": (-2, 30),
    "parallax": (1e-3, 2000),
    "logg": (-1, 6),
    "e_age": (0, 2),
    "ebv": (-0.3, 20),
    "a_v": (-1, 60),
}
NO_ID = ("", "nan", "--", "None", "0")
INHERITED = {"e_prot": "prot", "e_bp_rp0": "bp_rp0"}  # errors without a unit have that of these
ABOVE = (-1.5, 3.0)  # mag above the dwarfs, beyond which it is taken as that
EVOLVED, EVOLVED_LOGG = 0.9, 4.1  # mag above the dwarfs, more than any binary's; log g below


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

    known_roles: ClassVar = {
        **{role: column for role, (column, _) in ROLES.items()},
        **{role: role for role in (*REDDENING, "good")},
    }

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

    def roles(self, catalogue: Catalogue, training: bool) -> dict[str, tuple[str, str | None]]:
        if len(both := [role for role in REDDENING if role in self.columns]) > 1:
            raise ValueError(f"data.columns.{' and data.columns.'.join(both)}: name one of them")
        roles = {}
        for role, (default, unit) in ROLES.items():
            column = self.columns.get(role, default)
            named = role in self.columns and role not in OF_TRAINING
            wanted = role in NEEDED or named or (training and role in OF_TRAINING)
            of_use = self.group_by if role == "id" else training or role not in OF_FIT
            if of_use and (wanted or column in catalogue.names):
                roles[role] = (column, unit)
        for role in both:
            roles[role] = (self.columns[role], "mag")
        for role, other in INHERITED.items():
            if role in roles and (unit := catalogue.units.get(roles[other][0])):
                catalogue.units.setdefault(roles[role][0], unit)
        return roles

    def to_batch(self, columns: Mapping[str, np.ndarray], training: bool) -> Rows:
        def values(role: str, missing: float) -> np.ndarray:
            """Of an optional column, ``missing`` where there is none that can be right."""
            n = len(columns["prot"])
            if role not in columns:
                return np.full(n, missing)
            found, (low, high) = self._numbers(columns, role), PLAUSIBLE[role]
            return np.where((found >= low) & (found <= high), found, missing)

        prot, colour = self._numbers(columns, "prot"), self._numbers(columns, "bp_rp0")
        bright = values("g0", np.nan) + 5 * np.log10(values("parallax", np.nan) / 100)
        for role, per_mag in REDDENING.items():
            if role in columns:
                ebv = per_mag * values(role, np.nan)
                colour, bright = colour - E_BP_RP * ebv, bright - A_G * ebv
        if (
            "mem_prob" in columns
            and (self._numbers(columns, "mem_prob") > PLAUSIBLE["mem_prob"][1]).any()
        ):
            name = self.columns.get("mem_prob", ROLES["mem_prob"][0])
            raise ValueError(f"column '{name}' is no membership from 0 to 1; are they per cent?")
        self._check_scale(prot)
        bad = ~((prot > POSSIBLE_PERIODS[0]) & (prot < POSSIBLE_PERIODS[1]))
        odd = ~((colour > POSSIBLE_COLOURS[0]) & (colour < POSSIBLE_COLOURS[1]))
        if training:
            name = self.columns.get("prot", "prot_d")
            refuse(bad, name, prot, "is no period", "days, 0.02 to 500", "drop those stars")
            name = self.columns.get("bp_rp0", "bp_rp0")
            refuse(odd, name, colour, "is no colour", "mag, -1.5 to 6", "drop those stars")
        valid = ~(bad | odd)
        prot, colour = np.where(valid, prot, 1.0), np.where(valid, colour, 1.0)
        e_prot = values("e_prot", np.nan)
        e_prot = np.where(e_prot > 0, e_prot / prot, MISSING_PERIOD_ERROR)
        e_colour = values("e_bp_rp0", MISSING_COLOUR_ERROR)
        known = colour.clip(gyrochrones.DWARF_COLOUR[0], gyrochrones.DWARF_COLOUR[-1])
        above = (gyrochrones.dwarf_magnitude(known) - bright).clip(*ABOVE)
        above = np.nan_to_num(above)
        batch = {
            "log_period": torch.from_numpy(np.log10(prot)).float(),
            "log_period_error": torch.from_numpy(e_prot / np.log(10)).float(),
            "colour": torch.from_numpy(colour).float(),
            "colour_error": torch.from_numpy(e_colour).float(),
            "mem_prob": torch.from_numpy(values("mem_prob", 1.0)).float(),
            "above": torch.from_numpy(above).float(),
            "valid": torch.from_numpy(valid),
        }
        if training or "age" in columns:
            age = self._numbers(columns, "age")
            if training:
                name = self.columns.get("age", "age_myr")
                refuse(~(age > 0), name, age, "is no age", "positive ages, Myr", "drop those stars")
            batch["log_age"] = torch.from_numpy(np.log10(np.where(age > 0, age, np.nan))).float()
        if training:
            return batch | {
                "log_age_error": torch.from_numpy(values("e_age", AGE_ERROR)).float(),
                "cluster": self._cluster(columns["cluster"]),
            }
        evolved = (above > EVOLVED) | (values("logg", 9) < EVOLVED_LOGG)
        batch |= {
            "evolved": torch.from_numpy(evolved),
            "repeated": torch.from_numpy(self._repeated(columns)),
        }
        return batch

    def prediction_batches(self, rank: int = 0, world: int = 1) -> Iterator[PredictionBatch]:
        self._ids.clear()  # who comes twice, comes twice in one pass
        if world > 1 and self.group_by:
            self.say(
                f"{self.label}: of stars that come twice those are found that one process meets; "
                f"groups are safer with one process"
            )
        yield from super().prediction_batches(rank, world)

    def _numbers(self, columns: Mapping[str, np.ndarray], role: str) -> np.ndarray:
        return numbers(columns[role], self.columns.get(role, ROLES.get(role, (role,))[0]))

    def _check_scale(self, prot: np.ndarray) -> None:
        good = prot[np.isfinite(prot) & (prot > 0)]
        if len(good) >= 20 and np.median(good) > 60:
            self.say(
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
            name = self.columns.get("id", ROLES["id"][0])
            self.say(f"{self.label}: stars come twice, by column '{name}'; each counts once")
        return repeated

    def _chosen_rows(self, catalogue: Catalogue) -> np.ndarray | None:
        """Besides ``train_where``: stars with a period and a colour, of good quality if told."""
        chosen = super()._chosen_rows(catalogue)
        mask = self._of_quality(catalogue)
        mask = mask if chosen is None else mask & chosen
        if (left := len(catalogue) - int(mask.sum())) and self.path is not None:
            self.say(
                f"{self.label}: {left:,} of {len(catalogue):,} stars are left out of training: no "
                f"period or colour, good != 1, or data.train_where"
            )
        return mask & ~self._left_out(catalogue) if self.leave_out else mask

    def _of_quality(self, catalogue: Catalogue) -> np.ndarray:
        mask = np.ones(len(catalogue), bool)
        for role, (low, high) in {
            "prot": POSSIBLE_PERIODS,
            "bp_rp0": POSSIBLE_COLOURS,
            "good": (0.5, 1.5),
        }.items():
            column, unit = ROLES.get(role, (role, None))
            column = self.columns.get(role, column)
            if column in catalogue.names:
                parts = [numbers(c[column], column) for c in catalogue.chunks([column])]
                values = np.concatenate(parts)
                if unit:
                    values = convert(values, catalogue.units.get(column), unit, column)
                mask &= (values > low) & (values < high)
        return mask

    def _left_out(self, catalogue: Catalogue) -> np.ndarray:
        """Mask of the stars of the cluster that is not trained on."""
        column = self.columns.get("cluster", ROLES["cluster"][0])
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

    def schema(self) -> dict[str, Any]:
        return {"clusters": self.clusters}

    def found_out(self) -> dict[str, Any]:
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
