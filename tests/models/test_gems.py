"""Claims about `gems`: hosts of stars, priors, unknown velocities, densities, mock catalogues."""

import math
import warnings

import numpy as np
import pytest
import torch
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.table import Table

from orrery import load
from orrery.checkpoint import build, read_checkpoint, restore
from orrery.datamodules.gems import MockRequest
from orrery.models.gems.density import (
    Mixture,
    Moments,
    coordinates,
    log_jacobian,
    log_sum_exp,
    moments,
    monomials,
    squared_distance,
)
from orrery.models.gems.observation import phase_space_draws
from orrery.models.gems.outputs import BIT
from orrery.physics.ejections.clusters import cluster_table, milky_way_clusters
from orrery.physics.milky_way.frames import galactocentric, observed

CLUSTER = "NGC 3201"


@pytest.fixture(scope="module")
def path(runs):
    return runs("gems") / "best.ckpt"


@pytest.fixture(scope="module")
def model(path):
    return load(path)


@pytest.fixture(scope="module")
def batch(model):
    """Ejected stars and field stars as they are observed, with their true hosts."""
    return next(build(model.record["config"]["data"]).prediction_batches())


@pytest.fixture(scope="module")
def rows(model, batch):
    return model.predict_step(batch)


def changed(path, **settings):
    return restore(read_checkpoint(path), settings).eval()


def with_(batch, **columns):
    n = len(batch["ra"])
    return {**batch, **{k: torch.full((n,), float(v)).double() for k, v in columns.items()}}


def some(batch, index):
    return {name: values[index] for name, values in batch.items()}


def flag(rows, name):
    return (rows["flags"] & BIT[name]) != 0


# --- hosts of stars -----------------------------------------------------------------------------


def test_a_star_thrown_out_of_a_cluster_has_it_among_the_first(model, batch, rows):
    ejected = batch["host"] < len(model.clusters)
    rank = rows["rank_true"][ejected]
    assert (rank <= 2).double().mean() > 0.9 and (rank == 1).double().mean() > 0.7
    assert rows["rank_true"][~ejected].isnan().all()
    p = 1 - rows["p_field"]
    assert p[ejected].mean() > 2 * p[~ejected].mean()


def test_probabilities_add_up_to_one_and_are_sorted(model, rows):
    total = rows["p_clusters"].sum(1) + rows["p_field"]
    torch.testing.assert_close(total, torch.ones_like(total), rtol=1e-5, atol=0)
    listed = torch.stack([rows[f"p_host{end}"] for end in ("", "_2", "_3", "_4", "_5")], 1)
    assert (listed.diff(dim=1) <= 0).all()
    torch.testing.assert_close(rows["p_host"], rows["p_clusters"].max(1).values)
    assert torch.equal(rows["host"].long(), rows["p_clusters"].argmax(1))
    true = rows["host_true"].long()
    everything = torch.cat([rows["p_clusters"], rows["p_field"][:, None]], 1)
    assert torch.equal(rows["p_true"], everything.gather(1, true[:, None])[:, 0])


def test_the_prior_of_the_field_is_that_of_the_answer(path, batch, rows):
    none = changed(path, field_prior=0.0).predict_step(batch)
    assert (none["p_field"] == 0).all()
    most = changed(path, field_prior=0.99).predict_step(batch)
    odds = [(r["p_field"] / (1 - r["p_field"])).double() for r in (most, rows)]
    usual = (rows["p_field"] > 0.01) & (rows["p_field"] < 0.99)
    ratio = (0.99 / 0.01) / (0.91 / 0.09)
    torch.testing.assert_close(odds[0][usual], ratio * odds[1][usual], rtol=1e-3, atol=0)
    with pytest.raises(ValueError, match=r"field_prior=1\.5; expected a probability below 1"):
        changed(path, field_prior=1.5)


@pytest.mark.parametrize("prior", ["mass", "rate"])
def test_clusters_are_weighed_by_mass_or_by_rate_if_asked(path, model, batch, rows, prior):
    weighed = changed(path, prior=prior).predict_step(batch)["p_clusters"]
    weight = model.hosts_table().of(prior)
    expected = rows["p_clusters"] * weight
    shares = [p / p.sum(1, keepdim=True) for p in (weighed, expected)]
    torch.testing.assert_close(shares[0], shares[1].float(), rtol=1e-3, atol=1e-5)
    if prior == "mass":
        masses = milky_way_clusters().select(model.clusters).mass
        torch.testing.assert_close(weight, masses)
    with pytest.raises(ValueError, match="prior=size; it is one of flat, mass, rate"):
        changed(path, prior="size")


def test_rows_do_not_depend_on_their_batch(model, batch, rows):
    unknown = some(batch, slice(0, 40))
    unknown["radial_velocity"] = unknown["radial_velocity"].clone()
    unknown["radial_velocity"][::3] = torch.nan  # those have more draws
    together = model.predict_step(unknown)
    for i in (0, 1, 7, 39):
        alone = model.predict_step(some(unknown, slice(i, i + 1)))
        for name, values in alone.items():
            torch.testing.assert_close(
                values[0], together[name][i], rtol=1e-4, atol=1e-5, equal_nan=True
            )
    order = torch.arange(39, -1, -1)
    back = model.predict_step(some(unknown, order))
    torch.testing.assert_close(back["p_clusters"][order], together["p_clusters"])


def entropy(rows):
    p = torch.cat([rows["p_clusters"], rows["p_field"][:, None]], 1).double()
    return -(p * p.clamp_min(1e-30).log()).sum(1)


@pytest.mark.parametrize("unknown", ["radial_velocity", "distance"])
def test_what_is_not_known_makes_answers_wider_not_nan(model, batch, rows, unknown):
    less = model.predict_step(with_(batch, **{unknown: torch.nan}))
    assert less["p_clusters"].isfinite().all() and less["J_R"].isfinite().all()
    name = "no_radial_velocity" if unknown == "radial_velocity" else "poor_distance"
    assert flag(less, name).all() and not flag(rows, name).any()
    ejected = batch["host"] < len(model.clusters)
    assert entropy(less)[ejected].mean() > 1.2 * entropy(rows)[ejected].mean()
    for action in ("J_R", "L_z", "J_z"):
        error = f"{action}_error"
        assert less[error].median() > 1.5 * rows[error].median()


def test_larger_errors_give_larger_errors_of_actions(model, batch, rows):
    worse = model.predict_step(some(batch, slice(None)) | {
        "distance_error": 1.9 * batch["distance_error"]})  # fmt: skip
    assert (worse["L_z_error"] > 1.2 * rows["L_z_error"]).double().mean() > 0.9
    exact = model.predict_step(
        with_(batch, distance_error=0, pmra_error=0, pmdec_error=0, radial_velocity_error=0)
    )
    assert exact["L_z_error"].max() < 0.1 and exact["J_R_error"].max() < 0.5


def test_an_unbound_star_has_no_host_and_a_flag(model, batch):
    star = with_(some(batch, slice(0, 3)), radial_velocity=1500, radial_velocity_error=1)
    found = model.predict_step(star)
    assert flag(found, "unbound").all() and (found["host"] == -1).all()
    for name in ("p_host", "p_field", "J_R", "log_bayes", "ood"):
        assert found[name].isnan().all(), name
    table = {k: v.numpy() for k, v in star.items() if k not in ("host", "row", "parallax")}
    del table["parallax_error"]
    with warnings.catch_warnings(action="ignore"):
        assert model.predict(table)["host"].tolist() == [""] * 3


def test_a_star_within_the_tidal_radius_is_flagged(model, batch):
    clusters = milky_way_clusters().select(model.clusters)
    i = model.clusters.index(CLUSTER)
    r_t = float(model.hosts_table().of("r_t")[i]) / 1e3 / float(clusters.distance[i])  # radian
    star = {"ra": clusters.ra[i], "distance": clusters.distance[i], "distance_error": 0.2,
            "pmra": clusters.pmra[i], "pmdec": clusters.pmdec[i],
            "radial_velocity": clusters.v_los[i]}  # fmt: skip
    here = with_(some(batch, slice(0, 1)), **star)
    for offset, inside in ((0.0, True), (0.9, True), (1.1, False)):
        here["dec"] = clusters.dec[i : i + 1] + math.degrees(offset * r_t)
        assert flag(model.predict_step(here), "in_cluster").item() is inside
    here["dec"] = clusters.dec[i : i + 1]
    here["distance"] = here["distance"] + 3.0
    assert not flag(model.predict_step(here), "in_cluster").item(), "far behind the cluster"


def test_a_star_that_has_just_left_is_said_to_have(model, batch):
    clusters = milky_way_clusters().select([CLUSTER])
    place = (clusters.ra, clusters.dec, clusters.distance, clusters.pmra, clusters.pmdec)
    x, v = galactocentric(*place, clusters.v_los)
    kick = torch.tensor([[12.0, -20.0, 18.0]], dtype=torch.float64)
    myr = 8.0
    star = observed(x + kick * myr * 1.0227e-3, v + kick)
    columns = {"radial_velocity" if k == "v_los" else k: v for k, v in star._asdict().items()}
    columns |= {"distance_error": 0.01 * star.distance}
    found = model.predict_step({**some(batch, slice(0, 1)), **columns})
    assert model.clusters[found["host"].item()] == CLUSTER and found["p_recent"].item() > 0.5
    assert found["t_recent"].item() == pytest.approx(myr, rel=0.5)


def test_hosts_of_a_sky_coordinate_are_those_of_its_columns(model, batch):
    star = {name: batch[name][:4].numpy() for name in batch}
    columns = ("distance_error", "pmra_error", "pmdec_error", "pmra_pmdec_corr",
               "radial_velocity_error")  # fmt: skip
    errors = {name: star[name] for name in columns}
    errors["radial_velocity_error"] = errors["radial_velocity_error"] * 1e3 * u.m / u.s
    coords = SkyCoord(
        star["ra"] * u.deg, star["dec"] * u.deg, star["distance"] * u.kpc,
        pm_ra_cosdec=star["pmra"] * u.mas / u.yr, pm_dec=star["pmdec"] * u.mas / u.yr,
        radial_velocity=star["radial_velocity"] * u.km / u.s,
    )  # fmt: skip
    table = model.predict({k: star[k] for k in (*columns, "ra", "dec", "distance", "pmra", "pmdec",
                                                "radial_velocity")})  # fmt: skip
    for given in (coords, coords.galactic):
        found = model.hosts(given, **errors)
        assert found["host"].tolist() == table["host"].tolist()
        np.testing.assert_allclose(found["p_clusters"], table["p_clusters"], atol=1e-4)
    assert len(model.hosts(coords[0])) == 1
    with pytest.raises(ValueError, match="no error rv_error"):
        model.hosts(coords, rv_error=1.0)
    with pytest.raises(ValueError, match="need distances and velocities"):
        model.hosts(SkyCoord(1 * u.deg, 2 * u.deg))


def test_a_sky_coordinate_without_radial_velocity_has_an_unknown_one(model):
    coords = SkyCoord([100.0, 200.0] * u.deg, [20.0, -30.0] * u.deg, [5.0, 8.0] * u.kpc,
                      pm_ra_cosdec=[1, 2] * u.mas / u.yr, pm_dec=[0, 1] * u.mas / u.yr)  # fmt: skip
    with warnings.catch_warnings(action="ignore"):
        found = model.hosts(coords)
    assert (found["flags"] & BIT["no_radial_velocity"]).all()


def test_coordinates_and_errors_that_do_not_fit_are_refused_with_the_way_out(model):
    kms, mas = u.km / u.s, u.mas / u.yr
    coords = SkyCoord([100.0, 200.0] * u.deg, [20.0, -30.0] * u.deg, [5.0, 8.0] * u.kpc,
                      pm_ra_cosdec=[1, 2] * mas, pm_dec=[0, 1] * mas,
                      radial_velocity=[20, 30] * kms)  # fmt: skip
    with warnings.catch_warnings(action="ignore"):
        cartesian = model.hosts(coords.galactocentric, distance_error=[0.5, 0.8])
        expected = model.hosts(coords, distance_error=[0.5, 0.8] * u.kpc)
        square = model.hosts(coords.reshape(2, 1), distance_error=[[0.5], [0.8]])
    for found in (cartesian, square):
        np.testing.assert_allclose(found["p_field"], expected["p_field"], atol=1e-3)
    with pytest.raises(ValueError, match=r"distance_error has the shape \(3,\); expected one"):
        model.hosts(coords, distance_error=[0.1, 0.1, 0.1])
    half = SkyCoord(coords.ra, coords.dec, coords.distance, pm_ra_cosdec=[1, 2] * mas,
                    pm_dec=[0, 1] * mas, radial_velocity=[20, np.nan] * kms)  # fmt: skip
    with pytest.raises(ValueError, match="give ICRS coords, in which a NaN radial velocity"):
        model.hosts(half.galactic)


def test_a_new_cluster_that_was_trained_on_is_refused(path, tmp_path):
    table = cluster_table()
    table = table[[str(name) == CLUSTER for name in table["name"]]]
    table.write(tmp_path / "new.ecsv", format="ascii.ecsv")
    with pytest.raises(ValueError, match=f"{CLUSTER} was trained on, and would be a host twice"):
        changed(path, new_clusters=str(tmp_path / "new.ecsv"))


def test_few_clusters_have_fewer_columns_of_hosts(path, batch):
    config = read_checkpoint(path)["orrery"]["config"]["model"]
    few = build(config | {"clusters": ["NGC 104", "Pal 5"]})
    found = few.predict_step({k: v for k, v in some(batch, slice(0, 3)).items() if k != "host"})
    assert set(found) <= set(few.columns) and "host_2" in found and "host_3" not in found


@pytest.mark.filterwarnings("ignore")
def test_a_new_cluster_is_a_host_without_training(path, tmp_path, batch, rows):
    table = cluster_table()
    table[[str(name) == "NGC 6341" for name in table["name"]]].write(
        tmp_path / "new.ecsv", format="ascii.ecsv"
    )
    new = changed(path, new_clusters=str(tmp_path / "new.ecsv"))
    assert new.names[-1] == "NGC 6341"
    request = MockRequest(30, ["NGC 6341"], duration=0.1)
    (mock,) = new.generated(request)
    star = mock["kind"] == 0
    names = ("ra", "dec", "distance", "pmra", "pmdec", "radial_velocity")
    stars = {k: torch.from_numpy(mock[k][star & np.isfinite(mock["J_R"])]) for k in names}
    n = len(stars["ra"])
    nothing = {k: torch.full((n,), torch.nan).double() for k in ("parallax", "parallax_error")}
    errors = {k: torch.zeros(n).double() for k in ("pmra_error", "pmdec_error", "pmra_pmdec_corr",
                                                   "radial_velocity_error")}  # fmt: skip
    found = new.predict_step(
        stars | nothing | errors | {"distance_error": 0.02 * stars["distance"]}
    )
    assert (found["host"] == 6).double().mean() > 0.6
    others = new.predict_step(batch)
    torch.testing.assert_close(others["J_R"], rows["J_R"], equal_nan=True)
    assert others["host_true"].max() == 7, "the field comes last"


def test_a_checkpoint_gives_the_same_rows_again(path, batch, rows):
    again = load(path).predict_step(batch)
    for name, values in rows.items():
        torch.testing.assert_close(values, again[name], rtol=0, atol=0, equal_nan=True)


# --- densities ----------------------------------------------------------------------------------


def random_mixture(clusters=5, components=3, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    root = torch.tril(0.5 * normal(clusters, components, 3, 3), -1)
    root = root + torch.diag_embed((0.3 * normal(clusters, components, 3)).exp())
    return Mixture(
        normal(clusters, components).log_softmax(1), normal(clusters, components, 3), root
    )


def random_moments(n=5, seed=1):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn((n, 3, 6), generator=generator, dtype=torch.float64)
    mean = 10 * torch.randn((n, 3), generator=generator, dtype=torch.float64)
    return Moments(mean, torch.linalg.cholesky(a @ a.mT))


def test_monomials_times_coefficients_are_the_density():
    mixture, by = random_mixture(), random_moments()
    y = by.mean.repeat(20, 1) + 3 * torch.randn(100, 3).double()
    row = torch.arange(5).repeat(20)
    here = mixture.unwhitened(by)
    by_hand = (monomials(y)[:, None] * here.coefficients()[row]).sum(-1).logsumexp(1)
    torch.testing.assert_close(by_hand, here.log_p(y, row), rtol=1e-9, atol=1e-9)
    z = torch.linalg.solve_triangular(by.scale[row], (y - by.mean[row])[..., None], upper=False)
    log_det = by.scale.diagonal(dim1=1, dim2=2).log().sum(1)[row]
    expected = mixture.log_p(z[..., 0], row) - log_det
    torch.testing.assert_close(here.log_p(y, row), expected, rtol=1e-9, atol=1e-9)


def test_a_mixture_is_normalised():
    mixture = random_mixture(1, 3)
    line = torch.linspace(-9, 9, 73, dtype=torch.float64)
    grid = torch.cartesian_prod(line, line, line)
    total = mixture.log_p(grid, torch.zeros(len(grid), dtype=torch.long)).exp().sum() * 0.25**3
    assert float(total) == pytest.approx(1, abs=0.02)


def test_sums_over_draws_are_those_of_brute_force(model, batch):
    hosts = model.hosts_table()
    assert len(model.clusters) < 12, "all are near"
    draws = phase_space_draws(batch, 8)
    generator = torch.Generator().manual_seed(0)
    near = hosts.moments.mean[batch["host"].clamp_max(5)][:, None]
    y = near + 0.5 * torch.randn((len(near), 8, 3), generator=generator, dtype=torch.float64)
    log_weight = draws.log_weight.clone()
    log_weight[::5, 1] = -torch.inf  # a draw that is not bound
    every = torch.stack([hosts.log_p(y[:, k]) for k in range(8)], 1) + log_weight[..., None]
    torch.testing.assert_close(
        hosts.log_likelihood(y, log_weight), every.logsumexp(1), rtol=1e-6, atol=1e-5
    )


def test_far_clusters_are_compared_by_gaussians_convolved_with_the_errors(model):
    """As the mean of the density over many normal draws."""
    hosts = model.hosts_table()
    generator = torch.Generator().manual_seed(0)
    mean = hosts.moments.mean + 0.5
    root = 0.6 * hosts.moments.scale[[1, 2, 3, 4, 5, 0]]
    noise = torch.randn((len(mean), 20_000, 3), generator=generator, dtype=torch.float64)
    y = mean[:, None] + noise @ root.mT
    density = torch.stack([hosts.log_p(star)[:, :-1] for star in y])
    drawn = density.logsumexp(1) - math.log(density.shape[1])
    every = torch.arange(len(mean)).expand(len(mean), -1)
    exact = hosts.convolved(mean, root @ root.mT, every)
    matter = drawn > drawn.max(1, keepdim=True).values - 8
    assert matter.sum() >= len(mean)
    torch.testing.assert_close(exact[matter].double(), drawn[matter], rtol=0, atol=0.2)


def test_far_clusters_without_errors_are_compared_exactly(model, batch, monkeypatch):
    hosts = model.hosts_table()
    y = hosts.moments.mean[batch["host"].clamp_max(5)][:, None].expand(-1, 8, -1)
    log_weight = torch.zeros(y.shape[:2], dtype=torch.float64)
    exact = hosts.log_likelihood(y, log_weight)
    monkeypatch.setattr("orrery.models.gems.hosts.N_NEAR", 1)
    matter = exact > exact.max(1, keepdim=True).values - 20
    found = hosts.log_likelihood(y, log_weight)
    assert (matter.sum(1) > 1).any()
    torch.testing.assert_close(found[matter], exact[matter], rtol=1e-3, atol=1e-3)


def test_clusters_far_from_a_star_take_no_share_of_its_answer(batch, monkeypatch):
    """Whether all clusters, or the nearest alone, are compared by their mixtures."""
    shipped = load("gems")
    star = some({k: v for k, v in batch.items() if k != "host"}, slice(0, 60))
    found = shipped.predict_step(star)
    monkeypatch.setattr("orrery.models.gems.hosts.N_BY_MIXTURE", 150)
    every = shipped.predict_step(star)
    for name in ("p_clusters", "p_field"):
        torch.testing.assert_close(found[name], every[name], rtol=0, atol=0.02)
    assert not torch.equal(found["p_clusters"], every["p_clusters"])


def test_sums_of_exponentials_bear_minus_infinity():
    terms = torch.tensor([[[0.0, -torch.inf], [3.0, -200.0]]]).double()
    torch.testing.assert_close(log_sum_exp(terms, (1, 2)), terms.logsumexp((1, 2)))
    nothing = log_sum_exp(torch.full((1, 2, 2), -torch.inf).double(), (1, 2))
    assert float(nothing) < -50 or not nothing.isfinite()


def test_squared_distances_are_those_of_the_inverse_matrix():
    of = random_moments()
    generator = torch.Generator().manual_seed(2)
    a = torch.randn((7, 3, 5), generator=generator, dtype=torch.float64)
    error = a @ a.mT
    y = 10 * torch.randn((7, 3), generator=generator, dtype=torch.float64)
    covariance = of.scale @ of.scale.mT
    square, log_det = squared_distance(y, error, of.mean, covariance)
    total = error[:, None] + covariance
    offset = y[:, None] - of.mean
    expected = (offset[..., None, :] @ torch.linalg.solve(total, offset)[..., None])[..., 0, 0]
    torch.testing.assert_close(square.double(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(log_det.double(), torch.logdet(total), rtol=1e-4, atol=1e-4)


def test_the_jacobian_of_the_coordinates_is_that_of_finite_differences():
    J = torch.tensor([[120.0, -900.0, 40.0], [3.0, 10.0, 800.0]], dtype=torch.float64)
    for row in J:
        step = 1e-5
        columns = [(coordinates(row + step * e) - coordinates(row - step * e)) / (2 * step)
                   for e in torch.eye(3, dtype=torch.float64)]  # fmt: skip
        expected = torch.linalg.slogdet(torch.stack(columns, 1))[1]
        torch.testing.assert_close(log_jacobian(coordinates(row)), expected, rtol=1e-6, atol=1e-6)
    assert log_jacobian(torch.zeros(3).double()).isfinite(), "bounded at circular orbits"


def test_moments_are_not_widened_by_a_few_fast_stars():
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn((4000, 3), generator=generator, dtype=torch.float64)
    scale = torch.tensor([[2.0, 0, 0], [0.5, 1.0, 0], [-0.4, 0.3, 3.0]]).double()
    y = normal @ scale.T + 5
    far = y.clone()
    far[:40] = 500.0
    host = torch.zeros(4000, dtype=torch.long)
    clean, with_outliers = moments(y, host, 1), moments(far, host, 1)
    assert (clean.mean - 5).abs().max() < 0.15
    torch.testing.assert_close(clean.scale, with_outliers.scale, rtol=0.1, atol=0.05)
    with pytest.raises(ValueError, match="cluster 1 has 3 bound stars"):
        moments(y, torch.where(torch.arange(4000) < 3, 1, 0), 2)


# --- measurements -------------------------------------------------------------------------------


def test_draws_have_the_errors_and_the_correlation_of_the_measurements(batch):
    star = with_(some(batch, slice(0, 1)), distance=5, distance_error=0.5, pmra=1, pmra_error=0.2,
                 pmdec=-2, pmdec_error=0.1, pmra_pmdec_corr=0.8, radial_velocity=50,
                 radial_velocity_error=4)  # fmt: skip
    draws = phase_space_draws(star, 4096)
    seen = observed(draws.x[0], draws.v[0])
    for name, mean, error in (("distance", 5, 0.5), ("pmra", 1, 0.2), ("pmdec", -2, 0.1),
                              ("v_los", 50, 4)):  # fmt: skip
        values = getattr(seen, name)
        assert float(values.mean()) == pytest.approx(mean, abs=0.02 * error)
        assert float(values.std()) == pytest.approx(error, rel=0.02)
    correlation = torch.corrcoef(torch.stack([seen.pmra, seen.pmdec]))[0, 1]
    assert float(correlation) == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize(("parallax", "error"), [(0.2, 0.02), (0.1, 0.05), (-0.1, 0.1)])
def test_distances_from_a_parallax_have_the_weight_of_its_likelihood(batch, parallax, error):
    """Means of a decreasing density over the draws equal integrals over the distance."""
    unknown = {"distance": torch.nan, "parallax": parallax, "parallax_error": error}
    star = with_(some(batch, slice(0, 1)), **unknown)
    draws = phase_space_draws(star, 8192)
    D, weight = draws.distance[0], draws.log_weight[0].exp()
    grid = torch.linspace(math.log(0.06), math.log(180), 4000, dtype=torch.float64).exp()
    likelihood = torch.exp(-0.5 * ((parallax - 1 / grid) / error) ** 2)
    measure = likelihood * grid**4 * grid  # dD = D d ln D
    ratio = []
    for length in (2.0, 5.0):
        ours = (weight * (-D / length).exp()).sum()
        exact = (measure * (-grid / length).exp()).sum()
        ratio.append(float(ours / exact))
    assert ratio[0] == pytest.approx(ratio[1], rel=0.03)


# --- mock catalogues ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mock(model):
    request = MockRequest(40, [CLUSTER, "Pal 5"], duration=0.1, seed=1)
    columns = model.generated_columns(request)
    parts = list(model.generated(request))
    assert all(set(part) == set(columns) for part in parts)
    return {name: np.concatenate([part[name] for part in parts]) for name in columns}, columns


def test_a_mock_catalogue_has_as_many_stars_of_each_cluster_as_asked_for(mock):
    rows, columns = mock
    stars = rows["kind"] == 0
    assert np.bincount(rows["cluster"][stars]).tolist() == [40, 40]
    assert columns["cluster"].labels == (CLUSTER, "Pal 5")
    assert np.all((rows["time"] >= -0.1) & (rows["time"] <= 0))
    assert np.all(rows["v_core"] >= rows["v_infinity"]) and np.all(rows["v_infinity"] > 0)
    assert np.all((rows["mass"][stars] >= 0.1) & (rows["mass"][stars] <= 1.4))
    assert np.all(rows["mass"][~stars] >= 0.2)


def test_a_mock_catalogue_has_units_and_goes_back_into_the_model(model, mock, tmp_path):
    from orrery.evaluation.evaluate import generate

    rows, _ = mock
    request = MockRequest(40, [CLUSTER, "Pal 5"], duration=0.1, seed=1)
    generate(model, request, "gems", str(tmp_path / "mock.ecsv"))
    table = Table.read(tmp_path / "mock.ecsv")
    units = {"mass": "Msun", "v_core": "km/s", "time": "Gyr", "J_R": "kpc km/s", "ra": "deg",
             "distance": "kpc", "pmra": "mas/yr", "radial_velocity": "km/s"}  # fmt: skip
    for name, unit in units.items():
        assert table[name].unit == u.Unit(unit), name
        np.testing.assert_allclose(table[name], rows[name], rtol=1e-12)
    assert set(table["cluster"]) == {CLUSTER, "Pal 5"} and set(table["kind"]) >= {"star"}
    stars = table[np.isfinite(table["J_R"])]
    stars["distance_error"] = 0.02 * stars["distance"]
    with warnings.catch_warnings(action="ignore"):
        found = model.predict(stars)
    assert np.mean(found["host"] == stars["cluster"]) > 0.75
    spread = np.maximum(10 * found["L_z_error"], 1)
    assert np.mean(np.abs(found["L_z"] - stars["L_z"]) < spread) > 0.95, "actions are conserved"


def test_a_mock_without_positions_has_actions_alone(model):
    request = MockRequest(20, [CLUSTER], duration=0.05, positions=False)
    (rows,) = model.generated(request)
    assert set(rows) == set(model.generated_columns(request))
    assert "ra" not in rows and np.isfinite(rows["J_R"]).mean() > 0.5


def test_a_request_for_something_else_is_refused(model):
    from orrery.datamodules.dataset import GenerationRequest

    with pytest.raises(ValueError, match=r"data=gems_mock data\.n_stars=1000"):
        list(model.generated(GenerationRequest(5)))


@pytest.mark.filterwarnings("ignore")
def test_a_catalogue_without_true_hosts_is_predicted_and_not_scored(model, path, tmp_path, batch):
    from conftest import command

    names = ("ra", "dec", "distance", "distance_error", "pmra", "pmdec", "radial_velocity")
    stars = Table({name: batch[name].numpy() for name in names})
    stars.write(tmp_path / "stars.fits")
    done = command("evaluate.py", f"checkpoint={path}", f"data.path={tmp_path}/stars.fits",
                   f"output={tmp_path}/hosts.fits", f"hydra.run.dir={tmp_path}/run")  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = Table.read(tmp_path / "hosts.fits", 1)
    assert len(found) == len(stars) and set(found["host"]) <= set(model.clusters)
    assert "host_true" not in found.colnames and not (tmp_path / "run/metrics.json").exists()
