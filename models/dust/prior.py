"""The Gaussian process of ln density with its hyperparameters, and the memory that it takes."""

import math
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from orrery.memory import refuse_too_large
from orrery.physics.gaussian_process.icr import ICR, Grid, memory
from orrery.physics.gaussian_process.kernel import Kernel
from orrery.physics.gaussian_process.linear_map import GaussianProcess, Slope
from orrery.physics.gaussian_process.vecchia import Vecchia

# latents after the excitations: of the mean, ln amplitude, ln scale, the density nearer than the
# map, and the decline of ln density with the height above the plane
N_HYPER = 5
# voxels that one is conditioned on in Vecchia's approximation, and those of dense Cholesky
N_NEIGHBOURS, N_DENSE = 48, 1000
VECCHIA_BYTES = 1600  # per voxel: twice the matrices, for the memory that their making takes
N_CHAINS, HMC_EIGENVECTORS = 4, 300  # of HMC; eigenvectors that its latents are stretched by
LOG_SCALE_STEP = 0.1  # of the difference quotient of the field by ln scale


class Prior(NamedTuple):
    """ln rho = m - d |z| + a s: m and ln a are normal, and s is of a kernel.

    With ``by_scale`` the scale of the kernel is learned, too, and ln scale is normal: ``gp`` is the
    process at ``scale[0]``, ln of the current scale over its median, ``by_scale`` its derivative.
    The decline d with the height above the Galactic plane is normal about 0: of a disc, 1 over its
    scale height. Inside the inner boundary the density is one number, and its logarithm is normal.
    """

    gp: GaussianProcess
    mean: tuple[float, float]  # of ln (rho / pc^-1), and its error
    amplitude: tuple[float, float]  # median, and the error of ln amplitude
    scale: tuple[float, float] = (0.0, 0.0)  # ln (current / median), and the error of ln scale
    by_scale: GaussianProcess | None = None
    # ln of the density nearer than the map, and its error; -inf: there is none
    nearer: tuple[float, float] = (-math.inf, 0.0)
    decline: Tensor | float = 0.0  # its error times |z| of the voxels, (pixels, shells)

    @property
    def n_latents(self) -> int:
        return self.gp.n_excitations + N_HYPER


class Processes:
    """Gaussian processes by the scale of their kernel, pc; the last one is kept.

    ``learned``: the derivative by ln scale, at the same excitations, is made with it.
    """

    def __init__(
        self, kind: str, levels: list[Grid], kernel: Callable[[float], Kernel], learned: bool
    ) -> None:
        self.kind, self.levels, self.kernel, self.learned = kind, levels, kernel, learned
        self.scale = 0.0
        self.current: tuple[GaussianProcess, GaussianProcess | None]

    def at(self, scale: float) -> tuple[GaussianProcess, GaussianProcess | None]:
        """The process and, if the scale is learned, its derivative by ln scale."""
        if scale != self.scale:
            slope = None
            if self.learned:
                less, more = (
                    self._process(scale * math.exp(sign * LOG_SCALE_STEP)) for sign in (-1, 1)
                )
                slope = Slope(less, more, 2 * LOG_SCALE_STEP)
            self.scale, self.current = scale, (self._process(scale), slope)
        return self.current

    def _process(self, scale: float) -> GaussianProcess:
        kernel = self.kernel(scale)
        if self.kind == "vecchia":
            return Vecchia(self.levels[-1], kernel, N_NEIGHBOURS, N_DENSE)
        return ICR(self.levels, kernel)


def refuse_too_large_map(
    kind: str, levels: list[Grid], vectors: int, transitions: int, learns_scale: bool
) -> None:
    """A ``ValueError`` if matrices, ``vectors`` of all latents and ``transitions`` of HMC do not
    fit into memory.
    """
    voxels = math.prod(levels[-1].shape)
    matrices = memory(levels) if kind == "icr" else VECCHIA_BYTES * voxels
    hmc_vectors = N_CHAINS * transitions + 2 * HMC_EIGENVECTORS if transitions else 0
    refuse_too_large(
        matrices * (3 if learns_scale else 1) + 4 * voxels * (vectors + hmc_vectors),
        f"a map of {voxels:,} voxels"
        + (f" and {transitions:,} transitions" if hmc_vectors else ""),
        "model.nside=<less> model.n_radial=<less> model.pairs=<less>"
        + (" model.transitions=<less>" if hmc_vectors else ""),
    )
