"""Lowered isothermal models of globular clusters (LIMEPY; Gieles & Zocchi 2015, GZ15), float64.

The distribution function is f ~ exp(-J^2 / (2 r_a^2 s^2)) E_gamma(g, -E / s^2) for bound stars. In
model units lengths are in King radii r_0 and velocities in s: the dimensionless potential phi falls
from W0 at the centre to 0 at the truncation radius r_t,

    laplacian phi = -9 rho(phi, r) / rho(W0, 0)   (GZ15 eq. 12),    m(r) = -r^2 dphi/dr,

and with M and r_h of a cluster r_0 = r_h / xi_h and s^2 = G M / (r_0 m_t). g = 0, 1, 2 are Woolley,
King and (nonrotating) Wilson models. Models are batched: W0, g and r_a / r_0 have shape (models,).
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from orrery.physics.constants import constant_like

G = 0.004300917270  # pc (km/s)^2 / Msun: IAU 2015 nominal solar mass parameter and parsec
SERIES_TERMS = 72  # of E_gamma: 1.4e-14 relative for x <= 16
W0_MIN, W0_MAX = 1.5, 14.0  # of the domain in which the emulator holds
MARGIN = 0.3  # of g below `g_max`: models nearer to it are not in the prior
# Chebyshev coefficients of `g_limit` over W0
_LIMIT_SERIES = (2.3746066, -0.4648896, 0.2897469, -0.0232391, -0.1243574, 0.0319069, 0.0549013)
_ANISOTROPY_SERIES = (  # of a and b, where g_limit is lower by s^2 / (a + b s^2), s = r_h / r_a
    (
        1.20327,
        -0.62801,
        0.69435,
        -0.63163,
        0.18759,
        -0.06494,
        0.11561,
        -0.09392,
        -0.14109,
        -0.03275,
        0.03716,
    ),
    (0.21813, 0.15713, -0.15981, 0.20762, -0.03557, -0.00975, -0.03696, 0.02243, 0.16348),
)
FRACTION_LEVELS = 28  # of the continued fraction of the anisotropic density: 7e-12 relative

# Runge-Kutta of order 6 in seven stages (Butcher 1964)
_C = (0.0, 1 / 3, 2 / 3, 1 / 3, 1 / 2, 1 / 2, 1.0)
_A = (
    (),
    (1 / 3,),
    (0.0, 2 / 3),
    (1 / 12, 1 / 3, -1 / 12),
    (-1 / 16, 9 / 8, -3 / 16, -3 / 8),
    (0.0, 9 / 8, -3 / 8, -3 / 4, 1 / 2),
    (9 / 44, -9 / 11, 63 / 44, 18 / 11, 0.0, -16 / 11),
)
_B = (11 / 120, 0.0, 27 / 40, 27 / 40, -4 / 15, -4 / 15, 11 / 120)


class _LoweredExponential(torch.autograd.Function):
    """torch has no derivative of the incomplete gamma function in its first argument."""

    @staticmethod
    def forward(a: Tensor, x: Tensor) -> Tensor:
        return x**a * _series(x, _coefficients(a))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:  # type: ignore[override]
        a, x, value = ctx.saved_tensors
        by_a = by_x = None
        if ctx.needs_input_grad[0]:
            coefficients = _coefficients(a)
            k = torch.arange(SERIES_TERMS, dtype=a.dtype, device=a.device)
            slopes = coefficients * torch.digamma(a[..., None] + k + 1)
            log_x = torch.where(x > 0, x, 1.0).log()
            by_a = (grad * (value * log_x - x**a * _series(x, slopes))).sum_to_size(a.shape)
        if ctx.needs_input_grad[1]:
            by_x = (grad * (value + x ** (a - 1) * torch.exp(-torch.lgamma(a)))).sum_to_size(
                x.shape
            )
        return by_a, by_x


def lowered_exponential(a: Tensor, x: Tensor) -> Tensor:
    """E_gamma(a, x) = e^x P(a, x), the lowered exponential of GZ15 eq. 2; e^x for a = 0.

    ``a`` > 0 or 0 and 0 <= ``x`` <= 16 broadcast against each other. d/dx E_gamma(a, x) is
    E_gamma(a - 1, x).
    """
    return _LoweredExponential.apply(a, x)  # type: ignore[no-untyped-call,no-any-return]


def _coefficients(a: Tensor) -> Tensor:
    """1 / Gamma(a + k + 1), (..., SERIES_TERMS)."""
    k = torch.arange(SERIES_TERMS, dtype=a.dtype, device=a.device)
    return torch.exp(-torch.lgamma(a[..., None] + k + 1))


def _series(x: Tensor, coefficients: Tensor) -> Tensor:
    """sum_k c_k x^k by Horner's rule: all terms are positive."""
    total = coefficients[..., -1].expand(torch.broadcast_shapes(x.shape, coefficients.shape[:-1]))
    for k in range(SERIES_TERMS - 2, -1, -1):
        total = torch.addcmul(coefficients[..., k], total, x)
    return total


def suppression(b: Tensor, z: Tensor) -> Tensor:
    """1F1(1; b; -z) for b > 1, z >= 0, by its M-fraction (McCabe 1974), at any z."""
    first = b - 1 + z
    tail = first + FRACTION_LEVELS
    for k in range(FRACTION_LEVELS - 1, -1, -1):
        tail = torch.addcdiv(first + k, z, tail, value=-(k + 1))
    return (b - 1) / tail


def second_suppression(b: Tensor, z: Tensor) -> Tensor:
    """1F1(2; b; -z) for b > 2, z >= 0: -(b - 1) times the slope of 1F1(1; b - 1; -z)."""
    first = b - 2 + z
    tail, slope = first + FRACTION_LEVELS, torch.ones_like(first)
    for k in range(FRACTION_LEVELS - 1, -1, -1):
        part = (k + 1) / tail
        slope = 1 - part + part * z / tail * slope
        tail = first + k - part * z
    return (b - 1) * (b - 2) * slope / tail.square()


def moment(a: Tensor, phi: Tensor, p2: Tensor | None, isotropic: Tensor | None = None) -> Tensor:
    """Density of a = g + 3/2, radial pressure of a = g + 5/2, over (2 pi)^(3/2); p2 = (r / r_a)^2.

    GZ15 eqs. 8 and 33. ``isotropic``: E_gamma(a, phi), if it is known already.
    """
    if isotropic is None:
        isotropic = lowered_exponential(a, phi)
    if p2 is None:
        return isotropic
    term = p2 * phi**a * suppression(a + 1, phi * p2) * torch.exp(-torch.lgamma(a + 1))
    return (isotropic + term) / (1 + p2)


def pressures(g: Tensor, phi: Tensor, p2: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Density, radial pressure and that of one tangential direction, over (2 pi)^(3/2).

    The tangential one is the integral over k = v_t^2 / 2 of k e^(-k p2) E_gamma(g + 1/2, phi - k):
    by Laplace transforms a sum of positive terms, of which the second has 1F1(2; g + 7/2; -z).
    """
    a = g + 2.5
    density, radial = moment(a - 1, phi, p2), moment(a, phi, p2)
    if p2 is None:
        return density, radial, radial
    term = p2 * phi**a * second_suppression(a + 1, phi * p2) * torch.exp(-torch.lgamma(a + 1))
    return density, radial, (radial + term) / (1 + p2)


class Model(NamedTuple):
    """Solved models: functions at knots from the centre to the edge, and scalars of each model."""

    W0: Tensor  # (models,)
    g: Tensor
    ra: Tensor | None  # r_0
    phi: Tensor  # (models, knots)
    log_r: Tensor  # of r in r_0
    log_density: Tensor  # ln(m / r^3)
    rt: Tensor  # truncation radius, r_0; negative or infinite where the model has no edge
    mt: Tensor  # total mass in units of r_0 s^2 / G
    rh: Tensor  # half-mass radius, r_0


def solve(W0: Tensor, g: Tensor, ra: Tensor | None = None, steps: int = 400) -> Model:
    """Solve Poisson's equation with the potential as the independent variable: no edge is searched.

    With u = W0 - phi = W0 sigmoid(t), y = ln(r^2 / u) and w = ln(m / r^3) the equations are regular
    at both ends: t runs in equal steps from -15 to 13.
    """
    W0, g = W0.double()[:, None], g.double()[:, None]
    anisotropic = None if ra is None else ra.double()[:, None]
    t = torch.linspace(-15, 13, steps + 1, dtype=W0.dtype, device=W0.device)
    h = 28 / steps
    # the isotropic density depends on phi alone, and is computed for all steps and stages at once
    fractions = sorted(set(_C[:-1]))
    stage = {c: i for i, c in enumerate(fractions)}
    times = torch.stack([t[:-1] + h * c for c in fractions], 1)
    times = torch.cat([times.flatten(), t[-1:]])
    phi_all, u_all = W0 * torch.sigmoid(-times), W0 * torch.sigmoid(times)
    a = g + 1.5
    rho_0 = lowered_exponential(a, W0)
    rho_all = lowered_exponential(a, phi_all) * (9 / rho_0)
    last = len(fractions)

    def slope(at: int, y: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        phi, u = phi_all[:, at], u_all[:, at]
        rho = rho_all[:, at]
        if anisotropic is not None:
            p2 = u * y.exp() / anisotropic[:, 0] ** 2
            iso = rho * rho_0[:, 0] / 9
            rho = moment(a[:, 0], phi, p2, iso) * (9 / rho_0[:, 0])
        left = phi / W0[:, 0]  # du/dt = u phi / W0
        inverse = torch.exp(-y - w)
        return left * (2 * inverse - 1), left * inverse * (rho * torch.exp(-w) - 3)

    y, w = _centre(W0[:, 0], g[:, 0], None if ra is None else anisotropic[:, 0], u_all[:, 0])  # type: ignore[index]
    ys, ws = [y], [w]
    for n in range(steps):
        slopes: list[tuple[Tensor, Tensor]] = []
        for row, c in zip(_A, _C, strict=True):
            at = last * (n + 1) if c == 1 else last * n + stage[c]
            dy, dw = (_combined(row, [k[i] for k in slopes]) for i in (0, 1))
            slopes.append(slope(at, y + h * dy, w + h * dw))
        y = y + h * _combined(_B, [k[0] for k in slopes])
        w = w + h * _combined(_B, [k[1] for k in slopes])
        ys.append(y)
        ws.append(w)
    knots = torch.arange(steps + 1, device=W0.device) * last
    phi, u = phi_all[:, knots], u_all[:, knots]
    log_r = 0.5 * (torch.stack(ys, 1) + u.log())
    log_density = torch.stack(ws, 1)
    # the mass beyond the last knot is negligible: Kepler's potential
    r, m = log_r[:, -1].exp(), torch.exp(log_density[:, -1] + 3 * log_r[:, -1])
    rt = 1 / (1 / r - phi[:, -1] / m)
    model = Model(W0[:, 0], g[:, 0], ra, phi, log_r, log_density, rt, m, rt)
    half = torch.full_like(rt[:, None], 0.5)
    return model._replace(rh=radius_of_mass(model, half)[:, 0])


def _combined(weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor | float:
    total: Tensor | float = 0.0
    for weight, slope in zip(weights, slopes, strict=True):
        if weight:
            total = (
                weight * slope
                if isinstance(total, float)
                else torch.add(total, slope, alpha=weight)
            )
    return total


def _centre(W0: Tensor, g: Tensor, ra: Tensor | None, u: Tensor) -> tuple[Tensor, Tensor]:
    """y and w at a small depth u: phi = W0 - 3/2 r^2 + 9/20 c r^4, rho/rho_0 = 1 - c r^2."""
    a = g + 1.5
    rho_0 = lowered_exponential(a, W0)
    c = 1.5 * lowered_exponential(a - 1, W0) / rho_0
    if ra is not None:  # d(rho)/d(p^2) at the centre: -E_gamma(a + 1, W0)
        c = c + lowered_exponential(a + 1, W0) / rho_0 / ra**2
    r2 = u / 1.5 * (1 + 0.2 * c * u)
    return torch.log(r2 / u), math.log(3) - 0.6 * c * r2


def radius_of_mass(model: Model, fraction: Tensor) -> Tensor:
    """Radius that holds the ``fraction`` (models, n) of the mass, r_0: the exact inverse of M(<r).

    Newton's method in ln r from the nearest knot; the last step carries the gradient.
    """
    log_m = (model.log_density + 3 * model.log_r).contiguous()
    target = (fraction * model.mt[:, None]).log()
    index = torch.searchsorted(log_m.detach(), target.detach()).clamp(1, log_m.shape[1] - 1)
    knots, masses = model.log_r.detach(), log_m.detach()
    low, high = masses.gather(1, index - 1), masses.gather(1, index)
    weight = ((target.detach() - low) / (high - low)).clamp(0, 1)
    log_r = torch.lerp(knots.gather(1, index - 1), knots.gather(1, index), weight)
    innermost = target < log_m[:, :1]  # uniform density
    for _ in range(3):
        log_r = log_r.detach()
        phi, w = at_radius(model, log_r.exp())
        slope = 9 * density(model, phi, log_r.exp()) * torch.exp(-w)
        log_r = log_r - (w + 3 * log_r - target) / slope.clamp_min(1e-3)
    centre = model.log_r[:, :1] + (target - log_m[:, :1]) / 3
    return torch.where(innermost, centre, log_r).exp()


def log_df(model: Model, energy: Tensor, r0: Tensor, s2: Tensor) -> Tensor:
    """ln f / M of isotropic models, (pc km/s)^-3, at dimensionless energies > 0, (models, n).

    r0 (models,), pc, and s2, (km/s)^2, are the scales. The integral over phase space is 1.
    """
    norm = 4 * math.pi / 9 * (2 * math.pi) ** 1.5 * r0**3 * s2**1.5 * model.mt
    norm = norm * lowered_exponential(model.g + 1.5, model.W0)
    return lowered_exponential(model.g[:, None], energy).log() - norm.log()[:, None]


def density(model: Model, phi: Tensor, r: Tensor) -> Tensor:
    """rho / rho(centre), (models, n); 0 outside the truncation radius."""
    a = model.g[:, None] + 1.5
    p2 = None if model.ra is None else (r / model.ra[:, None]) ** 2
    return moment(a, phi.clamp_min(0), p2) / lowered_exponential(a, model.W0[:, None])


def at_radius(model: Model, r: Tensor) -> tuple[Tensor, Tensor]:
    """phi and ln(m / r^3) at ``r`` (models, n), r_0, by one step in ln r from the nearest knot.

    Outside r_t phi is Kepler's, negative.
    """
    first, last = model.log_r[:, :1], model.log_r[:, -1:]
    goal = r.clamp_min(1e-300).log()
    inside = torch.minimum(torch.maximum(goal, first), last)
    knots = model.log_r.detach().contiguous()
    right = torch.searchsorted(knots, inside.detach()).clamp(1, knots.shape[1] - 1)
    nearer = inside.detach() - knots.gather(1, right - 1) < knots.gather(1, right) - inside.detach()
    index = torch.where(nearer, right - 1, right)
    start, phi, w = (v.gather(1, index) for v in (model.log_r, model.phi, model.log_density))
    h = inside - start

    def slope(log_r: Tensor, phi: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        r = log_r.exp()
        return -torch.exp(w) * r * r, 9 * density(model, phi, r) * torch.exp(-w) - 3

    slopes: list[tuple[Tensor, Tensor]] = []
    for row, c in zip(_A, _C, strict=True):
        dphi, dw = (_combined(row, [k[i] for k in slopes]) for i in (0, 1))
        slopes.append(slope(start + c * h, phi + h * dphi, w + h * dw))
    phi = phi + h * _combined(_B, [k[0] for k in slopes])
    w = w + h * _combined(_B, [k[1] for k in slopes])
    centre = goal < first
    phi = torch.where(centre, model.W0[:, None] - 1.5 * r * r, phi)
    mt, rt = model.mt[:, None], model.rt[:, None]
    phi = torch.where(goal > last, mt / r - mt / rt, phi)
    return phi, torch.where(goal > last, mt.log() - 3 * goal, w)


def g_max(W0: Tensor) -> Tensor:
    """The truncation index at which r_t of isotropic models diverges for the first time, (models,).

    There a halo forms (GZ15 sec. 3.1); taken where r_t passes 10^4 half-mass radii of the King
    model (g = 1) of the same ``W0``.
    """
    W0 = W0.double()
    limit = 1e4 * solve(W0, torch.ones_like(W0), steps=200).rh
    low, width = torch.ones_like(W0), 2.5
    parts = torch.arange(1, 4, dtype=W0.dtype, device=W0.device) / 4
    for _ in range(10):  # two bisections at once: a solution costs its steps, not its models
        g = low[:, None] + width * parts
        rt = solve(W0[:, None].expand_as(g).flatten(), g.flatten(), steps=200).rt.view_as(g)
        finite = (rt > 0) & (rt < limit[:, None])
        width = width / 4
        low = low + width * finite.cumprod(1).sum(1)
    return low + 0.5 * width


def _float64(coefficients: tuple[float, ...]) -> Tensor:
    return torch.tensor(coefficients, dtype=torch.float64)


def g_limit(W0: Tensor, rh_ra: Tensor | None = None) -> Tensor:
    """The largest g of the domain, 0.2 to 0.3 below where r_t diverges: a smooth function.

    ``rh_ra``: r_h / r_a, (models,), from 0 to 1; None where isotropic.
    """
    angle = torch.arccos((2 * W0 - W0_MIN - W0_MAX) / (W0_MAX - W0_MIN) * (1 - 1e-12))

    def series(coefficients: tuple[float, ...]) -> Tensor:
        order = torch.arange(len(coefficients), dtype=W0.dtype, device=W0.device)
        return torch.cos(angle[..., None] * order) @ constant_like(W0, _float64, coefficients)

    limit = series(_LIMIT_SERIES)
    if rh_ra is None:
        return limit
    s2 = rh_ra.square()
    return limit - s2 / (series(_ANISOTROPY_SERIES[0]) + series(_ANISOTROPY_SERIES[1]) * s2)


def solve_rh_ra(W0: Tensor, g: Tensor, rh_ra: Tensor, steps: int = 400) -> Model:
    """Models of given r_h / r_a, ``rh_ra`` (models,) from 0 to 1, within `g_limit`.

    Anisotropy widens a model, at most twofold in this domain: bisection in ln r_a with coarse
    solutions, for models without an edge are too anisotropic; then the secant method.
    """
    isotropic = rh_ra == 0
    rh_ra = torch.where(isotropic, 1.0, rh_ra.double())
    start = (solve(W0, g, steps=100).rh / rh_ra).log()

    def excess(log_ra: Tensor, steps: int) -> tuple[Tensor, Model]:
        model = solve(W0, g, torch.where(isotropic, torch.inf, log_ra.exp()), steps)
        excess = model.rh.log() - log_ra - rh_ra.log()
        has_edge = (model.rt > 0) & (model.rt < 1e4 * model.rh)
        return torch.where(has_edge, excess, 1.0), model

    low, high = start, start + math.log(2)  # too anisotropic, not enough
    for _ in range(6):
        middle = 0.5 * (low + high)
        above = excess(middle, 100)[0] > 0
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    last_log_ra, log_ra = high, high - 0.5 * (high - low)
    last_excess = excess(last_log_ra, 100)[0]
    for n in (100, 200, steps, steps, steps):
        new_excess, model = excess(log_ra, n)
        change = last_excess - new_excess
        step = torch.where(change.abs() > 1e-12, new_excess * (last_log_ra - log_ra) / change, 0.0)
        last_log_ra, last_excess, log_ra = log_ra, new_excess, log_ra - step
    return model
