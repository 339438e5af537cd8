"""A list of a cluster's stars, for inference."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.base import CatalogueData, Rows, refuse
from datamodules.catalogue import Catalogue
from physics import cluster_stars
from physics.lowered_isothermal import solve

PHASE = {"x": "pc", "y": "pc", "z": "pc", "vx": "km/s", "vy": "km/s", "vz": "km/s"}
TRUTH = ("W0", "g", "log10_mass", "log10_rh")


class GCStars(CatalogueData):
    """Positions ``x y z``, pc, and velocities ``vx vy vz``, km/s, relative to the centre.

    Without ``path``: a mock of ``n_stars`` of a cluster of parameters ``truth`` (W0, g, log10 of M
    in Msun, log10 of r_h in pc), with which the posterior is compared.
    """

    product = True

    def __init__(
        self,
        n_stars: int = 1000,
        truth: Mapping[str, float] | None = None,
        **catalogue: Any,
    ) -> None:
        super().__init__(**{**catalogue, "split": "all"})  # nothing is held out
        self.n_stars = n_stars
        self.parameters = {k: float(v) for k, v in (truth or {}).items()}
        if self.path is None and set(self.parameters) != set(TRUTH):
            raise ValueError(
                f"data.truth of a mock names {', '.join(TRUTH)}; got {self.parameters}"
            )

    def roles(self, catalogue: Catalogue, training: bool) -> dict[str, tuple[str, str | None]]:
        return {name: (self.columns.get(name, name), unit) for name, unit in PHASE.items()}

    def to_batch(self, columns: Mapping[str, np.ndarray], training: bool) -> Rows:
        phase = np.stack([np.asarray(columns[name], float) for name in PHASE], 1)
        for i, name in enumerate(PHASE):
            refuse(
                ~np.isfinite(phase[:, i]),
                self.columns.get(name, name),
                phase[:, i],
                "is not measured",
                f"a finite {name} in {PHASE[name]}",
                "drop those stars",
            )
        return {"phase": torch.from_numpy(phase)}

    def simulate(self, split: str) -> dict[str, np.ndarray]:
        W0, g, log_mass, log_rh = (
            torch.tensor([self.parameters[name]], dtype=torch.float64) for name in TRUTH
        )
        generator = torch.Generator().manual_seed(self.seed)
        stars = cluster_stars.draw(solve(W0, g), 10**log_mass, 10**log_rh, self.n_stars, generator)[
            0
        ]
        return dict(zip(PHASE, stars.numpy().T, strict=True))

    def stars(self) -> Tensor:
        """All of them, (n, 6), pc and km/s."""
        return torch.cat([batch["phase"] for batch in self.prediction_batches()])

    def truth(self) -> dict[str, float]:
        return {} if self.path is not None or self.table is not None else self.parameters
