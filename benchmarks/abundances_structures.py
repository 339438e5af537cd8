"""Comparing two structures of 8 and 7 stars: false positives, power, and the best there can be.

    python -m benchmarks.abundances_structures            # 2,000 trials each, eight minutes
    python -m benchmarks.abundances_structures --trials 200

Stars are drawn from the simulation's true density (`datamodules.abundances.simulation`): both
structures of a trial from one of its twelve galaxies ("galaxy"), or from all together ("all").
40% of abundances are missing and 15% are upper limits; iron is always measured. The background is
the true density of all galaxies, or mixtures fitted to 4,000 stars ("learned"). Differences are
.3 dex in two elements of the structure of 7 stars.

Beside the test's statistic stand others, and what better informed tests reach at the same 5%:

- "true densities": the likelihood ratio of the two true densities, which knows the galaxy, the
  elements, the size and the sign, and that structure A is not shifted;
- "true densities, permuted": the same ratio as the statistic of the permutation test, which only
  knows that the two are alike under the hypothesis, not where they are;
- "known difference", "two of .3 dex": permutation tests in the Gaussian model, given the difference
  itself, or that it is .3 dex, up or down, in two elements, which may be any.

Writes benchmarks/abundances_structures.csv, values in per cent with their binomial errors.
"""

import argparse
import csv
import math
import os
from collections.abc import Iterator
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1")

import numpy as np
import torch
from torch import Tensor

from orrery.datamodules.abundances import simulation
from orrery.models.abundances import extreme_deconvolution
from orrery.models.abundances.comparison import (
    LEVEL,
    compare_pair,
    permutation_p_value,
    relabelled,
)
from orrery.models.abundances.mixture import Mixture, Stars, log_density
from orrery.models.abundances.offsets import (
    Difference,
    Measured,
    Residuals,
    difference,
    log_bayes_factor,
    log_bayes_factors,
    measured,
    residuals,
)

Row = dict[str, object]
COLUMNS = (
    "quantity", "structures", "background", "difference", "statistic", "n_a", "n_b", "trials",
    "percent", "error",
)  # fmt: skip
ELEMENTS = simulation.ELEMENTS
OTHERS = ELEMENTS[1:]  # all but iron
N_A, N_B, PERMUTATIONS = 8, 7, 199
MISSING, LIMITED, SHIFT = 0.4, 0.15, 0.3
PAIRS = [(i, j) for i in range(1, len(ELEMENTS)) for j in range(i + 1, len(ELEMENTS))]
NAMED = (("Mg", "Ca"), ("Mg", "Eu"))
BACKGROUND_STARS, CHUNK = 4000, 20


class Simulation:
    """Trials of two structures, and the true densities behind them; float64."""

    def __init__(self, seed: int) -> None:
        self.density = Mixture(*simulation.true_density(ELEMENTS, seed))
        pattern = np.random.default_rng([seed, 27]).standard_normal(
            (len(ELEMENTS), len(simulation.CAUSES))
        )
        self.response = torch.from_numpy(simulation.RESPONSE * pattern)
        self.weak = torch.tensor([x in simulation.LIMITED for x in ELEMENTS])

    def galaxy(self, i: int) -> Mixture:
        """The density of one galaxy, whose points are as likely."""
        points = slice(i * simulation.POINTS, (i + 1) * simulation.POINTS)
        _, mean, factors, variance = self.density
        log_weight = torch.full((simulation.POINTS,), -math.log(simulation.POINTS)).double()
        return Mixture(log_weight, mean[points], factors[points], variance[points])

    def components(
        self, trials: int, structures: str, generator: torch.Generator, apart: bool = False
    ) -> Tensor:
        """(trials, N_A + N_B) components; ``apart``: A of the first half of a track, B the last."""
        n, points = N_A + N_B, simulation.POINTS
        galaxy = torch.randint(simulation.N_GALAXIES, (trials, n), generator=generator)
        if structures == "galaxy":
            galaxy = galaxy[:, :1]
        point = torch.randint(points, (trials, n), generator=generator)
        if apart:
            point = point // 2
            point[:, N_A:] += points // 2
        return galaxy * points + point

    def observed(
        self,
        component: Tensor,
        shift: Tensor,
        generator: torch.Generator,
        missing: Tensor | float = MISSING,
        factor: Tensor | float = 1.0,
    ) -> Stars:
        """Stars of ``component`` (n,), shifted by (n, k) dex; errors times ``factor`` (n, 1)."""
        n, k = len(component), len(ELEMENTS)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        def uniform(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator, dtype=torch.float64)

        mean, factors, variance = (part[component] for part in self.density[1:])
        true = mean + (factors @ normal(n, factors.shape[2], 1))[..., 0]
        true = true + variance.sqrt() * normal(n, k)
        low, high = simulation.ERRORS
        error = factor * (low + (high - low) * uniform(n, 1)) * (0.7 + 0.6 * uniform(n, k))
        R = self.response * (0.5 + uniform(n, 1, self.response.shape[1]))
        noise = (R @ normal(n, R.shape[2], 1))[..., 0] + error * normal(n, k)
        absent = uniform(n, k) < missing * k / (k - 1)
        absent[:, 0] = False
        share = min(LIMITED * k / int(self.weak.sum()) / (1 - MISSING), 0.9)
        depth = torch.quantile((true + noise)[:10_000], share, dim=0) + 0.2 * normal(n, 1)
        value = true + shift + noise
        limit = self.weak & (value < depth) & ~absent
        value = torch.where(limit, depth, value).masked_fill(absent, torch.nan)
        return Stars(value, error.square(), R, limit.long())


def backgrounds(simulated: Simulation, seed: int) -> dict[str, Mixture]:
    """The true density, and one learned from stars by extreme deconvolution."""
    generator = torch.Generator().manual_seed(seed + 1000)
    component = torch.randint(len(simulated.density.mean), (BACKGROUND_STARS,), generator=generator)
    zero = torch.zeros(BACKGROUND_STARS, len(ELEMENTS), dtype=torch.float64)
    stars = simulated.observed(component, zero, generator)
    learned = extreme_deconvolution.fit(stars, 8, seed, steps=40)
    return {"true": simulated.density, "learned": learned}


# --- statistics ---------------------------------------------------------------------------------


def statistics(d: Difference, stars: Measured) -> dict[str, Tensor]:
    """(trials, L) each, of `Difference` (trials, S, L, k)."""
    log_weight = stars.log_weight
    over_scatters = {
        name: (log_bf + log_weight[..., None]).logsumexp(-2)
        for name, log_bf in log_bayes_factors(d).items()
    }
    likeliest = log_weight.argmax(-1)
    trial = torch.arange(len(likeliest))
    h, Q = d.h[trial, likeliest], d.Q[trial, likeliest]
    covariance = torch.linalg.inv(Q + 0.01 * torch.eye(Q.shape[-1]).to(Q))
    mean = (covariance @ h[..., None])[..., 0]
    each = mean.square() / covariance.diagonal(dim1=-2, dim2=-1)
    return {
        "ln Bayes factor (used)": log_bayes_factor(d, log_weight),
        "ln Bayes factor, one element": over_scatters["one"],
        "ln Bayes factor, two elements": over_scatters["two"],
        "ln Bayes factor, all elements": over_scatters["all"],
        "chi squared": (mean * h).sum(-1),
        "largest difference in errors": each.amax(-1),
        "sum of squared differences": mean.square().sum(-1),
    }


def log_ratio(d: Difference, stars: Measured, by: Tensor) -> Tensor:
    """ln likelihood ratio (trials, L) of the difference ``by`` (trials, k) against none."""
    by = by[:, None, None]
    linear = (d.h * by).sum(-1) - 0.5 * ((d.Q @ by[..., None])[..., 0] * by).sum(-1)
    return (linear + stars.log_weight[..., None]).logsumexp(-2)


def two_of_this_size(d: Difference, stars: Measured) -> Tensor:
    """ln of the mean likelihood ratio over all pairs of elements and signs, (trials, L)."""
    i, j = torch.triu_indices(len(OTHERS), len(OTHERS), 1)
    diagonal = d.Q.diagonal(dim1=-2, dim2=-1)
    found = []
    for sign in (1, -1):
        linear = d.h[..., i] + sign * d.h[..., j]
        square = diagonal[..., i] + diagonal[..., j] + 2 * sign * d.Q[..., i, j]
        both_signs = torch.logaddexp(SHIFT * linear, -SHIFT * linear)
        found.append((both_signs - 0.5 * SHIFT**2 * square).logsumexp(-1))
    return (torch.logaddexp(*found) + stars.log_weight[..., None]).logsumexp(-2)


def p_values(
    all_residuals: Residuals, shift: Tensor | None, seed: int, several: bool
) -> dict[str, Tensor]:
    """(trials,) of each statistic; ``shift`` (trials, k - 1): what the better informed know."""
    found: dict[str, list[Tensor]] = {}
    for i, rows in enumerate(torch.arange(len(all_residuals.value)).split(CHUNK)):
        labels = labels_of(1000 * seed + i)
        stars = measured(Residuals(*(part[rows] for part in all_residuals)))
        d = difference(stars, labels)
        if several:
            values = statistics(d, stars)
        else:
            values = {"ln Bayes factor (used)": log_bayes_factor(d, stars.log_weight)}
        if shift is not None:
            values["known difference"] = log_ratio(d, stars, shift[rows])
            values["two of .3 dex"] = two_of_this_size(d, stars)
        for name, value in values.items():
            p = permutation_p_value(value[:, 0], value[:, 1:], False)
            found.setdefault(name, []).append(p)
    return {name: torch.cat(parts) for name, parts in found.items()}


def labels_of(seed: int) -> Tensor:
    """(1 + PERMUTATIONS, n), the true ones first. Trials of one set share its level by chance."""
    true = torch.zeros(1, N_A + N_B, dtype=torch.float64)
    true[0, N_A:] = 1
    return torch.cat([true, relabelled(N_A + N_B, N_B, PERMUTATIONS, seed)[0]])


def residuals_of(background: Mixture, stars: Stars, trials: int) -> Residuals:
    return Residuals(*(part.unflatten(0, (trials, -1)) for part in residuals(background, stars, 0)))


# --- the true densities ---------------------------------------------------------------------------


def true_log_ratio(
    simulated: Simulation, structures: str, stars: Stars, component: Tensor, pair: Tensor
) -> Tensor:
    """ln p(star - shift) / p(star) under the truth, (trials, n); ``pair`` (trials, 2)."""
    trials, n = component.shape
    galaxy = component[:, :1].expand(-1, n) // simulation.POINTS if structures == "galaxy" else (
        torch.zeros(trials, n, dtype=torch.long)
    )  # fmt: skip
    galaxy, pairs = galaxy.reshape(-1), pair.repeat_interleave(n, 0)
    out = torch.zeros(trials * n, dtype=torch.float64)
    for i in range(int(galaxy.max()) + 1):
        density = simulated.galaxy(i) if structures == "galaxy" else simulated.density
        size = max(1, 16_000 // len(density.mean))
        for one in torch.unique(pairs[galaxy == i], dim=0):
            rows = ((galaxy == i) & (pairs == one).all(1)).nonzero()[:, 0]
            mean = density.mean.clone()
            mean[:, one] += SHIFT
            for part in rows.split(size):
                chosen = stars.select(part)
                shifted = log_density(density._replace(mean=mean), chosen)
                out[part] = shifted - log_density(density, chosen)
    return out.unflatten(0, (trials, n))


# --- the rows -------------------------------------------------------------------------------------


def row(
    quantity: str, structures: str, background: str, what: str, statistic: str, found: Tensor
) -> Row:
    share = float(found.double().mean())
    return {
        "quantity": quantity, "structures": structures, "background": background,
        "difference": what, "statistic": statistic, "n_a": N_A, "n_b": N_B, "trials": len(found),
        "percent": round(100 * share, 1),
        "error": round(100 * math.sqrt(max(share * (1 - share), 1e-4) / len(found)), 1),
    }  # fmt: skip


def false_positives(
    simulated: Simulation, known: dict[str, Mixture], trials: int, seed: int
) -> Iterator[Row]:
    n = N_A + N_B
    in_b = (torch.arange(n) >= N_A).repeat(trials)[:, None]
    zero = torch.zeros(trials * n, len(ELEMENTS), dtype=torch.float64)
    cases = (
        ("none", "galaxy", "true", 1.0, MISSING, False),
        ("none", "galaxy", "learned", 1.0, MISSING, False),
        ("none", "all", "true", 1.0, MISSING, False),
        ("none; errors of B doubled", "galaxy", "learned", 1.0 + in_b, MISSING, False),
        ("none; 60% of B missing", "galaxy", "learned", 1.0, MISSING + 0.2 * in_b, False),
        ("none; A metal-poor, B metal-rich", "galaxy", "learned", 1.0, MISSING, True),
    )
    for what, structures, background, factor, missing, apart in cases:
        generator = torch.Generator().manual_seed(seed)
        component = simulated.components(trials, structures, generator, apart)
        stars = simulated.observed(component.reshape(-1), zero, generator, missing, factor)
        found = residuals_of(known[background], stars, trials)
        first = what == "none"
        for name, p in p_values(found, None, seed, first).items():
            yield row("false positives", structures, background, what, name, p <= LEVEL)


def power(
    simulated: Simulation, known: dict[str, Mixture], trials: int, seed: int
) -> Iterator[Row]:
    n = N_A + N_B
    for structures in ("galaxy", "all"):
        for named in (None, *NAMED):
            if structures == "all" and named:
                continue
            what = f"{SHIFT:g} dex in {' and '.join(named)}" if named else (
                f"{SHIFT:g} dex in two random elements"
            )  # fmt: skip
            generator = torch.Generator().manual_seed(seed + 1)
            pair = torch.tensor([ELEMENTS.index(x) for x in named] if named else [0, 0])
            pair = pair.expand(trials, 2)
            if not named:
                pair = torch.tensor(PAIRS)[
                    torch.randint(len(PAIRS), (trials,), generator=generator)
                ]
            by = torch.zeros(trials, len(ELEMENTS), dtype=torch.float64).scatter(1, pair, SHIFT)
            shift = by[:, None] * (torch.arange(n) >= N_A)[:, None]
            component = simulated.components(trials, structures, generator)
            stars = simulated.observed(component.reshape(-1), shift.flatten(0, 1), generator)
            for background in known:
                p = p_values(residuals_of(known[background], stars, trials), by[:, 1:], seed, True)
                for name, values in p.items():
                    yield row("power", structures, background, what, name, values <= LEVEL)
            few = min(trials, 1000 if structures == "galaxy" else 200)
            yield from best_power(simulated, structures, what, stars, component, pair, few, seed)


def best_power(
    simulated: Simulation, structures: str, what: str, stars: Stars, component: Tensor,
    pair: Tensor, trials: int, seed: int,
) -> Iterator[Row]:  # fmt: skip
    """Of the likelihood ratio of the true densities, of the first ``trials``."""
    n = N_A + N_B
    component, pair = component[:trials], pair[:trials]
    stars = stars.select(torch.arange(trials * n))
    ratio = true_log_ratio(simulated, structures, stars, component, pair)
    generator = torch.Generator().manual_seed(seed + 2)
    same = simulated.components(trials, structures, generator)
    zero = torch.zeros(trials * n, len(ELEMENTS), dtype=torch.float64)
    unshifted = simulated.observed(same.reshape(-1), zero, generator)
    null = true_log_ratio(simulated, structures, unshifted, same, pair)
    critical = null[:, N_A:].sum(1).quantile(1 - LEVEL)
    found = ratio[:, N_A:].sum(1) > critical
    yield row("power", structures, "true", what, "true densities", found)
    permuted = torch.cat(
        [part @ labels_of(1000 * seed + i)[1:].T for i, part in enumerate(ratio.split(CHUNK))]
    )
    p = permutation_p_value(ratio[:, N_A:].sum(1), permuted, False)
    yield row("power", structures, "true", what, "true densities, permuted", p <= LEVEL)


def detectable(
    simulated: Simulation, known: dict[str, Mixture], trials: int, seed: int
) -> Iterator[Row]:
    """How often a difference of the size that is stated to be found in 80% is found."""
    n = N_A + N_B
    component = simulated.components(trials, "galaxy", torch.Generator().manual_seed(seed + 3))
    zero = torch.zeros(trials, n, len(ELEMENTS), dtype=torch.float64)
    in_b = torch.arange(n) >= N_A

    def drawn(shift: Tensor) -> Residuals:
        generator = torch.Generator().manual_seed(seed + 4)  # the same noise
        stars = simulated.observed(component.reshape(-1), shift.flatten(0, 1), generator)
        return residuals_of(known["learned"], stars, trials)

    before = drawn(zero)
    stated = []
    for i in range(trials):
        a, b = (Residuals(*(part[i][rows] for part in before)) for rows in (~in_b, in_b))
        stated.append(compare_pair(a, b, permutations=1, seed=seed))
    common = torch.from_numpy(np.stack([pair.common for pair in stated]))
    element = common.double().multinomial(1, generator=torch.Generator().manual_seed(seed + 5))
    single = torch.zeros_like(common).scatter(1, element, True)
    for what, direction, sizes in (
        ("the stated size in all common elements", common, [s.detectable.every for s in stated]),
        ("the stated size in one common element", single, [s.detectable.one for s in stated]),
    ):
        size = torch.tensor(sizes, dtype=torch.float64)
        print(f"median of {what}: {float(size.nanmedian()):.3f} dex")
        shift = zero.clone()
        shift[:, N_A:, 1:] = (size[:, None] * direction)[:, None]
        after = Residuals(*(part[~size.isnan()] for part in drawn(shift.nan_to_num(0.0))))
        p = p_values(after, None, seed, False)["ln Bayes factor (used)"]
        yield row("power", "galaxy", "learned", what, "ln Bayes factor (used)", p <= LEVEL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default=str(Path(__file__).with_suffix(".csv")))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    simulated = Simulation(asked.seed)
    known = backgrounds(simulated, asked.seed)
    with open(asked.output, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for part, trials in (
            (false_positives, asked.trials),
            (power, asked.trials // 2),
            (detectable, asked.trials // 5),
        ):
            for found in part(simulated, known, trials, asked.seed):
                writer.writerow(found)
                file.flush()
                print(*found.values(), sep="  ", flush=True)


if __name__ == "__main__":
    main()
