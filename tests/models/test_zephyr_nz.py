"""n(z) of tomographic bins: what is stacked, what its realisations hold, who reads the file."""

from itertools import pairwise

import h5py
import numpy as np
import pytest
import torch
from astropy.io import fits

from orrery import load
from orrery.datamodules.zephyr.simulation import simulated_table
from orrery.models.zephyr.nz import TomographicNz

EDGES = [0.2, 0.6, 1.0, 2.0]


@pytest.fixture(scope="module")
def zephyr():
    return load("zephyr")


@pytest.fixture(scope="module")
def sample() -> dict[str, np.ndarray]:
    """400 galaxies with weights, of which a third are 0, and names of two bins or of none."""
    table = simulated_table(400, 1, "test")
    table |= {"w": np.arange(400) % 3 / 2.0, "bin": np.array(["far", "near", "", "near"] * 100)}
    return table


@pytest.fixture(scope="module")
def binned(zephyr, sample) -> TomographicNz:
    return zephyr.nz(sample, bins=EDGES, weight="w", realisations=200)


def test_n_of_z_is_the_weighted_mean_of_p_of_z_in_each_bin(zephyr, sample, binned):
    predicted = zephyr.predict(sample)
    step = binned.edges[1] - binned.edges[0]
    for i, (low, high) in enumerate(pairwise(EDGES)):
        inside = (predicted["z_median"] >= low) & (predicted["z_median"] < high)
        expected = np.average(predicted["pz"][inside], axis=0, weights=sample["w"][inside])
        np.testing.assert_allclose(binned.density[i], expected, rtol=0, atol=2e-3)
        weights = sample["w"][inside]
        assert binned.n_objects[i] == (weights > 0).sum()
        assert binned.n_effective[i] == pytest.approx(weights.sum() ** 2 / (weights**2).sum())
    for arrays in (binned.density, binned.realisations):
        np.testing.assert_allclose(arrays.sum(-1) * step, 1)
    assert binned.bins == ["0.2 to 0.6", "0.6 to 1", "1 to 2"]


def test_realisations_hold_the_noise_of_the_sample_and_of_the_networks(zephyr, sample):
    """The variance of the mean redshift is that of resampled objects plus that of networks."""
    of_all = zephyr.nz({**sample, "one": np.ones(400)}, by="one", realisations=1000)
    with torch.inference_mode():
        batch = next(iter(prediction_batches(zephyr, sample)))
        means = zephyr.member_densities(batch).double().numpy() @ of_all.z  # (members, objects)
    means *= of_all.edges[1] - of_all.edges[0]
    of_networks, of_objects = means.mean(1).var(), means.var(1).mean() / 400
    assert of_all.mean_std[0] ** 2 == pytest.approx(of_networks + of_objects, rel=0.15)
    assert of_networks > 0.01 * of_objects, "the networks differ"
    assert of_all.realisations.mean(0)[0] @ of_all.z == pytest.approx(
        of_all.density[0] @ of_all.z, rel=3e-3
    )


def prediction_batches(model, table):
    from orrery.runs import data_for

    data = data_for(model.record, {"path": None})
    data.table, data.split = table, "all"
    return data.prediction_batches()


def test_a_file_in_chunks_gives_what_the_table_gives(zephyr, sample, binned, tmp_path):
    with h5py.File(tmp_path / "cat.hdf5", "w") as file:
        for name, values in sample.items():
            if name != "bin":
                file[name] = values
    streamed = zephyr.nz(
        tmp_path / "cat.hdf5", EDGES, weight="w", realisations=200, predict_batch_size=64
    )
    np.testing.assert_allclose(streamed.density, binned.density, rtol=0, atol=1e-5)
    np.testing.assert_allclose(streamed.realisations, binned.realisations, rtol=0, atol=1e-4)


def test_bins_are_values_of_a_column_where_there_are_no_edges(zephyr, sample):
    named = zephyr.nz(sample, by="bin", realisations=3)
    assert named.bins == ["far", "near"]
    assert named.n_objects.tolist() == [100, 200]


def test_cosmosis_finds_the_extensions_and_columns_of_a_2pt_file(binned, tmp_path):
    binned.write(tmp_path / "nz.fits")
    with fits.open(tmp_path / "nz.fits") as file:
        names = [table.name.lower() for table in file[1:]]
        assert names == ["nz_source", *(f"nz_source_realisation_{i}" for i in range(200))]
        for table, density in ((file[1], binned.density), (file[8], binned.realisations[6])):
            assert table.header["NZDATA"] is True and table.header["NBIN"] == 3
            columns = table.columns.names
            assert columns == ["Z_LOW", "Z_MID", "Z_HIGH", "BIN1", "BIN2", "BIN3"]
            np.testing.assert_array_equal(table.data["Z_MID"], binned.z)
            np.testing.assert_array_equal(table.data["Z_HIGH"][:-1], table.data["Z_LOW"][1:])
            for i in range(3):
                np.testing.assert_array_equal(table.data[f"BIN{i + 1}"], density[i])


def test_qp_reads_the_ensembles_as_those_of_a_summarizer(binned, tmp_path):
    qp = pytest.importorskip("qp")
    binned.write(tmp_path / "nz.hdf5")
    ensembles = qp.read_dict(str(tmp_path / "nz.hdf5"))
    assert ensembles["single_NZ"].npdf == 3 and ensembles["realizations"].npdf == 600
    np.testing.assert_allclose(ensembles["single_NZ"].pdf(binned.z), binned.density, rtol=0.02)
    ancil = ensembles["realizations"].ancil
    row = np.flatnonzero((ancil["bin_idx"] == 2) & (ancil["i_realization"] == 5))
    drawn = ensembles["realizations"].pdf(binned.z)[row[0]]
    np.testing.assert_allclose(drawn, binned.realisations[5, 2], rtol=0.02)


def test_impossible_bins_are_refused(zephyr, sample, binned, tmp_path):
    with pytest.raises(ValueError, match=r"bins=\[1, 0\]; expected two or more rising edges"):
        zephyr.nz(sample, bins=[1, 0])
    with pytest.raises(ValueError, match=r"no object of any weight has z_median in 5 to 6"):
        zephyr.nz(sample, bins=[0.2, 1, 5, 6], realisations=2)
    with pytest.raises(ValueError, match="more than 100 bins"):
        zephyr.nz(sample, realisations=2)
    with pytest.raises(ValueError, match=r"nz\.txt: n\(z\) is written as \.fits"):
        binned.write(tmp_path / "nz.txt")
