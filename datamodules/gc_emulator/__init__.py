"""Models on which the emulator is trained and tested, by their parameters."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.polynomial.chebyshev import chebpts1

from orrery.datamodules.base import CatalogueData, Rows
from orrery.datamodules.columns import CatalogueColumn, Column, located
from orrery.datamodules.gc_emulator.stars import GCStars
from orrery.physics.clusters.lowered_isothermal import MARGIN, W0_MAX, W0_MIN, g_limit, g_max
from orrery.tables import Catalogue

MOCK_TRUTH = {"W0": 6.0, "g": 1.2, "log10_mass": 5.5, "log10_rh": 0.7}
MOCK_RH_RA = 0.4  # of an anisotropic mock


def _parameter(name: str, meaning: str) -> Column:
    return Column(name, meaning=meaning, missing=np.nan)  # NaN is flagged as outside the domain


class GCEmulatorData(CatalogueData):
    """Parameters of models. In training: Chebyshev nodes of the domain, each once an epoch.

    Validated and tested on draws from the prior of arXiv:2311.03704: W0 uniform in the domain, g
    uniform from 0 to 0.3 below g_max(W0); of anisotropic models rh_ra = r_h / r_a uniform from 0
    to 1, and g up to its limit. With ``path``: a table of models to predict.

    Settings:
        n_W0, n_g, n_ra: Chebyshev nodes in W0, g and (r_h / r_a)^2; n_ra = 1: isotropic models.
        n_val, n_test: draws from the prior.
        n_mock: stars of the mock cluster whose posterior is inferred on evaluation; 0: none.
    """

    def __init__(
        self,
        n_W0: int,
        n_g: int,
        n_ra: int = 1,
        n_val: int = 64,
        n_test: int = 70,
        n_mock: int = 1000,
        **catalogue: Any,
    ):
        super().__init__(**{**catalogue, "val_fraction": 0})
        self.n_W0, self.n_g, self.n_ra, self.n_val, self.n_test = n_W0, n_g, n_ra, n_val, n_test
        self.n_mock = n_mock
        self.names = ("W0", "g") if n_ra == 1 else ("W0", "g", "rh_ra")
        if n_W0 * n_g * n_ra % self.batch_size:
            raise ValueError(
                f"each of the {n_W0} x {n_g} x {n_ra} nodes must come once an epoch: "
                f"data.batch_size={self.batch_size} must divide their number"
            )

    decided_by_training: ClassVar = frozenset(("n_W0", "n_g", "n_ra"))
    may_be_zero: ClassVar = frozenset(("n_mock",))
    declared: ClassVar = {
        "W0": _parameter("W0", "central potential; the domain is 1.5 to 14"),
        "g": _parameter("g", "truncation, from 0 to 0.3 below its limit"),
        "rh_ra": replace(
            _parameter("rh_ra", "half-mass over anisotropy radius, of an anisotropic model"),
            low=0,
            high=1,
            training="chosen",
        ),
    }

    def roles(self, catalogue: Catalogue, training: bool) -> Mapping[str, CatalogueColumn]:
        return {name: located(self.declared, self.columns, catalogue, name) for name in self.names}

    def to_batch(self, columns: Mapping[str, np.ndarray], training: bool) -> Rows:
        return {name: torch.from_numpy(columns[name]) for name in self.names}

    def setup(self, stage: str | None = None) -> None:
        if stage == "fit" and not self.rows:
            super().setup(stage)
            self.rows["val"] = self.to_batch(self._draw_prior(self.n_val, 2 * self.seed + 2), True)

    def simulate(self, split: str) -> dict[str, np.ndarray]:
        if split == "test":
            return self._draw_prior(self.n_test, 2 * self.seed + 1)
        W0, g, ra = (
            torch.from_numpy(0.5 + 0.5 * chebpts1(n)) for n in (self.n_W0, self.n_g, self.n_ra)
        )
        nodes = torch.cartesian_prod(ra, W0_MIN + (W0_MAX - W0_MIN) * W0, g)
        if self.n_ra == 1:
            return {"W0": nodes[:, 1].numpy(), "g": (nodes[:, 2] * g_limit(nodes[:, 1])).numpy()}
        rh_ra = nodes[:, 0].sqrt()
        g = nodes[:, 2] * g_limit(nodes[:, 1], rh_ra)
        return {"W0": nodes[:, 1].numpy(), "g": g.numpy(), "rh_ra": rh_ra.numpy()}

    def _draw_prior(self, n: int, seed: int) -> dict[str, np.ndarray]:
        generator = torch.Generator().manual_seed(seed)
        u = torch.rand(2, n, generator=generator, dtype=torch.float64)
        W0 = W0_MIN + (W0_MAX - W0_MIN) * u[0]
        if self.n_ra == 1:
            return {"W0": W0.numpy(), "g": (u[1] * (g_max(W0) - MARGIN)).numpy()}
        rh_ra = torch.rand(n, generator=generator, dtype=torch.float64)
        g = u[1] * g_limit(W0, rh_ra)
        return {"W0": W0.numpy(), "g": g.numpy(), "rh_ra": rh_ra.numpy()}

    def mock_cluster(self) -> GCStars | None:
        """Stars of a cluster of known parameters, if rows are drawn from the prior."""
        if self.path is not None or self.table is not None or not self.n_mock:
            return None
        truth = MOCK_TRUTH | ({"rh_ra": MOCK_RH_RA} if self.n_ra > 1 else {})
        return GCStars(n_stars=self.n_mock, truth=truth, seed=self.seed, outliers=False)

    def model_arguments(self) -> dict[str, Any]:
        return {"n_W0": self.n_W0, "n_g": self.n_g, "n_ra": self.n_ra}
