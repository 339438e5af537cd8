"""Masses from orbits: the likelihood, the shipped model, and what users ask of it."""

import math

import numpy as np
import pytest
import torch
from astropy import units as u

from orrery import load
from orrery.benchmarks.mass_net import most_likely, one_mass_batch, our_log_p
from orrery.models.layers import grid
from orrery.models.mass_net import POISSON, MassNet, diagram, evaluation, misfit
from orrery.models.mass_net.likelihood import pair_density
from orrery.models.mass_net.networks import PairStatistics, bound_density
from orrery.models.mass_net.outputs import BIT
from orrery.physics.wide_binaries import motion


@pytest.fixture(scope="module")
def model() -> MassNet:
    return load("mass_net")


def plane(reach: float, n: int = 160) -> torch.Tensor:
    """Points of a square about 0, (n^2, 2)."""
    x = (torch.arange(n) + 0.5) / n * 2 * reach - reach
    return torch.stack(torch.meshgrid(x, x, indexing="ij"), -1).view(-1, 2)


def batch_of(w: torch.Tensor, sigma: float) -> dict[str, torch.Tensor]:
    covariance = sigma**2 * torch.eye(2).expand(len(w), 2, 2)
    return {
        "motion": w, "covariance": covariance, "log_separation": torch.full((len(w),), 2.8),
        "likelihood": motion.likelihood(w.double(), covariance.double()),
    }  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("mass", [0.4, 2.0])
def test_the_density_of_motions_is_normalised(mass):
    """Of bound pairs and outliers together, and over what the selection leaves."""
    reach, n = 14.0 * mass**0.5, 160
    w = plane(reach, n)
    statistics, log_mass = PairStatistics(1), torch.full((1, n * n), math.log(mass))
    density = pair_density(statistics, batch_of(w, 0.3), log_mass, None)
    cell = (2 * reach / n) ** 2
    assert float(density.log_p.exp().sum() * cell) == pytest.approx(1, abs=0.01)
    w = plane(2.3, n)
    density = pair_density(statistics, batch_of(w, 0.02), log_mass, 5.0)
    selected = w.norm(dim=1) < 5**0.5
    total = density.log_p[0, selected].exp().sum() * (4.6 / n) ** 2
    assert float(total) == pytest.approx(1, abs=0.01)


def test_likelihoods_between_the_masses_of_the_table_are_interpolated():
    w = torch.tensor([[0.3, 0.4], [0.1, -0.6], [0.9, 0.2]])
    covariance = 0.05**2 * torch.eye(2).expand(3, 2, 2)
    table = motion.likelihood(w.double(), covariance.double())
    alpha = torch.full((1, 3), 1.2)
    for mass in (0.7, 1.3, 2.9):
        direct = motion.noisy_density(w / mass**0.5, torch.full((3,), 0.05 / mass**0.5)) / mass
        direct = (direct * motion.alpha_weights(alpha[0])).sum(-1)
        found = bound_density(table, torch.full((1, 3), math.log(mass)), alpha)[0]
        assert torch.allclose(found, direct, rtol=0.02, atol=2e-3)


@pytest.mark.parametrize("fraction", [0.0, 0.2])
def test_the_likelihood_weighs_stars_without_bias(fraction):
    """With outliers of the assumed law, or none; a fraction that is fixed at .2 errs by .27."""
    batch = one_mass_batch(1.0, fraction, 1, n=30_000)
    log_mass, error = most_likely(lambda x: our_log_p(batch, x), 0.0)
    assert abs(log_mass) < 3 * error < 0.06


def test_bootstraps_weigh_each_pair_once_on_average():
    model = MassNet(members=2, width=8, depth=1, epochs=1)
    uniform = grid.counter_uniform(torch.arange(50_000), model.network.members)
    weight = torch.bucketize(uniform, torch.tensor(POISSON)).double()
    assert weight.mean(0).tolist() == pytest.approx([1, 1], abs=0.02)
    assert weight.var(0).tolist() == pytest.approx([1, 1], abs=0.03)
    assert abs(float(torch.corrcoef(weight.T)[0, 1])) < 0.02


def test_places_beyond_the_table_are_those_of_its_edge():
    x, y = diagram.fine_grid()
    table = torch.stack(torch.meshgrid(x, y, indexing="ij"), -1)
    place = torch.tensor([0.613, 99.0]), torch.tensor([7.777, -99.0])
    found = diagram.interpolated(table, *place)
    assert found[0].tolist() == pytest.approx([0.613, 7.777], abs=1e-4)
    assert found[1].tolist() == pytest.approx([float(x[-1]), float(y[0])], abs=1e-3)


# --- the shipped model --------------------------------------------------------------------------


def test_the_sun_weighs_one(model):
    sun = model.mass(bp_rp=0.82, abs_g=4.67)
    assert sun["mass"] == pytest.approx(1, abs=0.1)
    assert sun["mass_q16"] < sun["mass"] < sun["mass_q84"]
    assert sun["flags"] == 0 and sun["n_near"] > 100


def test_white_dwarfs_and_red_dwarfs_of_one_magnitude_are_told_apart(model):
    masses = model.mass(bp_rp=[0.2, 3.1], abs_g=[12.2, 12.0])["mass"]
    assert masses[0] == pytest.approx(0.6, abs=0.15)
    assert masses[1] == pytest.approx(0.2, abs=0.05)


def test_places_without_training_stars_are_flagged(model):
    far = model.mass(bp_rp=3.0, abs_g=1.0)
    assert far["flags"] & BIT["extrapolated"] and far["ood"] > 0.99
    assert far["lnm_std"] > model.mass(bp_rp=0.82, abs_g=4.67)["lnm_std"]


def test_scores_that_contradict_widen_the_error_and_noise_does_not():
    generator = torch.Generator().manual_seed(0)
    score = torch.randn(400, generator=generator).double() / 0.73  # of pairs that agree
    variance = score.square().sum()
    assert float(misfit(score.sum(), variance)) == 0
    wrong = score + 0.3 / 0.73**2  # the derivative of a parabola, 0.3 from its maximum
    error = float(misfit(wrong.sum(), wrong.square().sum()))
    assert error == pytest.approx(0.25, abs=0.07), (
        "0.3 less two of its errors, and the square of it"
    )
    assert float(misfit(torch.tensor(0.0), torch.tensor(0.0))) == 0, "where there are no pairs"


def test_the_shipped_masses_of_the_faintest_dwarfs_are_flagged_and_uncertain():
    answer = load("mass_net").mass(bp_rp=[4.65, 4.72, 3.35, 0.82], abs_g=[14.72, 15.2, 12.45, 4.64])
    true = np.array([0.09, 0.088, 0.155, 1.0])
    assert ((answer["flags"] & BIT["contradicted"]) > 0).tolist() == [True, True, False, False]
    assert (np.abs(np.log(answer["mass"] / true)) < 2 * answer["lnm_std"]).all()


def test_errors_of_the_photometry_widen_the_mass(model):
    exact, wide = (model.mass(0.82, 4.67, e_abs_g=error)["lnm_std"] for error in (0.0, 0.2))
    slope = math.log(model.mass(0.82, 4.5)["mass"] / model.mass(0.82, 4.9)["mass"]) / 0.4
    assert wide**2 - exact**2 == pytest.approx((0.2 * slope) ** 2, rel=0.3)


def test_quantities_and_arrays_are_taken(model):
    answer = model.mass(np.full((2, 3), 0.82) * u.mag, 4.67 * u.mag)
    assert answer["mass"].shape == answer["flags"].shape == (2, 3)
    with pytest.raises(ValueError, match="does not convert"):
        model.mass(0.82 * u.m, 4.67)
    with pytest.raises(
        ValueError, match=r"e_abs_g is -1.0 for 1 of 1 stars; expected an error of 0"
    ):
        model.mass(0.82, 4.67, e_abs_g=-1)
    with pytest.raises(ValueError, match="bp_rp is nan for 1 of 2 stars"):
        model.mass([0.82, np.nan], 4.67)


def test_stars_of_a_table_get_the_same_mass(model):
    table = model.predict({"bp_rp": [0.82, np.nan], "abs_g": [4.67, 4.67]})
    assert table["mass"][0] == pytest.approx(model.mass(0.82, 4.67)["mass"], rel=1e-5)
    assert np.isnan(table["mass"][1]) and table["flags"][1] == BIT["no_mass"]


def test_a_floor_without_bins_is_left_out(model):
    pairs = batch_of(torch.tensor([[0.3, 0.5], [0.2, 0.1]]), 0.03) | {
        "bp_rp": torch.full((2, 2), 0.82), "abs_g": torch.full((2, 2), 4.67),
        "mass": torch.ones(2, 2),
    }  # fmt: skip
    assert "lnm_rms_over_floor" not in evaluation.floor_metrics(model, pairs)


def test_a_pair_that_flies_apart_is_an_outlier(model):
    batch = batch_of(torch.tensor([[0.3, 0.5], [1.4, 1.6]]), 0.03)
    stars = {"bp_rp": torch.full((2, 2), 0.82), "abs_g": torch.full((2, 2), 4.67)}
    errors = {f"{name}_error": torch.zeros(2, 2) for name in stars}
    known = {"valid": torch.ones(2, 2).bool(), "moves": torch.ones(2).bool()}
    rows = model.predict_step(batch | stars | errors | known)
    assert rows["p_outlier"][0] < 0.3 and rows["p_outlier"][1] > 0.9
    assert rows["u"][1] > math.sqrt(2)
