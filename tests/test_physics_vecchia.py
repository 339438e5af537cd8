"""The Vecchia prior against its kernel, the dense matrix of which it is a product, and itself."""

import pytest
import torch

from physics.icr import grids, matern
from physics.vecchia import Vecchia

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


@pytest.mark.parametrize("k, n0", [(399, 1), (399, 100), (1, 400), (1, 1000)])
def test_given_all_predecessors_the_covariance_is_exact(k, n0):
    found = matrix(prior(k=k, n0=n0))
    torch.testing.assert_close(found @ found.T, exact(cloud()), rtol=0, atol=3e-4)


def test_the_markov_process_on_a_line_needs_both_neighbours_only():
    """Of an exponential kernel nothing beyond the nearest points on both sides matters."""
    points = torch.zeros(300, 3, dtype=D)
    points[:, 0] = 5 * torch.arange(300)
    kernel = matern(SCALE, 0.5)
    found = matrix(prior(points, k=4, n0=2, kernel=kernel))
    known = kernel(torch.cdist(points, points))
    torch.testing.assert_close(found @ found.T, known, rtol=0, atol=1e-4)
