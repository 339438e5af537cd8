"""Stars on the sky: densities against brute force, mocks with known truth, bad lists."""

import math

import numpy as np
import pytest
import torch
from astropy.table import Table

import zoo
from datamodules.gc_stars import GCStars
from models.checkpoint import read_checkpoint, restore
from models.gc_emulator.members import KMS, log_members
from models.gc_emulator.posterior import cluster_of, whitened
from models.gc_emulator.sky import Sky, select, sky_stars
from physics import cluster_stars
from physics import lowered_isothermal as limepy

D = torch.float64
SHARE = 0.5  # r_h / r_a, where the emulator is of anisotropic models
TRUTH = {"W0": 5.0, "g": 1.8, "log10_mass": 5.0, "log10_rh": 0.4771}
PLACE = {"ra": 57.3, "dec": 28.6, "distance": 1.0, "pm_ra": 5.0, "pm_dec": -3.0, "rv": 20.0}


@pytest.fixture(scope="module")
def model():
    return restore(read_checkpoint(zoo.find("gc_emulator"))).requires_grad_(False)


@pytest.fixture(scope="module")
def anisotropic():
    return restore(read_checkpoint(zoo.find("gc_emulator_anisotropic"))).requires_grad_(False)


def mock(**changes):
    return GCStars(**{"truth": TRUTH | PLACE, "n_stars": 200, "seed": 1, **changes})


def posterior_of(model, data, columns=None):
    stars = columns or data.stars()
    chosen = data.selected()
    return Sky(
        model.emulator,
        sky_stars({name: value[None] for name, value in stars.items()}),
        tuple(1e3 * x for x in data.distance(stars)),
        None if chosen is None else select(*chosen),
        data.field,
    )


def at_truth(posterior):
    """The globals of the mock as coordinates, (1, 1, n_globals); its field as it starts."""
    W0, g, log_mass, log_rh = (torch.tensor(v, dtype=D) for v in TRUTH.values())
    more = [torch.tensor(SHARE, dtype=D)] if posterior.n_cluster > 4 else []
    four = whitened(W0, g / limepy.g_limit(W0, *more), log_mass, log_rh, *more)
    ra, dec = (torch.tensor(math.radians(PLACE[name]), dtype=D) for name in ("ra", "dec"))
    east, north, out = posterior.tangent[0]
    direction = cluster_stars.axes(ra, dec)[2]
    offset = torch.stack([direction @ east, direction @ north]) / (direction @ out)
    rest = torch.tensor([1e3 * PLACE["distance"], PLACE["pm_ra"], PLACE["pm_dec"], PLACE["rv"]])
    centre = (torch.cat([offset, rest]) - posterior.middle[0]) / posterior.unit[0]
    u = torch.cat([four, centre, torch.zeros(posterior.n_globals - posterior.n_placed)])
    return u[None, None]


@pytest.mark.parametrize("kind", ["model", "anisotropic"])
def test_a_star_is_as_probable_as_f_integrated_over_what_is_not_measured(kind, request):
    model = request.getfixturevalue(kind)
    data = mock(n_stars=12, mock_error=1e-4)
    columns = {k: v for k, v in data.stars().items() if k[:2] not in ("ra", "de", "pa")}
    columns |= {name: data.stars()[name] for name in ("ra", "dec")}
    posterior = posterior_of(model, mock(n_stars=12, distance=1.0), columns)
    u = at_truth(posterior)
    cluster, _ = cluster_of(model.emulator, u)
    centre, _ = posterior._centre(u)
    # over both numbers; proper motions are all but known, and their numbers zero
    grid = torch.linspace(-7, 7, 141, dtype=D)
    z, v = (x.flatten() for x in torch.meshgrid(grid, grid, indexing="ij"))
    stars = posterior._spread(1, len(z))
    n = torch.zeros(1, 12 * len(z), 4, dtype=D)
    n[..., 0], n[..., 1] = z.repeat(12), v.repeat(12)
    log_p = log_members(stars, posterior.typical_pm, cluster, centre, n).view(12, -1)
    step = float(grid[1] - grid[0])
    found = log_p.logsumexp(1) + 2 * math.log(step) + math.log(2 * math.pi)
    # the same in parsec and km/s, by brute force
    phase = torch.stack([columns["ra"].deg2rad(), columns["dec"].deg2rad(), 0 * columns["ra"],
                         columns["pm_ra"], columns["pm_dec"], 0 * columns["ra"]], -1)  # fmt: skip
    for i in range(12):
        depth = torch.linspace(-1.5, 1.5, 3001, dtype=D).pow(3) * 20 + 1e3 * PLACE["distance"]
        sky = phase[i].repeat(len(depth), 1)
        sky[:, 2] = depth
        middle = cluster_stars.from_sky(
            torch.tensor([math.radians(PLACE["ra"]), math.radians(PLACE["dec"]), 1e3,
                          PLACE["pm_ra"], PLACE["pm_dec"], PLACE["rv"]], dtype=D)
        )  # fmt: skip
        moving = cluster_stars.from_sky(sky) - middle
        out = cluster_stars.axes(sky[:, 0], sky[:, 1])[2]
        across = moving[:, 3:] - (moving[:, 3:] * out).sum(1, keepdim=True) * out
        along = torch.linspace(-40, 40, 1601, dtype=D)
        r2 = moving[:, :3].square().sum(1)[:, None].expand(-1, len(along))
        v2 = across.square().sum(1)[:, None] + along**2
        velocity = across[:, None] + along[:, None] * out[:, None]
        j2 = torch.linalg.cross(moving[:, None, :3].expand_as(velocity), velocity).square().sum(-1)
        f = cluster.log_df(*(x.reshape(1, -1) for x in (r2, v2, j2))).exp().view(r2.shape)
        in_depth = torch.trapezoid(f, along, dim=1) * depth**4 * KMS**2
        exact = torch.trapezoid(in_depth, depth).log()
        assert float(found[i]) == pytest.approx(float(exact), abs=3e-3)
    # and by the quadrature that chains begin with
    members, _, _ = posterior._parts(u, marginal=True)
    roughly = 0.05 if kind == "model" else 0.7
    torch.testing.assert_close(members[0], found, atol=roughly, rtol=0)


def test_the_selected_share_is_that_of_stars(model):
    data = mock(radius=[2.0, 12.0], n_stars=50)
    posterior = posterior_of(model, data)
    u = at_truth(posterior)
    cluster, _ = cluster_of(model.emulator, u)
    centre, _ = posterior._centre(u)
    found = float(posterior._log_inside(cluster, centre, torch.tensor([[1e5]], dtype=D)).exp())
    one = torch.ones(1, dtype=D)
    solved = limepy.solve(5 * one, 1.8 * one)
    generator = torch.Generator().manual_seed(0)
    stars = cluster_stars.draw(solved, 1e5 * one, 10**0.4771 * one, 100_000, generator)[0]
    arcmin = stars[:, :2].norm(dim=1) / (1e3 * math.pi / 180 / 60)
    share = float(((arcmin > 2) & (arcmin < 12)).double().mean())
    assert found == pytest.approx(share, abs=4 * math.sqrt(share / 1e5))


def test_gradients_are_finite_for_a_star_at_the_centre_and_one_that_escapes(model):
    data = mock(n_stars=50)
    columns = data.stars()
    columns["ra"][0], columns["dec"][0] = PLACE["ra"], PLACE["dec"]
    columns["pm_ra"][1] += 50.0
    columns["ra"][2] += 30.0
    columns["parallax"][3] = torch.nan
    posterior = posterior_of(model, data, columns)
    u = torch.cat([at_truth(posterior), torch.zeros(1, 1, posterior.n_latents)], -1)
    u = u.requires_grad_()
    value = posterior.log_prob(u)
    (gradient,) = torch.autograd.grad(value.sum(), u)
    assert bool(value.isfinite().all())
    assert bool(gradient.isfinite().all())


def test_a_mock_among_field_stars_gives_back_its_truth(model, tmp_path):
    data = mock(field=True, radius=[1.0, 25.0], mock_rv_error=1.0)
    seen = data.stars()
    seen["rv"][::2] = torch.nan  # measured for every other star
    data.stars = lambda: seen
    model.chains, model.warmup, model.draws = 4, 150, 150
    product = model.infer(data, tmp_path, seed=0)
    for name, truth in data.truth().items():
        z = (product.draws[name].mean() - truth) / product.draws[name].std()
        assert abs(z) < 4, name
    assert product.metrics["divergences"] == 0
    assert product.metrics["centre_rv_std"] < 1.5
    member = product.groups["members"]["probability"]
    n_members = 200 - 200 // 3
    assert member[:n_members].mean() > 0.95
    assert member[n_members:].mean() < 0.1


def table_of(data):
    return Table(data.simulate("test"))


@pytest.mark.parametrize(
    "change, settings, message",
    [
        (lambda t: t.remove_column("pmra_error"), {}, "no column 'pmra_error'"),
        (lambda t: t["pmra"].__setitem__(3, np.nan), {}, "'pmra': nan is not measured"),
        (lambda t: t["pmdec_error"].__setitem__(0, 0.0), {}, "'pmdec_error'.*is no error"),
        (lambda t: setattr(t["pmra"], "unit", "km/s"), {}, "'pmra' is in 'km / s'"),
        (lambda t: t.remove_column("parallax"), {}, "distance of .* is not known"),
        (lambda t: t.remove_rows(slice(1, None)), {}, "has 1 stars; .* less than 10"),
        (lambda t: None, {"radius": [0, 0.01], "centre": [0, 0]}, "none of the 20 stars"),
        (lambda t: None, {"radius": [3, 1], "centre": [57.3, 28.6]}, "expected \\[<min>, <max>\\]"),
    ],
)
@pytest.mark.filterwarnings("ignore:only one of parallax", "ignore:.*without a unit")
def test_bad_lists_are_refused(change, settings, message, tmp_path):
    table = table_of(mock(n_stars=20))
    change(table)
    table.write(tmp_path / "stars.ecsv")
    with pytest.raises(ValueError, match=message):
        data = GCStars(path=str(tmp_path / "stars.ecsv"), **settings)
        data.distance(data.stars())


def test_columns_without_a_unit_are_named(tmp_path):
    table = table_of(mock(n_stars=20))
    table.write(tmp_path / "stars.csv")
    with pytest.warns(
        UserWarning, match=r"without a unit are taken as ra \(deg\).*pmra \(mas/yr\)"
    ):
        GCStars(path=str(tmp_path / "stars.csv")).stars()


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"field": True}, "needs data.radius"),
        ({"radius": [0, 5], "path": "stars.fits"}, "about a point: data.centre"),
        ({"distance": -1.0}, "expected kpc"),
        ({"truth": {"W0": 5.0}}, "data.truth of a mock names W0"),
    ],
)
def test_settings_that_say_too_little_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        mock(**settings)


def test_completeness_is_read_and_cut(tmp_path):
    path = tmp_path / "complete.ecsv"
    Table({"radius": [0.0, 5, 20], "completeness": [0.2, 1, 1]}).write(path)
    chosen = mock(completeness=str(path), radius=[1.0, 10.0]).selected()
    assert chosen.radius.tolist() == [1, 5, 10]
    np.testing.assert_allclose(chosen.completeness, [0.36, 1, 1])
