"""The table of globular clusters, its names, and tables of the user."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from astropy.table import Table

from orrery.physics.clusters import lowered_isothermal as limepy
from orrery.physics.clusters.lowered_isothermal import density, solve
from orrery.physics.ejections.clusters import (
    KING_HALF,
    KING_TIDAL,
    LIMEPY,
    cluster_table,
    milky_way_clusters,
    read_clusters,
)
from orrery.physics.ejections.structure import core_structure, king_scales

ROW = {
    "name": ["Mine"],
    "ra": [10.0],
    "dec": [-20.0],
    "distance": [12.0],
    "e_distance": [0.3],
    "pmra": [1.0],
    "e_pmra": [0.02],
    "pmdec": [-2.0],
    "e_pmdec": [0.02],
    "v_los": [50.0],
    "e_v_los": [1.0],
    "mass": [1e5],
    "r_core": [1.0],
    "r_half": [3.0],
}


@pytest.fixture(scope="module")
def galaxy():
    return milky_way_clusters()


def write(tmp_path, **changes):
    columns = {k: v for k, v in {**ROW, **changes}.items() if v is not None}
    path = tmp_path / "my.ecsv"
    Table(columns).write(path, format="ascii.ecsv", overwrite=True)
    return path


@pytest.mark.parametrize(
    "spelling",
    ["NGC 104", "ngc104", "47 Tuc", "47tuc", "NGC_104_47Tuc", "47 Tucanae"],
)
def test_a_name_is_found_in_any_spelling(galaxy, spelling):
    assert galaxy.names[galaxy.index(spelling)] == "NGC 104"


def test_messier_and_spelled_out_catalogues_are_names(galaxy):
    found = [galaxy.names[galaxy.index(x)] for x in ("M13", "Messier 13", "Palomar 5", "Ter 5")]
    assert found == ["NGC 6205", "NGC 6205", "Pal 5", "Terzan 5"]


def test_every_name_means_one_cluster(galaxy):
    for row, (name, others) in enumerate(zip(galaxy.names, galaxy.other_names, strict=True)):
        assert [galaxy.index(x) for x in (name, *others)] == [row] * (1 + len(others))


def test_an_unknown_name_is_refused_with_near_matches(galaxy):
    with pytest.raises(ValueError, match=r"'NGC 6206'.*NGC 6205"):
        galaxy.index("NGC 6206")


def test_a_cluster_that_was_left_out_says_why(galaxy):
    with pytest.raises(ValueError, match=r"Crater .*no mass or radii"):
        galaxy.index("crater")


def test_no_cluster_is_lost(galaxy):
    table = cluster_table()
    listed = {*table["name"], *table.meta["without_proper_motion"]}
    assert set(galaxy.names) | set(galaxy.left_out) == listed
    assert not set(galaxy.names) & set(galaxy.left_out)
    assert (len(galaxy), len(listed)) == (150, 174)
    counts = [galaxy.structure_source.count(s) for s in (LIMEPY, KING_TIDAL, KING_HALF)]
    assert counts == [81, 57, 12]


def test_every_column_of_the_table_names_its_source():
    table = cluster_table()
    assert all(table[c].info.description for c in table.colnames)
    units = {c: str(table[c].unit) for c in ("distance", "pmra", "v_los", "mass", "r_core")}
    expected = {"distance": "kpc", "pmra": "mas / yr", "v_los": "km / s"}
    assert units == {**expected, "mass": "solMass", "r_core": "pc"}


def test_mass_and_radii_follow_the_distance(galaxy):
    table = cluster_table()
    row = list(table["name"]).index("Terzan 10")
    near, far = table["structure_distance"][row], table["distance"][row]
    i = galaxy.index("Terzan 10")
    assert float(galaxy.r_core[i]) == pytest.approx(table["r_core"][row] * far / near)
    assert float(galaxy.mass[i]) == pytest.approx(table["mass"][row] * (far / near) ** 2)


def test_chosen_clusters_keep_their_values(galaxy):
    two = galaxy.select(["M 13", 0])
    assert two.names == ("NGC 6205", galaxy.names[0])
    assert two.distance.tolist() == galaxy.distance[[galaxy.index("M 13"), 0]].tolist()


def test_a_users_table_is_read_in_its_units(tmp_path):
    path = write(tmp_path)
    table = Table.read(path, format="ascii.ecsv")
    table["distance"] = table["distance"] * 1000
    table["distance"].unit = "pc"
    table.write(path, format="ascii.ecsv", overwrite=True)
    clusters = read_clusters(path)
    assert clusters.distance.tolist() == [12.0] and clusters.structure_source == (KING_HALF,)
    assert clusters.pm_corr.tolist() == [0.0] and clusters.other_names == ((),)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pmra": None, "pm_ra": [1.0]}, r"my.ecsv has no column 'pmra'.*pm_ra"),
        ({"v_los": [np.nan]}, r"column 'v_los', row 1 \(Mine\): nan"),
        ({"dec": [-95.0]}, r"column 'dec', row 1 \(Mine\): -95 is not between -90 and 90 deg"),
        ({"e_pmra": [-0.1]}, r"column 'e_pmra', row 1"),
        ({"pm_corr": [1.2]}, r"column 'pm_corr', row 1 .*1.2 is not between -1 and 1"),
        ({"mass": ["heavy"]}, r"column 'mass': not numbers"),
        ({"r_half": None}, r"row 1 \(Mine\): the structure is not known. Give W0, g"),
        ({"r_half": [0.5]}, r"column 'r_half', row 1 \(Mine\): 0.5 pc is not above r_core"),
        ({"name": [" "]}, r"column 'name', row 1: no name"),
    ],
)
def test_bad_tables_are_refused_with_column_and_row(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        read_clusters(write(tmp_path, **changes))


def test_a_unit_that_does_not_convert_is_refused(tmp_path):
    path = write(tmp_path)
    table = Table.read(path, format="ascii.ecsv")
    table["pmra"].unit = "km/s"
    table.write(path, format="ascii.ecsv", overwrite=True)
    with pytest.raises(ValueError, match=r"column 'pmra': its unit km / s does not convert"):
        read_clusters(path)


def test_two_rows_of_one_name_are_refused(tmp_path):
    twice = {k: v * 2 for k, v in ROW.items()}
    with pytest.raises(ValueError, match=r"rows 1 and 2 are both 'Mine'"):
        read_clusters(write(tmp_path, **twice))


def test_a_file_that_is_no_table_is_refused(tmp_path):
    path = tmp_path / "my.ecsv"
    path.write_text("no table\n")
    with pytest.raises(ValueError, match=r"my.ecsv is not an ECSV table"):
        read_clusters(path)


def test_king_models_have_kings_concentration_and_core():
    """King 1966, table II: c of W0 = 3, 6, 9; the core radius tends to r_0."""
    scales = king_scales()
    c = np.interp([3, 6, 9], scales.W0, scales.rt.log10())
    np.testing.assert_allclose(c, [0.672, 1.255, 2.120], atol=0.003)
    assert float(scales.core[-1]) == pytest.approx(1.0, abs=0.005)
    assert (scales.core.diff() > 0).all() and ((scales.half / scales.core).diff() > 0).all()


def test_king_models_have_harris_half_light_radii(galaxy):
    """So Harris's c refers to r_0 and his r_c is where the surface density halves."""
    clusters = galaxy.select(torch.isfinite(galaxy.r_tidal).nonzero()[:, 0].tolist())
    clusters = replace(clusters, structure_source=(KING_TIDAL,) * len(clusters))
    structure, scales = core_structure(clusters), king_scales()
    half = np.interp(structure.W0, scales.W0, scales.half) * structure.r0.numpy()
    ratio = half / clusters.r_half.numpy()
    assert np.nanmedian(ratio) == pytest.approx(1.0, abs=0.02)
    assert np.nanmedian(abs(np.log(ratio))) < 0.05


def test_structure_agrees_with_the_listed_one(galaxy):
    """Of 47 Tuc, and in the median, for the mass that Gnedin et al. (2002) took."""
    structure = core_structure(galaxy)
    table = cluster_table()
    rows = [list(table["name"]).index(name) for name in galaxy.names]

    def listed(column):
        return np.ma.filled(table[column][rows].astype(float), np.nan)

    scale = galaxy.distance.numpy() / listed("structure_distance")
    masses = np.sqrt(listed("gnedin_mass") * scale / galaxy.mass.numpy())
    sigma = structure.sigma0.numpy() * masses / listed("gnedin_sigma")
    v_esc = structure.v_esc.numpy() * masses / listed("gnedin_v_esc")
    light = 10 ** (0.4 * (4.83 - listed("M_V"))) * scale**2
    rho = 10 ** listed("log_rho0_light") / scale * galaxy.mass.numpy() / light
    for ratio in (sigma, v_esc, structure.rho0.numpy() / rho):
        assert np.nanmedian(ratio) == pytest.approx(1.0, abs=0.1)
    tuc = galaxy.index("47 Tuc")
    assert float(structure.v_esc[tuc]) == pytest.approx(68.8, rel=0.03)
    assert float(structure.sigma0[tuc]) == pytest.approx(16.4, rel=0.03)
    assert np.log10(float(structure.rho0[tuc])) == pytest.approx(np.log10(rho[tuc]), abs=0.1)


def test_a_ratio_that_no_king_model_has_is_refused(tmp_path):
    clusters = read_clusters(write(tmp_path, r_half=[1.02]))
    with pytest.raises(ValueError, match=r"Mine: r_half = 1.02 pc and r_core = 1 pc fit no King"):
        core_structure(clusters)


def test_the_centre_satisfies_poisson_and_jeans(galaxy):
    """Density, escape velocity and dispersion by integrals over the model's mass and density."""
    chosen = galaxy.select(["47 Tuc", "Pal 5", "NGC 5946"])
    structure = core_structure(chosen)
    model = solve(structure.W0, structure.g, steps=800)
    r = model.log_r.exp() * structure.r0[:, None]
    scale = (chosen.mass / model.mt)[:, None]
    mass = (model.log_density + 3 * model.log_r).exp() * scale
    torch.testing.assert_close(
        structure.rho0, mass[:, 0] / (4 / 3 * np.pi * r[:, 0] ** 3), rtol=1e-4, atol=0
    )
    rho = structure.rho0[:, None] * density(model, model.phi, model.log_r.exp())
    force = limepy.G * mass / r.square()
    v_esc = (2 * torch.trapezoid(force, r)).sqrt()
    torch.testing.assert_close(structure.v_esc, v_esc, rtol=1e-4, atol=0)
    sigma0 = (torch.trapezoid(rho * force, r) / structure.rho0).sqrt()
    torch.testing.assert_close(structure.sigma0, sigma0, rtol=1e-4, atol=0)
    assert structure.r_t.tolist() == pytest.approx((model.rt * structure.r0).tolist(), rel=1e-6)
