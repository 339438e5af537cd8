"""The map as images and lines, for the figures."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from orrery.physics.gaussian_process import healpix
from orrery.physics.gaussian_process.icr import Grid

LATITUDES, PLANE = 181, 241  # pixels of the images
SLICES = (200.0, 400.0, 800.0)  # pc, between slices of the sky

Arrays = dict[str, np.ndarray]


def figure_data(
    rho: Tensor, grid: Grid, truth: Tensor | None, stars: Mapping[str, Tensor]
) -> dict[str, Arrays]:
    """Arrays of each figure; ``truth`` (pixels, shells), 1/pc.

    ``rho`` (samples, pixels, shells + 1): the first shell is inside the inner boundary.
    Images of the sky are (latitudes, longitudes), b rising and l falling from 180 deg, in E.

    - sky: ``mean``, ``truth``, ``std``, through the map.
    - slices: the same ``mean`` and ``truth`` (slices, ...), between distances ``edges``, pc.
    - plane: ln density at b = 0, ``mean`` and ``truth`` (y, x), over ``extent``, pc.
    - sightline: of the pixel with most of ``stars``, see `sightline`.
    """
    nearer, extinction = rho[..., 0] * grid.boundaries[0], rho[..., 1:] * grid.widths.to(rho)
    bounds = grid.boundaries.numpy()
    inner = np.searchsorted(bounds, [float(bounds[0]), *SLICES, float(bounds[-1])][1:-1])
    parts = [part for part in np.split(np.arange(grid.shells), inner) if len(part)]
    sky: Arrays = {}
    slices: Arrays = {"edges": np.array([*(bounds[part[0]] for part in parts), bounds[-1]])}
    plane: Arrays = {"extent": np.array([-1.0, 1.0, -1.0, 1.0]) * bounds[-1]}
    maps = {"mean": extinction.mean(0)}
    if truth is not None:
        maps["truth"] = (truth * grid.widths).float()
    pixel, voxel = sky_pixels(grid.nside), plane_voxels(grid)
    for name, values in maps.items():
        sky[name] = values.sum(1).numpy()[pixel]
        slices[name] = np.stack([values[:, part].sum(1).numpy()[pixel] for part in parts])
        log = (values / grid.widths.float()).log().flatten()
        plane[name] = np.where(voxel < 0, np.nan, log.numpy()[voxel.clip(0)])
    first, second = extinction.sum(2).chunk(2)
    sky["std"] = (0.5 * (first - second)).square().mean(0).sqrt().numpy()[pixel]
    line = sightline(extinction, nearer.to(rho), grid, truth, stars)
    return {"sky": sky, "slices": slices, "plane": plane, "sightline": line}


def sky_pixels(nside: int) -> np.ndarray:
    """HEALPix pixel at each place of an image of the sky."""
    lat, lon = np.meshgrid(
        np.linspace(-90, 90, LATITUDES), np.linspace(180, -180, 2 * LATITUDES), indexing="ij"
    )
    b, lon = np.radians(lat), np.radians(lon)
    xyz = np.stack([np.cos(b) * np.cos(lon), np.cos(b) * np.sin(lon), np.sin(b)], -1)
    return healpix.pixel(nside, torch.from_numpy(xyz)).numpy()


def plane_voxels(grid: Grid) -> np.ndarray:
    """Voxel at each place of the Galactic plane, -1 outside the map."""
    axis = torch.linspace(-1, 1, PLANE, dtype=torch.float64) * grid.boundaries[-1]
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    xyz = torch.stack([x, y, 0 * x], -1)
    pixel, shell = grid.voxel(xyz, xyz.norm(dim=-1).clamp_min(1e-3))
    inside = (shell >= 0) & (shell < grid.shells)
    return torch.where(inside, pixel * grid.shells + shell, -1).numpy()


def sightline(
    extinction: Tensor,
    nearer: Tensor,
    grid: Grid,
    truth: Tensor | None,
    stars: Mapping[str, Tensor],
) -> Arrays:
    """Of the pixel with most ``stars``: ``samples`` (samples, shells + 1) and ``truth``, E to the
    distances ``edges``, pc; of its stars ``parallax``, ``parallax_error``, mas, ``extinction`` and
    ``extinction_error``, E.

    ``extinction`` (samples, pixels, shells): E of each voxel; ``nearer`` (samples, pixels): up to
    them.
    """
    pixel = grid.voxel(stars["direction"], torch.ones(len(stars["parallax"])))[0]
    fullest = int(pixel.mode().values)
    inside = pixel == fullest

    def cumulative(values: Tensor) -> np.ndarray:
        return torch.nn.functional.pad(values.cumsum(-1), (1, 0)).numpy()

    arrays = {"edges": grid.boundaries.numpy(), "samples": cumulative(extinction[:, fullest])}
    arrays["samples"] += nearer[:, fullest, None].numpy()
    if truth is not None:
        arrays["truth"] = cumulative(truth[fullest] * grid.widths)
    for name in ("parallax", "parallax_error", "extinction", "extinction_error"):
        arrays[name] = stars[name][inside].numpy()
    return arrays
