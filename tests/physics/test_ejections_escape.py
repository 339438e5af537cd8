"""Stars that start outside the cluster have the actions of stars that leave its core."""

import pytest
import torch
from escape_orbits import from_core

from orrery.physics.clusters.lowered_isothermal import G, solve
from orrery.physics.ejections.clusters import milky_way_clusters
from orrery.physics.ejections.structure import CoreStructure, core_structure
from orrery.physics.ejections.three_body import draw_ejections
from orrery.physics.milky_way.actions import staeckel_actions
from orrery.physics.milky_way.frames import galactocentric
from orrery.physics.milky_way.potentials import milky_way


class Nothing:
    def accelerations(self, x, y, z, t):
        return (torch.zeros_like(x),) * 3


@pytest.fixture(scope="module")
def clusters():
    return milky_way_clusters().select(["47 Tuc", "NGC 1261", "M 4", "NGC 2419"])


@pytest.fixture(scope="module")
def core(clusters):
    return core_structure(clusters)


@pytest.fixture(scope="module")
def ejections(core):
    g = torch.Generator().manual_seed(0)
    return draw_ejections(300, core.rho0, core.sigma0, core.v_esc, g)


def test_without_a_galaxy_the_clusters_potential_takes_the_escape_speed(clusters, core, ejections):
    """At distance d beyond r_t: v^2 - v_esc^2 - 2 G M (1 / r_t - 1 / d)."""
    x = torch.full((len(clusters), 3), 100.0, dtype=torch.float64)
    v = 0 * x + torch.tensor([100.0, -30.0, 20.0])
    gone = from_core(x, v, ejections, core, Nothing())
    moved = x + v * gone.time[..., None] * 1.0227121650537077
    distance = 1e3 * (gone.x - moved).norm(dim=-1)  # pc
    expected = ejections.v_inf**2 - 2 * G * clusters.mass * (1 / core.r_t - 1 / distance)
    left = (gone.v - v).square().sum(-1)
    away = gone.away
    assert float(away.double().mean()) > 0.8
    error = ((left - expected).abs() / core.v_esc.square())[away]
    assert float(error.max()) < 1e-3 and float(error.median()) < 1e-4
    assert (expected[~away] < 1e-3 * core.v_esc.max() ** 2).all()
    straight = torch.nn.functional.cosine_similarity(gone.v - v, ejections.direction, dim=-1)
    assert float(straight[away].min()) > 1 - 1e-9


def test_both_ways_agree_in_the_actions(clusters, core, ejections):
    """Shifts in units of the spread of the cluster's ejected stars."""
    potential = milky_way("mwpotential2014")
    c = clusters
    x, v = galactocentric(c.ra, c.dec, c.distance, c.pmra, c.pmdec, c.v_los)
    kick = ejections.kick
    outside = staeckel_actions(x.expand_as(kick), v + kick, potential)
    gone = from_core(x, v, ejections, core, potential)
    inside = staeckel_actions(gone.x, gone.v, potential)
    both = outside.bound & inside.bound & gone.away
    assert float(both.double().mean()) > 0.85
    for action in ("J_R", "L_z", "J_z", "energy"):
        a, b = getattr(outside, action), getattr(inside, action)
        for row in range(len(clusters)):
            theirs, ours = a[both[:, row], row], b[both[:, row], row]
            low, high = torch.quantile(theirs, torch.tensor([0.16, 0.84], dtype=torch.float64))
            shift = (ours - theirs) / (0.5 * (high - low))
            assert abs(float(shift.median())) < 0.08, (action, clusters.names[row])
            assert float(shift.abs().median()) < 0.1, (action, clusters.names[row])


def test_one_cluster_is_one_of_many(clusters, core, ejections):
    one = CoreStructure(*(y[1] for y in core))
    alone = type(ejections)(*(y[:, 1] if y.dim() > 1 else y[1] for y in ejections))
    x = torch.tensor([[8.0, 0.0, 3.0]] * 4, dtype=torch.float64)
    v = torch.tensor([[10.0, 150.0, 30.0]] * 4, dtype=torch.float64)
    galaxy = milky_way("mwpotential2014")
    many = from_core(x, v, ejections, core, galaxy, radii=1.0)
    single = from_core(x[1], v[1], alone, one, galaxy, radii=1.0)
    torch.testing.assert_close(single.x, many.x[:, 1], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(single.v, many.v[:, 1], rtol=1e-9, atol=1e-7)
    assert single.time.shape == (300,) and torch.equal(single.away, many.away[:, 1])


def test_a_model_and_its_structure_have_one_truncation_radius(core):
    model = solve(core.W0, core.g)
    torch.testing.assert_close(core.r_t, model.rt * core.r0)
