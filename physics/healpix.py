"""HEALPix (Gorski et al. 2005) in nested order, on the CPU in float64: what a prior on the sky needs.

The lookups are astropy-healpix's: compiled, tested against the reference library, under astropy's
licence (healpy is GPL). Pixels are int64, directions are vectors (..., 3).
"""

import numpy as np
import torch
from astropy_healpix import core
from torch import Tensor


def count(nside: int) -> int:
    """Pixels of the sphere."""
    if nside < 1 or nside & (nside - 1):
        raise ValueError(f"nside is {nside}; nested HEALPix needs a power of two: 1, 2, 4, 8, ...")
    return 12 * nside**2


def centres(nside: int) -> Tensor:
    """Unit vectors to the centres of all pixels, (pixels, 3)."""
    xyz = core.healpix_to_xyz(np.arange(count(nside)), nside, order="nested")
    return torch.from_numpy(np.stack(xyz, 1))


def pixel(nside: int, directions: Tensor) -> Tensor:
    """Pixel that holds each of the ``directions`` (..., 3), of any length, (...)."""
    count(nside)
    unit = torch.nn.functional.normalize(directions.double().cpu(), dim=-1)
    found = core.xyz_to_healpix(*unit.unbind(-1), nside, order="nested")
    return torch.as_tensor(np.asarray(found))


def neighbours(nside: int, pixels: Tensor) -> Tensor:
    """The 8 pixels that share an edge or a corner, (pixels, 8), from south-west clockwise.

    Where only seven pixels touch (24 places on the sphere, 8 of them at Nside 1), the missing one
    is -1.
    """
    count(nside)
    with np.errstate(invalid="ignore"):  # astropy-healpix warns of the -1
        found = core.neighbours(pixels.numpy(), nside, order="nested")
    return torch.from_numpy(found.T.copy())


def neighbourhood(nside: int, pixels: Tensor) -> Tensor:
    """Each pixel and 8 others near it, (pixels, 9): its neighbours and, where one is missing, the
    nearest pixel that is not yet there."""
    near = torch.cat([pixels[:, None], neighbours(nside, pixels)], 1)
    short = (near < 0).any(1)
    if short.any():
        unit = centres(nside)
        around = near[short]
        beyond = neighbours(nside, around.clamp_min(0).flatten()).reshape(len(around), -1)
        beyond = torch.where(beyond < 0, around[:, :1], beyond)
        taken = (beyond[:, :, None] == around[:, None, :]).any(2)
        # rounded, so that equally near ones are taken in the order of their number
        closeness = (unit[beyond] @ unit[around[:, 0], :, None])[..., 0].mul(1e9).round()
        best = torch.where(taken, -torch.inf, closeness).argmax(1)
        fill = beyond[torch.arange(len(around)), best]
        near[short] = torch.where(around < 0, fill[:, None], around)
    return near


def rotations(nside: int) -> Tensor:
    """Where each pixel goes under the 8 rotations that map HEALPix to itself, (8, pixels).

    Quarter turns about the poles, with and without a half turn about the x axis. From Nside 2 on no
    pixel stays where it is, so that the sphere falls into classes of 8 pixels that see the same.
    """
    quarter = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.float64)
    half = torch.diag(torch.tensor([1.0, -1, -1], dtype=torch.float64))
    unit = centres(nside)
    turned = []
    for flip in (torch.eye(3, dtype=torch.float64), half):
        for k in range(4):
            turn = flip @ torch.linalg.matrix_power(quarter, k)
            turned.append(pixel(nside, unit @ turn.T))
    return torch.stack(turned)
