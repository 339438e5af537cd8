"""From what is observed of a star to its position and velocity in the Galaxy, and back."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from orrery.physics.constants import KM_S_PER_AU_YR

# Astropy's Galactocentric frame, parameters "v4.0": the Galactic centre of Reid & Brunthaler (2004,
# ApJ 616, 872) at the distance of the GRAVITY Collaboration (2018, A&A 615, L15), the height of the
# Sun of Bennett & Bovy (2019, MNRAS 482, 1417), its velocity of Drimmel & Poggio (2018, RNAAS 2,
# 210). The Sun is at x = -8.122 kpc and moves to positive y.
CENTRE_RA, CENTRE_DEC = 266.4051, -28.936175  # deg, ICRS
CENTRE_DISTANCE = 8.122  # kpc
SUN_HEIGHT = 0.0208  # kpc
SUN_VELOCITY = (12.9, 245.6, 7.78)  # km/s
# Turns the frame about x so that the Galactic plane is that of Galactic coordinates (astropy's).
ROLL = 58.5986320306  # deg
DEGREE = np.pi / 180


class Observed(NamedTuple):
    """What is observed of stars; each (...,)."""

    ra: Tensor  # deg, ICRS
    dec: Tensor  # deg, ICRS
    distance: Tensor  # kpc
    pmra: Tensor  # mas/yr, with cos(dec)
    pmdec: Tensor  # mas/yr
    v_los: Tensor  # km/s, from the barycentre of the Solar System


def galactocentric(
    ra: Tensor, dec: Tensor, distance: Tensor, pmra: Tensor, pmdec: Tensor, v_los: Tensor
) -> tuple[Tensor, Tensor]:
    """Position (..., 3), kpc, and velocity (..., 3), km/s, of stars; units as in `Observed`.

    Exact to rounding for float64, differentiable, and NaN where an input is NaN.
    """
    radial, east, north = _directions(ra, dec)
    motion = (
        v_los[..., None] * radial
        + (KM_S_PER_AU_YR * distance * pmra)[..., None] * east
        + (KM_S_PER_AU_YR * distance * pmdec)[..., None] * north
    )
    to_galaxy = _tensor(_ROTATION.T, radial)
    x = (distance[..., None] * radial) @ to_galaxy + _tensor(_SUN_POSITION, radial)
    return x, motion @ to_galaxy + _tensor(SUN_VELOCITY, radial)


def observed(x: Tensor, v: Tensor) -> Observed:
    """What is observed at the Sun of stars at ``x`` (..., 3), kpc, moving with ``v``, km/s."""
    to_sky = _tensor(_ROTATION, x)
    place = (x - _tensor(_SUN_POSITION, x)) @ to_sky
    motion = (v - _tensor(SUN_VELOCITY, x)) @ to_sky
    distance = torch.linalg.vector_norm(place, dim=-1)
    ra = torch.atan2(place[..., 1], place[..., 0]) / DEGREE
    in_plane = torch.linalg.vector_norm(place[..., :2], dim=-1)
    dec = torch.atan2(place[..., 2], in_plane) / DEGREE
    radial, east, north = _directions(ra, dec)
    scale = KM_S_PER_AU_YR * distance
    return Observed(
        ra=torch.remainder(ra, 360.0),
        dec=dec,
        distance=distance,
        pmra=(motion * east).sum(-1) / scale,
        pmdec=(motion * north).sum(-1) / scale,
        v_los=(motion * radial).sum(-1),
    )


def _directions(ra: Tensor, dec: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Unit vectors away from the Sun, to the east and to the north, (..., 3), ICRS."""
    sin_ra, cos_ra = torch.sin(ra * DEGREE), torch.cos(ra * DEGREE)
    sin_dec, cos_dec = torch.sin(dec * DEGREE), torch.cos(dec * DEGREE)
    radial = torch.stack([cos_dec * cos_ra, cos_dec * sin_ra, sin_dec], -1)
    east = torch.stack([-sin_ra, cos_ra, torch.zeros_like(ra)], -1)
    north = torch.stack([-sin_dec * cos_ra, -sin_dec * sin_ra, cos_dec], -1)
    return radial, east, north


def _tensor(values: tuple[float, ...] | np.ndarray, like: Tensor) -> Tensor:
    return torch.as_tensor(np.asarray(values), dtype=like.dtype, device=like.device)


def _about(axis: int, degrees: float) -> np.ndarray:
    """Matrix that turns the frame about an axis (0, 1, 2), (3, 3)."""
    sin, cos = np.sin(np.radians(degrees)), np.cos(np.radians(degrees))
    i, j = [(1, 2), (2, 0), (0, 1)][axis]
    matrix = np.eye(3)
    matrix[[i, j], [i, j]] = cos
    matrix[i, j], matrix[j, i] = sin, -sin
    return matrix


_TILT = _about(1, -np.degrees(np.arcsin(SUN_HEIGHT / CENTRE_DISTANCE)))
_ROTATION = _TILT @ _about(0, ROLL) @ _about(1, -CENTRE_DEC) @ _about(2, CENTRE_RA)
_SUN_POSITION = _TILT @ np.array([-CENTRE_DISTANCE, 0.0, 0.0])
