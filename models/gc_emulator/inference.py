"""From stars to posterior draws: starting points, HMC that can be interrupted, diagnostics."""

import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.progress import track
from torch import Tensor

from models.blocks.diagnostics import ess, rhat
from models.blocks.hmc import HMC
from models.checkpoint import write_checkpoint
from models.gc_emulator.start import Posterior, starting_points

SAVED_EVERY = 100  # transitions


class Draws(NamedTuple):
    """Draws of every set, and what is known of the chains."""

    named: dict[str, Tensor]  # parameters, (sets, chains, draws)
    facts: dict[str, float]  # rhat_max, ess_min, divergences, seconds
    u: Tensor  # what was sampled, (sets, chains, draws, dim)


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
    sampler = HMC(posterior.log_prob, start, warmup, seed, covariance=covariance)
    kept: list[Tensor] = []
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
        kept = list(state["kept"])
    done = sampler.values["iteration"]
    for i in track(range(done, warmup + draws), "sampling", transient=True):
        position = sampler.advance()
        if i >= warmup:
            kept.append(position)
        if saved is not None and (i + 1) % SAVED_EVERY == 0:
            everything: dict[str, Any] = {"asked": asked, "sampler": sampler.state()}
            write_checkpoint({**everything, "kept": torch.stack(kept) if kept else []}, saved)
    u = torch.stack(kept, 2)  # (sets, chains, draws, dim)
    by_chain = u.transpose(0, 1).transpose(1, 2)  # (chains, draws, sets, dim)
    facts = {
        "rhat_max": float(rhat(by_chain).max()),
        "ess_min": float(ess(by_chain).min()),
        "divergences": float(sampler.values["divergences"].sum()),
        "acceptance": float(sampler.values["accepted"].mean() / len(kept)),
        "gradients": float(sampler.values["gradients"]),
        "seconds": time.process_time() - began,
    }
    return Draws(posterior.named(u), facts, u)
