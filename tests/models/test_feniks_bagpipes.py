"""`python -m benchmarks.feniks bagpipes`: what needs no Bagpipes."""

import sys

import numpy as np
import pytest

from orrery.benchmarks import feniks, feniks_bagpipes


def test_bagpipes_is_left_out_by_name_where_a_package_is_missing(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(feniks_bagpipes.PACKAGES, "no_such_module", "no-such-package")
    place = tmp_path / "rows.csv"
    monkeypatch.setattr(sys, "argv", ["feniks", "bagpipes", "--output", str(place)])
    feniks.main()
    assert "left out: bagpipes" in (text := capsys.readouterr().out)
    assert "no-such-package" in text and not place.exists()


def test_half_of_the_mass_is_older_than_t50():
    edges = np.array([0.0, 1.0, 2.0, 4.0])  # Gyr
    formed = np.array([[1.0, 3.0, 0.0], [0.0, 0.0, 5.0]])
    t50 = feniks_bagpipes.time_of_half(formed, edges)
    assert t50 == pytest.approx([1 + 1 / 3, 3.0])


def test_the_report_counts_redshifts_and_intervals(capsys):
    row = dict.fromkeys(("seed", "n_live", "seconds", "seconds_bagpipes"), 1.0)
    row |= {"true_zred": 3.5, "z": 3.501, "z_bagpipes": 3.55}
    for name, true in (("log_stellar_mass", 11.0), ("t50", 1.0)):
        row[f"{name}_true"] = true
        for end, value in (("", true), ("_bagpipes", 1.2 * true)):
            row |= {f"{name}{end}": value, f"{name}{end}_q16": 0.9 * value}
            row |= {f"{name}{end}_q84": 1.1 * value}
    feniks.report_bagpipes([row, {**row, "z_bagpipes": 3.499}])
    ours, peer = capsys.readouterr().out.split("Bagpipes")
    assert "within 0.01: 2;" in ours and "within 0.01: 1;" in peer
    assert ours.count("hold 2") == 2 and peer.count("hold 0") == 2
    assert "t50: median 0.079" in peer  # log10 1.2
