"""Spectra and their errors are those of GaiaXPy, the archive's own tool."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import command
from matplotlib import rc_context

from orrery.datamodules.scatter_vae.export import export
from orrery.models.scatter_vae.spectra import Spectra
from orrery.physics.gaia_xp import xp, xp_mock, xp_noise
from orrery.tables import open_catalogue

with rc_context():  # its import sets LaTeX for all figures of the process
    from gaiaxpy import calibrate

# steps of 2 nm, where the bands meet, and the ends of what XP sees
OVERLAP = np.array([330.0, 331.5, 400.3, *np.arange(630.0, 650.0, 0.5), 900.1, 1020.0])
grids = pytest.mark.parametrize("wavelength", [xp.SAMPLED, OVERLAP], ids=["sampled", "overlap"])


@pytest.fixture(scope="module")
def stars() -> dict[str, np.ndarray]:
    return xp_mock.simulate(12, np.random.default_rng(0))


def gaiaxpys(
    stars: dict[str, np.ndarray], wavelength: np.ndarray, standard_deviation: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Flux and error (batch, k), W m^-2 nm^-1."""
    columns = {"source_id": stars["source_id"]}
    for band in xp.BANDS:
        for name in ("coefficients", "coefficient_errors", "coefficient_correlations"):
            columns[f"{band}_{name}"] = list(stars[f"{band}_{name}"].astype(float))
        columns[f"{band}_n_parameters"] = np.full(len(stars["source_id"]), 55)
        columns[f"{band}_standard_deviation"] = standard_deviation
    found, sampled = calibrate(pd.DataFrame(columns), sampling=wavelength, save_file=False)
    assert (sampled == wavelength).all()
    return np.stack(found["flux"]), np.stack(found["flux_error"])


@grids
def test_the_matrices_of_the_instrument_give_gaiaxpys_flux_and_errors(stars, wavelength):
    flux, variance = 0.0, 0.0
    for band in xp.BANDS:
        matrix = xp.sampling(band, wavelength) * xp.overlap(band, wavelength)
        flux += stars[f"{band}_coefficients"] @ matrix
        packed = stars[f"{band}_coefficient_correlations"].astype(float)
        moved = stars[f"{band}_coefficient_errors"][:, :, None] * matrix
        variance += (moved * (xp_noise.unpack(packed, 55) @ moved)).sum(1)
    theirs, error = gaiaxpys(stars, wavelength)
    np.testing.assert_allclose(flux, theirs, rtol=0, atol=1e-6 * theirs.max())
    np.testing.assert_allclose(np.sqrt(variance), error, rtol=1e-6)


@grids
def test_single_precision_moves_a_spectrum_by_a_thousandth_of_its_error(stars, wavelength):
    spectra = Spectra(wavelength)
    x, e = (
        torch.from_numpy(np.concatenate([stars[f"{b}_{name}"] for b in xp.BANDS], 1)).float()
        for name in ("coefficients", "coefficient_errors")
    )
    packed = {b: torch.from_numpy(stars[f"{b}_coefficient_correlations"]) for b in xp.BANDS}
    theirs, error = gaiaxpys(stars, wavelength)
    assert np.abs((spectra.flux(x).numpy() - theirs) / error).max() < 1e-3
    np.testing.assert_allclose(spectra.error(e, packed).numpy(), error, rtol=1e-4)
    none = {name: 0 * v if "correlations" in name else v for name, v in stars.items()}
    np.testing.assert_allclose(spectra.error(e).numpy(), gaiaxpys(none, wavelength)[1], rtol=1e-5)


def test_listed_errors_hold_the_standard_deviation_of_the_fit_already(stars):
    one, two = (gaiaxpys(stars, xp.SAMPLED, deviation)[1] for deviation in (1.0, 1.7))
    np.testing.assert_allclose(one, two)


def test_exported_reconstructions_are_read_back(tmp_path):
    asked = ["data.n_test=10", "data.keep=[source_id]", f"output={tmp_path}/xp.hdf5"]
    done = command("evaluate.py", "checkpoint=scatter_vae", *asked, f"hydra.run.dir={tmp_path}/run")
    assert done.returncode == 0, done.stderr
    assert export(tmp_path / "xp.hdf5", tmp_path / "denoised.csv") == 10
    found, _ = calibrate(tmp_path / "denoised.csv", sampling=xp.SAMPLED, save_file=False)
    with open_catalogue(tmp_path / "xp.hdf5") as catalogue:
        (ours,) = catalogue.chunks(["source_id", "spectrum", "spectrum_error"])
    order = np.argsort(ours["source_id"]), np.argsort(found["source_id"].to_numpy())
    flux, error = (np.stack(found[name])[order[1]] for name in ("flux", "flux_error"))
    np.testing.assert_allclose(ours["spectrum"][order[0]], flux, rtol=0, atol=1e-5 * flux.max())
    # GaiaXPy takes the bands as independent, which z makes those of a reconstruction not be
    apart = (xp.overlap("bp", xp.SAMPLED) == 0) | (xp.overlap("rp", xp.SAMPLED) == 0)
    ours_error = ours["spectrum_error"][order[0]]
    np.testing.assert_allclose(ours_error[:, apart], error[:, apart], rtol=1e-3)
