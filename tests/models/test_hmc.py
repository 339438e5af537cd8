"""The sampler, on targets whose moments are known."""

import math

import pytest
import torch

from orrery.models.inference.diagnostics import ess, rhat
from orrery.models.inference.hmc import HMC

D = torch.float64
MEAN = torch.tensor([1.0, -2.0, 3.0], dtype=D)
COVARIANCE = torch.tensor([[4.0, 1.9, 0.0], [1.9, 1.0, 0.0], [0.0, 0.0, 1e-4]], dtype=D)
PRECISION = torch.linalg.inv(COVARIANCE)


def target(q):
    d = q - MEAN
    return -0.5 * torch.einsum("gci,ij,gcj->gc", d, PRECISION, d)


def sampler(groups=2, chains=8, covariance=None):
    noise = torch.randn(groups, chains, 3, dtype=D, generator=torch.Generator().manual_seed(0))
    return HMC(target, MEAN + noise * 0.01, warmup=300, seed=1, covariance=covariance)


def run(hmc, n):
    return torch.stack([hmc.advance() for _ in range(n)], 2)


@pytest.mark.parametrize("dense", [False, True])
def test_moments_of_a_correlated_normal(dense):
    guess = torch.eye(3, dtype=D).repeat(2, 1, 1) * 0.01 if dense else None
    hmc = sampler(chains=32, covariance=guess)  # more chains cost nothing
    run(hmc, 300)
    draws = run(hmc, 400)
    for group in draws:
        x = group.flatten(0, 1)
        error = (x.mean(0) - MEAN) / COVARIANCE.diagonal().sqrt()
        assert float(error.abs().max()) < 0.1
        ratio = torch.cov(x.T) / COVARIANCE
        assert float((ratio[:2, :2] - 1).abs().max()) < 0.1
        assert float(ratio[2, 2]) == pytest.approx(1, abs=0.1)
    assert int(hmc.values["divergences"].sum()) == 0
    assert float(rhat(draws[0]).max()) < 1.01


def test_an_interrupted_run_goes_on_exactly():
    whole = run(sampler(), 350)
    first = sampler()
    begun = run(first, 200)
    second = sampler()
    second.restore(first.state())
    torch.testing.assert_close(torch.cat([begun, run(second, 150)], 2), whole, rtol=0, atol=0)


def test_a_target_without_a_value_at_the_start_is_refused():
    with pytest.raises(ValueError, match="not finite"):
        HMC(lambda q: q.sum(-1) * math.nan, torch.zeros(1, 2, 3, dtype=D), 10)


def test_diagnostics_see_what_they_should():
    generator = torch.Generator().manual_seed(0)
    white = torch.randn(4, 2000, generator=generator, dtype=D)
    assert float(rhat(white)) < 1.005
    assert float(ess(white)) == pytest.approx(8000, rel=0.15)
    apart = white + torch.arange(4)[:, None]
    assert float(rhat(apart)) > 1.3
    slow = torch.zeros(4, 20_000, dtype=D)
    for i in range(1, 20_000):
        slow[:, i] = 0.9 * slow[:, i - 1] + torch.randn(4, generator=generator, dtype=D)
    assert float(ess(slow)) == pytest.approx(80_000 * 0.1 / 1.9, rel=0.15)


@pytest.mark.slow
def test_draws_are_those_of_pyro():
    """Where it is installed: `pip install -e ".[bench]"`."""
    pytest.importorskip("pyro")
    from orrery.benchmarks.gc_pyro import nuts, of_stars
    from orrery.models.gc_emulator.inference import sample

    posterior = of_stars(100, sky=False)
    ours = sample(posterior, chains=4, warmup=200, draws=300, seed=0).named
    _, _, theirs = nuts(posterior, chains=1, warmup=200, n=400)
    for name, draws in ours.items():
        apart = (draws.mean() - theirs[name].mean()) / draws.std()
        assert abs(float(apart)) < 0.35, name
        assert float(theirs[name].std() / draws.std()) == pytest.approx(1, abs=0.3), name
