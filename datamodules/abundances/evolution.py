"""Stars of one galaxy, of which the history is inferred: `evaluate.py data=chemical_evolution`."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from orrery.datamodules.abundances import AbundanceData
from orrery.datamodules.abundances.simulation import RESPONSE, scattered_stars
from orrery.datamodules.abundances.tables import canonical_columns
from orrery.datamodules.base import Rows
from orrery.datamodules.columns import CatalogueColumn
from orrery.physics.chemical_evolution.one_zone import Galaxy, tracks
from orrery.tables import Catalogue

ELEMENTS = ("Fe", "Mg", "Ba", "Eu")
LEAST_STARS = 5


class ChemicalEvolution(AbundanceData):
    """`AbundanceData` whose stars all formed in one galaxy; without a path a simulated dwarf.

    Args:
        elements: iron and others of which there are yields.
        structure: of the stars of the table, those of one structure; null: all of them.
        given_iron: whether stars were selected by [Fe/H], so that its distribution says nothing.
        clusters: globular clusters of the galaxy, from which its mass follows; null: not known.
        n_stars: simulated stars.
        abundances: settings of `AbundanceData`.
    """

    decided_by_training: ClassVar = frozenset(("solar_of_model",))
    may_be_zero: ClassVar = AbundanceData.may_be_zero | {"clusters"}

    def __init__(
        self,
        elements: Sequence[str] | None = ELEMENTS,
        structure: str | None = None,
        given_iron: bool = False,
        clusters: int | None = None,
        n_stars: int = 50,
        **abundances: Any,
    ) -> None:
        super().__init__(elements=elements or ELEMENTS, **abundances)
        if "Fe" not in self.elements or len(self.elements) < 2:
            raise ValueError(
                f"data.elements={self.elements}: chemical evolution needs Fe and another element"
            )
        self.structure, self.given_iron = structure, given_iron
        self.clusters, self.n_stars = clusters, n_stars

    def columns_of(self, catalogue: Catalogue, training: bool) -> Mapping[str, CatalogueColumn]:
        if self.structure is not None:
            column = canonical_columns(catalogue.names, self._given()).get("structure")
            if column is None:
                raise ValueError(
                    f"{self.label}: data.structure={self.structure}, and there is no column of "
                    f"structures; name it: data.columns.structure=<column>"
                )
            self.group_by = column
        return super().columns_of(catalogue, training)

    def observations(self) -> Rows:
        """All stars as one batch, see `AbundanceData`; of ``structure`` alone, if it is given."""
        parts, names = [], []
        for batch in self.prediction_batches():
            keep = torch.ones(len(batch["value"]), dtype=torch.bool)
            if self.structure is not None and batch.carried.group is not None:
                group = np.array([str(name).strip() for name in batch.carried.group])
                names += sorted(set(group))
                keep = torch.from_numpy(group == self.structure)
            parts.append({name: values[keep] for name, values in batch.items()})
        stars = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        if self.structure is not None and not len(stars["value"]):
            raise ValueError(
                f"{self.label} has no stars of data.structure={self.structure}; its structures "
                f"are {', '.join(sorted(set(names))[:20])}"
            )
        informative = int((~stars["value"].isnan()).any(1).sum())
        if informative < LEAST_STARS:
            raise ValueError(
                f"{self.label}: {informative} stars have abundances of {', '.join(self.elements)}; "
                f"the history of a galaxy needs {LEAST_STARS} or more"
            )
        return stars

    def truth(self) -> dict[str, float]:
        """Parameters of the simulated dwarf; empty for a table."""
        if not self.is_simulation:
            return {}
        return {name: float(value) for name, value in Galaxy()._asdict().items()}

    def simulate(self, split: str) -> dict[str, np.ndarray]:
        random = np.random.default_rng([self.seed, 28])
        track = tracks(Galaxy(*(x.double() for x in Galaxy())), tuple(self.elements), 256)
        weight = track.mass_formed.numpy() * (track.abundances[:, 0].numpy() > -3.8)
        at = random.choice(len(weight), self.n_stars, p=weight / weight.sum())
        true = scattered_stars(track.abundances.numpy()[at], self.elements, random)
        table: dict[str, np.ndarray] = {"name": np.arange(self.n_stars).astype(str)}
        for j, element in enumerate(self.elements):
            error = np.hypot(random.uniform(0.05, 0.2, self.n_stars), RESPONSE)
            value = true[:, j] + error * random.standard_normal(self.n_stars)
            table[f"{element.lower()}_h"], table[f"{element.lower()}_h_error"] = value, error
        return table
