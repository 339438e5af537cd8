"""Actions of stars in an axisymmetric potential: Binney's (2012, MNRAS 426, 1324) Staeckel fudge.

In prolate spheroidal coordinates R = delta sinh(u) sin(v), z = delta cosh(u) cos(v) the momenta of
a Staeckel potential depend on their own coordinate alone: p_u(u), p_v(v). The fudge takes p_u along
the line v = pi/2, the Galactic plane, and p_v along u of the star, as galpy does. Written with the
radius r = delta sinh(u) at which a line of constant u meets the plane,

    J_R = (1/pi) int sqrt(2 (E - phi(r, 0)) - L_z^2 / r^2 - M^2 / (r^2 + delta^2)) dr,

as in a spherical potential, where M^2 would be L^2 - L_z^2. With c = cos(v) and
p_v^2 = f(c) - L_z^2 / (1 - c^2), where f would be L^2,

    J_z = (1/pi) int p_v dv.

Both are sums over nodes in an angle theta that takes the roots at the turning points away, so that
they converge exponentially, and so do their derivatives with the turning points kept (at which the
integrand is zero).
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from orrery.physics.milky_way.axisymmetric import Derivatives
from orrery.physics.milky_way.radial_tables import RadialTable

TINY = 1e-200
PLANAR = 1e-12  # square of cos(v) that is not told from zero
ROUNDING = 1e-13
SMALLEST_L_Z = 1e-5  # kpc km/s: orbits through the axis are computed with this
SMALLEST_DELTA = 1e-4  # of the distance from the centre: the limit of spherical coordinates
LARGEST_RADIUS = 1e5  # kpc, of an apocentre
CHUNK = 8192  # stars that are computed together, so that their nodes stay in the cache


class Actions(NamedTuple):
    """Actions of stars, each (...,); J_R and J_z are NaN where ``bound`` is False."""

    J_R: Tensor  # kpc km/s
    L_z: Tensor  # kpc km/s, y v_x - x v_y: positive for the disc
    J_z: Tensor  # kpc km/s
    energy: Tensor  # (km/s)^2, negative for bound stars
    bound: Tensor  # bool: the orbit is bound and its turning points were found


class Precision(NamedTuple):
    """The number of nodes of J_R and J_z, of steps to their turning points, and of radii at which
    the pericentre is sought at first."""

    radial_nodes: int
    vertical_nodes: int
    steps: int
    scan: int


EXACT = Precision(32, 24, 10, 16)
FAST = Precision(10, 7, 5, 8)


class Potential(Protocol):
    """What actions need to know of a potential: functions of X = R^2 and Z = z^2."""

    @property
    def disc_height(self) -> float: ...  # kpc, over which the potential bends at the plane
    @property
    def plane(self) -> RadialTable: ...  # the potential in the plane, of R^2
    def phi_of_squares(self, X: Tensor, Z: Tensor) -> Tensor: ...
    def phi_and_slopes(self, X: Tensor, Z: Tensor) -> tuple[Tensor, Tensor, Tensor]: ...
    def derivatives(self, X: Tensor, Z: Tensor) -> Derivatives: ...


def staeckel_actions(
    x: Tensor,
    v: Tensor,
    potential: Potential,
    delta: Tensor | float | None = None,
    precision: Precision = EXACT,
) -> Actions:
    """Actions of stars at x (..., 3), kpc, with velocities v (..., 3), km/s, float64.

    ``delta``, kpc, (...,) or one number, is the focal length of the coordinates; by default that of
    `focal_length` at each star. Differentiable once. A row does not depend on the others. Stars
    that are not bound, or whose turning points were not found, are NaN, with ``bound`` False.
    """
    shape = x.shape[:-1]
    x, v = x.reshape(-1, 3), v.reshape(-1, 3)
    if delta is None:
        deltas: list[Tensor | None] = [None] * -(-len(x) // CHUNK)
    else:
        full = torch.as_tensor(delta, dtype=x.dtype, device=x.device).expand(shape)
        deltas = list(full.reshape(-1).split(CHUNK))
    chunks = [
        _actions(*arguments, potential, precision)
        for arguments in zip(x.split(CHUNK), v.split(CHUNK), deltas, strict=True)
    ]
    return Actions(*(torch.cat(column).reshape(shape) for column in zip(*chunks, strict=True)))


def focal_length(x: Tensor, potential: Potential) -> Tensor:
    """Focal length, kpc, (...,), that suits the potential's curvature at x (..., 3), kpc.

    Sanders (2012, MNRAS 426, 128), eq. 9, with the sign of galpy's `estimateDeltaStaeckel`. At
    least 1e-4 of the distance from the centre, also where the potential is prolate and it would be
    imaginary: spherical coordinates, then.
    """
    X, Z = x[..., 0] ** 2 + x[..., 1] ** 2, x[..., 2] ** 2
    return _squared_focal_length(X, Z, potential.derivatives(X, Z)).sqrt()


def _squared_focal_length(X: Tensor, Z: Tensor, phi: Derivatives) -> Tensor:
    square = Z - X + (2 * (phi.X - phi.Z) + X * phi.XX - Z * phi.ZZ) / phi.XZ
    return torch.maximum(square, SMALLEST_DELTA**2 * (X + Z))


class _Star(NamedTuple):
    """What the integrals need of each star, each (n,)."""

    energy: Tensor
    square_L_z: Tensor
    square_delta: Tensor
    square_radius: Tensor  # where the star's line of constant u meets the plane
    square_sin: Tensor  # of v
    square_cos: Tensor
    square_p_u: Tensor
    square_p_v: Tensor
    phi: Tensor  # at the star, with slopes
    slope_X: Tensor
    slope_Z: Tensor


def _actions(
    x: Tensor, v: Tensor, delta: Tensor | None, potential: Potential, precision: Precision
) -> Actions:
    star, L_z = _star(x, v, delta, potential)
    J_R, radial_found = _radial_action(star, potential, precision)
    J_z, vertical_found = _vertical_action(star, potential, precision)
    bound = (star.energy < 0) & radial_found & vertical_found & J_R.isfinite() & J_z.isfinite()
    return Actions(
        J_R=torch.where(bound, J_R, torch.nan),
        L_z=L_z,
        J_z=torch.where(bound, J_z, torch.nan),
        energy=star.energy,
        bound=bound,
    )


def _star(x: Tensor, v: Tensor, delta: Tensor | None, potential: Potential) -> tuple[_Star, Tensor]:
    x0, x1, z = (c.contiguous() for c in x.unbind(-1))
    v0, v1, vz = (c.contiguous() for c in v.unbind(-1))
    X, Z = (x0 * x0 + x1 * x1).clamp(min=TINY), z * z
    L_z = x1 * v0 - x0 * v1
    v_R = (x0 * v0 + x1 * v1) * X.rsqrt()
    phi, slope_X, slope_Z = potential.phi_and_slopes(X, Z)
    if delta is not None:
        D = delta * delta
    else:
        D = _squared_focal_length(X, Z, potential.derivatives(X, Z))
    half = 0.5 * (X + Z - D)  # delta^2 sinh^2(u) and delta^2 sin^2(v): two roots of a quadratic
    larger = torch.sqrt(half * half + D * X) + half.abs()
    smaller = D * X / larger
    A = torch.where(half > 0, larger, smaller)
    square_sin = torch.where(half > 0, smaller, larger) / D
    cosh, sin, sinh = (A + D).sqrt(), square_sin.sqrt(), A.sqrt()  # of u times delta; of v
    cos = z / cosh
    p_u = v_R * cosh * sin + vz * sinh * cos
    p_v = v_R * sinh * cos - vz * cosh * sin
    energy = 0.5 * (v0 * v0 + v1 * v1 + vz * vz) + phi
    square_L_z = (L_z * L_z).clamp(min=SMALLEST_L_Z**2)
    star = _Star(
        energy, square_L_z, D, A, square_sin, cos * cos, p_u * p_u, p_v * p_v, phi, slope_X, slope_Z
    )
    return star, L_z


def _radial_action(
    star: _Star, potential: Potential, precision: Precision
) -> tuple[Tensor, Tensor]:
    """J_R, and whether both turning points were found."""
    A, D = star.square_radius, star.square_delta
    phi, slope = potential.plane.with_derivative(A)
    kinetic = 2 * (star.energy - phi)
    M2 = (A + D) * (kinetic - star.square_L_z / A) - star.square_p_u
    with torch.no_grad():
        roots, found = _radial_roots(star, M2, slope, potential, precision)
        ends = 0.5 * roots.log()
        middle, half = 0.5 * (ends[1] + ends[0]), 0.5 * (ends[1] - ends[0])
    cos, sin = _angles(precision.radial_nodes, torch.pi, A)
    Y = torch.exp(2 * (middle + half * cos))  # nodes evenly in an angle, of ln r
    energy_part = 2 * (star.energy - potential.plane(Y)) * Y
    squares = energy_part - star.square_L_z - M2 * Y / (Y + D)
    mean = (sin * squares.clamp(min=TINY).sqrt()).mean(0)
    return half * mean, found & _allowed(squares.detach(), star.square_L_z + M2.abs())


def _radial_roots(
    star: _Star, M2: Tensor, slope: Tensor, potential: Potential, precision: Precision
) -> tuple[Tensor, Tensor]:
    """Squared radii Y of peri- and apocentre, (2, n), and whether they were found, (n,).

    By Newton's method for 1/Y at the pericentre and 1/r at the apocentre: in both the squared
    momentum is concave (the density being positive), so that from outside the orbit steps do not
    overshoot, and from inside they do so at once.
    """
    A, D, L2 = star.square_radius, star.square_delta, star.square_L_z
    # First guess: a quadratic through the star, in A / Y inwards and in ln Y outwards, with the
    # curvature of a flat rotation curve.
    square_speed = 2 * A * slope
    excess = 2 * star.square_p_u / (A + D) / square_speed
    b = (L2 / A + M2 * A / (A + D) ** 2) / square_speed
    root = ((1 - b) ** 2 + b * excess).clamp(min=0).sqrt()
    rise = torch.where(b > 0.5, (root - (1 - b)) / b, excess / (root + (1 - b)))
    near = A / (2 - b + ((1 - b) ** 2 + excess).sqrt())
    lowest, highest, start, clear = _pericentre_bracket(star, M2, near, potential, precision.scan)
    low = torch.stack([lowest, A])
    high = torch.stack([highest, torch.full_like(A, LARGEST_RADIUS**2)])
    Y = torch.stack([start, A * torch.exp(rise.clamp(0, 8))])
    outwards = torch.tensor([[-1.0], [1.0]], dtype=A.dtype, device=A.device)
    for _ in range(precision.steps):
        phi, slope = potential.plane.with_derivative(Y)
        circular, tube = L2 / Y, M2 / (Y + D)
        square = 2 * (star.energy - phi) - circular - tube
        slope = outwards * (2 * Y * slope - circular - tube * Y / (Y + D))
        # rounding alone is no reason to leave a circular orbit
        square = torch.where(square.abs() < ROUNDING * square_speed, 0.0, square)
        step = square / slope.clamp(min=TINY)
        inner = Y[0] / (1 + step[0].clamp(-1 + 1e-9, 1e8))
        outer = Y[1] / (1 - 0.5 * step[1].clamp(max=1.6)) ** 2
        Y = torch.stack([inner, outer]).clamp(low, high)
    small = (step.abs() < 5e-2 * (Y[1] / Y[0] - 1)) | (square == 0)
    return Y, small.all(0) & clear & (Y[1] < LARGEST_RADIUS**2)


def _pericentre_bracket(
    star: _Star, M2: Tensor, near: Tensor, potential: Potential, scan: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Squared radii below and above the pericentre, a guess between them, and if it is sure, (n,).

    Near the centre of a disc the momentum may have several zeros; the pericentre is the first
    inside the star. It is sought at even steps of u; it is not sure if there may be zeros between.
    """
    A, D, L2 = star.square_radius, star.square_delta, star.square_L_z
    fractions = 1 - torch.arange(1, scan, dtype=A.dtype, device=A.device)[:, None] / scan
    grown = torch.exp(torch.asinh((A / D).sqrt()) * fractions)
    Y = 0.25 * D * (grown - grown.reciprocal()) ** 2
    rest = 2 * (star.energy - potential.plane(Y)) - M2 / (Y + D)
    square = rest - L2 / Y
    Y = torch.cat([A[None], Y, torch.zeros_like(A)[None]])
    square = torch.cat([(star.square_p_u / (A + D))[None], square, -torch.ones_like(A)[None]])
    positive = (square[1:-1] > 0).cumprod(0)
    last = positive.sum(0, keepdim=True)
    # between three radii the momentum may be lower than at the middle one: by a parabola
    inner, middle, outer = square[2:-1], square[1:-2], square[:-3]
    bend = (inner + outer - 2 * middle).clamp(min=TINY)
    dip = middle - (inner - outer).square() / (8 * bend)
    lowest = (middle < inner) & (middle < outer) & (positive[1:] > 0)
    clear = ~(lowest & (dip < 0)).any(0)
    low, high = (Y.gather(0, last + i)[0] for i in (1, 0))
    below, above = (square.gather(0, last + i)[0] for i in (1, 0))
    secant = torch.lerp(high, low, above / (above - below))
    secant = torch.where(last[0] == 0, near.clamp(low, high), secant)
    axis = (L2 / (above + L2 / high)).clamp(max=high)  # by L_z alone
    return low, high, torch.where(low > 0, secant, axis), clear


def _vertical_action(
    star: _Star, potential: Potential, precision: Precision
) -> tuple[Tensor, Tensor]:
    """J_z, and whether the turning point was found.

    The pole of p_v^2 at the axis is taken out: with C the square of the largest c and
    L~^2 = L_z^2 / (1 - C), whose share is L~ - |L_z|, what is left is regular there. The nodes are
    evenly in an angle of asinh(z / disc height), as the potential bends sharply in a thin disc.
    """
    A, D, L2 = star.square_radius, star.square_delta, star.square_L_z
    start = star.square_p_v + L2 / star.square_sin
    weight = A + D - D * star.square_cos

    def f(C: Tensor, phi: Tensor) -> Tensor:
        change = star.energy * D * (C - star.square_cos)
        return start - 2 * (change + (A + D - D * C) * phi - weight * star.phi)

    with torch.no_grad():
        C, found = _vertical_root(star, start, f, potential, precision.steps)
    cos, sin = _angles(precision.vertical_nodes, torch.pi / 2, A)
    unit = potential.disc_height * (A + D).detach().rsqrt()
    extent = torch.asinh(C.sqrt() / unit)
    grown = torch.exp(extent * sin)
    shrunk = grown.reciprocal()
    squares = (0.5 * unit * (grown - shrunk)) ** 2
    measure = 0.5 * unit * (grown + shrunk) * (extent * cos)
    L = L2.sqrt()
    spherical = L * (1 - C).rsqrt()
    rest = f(squares, potential.phi_of_squares(A * (1 - squares), (A + D) * squares))
    rest = rest - spherical * spherical
    below = C - squares
    radicand = spherical**2 + (1 - squares) * rest / below
    momentum = radicand.clamp(min=TINY).sqrt()
    mean = (rest * below.rsqrt() * measure / (momentum + spherical)).mean(0)
    allowed = _allowed(radicand.detach(), spherical**2) | (C <= 10 * PLANAR)
    return (spherical - L + mean).clamp(min=0), found & allowed


def _vertical_root(
    star: _Star,
    start: Tensor,
    f: Callable[[Tensor, Tensor], Tensor],
    potential: Potential,
    steps: int,
) -> tuple[Tensor, Tensor]:
    """Square C of the largest cos(v), (n,), and whether it was found.

    By Newton's method for sqrt(z^2 + disc height^2), in which the potential of a disc is straight,
    between the star and the pole; by halves where Newton's step leads out of the bracket.
    """
    A, D, L2 = star.square_radius, star.square_delta, star.square_L_z
    thin = potential.disc_height**2 / (A + D)

    def newton(C: Tensor, phi: Tensor, slope_X: Tensor, slope_Z: Tensor) -> tuple[Tensor, ...]:
        """Its value, the height and the step from it."""
        value = f(C, phi)
        bend = (A + D - D * C) * ((A + D) * slope_Z - A * slope_X)
        slope = (2 * (C - 1)) * (star.energy * D - D * phi + bend) - value
        value = value * (1 - C) - L2
        height = (C + thin).sqrt()
        return value, height, value / (2 * height * slope)

    _, low, change = newton(star.square_cos, star.phi, star.slope_X, star.slope_Z)
    high = (1 + thin).sqrt()
    # in a spherical potential f is constant
    height = torch.minimum(low - change, (1 - L2 / start + thin).sqrt())
    for _ in range(steps - 1):
        C = (height * height - thin).clamp(PLANAR, 1 - 1e-14)
        value, height, change = newton(C, *potential.phi_and_slopes(A * (1 - C), (A + D) * C))
        inside = value > 0
        low, high = torch.where(inside, height, low), torch.where(inside, high, height)
        target = height - change
        near = 1e-9 * height  # beyond the bracket by rounding
        between = (target > low - near) & (target < high + near)
        height = torch.where(between, target.clamp(low, high), 0.5 * (low + high))
    C = (height * height - thin).clamp(PLANAR, 1 - 1e-14)
    return C, change.abs() < 5e-2 * height


def _allowed(squares: Tensor, size: Tensor) -> Tensor:
    """Whether the squared momentum is positive at all nodes (nodes, n) but for rounding, (n,)."""
    rounding = 1e-6 * squares.amax(0).clamp(min=0) + 10 * ROUNDING * size
    return squares.amin(0) > -rounding


def _angles(nodes: int, extent: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines, (nodes, 1), of the midpoints of equal parts of 0 to ``extent``."""
    theta = (torch.arange(nodes, dtype=like.dtype, device=like.device)[:, None] + 0.5) / nodes
    return torch.cos(theta * extent), torch.sin(theta * extent)
