"""The Large Magellanic Cloud on its orbit, and the acceleration of the Milky Way towards it."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from orrery.physics.milky_way.axisymmetric import KPC_PER_GYR, Axisymmetric
from orrery.physics.milky_way.frames import galactocentric

# A Hernquist (1990, ApJ 356, 359) sphere with the mass that streams ask for (Erkal et al. 2019,
# MNRAS 487, 2685) and 1.7e10 solar masses within 8.7 kpc (van der Marel & Kallivayalil 2014, ApJ
# 781, 121).
MASS, SCALE = 1.5e11, 17.14  # solar masses, kpc
G = 4.300917270e-6  # kpc (km/s)^2 per solar mass
# Centre, deg, and proper motion, mas/yr: Gaia Collaboration, Helmi et al. (2018, A&A 616, A12);
# distance, kpc: Pietrzynski et al. (2019, Nature 567, 200); km/s: van der Marel et al. (2002, AJ
# 124, 2639).
TODAY = (78.77, -69.01, 49.59, 1.850, 0.234, 262.2)
# Dynamical friction (Binney & Tremaine 2008, eq. 8.7) in a halo of this dispersion, with Coulomb
# logarithm ln(distance / (1.4 scale)) (Hashimoto et al. 2003, ApJ 582, 196).
HALO_DISPERSION = 120.0  # km/s
EARLIEST, LATEST, INTERVAL = -14.0, 1.0, 0.005  # Gyr, of the table


def cloud_orbit(potential: Axisymmetric) -> Tensor:
    """Positions of the cloud, kpc, at `EARLIEST` to `LATEST` every `INTERVAL`, (times, 3), float64.

    Relative to the Milky Way, which the cloud accelerates as a rigid body.
    """
    x, v = galactocentric(*(torch.tensor([value], dtype=torch.float64) for value in TODAY))
    today = np.concatenate([x[0], v[0]])
    times = np.arange(round((LATEST - EARLIEST) / INTERVAL) + 1) * INTERVAL + EARLIEST

    def motion(t: float, state: np.ndarray) -> np.ndarray:
        return (
            np.concatenate([state[3:], _acceleration(potential, *np.split(state, 2))]) * KPC_PER_GYR
        )

    pieces = []
    for chosen, end in ((times[times <= 0][::-1], EARLIEST), (times[times > 0], LATEST)):
        solution = solve_ivp(
            motion, (0.0, end), today, method="DOP853", t_eval=chosen, rtol=1e-9, atol=1e-9
        )
        pieces.append(solution.y[:3].T)
    return torch.from_numpy(np.concatenate([pieces[0][::-1], pieces[1]]))


def _acceleration(potential: Axisymmetric, x: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Of the cloud at x, kpc, moving with v, km/s, relative to the Milky Way, (km/s)^2 / kpc."""
    position = torch.from_numpy(x)
    own = torch.stack(
        potential.accelerations(position[0], position[1], position[2], torch.zeros(()))
    )
    density = float(potential.density(position[0] ** 2 + position[1] ** 2, position[2] ** 2))
    distance, speed = np.linalg.norm(x), np.linalg.norm(v)
    ratio = speed / (np.sqrt(2) * HALO_DISPERSION)
    slower = float(torch.erf(torch.tensor(ratio))) - 2 * ratio / np.sqrt(np.pi) * np.exp(
        -(ratio**2)
    )
    coulomb = max(np.log(distance / (1.4 * SCALE)), 0.0)
    friction = -G * MASS * density * coulomb * slower / speed**3 * v
    return own.numpy() + friction - G * MASS / (distance + SCALE) ** 2 * x / distance


@dataclass(frozen=True, eq=False)
class WithCloud:
    """An axisymmetric potential with the cloud, in the accelerated frame of the Milky Way's centre.

    Before `EARLIEST` and after `LATEST` the cloud stays where it was.
    """

    axisymmetric: Axisymmetric
    positions: Tensor  # of the cloud, as of `cloud_orbit`
    static = False

    def accelerations(
        self, x: Tensor, y: Tensor, z: Tensor, t: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Accelerations along the three axes at x, y, z, kpc, and times t, each (...,)."""
        cloud = self.position(torch.as_tensor(t, dtype=x.dtype, device=x.device))
        place = x, y, z
        apart = [c - q for c, q in zip(cloud, place, strict=True)]
        pull, reflex = _pull(apart), _pull(cloud)
        own = self.axisymmetric.accelerations(x, y, z, t)
        ax, ay, az = (a + pull * d - reflex * c for a, d, c in zip(own, apart, cloud, strict=True))
        return ax, ay, az

    def position(self, t: Tensor) -> list[Tensor]:
        """x, y and z of the cloud, kpc, at times t (...,), by cubic splines through the table."""
        last = len(self.positions) - 1
        place = ((t.detach() - EARLIEST) / INTERVAL).clamp(0, last)
        cell = place.floor().long().clamp(1, last - 2)
        s = place - cell
        # Catmull-Rom weights of the four nearest times
        weights = (
            ((2 - s) * s - 1) * s / 2,
            ((3 * s - 5) * s * s + 2) / 2,
            ((4 - 3 * s) * s + 1) * s / 2,
            (s - 1) * s * s / 2,
        )
        nearest = torch.stack([cell + k for k in (-1, 0, 1, 2)])
        positions = self.positions.to(t.device)[nearest]
        return list((torch.stack(weights)[..., None] * positions).sum(0).unbind(-1))


def _pull(apart: list[Tensor]) -> Tensor:
    """The cloud's attraction over the vector to it, (km/s / kpc)^2, at x, y, z from it."""
    distance = (apart[0] ** 2 + apart[1] ** 2 + apart[2] ** 2).sqrt()
    return G * MASS / (distance * (distance + SCALE) ** 2)
