"""Emission lines: their equivalent widths, ratios, shifts."""

import math

import pytest
import torch

from orrery.physics.sps.emission import FWHM, H_BETA, NARROW, O_III, line_shapes, seen

WAVELENGTH = torch.arange(15000, 25000, 2.0).double()
LOG_RATIO = torch.tensor([math.log1p(3.0)])


@pytest.mark.parametrize("sigma", [200.0, 2000.0])
def test_a_line_has_the_equivalent_width_of_one_angstrom_at_rest(sigma):
    shape = line_shapes((H_BETA,), WAVELENGTH, LOG_RATIO, sigma)[0, :, 0]
    # f_nu over a flat f_nu is f_lambda over that continuum; dlnlambda times the line's wavelength
    width = torch.trapezoid(shape, WAVELENGTH.log()) * H_BETA.wavelength[0]
    assert float(width) == pytest.approx(1, rel=1e-3)


def test_ratios_are_of_luminosities():
    shape = line_shapes((O_III,), WAVELENGTH, LOG_RATIO, 100.0)[0, :, 0]
    frequency = 1 / WAVELENGTH
    split = 4 * 4984.0
    bright, faint = (
        torch.trapezoid(shape[part], frequency[part])
        for part in (split < WAVELENGTH, split > WAVELENGTH)
    )
    assert float(bright / faint) == pytest.approx(2.98, rel=1e-3)


def test_a_shift_is_a_velocity_and_the_width_a_dispersion():
    shape = line_shapes((H_BETA,), WAVELENGTH, LOG_RATIO, 1000 / FWHM, -1500.0)[0, :, 0]
    velocity = (WAVELENGTH / (4 * H_BETA.wavelength[0])).log() * 299792.458
    assert float(velocity[shape.argmax()]) == pytest.approx(-1500, abs=20)
    wide = velocity[shape > 0.5 * shape.max()]
    assert float(wide[-1] - wide[0]) == pytest.approx(1000, abs=60)


def test_only_groups_with_a_line_in_the_range_are_seen():
    assert [group.name for group in seen(NARROW, 4800, 5100)] == ["H beta", "[O III]"]
    assert seen(NARROW, 5100, 5200) == []
