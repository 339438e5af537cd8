"""The posterior of a one-zone galaxy, and of trends."""

import pytest
import torch

from orrery.models.abundances import evolution
from orrery.models.abundances.mixture import Mixture, Stars, log_density
from orrery.models.abundances.sampling import Prior, from_normal
from orrery.models.abundances.trends import infer_trend
from orrery.physics.abundances.trends import Knee, Line, Points
from orrery.physics.chemical_evolution.one_zone import alpha_knee, tracks

ELEMENTS = ("Fe", "Mg", "Ba", "Eu")


def galaxies(n, elements, seed):
    """Parameters drawn from the prior, for n galaxies."""
    names = evolution.parameters(elements)
    z = torch.randn(n, len(names), generator=torch.Generator().manual_seed(seed)).double()
    return from_normal(z, names, evolution.PRIORS)


def some_stars(n, r, generator):
    """Any values, a third missing, with upper and lower limits of europium."""
    value = -1.5 + 0.3 * torch.randn(n, 4, generator=generator).double()
    value[torch.rand(n, 4, generator=generator) < 0.3] = torch.nan
    limit = torch.zeros(n, 4, dtype=torch.long)
    limit[:, 3] = torch.randint(-1, 2, (n,), generator=generator)
    variance = 0.01 + 0.02 * torch.rand(n, 4, generator=generator).double()
    responses = 0.1 * torch.randn(n, 4, r, generator=generator).double()
    return Stars(value, variance, responses, limit)


@pytest.mark.parametrize("r", [0, 2])
@pytest.mark.parametrize("given_iron", [False, True])
def test_the_likelihood_is_that_of_a_mixture_of_the_points_of_the_track(r, given_iron):
    """With noise, missing elements and limits as `mixture.log_density` has them."""
    generator = torch.Generator().manual_seed(r)
    data = [some_stars(9, r, generator), some_stars(14, r, generator)]
    values = {k: v.unflatten(0, (2, 3)) for k, v in galaxies(6, ELEMENTS, 0).items()}
    track = tracks(evolution.galaxy_of(values), ELEMENTS, 40)
    variance = evolution.intrinsic_variance(values, ELEMENTS)
    observed = evolution.Observed.of(data, torch.float64)
    found = evolution.log_likelihood(track, variance, observed, 0 if given_iron else None)
    for g in range(2):
        for c in range(3):
            mixture = Mixture(
                track.mass_formed[g, c].log(),
                track.abundances[g, c],
                torch.zeros(40, 4, 0).double(),
                variance[g, c].expand(40, 4),
            )
            expected = log_density(mixture, data[g]).sum()
            if given_iron:
                others = torch.tensor([False, True, True, True]).expand(data[g].n, -1)
                expected = expected - log_density(mixture, data[g].without(others)).sum()
            torch.testing.assert_close(found[g, c], expected, atol=1e-8, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_posterior_and_its_gradient_are_finite_far_from_the_prior(dtype):
    generator = torch.Generator().manual_seed(1)
    observed = evolution.Observed.of([some_stars(20, 1, generator)], dtype)
    target, names = evolution.log_posterior(observed, ELEMENTS, given_iron=False)
    z = (4 * torch.randn(1, 200, len(names), generator=generator).double()).requires_grad_()
    log_p = target(z)
    (gradient,) = torch.autograd.grad(log_p.sum(), z)
    assert log_p.isfinite().all() and gradient.isfinite().all()


def test_only_parameters_that_the_elements_depend_on_are_sampled():
    assert "r_slope" not in evolution.parameters(("Fe", "Mg"))
    assert "agb" not in evolution.parameters(("Fe", "Mg"))
    assert {"r_slope", "agb"} <= set(evolution.parameters(ELEMENTS))


def test_a_galaxy_is_recovered_from_its_stars():
    elements = ("Fe", "Mg")
    truth = galaxies(1, elements, seed=5)
    track = tracks(evolution.galaxy_of(truth), elements, 400)
    generator = torch.Generator().manual_seed(2)
    born = torch.multinomial(track.mass_formed, 80, replacement=True, generator=generator)
    value = track.abundances.gather(1, born[..., None].expand(-1, -1, 2))
    spread = (truth["scatter"][:, None, None] ** 2 + 0.05**2).sqrt()
    value = value + spread * torch.randn(value.shape, generator=generator).double()
    data = [
        Stars(
            x, torch.full((80, 2), 0.0025).double(), torch.zeros(80, 2, 0), torch.zeros(80, 2).int()
        )
        for x in value
    ]
    draws = evolution.infer_evolution(data, elements, 0, chains=2, warmup=50, draws=40)
    assert draws["alpha_knee"].shape == (1, 2, 40)
    knee = alpha_knee(evolution.galaxy_of(truth))
    flat = draws["alpha_knee"].flatten(1)
    assert ((flat.median(1).values - knee).abs() < 4 * flat.std(1) + 0.02).all()
    assert (flat.std(1) < 0.3).all()  # of the prior: .5 dex
    loading = draws["loading"].flatten(1).log10()
    assert ((loading.mean(1) - truth["loading"].log10()).abs() < 4 * loading.std(1)).all()
    assert (loading.std(1) < 0.2).all()


def test_the_same_seed_gives_the_same_draws():
    generator = torch.Generator().manual_seed(3)
    value = -1.5 + 0.3 * torch.randn(9, 2, generator=generator).double()
    nothing = torch.zeros(9, 2, 0).double()
    data = [Stars(value, torch.full_like(value, 0.01), nothing, torch.zeros(9, 2).int())]
    one, again, other = (
        evolution.infer_evolution(data, ("Fe", "Mg"), seed, chains=2, warmup=4, draws=3)["loading"]
        for seed in (0, 0, 1)
    )
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_evolution_without_iron_is_refused():
    with pytest.raises(ValueError, match=r"needs \[Fe/H\]"):
        evolution.infer_evolution([], ("Mg", "Eu"))


def points(shape, n, seed):
    """Points about a trend, with errors of both axes and upper limits under y = 0."""
    generator = torch.Generator().manual_seed(seed)
    x = -1.5 + 0.5 * torch.randn(n, generator=generator).double()
    y = shape.at(x) + shape.scatter * torch.randn(n, generator=generator)
    noise = 0.1 * torch.randn(2, n, generator=generator).double()
    x, y = x + noise[0], y + noise[1]
    limit = (y < 0).int()
    error = torch.full((n,), 0.01).double()
    return Points(x, y.clamp_min(0), error, error, torch.zeros(n).double(), limit)


def test_trends_are_recovered_with_limits_and_data_sets_of_different_size():
    one = Line(*torch.tensor([0.2, -0.5, 0.05]).double())
    other = Line(*torch.tensor([0.4, 0.3, 0.1]).double())
    draws = infer_trend([points(one, 60, 0), points(other, 90, 1)], Line, 0, 2, 100, 100)
    slope = draws["slope"].flatten(1)
    error = slope.mean(1) - torch.tensor([-0.5, 0.3])
    assert (error.abs() < 3 * slope.std(1)).all() and (slope.std(1) < 0.15).all()


def test_a_knee_is_found():
    truth = Knee(*torch.tensor([0.35, -1.4, 0.0, -0.7, 0.03]).double())
    knee = infer_trend([points(truth, 150, 3)], Knee, 0, 2, 100, 100)["knee"].flatten()
    assert (knee.mean() + 1.4).abs() < 3 * knee.std() and knee.std() < 0.25


def test_priors_have_the_quantiles_that_they_state():
    z = torch.tensor([-8.0, 0.0, 1.0, 8.0]).double()
    assert Prior("lognormal", 0.1, 0.5).of(z)[1:3].tolist() == pytest.approx([0.1, 0.1 * 10**0.5])
    assert Prior("normal", 0.2, 0.5).of(z)[1:3].tolist() == pytest.approx([0.2, 0.7])
    assert Prior("uniform", 0.5, 2.0).of(z)[::3].tolist() == pytest.approx([0.5, 2.0])
    middle = Prior("log-uniform", 0.01, 1.0).of(z)[1]
    assert middle.item() == pytest.approx(0.1)
