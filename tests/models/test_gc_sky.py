"""Stars on the sky: densities against brute force, mocks with known truth, bad lists."""

import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from astropy.coordinates import SkyCoord
from astropy.table import Table

from orrery import load
from orrery.datamodules.gc_emulator.stars import GCStars
from orrery.models.gc_emulator.goodness_of_fit import star_fit
from orrery.models.gc_emulator.inference import Draws, summary_metrics
from orrery.models.gc_emulator.members import KMS, log_members
from orrery.models.gc_emulator.posterior import cluster_of, whitened
from orrery.models.gc_emulator.sky import SkyPosterior, star_measurements
from orrery.physics.clusters import cluster_stars
from orrery.physics.clusters import lowered_isothermal as limepy
from orrery.physics.densities import log_standard_normal

D = torch.float64
SHARE = 0.5  # r_h / r_a, where the emulator is of anisotropic models
TRUTH = {"W0": 5.0, "g": 1.8, "log10_mass": 5.0, "log10_rh": 0.4771}
PLACE = {"ra": 57.3, "dec": 28.6, "distance": 1.0, "pm_ra": 5.0, "pm_dec": -3.0, "rv": 20.0}


@pytest.fixture(scope="module")
def model():
    return load("gc_emulator").requires_grad_(False)


@pytest.fixture(scope="module")
def anisotropic():
    return load("gc_emulator_anisotropic").requires_grad_(False)


def mock(**changes):
    return GCStars(**{"truth": TRUTH | PLACE, "n_stars": 200, "seed": 1, **changes})


def posterior_of(model, data, columns=None):
    stars = columns or data.stars()
    return SkyPosterior(
        model.emulator,
        star_measurements({name: value[None] for name, value in stars.items()}),
        data.distance_prior(stars),
        data.selection(),
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
    at = torch.cat([offset, rest])
    if posterior.by_parallax:
        reference = posterior.reference[0, 2]
        at[2] = reference * (1 + (at[2] / reference).log())
    centre = (at - posterior.reference[0]) / posterior.unit[0]
    u = torch.cat([four, centre, torch.zeros(posterior.n_globals - posterior.n_with_centre)])
    return u[None, None]


@pytest.mark.parametrize("kind", ["model", "anisotropic"])
def test_a_star_is_as_probable_as_f_integrated_over_what_is_not_measured(kind, request):
    model = request.getfixturevalue(kind)
    n_stars = 10
    data = mock(n_stars=n_stars, mock_error=1e-4)
    columns = {k: v for k, v in data.stars().items() if k[:2] not in ("ra", "de", "pa")}
    columns |= {name: data.stars()[name] for name in ("ra", "dec")}
    posterior = posterior_of(model, mock(n_stars=n_stars, distance=1.0), columns)
    u = at_truth(posterior)
    cluster, _ = cluster_of(model.emulator, u)
    centre, _ = posterior.centre(u)
    # over both numbers; proper motions are all but known, and their numbers zero
    grid = torch.linspace(-7, 7, 141, dtype=D)
    z, v = (x.flatten() for x in torch.meshgrid(grid, grid, indexing="ij"))
    stars = posterior._repeated(1, len(z))
    n = torch.zeros(1, n_stars * len(z), 4, dtype=D)
    n[..., 0], n[..., 1] = z.repeat(n_stars), v.repeat(n_stars)
    log_p = log_members(stars, posterior.typical_pm, cluster, centre, n).view(n_stars, -1)
    step = float(grid[1] - grid[0])
    found = log_p.logsumexp(1) + 2 * math.log(step) + math.log(2 * math.pi)
    # the same in parsec and km/s, by brute force
    phase = torch.stack([columns["ra"].deg2rad(), columns["dec"].deg2rad(), 0 * columns["ra"],
                         columns["pm_ra"], columns["pm_dec"], 0 * columns["ra"]], -1)  # fmt: skip
    for i in range(n_stars // 2):  # brute force is slow
        depth = torch.linspace(-1.5, 1.5, 1501, dtype=D).pow(3) * 20 + 1e3 * PLACE["distance"]
        sky = phase[i].repeat(len(depth), 1)
        sky[:, 2] = depth
        middle = cluster_stars.from_sky(
            torch.tensor([math.radians(PLACE["ra"]), math.radians(PLACE["dec"]), 1e3,
                          PLACE["pm_ra"], PLACE["pm_dec"], PLACE["rv"]], dtype=D)
        )  # fmt: skip
        moving = cluster_stars.from_sky(sky) - middle
        out = cluster_stars.axes(sky[:, 0], sky[:, 1])[2]
        across = moving[:, 3:] - (moving[:, 3:] * out).sum(1, keepdim=True) * out
        along = torch.linspace(-40, 40, 801, dtype=D)
        r2 = moving[:, :3].square().sum(1)[:, None].expand(-1, len(along))
        v2 = across.square().sum(1)[:, None] + along**2
        velocity = across[:, None] + along[:, None] * out[:, None]
        j2 = torch.linalg.cross(moving[:, None, :3].expand_as(velocity), velocity).square().sum(-1)
        f = cluster.log_df(*(x.reshape(1, -1) for x in (r2, v2, j2))).exp().view(r2.shape)
        in_depth = torch.trapezoid(f, along, dim=1) * depth**4 * KMS**2
        exact = torch.trapezoid(in_depth, depth).log()
        assert float(found[i]) == pytest.approx(float(exact), abs=3e-3)
    # and by the quadrature of the starting points
    members, _, _ = posterior.log_terms(u, posterior.rough_rule)
    roughly = 0.05 if kind == "model" else 0.7
    torch.testing.assert_close(members[0], found, atol=roughly, rtol=0)


@pytest.mark.parametrize("kind", ["model", "anisotropic"])
def test_a_star_without_a_proper_motion_is_as_probable_as_f_over_all_of_them(kind, request):
    model = request.getfixturevalue(kind)
    data = mock(n_stars=10, mock_error=None, mock_rv_error=0.5, distance=1.0, distance_error=0.01)
    columns = data.stars()
    posterior = posterior_of(model, data)
    assert posterior.n_latents == 40
    u = at_truth(posterior)
    cluster, _ = cluster_of(model.emulator, u)
    centre, _ = posterior.centre(u)
    n, log_weights = product(16, 24, 12)
    s = posterior._repeated(1, len(n))
    log_p = log_members(s, posterior.typical_pm, cluster, centre, n.repeat(10, 1)[None])
    found = (log_p.view(10, -1) + log_weights).logsumexp(1)
    # in pc and km/s, by brute force: depth, speed and angle across, velocity along
    axes = (
        torch.linspace(-1.5, 1.5, 161, dtype=D).pow(3) * 20,
        torch.linspace(0, 30, 61, dtype=D),
        torch.arange(12, dtype=D) * (2 * math.pi / 12),
        torch.linspace(-2, 2, 17, dtype=D),
    )
    depth, across, angle, off = torch.meshgrid(*axes, indexing="ij")
    d0 = 1e3 * PLACE["distance"]
    for i, R in enumerate(projected_radii(columns)[:3].tolist()):
        v = float(columns["rv"][i]) - PLACE["rv"] + off
        r2, v2 = R**2 + depth**2, across**2 + v**2
        j2 = r2 * v2 - (R * across * angle.cos() + depth * v).square()
        f = cluster.log_df(*(x.reshape(1, -1) for x in (r2, v2, j2))).exp().view(r2.shape)
        density = f * across * ((off / 0.5).square() / -2).exp() / (0.5 * math.sqrt(2 * math.pi))
        density = torch.trapezoid(density, axes[3]).mean(2) * 2 * math.pi
        in_depth = torch.trapezoid(density, axes[1]) * (d0 + axes[0]).square()
        exact = torch.trapezoid(in_depth, axes[0]).log()
        # a perspective of 10 arcmin, which the brute force has not, is 1e-2
        assert float(found[i]) == pytest.approx(float(exact), abs=0.03)


def projected_radii(stars):
    """pc, (n,), at the distance of the centre."""
    directions = SkyCoord(stars["ra"].numpy(), stars["dec"].numpy(), unit="deg")
    angle = directions.separation(SkyCoord(PLACE["ra"], PLACE["dec"], unit="deg")).rad
    return 1e3 * PLACE["distance"] * torch.from_numpy(np.sin(angle))


def product(depths, speeds, pm):
    """A fine Gauss-Hermite rule over all four numbers of a star."""
    rules = [np.polynomial.hermite_e.hermegauss(k) for k in (depths, speeds, pm, pm)]
    n, w = (
        torch.stack([x.flatten() for x in torch.meshgrid(
            *(torch.from_numpy(rule[i]) for rule in rules), indexing="ij")], -1)
        for i in (0, 1)
    )  # fmt: skip
    w = w / torch.tensor([rule[1].sum() for rule in rules])
    return n, w.log().sum(-1) - log_standard_normal(n).sum(-1)


def test_positions_alone_follow_the_surface_density(model):
    data = mock(n_stars=30, mock_error=None, distance=1.0, distance_error=0.01)
    posterior = posterior_of(model, data)
    assert posterior.n_latents == 0
    u = at_truth(posterior)
    cluster, _ = cluster_of(model.emulator, u)
    members, _, _ = posterior.log_terms(u, None)
    R, d0 = projected_radii(data.stars()), 1e3 * PLACE["distance"]
    depth = torch.linspace(-3.2, 3.2, 4001, dtype=D).pow(3)  # beyond r_t
    density = cluster.density(R[:, None].square() + depth**2) / 1e5
    exact = (torch.trapezoid(density, depth) * d0**2).log()
    torch.testing.assert_close(members[0], exact, atol=3e-3, rtol=0)


def test_lists_of_some_proper_motions_are_those_of_each_kind_together(model):
    whole = mock(n_stars=30, mock_rv_error=1.0, distance=1.0, distance_error=0.01)
    columns = whole.stars()
    kinds = torch.arange(30) % 3
    for name in columns:
        if name.startswith("pm"):
            columns[name][kinds > 0] = torch.nan
        if name.startswith("rv"):
            columns[name][kinds > 1] = torch.nan
    mixed = posterior_of(model, whole, columns)
    generator = torch.Generator().manual_seed(0)
    n = torch.randn(20, mixed.latents_per_star, generator=generator, dtype=D)
    u = torch.cat([at_truth(mixed), n.view(1, 1, -1)], -1)
    members, _, _ = mixed.log_terms(u, None)
    for kind in range(3):
        of_kind = {name: value[kinds == kind] for name, value in columns.items()}
        alone = posterior_of(model, whole, of_kind)
        mine = n[(kinds[kinds < 2] == kind)]
        for name in ("reference", "unit", "tangent", "typical_pm"):
            setattr(alone, name, getattr(mixed, name))
        at = torch.cat([at_truth(mixed), mine.view(1, 1, -1)], -1)
        expected, _, _ = alone.log_terms(at, None)
        torch.testing.assert_close(members[:, kinds == kind], expected)


def test_positions_alone_leave_the_mass_to_its_prior_and_say_so(model, tmp_path):
    data = mock(n_stars=100, mock_error=None, distance=1.0, distance_error=0.02)
    model.chains, model.warmup, model.draws = 4, 100, 100
    posterior = model.infer(data, tmp_path, seed=0)
    assert posterior.metrics["log10_mass_std"] == pytest.approx(0.6, abs=0.12)
    assert any("the mass is not constrained" in warning for warning in posterior.warnings)
    assert posterior.metrics["log10_rh_std"] < 0.1


@pytest.mark.parametrize("errors", [{"mock_error": 0.3}, {"mock_error": 0.1, "mock_rv_error": 2.0}])
def test_a_marginal_posterior_sums_over_what_errors_hide(model, errors):
    data = mock(n_stars=40, distance=1.0, distance_error=0.01, **errors)
    observed = posterior_of(model, data)
    posterior = SkyPosterior(model.emulator, observed.stars, (1.0, 0.01), marginal=True)
    assert posterior.n_latents == 0
    u = at_truth(posterior)
    roughly, _, _ = posterior.log_terms(u, posterior.rule)
    posterior.closed_form = False
    exact, _, _ = posterior.log_terms(u, product(24, 12, 7))
    assert float((roughly - exact).std()) < 0.02
    # and where the cluster is another
    u = u.clone()
    u[..., 1], u[..., 2] = u[..., 1] + 0.3, u[..., 2] - 0.05
    other, _, _ = posterior.log_terms(u, product(24, 12, 7))
    posterior.closed_form = posterior.stars.rv is None
    moved, _, _ = posterior.log_terms(u, posterior.rule)
    change = (other - exact).sum()
    assert float((moved - roughly).sum()) == pytest.approx(float(change), abs=0.03)


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


@pytest.mark.parametrize("ra", [245.9, -114.1, 359.99, 0.0])
def test_right_ascensions_are_from_0_to_360_and_their_errors_go_the_shorter_way(model, ra):
    data = mock(n_stars=50, truth=TRUTH | PLACE | {"ra": ra}, centre=[ra % 360, PLACE["dec"]],
                radius=[0.0, 20.0])  # fmt: skip
    stars = data.stars()
    assert bool(((stars["ra"] >= 0) & (stars["ra"] < 360)).all())
    posterior = posterior_of(model, data)
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(1, 2, 50, posterior.n_globals, generator=generator, dtype=D)
    draws = posterior.named(u)
    assert float(draws["centre_ra"].max() - draws["centre_ra"].min()) < 1, "draws stay together"
    metrics = summary_metrics(Draws(draws, {}, u, []), data.truth())
    assert 0 <= metrics["centre_ra"] < 360 and metrics["centre_ra_true"] == ra % 360
    assert abs(metrics["centre_ra_z"]) < 4


def assert_truth_within_errors(posterior, data, diverged=0):
    for name, truth in data.truth().items():
        z = (posterior.draws[name].mean() - truth) / posterior.draws[name].std()
        assert abs(z) < 4, name
    assert posterior.metrics["divergences"] <= diverged


def test_a_mock_among_field_stars_gives_back_its_truth(model, tmp_path):
    data = mock(field=True, radius=[1.0, 25.0], mock_rv_error=1.0, n_stars=90)
    stars = data.stars()
    stars["rv"][::2] = torch.nan  # measured for every other star
    data.stars = lambda: stars
    model.chains, model.warmup, model.draws = 4, 70, 60
    posterior = model.infer(data, tmp_path, seed=0)
    assert_truth_within_errors(posterior, data)
    assert posterior.metrics["centre_rv_std"] < 1.5
    member = posterior.groups["members"]["probability"]
    n_members = 90 - 90 // 3
    assert member[:n_members].mean() > 0.95
    assert member[n_members:].mean() < 0.1


@pytest.mark.slow
def test_a_projected_mock_gives_back_its_truth(model, tmp_path):
    data = mock(mock_error=None, mock_rv_error=1.0, distance=1.0, distance_error=0.02, n_stars=100)
    stars = data.stars()
    stars["rv"][::4] = torch.nan  # where there is nothing but the position
    data.stars = lambda: stars
    model.chains, model.warmup, model.draws = 4, 100, 80
    posterior = model.infer(data, tmp_path, seed=0)
    assert_truth_within_errors(posterior, data, diverged=2)  # of 320
    assert posterior.metrics["log10_mass_std"] < 0.2
    assert posterior.metrics["centre_pm_ra_std"] > 5  # nothing measures it
    assert list(posterior.figures["profiles"]["band_kind"]) == ["density", "los"]


def test_profiles_that_fail_cost_no_draws():
    def fails():
        raise ValueError("no bins")

    with pytest.warns(UserWarning, match=r"profiles\.png could not be made: ValueError: no bins"):
        assert star_fit(fails) == ({}, {})


def table_of(data):
    return Table(data.simulate("test"))


@pytest.mark.parametrize(
    "change, settings, message",
    [
        (lambda t: t.remove_column("pmra_error"), {}, "no column 'pmra_error'"),
        (lambda t: t.rename_column("ra", "RAJ2000"), {}, "neither ra and dec.*\n.*RAJ2000"),
        (lambda t: t["dec"].__setitem__(3, np.nan), {}, "'dec': nan is not a valid declination"),
        (
            lambda t: t["pmdec_error"].__setitem__(0, 0.0),
            {},
            "0.0 is not a valid error of pmdec",
        ),
        (lambda t: setattr(t["pmra"], "unit", "km/s"), {}, "'pmra' is in 'km / s'"),
        (lambda t: t.remove_column("parallax"), {}, "distance of .* is not known"),
        (lambda t: t.remove_rows(slice(1, None)), {}, "has 1 stars; expected 10 or more"),
        (lambda t: None, {"radius": [0, 0.01], "centre": [0, 0]}, "none of the 20 stars"),
        (lambda t: None, {"radius": [3, 1], "centre": [57.3, 28.6]}, "expected \\[<min>, <max>\\]"),
    ],
)
@pytest.mark.filterwarnings(
    "ignore:.*no column 'parallax'", "ignore:.*without a unit", "ignore:.*zero point"
)
def test_bad_lists_are_refused(change, settings, message, tmp_path):
    table = table_of(mock(n_stars=20))
    change(table)
    table.write(tmp_path / "stars.ecsv")
    with pytest.raises(ValueError, match=message):
        data = GCStars(path=str(tmp_path / "stars.ecsv"), **settings)
        data.distance_prior(data.stars())


@pytest.mark.filterwarnings("ignore:.*without a unit", "ignore:.*zero point")
def test_the_columns_decide_between_sky_and_phase_space_and_say_so(tmp_path):
    table = table_of(mock(n_stars=20))
    path = str(tmp_path / "stars.ecsv")
    for name in ("x", "y"):
        table[name] = np.arange(20.0)  # pixels
    table.write(path)
    with pytest.warns(
        UserWarning, match="on the sky: it has no column z, vx, vy, vz, so that x, y"
    ):
        assert "ra" in GCStars(path=path).stars()
    with pytest.raises(ValueError, match="no column 'z'"):
        GCStars(path=path, columns={"x": "x"}).stars()
    with pytest.raises(ValueError, match="leave out ra, or the others"):
        GCStars(path=path, columns={"x": "x", "ra": "ra"}).stars()
    for name in ("z", "vx", "vy", "vz"):
        table[name] = np.arange(20.0)
    table.write(path, overwrite=True)
    with pytest.warns(UserWarning, match="in phase space; for stars on the sky: data.columns.ra="):
        assert "ra" not in GCStars(path=path).stars()
    assert "ra" in GCStars(path=path, columns={"ra": "ra"}).stars()
    table.remove_columns(["ra", "vy"])
    table.write(path, overwrite=True)
    with pytest.raises(ValueError, match="of stars in phase space, but no column 'vy'; map it: "):
        GCStars(path=path).stars()


def test_columns_without_a_unit_are_named(tmp_path):
    table = table_of(mock(n_stars=20))
    table.write(tmp_path / "stars.csv")
    with pytest.warns(
        UserWarning, match=r"without a unit are taken as ra \(deg\).*pmra \(mas/yr\)"
    ):
        GCStars(path=str(tmp_path / "stars.csv")).stars()


def a_distant_cluster(tmp_path):
    """Stars at 5 kpc, whose parallaxes have a zero point of -0.035 mas."""
    truth = TRUTH | PLACE | {"distance": 5.0, "log10_mass": 5.5}
    data = mock(truth=truth, n_stars=80, mock_error=0.02, parallax_zero_point=-0.035)
    columns = data.simulate("test")
    names = [name for name in columns if name not in ("ra_error", "dec_error")]
    Table({name: columns[name] for name in names}).write(tmp_path / "stars.ecsv")
    return str(tmp_path / "stars.ecsv")


@pytest.mark.filterwarnings("ignore:.*without a unit")
def test_the_zero_point_of_the_parallaxes_does_not_bias_the_mass(model, tmp_path):
    path = a_distant_cluster(tmp_path)
    model.chains, model.warmup, model.draws, model.marginal = 4, 40, 50, True
    try:
        for zero_point, limit in ((-0.035, 2.0), (None, 3.0)):
            data = GCStars(path=path, parallax_zero_point=zero_point)
            if zero_point is None:
                with pytest.warns(UserWarning, match="zero point of Gaia DR3, -0.04 ± 0.01 mas"):
                    stars = data.stars()
                data.stars = lambda stars=stars: stars
            metrics = model.infer(data, None, seed=0).metrics
            z = (metrics["log10_mass"] - 5.5) / metrics["log10_mass_std"]
            assert abs(z) < limit, zero_point
            # 0.01 mas of 0.2 is 5% of the distance, and mass goes with its cube
            assert 0.05 < metrics["log10_mass_std"] < 0.12
            assert metrics["parallax_offset_std"] == pytest.approx(0.01, rel=0.35)
    finally:
        model.marginal = False


def test_a_common_offset_of_the_parallaxes_is_a_shift_of_all_of_them(model):
    data = mock(n_stars=20)
    stars = star_measurements({name: x[None] for name, x in data.stars().items()})
    alone = SkyPosterior(model.emulator, stars, (1.0, None))
    with_offset = SkyPosterior(model.emulator, stars, (1.0, None), parallax_offset_error=0.02)
    assert with_offset.names == alone.names and with_offset.n_globals == alone.n_globals + 1
    generator = torch.Generator().manual_seed(0)
    n = torch.randn(1, 1, alone.n_latents, generator=generator, dtype=D)
    u, offset = at_truth(alone), torch.full((1, 1, 1), 1.5, dtype=D)
    shifted = alone.moving._replace(parallax=alone.moving.parallax - 0.03)
    for rule, latents in ((None, n), (alone.rough_rule, n[..., :0])):
        found, _, _ = with_offset.log_terms(torch.cat([u, offset, latents], -1), rule)
        other = SkyPosterior(model.emulator, stars, (1.0, None))
        other.moving = shifted
        expected, _, _ = other.log_terms(torch.cat([u, latents], -1), rule)
        torch.testing.assert_close(found, expected)
    named = with_offset.named(torch.cat([u, offset], -1))
    assert float(named["parallax_offset"]) == pytest.approx(0.03)


def test_parallaxes_are_corrected_where_they_are_not_yet(tmp_path):
    table = table_of(mock(n_stars=20))
    measured = torch.from_numpy(np.array(table["parallax"]))
    for name, zero_point in (("parallax", -0.04), ("parallax_corrected", 0.0)):
        table.rename_column(table.colnames[4], name)
        table.write(path := str(tmp_path / f"{name}.ecsv"))
        data = GCStars(path=path, columns={"parallax": name}, parallax_error_inflation=1.5)
        with pytest.warns(UserWarning):  # of units, too
            stars = data.stars()
        torch.testing.assert_close(stars["parallax"], measured - zero_point)
        torch.testing.assert_close(stars["parallax_error"], torch.full((20,), 0.15, dtype=D))
    plain = mock(n_stars=20, mock_error=None, distance=1.0)
    assert plain.observations().parallax_offset_error == 0


def test_zero_points_are_those_of_each_star(tmp_path, monkeypatch):
    def get_zpt(g, nu_eff, pseudocolour, ecl_lat, solved, _warnings):
        assert set(solved) <= {31, 95} and not _warnings
        zero_point = -0.001 * g + 0.01 * np.where(solved == 31, nu_eff, pseudocolour)
        return np.where(g < 21, zero_point + 1e-4 * ecl_lat, np.nan)

    table = table_of(mock(n_stars=20))
    solved = np.array([31, 95] * 9 + [31, 3])
    g = np.append(np.linspace(12, 20, 18), [22.0, 15.0])
    colour = np.full(20, 1.5)
    table["phot_g_mean_mag"], table["astrometric_params_solved"] = g, solved
    table["nu_eff_used_in_astrometry"] = np.where(solved == 31, colour, np.nan)
    table["pseudocolour"] = np.where(solved == 95, colour, np.nan)
    table["ecl_lat"] = np.full(20, 30.0)
    table.write(path := str(tmp_path / "stars.ecsv"))
    data = GCStars(path=path, parallax_zero_point="lindegren")
    monkeypatch.setitem(sys.modules, "zero_point", None)
    with pytest.raises(ValueError, match="pip install gaiadr3-zeropoint"):
        data.stars()
    package = SimpleNamespace(zpt=SimpleNamespace(load_tables=lambda: None, get_zpt=get_zpt))
    monkeypatch.setitem(sys.modules, "zero_point", package)
    with pytest.warns(UserWarning, match="2 of 20 stars lie outside the magnitudes"):
        stars = data.stars()
    expected = np.append(-0.001 * g[:18] + 0.015 + 0.003, [-0.04, -0.04])
    np.testing.assert_allclose(table["parallax"] - stars["parallax"].numpy(), expected)
    assert not any(name.startswith(("phot", "nu", "pseudo")) for name in stars)
    table.remove_column("pseudocolour")
    table.write(path, overwrite=True)
    with pytest.raises(ValueError, match="no column 'pseudocolour'"):
        GCStars(path=path, parallax_zero_point="lindegren").stars()


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"parallax_zero_point": "gaia"}, "within 1 of 0, such as -0.04, or lindegren"),
        ({"parallax_zero_point": "lindegren"}, "is for Gaia's stars; of a mock expected mas"),
        ({"parallax_zero_point": -35.0}, "expected mas, within 1 of 0"),
        ({"parallax_zero_point_error": -0.01}, "parallax_zero_point_error is -0.01"),
        ({"parallax_error_inflation": 0.0}, "expected a factor above 0"),
        ({"field": True}, "needs data.radius"),
        ({"radius": [0, 5], "path": "stars.fits"}, "needs its centre: data.centre"),
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
    selection = mock(completeness=str(path), radius=[1.0, 10.0]).selection()
    assert selection.radius.tolist() == [1, 5, 10]
    np.testing.assert_allclose(selection.completeness, [0.36, 1, 1])
