"""README is short, its Python runs, and what it states is on the pages of the components."""

import re
import warnings

import example_files
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.table import Table
from conftest import COMPONENTS, ROOT

from orrery import pretrained

README = (ROOT / "README.md").read_text()


def test_the_python_of_readme_runs(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    example_files.galaxy_files(tmp_path)
    place = SkyCoord(0 * u.deg, 0 * u.deg, distance=500 * u.pc, frame="galactic")
    motion = {"pm_ra_cosdec": 8.6 * u.mas / u.yr, "pm_dec": -1.8 * u.mas / u.yr}
    star = SkyCoord(
        155 * u.deg, -46 * u.deg, 4.6 * u.kpc, radial_velocity=485 * u.km / u.s, **motion
    )
    names = {"table": Table.read(tmp_path / "table.ecsv"), "coords": place, "stars": star}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings(
            "ignore", "this catalogue is unlike|.*have the flag"
        )  # it is made up
        exec(code, names)  # README is ours
    assert len(names["pz"]) == 300


def test_readme_is_short_and_its_links_lead_somewhere():
    assert len(README.splitlines()) <= 100 and len(README.split()) <= 900
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert target.startswith("https://arxiv.org/") or (ROOT / target).exists(), target
    assert set(pretrained.names()) == set(
        re.findall(r"^\| `(\w+)` \| [^|]* \| \[card\]", README, re.M)
    )


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_headline_is_one_number_that_the_page_explains(component):
    (row,) = re.findall(rf"^\| \[`{component}`\].*$", README, re.M)
    *_, ours, peer, _ = row.split("|")
    (number,) = re.findall(r"\*\*(.+?)\*\*", ours)
    page = (ROOT / f"docs/{component}.md").read_text()
    assert number in page
    assert all(n in page for n in re.findall(r"\d[\d.e%-]*", peer)), peer
