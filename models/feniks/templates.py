"""Libraries of template spectra at nodes of redshift: of the prior, or of fits to the photometry.

- ``prior_templates(network, priors, z, resolution, wavelength, n, seed) -> Library``
- ``joint_library(network, emulator, data, nodes, resolution, wavelength, n, seed) -> Library``
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from orrery.models.feniks.photometric_redshift import PhotometricNodes, at_redshifts
from orrery.models.feniks.redshift import NODE_STEP, nodes
from orrery.models.feniks.rest_spectra import rest_grid, rest_templates
from orrery.models.sed_emulator.draws import ensemble_draws
from orrery.models.sed_emulator.posterior import Emulator, Mode, Photometry, to_parameters
from orrery.models.sed_emulator.spectra import SpectrumNetwork
from orrery.physics.sps.priors import Priors

MARGIN = 0.002  # of ln wavelength, beyond what the redshifts of a node need
SIGMA_V = (200.0, 0.35)  # km/s: median, and scatter of ln, of velocity dispersions a priori
COUNTS = 12.0  # below the highest ln p(z | photometry): nodes there are negligible
SAMPLED_NODES = 4  # at most, that have draws of their own
FEWEST_WALKERS = 32
STEPS = 80  # of each walker of the photometry


class Library(NamedTuple):
    """Templates by node of redshift: centres ``log_ratio`` (nodes,) of ln(1 + z).

    ``grids``: of ln rest wavelength, (n,) each; ``templates``: (n, T) each; ``parameters``: (T, p);
    ``sigma_v``: (T,), km/s; ``log_weight``: (T,), ln of their probabilities, which add up to 1. A
    node that is of no account has no templates.
    """

    log_ratio: Tensor
    grids: list[Tensor]
    templates: list[Tensor]
    parameters: list[Tensor]
    sigma_v: list[Tensor]
    log_weight: list[Tensor]

    @property
    def half_width(self) -> float:
        """Of a node, in ln(1 + z)."""
        x = self.log_ratio
        return 0.5 * float(x[1] - x[0]) if len(x) > 1 else 0.5 * NODE_STEP

    def add(
        self,
        network: SpectrumNetwork,
        centre: float,
        parameters: Tensor,
        sigma_v: Tensor,
        resolution: float,
        wavelength: tuple[float, float],
    ) -> None:
        """Another node, at ln(1 + z) ``centre``, whose templates (T,) are equally probable.

        ``wavelength``: the ends of the spectra, Angstrom.
        """
        reach = self.half_width + MARGIN
        low, high = wavelength
        grid = rest_grid(low * math.exp(-centre - reach), high * math.exp(-centre + reach))
        templates = rest_templates(network, parameters, sigma_v, resolution, grid)
        self.append(grid, templates, parameters, sigma_v)

    def skip(self) -> None:
        """A node that is of no account."""
        none = torch.zeros(0)
        self.append(none, none[:, None], none[:, None], none)

    def append(self, grid: Tensor, templates: Tensor, parameters: Tensor, sigma_v: Tensor) -> None:
        """Another node of spectra that are made, on a ``grid`` of ln wavelength at rest."""
        n = len(parameters)
        self.grids.append(grid)
        self.templates.append(templates)
        self.parameters.append(parameters)
        self.sigma_v.append(sigma_v)
        self.log_weight.append(torch.full((n,), -math.log(max(n, 1)), dtype=torch.float64))


def draw_sigma_v(n: int, generator: torch.Generator) -> Tensor:
    """Velocity dispersions (n,), km/s, of the prior."""
    middle, scatter = SIGMA_V
    return middle * torch.exp(scatter * torch.randn(n, generator=generator))


@torch.no_grad()
def prior_templates(
    network: SpectrumNetwork,
    priors: Priors,
    z: tuple[float, float],
    resolution: float,
    wavelength: tuple[float, float],
    n: int,
    seed: int = 0,
) -> Library:
    """Templates of the prior, ``n`` a node, for redshifts between ``z``.

    ``wavelength``: the ends of the spectra, Angstrom. Nodes have the same draws of all parameters
    but redshift.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, len(priors.names), generator=generator)
    sigma_v = draw_sigma_v(n, generator)
    library = Library(nodes(*z), [], [], [], [], [])
    for centre in library.log_ratio.tolist():
        parameters = priors.from_normal(x)
        parameters[:, priors.names.index("zred")] = math.expm1(centre)
        library.add(network, centre, parameters, sigma_v, resolution, wavelength)
    return library


@torch.no_grad()
def joint_library(
    network: SpectrumNetwork,
    emulator: Emulator,
    data: Photometry,
    found: PhotometricNodes,
    resolution: float,
    wavelength: tuple[float, float],
    n: int,
    seed: int = 0,
) -> Library:
    """Templates that fit the photometry: ``n`` draws of the posterior at each node that counts.

    By walkers at a few nodes, for few draws of the normal approximation fit the photometry
    themselves; at other nodes they are moved by the difference of the maxima.
    """
    centres = found.log_ratio
    density = _highest(found)
    counted = (density > density.max() - COUNTS).nonzero()[:, 0]
    own = counted[:: math.ceil(len(counted) / SAMPLED_NODES)]  # nodes that are sampled
    modes = [Mode(*(values[own] for values in found.mode))]
    rows = at_redshifts(data, torch.expm1(centres[own]))
    walkers = max(n, FEWEST_WALKERS)
    found_x = ensemble_draws(emulator, rows, modes, walkers, STEPS, 1, seed, ensembles=1)
    x = found_x[:, 0, :n, 0]
    sigma_v = draw_sigma_v(n, torch.Generator().manual_seed(seed))
    library = Library(centres, [], [], [], [], [])
    for i, centre in enumerate(centres.tolist()):
        if i not in counted:
            library.skip()
            continue
        nearest = int((own - i).abs().argmin())
        moved = x[nearest] + found.mode.x[i] - found.mode.x[own[nearest]]
        zred = torch.full((n,), math.expm1(centre))
        parameters = to_parameters(emulator.priors, moved, zred)
        library.add(network, centre, parameters, sigma_v, resolution, wavelength)
    return library


def _highest(found: PhotometricNodes) -> Tensor:
    """The highest ln p(z | photometry) of the redshifts of each node, (k,): cells of it count."""
    centres = found.log_ratio
    half = 0.5 * float(centres[1] - centres[0])
    ends = torch.stack([centres - half, centres, centres + half])
    return (found.log_density(torch.expm1(ends)) + ends).amax(0)
