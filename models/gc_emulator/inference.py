"""From stars to posterior draws: starting points, HMC that can be interrupted, diagnostics."""

import math
import time
from pathlib import Path
from typing import NamedTuple

import torch
from rich.progress import track
from torch import Tensor

from orrery.checkpoint import write_checkpoint
from orrery.models.gc_emulator.start import Posterior, starting_points
from orrery.models.inference.diagnostics import ess, rhat
from orrery.models.inference.hmc import HMC

SAVED_EVERY = 100  # transitions
KEPT_LATENTS = 30_000_000  # numbers of them that are kept: of every draw, or of every few


class Draws(NamedTuple):
    """Draws of every set, and what is known of the chains."""

    named: dict[str, Tensor]  # parameters, (sets, chains, draws)
    facts: dict[str, float]  # rhat_max, ess_min, divergences, seconds
    u: Tensor  # the globals that were sampled, (sets, chains, draws, n_globals)
    whole: list[Tensor]  # points with their latents, each (sets, chains, dim), of every few draws


def sample(
    posterior: Posterior,
    chains: int,
    warmup: int,
    draws: int,
    seed: int,
    folder: Path | None = None,
) -> Draws:
    """HMC on all sets at once. An interrupted run goes on from ``folder``/chains.pt, exactly.

    In ``facts`` ``seconds`` is CPU time of this process, without what an interrupted one took.
    """
    began = time.process_time()
    generator = torch.Generator().manual_seed(seed)
    start, covariance = starting_points(posterior, chains, generator)
    sampler = HMC(posterior.log_prob, start, warmup, seed, posterior.accept, covariance)
    k = posterior.n_globals
    every = max(1, math.ceil(draws * start[..., k:].numel() / KEPT_LATENTS))
    kept: list[Tensor] = []
    latents: list[Tensor] = []
    saved = folder / "chains.pt" if folder is not None else None
    asked = {
        "shape": list(start.shape),
        "warmup": warmup,
        "seed": seed,
        "start": start.sum().item(),
    }
    if saved is not None and saved.exists():
        state = torch.load(saved, weights_only=True)
        if state["asked"] != asked:
            raise ValueError(f"{saved} belongs to other chains: {state['asked']}, now {asked}")
        sampler.restore(state["sampler"])
        kept, latents = list(state["kept"]), list(state["latents"])
    done = sampler.values["iteration"]
    for i in track(range(done, warmup + draws), "sampling", transient=True):
        position = sampler.advance()
        if i >= warmup:
            kept.append(position[..., :k])
            if (i - warmup) % every == 0:
                latents.append(position[..., k:].float())
        if saved is not None and (i + 1) % SAVED_EVERY == 0:
            state = {"asked": asked, "sampler": sampler.state(), "kept": kept, "latents": latents}
            write_checkpoint(state, saved)
    if saved is not None:
        saved.unlink(missing_ok=True)  # nothing is left to go on with
    u = torch.stack(kept, 2)
    diagnosed = [_diagnosed(u)]
    if posterior.n_latents:
        diagnosed.append(_diagnosed(torch.stack(latents, 2)))
    facts = {
        "rhat_max": max(rhat_max for rhat_max, _ in diagnosed),
        "ess_min": min(ess_min for _, ess_min in diagnosed),
        "divergences": float(sampler.values["divergences"].sum()),
        "acceptance": float(sampler.values["accepted"].mean() / len(kept)),
        "gradients": float(sampler.values["gradients"]),
        "seconds": time.process_time() - began,
    }
    whole = [torch.cat([kept[i * every], n.double()], -1) for i, n in enumerate(latents)]
    return Draws(posterior.named(u), facts, u, whole)


def _diagnosed(draws: Tensor) -> tuple[float, float]:
    """The worst R-hat and the smallest effective sample size; draws (sets, chains, n, dim)."""
    by_chain = draws.permute(1, 2, 0, 3).flatten(2)
    parts = by_chain.split(1000, 2)
    return max(float(rhat(x).max()) for x in parts), min(float(ess(x).min()) for x in parts)
