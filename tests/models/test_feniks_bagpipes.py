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
    def rows(method, z, factor):
        row = {"method": method, "true_zred": 3.5, "z": z, "seconds": 1.0}
        for name, true in (("log_stellar_mass", 11.0), ("t50", 1.0)):
            value = factor * true
            row |= {f"{name}_true": true, name: value}
            row |= {f"{name}_q16": 0.9 * value, f"{name}_q84": 1.1 * value}
        return row | {"t50_error_dex": np.log10(factor)}

    peer = [rows("Bagpipes", z, 1.2) for z in (3.55, 3.499)]
    feniks.report_bagpipes([rows("feniks", 3.501, 1.0)] * 2 + peer)
    ours, peer = capsys.readouterr().out.split("Bagpipes")
    assert "within 0.01: 2;" in ours and "within 0.01: 1;" in peer
    assert ours.count("hold 2") == 2 and peer.count("hold 0") == 2
    assert "t50: median 0.079" in peer  # log10 1.2
