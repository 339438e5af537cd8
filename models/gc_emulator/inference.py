"""From observations to posterior draws: the posterior, HMC that can be interrupted, diagnostics."""

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from orrery.checkpoint import read_archive, write_checkpoint
from orrery.models.gc_emulator.emulator import IsothermalEmulator
from orrery.models.gc_emulator.posterior import PhaseSpacePosterior
from orrery.models.gc_emulator.profiles import ProfilesPosterior
from orrery.models.gc_emulator.sky import SkyPosterior, star_measurements
from orrery.models.gc_emulator.start import ClusterPosterior, starting_points
from orrery.models.inference.diagnostics import ess, rhat
from orrery.models.inference.hmc import HMC
from orrery.physics.clusters.observations import BinnedProfiles, PhaseSpaceStars, SkyStars
from orrery.progress import counted

SAVE_INTERVAL = 100  # transitions
PERIODS = {"centre_ra": 360.0}  # deg, of the parameters that are angles
MAX_LATENTS = 30_000_000  # latent numbers that are kept, of every draw or of every k-th one


class ClusterData(Protocol):
    """The data module of a cluster, or of many simulated ones."""

    seed: int

    def observations(self) -> object:
        """A dataclass of `physics.clusters.observations`."""

    def truth(self) -> Mapping[str, float]:
        """True parameters of a mock, by name; empty where they are not known."""


class Draws(NamedTuple):
    """Posterior draws of every data set, and diagnostics of the chains."""

    named: dict[str, Tensor]  # parameters, (sets, chains, draws)
    metrics: dict[str, float]  # rhat_max, ess_min, divergences, acceptance, gradients, seconds
    u: Tensor  # the sampled coordinates without latents, (sets, chains, draws, n_globals)
    with_latents: list[Tensor]  # points with their latents, each (sets, chains, dim), every k-th

    def arrays(self) -> dict[str, np.ndarray]:
        """Parameters of the first data set, (chains, draws)."""
        return {name: values[0].cpu().numpy() for name, values in self.named.items()}


def posterior_of(
    emulator: IsothermalEmulator, observations: object, marginal: bool = False
) -> PhaseSpacePosterior | SkyPosterior | ProfilesPosterior:
    """The posterior of one cluster given its observations.

    ``marginal``: whether the true coordinates of stars on the sky are integrated out, not sampled.
    """
    match observations:
        case PhaseSpaceStars():
            return PhaseSpacePosterior(
                emulator, observations.phase[None], observations.has_outliers
            )
        case SkyStars():
            stars = star_measurements({k: v[None] for k, v in observations.columns.items()})
            return SkyPosterior(
                emulator,
                stars,
                observations.distance,
                observations.selection,
                observations.has_field_stars,
                marginal,
                observations.parallax_offset_error,
            )
        case BinnedProfiles():
            return ProfilesPosterior(emulator, observations.profiles, observations.distance)
    raise ValueError(
        f"gc_emulator infers clusters from stars and profiles, not from "
        f"{type(observations).__name__}"
    )


def summary_metrics(draws: Draws, truth: Mapping[str, float]) -> dict[str, float]:
    """Posterior mean and standard deviation of each parameter of one cluster.

    Where its true value is known also that, and the error in standard deviations, ``<name>_z``. Of
    an angle of `PERIODS` the mean and the truth are from 0 to its period, and the error is the
    shorter way round.
    """
    metrics = {}
    for name, values in draws.arrays().items():
        metrics[name], metrics[f"{name}_std"] = float(values.mean()), float(values.std())
        period = PERIODS.get(name)
        if period:
            metrics[name] %= period
        if name in truth:
            true = truth[name] % period if period else truth[name]
            error = metrics[name] - true
            if period:
                error = (error + 0.5 * period) % period - 0.5 * period
            metrics[f"{name}_true"] = true
            metrics[f"{name}_z"] = error / metrics[f"{name}_std"]
    return metrics


def sample(
    posterior: ClusterPosterior,
    chains: int,
    warmup: int,
    draws: int,
    seed: int,
    folder: Path | None = None,
) -> Draws:
    """HMC on all data sets at once; an interrupted run resumes from ``folder``/chains.pt, exactly.

    The metric ``seconds`` is CPU time of this process, without that of an interrupted one.
    """
    began = time.process_time()
    generator = torch.Generator().manual_seed(seed)
    start, covariance = starting_points(posterior, chains, generator)
    sampler = HMC(posterior.log_prob, start, warmup, seed, posterior.accept, covariance)
    k = posterior.n_globals
    stride = max(1, math.ceil(draws * start[..., k:].numel() / MAX_LATENTS))
    globals_: list[Tensor] = []
    latents: list[Tensor] = []
    path = folder / "chains.pt" if folder is not None else None
    run = {
        "shape": list(start.shape),
        "warmup": warmup,
        "seed": seed,
        "start": start.sum().item(),
    }
    if path is not None and path.exists():
        state = read_archive(path)
        if state["asked"] != run:
            raise ValueError(
                f"{path} belongs to other chains: {state['asked']}, and this run asks for {run}; "
                f"repeat their settings, or remove that file"
            )
        sampler.restore(state["sampler"])
        globals_, latents = list(state["kept"]), list(state["latents"])
    done = sampler.values["iteration"]
    for i in counted(range(done, warmup + draws), "sampling", "transitions"):
        position = sampler.advance()
        if i >= warmup:
            globals_.append(position[..., :k])
            if (i - warmup) % stride == 0:
                latents.append(position[..., k:].float())
        if path is not None and (i + 1) % SAVE_INTERVAL == 0:
            # the keys are those of files that interrupted runs of version 0.1 have left
            state = {"asked": run, "sampler": sampler.state(), "kept": globals_, "latents": latents}
            write_checkpoint(state, path)
    if path is not None:
        path.unlink(missing_ok=True)  # the run is complete
    u = torch.stack(globals_, 2)
    diagnostics = [_diagnostics(u)]
    if posterior.n_latents:
        diagnostics.append(_diagnostics(torch.stack(latents, 2)))
    metrics = {
        "rhat_max": max(rhat_max for rhat_max, _ in diagnostics),
        "ess_min": min(ess_min for _, ess_min in diagnostics),
        "divergences": float(sampler.values["divergences"].sum()),
        "acceptance": float(sampler.values["accepted"].mean() / len(globals_)),
        "gradients": float(sampler.values["gradients"]),
        "seconds": time.process_time() - began,
    }
    points = [torch.cat([globals_[i * stride], n.double()], -1) for i, n in enumerate(latents)]
    return Draws(posterior.named(u), metrics, u, points)


def _diagnostics(draws: Tensor) -> tuple[float, float]:
    """Largest R-hat and smallest effective sample size of ``draws`` (sets, chains, n, dim)."""
    by_chain = draws.permute(1, 2, 0, 3).flatten(2)
    parts = by_chain.split(1000, 2)  # coordinates
    return max(float(rhat(x).max()) for x in parts), min(float(ess(x).min()) for x in parts)
