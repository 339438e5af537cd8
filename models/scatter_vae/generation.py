"""Stars drawn by the model: like the training set's, near a latent point, or from the prior."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from orrery.models.base import ObjectRequest
from orrery.models.scatter_vae.outputs import generated_outputs

if TYPE_CHECKING:
    from orrery.models.scatter_vae import ScatterVAE

GENERATED_PER_CHUNK = 4096  # stars
NEIGHBOURS = 64  # of a point in latent space, whose scatter is that of stars drawn about it


@torch.no_grad()
def generate(
    model: "ScatterVAE", n: int, near: Any, spread: float, seed: int
) -> dict[str, np.ndarray]:
    """See `models.scatter_vae.ScatterVAE.generate`."""
    if near is not None and not isinstance(near, str):
        near = np.asarray(near, np.float32)
    known = near is None or (isinstance(near, str) and near == "prior")
    if not known and (np.shape(near) != (model.latent,) or not np.isfinite(near).all()):
        raise ValueError(
            f"near is {near!r}; expected {model.latent} numbers, such as a star's latent_mean, "
            f"'prior', or None for stars like the training set's"
        )
    generator = torch.Generator().manual_seed(seed)
    population = model.population.cpu()
    drawn = torch.randn(n, model.latent, generator=generator)
    if near is None:
        z = population[torch.randint(len(population), (n,), generator=generator)]
    elif isinstance(near, str) and near == "prior":
        z = spread * drawn
    else:
        center = torch.as_tensor(near)[None]
        distance = (population - center).square().sum(1)
        nearest = population[distance.topk(min(NEIGHBOURS, len(population)), largest=False).indices]
        z = center + spread * drawn * nearest.std(0)
    z = z.to(model.device)
    coefficients = model.decode(z) * model.scale + model.center
    tensors = {
        "latent": z,
        "coefficients": coefficients,
        "scatter": model.network.intrinsic_scatter(z) * model.scale,
    }
    stars = {name: values.cpu().numpy() for name, values in tensors.items()}
    if model.spectra is not None:
        stars["spectrum"] = model.spectra.flux(coefficients).cpu().numpy()
    return stars | {
        name: constant.values for name, constant in model.wavelength_constants().items()
    }


def generated_chunks(
    model: "ScatterVAE", request: ObjectRequest
) -> Iterator[dict[str, np.ndarray]]:
    """``request.n`` stars like the training set's, in chunks of `generate`."""
    for i, start in enumerate(range(0, request.n, GENERATED_PER_CHUNK)):
        size = min(GENERATED_PER_CHUNK, request.n - start)
        # chunks of other seeds have other random numbers
        stars = model.generate(size, seed=1_000_003 * request.seed + i)
        yield {name: stars[name] for name in generated_outputs(model.spectra is not None)}
