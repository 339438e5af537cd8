"""Which stars a list holds: the share that is selected, members by name, where they are."""

import math
from functools import lru_cache

import numpy as np
import pytest
import torch
import xarray as xr
from astropy.table import Table
from test_gc_sky import PLACE, D, at_truth, mock, model, posterior_of

from orrery.evaluation.posterior_file import write_draws
from orrery.models.gc_emulator.figure_data import sky_profiles
from orrery.models.gc_emulator.posterior import cluster_of, whitened
from orrery.models.gc_emulator.selection import selection_of
from orrery.physics.clusters import cluster_stars
from orrery.physics.clusters import lowered_isothermal as limepy
from orrery.physics.clusters.observations import SkySelection

__all__ = ["model"]  # the fixture


@lru_cache
def places(W0, g):
    """Of 100,000 stars of a cluster of the mock's size and distance, (stars, 2), arcmin."""
    one = torch.ones(1, dtype=D)
    solved, generator = limepy.solve(W0 * one, g * one), torch.Generator().manual_seed(0)
    stars = cluster_stars.draw(solved, 1e5 * one, 10**0.4771 * one, 100_000, generator)[0]
    return stars[:, :2] / (1e3 * math.pi / 180 / 60)


@pytest.mark.parametrize("off", [0.0, 1.0, 6.0, 15.0])
@pytest.mark.parametrize("W0", [5.0, 9.0])
def test_the_selected_share_is_that_of_stars(model, off, W0):
    """However far the cluster is from the middle of the selection, arcmin, and however dense."""
    place = PLACE["ra"], PLACE["dec"] + off / 60
    selection = selection_of(SkySelection(place, np.array([2.0, 12.0]), np.ones(2)))
    posterior = posterior_of(model, mock(n_stars=50))
    u = at_truth(posterior)
    u[..., 0] = whitened(*(torch.tensor(v, dtype=D) for v in (W0, 0.5, 5.0, 0.5)))[0]
    cluster, _ = cluster_of(model.emulator, u)
    mass = torch.full((1, 1), 1e5, dtype=D)

    def inside(offset):
        centre, _ = posterior.centre(u)
        moved = centre.direction + offset * posterior.tangent[:, :2].sum(1, keepdim=True)
        centre = centre._replace(direction=torch.nn.functional.normalize(moved, dim=-1))
        return selection.log_inside(cluster, centre, mass).exp().squeeze()

    offset = torch.zeros(1, dtype=D, requires_grad=True)
    found = inside(offset)
    (slope,) = torch.autograd.grad(found, offset)
    step = 1e-6
    by_hand = (inside(offset.detach() + step) - inside(offset.detach() - step)) / (2 * step)
    assert float(slope) == pytest.approx(float(by_hand), rel=1e-4, abs=1e-3)
    g = limepy.g_limit(torch.tensor([W0], dtype=D)) * torch.special.ndtr(u[0, 0, 1:2])
    arcmin = places(W0, float(g))
    arcmin = (arcmin - torch.tensor([0.0, off])).norm(dim=1)
    share = float(((arcmin > 2) & (arcmin < 12)).double().mean())
    assert float(found.detach()) == pytest.approx(share, abs=4 * math.sqrt(share / 1e5))


def test_a_mock_is_selected_about_the_point_that_was_asked_for():
    place = [PLACE["ra"], PLACE["dec"] + 0.1]
    data = mock(radius=[0.0, 8.0], centre=place, field=True, mock_error=None)
    assert len(data.stars()["ra"]) == 200


def test_members_are_named_by_their_rows_and_what_is_kept(tmp_path):
    data = mock(n_stars=60, radius=[0.0, 20.0], mock_error=None)
    stars = data.stars()
    table = Table({name: stars[name].numpy() for name in ("ra", "dec")})
    table["name"] = [f"star {i}" for i in range(len(table))]
    table["dec"][[3, 7]] += 5.0
    table.write(tmp_path / "stars.fits")
    place = [PLACE["ra"], PLACE["dec"]]
    data = mock(path=str(tmp_path / "stars.fits"), centre=place, radius=[0.0, 20.0], keep=["name"])
    with pytest.warns(UserWarning):
        stars = data.stars()
    rows = [i for i in range(60) if i not in (3, 7)]
    assert len(stars["ra"]) == 58 and data.star_rows["row"].tolist() == rows
    assert list(data.star_rows["name"]) == [f"star {i}" for i in rows]
    groups = {"members": {**data.star_rows, "probability": np.ones(58)}}
    write_draws(tmp_path / "draws.nc", groups, {}, {})
    with xr.open_dataset(tmp_path / "draws.nc", group="members", engine="h5netcdf") as members:
        assert members["row"].values.tolist() == rows
        assert members["name"].values[1] == "star 1"


def test_a_distance_follows_from_parallaxes_once_and_from_the_median_star(model):
    """The prior does not use them; a third of the stars are field stars, and nearer."""
    data = mock(field=True, radius=[0.0, 25.0])
    stars = data.stars()
    mean, error = data.distance_prior(stars)
    assert error is None and mean == pytest.approx(PLACE["distance"], rel=0.05)
    posterior = posterior_of(model, data, stars)
    assert posterior.distance_index is None
    u = at_truth(posterior).repeat(1, 2, 1)
    k = posterior.n_cluster + 2
    u[0, 1, k] += 3.0  # a distance larger by exp(.3)
    near, far = posterior.centre(u)[0].distance.flatten()
    assert float(far / near) == pytest.approx(math.exp(0.3))
    prior = posterior.centre(u)[1][0]
    assert float(prior[1] - prior[0]) == 0
    asked = posterior_of(model, mock(field=True, radius=[0.0, 25.0], distance=1.0), stars)
    assert asked.distance_index == k


def test_densities_of_the_figure_are_corrected_for_completeness(model):
    """With a hole in the middle and a selection about another point, against the true model."""
    data = mock(n_stars=4000, radius=[1.0, 10.0], centre=[PLACE["ra"], PLACE["dec"] + 2 / 60],
                mock_error=None)  # fmt: skip
    posterior = posterior_of(model, mock(n_stars=4000, distance=1.0, mock_error=None), data.stars())
    posterior.selection = selection_of(data.selection())
    data = sky_profiles(posterior, at_truth(posterior).repeat(1, 5, 1)).arrays()
    (i,) = np.flatnonzero(data["band_kind"] == "density")
    density = data["kind"] == "density"
    expected = np.interp(data["r"][density], data["band_r"][i], data["band"][i][2])
    off = (data["value"][density] - expected) / data["error"][density][0]
    assert len(off) == 16 and np.abs(off).max() < 4 and 0.5 < np.std(off) < 1.6
