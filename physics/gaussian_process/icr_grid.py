"""Grids of HEALPix x log distance, each of which refines to the next."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from orrery.physics.gaussian_process import healpix


class Grid(NamedTuple):
    """Voxels: nested pixels of ``nside`` x ``shells`` equal steps in log distance."""

    nside: int
    shells: int
    first: float  # ln(r / pc) of the centre of the innermost shell
    step: float  # of ln r

    @property
    def shape(self) -> tuple[int, int]:
        """Pixels, shells."""
        return healpix.count(self.nside), self.shells

    @property
    def centres(self) -> Tensor:
        """Distances of the shells, (shells,), pc."""
        return (self.first + self.step * torch.arange(self.shells, dtype=torch.float64)).exp()

    @property
    def boundaries(self) -> Tensor:
        """Of the shells, geometric means of the centres, (shells + 1,), pc."""
        edges = torch.arange(self.shells + 1, dtype=torch.float64) - 0.5
        return (self.first + self.step * edges).exp()

    @property
    def widths(self) -> Tensor:
        """Lengths of the shells along the line of sight, (shells,), pc."""
        return self.boundaries.diff()

    @property
    def positions(self) -> Tensor:
        """Centres of the voxels, (pixels, shells, 3), pc."""
        return healpix.centres(self.nside)[:, None] * self.centres[:, None]

    def at(self, pixel: Tensor, shell: Tensor) -> Tensor:
        """Centres of some voxels, (..., 3), pc."""
        return healpix.centres(self.nside)[pixel] * self.centres[shell][..., None]

    def voxel(self, directions: Tensor, distance: Tensor) -> tuple[Tensor, Tensor]:
        """Pixel and shell of ``directions`` (..., 3), of any length, at ``distance`` (...), pc.

        The shell is -1 below the innermost boundary and ``shells`` beyond the outermost.
        """
        place = (distance.double().log() - self.first) / self.step + 0.5
        shell = place.floor().clamp(-1, self.shells).long()
        return healpix.pixel(self.nside, directions).to(shell.device), shell


def grids(
    nside: int, shells: int, nearest: float, farthest: float, base_nside: int = 4
) -> list[Grid]:
    """From the base to the map, whose outer boundaries are ``nearest`` and ``farthest``, pc.

    The outermost shells of a grid only serve as neighbours: n shells come of n / 2 + 2.
    """
    healpix.count(nside)
    healpix.count(base_nside)
    if base_nside < 2 or base_nside > nside:
        raise ValueError(f"base_nside is {base_nside}; take one from 2 to nside, {nside}")
    if shells != allowed_shells(nside, shells, base_nside):
        raise ValueError(
            f"{shells} shells at Nside {nside} do not come of whole shells at Nside {base_nside}; "
            f"take {allowed_shells(nside, shells, base_nside)}"
        )
    step = math.log(farthest / nearest) / shells
    found = [Grid(nside, shells, math.log(nearest) + step / 2, step)]
    while found[0].nside > base_nside:
        fine = found[0]
        first = fine.first - 1.5 * fine.step
        found.insert(0, Grid(fine.nside // 2, fine.shells // 2 + 2, first, 2 * fine.step))
    return found


def allowed_shells(nside: int, shells: int, base_nside: int = 4) -> int:
    """Least number of shells, ``shells`` or more, that comes of a base of whole shells."""
    factor = nside // base_nside  # n - 4 doubles from grid to grid
    return 4 + factor * max(-(-(shells - 4) // factor), 1)
