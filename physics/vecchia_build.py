"""The order, predecessors and factors of the Vecchia approximation; see `physics.vecchia`."""

import warnings
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.spatial import cKDTree
from torch import Tensor

from physics.icr_build import conditional
from physics.kernel import Kernel

GROWTH = 0.25  # points whose predecessors are looked up at once, of those before them
CHUNK = 2**17  # covariances that are made at once: 1 MB, so that they stay in cache

Integers = NDArray[np.integer]


class Level(NamedTuple):
    """Points at the places from start to stop, whose predecessors are all before start."""

    start: int
    stop: int
    mean: Tensor  # r, sparse, (points, start)
    back: Tensor  # r of their successors, sparse, (points, n - stop)


class Factors(NamedTuple):
    root: Tensor  # sqrt(K_0), lower triangular, (n0, n0)
    noise: Tensor  # d, (n - n0,)
    levels: list[Level]  # of which the first holds the n0 points
    order: Tensor  # point at each place, (n,)


def factors(points: Tensor, kernel: Kernel, k: int, n0: int) -> Factors:
    """Of ``points`` (n, 3), pc, float64."""
    n, n0 = len(points), min(n0, len(points))
    order, path = kd_order(points)
    points = points[order]
    _, root = conditional(points[None, :0], points[None, :n0], kernel)
    depth = np.zeros(n, np.int32)
    means, inputs, noises = [], [], []
    for start, stop in pairwise(cuts(n, n0)):
        near = predecessors(points.numpy(), start, stop, wider(k, start, n))
        deepen(depth, near, start)
        mean, noise = row_factors(points, near, start, kernel)
        means.append(mean)
        noises.append(noise)
        inputs.append(near)

    counts = [np.zeros(n0 + 1, int), *(np.full(len(near), near.shape[1]) for near in inputs)]
    entries = [np.concatenate([np.empty(0), *(part.ravel() for part in parts)])
               for parts in (means, inputs)]
    matrix = csr_matrix(
        (entries[0], entries[1].astype(np.int32), np.concatenate(counts).cumsum()), (n, n)
    )
    # points of a level in the order of the tree, so that neighbours are near in memory
    path[:n0] = torch.arange(n0)
    by_depth = np.lexsort((path.numpy(), depth))
    place = np.empty(n, np.int32)
    place[by_depth] = np.arange(n, dtype=np.int32)
    matrix = matrix[by_depth]
    matrix.indices = place[matrix.indices]
    stops = [0, *np.bincount(depth).cumsum().tolist()]
    noise = torch.cat([root.new_empty(0), *noises])[torch.from_numpy(by_depth[n0:] - n0)]
    return Factors(root[0], noise, levels(matrix, stops), order[torch.from_numpy(by_depth)])


def kd_order(points: Tensor) -> tuple[Tensor, Tensor]:
    """Points from coarse to fine, and the path in the tree to each of them, both (n,).

    A cell is halved along its widest side until it holds one point. A path is the sequence of these
    choices, first bit first; read from the last bit it numbers the points of every generation of
    cells before those of the next. Some points stand twice so that their number is a power of two.
    """
    n = len(points)
    generations = (n - 1).bit_length()
    index = torch.arange(1 << generations) * n >> generations
    for generation in range(generations):
        cells = index.view(1 << generation, -1)
        place = points[cells]
        widest = (place.amax(1) - place.amin(1)).argmax(1)
        along = place.gather(2, widest[:, None, None].expand(*cells.shape, 1))[..., 0]
        index = cells.gather(1, along.argsort(1)).view(-1)
    path = torch.arange(len(index))
    back = torch.zeros_like(path)
    for generation in range(generations):
        back += (path >> generation & 1) << (generations - 1 - generation)
    rank = torch.full((n,), len(index)).scatter_reduce_(0, index, back, "amin")
    order = rank.argsort()
    return order, back[rank[order]]


def cuts(n: int, n0: int) -> list[int]:
    found = [n0]
    while found[-1] < n:
        found.append(min(n, found[-1] + max(1, int(GROWTH * found[-1]))))
    return found


def wider(k: int, start: int, n: int) -> int:
    """Predecessors of coarser points: they cost little, and their errors are those of large scales.

    Twice as many for the first eighth, four times for an eighth of that.
    """
    return min(start, k * (4 if 64 * start < n else 2 if 8 * start < n else 1))


def predecessors(points: NDArray[np.float64], start: int, stop: int, k: int) -> Integers:
    """The k nearest of those before each point from start to stop, (stop - start, k)."""
    tree = cKDTree(points[:stop], balanced_tree=False, compact_nodes=False)
    found = np.empty((stop - start, k), np.int32)
    missing, asked = np.arange(start, stop), int((1 + GROWTH) * k) + 4
    while len(missing):
        asked = min(asked, stop)
        near = tree.query(points[missing], asked, workers=torch.get_num_threads())[1]
        before = near < missing[:, None]
        count = before.cumsum(1, dtype=np.int32)
        before &= count <= k
        enough = count[:, -1] >= k
        found[missing[enough] - start] = near[enough][before[enough]].reshape(-1, k)
        missing, asked = missing[~enough], 2 * asked
    return found


def deepen(depth: Integers, near: Integers, start: int) -> None:
    """Length of the longest way to each point from start, of which those before are known."""
    stop, known = start + len(near), np.zeros(0)
    while not np.array_equal(known, depth[start:stop]):
        known = depth[start:stop].copy()
        depth[start:stop] = 1 + depth[near].max(1)


def row_factors(
    points: Tensor, near: Integers, start: int, kernel: Kernel
) -> tuple[Integers, Tensor]:
    """r (m, k) and d (m,) of the points from start given those ``near`` (m, k)."""
    means, noises = [], []
    for some, new in zip(
        torch.from_numpy(near).split(max(1, CHUNK // near.shape[1] ** 2)),
        points[start : start + len(near), None].split(max(1, CHUNK // near.shape[1] ** 2)),
        strict=True,
    ):
        mean, noise = conditional(points[some], new, kernel)
        means.append(mean[:, 0])
        noises.append(noise[:, 0, 0])
    return torch.cat(means).numpy(), torch.cat(noises)


def levels(matrix: csr_matrix, stops: list[int]) -> list[Level]:
    back = matrix.T.tocsr()
    matrix = back.T.tocsr()
    found = []
    for start, stop in pairwise(stops):
        found.append(
            Level(start, stop, rows(matrix, start, stop, 0, start),
                  rows(back, start, stop, stop, len(back.indptr) - 1))
        )
    return found


def rows(matrix: csr_matrix, start: int, stop: int, left: int, right: int) -> Tensor:
    first, last = matrix.indptr[start], matrix.indptr[stop]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*Sparse.*")
        return torch.sparse_csr_tensor(
            torch.from_numpy(matrix.indptr[start : stop + 1] - first),
            torch.from_numpy(matrix.indices[first:last] - np.int32(left)),
            torch.from_numpy(matrix.data[first:last]),
            (stop - start, right - left),
            check_invariants=False,
        )
