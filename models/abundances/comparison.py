"""Whether two structures are chemically the same, and what difference their stars could have shown.

What is compared, and by which approximations, is in `offsets`. The test's statistic is the ln Bayes
factor of two offsets against one. Its p-value is by permutation: stars change places between the
structures, each with its own elements, errors and limits. It is exact, at any number of stars and
permutations, where stars of both structures are alike in those and in [Fe/H]; where not, each
star's residual is weighted by its own covariance.
"""

import difflib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from orrery.models.abundances.mixture import Mixture, Stars
from orrery.models.abundances.offsets import (
    Difference,
    Measured,
    Residuals,
    difference,
    log_bayes_factor,
    measured,
    residuals,
)
from orrery.models.base import Batch, Comparison, Output

IRON = "Fe"
LEAST_PRECISION = 0.01  # 1 / dex^2, of a difference: that of an element without information
LEVEL, POWER = 0.05, 0.8  # of the smallest detectable difference
CRITICAL = 1.960  # errors of a difference, at LEVEL
FOUND = CRITICAL + 0.842  # errors of a difference that is found at LEVEL with POWER
SIMULATED, STEPS, LARGEST = 2000, 12, 3.0  # simulations, bisections, dex
APART = 2.0  # spreads between the mean [Fe/H] of structures that hardly overlap
_TIE = 1e-9  # nat: statistics that are equal but for rounding
_CHUNK = 2**24  # numbers of a chunk's largest array


# --- the permutation test -------------------------------------------------------------------------


def relabelled(n: int, m: int, permutations: int, seed: int) -> tuple[Tensor, bool]:
    """(labels (L, n), whether all): which ``m`` of ``n`` stars may be those of one structure.

    All subsets if there are no more than ``permutations``; otherwise so many random ones.
    """
    if math.comb(n, m) <= permutations:
        subsets = torch.tensor(list(itertools.combinations(range(n), m)))
        complete = True
    else:
        generator = torch.Generator().manual_seed(seed)
        order = torch.rand(permutations, n, generator=generator, dtype=torch.float64)
        subsets, complete = order.argsort(1)[:, :m], False
    return torch.zeros(len(subsets), n, dtype=torch.float64).scatter_(1, subsets, 1.0), complete


def statistic(measured: Measured, labels: Tensor) -> Tensor:
    """ln Bayes factor (..., L) of two structures against one, of ``labels`` (L, n)."""
    size = max(1, _CHUNK // measured.precision[..., 0, :, :].numel())
    parts = [
        log_bayes_factor(difference(measured, chunk), measured.log_weight)
        for chunk in labels.split(size)
    ]
    return torch.cat(parts, -1)


def permutation_p_value(observed: Tensor, permuted: Tensor, complete: bool) -> Tensor:
    """(...) of the statistics ``observed`` (...) and ``permuted`` (..., L).

    Of random permutations the observed labels are one more (Phipson & Smyth 2010, equation 2).
    """
    reached = (permuted >= observed[..., None] - _TIE).sum(-1).double()
    extra = 0 if complete else 1
    return (reached + extra) / (permuted.shape[-1] + extra)


# --- what could have been found -------------------------------------------------------------------


class Detectable(NamedTuple):
    """Smallest differences that are found at 5% with a probability of 80%, dex; NaN: none."""

    every: float  # the same in all of the elements
    one: float  # in one of them, any


def detectable(Q: Tensor, log_weight: Tensor, common: Tensor, n: int, seed: int) -> Detectable:
    """By simulation: of scatters by their probability, likelihoods of a difference d, N(Q d, Q).

    Permuted stars of two structures that are observed to differ by d differ by chance, with a
    variance of d^2 / (n - 1), which raises the critical value. There, where 80% are found, the
    observed difference is 1.96 errors of the true one's 2.80.

    ``Q`` (S, k, k): of the two structures, `offsets.Difference`; ``log_weight`` (S,): of scatters;
    ``common`` (k,): elements of both; ``n``: stars of both together.
    """
    generator = torch.Generator().manual_seed(seed)
    size, directions = torch.linalg.eigh(Q)
    root = directions * size.clamp_min(0).sqrt()[..., None, :]
    noise = torch.randn(SIMULATED, len(common), generator=generator, dtype=Q.dtype)
    ends = (log_weight.exp().cumsum(0) * SIMULATED).round().long().clamp(max=SIMULATED)
    parts = torch.arange(SIMULATED).tensor_split(ends[:-1])  # simulations of each scatter
    elements = common.nonzero()[:, 0]
    chosen = elements[torch.randint(len(elements), (SIMULATED,), generator=generator)]
    one = torch.eye(len(common), dtype=Q.dtype)[chosen]
    every = common.to(Q).expand(SIMULATED, -1)
    certain = torch.zeros(1, dtype=Q.dtype)  # ln of the probability of one scatter

    def statistics(d: Tensor) -> Tensor:
        found = [
            log_bayes_factor(
                Difference((noise[rows] @ R.T + d[rows] @ q)[None], q[None, None]), certain
            )
            for rows, R, q in zip(parts, root, Q, strict=True)
            if len(rows)
        ]
        return torch.cat(found)

    by_chance = torch.randn(SIMULATED, 1, generator=generator, dtype=Q.dtype)
    by_chance *= CRITICAL / FOUND / math.sqrt(n - 1)

    def power(d: Tensor) -> float:
        critical = statistics(by_chance * d).quantile(1 - LEVEL)
        return float((statistics(d) > critical).double().mean())

    def smallest(direction: Tensor) -> float:
        low, high = 0.0, LARGEST
        if power(high * direction) < POWER:
            return math.nan
        for _ in range(STEPS):
            middle = (low + high) / 2
            low, high = (low, middle) if power(middle * direction) >= POWER else (middle, high)
        return high

    return Detectable(smallest(every), smallest(one))


# --- pairs of structures --------------------------------------------------------------------------


class Pair(NamedTuple):
    """Structure B against A; NaN where they cannot be compared. Differences are B - A."""

    log_bayes_factor: float  # ln, of two structures against one
    p_value: float
    detectable: Detectable
    common: np.ndarray  # (k,): elements that are measured, not only limits, in both
    difference: np.ndarray  # (k,), dex, at the same [Fe/H]
    error: np.ndarray  # (k,), dex


def compare_pair(a: Residuals, b: Residuals, permutations: int, seed: int) -> Pair:
    """Of two structures' `residuals`: neither their order nor that of stars matters."""
    k = a.value.shape[1]
    both = Residuals(*(torch.cat(parts) for parts in zip(a, b, strict=True)))
    in_b = torch.arange(len(both.value)) >= len(a.value)
    order = _by_content(both)
    both, in_b = Residuals(*(part[order] for part in both)), in_b[order]
    read = both.known & (both.limit == 0)
    common = read[in_b].any(0) & read[~in_b].any(0)
    nothing = np.full(k, math.nan)
    if not common.any():
        none = Detectable(math.nan, math.nan)
        return Pair(math.nan, math.nan, none, common.numpy(), nothing, nothing)
    used = both.known.sum(0) > 1  # whatever the labels
    chosen = Residuals(
        both.value[:, used],
        both.noise[:, used][..., used],
        both.scatter[:, used][..., used],
        both.limit[:, used],
        both.known[:, used],
        both.iron,
    )
    stars = measured(chosen)
    observed = statistic(stars, in_b[None])[0]
    n, m = len(in_b), int(min(in_b.sum(), (~in_b).sum()))
    labels, complete = relabelled(n, m, permutations, seed)
    p = permutation_p_value(observed, statistic(stars, labels), complete)
    d = Difference(*(part[:, 0] for part in difference(stars, in_b[None])))
    value, error = nothing.copy(), nothing.copy()
    found = _estimate(d, stars.log_weight)
    value[used.numpy()], error[used.numpy()] = (part.numpy() for part in found)
    value[~common.numpy()], error[~common.numpy()] = math.nan, math.nan
    smallest = Detectable(math.nan, math.nan)
    if (1 + (2 * m == n)) / math.comb(n, m) <= LEVEL:  # the least p-value there can be
        smallest = detectable(d.Q, stars.log_weight, common[used], n, seed)
    return Pair(float(observed), float(p), smallest, common.numpy(), value, error)


def _by_content(stars: Residuals) -> Tensor:
    """An order of the stars that does not depend on the one they came in."""
    keys = torch.cat([stars.value, stars.noise.diagonal(dim1=1, dim2=2)], 1)
    return torch.from_numpy(np.lexsort(keys.T.numpy()))


def _estimate(d: Difference, log_weight: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (k,) of the difference, all elements free, over scatters (S,)."""
    alone = torch.zeros(1).to(log_weight)
    two = torch.stack([
        log_bayes_factor(Difference(h[None, None], Q[None, None]), alone)[0]
        for h, Q in zip(*d, strict=True)
    ])  # fmt: skip
    weight = (log_weight + two).softmax(0)[:, None]
    covariance = torch.linalg.inv(d.Q + LEAST_PRECISION * torch.eye(d.Q.shape[-1]).to(d.Q))
    each = (covariance @ d.h[..., None])[..., 0]
    mean = (weight * each).sum(0)
    variance = covariance.diagonal(dim1=1, dim2=2) + (each - mean).square()
    return mean, (weight * variance).sum(0).sqrt()


# --- a table of all pairs -------------------------------------------------------------------------


class GroupedStars(Protocol):
    """`datamodules.abundances.structures.AbundanceStructures`; settings as `compare_structures`."""

    least_stars: int
    permutations: int
    pairs: Sequence[Sequence[str]] | None

    def grouped_batches(self) -> Iterator[tuple[Batch, np.ndarray]]: ...


def compare_structures(
    mixture: Mixture,
    stars: Stars,
    group: Sequence[str] | np.ndarray,
    elements: Sequence[str],
    seed: int,
    least_stars: int = 3,
    permutations: int = 1999,
    pairs: Sequence[Sequence[str]] | None = None,
) -> Comparison:
    """Every pair of structures, or those asked for, a row each.

    Args:
        mixture: the density of stars in general, over ``elements``, with one set of weights.
        stars: of all structures, (n, k).
        group: (n,) name of each star's structure; "" if it has none.
        elements: (k,) symbols.
        seed: of permutations and simulations.
        least_stars: structures of fewer are left out; those that ``pairs`` names are not.
        permutations: of stars between the two of a pair; all there are, if they are fewer.
        pairs: (A, B) each; None: all.
    """
    group = np.asarray(group)
    counts = {str(n): int(c) for n, c in zip(*np.unique(group, return_counts=True), strict=True)}
    counts.pop("", None)
    warnings: list[str] = []
    chosen = _pairs(counts, pairs, least_stars, warnings)
    iron = elements.index(IRON) if IRON in elements else None
    others = [x for x in elements if x != IRON]
    if not others:
        raise ValueError("the model knows [Fe/H] alone, and structures differ in other elements")
    all_residuals = residuals(mixture, stars, iron)
    of = {name: torch.from_numpy(np.flatnonzero(group == name)) for name in counts}
    compared = []
    for pair in chosen:
        a, b = (Residuals(*(part[of[name]] for part in all_residuals)) for name in pair)
        compared.append(compare_pair(a, b, permutations, seed))
    warnings += _remarks(chosen, compared, stars, iron)
    rows = _rows(chosen, compared, counts, others)
    rows |= _metallicities(chosen, of, stars, iron, warnings)
    outputs = _outputs(others, list(elements) != others)
    figures = {
        "structures": {
            "elements": np.array(others), "pairs": np.array(chosen),
            "difference": np.stack([pair.difference for pair in compared]),
            "error": np.stack([pair.error for pair in compared]),
            "p_value": rows["p_value"], "ln_bayes_factor": rows["ln_bayes_factor"],
        }
    }  # fmt: skip
    ordered = {name: rows[name] for name in outputs}
    return Comparison(ordered, outputs, _metrics(rows), warnings, figures)


def _pairs(
    counts: Mapping[str, int],
    asked: Sequence[Sequence[str]] | None,
    least_stars: int,
    warnings: list[str],
) -> list[tuple[str, str]]:
    """Names of each pair, sorted; adds to ``warnings`` which structures are too small."""
    if asked:
        for pair in asked:
            if isinstance(pair, str) or len(pair) != 2 or pair[0] == pair[1]:
                raise ValueError(
                    f"data.pairs: {pair} is no pair of structures; expected data.pairs=[[A,B],...]"
                )
            for name in map(str, pair):
                if name not in counts:
                    near = difflib.get_close_matches(name, counts) or sorted(counts)[:10]
                    raise ValueError(
                        f"data.pairs: no star is of structure '{name}'; near: {', '.join(near)}"
                    )
        return [(str(a), str(b)) for a, b in asked]
    few = [f"{name} ({n})" for name, n in counts.items() if n < least_stars]
    large = sorted(name for name, n in counts.items() if n >= least_stars)
    if len(large) < 2:
        found = ", ".join(f"{name} {n}" for name, n in list(counts.items())[:20]) or "none"
        raise ValueError(
            f"two structures of data.least_stars={least_stars} stars are needed; stars of each: "
            f"{found}"
        )
    if few:
        more = f" and {len(few) - 10} more" if len(few) > 10 else ""
        warnings.append(
            f"left out, of fewer than data.least_stars={least_stars} stars: "
            f"{', '.join(few[:10])}{more}"
        )
    return list(itertools.combinations(large, 2))


def _remarks(
    pairs: Sequence[tuple[str, str]], compared: Sequence[Pair], stars: Stars, iron: int | None
) -> list[str]:
    remarks = []
    without = [
        f"{a} and {b}" for (a, b), p in zip(pairs, compared, strict=True) if not any(p.common)
    ]
    if without:
        remarks.append(
            f"cannot be compared, for no element but iron is measured in both: {_listed(without)}"
        )
    blind = [
        f"{a} and {b}" for (a, b), p in zip(pairs, compared, strict=True)
        if any(p.common) and math.isnan(p.detectable.every)
    ]  # fmt: skip
    if blind:
        remarks.append(
            f"too few stars or elements to find any difference below {LARGEST:g} dex at 5%: "
            f"{_listed(blind)}"
        )
    p_values = np.array([pair.p_value for pair in compared])
    n, low = int(np.isfinite(p_values).sum()), int((p_values < LEVEL).sum())
    if n > 1:
        remarks.append(
            f"{low} of {n} pairs have p < .05, where {LEVEL * n:.1f} are expected if all "
            f"structures are the same; p-values are not corrected for the number of pairs"
        )
    if iron is None:
        remarks.append("the model has no [Fe/H]: [X/H] are compared, metallicities with them")
    elif none := int((~stars.measured[:, iron]).sum()):
        remarks.append(
            f"{none} of {stars.n} stars have no measured [Fe/H]: they are compared with the "
            f"background of all [Fe/H], and say little"
        )
    return remarks


def _rows(
    pairs: Sequence[tuple[str, str]],
    compared: Sequence[Pair],
    counts: Mapping[str, int],
    elements: Sequence[str],
) -> dict[str, np.ndarray]:
    names = np.array(elements)
    value = np.stack([pair.difference for pair in compared])  # (pairs, k)
    error = np.stack([pair.error for pair in compared])
    ratio = np.nan_to_num(np.abs(value / error), nan=-1.0)
    largest, row = ratio.argmax(1), np.arange(len(pairs))
    rows = {
        "structure_a": np.array([a for a, _ in pairs]),
        "structure_b": np.array([b for _, b in pairs]),
        "n_a": np.array([counts[a] for a, _ in pairs]),
        "n_b": np.array([counts[b] for _, b in pairs]),
        "n_common": np.array([pair.common.sum() for pair in compared]),
        "common": np.array([" ".join(names[pair.common]) for pair in compared]),
        "ln_bayes_factor": np.array([pair.log_bayes_factor for pair in compared]),
        "p_value": np.array([pair.p_value for pair in compared]),
        "detectable_all": np.array([pair.detectable.every for pair in compared]),
        "detectable_one": np.array([pair.detectable.one for pair in compared]),
        "largest": np.where(ratio.max(1) >= 0, names[largest], ""),
        "largest_difference": value[row, largest],
        "largest_error": error[row, largest],
    }
    for j, element in enumerate(elements):
        x = element.lower()
        rows[f"{x}_difference"], rows[f"{x}_error"] = value[:, j], error[:, j]
        rows[f"{x}_detectable"] = FOUND * error[:, j]
    return rows


def _metallicities(
    pairs: Sequence[tuple[str, str]],
    of: Mapping[str, Tensor],
    stars: Stars,
    iron: int | None,
    warnings: list[str],
) -> dict[str, np.ndarray]:
    """Difference of the mean [Fe/H], and its error by the spread of the stars.

    Adds to ``warnings`` which pairs hardly overlap in [Fe/H].
    """
    if iron is None:
        return {}
    found = {
        name: stars.value[rows, iron][stars.measured[rows, iron]].double().numpy()
        for name, rows in of.items()
    }
    mean = {name: fe.mean() if len(fe) else math.nan for name, fe in found.items()}
    spread = {name: fe.std(ddof=1) if len(fe) > 1 else math.nan for name, fe in found.items()}
    error = {name: spread[name] / math.sqrt(max(len(found[name]), 1)) for name in found}
    apart = [
        f"{a} and {b}" for a, b in pairs
        if abs(mean[b] - mean[a]) > APART * math.hypot(spread[a], spread[b]) / math.sqrt(2)
    ]  # fmt: skip
    if apart:
        warnings.append(
            f"hardly overlap in [Fe/H], so that a trend unlike the background's may pass for a "
            f"difference (8% of p-values below .05 in simulations of equal ones): "
            f"{_listed(apart)}"
        )
    return {
        "fe_h_difference": np.array([mean[b] - mean[a] for a, b in pairs]),
        "fe_h_error": np.array([math.hypot(error[a], error[b]) for a, b in pairs]),
    }


def _outputs(elements: Sequence[str], with_iron: bool) -> dict[str, Output]:
    at = "at the same [Fe/H]" if with_iron else "of [X/H]"
    outputs = {
        "structure_a": Output("", "structure A"),
        "structure_b": Output("", "structure B"),
        "n_a": Output("", "stars of A"),
        "n_b": Output("", "stars of B"),
        "n_common": Output("", "elements, but iron, that are measured in both"),
        "common": Output("", "these elements"),
        "ln_bayes_factor": Output(
            "", f"ln of the Bayes factor of different abundances {at} against the same ones"
        ),
        "p_value": Output("", "probability of as large a Bayes factor if A and B are the same, by "
                          "permutation of stars; not corrected for the number of pairs"),
        "detectable_all": Output(
            "dex", "smallest difference, the same in all common elements, that the test finds at "
            "5% with a probability of 80%",
        ),
        "detectable_one": Output(
            "dex", "smallest difference in one common element, any, that the test finds at 5% with "
            "a probability of 80%",
        ),
        "largest": Output("", "element whose difference is largest in units of its error"),
        "largest_difference": Output("dex", f"its difference, B - A, {at}"),
        "largest_error": Output("dex", "error of it"),
    }  # fmt: skip
    if with_iron:
        outputs["fe_h_difference"] = Output(
            "dex", "difference of the mean [Fe/H], B - A; no part of the test"
        )
        outputs["fe_h_error"] = Output("dex", "error of it, from the spread of the stars")
    for element in elements:
        x = element.lower()
        outputs[f"{x}_difference"] = Output("dex", f"difference of {element}, B - A, {at}")
        outputs[f"{x}_error"] = Output("dex", "error of it, all other elements being free")
        outputs[f"{x}_detectable"] = Output(
            "dex", f"smallest difference of {element} that its own test finds at 5% with a "
            "probability of 80%",
        )  # fmt: skip
    return outputs


def _metrics(rows: Mapping[str, np.ndarray]) -> dict[str, float]:
    p = rows["p_value"][np.isfinite(rows["p_value"])]
    metrics = {"pairs": float(len(rows["p_value"])), "pairs_compared": float(len(p))}
    if len(p):
        metrics["share_p_below_5_percent"] = float((p < LEVEL).mean())
    for name in ("detectable_all", "detectable_one"):
        if np.isfinite(rows[name]).any():
            metrics[f"median_{name}_dex"] = float(np.nanmedian(rows[name]))
    return metrics


def _listed(names: Sequence[str]) -> str:
    """The first five, and how many more there are."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{', '.join(names[:5])}{more}"
