"""The order, predecessors and factors of the Vecchia approximation; see `physics.vecchia`."""

import warnings
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.spatial import cKDTree
from torch import Tensor

from physics.icr_build import conditional
from physics.kernel import Kernel

GROWTH = 0.25  # points whose predecessors are looked up at once, of those before them
CHUNK = 2**17  # covariances that are made at once: 1 MB, which stays in cache

Integers = NDArray[np.integer[Any]]


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
    """Of ``points`` (n, 3), pc, float64; all but the order are float32."""
    n, n0 = len(points), min(n0, len(points))
    order, path = kd_order(points)
    points = points[order]
    stops = growing(n, n0)
    # within a batch in the order of paths, so that neighbours are near in memory
    batches = [a + path[a:b].argsort() for a, b in pairwise([0, *stops])]
    _, root = conditional(points[None, :0], points[None, batches[0]], kernel)
    depth = np.zeros(n, np.int32)  # in the graph
    inputs, means, noises = [], [], [root.new_empty(0)]
    for batch, (start, stop) in zip(batches[1:], pairwise(stops), strict=True):
        count = min(start, predecessor_count(k, start / n))
        near = predecessors(points[:stop].numpy(), batch.numpy(), count)
        deepen(depth, batch.numpy(), near)
        mean, noise = row_factors(points[batch], points, torch.from_numpy(near), kernel)
        inputs.append(near)
        means.append(mean)
        noises.append(noise)

    rows = torch.cat(batches).numpy()
    by_level = np.lexsort((path[rows].numpy(), depth[rows]))
    matrix = sparse(means, inputs, n)[by_level]
    rows = rows[by_level]
    place = np.empty(n, np.int32)
    place[rows] = np.arange(n, dtype=np.int32)
    matrix.indices = place[matrix.indices]
    noise = torch.cat(noises)[by_level[n0:] - n0]
    bounds = [0, *np.bincount(depth).cumsum().tolist()]
    return Factors(root[0].float(), noise.float(), levels(matrix, bounds), order[rows])


def kd_order(points: Tensor) -> tuple[Tensor, Tensor]:
    """Points from coarse to fine, and the path through the tree to each of them, both (n,).

    Cells are halved along their widest side until they hold one point, and a path is the sequence
    of choices. Read from its last bit it is the rank of a point, so that the first 2^g points are
    one of each cell of generation g. Some points stand twice, to make their number a power of two.
    """
    n = len(points)
    generations = (n - 1).bit_length()
    # what differs by rounding alone is a tie, so that all machines find the same order
    rounded = (points / points.abs().max().clamp(min=1e-300) * 2**20).round().float()
    index = torch.arange(1 << generations) * n >> generations
    for generation in range(generations):
        cells = index.view(1 << generation, -1)
        place = rounded[cells]
        widest = (place.amax(1) - place.amin(1)).argmax(1)
        along = place.gather(2, widest[:, None, None].expand(*cells.shape, 1))[..., 0]
        index = cells.gather(1, along.argsort(dim=1, stable=True)).view(-1)
    path = torch.arange(len(index))
    rank = torch.zeros_like(path)
    for generation in range(generations):
        rank += (path >> generation & 1) << (generations - 1 - generation)
    first = torch.full((n,), len(index)).scatter_reduce_(0, index, rank, "amin")
    order = first.argsort()
    return order, rank[first[order]]


def growing(n: int, n0: int) -> list[int]:
    """Where batches end, of which the first is of n0 points."""
    stops = [n0]
    while stops[-1] < n:
        stops.append(min(n, stops[-1] + max(1, int(GROWTH * stops[-1]))))
    return stops


def predecessor_count(k: int, share: float) -> int:
    """Of the point before which there is a ``share`` of all points; k on average, 4 k at most.

    Early points are few and far apart, and what they get wrong all others inherit. The cube root
    has 20-30% smaller errors than k for each point (benchmarks/dust_prior).
    """
    return max(1, round(k * min(4, 2 / 3 * share ** (-1 / 3))))


def predecessors(points: NDArray[np.float64], batch: Integers, k: int) -> Integers:
    """The k points nearest to each of ``batch`` (m,) among those before it, (m, k)."""
    tree = cKDTree(points, balanced_tree=False, compact_nodes=False)
    found = np.empty((len(batch), k), np.int32)
    missing, asked = np.arange(len(batch)), int((1 + GROWTH) * k) + 4
    while len(missing):
        asked = min(asked, len(points))
        own = batch[missing]
        near = tree.query(points[own], [*range(1, asked + 1)], workers=torch.get_num_threads())[1]
        before = near < own[:, None]
        before &= before.cumsum(1, dtype=np.int32) <= k
        enough = before.sum(1) == k
        found[missing[enough]] = near[before & enough[:, None]].reshape(-1, k)
        missing, asked = missing[~enough], 2 * asked
    return found


def deepen(depth: Integers, batch: Integers, near: Integers) -> None:
    """Sets the depth of ``batch``: the longest way from the first n0 points, in steps."""
    known = None
    while known is None or not np.array_equal(known, depth[batch]):
        known = depth[batch]
        depth[batch] = 1 + depth[near].max(1)


def row_factors(new: Tensor, points: Tensor, near: Tensor, kernel: Kernel) -> tuple[Tensor, Tensor]:
    """r (m, k), float32, and d (m,) of values at ``new`` (m, 3) given those at points ``near``."""
    m, k = near.shape
    mean, noise = torch.empty(m, k), new.new_empty(m)
    size = max(1, CHUNK // k**2)
    for some in range(0, m, size):
        chunk = slice(some, some + size)
        found = conditional(points[near[chunk]], new[chunk, None], kernel)
        mean[chunk], noise[chunk] = found[0][:, 0], found[1][:, 0, 0]
    return mean, noise


def sparse(means: list[Tensor], inputs: list[Integers], n: int) -> csr_matrix:
    """All r below one another; the first rows, of points without predecessors, are empty."""
    counts = np.zeros(n + 1, np.int64)
    end = n + 1
    for near in reversed(inputs):
        counts[end - len(near) : end] = near.shape[1]
        end -= len(near)
    data = torch.cat([torch.empty(0), *(mean.flatten() for mean in means)])
    columns = np.concatenate([np.empty(0, np.int32), *(near.ravel() for near in inputs)])
    return csr_matrix((data.numpy(), columns, counts.cumsum()), (n, n))


def levels(matrix: csr_matrix, bounds: list[int]) -> list[Level]:
    """Of r (n, n), whose rows and columns are in the order of levels."""
    n, back = bounds[-1], matrix.T.tocsr()
    return [
        Level(start, stop, part(matrix, start, stop, 0, start), part(back, start, stop, stop, n))
        for start, stop in pairwise(bounds)
    ]


def part(matrix: csr_matrix, start: int, stop: int, left: int, right: int) -> Tensor:
    """Rows from start to stop, whose entries are in the columns from left to right."""
    first, last = matrix.indptr[[start, stop]]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(
            torch.from_numpy(matrix.indptr[start : stop + 1] - first),
            torch.from_numpy(matrix.indices[first:last] - np.int32(left)),
            torch.from_numpy(matrix.data[first:last].copy()),
            (stop - start, right - left),
            check_invariants=False,
        )
