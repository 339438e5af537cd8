"""The map as images and lines, for the figures."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from orrery.physics.gaussian_process import healpix
from orrery.physics.gaussian_process.icr import Grid

LATITUDES, PLANE = 181, 241  # pixels of the images
SLICES = (200.0, 400.0, 800.0)  # pc, between shells of the sky

Arrays = dict[str, np.ndarray]


def pictures(rho: Tensor, grid: Grid, truth: Tensor | None, stars: Mapping[str, Tensor]) -> Arrays:
    """Images (latitudes, longitudes) of the sky, b and l from 180 deg falling, in E: ``sky_*``.

    ``slice_*`` (slices, ...): between the distances ``slice_edges``, pc. ``plane_*``: ln of the
    density at b = 0, over x and y of ``plane_extent``, pc. ``sight_*``: the sightline with most of
    ``stars``, extinction at ``sight_r`` (samples, shells + 1), and its stars.
    """
    column = rho * grid.widths.to(rho)
    edges = [float(grid.boundaries[0]), *SLICES, float(grid.boundaries[-1])]
    inner = np.searchsorted(grid.boundaries.numpy(), edges[1:-1])
    parts = np.split(np.arange(grid.shells), inner)
    parts = [part for part in parts if len(part)]
    bounds = grid.boundaries.numpy()
    found: Arrays = {
        "slice_edges": np.array([*(bounds[part[0]] for part in parts), bounds[-1]]),
        "plane_extent": np.array([-1.0, 1.0, -1.0, 1.0]) * bounds[-1],
    }
    maps = {"mean": column.mean(0)}
    if truth is not None:
        maps["truth"] = (truth * grid.widths).float()
    sky, plane = _sky(grid.nside), _plane(grid)
    for name, values in maps.items():
        found[f"sky_{name}"] = values.sum(1).numpy()[sky]
        found[f"slice_{name}"] = np.stack([values[:, part].sum(1).numpy()[sky] for part in parts])
        log = (values / grid.widths.float()).log().flatten()
        found[f"plane_{name}"] = np.where(plane < 0, np.nan, log.numpy()[plane.clip(0)])
    first, second = column.sum(2).chunk(2)
    std = (0.5 * (first - second)).square().mean(0).sqrt()
    found["sky_std"] = std.numpy()[sky]
    return found | _sightline(column, grid, truth, stars)


def _sky(nside: int) -> np.ndarray:
    """Pixel at each place of an image of the sky."""
    lat, lon = np.meshgrid(
        np.linspace(-90, 90, LATITUDES), np.linspace(180, -180, 2 * LATITUDES), indexing="ij"
    )
    b, lon = np.radians(lat), np.radians(lon)
    xyz = np.stack([np.cos(b) * np.cos(lon), np.cos(b) * np.sin(lon), np.sin(b)], -1)
    return healpix.pixel(nside, torch.from_numpy(xyz)).numpy()


def _plane(grid: Grid) -> np.ndarray:
    """Voxel at each place of the Galactic plane, -1 where there is none."""
    axis = torch.linspace(-1, 1, PLANE, dtype=torch.float64) * grid.boundaries[-1]
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    place = torch.stack([x, y, 0 * x], -1)
    pixel, shell = grid.voxel(place, place.norm(dim=-1).clamp_min(1e-3))
    inside = (shell >= 0) & (shell < grid.shells)
    return torch.where(inside, pixel * grid.shells + shell, -1).numpy()


def _sightline(
    column: Tensor, grid: Grid, truth: Tensor | None, stars: Mapping[str, Tensor]
) -> Arrays:
    pixel = grid.voxel(stars["direction"], torch.ones(len(stars["parallax"])))[0]
    fullest = int(pixel.mode().values)
    near = pixel == fullest

    def through(values: Tensor) -> np.ndarray:
        return torch.nn.functional.pad(values.cumsum(-1), (1, 0)).numpy()

    found = {"sight_r": grid.boundaries.numpy(), "sight_samples": through(column[:, fullest])}
    if truth is not None:
        found["sight_truth"] = through(truth[fullest] * grid.widths)
    for name in ("parallax", "parallax_error", "extinction", "extinction_error"):
        found[f"sight_{name}"] = stars[name][near].numpy()
    return found
