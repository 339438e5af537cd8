"""Extinction at any place of the map: `Dust.query`."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from orrery.models.dust.field import Stars
from orrery.physics.dust.extinction import Paths, paths
from orrery.physics.gaussian_process.icr import Grid

if TYPE_CHECKING:  # astropy.coordinates takes a second to import
    from astropy.coordinates import SkyCoord

MODES = ("mean", "std", "samples")
SLICE = 8192  # places at once


def query(rho: Tensor, grid: Grid, coords: "SkyCoord", mode: str, integrated: bool) -> np.ndarray:
    """Of ``rho`` (samples, pixels, shells): E, or E per pc, at ``coords`` (...).

    "samples" come first, (samples, ...). To a place within a voxel counts a part of it, in
    proportion. NaN beyond the map; nearer than it the extinction is 0 and the density NaN.
    """
    from astropy import units as u

    if mode not in MODES:
        raise ValueError(f"mode is '{mode}'; it is one of {', '.join(MODES)}")
    if coords.distance.unit == u.dimensionless_unscaled:
        raise ValueError(
            "the map is in three dimensions, and these coordinates have no distance: "
            "SkyCoord(l=..., b=..., distance=... * u.pc, frame='galactic')"
        )
    place = coords.galactic.cartesian.xyz.to_value(u.pc).reshape(3, -1).T
    xyz = torch.from_numpy(np.ascontiguousarray(place))
    distance = xyz.norm(dim=1)
    found = []
    for part, d in zip(xyz.split(SLICE), distance.split(SLICE), strict=True):
        pixel, shell = grid.voxel(part, d)
        if integrated:
            lengths = paths(grid.boundaries, 1e3 / d, 0 * d).lengths.to(rho)
            values = (rho[:, pixel] * lengths).sum(2)
            outside = d > grid.boundaries[-1]
        else:
            values = rho[:, pixel, shell.clamp(0, grid.shells - 1)]
            outside = (shell < 0) | (shell >= grid.shells)
        found.append(torch.where(outside, torch.nan, values))
    values = torch.cat(found, 1).view(-1, *coords.shape)
    return summary(values, mode).numpy()


def summary(values: Tensor, mode: str) -> Tensor:
    """Of samples (samples, ...): their mean, their deviation from it, or all of them."""
    if mode == "samples":
        return values
    if mode == "mean":
        return values.mean(0)
    return values.std(0, correction=0)


def map_arrays(rho: Tensor, grid: Grid, columns: list[str] | None) -> dict[str, Any]:
    """What a file of the map holds: see `orrery.evaluation.sky_map.write_sky_map`."""
    if columns not in (None, ["samples"]):
        raise ValueError(f"columns={columns}: a map is mean and std, or columns=[samples]")
    values = rho.transpose(1, 2).contiguous()  # (samples, shells, pixels)
    arrays: dict[str, Any] = {
        "nside": grid.nside,
        "centres": grid.centres.numpy(),
        "boundaries": grid.boundaries.numpy(),
    }
    if columns:
        return arrays | {"samples": values.numpy()}
    return arrays | {mode: summary(values, mode).numpy() for mode in ("mean", "std")}


def stars_at(grid: Grid, direction: Tensor, parallax: Tensor, error: Tensor) -> Stars:
    """Pixels, and paths through the shells; ``direction`` (stars, 3), parallaxes in mas."""
    pixel = grid.voxel(direction, 1e3 / parallax.clamp_min(1e-6))[0].to(parallax.device)
    edges = grid.boundaries.to(parallax)
    parts = [
        paths(edges, *some) for some in zip(parallax.split(SLICE), error.split(SLICE), strict=True)
    ]
    return Stars(pixel, Paths(*(torch.cat(part) for part in zip(*parts, strict=True))))
