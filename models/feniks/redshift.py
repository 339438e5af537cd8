"""The redshift's posterior on a dense grid, from templates and a spectrum.

Public functions:

- ``prior_templates(network, priors, z, resolution, wavelength, n, seed) -> Library``: templates
  drawn from the prior at nodes of redshift.
- ``spectrum_posterior(spectrum, library, log_prior, model) -> RedshiftPosterior``: ``log_prior`` a
  function of z (k,) -> ln of the prior density in z (k,), such as `gaussian_prior` of a photometric
  redshift.
- ``photometric_nodes(emulator, data, start, z) -> PhotometricNodes``: of one galaxy, fits at nodes
  of redshift; ``.posterior()`` is p(z) of the photometry.
- ``joint_library(network, emulator, data, nodes, resolution, wavelength, n, seed) -> Library``:
  templates that fit the photometry; with ``nodes.log_density`` as ``log_prior``,
  `spectrum_posterior` is the joint p(z).
- ``joint_draws(spectrum, library, posterior, n, seed, model) -> Draws``: of p(z, parameters).
- `RedshiftPosterior`: ``z`` (k,), ``log_p`` (k,) (ln of the probability of each cell), and methods
  ``best(window)``, ``p_within(z, half)``, ``cumulative(z)`` (PIT), ``modes(window)``.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from orrery.models.feniks.spectrum_fit import (
    DEFAULT,
    STEP,
    Spectrum,
    SpectrumModel,
    at_own_redshift,
    log_likelihood,
    prepared,
    rest_grid,
    rest_templates,
)
from orrery.models.sed_emulator import fitting
from orrery.models.sed_emulator.spectra import SpectrumNetwork
from orrery.physics.sps.emission import H_BETA, O_III, seen
from orrery.physics.sps.priors import Priors

NODE_STEP = 0.02  # of ln(1 + z)
MARGIN = 0.002  # of ln wavelength, beyond what the redshifts of a node need
SIGMA_V = (200.0, 0.35)  # km/s: median, and scatter of ln, of velocity dispersions a priori
COARSE = 4  # cells, of which one is evaluated at first
COUNTS = 12.0  # below the highest ln p: cells there are negligible, as are those of a prior so low
NEGLIGIBLE = 8.0  # below the highest ln prior
BEND = 0.4  # of ln p over `COARSE` cells: less is interpolated
PEAK = 1.0  # below the highest ln p: all cells are evaluated
SECURE = 0.99  # of secure redshifts are right
TENTATIVE = 0.5
BROAD_SHARE = 0.1  # of galaxies have broad lines, a priori
BROAD_TEMPLATES = 24
CHAINS, WARMUP = 16, 16  # of HMC of the photometry
SAMPLED_NODES = 4  # at most, that have chains of their own
WINDOW = 0.01  # of redshift: half the width of a mode, and of "right"


class Mode(NamedTuple):
    """A mode of p(z): its redshift, probability, and the ends of the window."""

    z: float
    weight: float
    low: float
    high: float


class RedshiftPosterior(NamedTuple):
    """Probabilities of cells of equal width in ln(1 + z): centres ``z`` (k,), ``log_p`` (k,).

    ``log_plain`` (k,): the same without broad lines, where their part was asked for.
    """

    z: Tensor
    log_p: Tensor
    log_plain: Tensor | None = None

    def p_within(self, z: float, half: float = WINDOW) -> float:
        """Probability that the redshift is within ``half`` of z."""
        edges = torch.tensor([z - half, z + half], dtype=torch.float64)
        low, high = self.cumulative(edges).tolist()
        return high - low

    def edges(self) -> Tensor:
        """Of the cells, (k + 1,)."""
        log_ratio = torch.log1p(self.z)
        first = log_ratio[:1] - 0.5 * (log_ratio[1] - log_ratio[0])
        step = log_ratio[1] - log_ratio[0]
        return torch.expm1(torch.cat([first, log_ratio + 0.5 * step]))

    def cumulative(self, z: Tensor) -> Tensor:
        """Probability of a redshift below z (n,), linear within cells."""
        edges = self.edges()
        total = torch.nn.functional.pad(self.log_p.exp().cumsum(0), (1, 0))
        i = torch.searchsorted(edges, z).clamp(1, len(edges) - 1)
        share = (z - edges[i - 1]) / (edges[i] - edges[i - 1])
        return torch.lerp(total[i - 1], total[i], share.clamp(0, 1))

    def density(self, z: Tensor) -> Tensor:
        """p(z) (n,), per z, constant within cells."""
        edges = self.edges()
        i = torch.searchsorted(edges, z).clamp(1, len(edges) - 1) - 1
        inside = (z >= edges[0]) & (z <= edges[-1])
        return torch.where(inside, self.log_p[i].exp() / edges.diff()[i], 0.0)

    def best(self, half: float = WINDOW) -> float:
        """The redshift that has the most probability within ``half``: of that, the median."""
        mass = self.cumulative(self.z + half) - self.cumulative(self.z - half)
        z = self.z[mass.argmax()]
        low, high = self.cumulative(torch.stack([z - half, z + half]))
        return self.quantile(float(0.5 * (low + high)))

    def quantile(self, level: float) -> float:
        edges, total = self.edges(), self.log_p.exp().cumsum(0)
        i = int(torch.searchsorted(total, torch.tensor(level).to(total)).clamp_max(len(total) - 1))
        p = float(self.log_p[i].exp())
        share = (level - (float(total[i]) - p)) / max(p, 1e-300)
        return float(edges[i] + share * (edges[i + 1] - edges[i]))

    def modes(self, n: int = 3, half: float = WINDOW) -> list[Mode]:
        """Windows of ``half`` about redshifts, of the most probability, that do not overlap."""
        log_p, found = self.log_p.clone(), []
        for _ in range(n):
            part = RedshiftPosterior(self.z, log_p)
            z = part.best(half)
            weight = part.p_within(z, half)
            if weight < 1e-3:
                break
            found.append(Mode(z, weight, z - half, z + half))
            log_p = torch.where((self.z - z).abs() < 2 * half, -torch.inf, log_p)
        return found


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

    def add(self, grid: Tensor, templates: Tensor, parameters: Tensor, sigma_v: Tensor) -> None:
        """Another node, whose templates are equally probable."""
        self.grids.append(grid)
        self.templates.append(templates)
        self.parameters.append(parameters)
        self.sigma_v.append(sigma_v)
        n = len(parameters)
        self.log_weight.append(torch.full((n,), -math.log(max(n, 1)), dtype=torch.float64))


def nodes(low: float, high: float, step: float = NODE_STEP) -> Tensor:
    """ln(1 + z) in steps of at most ``step``, float64."""
    start, end = math.log1p(low), math.log1p(high)
    n = max(1, math.ceil((end - start) / step))
    return start + (torch.arange(n, dtype=torch.float64) + 0.5) * (end - start) / n


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
    centres = nodes(*z)
    half = 0.5 * float(centres[1] - centres[0]) if len(centres) > 1 else 0.5 * NODE_STEP
    library = Library(centres, [], [], [], [], [])
    for centre in centres.tolist():
        parameters = priors.from_normal(x)
        parameters[:, priors.names.index("zred")] = math.expm1(centre)
        grid = rest_grid(
            wavelength[0] * math.exp(-centre - half - MARGIN),
            wavelength[1] * math.exp(-centre + half + MARGIN),
        )
        templates = rest_templates(network, parameters, sigma_v, resolution, grid)
        library.add(grid, templates, parameters, sigma_v)
    return library


def gaussian_prior(z: float, sigma: float) -> Callable[[Tensor], Tensor]:
    """ln of a normal density of redshift, up to a constant."""
    return lambda x: -0.5 * ((x - z) / sigma).square()


def spectrum_posterior(
    spectrum: Spectrum,
    library: Library,
    log_prior: Callable[[Tensor], Tensor],
    model: SpectrumModel = DEFAULT,
    best: bool = False,
    broad_share: float = BROAD_SHARE,
) -> RedshiftPosterior:
    """p(z) from a spectrum and a prior density in z.

    ``broad_share``: prior probability of broad lines of H beta and [O III], of which the likelihood
    is that of every `COARSE` cell and of `BROAD_TEMPLATES` templates.
    ``best``: the likelihood is that of the best template, not the mean. Redshifts whose prior is
    below that of the best by e^-`NEGLIGIBLE` are left out. Others are
    evaluated every `COARSE` cells, and between these where ln p bends and counts.
    """
    centres = library.log_ratio
    width = float(centres[1] - centres[0]) if len(centres) > 1 else NODE_STEP
    per_node = COARSE * max(1, round(width / STEP / COARSE))
    offsets = width * ((torch.arange(per_node, dtype=torch.float64) + 0.5) / per_node - 0.5)
    log_ratio = (centres[:, None] + offsets).flatten()
    node = torch.arange(len(centres)).repeat_interleave(per_node)
    # a cell of ln(1 + z) holds (1 + z) of z
    prior = log_prior(torch.expm1(log_ratio)) + log_ratio
    wanted = prior > prior.max() - NEGLIGIBLE
    log_l = torch.full_like(log_ratio, torch.nan)

    def with_broad(chosen: Tensor) -> Tensor:
        values = torch.full_like(log_ratio, torch.nan)
        for i in node[chosen].unique().tolist():
            rows = (chosen & (node == i)).nonzero()[:, 0]
            some = slice(None, None, max(1, len(library.log_weight[i]) // BROAD_TEMPLATES))
            found = log_likelihood(
                spectrum,
                library.grids[i],
                library.templates[i][:, some].contiguous(),
                log_ratio[rows],
                model,
                broad=True,
            )
            weight = library.log_weight[i][some]
            weight = weight - weight.logsumexp(0)
            values[rows] = (found.double() + weight).logsumexp(1)
        return _filled(values)

    def evaluate(chosen: Tensor) -> None:
        for i in node[chosen].unique().tolist():
            rows = (chosen & (node == i)).nonzero()[:, 0]
            found = log_likelihood(
                spectrum, library.grids[i], library.templates[i], log_ratio[rows], model
            )
            weighted = found.double() + library.log_weight[i]
            log_l[rows] = weighted.amax(1) if best else weighted.logsumexp(1)

    first = torch.zeros_like(wanted)
    first[COARSE // 2 :: COARSE] = True
    evaluate(wanted & first)
    found = _filled(log_l)
    evaluate(wanted & ~first & _worth(found + prior))
    plain = torch.where(wanted, _filled(log_l) + prior, -torch.inf)
    z, log_plain = torch.expm1(log_ratio), plain - plain.logsumexp(0)
    low = float(spectrum.wavelength[0]) / (1 + float(z[wanted].max()))
    high = float(spectrum.wavelength[-1]) / (1 + float(z[wanted].min()))
    if broad_share == 0 or not seen((H_BETA, O_III), low, high):
        return RedshiftPosterior(z, log_plain, log_plain)
    log_b = torch.where(wanted, with_broad(wanted & first) + prior, -torch.inf)
    log_p = torch.logaddexp(plain + math.log1p(-broad_share), log_b + math.log(broad_share))
    return RedshiftPosterior(z, log_p - log_p.logsumexp(0), log_plain)


def _filled(values: Tensor) -> Tensor:
    """Values (k,) with linear interpolation where they are NaN, constant beyond the ends."""
    known = (~values.isnan()).nonzero()[:, 0]
    filled = np.interp(np.arange(len(values)), known.numpy(), values[known].numpy())
    return torch.from_numpy(filled)


def _worth(log_p: Tensor) -> Tensor:
    """Which cells (k,) are to be evaluated themselves, of an interpolated ln p (k,)."""
    # a coarse cell and its neighbours
    near = [log_p.roll(shift) for shift in (-COARSE, 0, COARSE)]
    highest = torch.stack(near).amax(0)
    bend = (near[0] + near[2] - 2 * near[1]).abs()
    counts = highest > log_p.max() - COUNTS
    return counts & ((bend > BEND) | (highest > log_p.max() - PEAK))


def secure_threshold(p: Tensor, right: Tensor, share: float = SECURE) -> float:
    """The lowest probability of the best window, of those p (n,), above which redshifts are secure.

    Of mocks at or above it a ``share`` is ``right`` (n,). Infinity if there is none such.
    """
    order = p.argsort(descending=True)
    rate = right[order].double().cumsum(0) / torch.arange(1, len(p) + 1)
    fine = (rate >= share).nonzero()[:, 0]
    return float(p[order[fine[-1]]]) if len(fine) else math.inf


def flag(p: float, threshold: float) -> str:
    """ "secure", "tentative" (more likely right than not) or "none" of a window's probability."""
    if p >= threshold:
        return "secure"
    return "tentative" if p > TENTATIVE else "none"


# --- photometry -------------------------------------------------------------------------------


class PhotometricNodes(NamedTuple):
    """Fits of one galaxy's photometry at ln(1 + z) ``log_ratio`` (k,).

    ``log_evidence`` (k,): by Laplace's approximation, without the prior of z; ``mode``: maxima and
    their normals, one row a node.
    """

    log_ratio: Tensor
    log_evidence: Tensor
    mode: fitting.Mode
    priors: Priors

    def log_density(self, z: Tensor) -> Tensor:
        """ln of p(z | photometry) (n,), per z, up to a constant; linear between nodes."""
        x, nodes, values = torch.log1p(z), self.log_ratio.numpy(), self.log_evidence.numpy()
        found = torch.from_numpy(np.interp(x.numpy(), nodes, values))
        return found + self.priors.each[self.priors.names.index("zred")].log_prob(z)

    def precision(self, z: float) -> Tensor:
        """Of standard normal numbers at the node nearest to z, (p, p)."""
        return self.mode.precision[int((self.log_ratio - math.log1p(z)).abs().argmin())]

    def posterior(self, step: float = 5 * STEP) -> RedshiftPosterior:
        half = 0.5 * float(self.log_ratio[1] - self.log_ratio[0])
        start, end = float(self.log_ratio[0]) - half, float(self.log_ratio[-1]) + half
        n = math.ceil((end - start) / step)
        x = start + (torch.arange(n, dtype=torch.float64) + 0.5) * (end - start) / n
        log_p = self.log_density(torch.expm1(x)) + x
        return RedshiftPosterior(torch.expm1(x), log_p - log_p.logsumexp(0))


@torch.no_grad()
def photometric_nodes(
    emulator: fitting.Emulator,
    data: fitting.Photometry,
    start: fitting.Library,
    z: tuple[float, float],
    step: float = NODE_STEP,
) -> PhotometricNodes:
    """Fits of one galaxy, ``data`` (1, bands), at nodes of redshift between ``z``.

    ``start``: `fitting.library` of the emulator. Each node is fitted from there, and from its
    better neighbour. A known redshift in the data does not count.
    """
    centres = nodes(*z, step)
    rows = _at(data, torch.expm1(centres))
    first = fitting.maximise(emulator, rows, fitting.starts(emulator, rows, start, 1)[0])
    before, after = (_neighbour(first.log_p, shift) for shift in (1, -1))
    is_after = after > before
    x = torch.where(is_after[:, None], first.x.roll(-1, 0), first.x.roll(1, 0))
    second = fitting.maximise(emulator, rows, x)
    mode = fitting.pick([first, second], (second.log_p > first.log_p).long())
    return PhotometricNodes(centres, mode.log_evidence().double(), mode, emulator.priors)


def _at(data: fitting.Photometry, zred: Tensor) -> fitting.Photometry:
    """One galaxy at redshifts (k,) that are given."""
    rows = data.rows(torch.zeros(len(zred), dtype=torch.long))
    return rows._replace(zred=zred.float(), zred_error=torch.zeros(len(zred)))


def _neighbour(values: Tensor, shift: int) -> Tensor:
    """Values (k,) of the node before (1) or after (-1), -inf at the ends."""
    moved = values.roll(shift)
    moved[0 if shift > 0 else -1] = -torch.inf
    return moved


@torch.no_grad()
def joint_library(
    network: SpectrumNetwork,
    emulator: fitting.Emulator,
    data: fitting.Photometry,
    found: PhotometricNodes,
    resolution: float,
    wavelength: tuple[float, float],
    n: int,
    seed: int = 0,
) -> Library:
    """Templates that fit the photometry: ``n`` draws of the posterior at each node that counts.

    By HMC at a few nodes, for few draws of the normal approximation fit the photometry themselves;
    at other nodes they are moved by the difference of the maxima.
    """
    centres = found.log_ratio
    density = _highest(found)
    counted = (density > density.max() - COUNTS).nonzero()[:, 0]
    own = counted[:: math.ceil(len(counted) / SAMPLED_NODES)]  # nodes of which there are chains
    modes = [fitting.Mode(*(values[own] for values in found.mode))]
    rows = _at(data, torch.expm1(centres[own]))
    x, _ = fitting.hmc_draws(emulator, rows, modes, CHAINS, WARMUP, n, seed)
    sigma_v = draw_sigma_v(n, torch.Generator().manual_seed(seed))
    half = 0.5 * float(centres[1] - centres[0])
    library = Library(centres, [], [], [], [], [])
    for i, centre in enumerate(centres.tolist()):
        if i not in counted:
            library.add(torch.zeros(0), torch.zeros(0, 0), found.mode.x[:0], torch.zeros(0))
            continue
        nearest = int((own - i).abs().argmin())
        moved = x[nearest, :n] + found.mode.x[i] - found.mode.x[own[nearest]]
        zred = torch.full((n,), math.expm1(centre))
        parameters = fitting.to_parameters(emulator.priors, moved, zred)
        grid = rest_grid(
            wavelength[0] * math.exp(-centre - half - MARGIN),
            wavelength[1] * math.exp(-centre + half + MARGIN),
        )
        templates = rest_templates(network, parameters, sigma_v, resolution, grid)
        library.add(grid, templates, parameters, sigma_v)
    return library


def _highest(found: PhotometricNodes) -> Tensor:
    """The highest ln p(z | photometry) of the redshifts of each node, (k,): cells of it count."""
    centres = found.log_ratio
    half = 0.5 * float(centres[1] - centres[0])
    ends = torch.stack([centres - half, centres, centres + half])
    return (found.log_density(torch.expm1(ends)) + ends).amax(0)


# --- draws ------------------------------------------------------------------------------------


class Draws(NamedTuple):
    """Of the joint posterior: ``z`` (n,), ``parameters`` (n, p), ``sigma_v`` (n,), km/s.

    ``shapes`` (n, m): the templates at the pixels of the spectrum, of any scale. ``log_weight``
    (n,): ln of p(z) without broad lines over that with them, from which draws are.
    """

    z: Tensor
    parameters: Tensor
    sigma_v: Tensor
    shapes: Tensor
    log_weight: Tensor


@torch.no_grad()
def joint_draws(
    spectrum: Spectrum,
    library: Library,
    posterior: RedshiftPosterior,
    n: int,
    seed: int = 0,
    model: SpectrumModel = DEFAULT,
) -> Draws:
    """Draws of p(z, template): z evenly in its distribution, each with a template of its node."""
    generator = torch.Generator().manual_seed(seed)
    total = posterior.log_p.exp().cumsum(0)
    place = (torch.arange(n) + torch.rand(n, generator=generator)).double() / n * total[-1]
    cell = torch.searchsorted(total, place).clamp_max(len(total) - 1)
    log_ratio = torch.log1p(posterior.z)
    node = (log_ratio[cell][:, None] - library.log_ratio).abs().argmin(1)
    data = prepared(spectrum, model.order)
    parameters, sigma_v, shapes = [], [], []
    for i in node.unique().tolist():
        cells, rows = cell[node == i].unique(return_inverse=True)
        log_l = log_likelihood(
            spectrum, library.grids[i], library.templates[i], log_ratio[cells], model
        )
        p = (log_l.double() + library.log_weight[i]).softmax(1)[rows]
        t = torch.multinomial(p, 1, generator=generator)[:, 0]
        at = log_ratio[cell[node == i]]
        parameters.append(library.parameters[i][t])
        sigma_v.append(library.sigma_v[i][t])
        flux = library.templates[i][:, t].T
        shapes.append(at_own_redshift(flux, library.grids[i], data, at))
    z, log_weight = posterior.z[cell], torch.zeros_like(place)
    if posterior.log_plain is not None:
        log_weight = (posterior.log_plain - posterior.log_p)[cell]
    return Draws(z, torch.cat(parameters), torch.cat(sigma_v), torch.cat(shapes), log_weight)
