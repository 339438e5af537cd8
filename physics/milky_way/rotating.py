"""A bar and spiral arms that rotate, in an axisymmetric potential; axes and units of `potentials`.

Azimuths are counted from the Sun's in the sense of the disc's rotation, so that both patterns move
to larger ones.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from orrery.physics.milky_way.axisymmetric import KPC_PER_GYR, Axisymmetric

SUN_RADIUS, SUN_CIRCULAR_VELOCITY = 8.0, 220.0  # kpc, km/s: of the axisymmetric base

# Dehnen (2000, AJ 119, 800): the quadrupole's force at the Sun is 1% of the axisymmetric one, and
# the bar ends at 80% of its corotation radius; today its near end leads the Sun by 25 degrees.
BAR_SPEED = 35.75  # km/s/kpc, as in arXiv:2310.09331
BAR_STRENGTH, BAR_EXTENT, BAR_ANGLE = 0.01, 0.8, 25.0

# Cox & Gomez (2002, ApJS 142, 261), their example: two arms of 15 degrees pitch, of density
# 1 atom / cm^3 at 8 kpc (14/11 of the hydrogen mass each), scale length 7 kpc and height 0.18 kpc.
# They rotate with 28.2 km/s/kpc (Dias et al. 2019, MNRAS 486, 5726); today one crosses the Sun's
# azimuth at 6.6 kpc, about where the Sagittarius arm is.
ARMS, ARM_PITCH, ARM_SPEED = 2, 15.0, 28.2
ARM_LENGTH, ARM_HEIGHT, ARM_RADIUS = 7.0, 0.18, 6.6
ARM_DENSITY = 14 / 11 * 1.6735e-24  # g / cm^3
FOUR_PI_G = 4 * torch.pi * 6.6743e-8 * (3.0856775814913673e21 / 1e5) ** 2  # of g/cm^3


@dataclass(frozen=True, eq=False)
class Bar:
    """Dehnen's (2000) bar in three dimensions (Monari et al. 2016, MNRAS 461, 3835)."""

    axisymmetric: Axisymmetric
    static = False

    def accelerations(
        self, x: Tensor, y: Tensor, z: Tensor, t: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Accelerations along the three axes at x, y, z, kpc, and times t, each (...,)."""
        cos, sin = self._orientation(t)
        shape = (x * x - y * y) * cos - 2 * x * y * sin
        square = x * x + y * y + z * z
        profile, slope = self._profile(square)
        stretch = 2 * slope * shape
        ax, ay, az = self.axisymmetric.accelerations(x, y, z, t)
        return (
            ax - 2 * profile * (x * cos - y * sin) - stretch * x,
            ay + 2 * profile * (y * cos + x * sin) - stretch * y,
            az - stretch * z,
        )

    def phi(self, x: Tensor, y: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """Potential at x, y, z, kpc, and times t, each (...,)."""
        cos, sin = self._orientation(t)
        shape = (x * x - y * y) * cos - 2 * x * y * sin
        quadrupole = self._profile(x * x + y * y + z * z)[0] * shape
        return quadrupole + self.axisymmetric.phi_of_squares(x * x + y * y, z * z)

    def _orientation(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine of twice the azimuth of the bar."""
        angle = torch.as_tensor(t) * (BAR_SPEED * KPC_PER_GYR) + BAR_ANGLE * torch.pi / 180
        return torch.cos(2 * angle), torch.sin(2 * angle)

    def _profile(self, square: Tensor) -> tuple[Tensor, Tensor]:
        """Of r^2: the potential over R^2 cos(2 (azimuth - bar's)), and its slope."""
        end = BAR_EXTENT * SUN_CIRCULAR_VELOCITY / BAR_SPEED
        strength = BAR_STRENGTH / 3 * SUN_CIRCULAR_VELOCITY**2 * (SUN_RADIUS / end) ** 3
        inside = square < end**2
        cubed = (square / end**2) ** 1.5
        profile = torch.where(inside, cubed - 2, -1 / cubed) / square
        slope = torch.where(inside, 0.5 * cubed + 2, 2.5 / cubed) / square**2
        return strength * profile, strength * slope


@dataclass(frozen=True, eq=False)
class SpiralArms:
    """Trailing logarithmic arms: Cox & Gomez (2002), the first term of their eq. 8."""

    axisymmetric: Axisymmetric
    static = False

    def accelerations(
        self, x: Tensor, y: Tensor, z: Tensor, t: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Accelerations along the three axes at x, y, z, kpc, and times t, each (...,)."""
        R, cos, sin, depth, k, w, log_cosh = self._terms(x, y, z, t)
        thickness = k * (0.7 + 0.6 * k + 0.09 * k * k) / ((1 + 0.3 * k) * (1 + k + 0.3 * k * k))
        tanh = torch.tanh(w)
        # derivatives with respect to ln R of the logarithms of the depth and of the sech
        of_depth = 1 - R / ARM_LENGTH + thickness
        of_sech = k * (1 + 0.8 * k) * log_cosh - 0.4 * k * k * w * tanh
        winding = ARMS / _tan(ARM_PITCH)
        outwards = depth * (cos * (of_depth + of_sech) - sin * winding) / (R * R)
        along = -depth * sin * ARMS / (R * R)  # to larger azimuths, that is, clockwise
        ax, ay, az = self.axisymmetric.accelerations(x, y, z, t)
        return (
            ax + outwards * x + along * y,
            ay + outwards * y - along * x,
            az - depth * cos * (k / ARM_HEIGHT) * tanh,
        )

    def phi(self, x: Tensor, y: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """Potential at x, y, z, kpc, and times t, each (...,)."""
        _, cos, _, depth, *_ = self._terms(x, y, z, t)
        return self.axisymmetric.phi_of_squares(x * x + y * y, z * z) - depth * cos

    def _terms(self, x: Tensor, y: Tensor, z: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        """R, cosine and sine of the phase, depth; K H, K z / beta and its ln cosh."""
        R = (x * x + y * y).sqrt()
        azimuth = torch.atan2(y, -x)
        moved = azimuth - ARM_SPEED * KPC_PER_GYR * torch.as_tensor(t)
        phase = ARMS * (moved + (R / ARM_RADIUS).log() / _tan(ARM_PITCH))
        k = ARMS * ARM_HEIGHT / (R * _sin(ARM_PITCH))
        beta = k * (1 + 0.4 * k)
        w = z / (ARM_HEIGHT * (1 + 0.4 * k))
        log_cosh = w.abs() + torch.log1p(torch.exp(-2 * w.abs())) - 0.6931471805599453
        bottom = k * (1 + k + 0.3 * k * k) / (1 + 0.3 * k)
        depth = FOUR_PI_G * ARM_DENSITY * ARM_HEIGHT**2 / bottom
        depth = depth * torch.exp(-(R - SUN_RADIUS) / ARM_LENGTH - beta * log_cosh)
        return R, torch.cos(phase), torch.sin(phase), depth, k, w, log_cosh


def _sin(degrees: float) -> float:
    return float(torch.sin(torch.tensor(degrees * torch.pi / 180, dtype=torch.float64)))


def _tan(degrees: float) -> float:
    return float(torch.tan(torch.tensor(degrees * torch.pi / 180, dtype=torch.float64)))
