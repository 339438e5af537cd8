"""Delays, yields and the one-zone model, against numerical and analytic solutions."""

import math

import pytest
import torch
from torchdiffeq import odeint

from orrery.physics.chemical_evolution import delays, one_zone
from orrery.physics.chemical_evolution.one_zone import Galaxy, alpha_knee, tracks
from orrery.physics.chemical_evolution.yields import HYDROGEN, known_elements, yields

DEFAULT = Galaxy(*(x.double() for x in Galaxy()))


def galaxy(**changes):
    return DEFAULT._replace(**{k: torch.tensor(v, dtype=torch.float64) for k, v in changes.items()})


def fraction_by(age, slope, minimum, maximum):
    """Fraction of events of a power law of delays that have happened by ``age``."""
    age = torch.minimum(torch.maximum(age, minimum), maximum)
    so_far, span = (age / minimum).log(), (maximum / minimum).log()
    return (
        delays.log_mean_exp((1 - slope) * so_far, so_far)
        - delays.log_mean_exp((1 - slope) * span, span)
    ).exp()


@pytest.mark.parametrize("slope", [0.3, 1.0, 1.0005, 2.5])
def test_a_power_law_of_delays_is_normalised_and_integrates_to_a_closed_form(slope):
    low, high = torch.tensor(0.04).double(), torch.tensor(13.7).double()
    slope = torch.tensor(slope).double()
    x = torch.linspace(math.log(0.04), math.log(13.7), 20001).double().exp()
    density = delays.log_power_law(x, slope, low, high).exp()
    share = torch.cumulative_trapezoid(density, x)
    torch.testing.assert_close(share[-1].item(), 1.0, rtol=1e-5, atol=0)
    half = fraction_by(x[10000], slope, low, high)
    torch.testing.assert_close(share[9999], half, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"efficiency": 0.02, "inflow_time": 2.0},
        {"efficiency": 3.0, "loading": 30.0, "duration": 1.0},  # gas lost faster than it comes
        {"inflow_time": 0.1, "efficiency": 0.2},  # and slower
        {"efficiency": 0.2, "loading": 9.4, "inflow_time": 0.5},  # at the same rate
        {"ia_slope": 1.0, "ia_minimum": 0.5, "r_minimum": 1.5, "r_slope": 2.0},
    ],
)
def test_the_closed_form_agrees_with_a_numerical_solution(changes):
    """Gas, and iron and europium with their delays as a sum over earlier times, by torchdiffeq."""
    g = galaxy(**changes)
    found = tracks(g, ("Fe", "Mg", "Eu"), points=200)
    duration = float(g.duration)
    n = 4000
    t = torch.linspace(0, duration, n + 1).double()
    loss = g.efficiency * (1 + g.loading - one_zone.RECYCLED)

    def flow(time, gas):
        return torch.exp(-time / g.inflow_time) / g.inflow_time - loss * gas

    gas = odeint(flow, torch.zeros(()).double(), t, method="dopri5", rtol=1e-9, atol=1e-12)
    sfr = g.efficiency * gas

    def events(slope, minimum):
        maximum = torch.tensor(delays.HUBBLE_TIME).double()
        share = fraction_by(t, slope, minimum, maximum).diff()
        padded = torch.nn.functional.pad((sfr[1:] + sfr[:-1]) / 2, (n - 1, 0))
        return torch.nn.functional.conv1d(padded[None, None], share.flip(0)[None, None])[0, 0]

    source = yields(("Fe", "Mg", "Eu"))
    middle = (sfr[1:] + sfr[:-1])[:, None] / 2 * (source.ccsn + g.r_prompt * source.r_process)
    ia = g.ia_rate * events(g.ia_slope, g.ia_minimum)
    r = g.r_delayed * events(g.r_slope, g.r_minimum)
    made = middle + ia[:, None] * source.snia + r[:, None] * source.r_process
    keep = torch.exp(-loss * duration / n)
    mass = [torch.zeros(3).double()]
    for x in made:
        mass.append(mass[-1] * keep + x * keep.sqrt() * duration / n)
    metals = torch.stack(mass)[1:] / gas[1:, None]
    expected = (metals / (HYDROGEN * source.solar)).log10()
    late = found.time > 0.05 * duration
    at = (found.time[late] / duration * n - 1).clamp(0, n - 1.001)
    i = at.floor().long()
    there = expected[i] + (at - i)[:, None] * (expected[i + 1] - expected[i])
    agb = tracks(g._replace(agb=torch.zeros(()).double()), ("Fe", "Mg", "Eu"), points=200)
    torch.testing.assert_close(agb.abundances[late], there, atol=0.01, rtol=0)
    assert found.mass_formed.sum().item() == pytest.approx(1)
    mean = (found.mass_formed * found.time).sum()
    torch.testing.assert_close(mean, (sfr * t).sum() / sfr.sum(), rtol=2e-3, atol=0)


def test_the_equilibrium_is_that_of_weinberg_andrews_and_freudenburg():
    """2017, section 3.3: of a star formation rate that falls slowly, prompt and delayed metals.

    Z = y eff / (loss - 1/tau) without delay; times the mean of exp(delay / tau) with.
    """
    g = galaxy(efficiency=0.5, loading=5.0, inflow_time=8.0, duration=12.0, ia_minimum=0.1)
    track = tracks(g, ("Mg", "Fe"))
    source = yields(("Mg", "Fe"))
    tau = g.inflow_time
    rate = g.efficiency * (1 + g.loading - one_zone.RECYCLED) - 1 / tau
    maximum = track.time[-1] - 1.0  # by then, what the first stars make has been lost
    delay = torch.linspace(math.log(0.1), maximum.log().item(), 4001).double().exp()
    full = torch.tensor(delays.HUBBLE_TIME).double()
    density = delays.log_power_law(delay, g.ia_slope, g.ia_minimum, full).exp()
    late = torch.trapezoid(density * (delay / tau).exp(), delay)
    metals = (source.ccsn + g.ia_rate * source.snia * late) * g.efficiency / rate
    expected = (metals / HYDROGEN / source.solar).log10()
    torch.testing.assert_close(track.abundances[-1], expected, atol=0.02, rtol=0)


def test_the_metals_of_a_closed_form_follow_their_own_equation():
    """dQ/dt = efficiency M - loss Q, by differences, on both sides of equal rates."""
    for inflow_time in (0.05, 0.1666, 1 / 6, 2.0):
        g = galaxy(efficiency=1.0, loading=5.4, inflow_time=inflow_time)  # loss 6 / Gyr
        rates = one_zone._Rates.of(Galaxy(*(x[None] for x in g)))
        t = torch.linspace(0.02, 1.5, 400).double()[None]
        h = 1e-4

        def mass(time, rates=rates):
            return rates.prompt(time, torch.zeros_like(time)) * rates.log_gas(time).exp()

        change = (mass(t + h) - mass(t - h)) / (2 * h)
        right = rates.star_formation * rates.log_gas(t).exp() - rates.loss * mass(t)
        torch.testing.assert_close(change, right, atol=1e-6, rtol=1e-5)


def test_a_dwarf_has_a_plateau_and_a_knee_that_moves_with_efficiency():
    dwarfs = galaxy(efficiency=[0.03, 0.1, 0.3, 1.0])
    iron, magnesium = tracks(dwarfs, ("Fe", "Mg"), 200).abundances.unbind(-1)
    plateau = (magnesium - iron)[:, 0]
    torch.testing.assert_close(plateau, torch.full((4,), 0.32).double(), atol=0.03, rtol=0)
    assert ((magnesium - iron)[:, -1] < plateau - 0.2).all()
    knee = alpha_knee(dwarfs)
    assert (knee.diff() > 0.2).all() and -3 < knee[0] < knee[-1] < -1
    assert alpha_knee(galaxy(ia_rate=0.0)).isinf()


def test_delayed_r_process_and_agb_stars_show_late():
    elements = ("Fe", "Mg", "Eu", "Ba")
    late = tracks(galaxy(), elements).abundances
    prompt = tracks(galaxy(r_delayed=0.0, agb=0.0, r_prompt=1.0), elements).abundances
    torch.testing.assert_close(prompt[0, 2], prompt[0, 1], atol=0.01, rtol=0)  # [Eu/Mg] = 0
    assert (prompt[-1, 2] - prompt[-1, 1]).abs() < 0.2
    rise = (late[:, 2] - late[:, 1]).diff()
    assert (rise > -1e-3).all() and rise.sum() > 0.5
    barium = (late[:, 3] - late[:, 0])[late[:, 0] > -2.5]
    assert barium[-1] > barium[0] + 0.4
    assert (late[-1, 3] > tracks(galaxy(agb=0.0), elements).abundances[-1, 3] + 0.1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite_for_any_galaxy(dtype):
    generator = torch.Generator().manual_seed(0)
    scale = torch.randn(12, 300, generator=generator).mul(1.5).exp().to(dtype)
    scale[:, 0] = 1.0
    wild = [(x.to(dtype) * f).requires_grad_() for x, f in zip(DEFAULT, scale, strict=True)]
    track = tracks(Galaxy(*wild), ("Fe", "Mg", "Eu", "Ba"))
    assert track.abundances.isfinite().all()
    gradients = torch.autograd.grad(track.abundances.sum() + track.mass_formed[:, 9].sum(), wild)
    assert all(x.isfinite().all() for x in gradients)


def test_single_precision_is_enough():
    rough = tracks(Galaxy(*(x.float() for x in DEFAULT)), ("Fe", "Eu", "Ba"))
    fine = tracks(DEFAULT, ("Fe", "Eu", "Ba"))
    torch.testing.assert_close(rough.abundances.double(), fine.abundances, atol=1e-4, rtol=0)


def test_gradients_are_those_of_finite_differences():
    z = torch.tensor([0.4, 9.0, 0.6, 2.5, 1e-3, 1.2, 0.06, 0.4, 1.5, 1.3, 0.2, 0.9]).double()

    def last(x):
        return tracks(Galaxy(*x.unbind(-1)), ("Fe", "Eu", "Ba")).abundances[40]

    torch.autograd.gradcheck(last, z.requires_grad_(), eps=1e-7, atol=1e-3, rtol=1e-3)


def test_every_element_has_sources_and_yields():
    elements = known_elements()
    assert len(elements) == 25
    source = yields(elements)
    made = source.ccsn + source.snia + source.agb.sum(-1) + source.r_process
    assert (made > 0).all() and (source.agb >= 0).all()
    track = tracks(galaxy(), elements)
    assert track.abundances.isfinite().all()
    assert (track.abundances[-1] - track.abundances[-1, elements.index("Fe")]).abs().max() < 2


def test_an_unknown_element_is_refused_with_near_matches():
    with pytest.raises(ValueError, match="did you mean Mg"):
        yields(("Fe", "mg"))
