"""Stars by structure, to be compared: `evaluate.py data=abundance_structures`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from orrery.datamodules.abundances import AbundanceData
from orrery.datamodules.abundances.tables import canonical_columns
from orrery.datamodules.base import Rows
from orrery.datamodules.columns import CatalogueColumn
from orrery.tables import Catalogue

NAMELESS = ("", "nan", "None", "none", "--", "masked")  # of stars that are of no structure
STRUCTURE = "structure"  # the canonical column


class AbundanceStructures(AbundanceData):
    """`AbundanceData` whose structures (streams, galaxies, clusters) are compared in pairs.

    Args:
        group_by: a column with the name of each star's structure. Where the table has none of
            that name, the structure is what the reader takes for it: a column such as "galaxy", or
            the word in names of stars such as Indus_13.
        least_stars: structures of fewer are left out, unless ``pairs`` names them.
        pairs: of structures, ((A, B), ...); null: all.
        permutations: of stars, for each p-value; all that there are, if they are fewer.
        abundances: settings of `AbundanceData`.
    """

    may_be_zero: ClassVar = AbundanceData.may_be_zero

    def __init__(
        self,
        group_by: str = STRUCTURE,
        least_stars: int = 3,
        pairs: Sequence[Sequence[str]] | None = None,
        permutations: int = 1999,
        **abundances: Any,
    ) -> None:
        super().__init__(group_by=group_by or STRUCTURE, **abundances)
        self.least_stars, self.permutations = least_stars, permutations
        self.pairs = [list(pair) for pair in pairs] if pairs else None

    def columns_of(self, catalogue: Catalogue, training: bool) -> Mapping[str, CatalogueColumn]:
        self._find_groups(catalogue)
        return super().columns_of(catalogue, training)

    def _find_groups(self, catalogue: Catalogue) -> None:
        """``group_by`` is the column of structures, where the table has none of its name."""
        if self.group_by in catalogue.names:
            return
        column = canonical_columns(catalogue.names, self._given()).get(STRUCTURE)
        if column is None or column not in catalogue.names:
            raise ValueError(
                f"{self.label} has no column '{self.group_by}', nor names of stars that tell their "
                f"structure, such as Indus_13; name the column of structures: "
                f"data.group_by=<column>; columns: {', '.join(catalogue.names[:20])}"
            )
        self.print_once(
            f"{self.label} has no column '{self.group_by}': structures are those of '{column}'"
        )
        self.group_by = column

    def grouped_batches(self) -> Iterator[tuple[Rows, np.ndarray]]:
        for batch in self.prediction_batches():
            assert batch.carried.group is not None
            names = np.array([str(name).strip() for name in batch.carried.group])
            yield batch, np.where(np.isin(names, NAMELESS), "", names)
