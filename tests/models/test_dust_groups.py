"""Stars in groups of like shells give what their dense paths through all shells give."""

import pytest
import torch

from orrery.models.dust.groups import alike, group_stars, memory
from orrery.physics.dust.extinction import PARALLAX_RANGE, open_shells, paths
from orrery.physics.gaussian_process import healpix
from orrery.physics.gaussian_process.icr import grids

GRID = grids(8, 36, 69.0, 1250.0)[-1]
BOUNDS = torch.cat([torch.zeros(1, dtype=torch.float64), GRID.boundaries])
N, SAMPLES = 1500, 3


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


@pytest.fixture(scope="module")
def catalogue():
    """Directions, parallaxes and errors: near and far, also nearer than the map, and poor ones."""
    generator = torch.Generator().manual_seed(0)
    parallax = 1e3 / (20 + 1500 * torch.rand(N, generator=generator, dtype=torch.float64))
    error = parallax * 0.5 * torch.rand(N, generator=generator, dtype=torch.float64)
    error[::10] = 0.0
    return normal(N, 3).double(), parallax, error


@pytest.fixture(scope="module")
def dense(catalogue):
    """Lengths and squares (stars, shells), and the weights of pixels, (stars, pixels)."""
    direction, parallax, error = catalogue
    weights = torch.zeros(N, GRID.shape[0], dtype=torch.float64)
    weights.scatter_add_(1, *healpix.bilinear(GRID.nside, direction))
    return *paths(BOUNDS, parallax, error), weights


def close(found, expected, dtype):
    """To the rounding of some tens of additions, relative to the largest."""
    off = (found - expected).abs().max() / expected.abs().max()
    assert found.dtype == dtype and float(off) < 30 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extinctions_and_their_transpose_are_those_of_dense_paths(catalogue, dense, dtype):
    lengths, _, weights = dense
    stars = group_stars(GRID, *catalogue, dtype)
    rho, w = normal(SAMPLES, *weights.shape[1:], lengths.shape[1]).exp(), normal(SAMPLES, N)
    exact = torch.einsum("np,spr,nr->sn", weights, rho.double(), lengths)
    close(stars.integral(rho.to(dtype)), exact, dtype)
    exact = torch.einsum("np,sn,nr->spr", weights, w.double(), lengths)
    close(stars.integral_adjoint(w.to(dtype)), exact, dtype)


def test_scatter_is_that_of_dense_paths(catalogue, dense):
    lengths, squares, weights = dense
    rho = normal(SAMPLES, *weights.shape[1:], lengths.shape[1]).exp().double()
    along = torch.einsum("np,spr->snr", weights, rho)
    column = along * BOUNDS.diff()
    below = column.cumsum(-1) - column
    second = 2 * (below * along * lengths + along.square() * squares).sum(-1)
    exact = (second - (along * lengths).sum(-1).square()).clamp_min(0)
    variance, voxels = group_stars(GRID, *catalogue, torch.float64).scatter(rho)
    close(variance, exact, torch.float64)
    close(voxels, (along * lengths).square().sum(-1), torch.float64)


def test_open_shells_are_those_that_a_star_may_be_in(catalogue, dense):
    _, parallax, error = catalogue
    first, last = open_shells(BOUNDS, parallax, error)
    low, high = (1e3 / (parallax + x * error).clamp_min(1e-6) for x in (PARALLAX_RANGE, -4.0))
    near, far = BOUNDS[:-1], BOUNDS[1:]
    assert torch.equal(first, (far <= low[:, None]).sum(1))
    assert torch.equal(last, (near < high[:, None]).sum(1))
    shell, lengths = torch.arange(len(near)), dense[0]
    assert (lengths == BOUNDS.diff())[shell < first[:, None]].all()
    assert (lengths == 0)[shell >= last[:, None]].all()


def test_groups_hold_every_star_once_and_less_than_dense_paths():
    """Of stars at 5%: half of the shells of dense paths, or less."""
    parallax = 1e3 / (69 + 1180 * torch.rand(N, generator=torch.Generator().manual_seed(1)))
    first, last = open_shells(BOUNDS.float(), parallax, 0.05 * parallax)
    groups = alike(first, last, n_pixels=100)
    assert torch.equal(torch.cat(groups).sort()[0], torch.arange(N))
    held = sum(len(g) * int(last[g].max() - first[g].min()) for g in groups)
    assert int((last - first).sum()) <= held < 0.5 * N * len(GRID.boundaries)


def test_their_memory_is_that_of_their_tensors(catalogue):
    stars = group_stars(GRID, *catalogue, torch.float32)
    of_groups = [[g.stars, g.lengths, *vars(g.between).values()] for g in stars.groups]
    tensors = [stars.parallax, stars.error, *(x for part in of_groups for x in part)]
    first, last = open_shells(BOUNDS, *catalogue[1:])
    pixels = GRID.shape[0]
    counted = memory(alike(first, last, pixels), first, last, pixels)
    assert counted == sum(x.nbytes for x in tensors)
