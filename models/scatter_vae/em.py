"""After the fit: decoder and scatter learned again from posteriors that no encoder blurs.

What the encoder misses of a star, its decoder takes for scatter. Rounds of expectation and
maximisation mend that: the exact normal posterior of each star, then the decoder's and scatter's
gradients at draws from it.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

STARS = 20_000  # at most, of the training set
EPOCHS = 3  # of maximisation in a round
RATE = 1e-3  # learning rate, which falls to zero over all rounds
SLICE, BATCH = 256, 256


def polish(model: Any, batch: Mapping[str, Tensor], rounds: int, seed: int = 0) -> None:
    """Refit ``model.network``'s decoder and scatter to the first stars of ``batch``, in place."""
    generator = torch.Generator().manual_seed(seed)
    network = model.network
    learned = [*network.decoder.parameters(), *network.scatter.parameters()]
    optimizer = torch.optim.Adam(learned, lr=RATE, betas=(0.9, 0.99))
    stars = {k: v[:STARS] for k, v in batch.items()}
    n = len(stars["flux"])
    steps = rounds * EPOCHS * -(-n // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: max(1 - i / steps, 0.0))
    for _ in range(rounds):
        mean, root = _posteriors(model, stars)
        for _ in range(EPOCHS):
            for index in torch.randperm(n, generator=generator).split(BATCH):
                part = {k: v[index].to(model.device) for k, v in stars.items()}
                draw = torch.randn(len(index), mean.shape[1], generator=generator)
                z = (mean[index] + (root[index] @ draw[..., None])[..., 0]).to(model.device)
                optimizer.zero_grad()
                with torch.enable_grad():
                    model.nll_at(z, part).mean().backward()
                optimizer.step()
                schedule.step()


def _posteriors(model: Any, stars: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and root of the covariance of each star's latent numbers and amplitude."""
    means, roots = [], []
    with torch.no_grad():
        for i in range(0, len(stars["flux"]), SLICE):
            part = {k: v[i : i + SLICE].to(model.device) for k, v in stars.items()}
            found = model.posterior(part)
            means.append(found.mean.cpu())
            roots.append(torch.linalg.cholesky(found.covariance).cpu())
    return torch.cat(means), torch.cat(roots)
