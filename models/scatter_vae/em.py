"""After the fit: expectation maximisation of decoder and scatter, with exact posteriors of z.

The decoder takes the errors of the encoder for scatter. A round computes the exact normal posterior
of each star, then follows the gradients of decoder and scatter at draws from it.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from orrery.models.base import Batch
from orrery.models.layers.slices import slices

if TYPE_CHECKING:
    from orrery.models.scatter_vae import ScatterVAE

MAX_STARS = 20_000  # of the training set
EPOCHS = 3  # of maximisation in a round
LEARNING_RATE = 1e-3  # falls to zero over all rounds
STARS_AT_ONCE, BATCH_SIZE = 256, 256


def expectation_maximisation(model: "ScatterVAE", batch: Batch, rounds: int, seed: int = 0) -> None:
    """Refit ``model.network``'s decoder and scatter to the first stars of ``batch``, in place."""
    generator = torch.Generator().manual_seed(seed)
    network = model.network
    parameters = [*network.decoder.parameters(), *network.scatter.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE, betas=(0.9, 0.99))
    stars = {k: v[:MAX_STARS] for k, v in batch.items()}
    n = len(stars["flux"])
    steps = rounds * EPOCHS * -(-n // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: max(1 - i / steps, 0.0))
    for _ in range(rounds):
        mean, root = _posteriors(model, stars)
        for _ in range(EPOCHS):
            for index in torch.randperm(n, generator=generator).split(BATCH_SIZE):
                part = {k: v[index].to(model.device) for k, v in stars.items()}
                draw = torch.randn(len(index), mean.shape[1], generator=generator)
                z = (mean[index] + (root[index] @ draw[..., None])[..., 0]).to(model.device)
                optimizer.zero_grad()
                with torch.enable_grad():
                    model.nll_at(z, part).mean().backward()
                optimizer.step()
                schedule.step()


def _posteriors(model: "ScatterVAE", stars: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and root of the covariance of each star's latent numbers and amplitude."""
    means, roots = [], []
    with torch.no_grad():
        for part in slices(stars, STARS_AT_ONCE):
            posterior = model.posterior({k: v.to(model.device) for k, v in part.items()})
            means.append(posterior.mean.cpu())
            roots.append(torch.linalg.cholesky(posterior.covariance).cpu())
    return torch.cat(means), torch.cat(roots)
