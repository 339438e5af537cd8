"""HEALPix (Gorski et al. 2005) in nested order, on the CPU in float64: what a prior needs.

The lookups are astropy-healpix's: compiled, tested against the reference library, under astropy's
licence (healpy is GPL). Pixels are int64, directions are vectors (..., 3).
"""

from functools import lru_cache

import numpy as np
import torch
from astropy import units
from astropy_healpix import core
from torch import Tensor

COLOURS, EDGE, SWEEPS = 6, 3, 20  # of `colours`; an edge in common is as bad as three corners


def count(nside: int) -> int:
    """Pixels of the sphere."""
    if nside < 1 or nside & (nside - 1):
        raise ValueError(f"nside is {nside}; nested HEALPix needs a power of two: 1, 2, 4, 8, ...")
    return 12 * nside**2


@lru_cache(maxsize=4)
def centres(nside: int) -> Tensor:
    """Unit vectors to the centres of all pixels, (pixels, 3)."""
    xyz = core.healpix_to_xyz(np.arange(count(nside)), nside, order="nested")
    return torch.from_numpy(np.stack(xyz, 1))


def pixel(nside: int, directions: Tensor) -> Tensor:
    """Pixel that holds each of the ``directions`` (..., 3), of any length, (...)."""
    count(nside)
    unit = torch.nn.functional.normalize(directions.double().cpu(), dim=-1).numpy()
    found = core.xyz_to_healpix(*np.moveaxis(unit, -1, 0), nside, order="nested")
    return torch.as_tensor(found)


def bilinear(nside: int, directions: Tensor) -> tuple[Tensor, Tensor]:
    """The four pixels about each of the ``directions`` (n, 3), and their weights, (n, 4) both.

    Weights are those of bilinear interpolation between the pixels' centres; their sum is 1.
    """
    count(nside)
    x, y, z = directions.double().cpu().numpy().T
    lon, lat = np.arctan2(y, x) % (2 * np.pi), np.arctan2(z, np.hypot(x, y))
    pixels, weights = core.bilinear_interpolation_weights(
        lon * units.rad, lat * units.rad, nside, order="nested"
    )
    return torch.from_numpy(pixels.T.copy()), torch.from_numpy(weights.T.copy())


def neighbours(nside: int, pixels: Tensor) -> Tensor:
    """The 8 pixels that share an edge or a corner, (pixels, 8), from south-west clockwise.

    Where only seven pixels touch (24 places on the sphere, 8 of them at Nside 1), the missing one
    is -1.
    """
    count(nside)
    with np.errstate(invalid="ignore"):  # astropy-healpix warns of the -1
        found = core.neighbours(pixels.numpy(), nside, order="nested")
    return torch.from_numpy(found.T.copy())


def neighbourhood(nside: int, pixels: Tensor, size: int = 9) -> Tensor:
    """Each pixel and those about it, (pixels, size): first itself, then the 8 that touch it, or 7
    where one is missing, then the nearest of the ring beyond.

    ``size`` is at most 21, at Nside 2 at most 13.
    """
    ring = neighbours(nside, pixels)
    second = neighbours(nside, ring.clamp_min(0).flatten()).reshape(len(pixels), -1)
    second = torch.where((ring < 0).repeat_interleave(8, 1), -1, second)
    around = torch.cat([pixels[:, None], ring, second], 1)
    unit = centres(nside)
    # rounded, so that rounding errors do not decide between equally near ones
    merit = (unit[around] @ unit[pixels, :, None])[..., 0].mul(1e9).round().mul(1e-9)
    merit[:, :9] += 4.0
    merit[around < 0] = -torch.inf
    # the first of each number counts: `around` holds pixels of the second ring several times
    order = torch.argsort(around, dim=1, stable=True)
    ranked = around.gather(1, order)
    again = torch.zeros_like(ranked, dtype=torch.bool)
    again[:, 1:] = ranked[:, 1:] == ranked[:, :-1]
    merit.scatter_(1, order, merit.gather(1, order).masked_fill(again, -torch.inf))
    best = torch.argsort(merit, dim=1, descending=True, stable=True)[:, :size]
    return around.gather(1, best)


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


@lru_cache(maxsize=8)
def colours(nside: int) -> Tensor:
    """0 to 5, (pixels,), such that few neighbours have the same: the same under all rotations.

    Four colours would do within a face, by the lowest bits of a pixel's row and column; pixels that
    touch one of their own colour across an edge of it take the one that fewest around have.
    """
    turned = rotations(nside)
    first = turned.amin(0).unique()
    member = torch.empty(count(nside), dtype=torch.long)
    member[turned[:, first]] = torch.arange(len(first))
    near = neighbours(nside, first)
    own = torch.arange(len(first))[:, None]
    classes: list[list[int]] = torch.where(near < 0, own, member[near]).tolist()
    colour = (first & 3).tolist()
    for _ in range(SWEEPS):
        before = list(colour)
        for here, around in enumerate(classes):
            taken = [0] * COLOURS
            for k, there in enumerate(around):
                if there != here:  # the first of two has an edge in common, the second a corner
                    taken[colour[there]] += 1 if k % 2 else EDGE
            if taken[colour[here]] > min(taken):
                colour[here] = taken.index(min(taken))
        if colour == before:
            break
    return torch.tensor(colour)[member]
