"""Masses from wide binaries: our likelihood compared with the loss of Hwang et al. (2023).

    python -m benchmarks.mass_net one_mass              # pairs of one mass each: a minute
    python -m benchmarks.mass_net compare --seeds 5     # networks over the diagram: half an hour

Their loss (arXiv:2308.08584, constants of HC-Hwang/HR_mass on GitHub, MIT), written from its
description: a fit to p(u) of thermal eccentricities, with a share of .2 of outliers whose density
is not divided by the root of the mass, and the noise of |u| as a normal. `one_mass`: the most
likely mass of 100,000 pairs of the same mass, S/N 50, with and without outliers of the assumed law.
`normalised` is their density divided by the root of the mass, f fixed. `compare`: the same network,
data and steps with both losses, on experiment=mass_net_reference with 50,000 pairs; `nll` is of
held-out pairs at the predicted masses by the simulation's own density. Seed s draws the data and
begins the network. Writes benchmarks/mass_net.csv.
"""

import argparse
import csv
import math
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1")

import numpy as np
import torch
from torch import Tensor

from orrery.datamodules.mass_net import WideBinaryData
from orrery.models.base import Batch
from orrery.models.mass_net.evaluation import FAINT
from orrery.models.mass_net.likelihood import TINY, pair_density
from orrery.models.mass_net.networks import MassNetwork, PairStatistics, bound_density
from orrery.physics.wide_binaries import motion, outliers, population
from orrery.physics.wide_binaries.motion import CIRCULAR_VELOCITY

Row = dict[str, object]
COLUMNS = ("test", "method", "case", "seed", "n", "lnm_bias", "lnm_error", "lnm_bias_faint", "nll")

# p(u) = A u exp(-B u^2 - exp((u - u0) / C)), u in km/s (AU / Msun)^.5
A, B, C, U0 = 4.95e-3, 2.24e-3, 3.85, 36.09
FASTEST = 150.0  # km/s (AU / Msun)^.5, where p(u) is nothing: beyond it the exponential overflows
PUBLISHED_FRACTION, PUBLISHED_SPEED, PUBLISHED_SPREAD = 0.2, 30.0, 15.0
N_ONE_MASS, SNR, MASSES = 100_000, 50.0, (0.4, 1.0, 2.0)
REFERENCE = {
    "distance": 200, "faintest": 20, "white_dwarfs": 0, "giants": 0, "companions": 0,
    "chance_alignments": 0, "outliers": 0.2, "scatter": 0,
}  # fmt: skip
N_TRAIN, N_TEST, EPOCHS, BATCH, LR, MEMBERS = 50_000, 20_000, 20, 1024, 1e-2, 2


def published_log_p(
    speed: Tensor, error: Tensor, log_mass: Tensor, normalised: bool = False
) -> Tensor:
    """ln of their density of |u| sqrt(M), km/s AU^.5, (..., n), of all arguments."""
    root = (0.5 * log_mass).exp()[..., None]
    nodes, weights = (torch.from_numpy(x).float() for x in np.polynomial.hermite_e.hermegauss(9))
    u = ((speed + error * nodes.view(-1, *[1] * speed.ndim)).movedim(0, -1) / root).clamp(
        0, FASTEST
    )
    bound = A * u * torch.exp(-B * u.square() - torch.exp((u - U0) / C)) / root
    share = 0.5 * (1 + math.erf(PUBLISHED_SPEED / PUBLISHED_SPREAD / math.sqrt(2)))
    outlier = torch.exp(-0.5 * ((u - PUBLISHED_SPEED) / PUBLISHED_SPREAD).square())
    outlier = outlier / (share * PUBLISHED_SPREAD * math.sqrt(2 * math.pi))
    if normalised:
        outlier = outlier / root
    f = PUBLISHED_FRACTION
    p = ((1 - f) * bound + f * outlier) * (weights / weights.sum())
    return p.sum(-1).clamp_min(TINY).log()


def speeds(batch: Batch) -> tuple[Tensor, Tensor]:
    """|w| of pairs and its error, km/s AU^.5, each (n,)."""
    w, covariance = batch["motion"], batch["covariance"]
    speed = w.norm(dim=1)
    variance = torch.einsum("ni,nij,nj->n", w, covariance, w) / speed.square()
    return CIRCULAR_VELOCITY * speed, CIRCULAR_VELOCITY * variance.sqrt()


# --- pairs of one mass ---------------------------------------------------------------------------


def one_mass_rows(seed: int) -> Iterator[Row]:
    """The most likely ln M of pairs of one mass, less the truth, by each method."""
    for mass in MASSES:
        for fraction in (0.0, 0.2):
            batch = one_mass_batch(mass, fraction, seed)
            speed, error = speeds(batch)
            methods: dict[str, Callable[[Tensor], Tensor]] = {
                "published": partial(published_log_p, speed, error),
                "normalised": partial(published_log_p, speed, error, normalised=True),
                "mass_net": partial(our_log_p, batch),
            }
            for method, log_p in methods.items():
                best, sigma = most_likely(log_p, math.log(mass))
                yield {
                    "test": "one_mass", "method": method, "seed": seed, "n": N_ONE_MASS,
                    "case": f"M {mass:g}, {100 * fraction:.0f}% outliers",
                    "lnm_bias": best - math.log(mass), "lnm_error": sigma,
                }  # fmt: skip


def one_mass_batch(
    mass: float, fraction: float, seed: int, n: int = N_ONE_MASS
) -> dict[str, Tensor]:
    """``n`` pairs of a total mass, Msun, on thermal orbits, a fraction of them outliers."""
    generator = torch.Generator().manual_seed(seed)
    u = motion.sample_motion(torch.ones(n), generator).float()
    n_outliers = round(fraction * n)
    u[:n_outliers] = torch.from_numpy(outliers.sample(n_outliers, np.random.default_rng(seed)))
    sigma = math.sqrt(mass) / SNR
    w = u * mass**0.5 + sigma * torch.randn(u.shape, generator=generator)
    covariance = sigma**2 * torch.eye(2).expand(len(u), 2, 2)
    return {
        "motion": w, "covariance": covariance, "log_separation": torch.full((len(u),), 3.0),
        "likelihood": motion.likelihood(w, covariance),
    }  # fmt: skip


@torch.no_grad()
def our_log_p(batch: Batch, log_mass: Tensor) -> Tensor:
    """ln p (n,) at a common ln M, with the most likely fraction of outliers; alpha is 1."""
    n = len(batch["motion"])
    at = log_mass.expand(1, n)
    bound = bound_density(batch["likelihood"], at, torch.ones(1, n))[0]
    statistics = PairStatistics(1)
    statistics.tail_logit.fill_(-30.0)
    outlier = statistics.log_outlier_density(batch["motion"], batch["covariance"], at)[0].exp()
    fraction = 0.1
    for _ in range(60):  # expectation and maximisation
        share = fraction * outlier / ((1 - fraction) * bound + fraction * outlier)
        fraction = float(share.mean())
    return ((1 - fraction) * bound + fraction * outlier).clamp_min(TINY).log()


def most_likely(log_p: Callable[[Tensor], Tensor], centre: float) -> tuple[float, float]:
    """ln M of the greatest total likelihood, and its error by the curvature there."""
    for half_width in (0.4, 0.05):
        x = np.linspace(centre - half_width, centre + half_width, 17)
        total = np.array([float(log_p(torch.tensor(float(v))).double().sum()) for v in x])
        best = int(np.clip(total.argmax(), 2, len(x) - 3))
        near = slice(best - 2, best + 3)
        curvature, slope, _ = np.polyfit(x[near] - x[best], total[near], 2)
        centre = float(x[best] - 0.5 * slope / curvature)
    return centre, float((-2 * curvature) ** -0.5)


# --- networks over the diagram -------------------------------------------------------------------


def compare_rows(seed: int) -> Iterator[Row]:
    """The same network with both losses, on the same pairs."""
    data = WideBinaryData(
        n_train=N_TRAIN, n_test=N_TEST, population=REFERENCE, largest_circular_mass=None,
        seed=seed, val_fraction=0.01,
    )  # fmt: skip
    data.setup("fit")
    train, batches = data.training_batch(), list(data.prediction_batches())
    test = {name: torch.cat([b[name] for b in batches]) for name in batches[0]}
    statistics = PairStatistics(MEMBERS)

    def ours(batch: Batch, log_mass: Tensor) -> Tensor:
        return pair_density(statistics, batch, log_mass, None).log_p

    def published(batch: Batch, log_mass: Tensor) -> Tensor:
        return published_log_p(*speeds(batch), log_mass)

    for method, log_p, more in (
        ("mass_net", ours, statistics.parameters()),
        ("published", published, ()),
    ):
        network = fitted(log_p, train, more, seed)
        with torch.no_grad():
            places = zip(test["bp_rp"].unbind(1), test["abs_g"].unbind(1), strict=True)
            predicted = torch.stack([network(*place).mean(0) for place in places], 1)
        error = predicted - test["mass"].log()
        faint = (test["abs_g"] > FAINT[0]) & (test["abs_g"] < FAINT[1])
        yield {
            "test": "compare", "method": method, "case": "reference", "seed": seed, "n": N_TEST,
            "lnm_bias": float(error.mean()), "lnm_bias_faint": float(error[faint].mean()),
            "nll": true_nll(test, predicted.logsumexp(1)),
        }  # fmt: skip
    yield {
        "test": "compare", "method": "true masses", "case": "reference", "seed": seed,
        "n": N_TEST, "nll": true_nll(test, test["mass"].sum(1).log()),
    }  # fmt: skip


def fitted(
    log_p: Callable[[Batch, Tensor], Tensor], train: Batch, more: Iterable[Tensor], seed: int
) -> MassNetwork:
    torch.manual_seed(seed)
    network = MassNetwork(MEMBERS, 32, 3)
    groups = [
        {"params": list(network.parameters()), "lr": LR},
        {"params": list(more), "lr": 5 * LR},
    ]
    optimizer = torch.optim.Adam([group for group in groups if group["params"]], betas=(0.9, 0.99))
    n = len(train["row"])
    steps = EPOCHS * (n // BATCH)
    peak = [5 * LR, LR][-len(optimizer.param_groups) :][::-1]
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, peak, steps, pct_start=0.1, cycle_momentum=False
    )
    for _ in range(EPOCHS):
        for rows in torch.randperm(n)[: n // BATCH * BATCH].split(BATCH):
            batch = {name: values[rows] for name, values in train.items()}
            places = zip(batch["bp_rp"].unbind(1), batch["abs_g"].unbind(1), strict=True)
            total = torch.stack([network(*place) for place in places]).logsumexp(0)
            loss = -log_p(batch, total).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network


@torch.no_grad()
def true_nll(test: Batch, log_mass: Tensor) -> float:
    """-ln p of the motions, a mean, at total masses ln M (n,), by the simulation's density."""
    statistics = PairStatistics(1)
    statistics.tail_logit.fill_(-30.0)
    alpha = torch.from_numpy(
        population.true_alpha(test["log_separation"].numpy(), population.Population().alpha)
    ).float()
    bound = bound_density(test["likelihood"], log_mass[None], alpha[None])
    outlier = statistics.log_outlier_density(test["motion"], test["covariance"], log_mass[None])
    fraction = float(REFERENCE["outliers"])
    p = (1 - fraction) * bound + fraction * outlier.exp()
    return -float(p.clamp_min(TINY).log().double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("test", choices=("one_mass", "compare"))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/mass_net.csv"))
    options = parser.parse_args()
    run = {"one_mass": one_mass_rows, "compare": compare_rows}[options.test]
    rows: list[Row] = []
    if options.out.exists():
        with options.out.open() as file:
            rows = [dict(row) for row in csv.DictReader(file) if row["test"] != options.test]
    for seed in range(options.seeds):
        for row in run(seed):
            numbers = {k: f"{v:.4f}" if isinstance(v, float) else v for k, v in row.items()}
            print(", ".join(f"{k} {v}" for k, v in numbers.items()), flush=True)
            rows.append(numbers)
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
