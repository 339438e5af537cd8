"""Arrays of the figures, by figure."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from orrery.models.abundances.mixture import Mixture, Stars, log_density
from orrery.models.base import Rows
from orrery.physics.abundances.species import ELEMENTS

IRON = "Fe"
TRUE = "true density"  # its name among the densities
# In the corner, from sites of their own: core collapse, r-process, s-process, then others
CORNER = ("Mg", "Eu", "Ba", "Ca", "C", "Na", "Si", "Ti", "Ni")
CORNER_ELEMENTS, CORNER_STARS, CORNER_POINTS = 4, 150, 80
SIGMAS = 4.0  # of the widest Gaussian, beyond which the corner shows nothing
SCORED = 600  # stars whose elements are predicted one by one
LEAST_OF_AN_ELEMENT = 20  # stars, where it is drawn
FEWEST_ELEMENTS = 3  # measured, of the stars whose pattern is drawn
P_USUAL = 0.5


def figure_data(
    elements: Sequence[str],
    rows: Rows,
    ordered: Rows,
    stars: Stars,
    names: Sequence[str],
    densities: Mapping[str, Mixture],
    hits: Mapping[str, Mapping[str, np.ndarray]],
) -> dict[str, dict[str, np.ndarray]]:
    """Of `figures.abundances`.

    Args:
        elements: symbols of the model's k elements.
        rows: predictions, in any order.
        ordered: those of the first of ``stars``, in their order.
        stars: measurements, (n, k).
        names: of the stars, (n,).
        densities: by name, ours first, and `TRUE`, if it is known.
        hits: by element and level, whether intervals held what they predict.
    """
    figures = {"calibration": calibration(rows, hits)}
    if pattern := patterns(elements, ordered, stars, names):
        figures["pattern"] = pattern
    figures["corner"] = corner(elements, stars, densities)
    if len(densities) > 1:
        figures["nll"] = excess_nll(elements, stars, densities)
    return {name: arrays for name, arrays in figures.items() if arrays}


# --- the pattern of single stars ------------------------------------------------------------------


def patterns(
    elements: Sequence[str], rows: Rows, stars: Stars, names: Sequence[str]
) -> dict[str, np.ndarray]:
    """Abundances of the most unusual star and of a usual one, with what others predict of each.

    ``value``, ``error``, ``limit``, ``expected`` (2, k), ``interval`` (2, k, 4), [X/H] in dex by
    atomic number, of which ``iron`` (2,), the star's [Fe/H], is subtracted for [X/Fe].
    """
    stars = stars.select(torch.arange(min(stars.n, len(rows["p_value"]))))
    p_value = rows["p_value"][: stars.n]
    n_measured = stars.measured.sum(1).numpy()
    least = min(FEWEST_ELEMENTS, int(n_measured.max()))
    p = np.where((n_measured >= least) & np.isfinite(p_value), p_value, np.nan)
    if not np.isfinite(p).any():
        return {}
    unusual = int(np.nanargmin(p))
    # of the usual stars that with most elements measured
    usual = int(np.nanargmin(np.abs(p - P_USUAL) - 0.05 * n_measured))
    chosen = [unusual] if usual == unusual else [unusual, usual]
    order = [x for x in ELEMENTS if x in elements]
    columns = [elements.index(x) for x in order]
    star = stars.select(torch.tensor(chosen))

    def predicted(suffix: str) -> np.ndarray:
        return np.stack([rows[f"{x.lower()}_{suffix}"][chosen] for x in order], 1)

    levels = ("h_low95", "h_low68", "h_high68", "h_high95")
    expected, value = predicted("h_expected"), star.value[:, columns].numpy()
    iron = np.zeros(len(chosen))
    if IRON in order:
        j = order.index(IRON)
        measured = star.measured[:, columns[j]].numpy()
        iron = np.where(measured, value[:, j], expected[:, j])
    return {
        "name": np.array([names[i] for i in chosen]),
        "elements": np.array(order),
        "value": value,
        "error": _errors(star)[:, columns].numpy(),
        "limit": star.limit[:, columns].numpy(),
        "expected": expected,
        "interval": np.stack([predicted(level) for level in levels], 2),
        "p_element": predicted("p_value"),
        "p_value": p[chosen],
        "iron": iron,
        "has_iron": np.array(IRON in order),
    }


def _errors(stars: Stars) -> Tensor:
    """(n, k), of each [X/H] alone, dex."""
    return (stars.variance + stars.responses.square().sum(2)).sqrt()


# --- a corner of the density ----------------------------------------------------------------------


def corner(
    elements: Sequence[str], stars: Stars, densities: Mapping[str, Mixture]
) -> dict[str, np.ndarray]:
    """[Fe/H] and some [X/Fe] (d of them), and the density of true abundances in each plane.

    ``value``, ``error``, ``limit`` (n, d) of some stars; ``grid`` (d, points); ``density``
    (d, d, points, points), of the axes (i, j), on the diagonal in [i, i, 0]; the same of the
    ``true`` density, if it is known.
    """
    often = stars.measured.sum(0).numpy() + 0.1 * stars.limited.sum(0).numpy()
    wanted = [x for x in CORNER if x in elements and often[elements.index(x)] > 0]
    rest = sorted(set(elements) - {IRON, *wanted}, key=lambda x: -often[elements.index(x)])
    has_iron = IRON in elements
    chosen = ([IRON] if has_iron else []) + wanted + rest
    chosen = chosen[:CORNER_ELEMENTS]
    if len(chosen) < 2:
        return {}
    d, k = len(chosen), len(elements)
    take = torch.zeros(d, k)  # [X/H] -> [Fe/H], [X/Fe]
    for i, x in enumerate(chosen):
        take[i, elements.index(x)] = 1
        if has_iron and x != IRON:
            take[i, elements.index(IRON)] = -1
    columns = [elements.index(x) for x in chosen]
    own = stars.value[:, columns]
    limit = stars.limit[:, columns]
    value = stars.value.nan_to_num(0.0) @ take.mT
    unknown = own.isnan()
    if has_iron:
        iron = stars.measured[:, [elements.index(IRON)]]
        unknown = unknown | ~iron
    value = value.masked_fill(unknown, torch.nan)
    causes = torch.einsum("dk,nkr->ndr", take, stars.responses)
    variance = take.square() @ stars.variance.mT  # (d, n)
    error = (variance.mT + causes.square().sum(2)).sqrt()
    some = torch.randperm(stars.n, generator=torch.Generator().manual_seed(0))[:CORNER_STARS]
    arrays = {
        "labels": np.array([_label(x, has_iron) for x in chosen]),
        "value": value[some].numpy(), "error": error[some].numpy(), "limit": limit[some].numpy(),
    }  # fmt: skip
    ours = next(iter(densities.values()))
    mean, spread = _moments(ours, take)
    low, high = mean - SIGMAS * spread, mean + SIGMAS * spread
    grid = low[:, None] + (high - low)[:, None] * torch.linspace(0, 1, CORNER_POINTS)
    arrays |= {"grid": grid.numpy(), "density": _planes(ours, take, grid)}
    if TRUE in densities:
        arrays["true"] = _planes(densities[TRUE], take, grid)
    return arrays


def _label(element: str, has_iron: bool) -> str:
    return f"[{element}/Fe]" if has_iron and element != IRON else f"[{element}/H]"


def _one_weight(mixture: Mixture) -> Mixture:
    """With the mean of the stars' weights, where each has its own."""
    if mixture.log_weight.ndim == 1:
        return mixture
    return mixture._replace(log_weight=mixture.log_weight.exp().mean(0).log())


def _moments(mixture: Mixture, take: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (d,) of ``take @ abundances``."""
    mixture = _one_weight(mixture)
    weight, means = mixture.log_weight.exp(), mixture.mean @ take.mT
    mean = weight @ means
    variances = (take @ mixture.covariance() @ take.mT).diagonal(dim1=1, dim2=2)
    return mean, (weight @ (variances + (means - mean).square())).sqrt()


def _planes(mixture: Mixture, take: Tensor, grid: Tensor) -> np.ndarray:
    """(d, d, points, points): density in the plane of axes j (last) and i; its own for i = j."""
    mixture = _one_weight(mixture)
    take, grid = take.to(mixture.mean), grid.to(mixture.mean)
    weight, mean = mixture.log_weight.exp(), mixture.mean @ take.mT
    covariance = take @ mixture.covariance() @ take.mT
    d, points = grid.shape
    planes = torch.zeros(d, d, points, points)
    for i in range(d):
        z2 = (grid[i] - mean[:, i, None]).square() / covariance[:, i, i, None]
        alone = (-0.5 * z2).exp() / (2 * torch.pi * covariance[:, i, i, None]).sqrt()
        planes[i, i] = weight @ alone
        for j in range(i):
            C = covariance[:, [i, j]][:, :, [i, j]]
            step = torch.stack(torch.meshgrid(grid[i], grid[j], indexing="ij"), -1).flatten(0, 1)
            step = step - mean[:, None, [i, j]]  # (K, points^2, 2)
            z2 = torch.einsum("kpa,kab,kpb->kp", step, torch.linalg.inv(C), step)
            both = (-0.5 * z2).exp() / (2 * torch.pi * torch.linalg.det(C).sqrt()[:, None])
            planes[i, j] = (weight @ both).unflatten(0, (points, points))
    return planes.numpy()


# --- calibration, and the densities compared ------------------------------------------------------


def calibration(rows: Rows, hits: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Coverage of 68 and 95% by element, of ``n`` cases each, and p-values of stars."""
    p = rows["p_density"]
    scored = [x for x in ELEMENTS if x in hits and len(hits[x]["68"]) >= LEAST_OF_AN_ELEMENT]
    return {
        "elements": np.array(scored),
        "n": np.array([len(hits[x]["68"]) for x in scored]),
        "coverage_68": np.array([hits[x]["68"].mean() for x in scored]),
        "coverage_95": np.array([hits[x]["95"].mean() for x in scored]),
        "p_density": p[np.isfinite(p)],
        "p_elements": rows["p_elements"][np.isfinite(rows["p_elements"])],
    }


def excess_nll(
    elements: Sequence[str], stars: Stars, densities: Mapping[str, Mixture]
) -> dict[str, np.ndarray]:
    """How much worse each density predicts an element of a star from the others, nat.

    ``excess`` and ``error`` (densities, elements + 1): mean of -ln p(element | the others) over
    stars that have it, minus that of the ``reference``, the true density or else ours; first that
    of all abundances together, per abundance.
    """
    stars = stars.select(torch.arange(min(stars.n, SCORED)))
    known = ~stars.value.isnan()
    reference = TRUE if TRUE in densities else next(iter(densities))
    lnp = {name: _per_element(mixture, stars) for name, mixture in densities.items()}
    names = [name for name in densities if name != reference]
    order = [x for x in ELEMENTS if x in elements]
    order = [x for x in order if int(known[:, elements.index(x)].sum()) >= LEAST_OF_AN_ELEMENT]
    excess, error = np.zeros((len(names), len(order) + 1)), np.zeros((len(names), len(order) + 1))
    count = known.sum(1).double()
    for i, name in enumerate(names):
        worse = lnp[reference][0] - lnp[name][0]  # (n,)
        ratio = worse.sum() / count.sum()
        spread = (worse - ratio * count).square().sum().sqrt() / count.sum()
        excess[i, 0], error[i, 0] = float(ratio), float(spread)
        for j, x in enumerate(order):
            column = elements.index(x)
            worse = (lnp[reference][1] - lnp[name][1])[known[:, column], column]
            excess[i, j + 1] = float(worse.mean())
            error[i, j + 1] = float(worse.std() / len(worse) ** 0.5)
    return {
        "elements": np.array(order), "densities": np.array(names), "excess": excess,
        "error": error, "reference": np.array(reference), "n": np.array(stars.n),
    }  # fmt: skip


def _per_element(mixture: Mixture, stars: Stars) -> tuple[Tensor, Tensor]:
    """ln p of all abundances (n,), and of each given the others (n, k), NaN where there is none."""
    if mixture.log_weight.ndim == 2:
        mixture = mixture._replace(log_weight=mixture.log_weight[: stars.n])
    stars = stars.of_type(mixture.mean.dtype)
    together, known = log_density(mixture, stars), ~stars.value.isnan()
    each = torch.full_like(stars.value, torch.nan)
    for j in range(stars.value.shape[1]):
        rows = known[:, j]
        mask = torch.zeros_like(known)
        mask[:, j] = True
        one = mixture
        if one.log_weight.ndim == 2:
            one = one._replace(log_weight=one.log_weight[rows])
        others = log_density(one, stars.without(mask).select(rows))
        each[rows, j] = together[rows] - others
    return together.double(), each.double()
