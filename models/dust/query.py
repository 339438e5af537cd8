"""Extinction at any place of the map: `Dust.query`."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from orrery.models.dust.stars import Interpolation, Stars
from orrery.physics.dust.extinction import Paths, is_poor, paths, paths_by_prior
from orrery.physics.gaussian_process import healpix
from orrery.physics.gaussian_process.icr import Grid

if TYPE_CHECKING:  # astropy.coordinates takes a second to import
    from astropy.coordinates import SkyCoord

MODES = ("mean", "std", "samples")
PLACES_AT_ONCE = 8192


def edges(grid: Grid) -> Tensor:
    """Of the shells from the Sun to the edge of the map, (shells + 2,), pc."""
    return torch.nn.functional.pad(grid.boundaries, (1, 0))


def query(rho: Tensor, grid: Grid, coords: "SkyCoord", mode: str, integrated: bool) -> np.ndarray:
    """Extinction E to ``coords`` (...), or E per pc there.

    ``rho`` (samples, pixels, shells + 1), 1/pc: the first shell is inside the inner boundary.
    "mean" and "std" are (...), "samples" (samples, ...). Every sample is interpolated between the
    centres of pixels; of the shell that a place is in, the path up to the place counts. NaN beyond
    the map, and inside its inner boundary for a density. Raises ``ValueError`` for another mode,
    and for coordinates without a distance.
    """
    from astropy import units as u

    if mode not in MODES:
        raise ValueError(f"mode is '{mode}'; it is one of {', '.join(MODES)}")
    coords = coords.galactic
    if not coords.size:
        return np.empty(coords.shape if mode != "samples" else (len(rho), *coords.shape))
    if coords.spherical.distance.unit == u.dimensionless_unscaled:
        raise ValueError(
            "the map is in three dimensions, and these coordinates have no distance: "
            "SkyCoord(l=..., b=..., distance=... * u.pc, frame='galactic')"
        )
    positions = coords.cartesian.xyz.to_value(u.pc).reshape(3, -1).T
    xyz = torch.from_numpy(np.ascontiguousarray(positions))
    distance = xyz.norm(dim=1)
    parts = []
    for place, d in zip(xyz.split(PLACES_AT_ONCE), distance.split(PLACES_AT_ONCE), strict=True):
        pixel, shell = grid.voxel(place, d)
        if integrated:
            lengths = paths(edges(grid), 1e3 / d, 0 * d).lengths.to(rho)
            outside = d > grid.boundaries[-1]
        else:  # a path of 1 pc in the shell of the place
            lengths = one_hot(shell.clamp(0, grid.shells - 1) + 1, grid.shells + 1).to(rho)
            outside = (shell < 0) | (shell >= grid.shells)
        stars = Stars(pixel, interpolation(grid, place), Paths(lengths, lengths))
        parts.append(torch.where(outside, torch.nan, stars.integral(rho)))
    samples = torch.cat(parts, 1).view(-1, *coords.shape)
    return summary(samples, mode).numpy()


def summary(samples: Tensor, mode: str) -> Tensor:
    """Mean or standard deviation (...) of ``samples`` (samples, ...), or the samples."""
    if mode == "samples":
        return samples
    if mode == "mean":
        return samples.mean(0)
    return samples.std(0, correction=0)


def map_arrays(rho: Tensor, grid: Grid, columns: list[str] | None) -> dict[str, Any]:
    """The content of a map file: see `orrery.evaluation.sky_map.write_sky_map`.

    ``rho`` (samples, pixels, shells + 1), 1/pc: the first shell is inside the inner boundary.
    """
    if columns not in (None, ["samples"]):
        raise ValueError(f"columns={columns}: a map is mean and std, or columns=[samples]")
    samples = rho[..., 1:].transpose(1, 2).contiguous()  # (samples, shells, pixels)
    nearer = rho[:, 0, 0] * float(grid.boundaries[0])
    arrays: dict[str, Any] = {
        "nside": grid.nside,
        "centres": grid.centres.numpy(),
        "boundaries": grid.boundaries.numpy(),
    }
    if columns:
        return arrays | {"samples": samples.numpy(), "nearer_samples": nearer.numpy()}
    for mode in ("mean", "std"):
        arrays[mode] = summary(samples, mode).numpy()
        arrays[f"nearer_{mode}"] = summary(nearer, mode).numpy()
    return arrays


def interpolation(
    grid: Grid, direction: Tensor, dtype: torch.dtype = torch.float64
) -> Interpolation:
    """Between the pixels of ``grid``, in each ``direction`` (stars, 3), of weights in ``dtype``."""
    pixels, weights = healpix.bilinear(grid.nside, direction)
    device = direction.device
    return Interpolation(pixels.to(device), weights.to(device, dtype), grid.shape[0])


def locate_stars(
    grid: Grid, direction: Tensor, parallax: Tensor, error: Tensor, by_prior: bool = False
) -> Stars:
    """Pixels, and paths through the shells; ``direction`` (stars, 3), parallaxes in mas.

    ``by_prior``: whether distances of poor parallaxes rest on the prior; a map is made without
    such stars.
    """
    pixel = grid.voxel(direction, 1e3 / parallax.clamp_min(1e-6))[0].to(parallax.device)
    bounds = edges(grid).to(parallax)
    pairs = zip(parallax.split(PLACES_AT_ONCE), error.split(PLACES_AT_ONCE), strict=True)
    parts = [paths(bounds, *pair) for pair in pairs]
    lengths, squares = (torch.cat(part) for part in zip(*parts, strict=True))
    if by_prior and bool((poor := is_poor(parallax, error)).any()):
        lengths[poor], squares[poor] = paths_by_prior(bounds, parallax[poor], error[poor])
    return Stars(pixel, interpolation(grid, direction), Paths(lengths, squares))
