"""A Gaussian process on HEALPix x log distance by Iterative Charted Refinement (ICR).

Edenhofer et al. (2022), arXiv:2206.10634. A field s on the voxels of a coarse grid is drawn from its
exact covariance and refined level by level: every voxel gives way to 8 (4 child pixels x 2 shells), of
which the values follow from the 27 coarse ones around (3 x 3 pixels x 3 shells) and 8 excitations,

    s_f = R s_c + sqrt(D) xi,   R = K_fc K_cc^-1,   D = K_ff - R K_cf.

The map from excitations xi ~ N(0, 1) to s is linear, and s has about the covariance K of the kernel.
The outermost shells of a level only serve as neighbours: n fine shells come of n / 2 + 2 coarse ones.

The sphere is tiled by classes of 8 pixels that rotations map to one another (`healpix.rotations`), so
that a matrix serves 8 voxels. Inside, the voxels of a level are in the order (class, shell, child,
member), and samples come last, so that a level is one batched matrix product over (class, shell).
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from physics import healpix

JITTER = 1e-6  # on the diagonal of covariances of unit variance
MEMBERS = 8  # pixels of a class
CHUNK = 4096  # stencils of which matrices are made at once: 50 MB
Kernel = Callable[[Tensor], Tensor]  # covariance at a distance in pc


def matern(scale: float, nu: float = 1.5) -> Kernel:
    """Matern covariance of unit variance; ``scale`` in pc, ``nu`` is 1/2, 3/2 or 5/2."""
    if nu not in (0.5, 1.5, 2.5):
        raise ValueError(f"nu is {nu}; a Matern kernel is known for .5, 1.5 and 2.5")

    def kernel(distance: Tensor) -> Tensor:
        x = math.sqrt(2 * nu) / scale * distance
        polynomial = {0.5: 1.0, 1.5: 1 + x, 2.5: 1 + x + x * x / 3}[nu]
        return polynomial * torch.exp(-x)

    return kernel


class Grid(NamedTuple):
    """Voxels: nested pixels of ``nside`` x ``shells`` equal steps in log distance."""

    nside: int
    shells: int
    first: float  # ln(r / pc) of the centre of the innermost shell
    step: float  # of ln r

    @property
    def log_centres(self) -> Tensor:
        return self.first + self.step * torch.arange(self.shells, dtype=torch.float64)

    @property
    def centres(self) -> Tensor:
        """Distances of the shells, (shells,), pc."""
        return self.log_centres.exp()

    @property
    def boundaries(self) -> Tensor:
        """Of the shells, geometric means of the centres, (shells + 1,), pc."""
        edges = torch.arange(self.shells + 1, dtype=torch.float64) - 0.5
        return (self.first + self.step * edges).exp()

    @property
    def widths(self) -> Tensor:
        """Of the shells along the line of sight, (shells,), pc."""
        return self.boundaries.diff()

    @property
    def positions(self) -> Tensor:
        """Centres of all voxels, (pixels, shells, 3), pc."""
        return healpix.centres(self.nside)[:, None] * self.centres[:, None]

    def voxel(self, directions: Tensor, distance: Tensor) -> tuple[Tensor, Tensor]:
        """Pixel and shell of places: ``directions`` (..., 3), ``distance`` (...), pc.

        The shell is -1 below the innermost boundary and ``shells`` beyond the outermost.
        """
        place = (distance.double().log() - self.first) / self.step + 0.5
        shell = place.floor().clamp(-1, self.shells).long()
        return healpix.pixel(self.nside, directions).to(shell.device), shell

    def coarser(self) -> "Grid":
        """The grid that refines to this one."""
        if self.nside < 2 or self.shells % 2:
            raise ValueError(f"Nside {self.nside} x {self.shells} shells has no coarser grid")
        first = self.first - 1.5 * self.step
        return Grid(self.nside // 2, self.shells // 2 + 2, first, 2 * self.step)


def grids(
    nside: int, shells: int, nearest: float, farthest: float, base_nside: int = 4
) -> list[Grid]:
    """From the base to the map, whose outer boundaries are ``nearest`` and ``farthest``, pc."""
    healpix.count(nside)
    step = math.log(farthest / nearest) / shells
    found = [Grid(nside, shells, math.log(nearest) + step / 2, step)]
    while found[0].nside > base_nside:
        if found[0].shells % 2:
            raise ValueError(
                f"{shells} shells at Nside {nside} would need {found[0].shells} at Nside "
                f"{found[0].nside}, an odd number: n fine shells come of n / 2 + 2. "
                f"Take {allowed_shells(nside, shells, base_nside)}"
            )
        found.insert(0, found[0].coarser())
    return found


def allowed_shells(nside: int, shells: int, base_nside: int = 4) -> int:
    """Least number of shells, ``shells`` or more, that a base of whole shells refines to."""
    halvings = max(0, round(math.log2(nside / base_nside)))
    return 4 + 2**halvings * max(-(-(shells - 4) // 2**halvings), 1)


class Level(NamedTuple):
    """A refinement; batch is classes x shells, in this order."""

    mean: Tensor  # R, (batch, 8, 27)
    noise: Tensor  # sqrt(D), (batch, 8, 8)
    inputs: Tensor  # (batch, 27, 8 members), place of each coarse value
    uses: Tensor  # places in `inputs`, coarse value after coarse value: the transpose of `inputs`
    offsets: Tensor  # (coarse values,), where in `uses` each begins


class ICR:
    """s = A xi for excitations xi ~ N(0, 1), and A^T; float32, built in float64; `to` moves it.

    ``levels`` are those of `grids`. The order of the excitations is that of the inner voxels.
    """

    def __init__(self, levels: list[Grid], kernel: Kernel):
        self.grid = levels[-1]
        self.base, places = base_root(levels[0], kernel)
        self.levels: list[Level] = []
        for coarse, fine in pairwise(levels):
            level, places = refinement(coarse, fine, places, kernel)
            self.levels.append(level)
        self.places = places.flatten()  # of the voxels of the map among the inner ones
        self.order = torch.argsort(self.places)
        self.sizes = [self.base[..., 0].numel()]
        self.sizes += [level.inputs.shape[0] * 8 * MEMBERS for level in self.levels]
        self.to(dtype=torch.float32)

    @property
    def n_excitations(self) -> int:
        return sum(self.sizes)

    @property
    def shape(self) -> tuple[int, int]:
        """Pixels, shells."""
        return healpix.count(self.grid.nside), self.grid.shells

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "ICR":
        """Moves the matrices and indices, in place."""

        def moved(value: Tensor) -> Tensor:
            return value.to(device, dtype if value.is_floating_point() else None)

        self.base, self.places, self.order = map(moved, (self.base, self.places, self.order))
        self.levels = [Level(*map(moved, level)) for level in self.levels]
        return self

    def apply(self, xi: Tensor) -> Tensor:
        """The field of excitations (samples, n_excitations): (samples, pixels, shells)."""
        parts = xi.T.split(self.sizes)
        samples = len(xi)
        s = _hadamard(self.base @ parts[0].reshape(4, -1, samples)).reshape(-1, samples)
        for level, part in zip(self.levels, parts[1:], strict=True):
            batch = len(level.inputs)
            around = s.index_select(0, level.inputs.flatten()).view(batch, 27, -1)
            s = level.noise @ part.reshape(batch, 8, -1)
            s = torch.baddbmm(s, level.mean, around).view(-1, samples)
        return s.index_select(0, self.places).T.view(samples, *self.shape)

    def adjoint(self, g: Tensor) -> Tensor:
        """A^T g of (samples, pixels, shells): (samples, n_excitations)."""
        samples = len(g)
        s = g.reshape(samples, -1).T.index_select(0, self.order)
        parts = []
        for level in reversed(self.levels):
            s = s.view(len(level.inputs), 8, -1)
            parts.append((level.noise.mT @ s).view(-1, samples))
            back = (level.mean.mT @ s).view(-1, samples)
            s = functional.embedding_bag(level.uses, back, level.offsets, mode="sum")
        s = self.base.mT @ _hadamard(s.view(4, -1, samples))
        return torch.cat([s.view(-1, samples), *reversed(parts)]).T


def _hadamard(s: Tensor) -> Tensor:
    """The orthogonal and symmetric transform of four members to the characters of their group."""
    a, b, c, d = s.unbind(0)
    return 0.5 * torch.stack([a + b + c + d, a + b - c - d, a - b + c - d, a - b - c + d])


def base_root(grid: Grid, kernel: Kernel) -> tuple[Tensor, Tensor]:
    """sqrt(K_0) in four blocks (4, n / 4, n / 4), and the places (pixels, shells) of the voxels.

    Half turns about the three axes leave K_0 as it is: sums and differences of the four voxels that
    they map to one another are independent, which makes the root 16 times faster to find. Inner
    voxels are in the order (member, pixel, shell).
    """
    if grid.nside < 2:
        raise ValueError("the base has Nside 1, of which rotations leave pixels in place; take 2")
    turns = healpix.rotations(grid.nside)[[0, 2, 4, 6]]
    pixels = turns[:, turns.amin(0).unique()]  # (4, pixels / 4)
    position = grid.positions[pixels].flatten(1, 2)
    shares = kernel(_distances(position[:1], position))  # (4, n / 4, n / 4): K of each turn
    root = _root(2 * _hadamard(shares))
    places = torch.empty(healpix.count(grid.nside), grid.shells, dtype=torch.long)
    places[pixels.flatten()] = torch.arange(places.numel()).view(-1, grid.shells)
    return root, places


def refinement(
    coarse: Grid, fine: Grid, places: Tensor, kernel: Kernel
) -> tuple[Level, Tensor]:
    """The level from ``coarse``, of which the voxels are at ``places``, to ``fine``; its places."""
    turns = healpix.rotations(coarse.nside)
    first = turns.amin(0).unique()  # a pixel of each class
    around = healpix.neighbourhood(coarse.nside, first)  # (classes, 9)
    children = 4 * first[:, None] + torch.arange(4)

    shells = coarse.shells - 2
    window = torch.arange(shells)[:, None] + torch.arange(3)
    pixels = turns[:, around].permute(1, 2, 0)[:, None, :, None]  # (classes, 1, 9, 1, members)
    inputs = places[pixels, window[:, None, :, None]].reshape(-1, 27, MEMBERS)

    halves = torch.arange(fine.shells).view(shells, 1, 2, 1)
    pixels = healpix.rotations(fine.nside)[:, children].permute(1, 2, 0)[:, None, :, None]
    fine_places = torch.empty(healpix.count(fine.nside), fine.shells, dtype=torch.long)
    inner = torch.arange(fine_places.numel()).view(len(first), shells, 4, 2, MEMBERS)
    fine_places[pixels, halves] = inner

    unit, unit_fine = healpix.centres(coarse.nside), healpix.centres(fine.nside)
    means, noises = [], []
    chunk = max(1, CHUNK // shells)
    for some, young in zip(around.split(chunk), children.split(chunk), strict=True):
        near = unit[some][:, None, :, None] * coarse.centres[window][:, None, :, None]
        new = unit_fine[young][:, None, :, None] * fine.centres.view(shells, 1, 2, 1)
        mean, noise = conditional(near.view(-1, 27, 3), new.view(-1, 8, 3), kernel)
        means.append(mean)
        noises.append(noise)

    flat = inputs.flatten()
    uses = torch.argsort(flat, stable=True)
    offsets = torch.bincount(flat, minlength=places.numel()).cumsum(0).roll(1)
    offsets[0] = 0
    level = Level(torch.cat(means), torch.cat(noises), inputs, uses, offsets)
    return level, fine_places


def conditional(near: Tensor, new: Tensor, kernel: Kernel) -> tuple[Tensor, Tensor]:
    """R and sqrt(D) of values at ``new`` (batch, f, 3) given those at ``near`` (batch, c, 3), pc."""
    root = _root(kernel(_distances(near, near)))
    across = kernel(_distances(near, new))
    mean = torch.cholesky_solve(across, root).mT
    return mean, _root(kernel(_distances(new, new)) - mean @ across)


def _distances(a: Tensor, b: Tensor) -> Tensor:
    # without matrix products, that lose the digits of near points
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def _root(covariance: Tensor) -> Tensor:
    """Lower triangular root, (..., n, n)."""
    identity = torch.eye(covariance.shape[-1], dtype=covariance.dtype)
    return torch.linalg.cholesky(covariance + JITTER * identity)
