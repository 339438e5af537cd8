"""Metrics of the density of abundances, of its peers, and of the truth of a simulation."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from orrery.models.abundances import figure_data
from orrery.models.abundances.mixture import Mixture, ReadingsDensity, Stars, log_density
from orrery.models.base import Batch, Data, Evaluation, Metrics, PredictedRows, or_nothing

if TYPE_CHECKING:
    from orrery.models.abundances import Abundances

REPLICATES = 200  # readings of each star, of the speed of p-values
LEAST_SCORED = 100  # stars, of an element whose coverage is a metric of its own
MOST_STARS = 20_000  # that are scored again for the densities
MOST_AGAIN = 5000  # that are predicted again, for the coverage of intervals


@runtime_checkable
class HasTrueDensity(Protocol):
    """Data that may know the density that their stars were drawn from."""

    def true_density(self) -> tuple[Tensor, ...] | None:
        """Log weights, means, factors and variances of a `Mixture`; None if it is not known."""


@torch.no_grad()
def evaluate(model: "Abundances", rows: PredictedRows, data: Data) -> Evaluation:
    batches, n = [], 0
    for batch in data.prediction_batches():
        batches.append(batch)
        n += len(batch["value"])
        if n >= MOST_STARS:
            break
    stars = Stars(*(torch.cat(parts) for parts in zip(*map(model.stars, batches), strict=True)))
    if not bool((~stars.value.isnan()).any()):
        return Evaluation()
    types = torch.cat([batch["type"] for batch in batches])
    densities = {"ours": model.mixture(types), **model.peers()}
    if isinstance(data, HasTrueDensity) and (density := data.true_density()) is not None:
        densities[figure_data.TRUE] = Mixture(*density)
    scores = {name: nll_per_element(mixture, stars) for name, mixture in densities.items()}
    metrics: Metrics = {"n": len(rows["n_measured"]), "nll_per_element": scores.pop("ours")}
    baselines = {name: {"nll_per_element": nll} for name, nll in scores.items()}
    has_truth = all("true" in batch for batch in batches)
    true = torch.cat([batch["true"] for batch in batches]) if has_truth else None
    again = predicted_again(model, batches)
    hits = interval_hits(model.elements, again, stars, true)
    metrics |= coverages(hits)
    known_p = rows["p_value"][np.isfinite(rows["p_value"])]
    metrics["share_p_below_0.05"] = float((known_p < 0.05).mean()) if len(known_p) else np.nan
    for name, values in limit_bias(model, stars, true).items():
        (metrics if name == "ours" else baselines.setdefault(name, {}))["limit_bias_dex"] = values
    first = batches[0]
    mixture, few = model.mixture(first["type"]), model.stars(first)
    measured = few.without(few.limited)
    some = measured.select(torch.arange(min(256, few.n)))
    types = first["type"][: some.n]
    replicas = ReadingsDensity(model.mixture(types), some)
    readings = some.value.nan_to_num(0.0)[..., None].expand(-1, -1, REPLICATES).contiguous()
    names = star_names(batches)
    figures = or_nothing(
        "figures",
        lambda: figure_data.figure_data(model.elements, rows, again, stars, names, densities, hits),
    )
    return Evaluation(
        metrics,
        baselines=baselines,
        figures=figures,
        timings={
            "stars_per_second": (lambda: replicas(readings), some.n * REPLICATES),
            "new_stars_per_second": (lambda: log_density(mixture, measured), few.n),
            "new_stars_with_limits_per_second": (lambda: log_density(mixture, few), few.n),
            "objects_per_second": (lambda: model.predict_step(first, 0), few.n),
        },
        smaller_is_better=frozenset(("nll_per_element", "limit_bias_dex")),
    )


def star_names(batches: Sequence[Batch]) -> list[str]:
    """Of the first carried column; without one, the stars' rows."""
    names: list[str] = []
    for batch in batches:
        carried = getattr(batch, "carried", None)
        columns = list(carried.columns.values()) if carried else []
        rows = [f"row {row:,}" for row in batch["row"].tolist()]
        names += [str(name) for name in columns[0]] if columns else rows
    return names


def nll_per_element(mixture: Mixture, stars: Stars) -> float:
    """-ln of the likelihood of all measurements and limits over their number, nat."""
    total, like = 0.0, mixture.mean.dtype
    for rows in torch.arange(stars.n).split(2000):
        part = stars.select(rows)
        part = part.of_type(like)
        own = mixture.log_weight
        one = mixture._replace(log_weight=own[rows]) if own.ndim == 2 else mixture
        total -= float(log_density(one, part).sum())
    return total / int((~stars.value.isnan()).sum())


def predicted_again(model: "Abundances", batches: Sequence[Batch]) -> dict[str, np.ndarray]:
    """Rows of the first stars in their order, which that of `PredictedRows` is not."""
    parts: list[dict[str, Tensor]] = []
    n = 0
    for batch in batches:
        parts.append(model.predict_step(batch))
        n += len(batch["value"])
        if n >= MOST_AGAIN:
            break
    return {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}


def interval_hits(
    elements: Sequence[str], rows: Mapping[str, np.ndarray], stars: Stars, true: Tensor | None
) -> dict[str, dict[str, np.ndarray]]:
    """By element and level: are true abundances (n, k) in the intervals where none was measured?

    Where no truth is known: are measurements in the intervals that the star's other elements give?
    ``rows``: of the first of the stars, in their order.
    """
    hits: dict[str, dict[str, np.ndarray]] = {}
    for j, element in enumerate(elements):
        x = element.lower()
        n = min(stars.n, len(rows[f"{x}_p_value"]))
        measured = stars.measured[:n, j].numpy()
        hits[element] = {}
        for level, p in (("68", 0.32), ("95", 0.05)):
            if true is None:
                hit = (rows[f"{x}_p_value"][:n] > p)[measured]
            else:
                low, high = rows[f"{x}_h_low{level}"][:n], rows[f"{x}_h_high{level}"][:n]
                target = true[:n, j].numpy()
                hit = ((target > low) & (target < high))[~measured & np.isfinite(target)]
            hits[element][level] = hit
    return hits


def coverages(hits: Mapping[str, Mapping[str, np.ndarray]]) -> Metrics:
    """Shares of `interval_hits`: of all, and of elements with enough stars."""
    metrics: Metrics = {}
    for level in ("68", "95"):
        every = np.concatenate([hit[level] for hit in hits.values()])
        if len(every):
            metrics[f"coverage_{level}"] = float(every.mean())
    for element, hit in hits.items():
        if len(hit["68"]) >= LEAST_SCORED:
            for level in ("68", "95"):
                metrics[f"coverage_{level}_{element.lower()}"] = float(hit[level].mean())
    return metrics


def limit_bias(model: "Abundances", stars: Stars, true: Tensor | None) -> dict[str, float]:
    """Largest bias of the mean [X/H] of an element with limits in 30% of the stars or more, dex.

    Of the model's mean, of that of the measurements alone, and of limits taken as values; of data
    that know the truth.
    """
    if true is None:
        return {}
    true = true.mean(0)
    known = (~stars.value.isnan()).sum(0)
    often = stars.limited.sum(0) > 0.3 * known
    if not bool(often.any()):
        return {}
    mixture = model.mixture()
    mean = mixture.log_weight.exp() @ mixture.mean
    dropped = torch.where(stars.measured, stars.value, torch.nan).nanmean(0)
    taken = stars.value.nanmean(0)
    biases = {"ours": mean, "limits dropped": dropped, "limits as values": taken}
    return {name: float((x - true)[often].abs().max()) for name, x in biases.items()}
