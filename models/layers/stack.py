"""The distribution of a population: densities of its objects, stacked by group."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from orrery.models.layers.grid import counter_uniform

REPLICATES = 100
BLANK = ("", "nan", "None", "--")  # names of no group
POISSON_CDF = (0.36788, 0.73576, 0.91970, 0.98101, 0.99634, 0.99941)  # of mean 1, up to 5

Density = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], Tensor]


def poisson_counts(row: Tensor, n: int, seed: int) -> Tensor:
    """How often each object is in each of ``n`` bootstrap samples, (batch, n), float64.

    Drawn from its ``row`` (batch,) int64 and the seed, so that chunks do not matter.
    """
    u = counter_uniform(row, n, seed)
    return sum((u > level).double() for level in POISSON_CDF) + torch.zeros(u.shape).double()


class DensityStack:
    """Sum of densities (batch, n_grid) per group, with bootstrap replicates, in constant memory.

    A replicate counts each object a Poisson(1) number of times (Chamandy et al. 2012), drawn from
    the object's row, so that chunks and processes do not matter. ``density`` is a function of a
    batch and its predicted rows; an object whose density is NaN does not count. ``tabulate`` makes
    the table of a stack that is not empty.
    """

    def __init__(
        self,
        density: Density,
        tabulate: Callable[["DensityStack"], dict[str, np.ndarray]],
        units: Mapping[str, str] | None = None,
    ) -> None:
        self.density, self.tabulate, self.units = density, tabulate, dict(units or {})
        self.sums: dict[str, Tensor] = {}  # (1 + REPLICATES, n_grid), float64
        self.counts: dict[str, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        """The sums alone travel between processes, without the model behind ``density``."""
        return {"sums": self.sums, "counts": self.counts}

    def add(
        self, groups: np.ndarray, batch: Mapping[str, Tensor], rows: Mapping[str, Tensor]
    ) -> None:
        """``groups``: (batch,) names; a blank name is no group."""
        names = np.char.strip(np.ma.filled(np.ma.asarray(groups).astype(str), ""))
        density = self.density(batch, rows).cpu()
        counted = density.isfinite().all(1)
        density = torch.where(counted[:, None], density.double(), 0)
        drawn = poisson_counts(batch["row"].cpu(), REPLICATES, seed=1)
        weight = torch.cat([torch.ones(len(drawn), 1).double(), drawn], 1)
        for name in np.unique(names[~np.isin(names, BLANK)]):
            members = torch.from_numpy(names == name)
            total = weight[members].T @ density[members]
            self.sums[name] = self.sums.get(name, 0) + total
            self.counts[name] = self.counts.get(name, 0) + int((members & counted).sum())

    def merge(self, others: Iterable["DensityStack"]) -> None:
        """Add what other processes have stacked."""
        for other in others:
            for name, total in other.sums.items():
                self.sums[name] = self.sums.get(name, 0) + total
                self.counts[name] = self.counts.get(name, 0) + other.counts[name]

    def table(self) -> dict[str, np.ndarray]:
        """Columns of the table; empty if no row had a group."""
        return self.tabulate(self) if self.counts else {}

    def densities(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """Columns group, n_objects, x, density and density_std, a row per group and grid point."""
        rows: dict[str, list[np.ndarray]] = {}
        step = x[1] - x[0]
        for name, total in sorted(self.sums.items()):
            normed = (total / (total.sum(1, keepdim=True) * step)).numpy()
            drawn = np.isfinite(normed).all(1)  # a replicate of a small group may be empty
            drawn[0] = False
            known = self.counts[name] > 1
            columns = {
                "group": np.full(len(x), name),
                "n_objects": np.full(len(x), self.counts[name]),
                "x": x,
                "density": normed[0],
                "density_std": normed[drawn].std(0) if known else np.full(len(x), np.nan),
            }
            for key, values in columns.items():
                rows.setdefault(key, []).append(values)
        return {key: np.concatenate(values) for key, values in rows.items()}
