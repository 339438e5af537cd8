"""The Gaussian process of ln density with its hyperparameters, and what it takes to hold it."""

import math
from collections.abc import Callable
from typing import NamedTuple

from orrery.memory import refuse_too_large
from orrery.physics.gaussian_process.icr import ICR, Grid, memory
from orrery.physics.gaussian_process.kernel import Kernel
from orrery.physics.gaussian_process.linear_map import GaussianProcess, Slope
from orrery.physics.gaussian_process.vecchia import Vecchia

HYPER = 3  # latents besides the excitations: of the mean, ln amplitude and ln scale
PREDECESSORS = (48, 1000)  # of a voxel in Vecchia's approximation, and those of dense Cholesky
VECCHIA_BYTES = 1600  # of a voxel: twice its matrices, for what their making takes
CHAINS, STIFF = 4, 300  # of HMC, and eigenvectors that its latents are stretched by
STEP = 0.1  # of ln scale, for its derivative


class Prior(NamedTuple):
    """ln rho = m + a s, m ~ N(mean, error), ln a ~ N(ln amplitude, error), and s of a kernel.

    With ``by_scale`` the scale of the kernel is one more number, ln of which is normal, too:
    ``gp`` is that of the scale at ``scale[0]`` from its median, and ``by_scale`` the derivative.
    """

    gp: GaussianProcess
    mean: tuple[float, float]
    amplitude: tuple[float, float]
    scale: tuple[float, float] = (0.0, 0.0)  # ln (here / median), and the error of ln scale
    by_scale: GaussianProcess | None = None

    @property
    def n_latents(self) -> int:
        return self.gp.n_excitations + HYPER


class Processes:
    """Matrices for a scale of the kernel, pc, made anew when that changes.

    ``learned`` adds the derivative by ln scale at the same excitations.
    """

    def __init__(
        self, kind: str, levels: list[Grid], kernel: Callable[[float], Kernel], learned: bool
    ) -> None:
        self.kind, self.levels, self.kernel, self.learned = kind, levels, kernel, learned
        self.scale = 0.0
        self.made: tuple[GaussianProcess, GaussianProcess | None]

    def at(self, scale: float) -> tuple[GaussianProcess, GaussianProcess | None]:
        if scale != self.scale:
            slope = None
            if self.learned:
                less, more = (self._process(scale * math.exp(s * STEP)) for s in (-1, 1))
                slope = Slope(less, more, 2 * STEP)
            self.scale, self.made = scale, (self._process(scale), slope)
        return self.made

    def _process(self, scale: float) -> GaussianProcess:
        kernel = self.kernel(scale)
        if self.kind == "vecchia":
            return Vecchia(self.levels[-1], kernel, *PREDECESSORS)
        return ICR(self.levels, kernel)


def refuse_too_large_map(
    kind: str, levels: list[Grid], vectors: int, transitions: int, learns_scale: bool
) -> None:
    """A ``ValueError`` if there is no room for the matrices and ``vectors`` of all latents, and
    what ``transitions`` of HMC need beyond.
    """
    voxels = math.prod(levels[-1].shape)
    matrices = memory(levels) if kind == "icr" else VECCHIA_BYTES * voxels
    more = CHAINS * transitions + 2 * STIFF if transitions else 0
    refuse_too_large(
        matrices * (3 if learns_scale else 1) + 4 * voxels * (vectors + more),
        f"a map of {voxels:,} voxels" + (f" and {transitions:,} transitions" if more else ""),
        "model.nside=<less> model.n_radial=<less> model.pairs=<less>"
        + (" model.transitions=<less>" if more else ""),
    )
