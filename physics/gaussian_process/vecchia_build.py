"""The order, predecessors and factors of the Vecchia approximation; see `vecchia`."""

import warnings
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_matrix
from scipy.spatial import cKDTree
from torch import Tensor

from orrery.physics.gaussian_process.icr_build import conditional
from orrery.physics.gaussian_process.kernel import Kernel

GROWTH = 0.25  # points whose predecessors are looked up at once, of those before them
CHUNK = 2**17  # covariances that are made at once: 1 MB, which stays in cache


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
    order, rank = kd_order(points)
    points = points[order]
    stops = growing(n, n0, k)
    batches = [torch.nonzero((rank >= a) & (rank < b))[:, 0] for a, b in pairwise([0, *stops])]
    _, root = conditional(points[None, :0], points[None, batches[0]], kernel)
    depth = torch.zeros(n, dtype=torch.int32)  # in the graph
    inputs, means, noises = [], [], [root.new_empty(0)]
    for batch, (start, stop) in zip(batches[1:], pairwise(stops), strict=True):
        near = predecessors(points, rank, batch, stop, min(start, predecessor_count(k, start / n)))
        deepen(depth, batch, near)
        mean, noise = row_factors(points[batch], points, near, kernel)
        inputs.append(near)
        means.append(mean)
        noises.append(noise)

    rows = torch.cat(batches)
    # within a level in the order of the tree, so that neighbours are near in memory
    by_level = torch.from_numpy(np.lexsort((rows, depth[rows])))
    place = torch.empty(n, dtype=torch.int32)
    place[rows[by_level]] = torch.arange(n, dtype=torch.int32)
    matrix = sparse(means, [place[near] for near in inputs], n)[by_level.numpy()]
    bounds = [0, *depth.bincount().cumsum(0).tolist()]
    noise = torch.cat(noises)[by_level[n0:] - n0]
    return Factors(root[0].float(), noise.float(), levels(matrix, bounds), order[rows[by_level]])


def kd_order(points: Tensor) -> tuple[Tensor, Tensor]:
    """Points in the order of the leaves of a k-d tree, and the rank of these, both (n,).

    Cells are halved along their widest side until they hold one point. The number of a leaf has the
    choices on the way as bits; read from the last bit it is the rank, so that the first 2^g points
    are one of each cell of generation g. Some points stand twice, to make the number of leaves a
    power of two.
    """
    n, generations = len(points), (len(points) - 1).bit_length()
    # what differs by rounding alone is a tie, so that all machines find the same order
    whole = (points / points.abs().max().clamp(min=1e-300) * 2**20).round().int()
    leaves = torch.arange(1 << generations) * n >> generations
    for generation in range(generations):
        cells = leaves.view(1 << generation, -1)
        place = whole[cells]
        widest = (place.amax(1) - place.amin(1)).argmax(1)
        along = place.gather(2, widest[:, None, None].expand(*cells.shape, 1))[..., 0]
        # with the point in the last bits of the key, halves are parted faster than by sorting
        keys = np.partition((along.long() << 40 | cells).numpy(), cells.shape[1] // 2, axis=1)
        leaves = torch.from_numpy(keys).view(-1) & ((1 << 40) - 1)
    number = torch.arange(len(leaves))
    reverse = torch.zeros_like(number)
    for generation in range(generations):
        reverse += (number >> generation & 1) << (generations - 1 - generation)
    first = torch.full((n,), len(leaves)).scatter_reduce_(0, leaves, reverse, "amin")
    order = reverse[first].argsort()  # of leaves, as bits reversed twice are as before
    return order, first.argsort().argsort()[order]


def growing(n: int, n0: int, k: int) -> list[int]:
    """Where batches end, of which the first is of n0 points, in the order of ranks."""
    stops = [n0]
    while stops[-1] < n:
        # a point that has fewer than it may is conditioned on all others, so it comes alone
        more = max(1, int(GROWTH * stops[-1])) if stops[-1] >= 2 * k else 1
        stops.append(min(n, stops[-1] + more))
    return stops


def predecessor_count(k: int, share: float) -> int:
    """Of a point that comes after a ``share`` of all points: about k on average, 2 k at most.

    Early points are few, and what they get wrong all others inherit: on the reference sky, with
    n0 = 1,000, errors are 20-25% smaller than with k for each point, at the same cost.
    """
    return max(1, round(k * min(2.0, 2 / 3 * share ** (-1 / 3))))


def predecessors(points: Tensor, rank: Tensor, batch: Tensor, stop: int, k: int) -> Tensor:
    """The k points nearest to each of ``batch`` (m,) among those of lower rank, (m, k), int32.

    ``stop`` is above the ranks of the batch.
    """
    known = torch.nonzero(rank < stop)[:, 0]
    tree = cKDTree(points[known], leafsize=32, balanced_tree=False, compact_nodes=False)
    found = torch.empty(len(batch), k, dtype=torch.int32)
    missing, asked = torch.arange(len(batch)), int((1 + GROWTH) * k) + 4
    while len(missing):
        asked = min(asked, stop)
        own, count = batch[missing], [*range(1, asked + 1)]
        near = tree.query(points[own], count, workers=torch.get_num_threads())[1]
        near = known[torch.from_numpy(near)]
        before = rank[near] < rank[own, None]
        before &= before.cumsum(1, dtype=torch.int32) <= k
        enough = before.sum(1) == k
        found[missing[enough]] = near[before & enough[:, None]].view(-1, k).int()
        missing, asked = missing[~enough], 2 * asked
    return found


def deepen(depth: Tensor, batch: Tensor, near: Tensor) -> None:
    """Sets the depth of ``batch``: the longest way from the first n0 points, in steps."""
    known = None
    while known is None or not known.equal(depth[batch]):
        known = depth[batch]
        depth[batch] = 1 + depth.index_select(0, near.view(-1)).view(near.shape).amax(1)


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


def sparse(means: list[Tensor], inputs: list[Tensor], n: int) -> csr_matrix:
    """All r below one another; the first rows, of points without predecessors, are empty."""
    counts = [torch.full((len(near),), near.shape[1]) for near in inputs]
    rows = torch.cat([torch.zeros(n - sum(map(len, counts)), dtype=torch.long), *counts])
    values = torch.cat([torch.empty(0), *(mean.view(-1) for mean in means)])
    columns = torch.cat([torch.empty(0, dtype=torch.int32), *(near.view(-1) for near in inputs)])
    ends = torch.cat([rows[:0].new_zeros(1), rows.cumsum(0)])
    return csr_matrix((values.numpy(), columns.numpy(), ends.numpy()), (n, n))


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
