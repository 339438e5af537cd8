"""The Vecchia prior against its kernel, the dense matrix of which it is a product, and itself."""

import pytest
import torch

from orrery.physics.gaussian_process.icr import grids, matern
from orrery.physics.gaussian_process.vecchia import Vecchia
from orrery.physics.gaussian_process.vecchia_build import kd_order, predecessors

D = torch.float64
SCALE = 100.0  # pc


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(seed))


def cloud(n=400, seed=3):
    """Points of a clumpy cloud, as stars are, (n, 3), pc."""
    return 40 * normal(n, 3, seed=seed) + 200 * normal(5, 3, seed=seed + 1)[torch.arange(n) % 5]


def prior(points=None, k=10, n0=30, kernel=None):
    points = cloud() if points is None else points
    return Vecchia(points, kernel or matern(SCALE), k, n0).to(dtype=D)


def matrix(vecchia):
    """A, (points, excitations)."""
    return vecchia.apply(torch.eye(vecchia.n_excitations, dtype=D)).flatten(1).T


def exact(points):
    return matern(SCALE)(torch.cdist(points, points))


@pytest.mark.parametrize("samples", [1, 3])
def test_adjoint_is_the_transpose(samples):
    vecchia = prior(cloud().view(20, 20, 3))
    xi, g = normal(samples, 400), normal(samples, 20, 20, seed=1)
    forth, back = vecchia.apply(xi), vecchia.adjoint(g)
    assert forth.shape == g.shape
    assert back.shape == xi.shape
    for i in range(samples):
        assert float((forth[i] * g[i]).sum()) == pytest.approx(float((xi[i] * back[i]).sum()))


def test_samples_do_not_depend_on_their_company():
    vecchia = prior()
    xi = normal(3, 400)
    together = vecchia.apply(xi)
    for one, alone in zip(together, xi, strict=True):
        torch.testing.assert_close(vecchia.apply(alone[None])[0], one)
    torch.testing.assert_close(vecchia.adjoint(together[:1])[0], vecchia.adjoint(together)[0])


def test_gradients_are_the_adjoint():
    vecchia = prior()
    xi, g = normal(2, 400).requires_grad_(), normal(2, 400, seed=1)
    (grad,) = torch.autograd.grad(vecchia.apply(xi), xi, g)
    torch.testing.assert_close(grad, vecchia.adjoint(g))
    field = g.clone().requires_grad_()
    (grad,) = torch.autograd.grad(vecchia.adjoint(field), field, xi.detach())
    torch.testing.assert_close(grad, vecchia.apply(xi.detach()))


@pytest.mark.parametrize("samples", [1, 3])
def test_inverse_undoes_apply(samples):
    vecchia = prior(cloud().view(20, 20, 3))
    xi = normal(samples, 400)
    torch.testing.assert_close(vecchia.inverse(vecchia.apply(xi)), xi)


def test_the_inverse_has_a_gradient():
    vecchia = prior()
    s, g = normal(1, 400).requires_grad_(), normal(1, 400, seed=1)
    (grad,) = torch.autograd.grad(vecchia.inverse(s), s, g)
    torch.testing.assert_close(grad[0], torch.linalg.solve(matrix(vecchia).T, g[0]))


def test_logdet_is_that_of_the_matrix():
    vecchia = prior()
    assert vecchia.logdet() == pytest.approx(float(torch.linalg.slogdet(matrix(vecchia))[1]))


@pytest.mark.parametrize("k, n0", [(600, 1), (600, 100), (1, 400), (1, 1000)])
def test_given_all_predecessors_the_covariance_is_exact(k, n0):
    found = matrix(prior(k=k, n0=n0))
    torch.testing.assert_close(found @ found.T, exact(cloud()), rtol=0, atol=2e-5)


def test_the_markov_process_on_a_line_needs_both_neighbours_only():
    """Of an exponential kernel nothing beyond the nearest points on both sides matters."""
    points = torch.zeros(300, 3, dtype=D)
    points[:, 0] = 5 * torch.arange(300)
    kernel = matern(SCALE, 0.5)
    found = matrix(prior(points, k=4, n0=2, kernel=kernel))
    known = kernel(torch.cdist(points, points))
    torch.testing.assert_close(found @ found.T, known, rtol=0, atol=1e-4)


def test_implied_covariance_is_the_kernel():
    """Of the reference sky, 27,648 voxels from 69 to 1250 pc."""
    grid = grids(8, 36, 69.0, 1250.0)[-1]
    vecchia = prior(grid, k=20, n0=200)
    assert vecchia.shape == grid.shape
    position = grid.positions.flatten(0, 1)
    voxels = torch.randperm(len(position), generator=torch.Generator().manual_seed(1))[:96]
    unit = torch.zeros(96, len(position), dtype=D)
    unit[torch.arange(96), voxels] = 1
    found = vecchia.apply(vecchia.adjoint(unit.view(-1, *grid.shape))).flatten(1)
    distance = torch.cdist(position[voxels], position)
    known = matern(SCALE)(distance)
    assert float((found - known).norm() / known.norm()) < 0.05
    near = (distance < 100) & (distance > 0)
    off = ((found - known).abs() * near).sum(1) / near.sum(1)
    assert float(off[near.any(1)].mean()) < 0.012
    variance = found[torch.arange(96), voxels]
    assert 0.9 < float(variance.min()) < float(variance.max()) < 1.01


def test_more_predecessors_are_better():
    known = exact(cloud())
    off = [float((m @ m.T - known).norm()) for m in (matrix(prior(k=k)) for k in (5, 10, 20, 40))]
    assert off == sorted(off, reverse=True)
    assert off[-1] < 0.1 * off[0]


def test_points_at_the_same_place_have_the_same_value():
    points = cloud(40).repeat(3, 1)
    field = prior(points, n0=7).apply(normal(1, 120)).view(3, 40)
    torch.testing.assert_close(field[0], field[1], rtol=0, atol=0.02)
    torch.testing.assert_close(field[0], field[2], rtol=0, atol=0.02)


def test_draws_have_the_variance_of_the_kernel_in_float32():
    vecchia = Vecchia(1000 * torch.rand(3000, 3), matern(20.0))
    xi = torch.randn(64, 3000, generator=torch.Generator().manual_seed(0))
    field = vecchia.apply(xi)
    assert field.dtype == torch.float32
    assert float(field.square().mean()) == pytest.approx(1, abs=0.02)
    torch.testing.assert_close(vecchia.inverse(field), xi, rtol=0, atol=1e-4)


@pytest.mark.parametrize("n", [1, 2, 3, 17])
def test_few_points_will_do(n):
    points = cloud(n)
    found = matrix(prior(points, k=30, n0=1))
    torch.testing.assert_close(found @ found.T, exact(points), rtol=0, atol=1e-5)


def test_early_points_are_spread_out():
    """Of 4,096 points in a cube, the first 8 are one of each octant and the first 64 of its own."""
    line = torch.arange(16.0, dtype=D)
    points = torch.cartesian_prod(line, line, line)
    order, rank = kd_order(points)
    for count, side in ((8, 8), (64, 4)):
        assert len((points[order[rank < count]] // side).unique(dim=0)) == count


def test_rounding_does_not_change_the_order():
    grid = grids(8, 6, 69.0, 80.0)[-1].positions.flatten(0, 1)
    noisy = grid * (1 + 1e-14 * normal(len(grid), 3))
    for found, known in zip(kd_order(noisy), kd_order(grid), strict=True):
        assert found.equal(known)


def test_predecessors_are_the_nearest_of_lower_rank():
    points = cloud()
    order, rank = kd_order(points)
    points, batch = points[order], torch.nonzero(rank >= 100)[:, 0]
    distance = torch.cdist(points[batch], points)
    distance[rank >= rank[batch, None]] = torch.inf
    best = distance.topk(10, largest=False)[1].sort(1)[0]
    found = predecessors(points, rank, batch, len(points), 10)
    assert found.long().sort(1)[0].equal(best)


def test_bad_points_are_refused():
    with pytest.raises(ValueError, match="1 values that are not"):
        prior(torch.tensor([[0.0, 0.0, 1.0], [0.0, torch.nan, 1.0]]))
    with pytest.raises(ValueError, match=r"points are \(5, 2\)"):
        prior(torch.zeros(5, 2))
    with pytest.raises(ValueError, match="k is 0"):
        prior(k=0)
