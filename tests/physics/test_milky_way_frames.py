"""Galactocentric positions and velocities against astropy's, and back."""

import pytest
import torch

from orrery.physics.milky_way.frames import Observed, galactocentric, observed


def stars(n: int) -> Observed:
    generator = torch.Generator().manual_seed(0)
    uniform, normal = (
        f(6, n, generator=generator, dtype=torch.float64) for f in (torch.rand, torch.randn)
    )
    return Observed(
        ra=360 * uniform[0],
        dec=torch.asin(2 * uniform[1] - 1) * 180 / torch.pi,
        distance=torch.exp(normal[2] + 1),
        pmra=5 * normal[3],
        pmdec=5 * normal[4],
        v_los=150 * normal[5],
    )


def test_positions_and_velocities_are_astropys():
    from astropy import units as u
    from astropy.coordinates import Galactocentric, SkyCoord, galactocentric_frame_defaults

    sky = stars(1000)
    with galactocentric_frame_defaults.set("v4.0"):
        theirs = SkyCoord(
            ra=sky.ra.numpy() * u.deg,
            dec=sky.dec.numpy() * u.deg,
            distance=sky.distance.numpy() * u.kpc,
            pm_ra_cosdec=sky.pmra.numpy() * u.mas / u.yr,
            pm_dec=sky.pmdec.numpy() * u.mas / u.yr,
            radial_velocity=sky.v_los.numpy() * u.km / u.s,
        ).transform_to(Galactocentric())
    x, v = galactocentric(*sky)
    place = torch.from_numpy(theirs.cartesian.xyz.to_value(u.kpc).T.copy())
    motion = torch.from_numpy(theirs.velocity.d_xyz.to_value(u.km / u.s).T.copy())
    torch.testing.assert_close(x, place, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(v, motion, rtol=1e-9, atol=1e-9)


def test_the_way_back_is_the_inverse():
    sky = stars(1000)
    for ours, given in zip(observed(*galactocentric(*sky)), sky, strict=True):
        torch.testing.assert_close(ours, given, rtol=1e-9, atol=1e-9)


def test_the_sun_is_on_the_negative_axis_and_the_disc_rotates_to_positive_y():
    close = [torch.tensor([value], dtype=torch.float64) for value in (10.0, 20.0, 1e-9, 0, 0, 0)]
    x, v = galactocentric(*close)
    assert x[0].tolist() == pytest.approx([-8.122, 0.0, 0.0208], abs=1e-4)
    assert v[0].tolist() == pytest.approx([12.9, 245.6, 7.78], abs=1e-3)
    assert float(x[0, 1] * v[0, 0] - x[0, 0] * v[0, 1]) > 0  # L_z as this package counts it


def test_it_is_differentiable():
    sky = [value.requires_grad_() for value in stars(3)]
    assert torch.autograd.gradcheck(galactocentric, sky)
    assert torch.autograd.gradcheck(
        observed, [c.detach().requires_grad_() for c in galactocentric(*sky)]
    )


def test_a_missing_value_is_nan_and_stays_in_its_row():
    sky = stars(3)
    sky.v_los[1] = torch.nan
    x, v = galactocentric(*sky)
    assert bool(x.isfinite().all())
    assert v.isnan().any(-1).tolist() == [False, True, False]
