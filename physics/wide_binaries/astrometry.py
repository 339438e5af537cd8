"""What Gaia measures of a wide binary, as the mass-scaled relative velocity of its stars."""

from typing import NamedTuple

import numpy as np
import torch

from orrery.physics.constants import KM_S_PER_AU_YR
from orrery.physics.sky import sky_angle
from orrery.physics.wide_binaries.motion import CIRCULAR_VELOCITY

RADIAL_VELOCITY_DISPERSION = 40.0  # km/s, of nearby stars whose radial velocity is unknown
CLOSE_ARCSEC, CLOSE_INFLATION = 4.0, 1.4


class Astrometry(NamedTuple):
    """Astrometry of the two stars of each pair, as in Gaia's catalogue; each (n, 2), float64."""

    pmra: np.ndarray  # mas/yr, with cos(dec)
    pmdec: np.ndarray
    pmra_error: np.ndarray
    pmdec_error: np.ndarray
    correlation: np.ndarray  # of the proper motion's components
    parallax: np.ndarray  # mas
    parallax_error: np.ndarray
    radial_velocity: np.ndarray  # km/s, NaN where unknown
    ra: np.ndarray | None = None  # deg
    dec: np.ndarray | None = None


class RelativeMotion(NamedTuple):
    """Relative motion of the stars of each pair, float64; see `motion` for w."""

    motion: np.ndarray  # w, along the separation and perpendicular to it, (n, 2)
    covariance: np.ndarray  # of w, (n, 2, 2)
    separation: np.ndarray  # projected, AU, (n,)
    parallax: np.ndarray  # of the pair, mas, (n,)
    parallax_error: np.ndarray


def error_inflation(g: np.ndarray, separation: np.ndarray) -> np.ndarray:
    """By which Gaia's astrometric errors are too small, (n, 2), of magnitudes G (n, 2).

    El-Badry, Rix & Heintz (2021, MNRAS 506, 2269), eq. 16, from parallaxes of wide binaries with
    more than 4 arcsec between their stars; with less (``separation``, arcsec, (n,)) 1.4 times as
    much, so that it reaches the 80% of their fig. 13. An error of unit weight: of all parameters.
    """
    inflation = 0.21 * np.exp(-(((g - 12.65) / 0.90) ** 2)) + np.polyval(
        [-0.00062, 0.0040, 1.141], g
    )
    return inflation * np.where(separation < CLOSE_ARCSEC, CLOSE_INFLATION, 1.0)[:, None]


def angular_separation(ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    """Angle between the stars of each pair, arcsec, (n,), from positions (n, 2), deg."""
    (ra_0, ra_1), (dec_0, dec_1) = (torch.as_tensor(np.asarray(y, float)).T for y in (ra, dec))
    return np.degrees(sky_angle(ra_1, dec_1, ra_0, dec_0).numpy()) * 3600


def pair_parallax(parallax: np.ndarray, error: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean of the two stars' parallaxes, weighted by their errors, and its error, each (n,)."""
    weight = 1 / error**2
    return (parallax * weight).sum(1) / weight.sum(1), weight.sum(1) ** -0.5


def relative_motion(stars: Astrometry, separation: np.ndarray) -> RelativeMotion:
    """Mass-scaled velocity of pairs whose stars are ``separation`` arcsec apart, (n,).

    Without positions its axes are right ascension and declination. The pair has one parallax, which
    scales velocity and separation together: w goes with its power -3/2, and so does its error. The
    motion that perspective feigns, minus the radial velocity times the angle, is taken away, or
    counted as an error where the radial velocity, or the direction of the separation, is unknown.
    """
    parallax, parallax_error = pair_parallax(stars.parallax, stars.parallax_error)
    au = 1e3 * separation / parallax
    scale = KM_S_PER_AU_YR / parallax * np.sqrt(au) / CIRCULAR_VELOCITY  # of w per mas/yr
    difference, axes = _proper_motion_difference(stars)
    covariance = _covariance(stars)
    covariance = axes @ covariance @ axes.transpose(0, 2, 1)
    known = np.isfinite(stars.radial_velocity)
    count = known.sum(1)
    velocity = np.where(known, stars.radial_velocity, 0.0).sum(1) / np.maximum(count, 1)
    unknown = np.where(count > 0, 0.0, RADIAL_VELOCITY_DISPERSION)
    per_velocity = parallax / KM_S_PER_AU_YR * np.radians(separation / 3600)
    if stars.ra is not None:
        difference[:, 0] += velocity * per_velocity
        covariance[:, 0, 0] += (unknown * per_velocity) ** 2
    else:  # in an unknown direction
        feigned = 0.5 * ((velocity + unknown) * per_velocity) ** 2
        covariance += feigned[:, None, None] * np.eye(2)
    relative_error = parallax_error / parallax
    scale *= 1 - 1.875 * relative_error**2  # the mean of parallax^-3/2 is larger by this much
    motion = scale[:, None] * difference
    covariance *= (scale**2)[:, None, None]
    covariance += (
        ((1.5 * relative_error) ** 2)[:, None, None] * motion[:, :, None] * motion[:, None, :]
    )
    return RelativeMotion(motion, covariance, au, parallax, parallax_error)


def _covariance(stars: Astrometry) -> np.ndarray:
    """Of the difference of proper motions in right ascension and declination, (n, 2, 2)."""
    ra = (stars.pmra_error**2).sum(1)
    dec = (stars.pmdec_error**2).sum(1)
    both = (stars.correlation * stars.pmra_error * stars.pmdec_error).sum(1)
    return np.stack([np.stack([ra, both], 1), np.stack([both, dec], 1)], 1)


def _proper_motion_difference(stars: Astrometry) -> tuple[np.ndarray, np.ndarray]:
    """Second star minus first, mas/yr, (n, 2), along the separation and perpendicular to it.

    Also the rotation from (ra, dec) to these axes, (n, 2, 2). Each star's proper motion is a vector
    in space, so that the directions of north at both, which differ, do not matter.
    """
    n = len(stars.pmra)
    if stars.ra is None or stars.dec is None:
        difference = np.stack([np.diff(stars.pmra)[:, 0], np.diff(stars.pmdec)[:, 0]], 1)
        return difference, np.broadcast_to(np.eye(2), (n, 2, 2))
    east, north = _east(stars.ra), _north(stars.ra, stars.dec)
    motion = stars.pmra[..., None] * east + stars.pmdec[..., None] * north
    difference = np.diff(motion, axis=1)[:, 0]
    direction = np.diff(_radial(stars.ra, stars.dec), axis=1)[:, 0]
    middle = _radial(stars.ra, stars.dec).sum(1)
    middle /= np.linalg.norm(middle, axis=1, keepdims=True)
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    across = np.cross(middle, direction)
    both = np.stack([direction, across], 1)
    axes = np.stack(
        [np.einsum("nij,nj->ni", both, east[:, 0]), np.einsum("nij,nj->ni", both, north[:, 0])], 2
    )
    return np.einsum("nij,nj->ni", both, difference), axes


def _radial(ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    a, d = np.radians(ra), np.radians(dec)
    return np.stack([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)], -1)


def _east(ra: np.ndarray) -> np.ndarray:
    a = np.radians(ra)
    return np.stack([-np.sin(a), np.cos(a), np.zeros_like(a)], -1)


def _north(ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    a, d = np.radians(ra), np.radians(dec)
    return np.stack([-np.sin(d) * np.cos(a), -np.sin(d) * np.sin(a), np.cos(d)], -1)


def systemic_motion(
    velocity: np.ndarray, ra: np.ndarray, dec: np.ndarray, parallax: np.ndarray
) -> np.ndarray:
    """Proper motions, mas/yr, (n, 2, 2), of both stars of pairs that share a velocity in space.

    ``velocity`` (n, 3), km/s, equatorial; ``ra``, ``dec``, deg, ``parallax``, mas, (n, 2). The last
    axis is right ascension, with cos(dec), and declination.
    """
    scale = parallax / KM_S_PER_AU_YR
    towards = (_east(ra), _north(ra, dec))
    return np.stack([scale * np.einsum("nk,nik->ni", velocity, axis) for axis in towards], 2)
