"""The variational method on a linear model, whose posterior is known."""

import math

import pytest
import torch

from orrery.models.inference import meanfield, mgvi
from orrery.models.inference.matrix_free import (
    LANCZOS_PROBES,
    leading_eigenvectors,
    log_determinant,
)

D = torch.float64


class LinearModel:
    """f(u) = B u."""

    def __init__(self, b, u):
        self.b, self.value = b, u @ b.T

    def jvp(self, v):
        return v @ self.b.T

    def vjp(self, w):
        return w @ self.b

    def vjp_mean(self, w):
        return self.vjp(w).mean(0, keepdim=True)

    def metric(self, weight):
        return lambda v: self.vjp(weight * self.jvp(v))


def problem():
    generator = torch.Generator().manual_seed(0)
    b = torch.randn(30, 12, generator=generator, dtype=D)
    variance = 0.5 + torch.rand(30, generator=generator, dtype=D)
    truth = torch.randn(1, 12, generator=generator, dtype=D)
    noise = variance.sqrt() * torch.randn(30, generator=generator, dtype=D)
    return b, mgvi.Data((truth @ b.T)[0] + noise, variance), generator


def test_residuals_have_the_covariance_of_the_posterior():
    b, data, generator = problem()
    e1 = torch.randn(20_000, 30, generator=generator, dtype=D)
    e2 = torch.randn(20_000, 12, generator=generator, dtype=D)
    zero = torch.zeros(1, 12, dtype=D)
    solve = mgvi.Solver(1e-6, 100)
    drawn = mgvi.residuals(lambda u: LinearModel(b, u), data, zero, e1, e2, solve)
    exact = torch.linalg.inv(torch.eye(12, dtype=D) + b.T @ (b / data.variance[:, None]))
    assert float((torch.cov(drawn.T) - exact).abs().max()) < 0.03 * float(exact.diagonal().max())


def test_the_mean_is_that_of_the_posterior():
    b, data, generator = problem()
    precision = torch.eye(12, dtype=D) + b.T @ (b / data.variance[:, None])
    exact = torch.linalg.solve(precision, b.T @ (data.value / data.variance))
    half = 0.1 * torch.randn(3, 12, generator=generator, dtype=D)
    both = torch.cat([half, -half])
    zero = torch.zeros(1, 12, dtype=D)
    solve = mgvi.Solver(1e-8, 100)
    mean, _ = mgvi.newton(lambda u: LinearModel(b, u), data, zero, both, 5, solve)
    torch.testing.assert_close(mean[0], exact, atol=1e-6, rtol=1e-6)


def test_deviations_and_the_evidence_of_a_mean_field_are_those_of_a_diagonal():
    b, data, generator = problem()
    zero = torch.zeros(1, 12, dtype=D)
    probes = torch.randn(20_000, 30, generator=generator, dtype=D)

    def model(u):
        return LinearModel(b, u)

    diagonal = 1 + (b.square() / data.variance[:, None]).sum(0)
    std = mgvi.standard_deviations(model, data, zero, probes)
    torch.testing.assert_close(std[0], diagonal.rsqrt(), rtol=0.02, atol=0)
    # with independent latents the bound is the evidence itself
    q, _ = torch.linalg.qr(b / data.variance.sqrt()[:, None])
    apart = data.variance.sqrt()[:, None] * q
    exact = torch.distributions.MultivariateNormal(
        torch.zeros(30, dtype=D), apart @ apart.T + torch.diag(data.variance)
    ).log_prob(data.value)
    mean = 0.5 * (data.value / data.variance @ apart)[None]
    std = torch.full((1, 12), 0.5**0.5, dtype=D)
    half = std * torch.randn(20_000, 12, generator=generator, dtype=D)
    bound = meanfield.evidence_bound(lambda u: LinearModel(apart, u), data, mean, std, half)
    assert bound == pytest.approx(float(exact), abs=0.1)
    wide = 2 * std, 2 * half
    bound = meanfield.evidence_bound(lambda u: LinearModel(apart, u), data, mean, *wide)
    assert bound < float(exact) - 1


def test_a_step_that_leads_up_is_not_taken():
    """f(u) = u^3 has no metric at 0 to speak of, and a full step would overshoot."""

    class Cubic:
        def __init__(self, u):
            self.u, self.value = u, u**3

        def jvp(self, v):
            return 3 * self.u**2 * v

        def vjp(self, w):
            return 3 * self.u**2 * w

        def vjp_mean(self, w):
            return self.vjp(w).mean(0, keepdim=True)

        def metric(self, weight):
            return lambda v: self.vjp_mean(weight * self.jvp(v))

    data = mgvi.Data(torch.ones(1, dtype=D), torch.full((1,), 1e-4, dtype=D))
    start = torch.full((1, 1), 0.2, dtype=D)
    nothing = torch.zeros(2, 1, dtype=D)
    before = 0.5 * (0.2**3 - 1) ** 2 / 1e-4 + 0.02
    solve = mgvi.Solver(1e-6, 10)
    found, energy = mgvi.newton(Cubic, data, start, nothing, 30, solve)
    assert float(energy) < before
    assert abs(float(found) - 1) < 0.01


def test_leading_eigenvectors_are_found_by_products_alone():
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(80, 80, generator=generator, dtype=D)).Q
    exact = 1000 * 0.7 ** torch.arange(80, dtype=D)
    matrix = basis @ torch.diag(exact) @ basis.T
    values, vectors = leading_eigenvectors(lambda v: v @ matrix, 80, 10, matrix)
    torch.testing.assert_close(values, exact[:10], rtol=1e-4, atol=0)
    torch.testing.assert_close(matrix @ vectors, vectors * values, rtol=0, atol=0.5)
    # no more than there are
    assert leading_eigenvectors(lambda v: v @ matrix, 80, 100, matrix)[1].shape == (80, 80)


def test_a_determinant_is_found_by_products_alone():
    generator = torch.Generator().manual_seed(0)
    b = torch.randn(1000, 200, generator=generator, dtype=D)
    matrix = torch.eye(1000, dtype=D) + b @ torch.diag(torch.logspace(-2, 2, 200, dtype=D)) @ b.T
    logs = torch.linalg.eigvalsh(matrix).log()
    error = math.sqrt(2 / LANCZOS_PROBES) * float(logs.norm())
    found = log_determinant(lambda v: v @ matrix, 1000, matrix)
    assert found == pytest.approx(float(logs.sum()), abs=3 * error)
    assert 3 * error < 0.1 * float(logs.sum())
    small = matrix[:5, :5]
    found = log_determinant(lambda v: v @ small, 5, small)
    assert found == pytest.approx(float(torch.logdet(small)))


def test_the_evidence_bound_of_a_linear_model_is_its_evidence():
    b, data, generator = problem()
    precision = torch.eye(12, dtype=D) + b.T @ (b / data.variance[:, None])
    mean = torch.linalg.solve(precision, b.T @ (data.value / data.variance))[None]
    root = torch.linalg.cholesky(torch.linalg.inv(precision))
    half = torch.randn(4000, 12, generator=generator, dtype=D) @ root.T
    found = mgvi.evidence_bound(lambda u: LinearModel(b, u), data, mean, half)
    marginal = torch.distributions.MultivariateNormal(
        torch.zeros(30, dtype=D), b @ b.T + torch.diag(data.variance)
    )
    assert found == pytest.approx(float(marginal.log_prob(data.value)), abs=1.5)


class Sum:
    """f(u) = exp(u_1) + exp(u_2): its samples lie along a curve."""

    def __init__(self, u):
        self.parts = u.exp()
        self.value = self.parts.sum(1, keepdim=True)

    def jvp(self, v):
        return (self.parts * v).sum(1, keepdim=True)

    def vjp(self, w):
        return self.parts * w

    def metric(self, weight):
        return lambda v: self.vjp(weight * self.jvp(v))


def test_nonlinear_samples_follow_a_curved_model_and_linear_ones_leave_it():
    generator = torch.Generator().manual_seed(0)
    data = mgvi.Data(torch.tensor([2.0], dtype=D), torch.tensor([0.1**2], dtype=D))
    u = torch.linspace(-6, 2, 801, dtype=D)
    u = torch.stack(torch.meshgrid(u, u, indexing="ij"), -1).flatten(0, 1)
    misfit = (Sum(u).value[:, 0] - data.value).square() / data.variance
    posterior = (-0.5 * (misfit + u.square().sum(1))).softmax(0)
    lowest = float(posterior @ (u[:, 0] < -1).double())  # mostly the other one
    mean = torch.zeros(1, 2, dtype=D)
    e1 = torch.randn(4000, 1, generator=generator, dtype=D)
    e2 = torch.randn(4000, 2, generator=generator, dtype=D)
    solve = mgvi.Solver(1e-8, 10)
    linear = mgvi.residuals(Sum, data, mean, e1, e2, solve)
    nonlinear = mgvi.nonlinear_update(
        Sum, data, mean, e1, e2, linear, torch.ones_like(mean), 20, solve
    )
    far, near = ((Sum(r).value - 2).square().mean().sqrt() for r in (linear, nonlinear))
    assert float(near) == pytest.approx(0.1, rel=0.2) and float(far) > 0.5
    found = [float((r[:, 0] < -1).double().mean()) for r in (linear, nonlinear)]
    assert abs(found[1] - lowest) < 0.5 * abs(found[0] - lowest)


def test_the_nonlinear_update_leaves_the_samples_of_a_linear_model():
    b, data, generator = problem()
    e1, e2 = (torch.randn(5, n, generator=generator, dtype=D) for n in (30, 12))
    about = lambda u: LinearModel(b, u), data, torch.ones(1, 12, dtype=D)
    solve = mgvi.Solver(1e-8, 100)
    linear, free = mgvi.residuals(*about, e1, e2, solve), torch.ones(1, 12, dtype=D)
    torch.testing.assert_close(
        mgvi.nonlinear_update(*about, e1, e2, linear, free, 2, solve), linear
    )
    # also where the start is not yet solved
    torch.testing.assert_close(mgvi.nonlinear_update(*about, e1, e2, e2, free, 2, solve), linear)


def test_latents_that_are_not_free_keep_their_linear_residuals():
    b, data, generator = problem()
    e1, e2 = (torch.randn(5, n, generator=generator, dtype=D) for n in (30, 12))
    free = torch.ones(1, 12, dtype=D)
    free[:, -2:] = 0
    about = lambda u: LinearModel(b, u), data, torch.ones(1, 12, dtype=D)
    solve = mgvi.Solver(1e-8, 100, mgvi.preconditioner(*about, torch.arange(12), 4))
    nonlinear = mgvi.nonlinear_update(*about, e1, e2, e2, free, 2, solve)
    torch.testing.assert_close(nonlinear[:, -2:], e2[:, -2:])
    wanted = e1 - e2[:, -2:] @ b[:, -2:].T / data.variance.sqrt()  # of the others
    root = b[:, :-2] / data.variance[:, None].sqrt()
    exact = torch.linalg.solve(
        torch.eye(10, dtype=D) + root.T @ root, (wanted @ root + e2[:, :-2]).T
    )
    torch.testing.assert_close(nonlinear[:, :-2], exact.T)


def test_conjugate_gradients_are_relieved_of_stiff_directions():
    """The same solution, in far fewer steps, though the directions are rough."""
    generator = torch.Generator().manual_seed(0)
    size = torch.cat([torch.full((20,), 1e4, dtype=D), torch.linspace(0, 3, 180, dtype=D)])
    turn = torch.linalg.qr(torch.randn(200, 200, generator=generator, dtype=D)).Q
    root = size.sqrt()[:, None] * torch.linspace(0.3, 3, 200, dtype=D)[:, None] * turn
    one = torch.ones(200, dtype=D)

    def linear(u):
        return LinearModel(root, u)

    about = linear, mgvi.Data(one, one), torch.zeros(1, 200, dtype=D)
    some = mgvi.preconditioner(*about, torch.arange(200), 20)
    b = torch.randn(3, 200, generator=generator, dtype=D)
    steps = []

    def product(v):
        steps[-1] += 1
        return v + v @ root.T @ root

    exact = torch.linalg.solve(torch.eye(200, dtype=D) + root.T @ root, b.T).T
    for solve in (mgvi.Solver(1e-9, 300), mgvi.Solver(1e-9, 300, some)):
        steps.append(0)
        torch.testing.assert_close(solve(product, b), exact, rtol=1e-5, atol=1e-7)
    assert steps[1] < 0.6 * steps[0]
