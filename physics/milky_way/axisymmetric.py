"""Static axisymmetric potentials: a disc, and anything spherical or nearly so."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from orrery.physics.milky_way.radial_tables import RadialTable

KPC_PER_GYR = 1.0227121650537077  # one km/s: 1e9 Julian years over 3.0856775814913673e16 km


class Derivatives(NamedTuple):
    """First and second derivatives of a potential with respect to X = R^2 and Z = z^2."""

    X: Tensor
    Z: Tensor
    XX: Tensor
    XZ: Tensor
    ZZ: Tensor


@dataclass(frozen=True, eq=False)
class Axisymmetric:
    """A Miyamoto & Nagai (1975, PASJ 27, 533) disc in a potential S(r) + T(r) r^2 P_2(cos theta).

    Everything is a function of X = R^2 and Z = z^2: no angles, and nothing singular in the plane or
    on the axis; r^2 P_2 is Z - X / 2. Lengths in kpc, potentials in (km/s)^2.
    """

    spherical: RadialTable  # S, of r^2
    spherical_slope: RadialTable  # its derivative with respect to r^2
    disc_mass: float = 0.0  # times G: kpc (km/s)^2
    disc_length: float = 3.0
    disc_height: float = 0.28
    quadrupole: RadialTable | None = None  # T, of r^2
    quadrupole_slope: RadialTable | None = None

    static = True

    @property
    def axisymmetric(self) -> "Axisymmetric":
        """The potential in which actions are computed: this one."""
        return self

    @cached_property
    def plane(self) -> RadialTable:
        """The potential in the plane, of R^2."""
        return RadialTable.of(lambda X: self.phi_of_squares(X, torch.zeros_like(X)))

    def phi(self, R: Tensor, z: Tensor) -> Tensor:
        """Potential at cylindrical radius and height, kpc, float64; zero at infinity."""
        return self.phi_of_squares(R * R, z * z)

    def phi_of_squares(self, X: Tensor, Z: Tensor) -> Tensor:
        """Potential at X = R^2 and Z = z^2."""
        _, inverse = self._disc(X, Z)
        phi = self.spherical(X + Z).sub(inverse, alpha=self.disc_mass)
        return phi if self.quadrupole is None else phi + self.quadrupole(X + Z) * (Z - 0.5 * X)

    def phi_and_slopes(self, X: Tensor, Z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The potential, and its slopes to a relative 1e-10, for half the price of both."""
        phi, slope = self.spherical.with_derivative(X + Z)
        stretch, inverse = self._disc(X, Z)
        disc = (0.5 * self.disc_mass) * inverse * (inverse * inverse)
        phi = phi.sub(inverse, alpha=self.disc_mass)
        slope_X, slope_Z = slope + disc, torch.addcmul(slope, disc, stretch)
        if self.quadrupole is None:
            return phi, slope_X, slope_Z
        strength, change = self.quadrupole.with_derivative(X + Z)
        shape = Z - 0.5 * X
        bend = change * shape
        return phi + strength * shape, slope_X + bend - 0.5 * strength, slope_Z + bend + strength

    def slopes(self, X: Tensor, Z: Tensor) -> tuple[Tensor, Tensor]:
        """Derivatives of the potential with respect to X and to Z."""
        slope = self.spherical_slope(X + Z)
        stretch, inverse = self._disc(X, Z)
        disc = (0.5 * self.disc_mass) * inverse * (inverse * inverse)
        slope_X, slope_Z = slope + disc, torch.addcmul(slope, disc, stretch)
        if self.quadrupole is None or self.quadrupole_slope is None:
            return slope_X, slope_Z
        strength = self.quadrupole(X + Z)
        bend = self.quadrupole_slope(X + Z) * (Z - 0.5 * X)
        return slope_X + bend - 0.5 * strength, slope_Z + bend + strength

    def derivatives(self, X: Tensor, Z: Tensor) -> Derivatives:
        """First and second derivatives of the potential with respect to X and Z."""
        slope, curvature = self.spherical_slope.with_derivative(X + Z)
        stretch, inverse = self._disc(X, Z)
        disc = (0.5 * self.disc_mass) * inverse * (inverse * inverse)
        bend = -1.5 * disc * (inverse * inverse)
        tighten = (-0.5 * self.disc_length) * (Z + self.disc_height**2) ** -1.5
        phi = Derivatives(
            X=slope + disc,
            Z=slope + disc * stretch,
            XX=curvature + bend,
            XZ=curvature + bend * stretch,
            ZZ=curvature + bend * stretch * stretch + disc * tighten,
        )
        if self.quadrupole is None or self.quadrupole_slope is None:
            return phi
        strength, shape = self.quadrupole(X + Z), Z - 0.5 * X
        change, second = self.quadrupole_slope.with_derivative(X + Z)
        return Derivatives(
            X=phi.X + change * shape - 0.5 * strength,
            Z=phi.Z + change * shape + strength,
            XX=phi.XX + second * shape - change,
            XZ=phi.XZ + second * shape + 0.5 * change,
            ZZ=phi.ZZ + second * shape + 2 * change,
        )

    def density(self, X: Tensor, Z: Tensor) -> Tensor:
        """4 pi G times the density, (km/s)^2 / kpc^2: the Laplacian of the potential."""
        phi = self.derivatives(X, Z)
        return 4 * (phi.X + X * phi.XX) + 2 * phi.Z + 4 * Z * phi.ZZ

    def accelerations(
        self, x: Tensor, y: Tensor, z: Tensor, t: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Accelerations along the three axes at x, y, z, kpc, each (...,); (km/s)^2 / kpc."""
        in_plane, vertical = self.slopes(torch.addcmul(x * x, y, y), z * z)
        in_plane = in_plane * -2
        return x * in_plane, y * in_plane, z * vertical * -2

    def _disc(self, X: Tensor, Z: Tensor) -> tuple[Tensor, Tensor]:
        """d(D^2)/dZ and 1/D, where the disc's potential is -mass / D."""
        square = Z + self.disc_height**2
        of_height = square.rsqrt()  # its square root is square * of_height, without a division
        length = square * of_height + self.disc_length
        return 1 + self.disc_length * of_height, torch.addcmul(X, length, length).rsqrt()


class HasAccelerations(Protocol):
    """A potential's accelerations along the axes at x, y, z, kpc, and t, Gyr, each (...,)."""

    def accelerations(
        self, x: Tensor, y: Tensor, z: Tensor, t: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]: ...


def acceleration(potential: HasAccelerations, x: Tensor, t: float = 0.0) -> Tensor:
    """Accelerations (..., 3), (km/s)^2 / kpc, at x (..., 3), kpc, and the time t, Gyr."""
    first, second, third = x.unbind(-1)
    return torch.stack(potential.accelerations(first, second, third, torch.full_like(first, t)), -1)
