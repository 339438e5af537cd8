"""The dust map on skies that its prior did not make, compared with averages of nearby stars.

    python -m benchmarks.dust_skies                                 # 5 min of CPU: three skies
    python -m benchmarks.dust_skies --seeds 1 model.nside=16 model.n_radial=68
    python -m benchmarks.dust_skies --kind filaments --seeds 3

A sky is an exponential disc of dust about the plane, with Gaussian clouds of 6 to 40 pc in it
(`Clouds`), or with wavy filaments of 4 to 20 pc and sheets (`Filaments`): smooth functions of
place, so that there is structure within voxels, and dust nearer than the map. 5,000 stars of a
thicker disc have distances to 10 to 20% (the error is normal, and the catalogue does not correct
for the larger volume behind) and extinctions to 0.03 E. A tenth of them is held out. The
peers know the distances as they are observed:

- "neighbours": the mean extinction of the eight nearest stars in three dimensions;
- "kernel": the average of all stars, weighted by a Gaussian of their distance in three dimensions,
  whose width is the one of `WIDTHS` that predicts the training stars best, each left out in turn.

The variance that they predict is a + b v, with v that of the extinctions averaged over, by which
the training stars, each left out in turn, are most probable.

Of the held-out stars within the map: the rms of extinction minus prediction, E; the mean log
density of the extinctions; the share in 68% intervals; and how much is closed of the gap in log
density between the best constant density and the true one (both averaged over distances).
Settings were chosen with a look at all three skies of clouds; nothing was changed after the one of
filaments, which was run once.
"""

import argparse
import math
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import numpy as np
import torch
from astropy.table import Table
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from scipy.optimize import minimize
from scipy.spatial import cKDTree

from orrery import command_line
from orrery.benchmarks.dust_hmc import write_rows
from orrery.checkpoint import build
from orrery.command_line import silence_lightning
from orrery.models.dust.evaluation import LEFT_OUT

N_STARS, N_CLOUDS, N_FILAMENTS, N_SHEETS = 5000, 30, 20, 4
DENSITY, HEIGHT = 2.5e-4, 100.0  # of the disc of dust: E per pc in the plane, pc
CLOUD_RADII, CLOUD_COLUMNS = (6.0, 40.0), (0.1, 1.0)  # pc; E through the middle
STAR_HEIGHT, FARTHEST = 250.0, 1300.0  # pc
ERRORS, SIGMA = (0.1, 0.2), 0.03  # of distances, relative; of extinctions, E
STEPS = 3000  # of the integral along a line of sight
NEIGHBOURS, WIDTHS = 8, (20.0, 30.0, 45.0, 65.0, 100.0)  # pc, of the peers

Rows = dict[str, np.ndarray]


class Clouds(NamedTuple):
    """Gaussian clouds, (clouds, ...)."""

    centres: np.ndarray  # pc
    radii: np.ndarray  # standard deviations, pc
    peaks: np.ndarray  # E per pc

    def density(self, xyz: np.ndarray) -> np.ndarray:
        """E per pc, (...), at ``xyz`` (..., 3), pc."""
        rho = disc(xyz)
        for centre, radius, peak in zip(*self, strict=True):
            square = ((xyz - centre) ** 2).sum(-1)
            rho += peak * np.exp(-0.5 * square / radius**2)
        return rho


class Filaments(NamedTuple):
    """Filaments and sheets, (filaments + sheets, ...), whose middle is a sine wave.

    A sheet is a filament that is Gaussian along one direction across it only.
    """

    centres: np.ndarray  # pc
    axes: np.ndarray  # (..., 3, 3): along, and two across, of which the wave is in the first
    widths: np.ndarray  # (..., 3) along these, standard deviations, pc
    peaks: np.ndarray  # E per pc
    waves: np.ndarray  # (..., 3): amplitude and length, pc, and phase

    def density(self, xyz: np.ndarray) -> np.ndarray:
        """E per pc, (...), at ``xyz`` (..., 3), pc."""
        rho = disc(xyz)
        for centre, axes, width, peak, (height, length, phase) in zip(*self, strict=True):
            along, across, other = np.moveaxis((xyz - centre) @ axes.T, -1, 0)
            across = across - height * np.sin(2 * np.pi * along / length + phase)
            square = (along / width[0]) ** 2 + (across / width[1]) ** 2 + (other / width[2]) ** 2
            rho += peak * np.exp(-0.5 * square)
        return rho


Sky = Clouds | Filaments


def disc(xyz: np.ndarray) -> np.ndarray:
    """E per pc, (...), of the disc alone."""
    return DENSITY * np.exp(-np.abs(xyz[..., 2]) / HEIGHT)


def column(sky: Sky, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distances (STEPS,), pc, and E to them, (stars, STEPS); ``direction`` (stars, 3)."""
    edges = np.linspace(0, 1.6 * FARTHEST, STEPS + 1)
    middles = 0.5 * (edges[1:] + edges[:-1])
    rho = sky.density(direction[:, None] * middles[:, None])
    return edges[1:], rho.cumsum(1) * (edges[1] - edges[0])


def clouds(seed: int) -> Clouds:
    random = np.random.default_rng([22, seed])
    angle = random.uniform(0, 2 * np.pi, N_CLOUDS)
    distance = random.uniform(80, 700, N_CLOUDS)
    height = random.uniform(-80, 80, N_CLOUDS)

    def log_uniform(low: float, high: float) -> np.ndarray:
        return np.exp(random.uniform(math.log(low), math.log(high), N_CLOUDS))

    radii, columns = log_uniform(*CLOUD_RADII), log_uniform(*CLOUD_COLUMNS)
    centres = np.stack([distance * np.cos(angle), distance * np.sin(angle), height], 1)
    return Clouds(centres, radii, columns / (radii * np.sqrt(2 * np.pi)))


def filaments(seed: int) -> Filaments:
    random = np.random.default_rng([22, seed, 2])
    n = N_FILAMENTS + N_SHEETS
    is_sheet = np.arange(n) >= N_FILAMENTS

    def log_uniform(of_filaments: tuple[float, float], of_sheets: tuple[float, float]) -> Any:
        low, high = np.where(is_sheet[:, None], of_sheets, of_filaments).T
        return np.exp(random.uniform(np.log(low), np.log(high)))

    angle, heading = random.uniform(0, 2 * np.pi, (2, n))
    distance, height = random.uniform(80, 700, n), random.uniform(-80, 80, n)
    along = np.stack([np.cos(heading), np.sin(heading), 0.4 * random.standard_normal(n)], 1)
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    across = np.cross(along, [0.0, 0.0, 1.0])
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    width = log_uniform((4.0, 20.0), (8.0, 25.0))
    length = log_uniform((50.0, 200.0), (150.0, 400.0))
    widths = np.stack([length, width, np.where(is_sheet, 60.0, width)], 1)
    columns = log_uniform(CLOUD_COLUMNS, (0.05, 0.4))
    waves = np.stack([0.15 * length, 2 * length, random.uniform(0, 2 * np.pi, n)], 1)
    return Filaments(
        np.stack([distance * np.cos(angle), distance * np.sin(angle), height], 1),
        np.stack([along, across, np.cross(along, across)], 1),
        widths, columns / (width * np.sqrt(2 * np.pi)), waves,
    )  # fmt: skip


KINDS: dict[str, Callable[[int], Sky]] = {"clouds": clouds, "filaments": filaments}
OUT = {"clouds": "benchmarks/dust_disc.csv", "filaments": "benchmarks/dust_filaments.csv"}


def catalogue(sky: Sky, seed: int) -> tuple[Rows, Rows]:
    """Stars by column, and of each the E to quantiles of its distance, which a map cannot know."""
    random = np.random.default_rng([22, seed, 1])
    place = random.uniform(-FARTHEST, FARTHEST, (40 * N_STARS, 3))
    r = np.linalg.norm(place, axis=1)
    kept = random.random(len(r)) < np.exp(-np.abs(place[:, 2]) / STAR_HEIGHT) * (r < FARTHEST)
    place, r = place[kept & (r > 50)][:N_STARS], r[kept & (r > 50)][:N_STARS]
    direction = place / r[:, None]
    relative = random.uniform(*ERRORS, N_STARS)
    observed = r * (1 + relative * random.standard_normal(N_STARS)).clip(0.3)
    columns = [column(sky, part) for part in np.array_split(direction, 50)]
    edges, to = columns[0][0], np.concatenate([part for _, part in columns])
    true = np.array([np.interp(d, edges, e) for d, e in zip(r, to, strict=True)])
    share = (np.arange(32) + 0.5) / 32
    parallax = 1e3 / observed[:, None] * (1 + relative[:, None] * math.sqrt(2) * _erfinv(share))
    possible = [np.interp(1e3 / p, edges, e) for p, e in zip(parallax.clip(0.5), to, strict=True)]
    stars = {
        "l": np.degrees(np.arctan2(direction[:, 1], direction[:, 0])),
        "b": np.degrees(np.arcsin(direction[:, 2])),
        "distance": observed,
        "distance_error": relative * observed,
        "extinction": true + SIGMA * random.standard_normal(N_STARS),
        "extinction_error": np.full(N_STARS, SIGMA),
    }
    truth = {"possible": np.array(possible), "true": true, "direction": direction}
    return stars, truth


def _erfinv(share: np.ndarray) -> np.ndarray:
    return torch.special.erfinv(torch.from_numpy(2 * share - 1)).numpy()


def log_normal(x: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    return -0.5 * ((x - mean) ** 2 / variance + np.log(2 * np.pi * variance))


def scores(x: np.ndarray, mean: np.ndarray, variance: np.ndarray, log_p: Any = None) -> Rows:
    """Of predicted extinctions ``x`` (stars,); ``log_p`` if it is not that of a normal."""
    return {
        "rms": np.sqrt(np.mean((x - mean) ** 2)),
        "lpd": np.mean(log_normal(x, mean, variance) if log_p is None else log_p),
        "coverage_68": np.mean(np.abs(x - mean) < np.sqrt(variance)),
    }


# --- peers ----------------------------------------------------------------------------------------


def neighbours(train: Rows, xyz: np.ndarray, at: np.ndarray, skip: int) -> Any:
    """Mean and variance of the extinctions of the nearest stars; ``skip`` 1 leaves itself out."""
    found = cKDTree(xyz).query(at, NEIGHBOURS + skip)[1][:, skip:]
    around = train["extinction"][found]
    return around.mean(1), around.var(1)


def kernel(train: Rows, xyz: np.ndarray, at: np.ndarray, skip: int, width: float) -> Any:
    means, variances = [], []
    for first in range(0, len(at), 500):
        square = ((at[first : first + 500, None] - xyz) ** 2).sum(-1)
        if skip:
            square[np.arange(len(square)), first + np.arange(len(square))] = np.inf
        # far from all, the nearest star
        log_w = -0.5 * (square - square.min(1, keepdims=True)) / width**2
        w = np.exp(log_w)
        w /= w.sum(1, keepdims=True)
        means.append(w @ train["extinction"])
        variances.append(w @ train["extinction"] ** 2 - means[-1] ** 2)
    return np.concatenate(means), np.concatenate(variances).clip(0)


def calibrated(x: np.ndarray, mean: np.ndarray, v: np.ndarray) -> np.ndarray:
    """ln a and ln b of the variance a + b v under which ``x`` are most probable."""

    def misfit(p: np.ndarray) -> float:
        return -float(log_normal(x, mean, np.exp(p[0]) + np.exp(p[1]) * v).mean())

    return minimize(misfit, [math.log(1e-3), 0.0], method="Nelder-Mead").x


def peers(train: Rows, test: Rows) -> dict[str, Rows]:
    xyz, at = (
        t["distance"][:, None]
        * np.stack([
            np.cos(np.radians(t["b"])) * np.cos(np.radians(t["l"])),
            np.cos(np.radians(t["b"])) * np.sin(np.radians(t["l"])),
            np.sin(np.radians(t["b"])),
        ], 1)
        for t in (train, test)
    )  # fmt: skip
    found = {}
    x = train["extinction"]

    def scored(predict: Any) -> Rows:
        a, b = np.exp(calibrated(x, *predict(train, xyz, xyz, 1)))
        mean, v = predict(train, xyz, at, 0)
        return scores(test["extinction"], mean, a + b * v)

    found["neighbours"] = scored(neighbours)
    by_width = {width: np.mean((x - kernel(train, xyz, xyz, 1, width)[0]) ** 2) for width in WIDTHS}
    best = min(by_width, key=lambda width: by_width[width])
    found["kernel"] = scored(partial(kernel, width=best))
    return found


# --- the map --------------------------------------------------------------------------------------


def data_of(stars: Rows, words: list[str]) -> tuple[dict[str, Any], Any]:
    """Settings of the component with those of ``words``, and ``stars`` as its data."""
    with initialize_config_dir(str(command_line.CONFIGS), version_base="1.3"):
        config = compose("train", ["model=dust", "data.test_fraction=0", *words])
    settings: Any = OmegaConf.to_container(config["model"], resolve=True)
    data_settings: Any = OmegaConf.to_container(config["data"], resolve=True)
    data = build(data_settings | {"split": "all"})
    data.table = Table(stars)
    return settings, data


def fitted(train: Rows, words: list[str]) -> tuple[Any, float]:
    """The map of ``train``, and its CPU seconds."""
    import lightning as L

    settings, data = data_of(train, words)
    data.setup("fit")
    began = time.process_time()
    model: Any = build(settings | data.model_arguments())
    model.prepare(data)
    L.Trainer(
        accelerator="cpu", max_epochs=model.fit.epochs, limit_val_batches=0, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    ).fit(model, datamodule=data)  # fmt: skip
    model.eval().calibrate(data)
    return model.requires_grad_(False), time.process_time() - began


def predictions(model: Any, test: Rows, words: list[str]) -> Rows:
    """The map's columns of ``test``, (stars,)."""
    (batch,) = data_of(test, words)[1].prediction_batches()
    found = model.predict_step(batch)
    return {name: values.double().numpy() for name, values in found.items() if values.ndim == 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="default: that of the kind in benchmarks/")
    parser.add_argument("--kind", choices=KINDS, default="clouds", help="of the skies")
    parser.add_argument("--seeds", default="0,1,2", help="of the skies")
    parser.add_argument("words", nargs="*", help="settings of the map: model.nside=16")
    options = parser.parse_args()
    torch.set_num_threads(1)
    silence_lightning()
    rows: list[dict[str, Any]] = []
    for seed in map(int, options.seeds.split(",")):
        stars, truth = catalogue(KINDS[options.kind](seed), seed)
        held_out = np.arange(N_STARS) % 10 == 0
        train, test = ({k: v[rows] for k, v in stars.items()} for rows in (~held_out, held_out))
        model, seconds = fitted(train, options.words)
        found = predictions(model, test, options.words)
        within = found["flags"].astype(int) & LEFT_OUT == 0
        test = {name: values[within] for name, values in test.items()}
        found = {name: values[within] for name, values in found.items()}
        x, mean = test["extinction"], found["extinction"]
        possible = truth["possible"][held_out][within]
        at_truth = log_normal(x, possible.mean(1), SIGMA**2 + possible.var(1))
        density, scatter = model.constant_density.tolist()
        path = test["distance"]
        spread = (density * test["distance_error"]) ** 2 + SIGMA**2 + scatter**2
        constant = scores(x, density * path, spread)
        deviation = (x - mean) / found["pull"]
        methods: dict[str, Rows] = {
            "dust": scores(x, mean, deviation**2, found["log_density"])
            | {"seconds": np.array(seconds)},
            **peers(train, test),
            "constant": constant,
            "truth": scores(x, possible.mean(1), SIGMA**2 + possible.var(1)),
        }
        gap = at_truth.mean() - constant["lpd"]
        for name, row in methods.items():
            row["gap_closed"] = (row["lpd"] - constant["lpd"]) / gap
            rows.append({"seed": seed, "method": name, **row})
            print({k: v if isinstance(v, str | int) else f"{v:.4g}" for k, v in rows[-1].items()},
                  flush=True)  # fmt: skip
        names = ("seed", "method", "rms", "lpd", "coverage_68", "gap_closed", "seconds")
        write_rows(options.out or Path(OUT[options.kind]), rows, names)


if __name__ == "__main__":
    main()
