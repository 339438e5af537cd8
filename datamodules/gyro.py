"""Rotation periods and colours: stars of open clusters to learn from, or any to be aged."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from datamodules.base import CatalogueData, Rows
from datamodules.catalogue import Catalogue
from datamodules.values import numbers, refuse
from physics import gyrochrones

ROLES = {
    "prot": ("prot_d", "d"),
    "e_prot": ("e_prot_d", "d"),
    "bp_rp0": ("bp_rp0", "mag"),
    "e_bp_rp0": ("e_bp_rp0", "mag"),
    "mem_prob": ("mem_prob", None),
    "age": ("age_myr", "Myr"),
    "e_age": ("e_age_dex", None),
    "cluster": ("cluster", None),
}
NEEDED = ("prot", "bp_rp0")
OF_TRAINING = ("age", "cluster")
PERIODS, COLOURS = (0.02, 500.0), (-1.5, 6.0)  # d, mag: beyond them a column is something else
REDDENING = {"ebv": 1.339, "a_v": 1.339 / 3.1}  # E(BP - RP) of each, of a G star: Casagrande 2018
PERIOD_ERROR, COLOUR_ERROR = 0.02, 0.03  # relative; mag: where a star has none
AGE_ERROR = 0.05  # dex, of a cluster without one


class GyroData(CatalogueData):
    """Periods, d, and colours (BP - RP)_0, mag, with their errors; in training also clusters' ages.

    Columns by role: ``prot`` and ``e_prot``, ``bp_rp0`` and ``e_bp_rp0``, ``mem_prob``; in training
    ``cluster``, ``age``, Myr, and ``e_age``, dex. Errors and memberships are optional. With
    ``columns.ebv`` or ``columns.a_v`` colours are dereddened. A star whose period or colour is no
    number is an error in training, and gets no age in prediction.

    Without ``path``: `physics.gyrochrones`, clusters of known ages, drawn apart for the test.
    """

    def __init__(
        self,
        n_clusters: int = 24,
        n_train: int = 6000,
        n_test: int = 2000,
        clusters: Mapping[str, float] | None = None,
        weight_power: float = 0.5,
        **catalogue: Any,
    ) -> None:
        super().__init__(**catalogue)
        self.n_clusters, self.n_stars = n_clusters, (n_train, n_test)
        self.clusters = dict(clusters or {})  # name -> log10 age, Myr
        self.weight_power = weight_power

    def roles(self, catalogue: Catalogue, training: bool) -> dict[str, tuple[str, str | None]]:
        roles = {}
        for role, (default, unit) in ROLES.items():
            column = self.columns.get(role, default)
            wanted = role in NEEDED or (training and role in OF_TRAINING)
            if wanted or column in catalogue.names:
                roles[role] = (column, unit)
        for role in REDDENING:
            if role in self.columns:
                roles[role] = (self.columns[role], "mag")
        return roles

    def to_batch(self, columns: Mapping[str, np.ndarray], training: bool) -> Rows:
        def values(role: str, missing: float) -> np.ndarray:
            n = len(columns["prot"])
            found = numbers(columns[role]) if role in columns else np.full(n, np.nan)
            return np.where(np.isfinite(found), found, missing)

        prot, colour = numbers(columns["prot"]), numbers(columns["bp_rp0"])
        for role, per_mag in REDDENING.items():
            if role in columns:
                colour = colour - per_mag * numbers(columns[role])
        self._check_scale(prot)
        bad = ~((prot > PERIODS[0]) & (prot < PERIODS[1]))
        odd = ~((colour > COLOURS[0]) & (colour < COLOURS[1]))
        if training:
            name = self.columns.get("prot", "prot_d")
            refuse(bad, name, prot, "is no period", "days, 0.02 to 500", "drop those stars")
            name = self.columns.get("bp_rp0", "bp_rp0")
            refuse(odd, name, colour, "is no colour", "mag, -1.5 to 6", "drop those stars")
        valid = ~(bad | odd)
        prot, colour = np.where(valid, prot, 1.0), np.where(valid, colour, 1.0)
        e_prot = values("e_prot", np.nan)
        e_prot = np.where(e_prot > 0, e_prot / prot, PERIOD_ERROR)
        e_colour = values("e_bp_rp0", COLOUR_ERROR)
        batch = {
            "log_period": torch.from_numpy(np.log10(prot)).float(),
            "log_period_error": torch.from_numpy(e_prot / np.log(10)).float(),
            "colour": torch.from_numpy(colour).float(),
            "colour_error": torch.from_numpy(np.abs(e_colour)).float(),
            "mem_prob": torch.from_numpy(values("mem_prob", 1.0).clip(0, 1)).float(),
            "valid": torch.from_numpy(valid),
        }
        if training or "age" in columns:
            age = numbers(columns["age"])
            if training:
                name = self.columns.get("age", "age_myr")
                refuse(~(age > 0), name, age, "is no age", "positive ages, Myr", "drop those stars")
            batch["log_age"] = torch.from_numpy(np.log10(np.where(age > 0, age, np.nan))).float()
        if training:
            e_age = torch.from_numpy(values("e_age", AGE_ERROR)).float()
            batch |= {"log_age_error": e_age, "cluster": self._cluster(columns["cluster"])}
        return batch

    def _check_scale(self, prot: np.ndarray) -> None:
        good = prot[np.isfinite(prot) & (prot > 0)]
        if len(good) >= 20 and np.median(good) > 60:
            self.say(
                f"{self.label}: the median of column '{self.columns.get('prot', 'prot_d')}' is "
                f"{np.median(good):.0f}: are the periods in hours? They are taken as days; divide "
                f"them by 24, or give the column its unit"
            )

    def _cluster(self, names: np.ndarray) -> torch.Tensor:
        known = sorted(self.clusters)
        text = np.array([str(name) for name in names])
        return torch.from_numpy(np.searchsorted(known, text).clip(max=len(known) - 1))

    def _chosen_rows(self, catalogue: Catalogue) -> np.ndarray | None:
        """Besides ``train_where``: stars with a period and a colour, of good quality if told."""
        chosen = super()._chosen_rows(catalogue)
        mask = np.ones(len(catalogue), bool) if chosen is None else chosen
        for role, (low, high) in {"prot": PERIODS, "bp_rp0": COLOURS, "good": (0.5, 1.5)}.items():
            column = self.columns.get(role, ROLES.get(role, (role,))[0])
            if column in catalogue.names:
                values = np.concatenate([numbers(c[column]) for c in catalogue.chunks([column])])
                mask = mask & (values > low) & (values < high)
        if (left := len(catalogue) - int(mask.sum())) and self.path is not None:
            self.say(
                f"{self.label}: {left:,} of {len(catalogue):,} stars are left out of training: no "
                f"period or colour, good != 1, or data.train_where"
            )
        return mask

    def setup(self, stage: str | None = None) -> None:
        if stage != "fit" or self.rows:
            return
        with self.open("fit") as catalogue:
            roles = self.roles(catalogue, training=True)
            chosen = self._chosen_rows(catalogue)
            ages: dict[str, list[float]] = {}
            for _, columns in self._read(catalogue, roles, 0, len(catalogue), chosen):
                for name, age in zip(columns["cluster"], numbers(columns["age"]), strict=True):
                    ages.setdefault(str(name), []).append(np.log10(max(age, 1e-9)))
        self.clusters = self.clusters or {n: float(np.median(a)) for n, a in sorted(ages.items())}
        super().setup(stage)
        cluster = self.rows["train"]["cluster"]
        count = torch.bincount(cluster, minlength=len(self.clusters)).clamp_min(1).float()
        for rows in self.rows.values():
            weight = count[rows["cluster"]] ** -self.weight_power
            rows["weight"] = weight / (count[cluster] ** -self.weight_power).mean()

    def augment(self, batch: Rows, generator: torch.Generator) -> Rows:
        """Ages within their errors, the same for all stars of a cluster."""
        shift = torch.randn(len(self.clusters), generator=generator)[batch["cluster"]]
        return {**batch, "log_age": batch["log_age"] + shift * batch["log_age_error"]}

    def schema(self) -> dict[str, Any]:
        return {"clusters": self.clusters}

    def found_out(self) -> dict[str, Any]:
        return {"clusters": self.clusters}

    def simulate(self, split: str) -> dict[str, np.ndarray]:
        random = np.random.default_rng([self.seed, split == "test"])
        return gyrochrones.simulate(random, self.n_clusters, self.n_stars[split == "test"])

    def provenance(self) -> dict[str, Any]:
        if self.path is not None:
            return super().provenance()
        sizes = {"n_clusters": self.n_clusters, "n_train": self.n_stars[0]}
        return super().provenance() | sizes | {"n_test": self.n_stars[1]}
