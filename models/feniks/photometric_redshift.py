"""Fits of one galaxy's photometry at nodes of redshift, and p(z) by their evidence."""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from orrery.models.feniks.redshift import NODE_STEP, RedshiftPosterior, nodes
from orrery.models.feniks.rest_spectra import STEP
from orrery.models.sed_emulator import fitting
from orrery.models.sed_emulator.posterior import Emulator, Mode, Photometry, pick
from orrery.physics.sps.priors import Priors

LEAST_ERROR_Z = 0.002  # of a known redshift: spectra are not aligned better


class PhotometricNodes(NamedTuple):
    """Fits of one galaxy's photometry at ln(1 + z) ``log_ratio`` (k,).

    ``log_evidence`` (k,): by Laplace's approximation, without the prior of z; ``mode``: maxima and
    their normals, one row a node.
    """

    log_ratio: Tensor
    log_evidence: Tensor
    mode: Mode
    priors: Priors

    def log_density(self, z: Tensor) -> Tensor:
        """ln of p(z | photometry) (n,), per z, up to a constant; linear between nodes."""
        x, nodes, values = torch.log1p(z), self.log_ratio.numpy(), self.log_evidence.numpy()
        found = torch.from_numpy(np.interp(x.numpy(), nodes, values))
        return found + self.priors.each[self.priors.names.index("zred")].log_prob(z)

    def posterior(self, step: float = 5 * STEP) -> RedshiftPosterior:
        half = 0.5 * float(self.log_ratio[1] - self.log_ratio[0])
        start, end = float(self.log_ratio[0]) - half, float(self.log_ratio[-1]) + half
        n = math.ceil((end - start) / step)
        x = start + (torch.arange(n, dtype=torch.float64) + 0.5) * (end - start) / n
        log_p = self.log_density(torch.expm1(x)) + x
        return RedshiftPosterior(torch.expm1(x), log_p - log_p.logsumexp(0))


@torch.no_grad()
def photometric_nodes(
    emulator: Emulator,
    data: Photometry,
    start: fitting.Library,
    z: tuple[float, float],
    step: float = NODE_STEP,
) -> PhotometricNodes:
    """Fits of one galaxy, ``data`` (1, bands), at nodes of redshift between ``z``.

    ``start``: `fitting.library` of the emulator. Each node is fitted from there, and from its
    better neighbour. A known redshift in the data does not count.
    """
    centres = nodes(*z, step)
    rows = at_redshifts(data, torch.expm1(centres))
    first = fitting.maximise(emulator, rows, fitting.starts(emulator, rows, start, 1)[0])
    before, after = (_neighbour(first.log_p, shift) for shift in (1, -1))
    is_after = after > before
    x = torch.where(is_after[:, None], first.x.roll(-1, 0), first.x.roll(1, 0))
    second = fitting.maximise(emulator, rows, x)
    mode = pick([first, second], (second.log_p > first.log_p).long())
    return PhotometricNodes(centres, mode.log_evidence().double(), mode, emulator.priors)


def at_redshifts(data: Photometry, zred: Tensor) -> Photometry:
    """One galaxy at redshifts (k,) that are given."""
    rows = data.rows(torch.zeros(len(zred), dtype=torch.long))
    return rows._replace(zred=zred.float(), zred_error=torch.zeros(len(zred)))


def _neighbour(values: Tensor, shift: int) -> Tensor:
    """Values (k,) of the node before (1) or after (-1), -inf at the ends."""
    moved = values.roll(shift)
    moved[0 if shift > 0 else -1] = -torch.inf
    return moved


def known_redshift(data: Photometry) -> tuple[float, float]:
    """Of one galaxy, with its error; NaN where it is not known."""
    return float(data.zred[0]), max(float(data.zred_error[0]), LEAST_ERROR_Z)
