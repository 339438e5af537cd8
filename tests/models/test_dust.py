"""The dust map: its derivative, its answers, its file, and bad catalogues."""

import json
import math
import sys
from types import SimpleNamespace

import healpy
import numpy as np
import pytest
import torch
from astropy import units as u
from astropy.coordinates import Galactocentric, SkyCoord
from astropy.io import fits
from astropy.table import Table
from conftest import command, train
from dustmaps.edenhofer2023 import Edenhofer2023Query

from orrery import pretrained
from orrery.checkpoint import RECORD, read_checkpoint
from orrery.datamodules.dust import DustData, resolution
from orrery.models.dust.evaluation import (
    MapPosterior,
    coarse_map_warnings,
    map_metrics,
    sampled_stars,
    student_coverage,
)
from orrery.models.dust.field import Density, Extinction
from orrery.models.dust.groups import group_stars
from orrery.models.dust.hmc import draw
from orrery.models.dust.migrations import inference_setting, no_substructure_nearer_dust_or_disc
from orrery.models.dust.outputs import BIT
from orrery.models.dust.prior import Prior, Processes
from orrery.physics.gaussian_process import healpix
from orrery.physics.gaussian_process.icr import ICR, grids, matern

PLACES = SkyCoord(
    [10.0, 100.0] * u.deg, [5.0, -40.0] * u.deg, distance=700 * u.pc, frame="galactic"
)
SMALL = {"nside": 4, "n_radial": 8, "nearest": 100.0, "farthest": 1000.0}


@pytest.fixture(scope="module")
def dust(runs):
    return pretrained.load(runs("dust") / "best.ckpt")


@pytest.fixture(scope="module")
def model():
    """Extinction of a few stars behind a small sky, in float64."""
    levels = grids(8, 12, 100.0, 1000.0)
    gp, by_scale = Processes("icr", levels, matern, learned=True).at(150.0)
    gp.to(dtype=torch.float64), by_scale.to(dtype=torch.float64)
    height = levels[-1].positions[..., 2].abs()
    prior = Prior(gp, (-8.0, 1.0), (1.0, 0.5), (0.1, 0.3), by_scale, (-8.5, 0.7), 0.003 * height)
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    parallax = 1 + 4 * torch.rand(40, generator=generator, dtype=torch.float64)
    stars = group_stars(levels[-1], direction, parallax, 0.05 * parallax, torch.float64)
    latents = torch.randn(3, prior.n_latents, generator=generator, dtype=torch.float64)
    return prior, stars, latents, generator


def test_the_derivative_is_that_of_differences_and_has_its_transpose(model):
    prior, stars, latents, generator = model
    at = Extinction(prior, stars, latents)
    v = torch.randn(latents.shape, generator=generator, dtype=torch.float64)
    step = 1e-5
    up, down = (Extinction(prior, stars, latents + s * step * v).value for s in (1, -1))
    torch.testing.assert_close(at.jvp(v), (up - down) / (2 * step), rtol=1e-5, atol=1e-9)
    w = torch.randn(at.value.shape, generator=generator, dtype=torch.float64)
    torch.testing.assert_close((at.jvp(v) * w).sum(1), (v * at.vjp(w)).sum(1))
    torch.testing.assert_close(at.vjp_mean(w), at.vjp(w).mean(0, keepdim=True))


def test_the_metric_is_that_of_the_derivative(model):
    prior, stars, latents, generator = model
    prior = prior._replace(by_scale=None)
    at = Extinction(prior, stars, latents)
    weight = 1 + torch.rand(len(stars.parallax), generator=generator, dtype=torch.float64)
    v = torch.randn(2, prior.n_latents, generator=generator, dtype=torch.float64)
    exact = [at.vjp(weight * at.jvp(one)).mean(0) for one in v[:, None]]
    metric = at.metric(weight)
    torch.testing.assert_close(metric(v), torch.stack(exact))
    torch.testing.assert_close(metric(v.repeat(3, 1))[:2], torch.stack(exact))


def test_the_field_follows_its_scale():
    """It is the field of another scale at the same excitations, to second order."""
    levels = grids(8, 12, 100.0, 1000.0)
    gp, by_scale = Processes("icr", levels, matern, learned=True).at(150.0)
    xi = torch.randn(4, gp.n_excitations, generator=torch.Generator().manual_seed(0))
    there = ICR(levels, matern(150.0 * math.exp(0.05))).apply(xi)
    here = gp.apply(xi)
    off = (here + 0.05 * by_scale.apply(xi) - there).std() / (there - here).std()
    assert float(off) < 0.05


def test_draws_of_hmc_hold_what_is_measured_and_leave_the_rest_to_the_prior(model):
    generator = model[-1]
    levels = grids(4, 12, 100.0, 1000.0)
    gp, _ = Processes("icr", levels, matern, learned=False).at(150.0)
    gp.to(dtype=torch.float64)
    prior = Prior(gp, (-8.0, 1.0), (1.0, 0.5))
    # three stars in the middle of different pixels, measured to 10%
    pixel = torch.tensor([5, 90, 170])
    parallax = torch.tensor([1.5, 2.0, 3.0], dtype=torch.float64)
    direction = levels[-1].positions[pixel, 0]
    known = group_stars(levels[-1], direction, parallax, 0.05 * parallax, torch.float64)
    value = 3 * Extinction(prior, known, torch.zeros(1, prior.n_latents, dtype=torch.float64)).value
    error = 0.1 * value[0]
    start = torch.randn(8, prior.n_latents, generator=generator, dtype=torch.float64)

    def log_likelihood(rho):
        found = known.integral(rho)
        return -0.5 * ((found - value[0]) / error).square().sum(1)

    drawn = draw(prior, log_likelihood, known, error**2, start, transitions=100, seed=0)
    u = drawn.latents.flatten(0, 1)
    found = Extinction(prior, known, u).value
    # of some tens of effective draws; the middle of the prior is 6.7 errors below
    assert ((found.mean(0) - value[0]).abs() < 0.8 * error).all()
    torch.testing.assert_close(found.std(0), error, rtol=0.4, atol=0)
    # three numbers out of thousands are not those of the prior
    assert float(u.var(0).mean()) == pytest.approx(1, abs=0.03)


def test_density_is_log_normal_as_the_prior_says(model):
    prior, _, _, generator = model
    prior = prior._replace(decline=0.0)
    latents = torch.randn(200, prior.n_latents, generator=generator, dtype=torch.float64)
    log_rho = Density(prior, latents).log
    # m ~ N(-8, 1), and the mean of a^2 is exp(2 0.5^2)
    variance = 1 + math.exp(2 * 0.25)
    assert float(log_rho.mean()) == pytest.approx(-8, abs=0.3)
    assert float(log_rho.var()) == pytest.approx(variance, rel=0.25)


def test_a_query_counts_a_part_of_a_voxel_and_grows_outwards(dust):
    r = np.linspace(80, 1200, 60)
    coords = SkyCoord(np.full(60, 30.0) * u.deg, 10 * u.deg, distance=r * u.pc, frame="galactic")
    mean, std, samples = (dust.query(coords, mode) for mode in ("mean", "std", "samples"))
    assert (np.diff(mean) > 0).all() and (std[1:] > 0).all()
    assert samples.shape == (len(dust.posterior), 60)
    np.testing.assert_allclose(samples.mean(0), mean, rtol=1e-5)
    density = dust.query(coords, integrated=False)
    middle = np.searchsorted(r, 500)
    slope = (mean[middle + 1] - mean[middle]) / (r[middle + 1] - r[middle])
    assert density[middle : middle + 2].min() <= slope * 1.0001
    assert slope <= density[middle : middle + 2].max() * 1.0001
    far = SkyCoord(0 * u.deg, 0 * u.deg, distance=5000 * u.pc, frame="galactic")
    assert np.isnan(dust.query(far))


def test_a_query_is_interpolated_between_pixels(dust):
    """At a pixel's centre it is the pixel's, and there is no step from one to the next."""
    centre, density = dust.grid.positions[5, 6], dust.rho().mean(0)[5, 6]

    def there(xyz):
        return SkyCoord(*(xyz * u.pc), representation_type="cartesian", frame="galactic")

    found = dust.query(there(centre.numpy()), integrated=False)
    assert found == pytest.approx(float(density), rel=1e-4)
    other = dust.grid.positions[healpix.neighbours(dust.grid.nside, torch.tensor([5]))[0, 1], 6]
    line = centre + torch.linspace(0, 1, 500)[:, None] * (other - centre)
    line = line / line.norm(dim=1, keepdim=True) * centre.norm()
    for mode in ("mean", "std"):
        values = dust.query(there(line.numpy().T), mode)
        steps = np.abs(np.diff(values))
        assert steps.max() < 0.05 * np.ptp(values)


def test_coordinates_without_a_distance_are_refused(dust):
    with pytest.raises(ValueError, match="have no distance"):
        dust.query(SkyCoord(0 * u.deg, 0 * u.deg, frame="galactic"))
    here = SkyCoord(0 * u.deg, 0 * u.deg, distance=1 * u.kpc, frame="galactic")
    with pytest.raises(ValueError, match="mode is 'median'"):
        dust.query(here, "median")


def test_equatorial_and_galactic_columns_give_the_same(dust):
    coords = SkyCoord([10.0, 200.0] * u.deg, [5.0, -60.0] * u.deg, frame="galactic")
    rest = {"distance": [300.0, 800.0]}
    galactic = dust.predict({"l": coords.l.deg, "b": coords.b.deg, **rest})
    equatorial = dust.predict({"ra": coords.icrs.ra.deg, "dec": coords.icrs.dec.deg, **rest})
    np.testing.assert_allclose(galactic["extinction"], equatorial["extinction"], rtol=1e-5)
    there = SkyCoord(coords.l, coords.b, distance=rest["distance"] * u.pc, frame="galactic")
    np.testing.assert_allclose(galactic["extinction"], dust.query(there), rtol=1e-5)


def test_flags_say_where_the_map_ends_and_where_it_has_no_stars(dust):
    empty = int((dust.n_stars == 0).nonzero()[0])
    there = dust.grid.positions[empty, 0]
    sky = SkyCoord(*there.tolist(), representation_type="cartesian", frame="galactic").spherical
    full = int(dust.n_stars.argmax())
    other = SkyCoord(*dust.grid.positions[full, 0].tolist(), frame="galactic",
                     representation_type="cartesian").spherical  # fmt: skip
    found = dust.predict({
        "l": [other.lon.deg] * 3 + [sky.lon.deg],
        "b": [other.lat.deg] * 3 + [sky.lat.deg],
        "distance": [10.0, 500.0, 9000.0, 500.0],
    })  # fmt: skip
    assert found["flags"].tolist() == [1, 0, 2, 4]
    here = SkyCoord(other.lon, other.lat, distance=10 * u.pc, frame="galactic")
    assert found["extinction"][0] == pytest.approx(float(dust.query(here)), rel=1e-4)
    assert 0 < found["extinction"][0] < found["extinction"][1]


def test_the_map_is_a_file_in_the_layout_of_dustmaps(runs, dust, tmp_path):
    best = runs("dust") / "best.ckpt"
    done = command("evaluate.py", f"checkpoint={best}", f"output={tmp_path}/map.fits",
                   f"hydra.run.dir={tmp_path}/run")  # fmt: skip
    assert done.returncode == 0, done.stderr
    with fits.open(tmp_path / "map.fits") as hdus:
        assert [hdu.name for hdu in hdus] == [
            "PRIMARY", "MEAN", "MEAN OF INTEGRATED INNER 69 PC", "STD.",
            "STD. OF INTEGRATED INNER 69 PC", "RADIAL PIXEL CENTERS", "RADIAL PIXEL BOUNDARIES",
        ]  # fmt: skip
        mean, bounds = hdus["MEAN"].data, hdus[-1].data["radial pixel boundaries"]
        assert hdus["MEAN"].header["ORDERING"] == "NEST"
        assert mean.shape == (12, 192) and (mean > 0).all()
        np.testing.assert_allclose(mean.T, dust.rho().mean(0), rtol=1e-5)
        assert bounds[0] == pytest.approx(69) and len(bounds) == 13
    # dustmaps counts half a shell too much or too little
    query = Edenhofer2023Query(str(tmp_path / "map.fits"), integrated=True)
    np.testing.assert_allclose(query.query(PLACES), dust.query(PLACES), rtol=0.4)


def test_a_map_of_ones_own_stars_is_written_without_them(tmp_path):
    """By a checkpoint of a catalogue, also where that has moved; and its stars are not scored."""
    generator = np.random.default_rng(0)
    n = 400
    distance = generator.uniform(100, 1000, n)
    stars = {"l": generator.uniform(0, 360, n), "b": generator.uniform(-90, 90, n)}
    stars |= {"parallax": 1e3 / distance, "parallax_error": np.full(n, 0.05)}
    stars |= {"extinction": 3e-4 * distance, "extinction_error": np.full(n, 0.03)}
    Table(stars).write(tmp_path / "stars.csv")
    train("dust", tmp_path / "run", f"data.path={tmp_path}/stars.csv", "data.n_stars=9")
    (tmp_path / "stars.csv").rename(tmp_path / "moved.csv")
    words = [f"checkpoint={tmp_path}/run/best.ckpt", f"hydra.run.dir={tmp_path}/map"]
    done = command("evaluate.py", *words, f"output={tmp_path}/map.fits")
    assert done.returncode == 0, done.stderr
    assert "not scored" in done.stdout and "stars.csv" in done.stdout
    with fits.open(tmp_path / "map.fits") as hdus:
        assert "chi2" not in done.stdout and len(hdus) > 1
    done = command("evaluate.py", *words, f"output={tmp_path}/samples.fits", "columns=[samples]")
    assert done.returncode == 0 and (tmp_path / "samples.fits").exists()


@pytest.mark.parametrize(
    "distance",
    [{"parallax": 3.0, "parallax_error": 100.0}, {"distance": 300.0, "distance_error": 1e6}],
)
def test_an_unknown_distance_gives_a_wide_answer(dust, distance):
    star = {"l": [80.0], "b": [-10.0]} | {name: [value] for name, value in distance.items()}
    with pytest.warns(UserWarning, match="flag poor_distance"):
        (row,) = dust.predict(star)
    ends = [
        dust.predict({"l": [80.0], "b": [-10.0], "distance": [d]})["extinction"][0]
        for d in (float(dust.grid.boundaries[0]), float(dust.grid.boundaries[-1]))
    ]
    assert row["flags"] & BIT["poor_distance"]
    assert row["extinction_std_distance"] > 0.15 * (ends[1] - ends[0])
    assert ends[0] < row["extinction"] < ends[1]


def test_a_distance_in_kpc_without_a_unit_is_doubted(dust):
    stars = {"l": [80.0, 120.0], "b": [-10.0, 5.0], "distance": [0.4, 0.8]}
    with pytest.raises(ValueError, match=r"are they kpc\? data\.units\.<role>=<unit> states it"):
        dust.predict(stars)
    stated = dust.predict(stars, units={"distance": "kpc"})
    pc = dust.predict(stars | {"distance": [400.0, 800.0]})
    np.testing.assert_allclose(stated["extinction"], pc["extinction"])
    with pytest.warns(UserWarning, match=r"(?s)median is 3: are they kpc.*data.units.distance"):
        dust.predict(stars | {"distance": [2.0, 4.0]})


def test_query_takes_any_frame_and_no_places(dust):
    place = SkyCoord(l=80 * u.deg, b=-10 * u.deg, distance=400 * u.pc, frame="galactic")
    other = place.transform_to(Galactocentric())
    assert dust.query(other) == pytest.approx(dust.query(place), rel=1e-5)
    assert dust.query(place[None][:0]).shape == (0,)


def test_samples_are_a_file_of_dustmaps_in_nested_order(runs, dust, tmp_path):
    best = runs("dust") / "best.ckpt"
    done = command("evaluate.py", f"checkpoint={best}", f"output={tmp_path}/samples.fits",
                   "columns=[samples]", f"hydra.run.dir={tmp_path}/run")  # fmt: skip
    assert done.returncode == 0, done.stderr
    with fits.open(tmp_path / "samples.fits") as hdus:
        assert [hdu.name for hdu in hdus] == [
            "PRIMARY", "SAMPLES", "INTEGRATED INNER 69 PC", "RADIAL PIXEL CENTERS",
            "RADIAL PIXEL BOUNDARIES",
        ]  # fmt: skip
        nside, density = hdus["SAMPLES"].header["NSIDE"], hdus["SAMPLES"].data
    # at the centres of two voxels, as healpy knows them
    pixel, shell = np.array([50, 150]), 5
    lon, lat = healpy.pix2ang(nside, pixel, nest=True, lonlat=True)
    distance = float(dust.grid.centres[shell]) * u.pc
    there = SkyCoord(lon * u.deg, lat * u.deg, distance=distance, frame="galactic")
    ours = dust.query(there, "samples", integrated=False)
    np.testing.assert_allclose(density[:, shell, pixel], ours, rtol=1e-5)
    query = Edenhofer2023Query(str(tmp_path / "samples.fits"), load_samples=True)
    np.testing.assert_allclose(query.query(there, mode="samples"), ours.T, rtol=1e-3)
    # who took the pixels for those of RING would see another sky
    ring = density[:, shell, healpy.nest2ring(nside, pixel)]
    assert not np.allclose(ring, ours, rtol=0.1)


def test_expected_coverage_is_that_of_student():
    assert student_coverage(1, 1.0) == pytest.approx(0.5, abs=1e-4)  # Cauchy
    assert student_coverage(4, 1.0) == pytest.approx(0.6261, abs=1e-4)
    assert student_coverage(10_000, 1.0) == pytest.approx(0.6827, abs=1e-3)
    assert student_coverage(10_000, 4.0) == pytest.approx(0.9545, abs=1e-3)


def test_a_star_of_negative_parallax_is_far_away(dust):
    star = {"l": [30.0] * 3, "b": [10.0] * 3, "parallax_error": [0.3] * 3}
    found = dust.predict(star | {"parallax": [0.1, -0.2, 5.0]})
    assert (np.asarray(found["flags"]) & 3).tolist() == [2, 2, 0]


def test_columns_of_extinctions_are_checked_and_warned_of(dust):
    """Units, values that are none, names that are not there, and names in capitals."""
    star = {"l": [30.0] * 2, "b": [10.0] * 2, "distance": [300.0] * 2}
    measured = Table(star | {"extinction": [200.0, -99999.0], "extinction_error": [30.0, 30.0]})
    for name in ("extinction", "extinction_error"):
        measured[name].unit = "mmag"
    with pytest.warns(UserWarning, match="'extinction' is in mmag, and is taken as E of Zhang"):
        found = dust.predict(measured)
    assert found["extinction_true"][0] == pytest.approx(0.2)
    assert np.isfinite(found["pull"]).tolist() == [True, False]
    with pytest.raises(ValueError, match="no column 'e_dd'"):
        dust.predict(star, columns={"distance_error": "e_dd"})
    with pytest.raises(ValueError, match=r"columns.distance_err is none .* near: distance_error"):
        dust.predict(star, columns={"distance_err": "e_d"})
    with pytest.warns(UserWarning, match=r"'Distance_Error' is not used; if it is distance_error"):
        dust.predict(star | {"Distance_Error": [30.0] * 2})
    with pytest.raises(ValueError, match=r"'b': -99\.0 is not a valid Galactic latitude"):
        dust.predict(star | {"b": [-99.0] * 2})
    with pytest.raises(ValueError, match="'l' holds what is no number"):
        dust.predict(star | {"l": ["05:34:31", "05:34:31"]})


def table():
    return Table(DustData(**SMALL, n_stars=400).simulate("fit"))


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda t: (
                t.__setitem__("parallax_error", 0 * t["parallax"])
                or t["parallax"].__setitem__(3, -0.2)
            ),
            "-0.2 without an error gives no distance",
        ),
        (
            lambda t: t["extinction"].__setitem__(3, np.nan),
            "'extinction': nan is not a valid extinction",
        ),
        (
            lambda t: t["extinction_error"].__setitem__(0, 0.0),
            "0.0 is not a valid error of the extinction",
        ),
        (lambda t: t.remove_columns(["extinction"]), "no column 'extinction'"),
        (lambda t: t.rename_columns(["l", "b"], ["ecl_lon", "ecl_lat"]), "ecliptic coordinates"),
        (lambda t: t.remove_rows(slice(50, None)), "stars are left to make a map of"),
        (lambda t: setattr(t["parallax"], "unit", "pc"), "'parallax' is in 'pc'"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*are left out")
def test_bad_catalogues_are_refused(change, message, tmp_path):
    stars = table()
    change(stars)
    stars.write(tmp_path / "stars.ecsv")
    with pytest.raises(ValueError, match=message):
        DustData(**SMALL, path=str(tmp_path / "stars.ecsv"), val_fraction=0).setup("fit")


def test_stars_beyond_the_map_are_left_out_with_a_warning(tmp_path):
    stars = table()
    stars["parallax"][:40] = 0.5
    stars["parallax_error"][:40] = 0.01
    stars["parallax"][40:50] = -1.0
    stars.write(tmp_path / "stars.ecsv")
    data = DustData(**SMALL, path=str(tmp_path / "stars.ecsv"), val_fraction=0, test_fraction=0)
    said = r"10 stars of a parallax below 3 errors and 40 beyond 1000 pc are left out"
    with pytest.warns(UserWarning, match=said):
        data.setup("fit")
    assert len(data.training_batch()["row"]) == len(stars) - 50


def test_the_catalogue_of_zhang_green_and_rix_is_read_as_it_is(tmp_path):
    stars = table()
    stars.write(tmp_path / "plain.hdf5", path="stars")
    arrays = stars["l", "b"].copy()
    for more in ("", "_error"):  # Teff, [Fe/H], log g, E, parallax
        rest = np.full((len(stars), 3), 7.0)
        pair = [stars[f"extinction{more}"], stars[f"parallax{more}"]]
        arrays["stellar_params_err" if more else "stellar_params_est"] = np.c_[rest, *pair]
    arrays.write(tmp_path / "zgr23.hdf5", path="stars")
    found = [
        DustData(**SMALL, path=str(tmp_path / name), group="stars", val_fraction=0)
        for name in ("plain.hdf5", "zgr23.hdf5")
    ]
    for data in found:
        data.setup("fit")
    plain, theirs = (data.training_batch() for data in found)
    for name in ("direction", "parallax", "parallax_error", "extinction", "extinction_error"):
        torch.testing.assert_close(theirs[name], plain[name])
    arrays["quality_flags"] = np.arange(len(stars)) % 4 * 4
    arrays.write(tmp_path / "flagged.hdf5", path="stars")
    done = command("train.py", "model=dust", "experiment=dust_quick", "data.group=stars",
                   f"data.path={tmp_path / 'flagged.hdf5'}", 'data.train_where="quality_flags < 8"',
                   "data.test_fraction=0", f"hydra.run.dir={tmp_path / 'run'}")  # fmt: skip
    assert done.returncode == 0, done.stderr
    behind = int(pretrained.load(tmp_path / "run" / "best.ckpt").n_stars.sum())
    assert 0.4 * len(stars) < behind <= 0.5 * len(stars), "those beyond the map are left out, too"


def test_extinction_in_magnitudes_is_converted(tmp_path):
    stars = table()
    stars.write(tmp_path / "e.ecsv")
    stars["extinction"] *= 2.8
    stars["extinction_error"] *= 2.8
    stars.write(tmp_path / "av.ecsv")
    found = []
    for name, unit in (("e", "E"), ("av", "A_V")):
        data = DustData(**SMALL, path=str(tmp_path / f"{name}.ecsv"), extinction_unit=unit,
                        val_fraction=0)  # fmt: skip
        data.setup("fit")
        found.append(data.training_batch()["extinction"])
    torch.testing.assert_close(*found)
    with pytest.raises(ValueError, match="it is E, of Zhang"):
        DustData(**SMALL, extinction_unit="mag")


def batch_of(columns, **settings):
    data = DustData(**SMALL, **settings)
    data.table, data.split = Table(columns), "all"
    (batch,) = data.prediction_batches()
    return batch


def test_other_extinctions_are_converted_with_the_scatter_of_the_conversion():
    """A_G is 0.78 A_V, with a scatter of 8%; E(B-V) is A_V / 3.1."""
    star = {"l": [30.0], "b": [10.0], "distance": [300.0], "extinction_error": [0.01]}
    for unit, value, scatter in (("A_G", 2.8 * 0.78, 0.08), ("E_BV", 2.8 / 3.1, 0.06)):
        batch = batch_of(star | {"extinction": [value]}, extinction_unit=unit)
        assert float(batch["extinction"]) == pytest.approx(1)
        error = math.hypot(0.01 / value, scatter)
        assert float(batch["extinction_error"]) == pytest.approx(error, rel=1e-5)


def test_percentiles_of_a_distance_are_those_of_its_parallax():
    star = {"l": [30.0], "b": [10.0], "distance": [500.0]}
    found = batch_of(star | {"distance_lower": [400.0], "distance_upper": [800.0]})
    assert float(found["parallax"] - found["parallax_error"]) == pytest.approx(1e3 / 800)
    assert float(found["parallax"] + found["parallax_error"]) == pytest.approx(1e3 / 400)
    with pytest.raises(ValueError, match=r"'distance_lower'.*not below the 84th percentile"):
        batch_of(star | {"distance_lower": [800.0], "distance_upper": [400.0]})
    with pytest.raises(ValueError, match="no column 'distance_upper'"):
        batch_of(star | {"distance_lower": [400.0]})


def test_the_resolution_follows_from_the_number_of_stars():
    assert resolution(4000, None, None) == (8, 36)
    assert resolution(20_000, None, None) == (16, 68)
    assert resolution(1e7, None, None) == (32, 132)
    assert resolution(1e7, 4, None) == (4, 20) and resolution(1e7, 4, 12) == (4, 12)
    data = DustData(None, None, 100.0, 1000.0, n_stars=300, val_fraction=0)
    data.setup("fit")
    assert data.model_arguments() == data.inferred_settings() == {"nside": 8, "n_radial": 36}


@pytest.mark.parametrize(
    "words, message",
    [
        (["model.nside=12"], "needs a power of two"),
        (["model.n_radial=35"], "do not come of whole shells"),
        (["model.nside=1024", "model.n_radial=516"], "GB"),
        (
            [
                "model.nside=32",
                "model.n_radial=36",
                "model.inference=hmc",
                "model.transitions=30000",
            ],
            "model.transitions=<less>",
        ),
    ],
)
def test_grids_that_cannot_be_are_refused_before_anything_starts(words, message):
    done = command("train.py", "model=dust", *words)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert message in done.stderr, done.stderr
    assert sys.getsizeof(done.stderr) < 4000


def test_the_other_prior_serves_as_well(tmp_path):
    done = command("train.py", "model=dust", "experiment=dust_quick", "model.prior=vecchia",
                   f"hydra.run.dir={tmp_path}")  # fmt: skip
    assert done.returncode == 0, done.stderr
    ours = json.loads((tmp_path / "metrics.json").read_text())
    assert ours["icr_covariance_error"] < 0.02
    assert ours["heldout_lpd"] > ours["heldout_lpd_constant"]
    assert ours["heldout_lpd"] < ours["heldout_lpd_truth"], "nothing beats the truth"
    message = command("train.py", "model=dust", "model.inference=meanfeld").stderr
    assert "model.inference is 'meanfeld'; it is one of geovi, mgvi, hmc, meanfield" in message
    message = command("train.py", "model=dust", "model.prior=kriging").stderr
    assert "model.prior is 'kriging'; it is icr or vecchia" in message


SCALE = ["model.scale_error=0.3", "model.tolerance=1e-3"]


@pytest.mark.parametrize("words", [["model.inference=meanfield"], ["model.inference=mgvi"], SCALE])
def test_other_fits_serve_as_well_and_can_be_loaded(words, tmp_path):
    done = command("train.py", "model=dust", "experiment=dust_quick", "model.epochs=4", *words,
                   f"hydra.run.dir={tmp_path}")  # fmt: skip
    assert done.returncode == 0, done.stderr
    ours = json.loads((tmp_path / "metrics.json").read_text())
    assert ours["heldout_lpd_constant"] < ours["heldout_lpd"] < ours["heldout_lpd_truth"]
    if words == SCALE:
        assert ours["scale_pc"] != pytest.approx(150, abs=1), "learned"
        assert abs(math.log(ours["scale_pc"] / 150)) < 4 * 0.3
    again = command("evaluate.py", f"checkpoint={tmp_path}/best.ckpt",
                    f"hydra.run.dir={tmp_path}/again")  # fmt: skip
    assert again.returncode == 0, again.stderr
    theirs = json.loads((tmp_path / "again" / "metrics.json").read_text())
    assert theirs["heldout_lpd"] == pytest.approx(ours["heldout_lpd"], abs=1e-4)


def test_a_checkpoint_of_the_first_version_has_todays_settings():
    checkpoint = read_checkpoint(pretrained.find("dust"))
    model = checkpoint[RECORD]["config"]["model"]
    assert model["inference"] == "hmc" and "guide" not in model
    old = {"even": torch.tensor([1e-4, 0.1]), "mean": torch.zeros(1, 3)}
    config, state = inference_setting({"model": {"nside": 8}, "data": {}}, old)
    assert config["model"] == {"nside": 8, "clumps": 0.0, "inference": "geovi"}
    assert set(state) == {"constant_density", "mean"}
    config, state = no_substructure_nearer_dust_or_disc(config, state)
    assert config["model"]["nearer_error"] == 0 and state["substructure"] == 0
    assert state["mean"].shape == (1, 5)


@pytest.mark.parametrize("alike", [True, False])
def test_residuals_of_neighbours_that_are_alike_are_warned_of(dust, alike):
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(400, 3, generator=generator, dtype=torch.float64)
    stars = {"direction": direction, "parallax": torch.full((400,), 2.0, dtype=torch.float64)}
    side, noise = direction[:, 0].sign(), torch.randn(400, generator=generator)
    rows = {"flags": torch.zeros(400, dtype=torch.int16), "pull": noise + alike * side}
    model = SimpleNamespace(grid=dust.grid, predict_step=lambda stars: rows)
    found = coarse_map_warnings(model, stars)
    assert len(found) == alike
    assert not alike or "model.nside=8 model.n_radial=36" in found[0]


def test_stars_are_scored_batch_by_batch_as_all_together(dust):
    """In batches of 100 and of all: the same metrics, and no more stars for figures than asked."""
    stars = table()
    stars["extinction"][::7] = np.nan
    scores, n_known = [], int(np.isfinite(stars["extinction"]).sum())
    for size in (100, 10_000):
        data = DustData(**SMALL, predict_batch_size=size)
        data.table, data.split = stars, "all"
        posterior = MapPosterior(dust.grid, dust.gp, dust.kernel(150.0), dust.rho().log(),
                                 dust.stars, False, dust.constant_density)  # fmt: skip
        scores.append(map_metrics(posterior, data))
        assert len(sampled_stars(data, 10_000)["row"]) == n_known
        few = sampled_stars(data, 40)["row"]
        assert 30 <= len(few) <= 40 and int(few[-1]) > 0.8 * len(stars)
    assert scores[0] == pytest.approx(scores[1], rel=1e-6)
