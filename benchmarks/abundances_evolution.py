"""Do the intervals of the one-zone model hold the truth as often as they say?

    python -m benchmarks.abundances_evolution            # 200 dwarfs of 15 stars, 200 of 100

Simulation-based calibration: galaxies are drawn from the prior of `models.abundances.evolution`,
their stars from a track ten times finer than that of the likelihood, with errors of 0.08-0.15 dex,
missing elements, and europium that is an upper limit where it is too weak. Prints, and writes
benchmarks/abundances_evolution.csv: for each parameter the share of galaxies whose true value lies
in the central interval of 68%, and the width of that interval as a share of the prior's.
"""

import argparse
import csv
import time
from pathlib import Path

import torch
from torch import Tensor

from orrery.models.abundances import evolution
from orrery.models.abundances.mixture import Stars
from orrery.models.abundances.sampling import from_normal
from orrery.models.inference.diagnostics import rhat
from orrery.physics.chemical_evolution.one_zone import alpha_knee, tracks

ELEMENTS = ("Fe", "Mg", "Ba", "Eu")
MISSING = (0.0, 0.1, 0.2, 0.3)  # share of stars, by element
NUMBERS_OF_STARS = (15, 100)
REACH = ("ia_slope", "ia_minimum", "r_slope", "r_minimum", "alpha_knee")


def simulate(galaxies: int, n: int, seed: int) -> tuple[dict[str, Tensor], list[Stars]]:
    """True parameters (galaxies,) drawn from the prior, and n stars of each galaxy."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    names = evolution.parameters(ELEMENTS)
    truth = from_normal(normal(galaxies, len(names)), names, evolution.PRIORS)
    galaxy = evolution.galaxy_of(truth)
    track = tracks(galaxy, ELEMENTS, points=10 * evolution.POINTS)
    born = torch.multinomial(track.mass_formed, n, replacement=True, generator=generator)
    k = len(ELEMENTS)
    abundance = track.abundances.gather(1, born[..., None].expand(-1, -1, k))
    scatter = evolution.intrinsic_variance(truth, ELEMENTS).sqrt()[:, None]
    error = 0.08 + 0.07 * uniform(galaxies, n, k)
    value = abundance + scatter * normal(galaxies, n, k) + error * normal(galaxies, n, k)
    # europium shows above a strength that differs from star to star
    threshold = torch.full_like(value, -torch.inf)
    threshold[..., 3] = -2.0 + 0.5 * normal(galaxies, n)
    limit = (value < threshold).long()
    value = torch.maximum(value, threshold)
    value[uniform(galaxies, n, k) < torch.tensor(MISSING)] = torch.nan
    nothing = torch.zeros(n, k, 0, dtype=torch.float64)
    data = [
        Stars(x, e.square(), nothing, flag) for x, e, flag in zip(value, error, limit, strict=True)
    ]
    truth["alpha_knee"] = alpha_knee(galaxy)
    return truth, data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--galaxies", type=int, default=200, help="data sets of each size")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--chains", type=int, default=2)
    parser.add_argument("--warmup", type=int, default=200)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--output", default="benchmarks/abundances_evolution.csv")
    args = parser.parse_args()
    rows = []
    for n in NUMBERS_OF_STARS:
        began = time.process_time()
        truth, data = simulate(args.galaxies, n, args.seed)
        draws = evolution.infer_evolution(
            data, ELEMENTS, args.seed, args.chains, args.warmup, args.draws, dtype=torch.float32
        )
        prior, _ = simulate(4000, 1, args.seed + 1)
        seconds = time.process_time() - began
        for name, true in truth.items():
            flat = draws[name].double().flatten(1)
            low, high = torch.quantile(flat, torch.tensor([0.16, 0.84]).double(), dim=1)
            a, b = torch.quantile(prior[name], torch.tensor([0.16, 0.84]).double())
            r = rhat(draws[name].double().permute(1, 2, 0))
            rank = (flat < true[:, None]).double().mean(1)
            rows.append(
                {
                    "stars": n,
                    "parameter": name,
                    "galaxies": args.galaxies,
                    "seed": args.seed,
                    "coverage_68": round(
                        ((low <= true) & (true <= high)).double().mean().item(), 4
                    ),
                    "coverage_95": round(((rank - 0.5).abs() < 0.475).double().mean().item(), 4),
                    "width_over_prior": round(((high - low).median() / (b - a)).item(), 4),
                    "rhat_median": round(r.median().item(), 4),
                    "rhat_above_1.05": round((r > 1.05).double().mean().item(), 4),
                    "cpu_seconds": round(seconds, 1),
                }
            )
            mark = "*" if name in REACH else " "
            print(mark, *(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    with Path(args.output).open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
