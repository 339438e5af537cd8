"""Star formation histories of any number of bins, smooth ones, and what is made of them."""

import math

import pytest
import torch

from orrery.physics.galaxies.quiescent import (
    BOXES,
    COLOURS,
    REST_BANDS,
    colours,
    inside,
    quiescent,
    quiescent_log_ssfr,
)
from orrery.physics.sps.cosmology import age_of_universe, distance_modulus
from orrery.physics.sps.filters import load_filter
from orrery.physics.sps.histories import (
    KINDS,
    N_FINE_BINS,
    binned,
    delayed,
    double_power_law,
    draw_history,
    truncated,
    with_bursts,
)
from orrery.physics.sps.libraries import load_population
from orrery.physics.sps.star_formation import StarFormation, star_formation
from orrery.physics.sps.synthesis import Synthesis, parameter_names

Z = torch.tensor([0.4, 2.0, 3.7], dtype=torch.float64)
NAMES = parameter_names(nebular=False)


def one(value: float) -> torch.Tensor:
    return torch.full((len(Z),), value, dtype=torch.float64)


def galaxies(zred: torch.Tensor, **values: float) -> torch.Tensor:
    usual = {"logmass": 11.0, "logzsol": -0.2, "dust2": 0.3, "dust_index": -0.2}
    usual |= {"dust1_fraction": 1.0} | values
    columns = [zred if n == "zred" else torch.full_like(zred, usual.get(n, 0.0)) for n in NAMES]
    return torch.stack(columns, 1)


@pytest.fixture(scope="module")
def synthesis() -> Synthesis:
    bands = [load_filter(name) for name in ("hsc_g", "hsc_z", "ukirt_wfcam_K")]
    rest = [load_filter(text) for text in REST_BANDS.values()]
    return Synthesis(load_population("analytic"), bands, 6.0, rest_filters=rest)


# --- lookback times -----------------------------------------------------------------------------


def test_half_of_a_constant_history_formed_before_the_middle_of_it():
    history = StarFormation(torch.tensor([[0.0, 1.0, 2.0, 4.0]]), torch.full((1, 3), 0.25))
    for share in (0.0, 0.1, 0.5, 0.9, 1.0):
        assert float(history.lookback(share)[0]) == pytest.approx(4 * (1 - share), abs=1e-6)


def test_lookback_is_the_inverse_of_the_mass_formed():
    history = star_formation(torch.randn(200, 6, dtype=torch.float64), Z.repeat(67)[:200])
    for share in (0.1, 0.5, 0.9):
        since = history.mass_since(history.lookback(share)[:, None])[:, 0]
        assert torch.allclose(1 - since, torch.full_like(since, share), atol=1e-9)


def test_times_without_star_formation_are_none_at_which_mass_formed():
    history = StarFormation(
        torch.tensor([[0.0, 0.5, 1.0, 1.5, 2.0]]), torch.tensor([[0.0, 0.0, 2.0, 0.0]])
    )
    assert float(history.lookback(0.5)[0]) == pytest.approx(1.25)
    assert 1.0 <= float(history.lookback(0.999)[0]) <= 1.001
    assert 1.499 <= float(history.lookback(0.001)[0]) <= 1.5


# --- smooth histories ---------------------------------------------------------------------------


def test_a_delayed_history_has_its_closed_forms():
    tau, age = 0.5, age_of_universe(Z) - 0.1
    history = binned(delayed(one(tau)), age, Z)
    total = tau * (tau - (age + tau) * torch.exp(-age / tau))  # of t exp(-t / tau)
    since = age - 1.0
    before = tau * (tau - (since + tau) * torch.exp(-since / tau))
    formed = history.mass_since(torch.tensor([1.0], dtype=torch.float64))[:, 0]
    assert torch.allclose(formed, 1 - before / total, atol=2e-3)


def test_a_truncated_history_falls_by_e_in_its_time():
    tau, end, fall = one(2.0), one(0.9), one(0.05)
    t = torch.tensor([0.8, 0.9, 0.95, 1.0], dtype=torch.float64).expand(len(Z), 4)
    falls = (delayed(tau)(t) / truncated(tau, end, fall)(t)).log()
    assert torch.allclose(falls, torch.tensor([0.0, 0.0, 1.0, 2.0], dtype=torch.float64))


def test_a_double_power_law_has_its_slopes_and_its_peak():
    rate = double_power_law(one(1.0), one(4.0), one(2.0))
    t = torch.tensor([0.01, 0.02, 50.0, 100.0], dtype=torch.float64).expand(len(Z), 4)
    values = rate(t).log() / math.log(2)
    assert torch.allclose(values[:, 1] - values[:, 0], one(2.0), atol=1e-3), "rising"
    assert torch.allclose(values[:, 3] - values[:, 2], one(-4.0), atol=1e-3), "falling"


def test_bursts_are_added_in_their_times_alone():
    burst = torch.full((len(Z), 1), 1.0, dtype=torch.float64)
    rate = with_bursts(one(0.0), 0.5 * burst, 0.1 * burst, 3 * burst)
    t = torch.tensor([0.45, 0.55, 0.65], dtype=torch.float64).expand(len(Z), 3)
    assert torch.equal(rate(t), torch.tensor([1.0, 4.0, 1.0], dtype=torch.float64).expand(3, 3))


@pytest.mark.parametrize("kind", KINDS)
def test_histories_of_a_kind_form_one_mass_within_the_age_of_the_universe(kind):
    zred = torch.linspace(0.3, 5.5, 300)
    history = draw_history(kind, zred, torch.Generator().manual_seed(1))
    assert history.sfr.shape == (300, N_FINE_BINS)
    mass = (history.sfr * history.edges.diff(dim=1)).sum(1)
    assert torch.allclose(mass, torch.ones(300), atol=1e-5)
    assert bool((history.sfr >= 0).all() and (history.edges.diff(dim=1) > 0).all())
    assert torch.allclose(history.edges[:, -1], age_of_universe(zred), rtol=1e-5)
    t50, t90 = history.lookback(0.5), history.lookback(0.9)
    assert bool((t50 > t90).all() and (t90 >= 0).all())
    again = draw_history(kind, zred, torch.Generator().manual_seed(1))
    assert torch.equal(history.sfr, again.sfr)


def test_kinds_are_what_they_are_called():
    zred = torch.full((1000,), 3.5)
    for kind, low, high in (("quiescent", 0.85, 1.0), ("star_forming", 0.0, 0.02),
                            ("bursty", 0.0, 0.02)):  # fmt: skip
        history = draw_history(kind, zred, torch.Generator().manual_seed(2))
        share = quiescent((history.recent_sfr() / 0.7).log10(), zred).float().mean()
        assert low <= float(share) <= high, kind
    with pytest.raises(ValueError, match="no histories 'passive'; expected one of quiescent"):
        draw_history("passive", zred, torch.Generator())


# --- light of a history -------------------------------------------------------------------------


def test_a_history_that_is_that_of_the_ratios_changes_nothing(synthesis):
    p = galaxies(torch.tensor([0.5, 2.0, 4.0]), logsfr_ratio_1=-0.5, logsfr_ratio_3=1.0)
    given = synthesis.history(p)
    blank = p.clone()
    blank[:, 2:8] = torch.nan
    assert torch.equal(synthesis.magnitudes(blank, given), synthesis.magnitudes(p))
    assert torch.equal(synthesis.fine_spectrum(blank, given)[0], synthesis.fine_spectrum(p)[0])
    found, expected = synthesis.derived(blank, given), synthesis.derived(p)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_history_given_in_parts_of_bins_has_the_same_light(synthesis):
    p = galaxies(torch.tensor([3.0]), logsfr_ratio_2=0.7)
    history = synthesis.history(p)
    middle = 0.5 * (history.edges[:, 1:] + history.edges[:, :-1])
    edges = torch.cat([history.edges, middle], 1).sort(1).values
    fine = StarFormation(edges, history.sfr.repeat_interleave(2, 1))
    assert torch.allclose(synthesis.magnitudes(p, fine), synthesis.magnitudes(p), atol=1e-4)
    found, expected = synthesis.derived(p, fine), synthesis.derived(p)
    for name in expected:
        assert torch.allclose(found[name], expected[name], atol=1e-4), name


def test_more_galaxies_than_a_chunk_have_their_own_histories(synthesis):
    zred = torch.full((260,), 3.0)
    history = draw_history("star_forming", zred, torch.Generator().manual_seed(3))
    every = synthesis.magnitudes(galaxies(zred), history)
    last = synthesis.magnitudes(galaxies(zred)[255:], history.rows(slice(255, None)))
    assert torch.allclose(every[255:], last, atol=2e-5)


# --- at rest ------------------------------------------------------------------------------------


def test_magnitudes_at_rest_are_those_of_the_same_galaxy_close_by(synthesis):
    far = galaxies(torch.tensor([3.0]))
    history = synthesis.history(far)
    near = galaxies(torch.tensor([1e-3]))
    bands = [load_filter(text) for text in REST_BANDS.values()]
    close_by = Synthesis(synthesis.population, bands, 6.0).magnitudes(near, history)
    expected = close_by - distance_modulus(near[:, -1]) + distance_modulus(far[:, -1])
    assert torch.allclose(synthesis.rest_magnitudes(far, history), expected, atol=5e-3)
    heavier = galaxies(torch.tensor([3.0]), logmass=12.0)
    change = synthesis.rest_magnitudes(heavier, history) - synthesis.rest_magnitudes(far, history)
    assert torch.allclose(change, torch.full_like(change, -2.5), atol=1e-4)


def test_filters_at_rest_change_no_observed_magnitude(synthesis):
    alone = Synthesis(synthesis.population, synthesis.filters, 6.0)
    p = galaxies(torch.tensor([0.5, 3.0]))
    assert torch.allclose(alone.magnitudes(p), synthesis.magnitudes(p), atol=1e-4)
    assert alone.rest_magnitudes(p).shape == (2, 0)


# --- quiescent ----------------------------------------------------------------------------------


def test_an_old_galaxy_is_inside_every_box_and_a_young_one_in_none():
    old, young = (
        {"v_j": 0.9, "u_v": 1.9, "gs_is": 0.7, "us_gs": 2.2},
        {"v_j": 0.5, "u_v": 0.7, "gs_is": 0.4},
    )
    young["us_gs"] = 1.0
    dusty = {"v_j": 2.0, "u_v": 2.1, "gs_is": 1.9, "us_gs": 2.4}
    for name, box in BOXES.items():
        x, y = (torch.tensor([g[axis] for g in (old, young, dusty)]) for axis in (box.x, box.y))
        assert inside(box, x, y).tolist() == [True, False, False], name


def test_the_diagonal_of_a_box_divides():
    box = BOXES["muzzin2013"]
    x = torch.tensor([1.2, 1.2])
    y = 0.88 * x + 0.59 + torch.tensor([0.01, -0.01])
    assert inside(box, x, y).tolist() == [True, False]


def test_colours_are_differences_of_the_bands_at_rest():
    magnitudes = torch.arange(6.0).square()[None]
    found = colours(magnitudes)
    assert {name: float(value[0]) for name, value in found.items()} == {
        "u_v": -1.0, "v_j": -3.0, "us_gs": -7.0, "gs_is": -9.0,
    }  # fmt: skip
    assert list(found) == list(COLOURS)


def test_a_galaxy_is_quiescent_below_a_fifth_of_the_inverse_age_of_the_universe():
    zred = torch.tensor([3.5], dtype=torch.float64)
    age = float(age_of_universe(zred)) * 1e9
    assert float(quiescent_log_ssfr(zred)) == pytest.approx(math.log10(0.2 / age))
    limit = quiescent_log_ssfr(zred)
    assert bool(quiescent(limit - 0.01, zred)) and not bool(quiescent(limit + 0.01, zred))
