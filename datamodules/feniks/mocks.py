"""Mock galaxies of kinds: smooth star formation histories, with the dust and mass of their kind."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from orrery.physics.galaxies.quiescent import COLOURS, colours, quiescent
from orrery.physics.sps.histories import draw_history
from orrery.physics.sps.priors import Priors
from orrery.physics.sps.star_formation import StarFormation
from orrery.physics.sps.synthesis import Synthesis

# kind -> two histories of `physics.sps.histories.KINDS`, of which each galaxy has either, and dust2
# as mean and sigma of a normal, of which the amount is taken
KINDS: Mapping[str, tuple[tuple[str, str], float, float]] = {
    "quiescent": (("quiescent", "quiescent"), 0.1, 0.3),
    "post_starburst": (("post_starburst", "post_starburst"), 0.2, 0.4),
    "star_forming": (("star_forming", "bursty"), 0.4, 0.4),
    "dusty": (("star_forming", "bursty"), 2.0, 0.7),
}
SHARES: Mapping[str, float] = {
    "quiescent": 0.25,
    "post_starburst": 0.15,
    "star_forming": 0.35,
    "dusty": 0.25,
}
INTERLOPER_Z = 0.3  # the lowest redshift
MASSES = (10.3, 11.8)  # log10 of the mass formed, Msun
INTERLOPER_MASSES = (9.0, 11.5)
METALLICITIES = (-0.7, 0.19)  # log10 Z / Z_sun, of stars and of their gas
SLOPES = (-0.8, 0.3)  # of dust
IONISATIONS = (-3.5, -2.0)  # log10
LEAST_LOG_SSFR = -20.0  # 1/yr: less is this
# What is true of a mock galaxy besides its parameters, see `Mocks`
QUANTITIES = (
    "log_stellar_mass", "log_sfr", "log_ssfr", "mass_weighted_age", "t50", "t90", "quiescent",
    *COLOURS, "kind",
)  # fmt: skip


class Mocks(NamedTuple):
    """Mock galaxies, (n, ...).

    ``parameters`` (n, p), in the order of the priors; ratios of star formation, of which their
    ``history`` has none, are NaN. ``magnitudes`` (n, bands) and ``rest_magnitudes`` (n, 6): AB, see
    `FeniksData`. ``truth``: name of `QUANTITIES` -> (n,): those of `Synthesis.derived`; ``t50`` and
    ``t90``, Gyr of lookback time, before which 50% and 90% of the mass had formed; ``quiescent``, 1
    or 0, by `physics.galaxies.quiescent`, NaN if the stellar mass is unknown; colours at rest, mag;
    ``kind``: the place in `KINDS`.
    """

    parameters: Tensor
    history: StarFormation
    magnitudes: Tensor
    rest_magnitudes: Tensor
    truth: dict[str, Tensor]


@torch.no_grad()
def draw_mocks(
    n: int,
    seed: int,
    synthesis: Synthesis,
    priors: Priors,
    shares: Mapping[str, float] = SHARES,
    z_range: Sequence[float] = (2.5, 5.0),
    interlopers: float = 0.25,
) -> Mocks:
    """``n`` galaxies: of kinds with ``shares``, at redshifts that are uniform within ``z_range``.

    A share ``interlopers`` of them is nearer, from a redshift of 0.3 up to that range, and less
    massive. All are within the box of the ``priors``.
    """
    _refuse(priors, shares, z_range, interlopers)
    random = torch.Generator().manual_seed(3 * seed + 1)

    def uniform(low: float | Tensor, high: float | Tensor) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=random)

    def normal(mean: float, sigma: float) -> Tensor:
        return mean + sigma * torch.randn(n, generator=random)

    weight = torch.tensor([float(shares.get(kind, 0.0)) for kind in KINDS])
    kind = torch.multinomial(weight, n, replacement=True, generator=random)
    near = torch.rand(n, generator=random) < interlopers
    zred = torch.where(near, uniform(INTERLOPER_Z, z_range[0]), uniform(*z_range))
    logmass = torch.where(near, uniform(*INTERLOPER_MASSES), uniform(*MASSES))
    dust = torch.stack([normal(mean, sigma).abs() for _, mean, sigma in KINDS.values()])
    metallicity = uniform(*METALLICITIES)
    values = {
        "logmass": logmass,
        "logzsol": metallicity,
        "dust2": dust[kind, torch.arange(n)],
        "dust_index": uniform(*SLOPES),
        "dust1_fraction": normal(1.0, 0.3),
        "gas_logz": metallicity,
        "gas_logu": uniform(*IONISATIONS),
        "zred": zred,
    }
    unknown = torch.full((n,), torch.nan)
    parameters = torch.stack([values.get(name, unknown) for name in priors.names], 1)
    parameters = parameters.clamp(priors.low, priors.high)
    history = _histories(kind, zred, random)
    magnitudes, rest = synthesis.all_magnitudes(parameters, history)
    return Mocks(
        parameters, history, magnitudes, rest, _truth(synthesis, parameters, history, rest, kind)
    )


def _histories(kind: Tensor, zred: Tensor, random: torch.Generator) -> StarFormation:
    """Of the kind of each galaxy, one of the histories that it may have."""
    every = sorted({name for names, _, _ in KINDS.values() for name in names})
    table = [[every.index(name) for name in names] for names, _, _ in KINDS.values()]
    either = torch.randint(2, (len(kind),), generator=random)
    chosen = torch.tensor(table)[kind, either]
    drawn = [draw_history(name, zred, random) for name in every]  # their bins are the same
    rows = torch.arange(len(kind))
    return StarFormation(drawn[0].edges, torch.stack([h.sfr for h in drawn])[chosen, rows])


def _truth(
    synthesis: Synthesis, parameters: Tensor, history: StarFormation, rest: Tensor, kind: Tensor
) -> dict[str, Tensor]:
    found = synthesis.derived(parameters, history)
    found["log_ssfr"] = found["log_ssfr"].clamp_min(LEAST_LOG_SSFR)
    found["log_sfr"] = found["log_ssfr"] + found["log_stellar_mass"]
    is_quiescent = quiescent(found["log_ssfr"], synthesis.by_name(parameters)["zred"])
    return {
        **found,
        "t50": history.lookback(0.5),
        "t90": history.lookback(0.9),
        "quiescent": torch.where(found["log_ssfr"].isnan(), torch.nan, is_quiescent.float()),
        **colours(rest),
        "kind": kind.float(),
    }


def _refuse(
    priors: Priors, shares: Mapping[str, float], z_range: Sequence[float], interlopers: float
) -> None:
    unknown = [name for name in shares if name not in KINDS]
    if unknown or not sum(shares.values()) > 0 or min(shares.values()) < 0:
        raise ValueError(
            f"data.mock_shares={dict(shares)}; expected shares, 0 or more, of some of the kinds "
            f"{', '.join(KINDS)}"
        )
    if not 0 <= interlopers <= 1:
        raise ValueError(f"data.mock_interlopers={interlopers}; expected a share, 0 to 1")
    i = priors.names.index("zred")
    low, high = float(priors.low[i]), float(priors.high[i])
    lowest = INTERLOPER_Z if interlopers else low
    if len(z_range) != 2 or not (max(low, lowest) <= z_range[0] < z_range[1] <= high):
        raise ValueError(
            f"data.mock_z_range={list(z_range)}; expected two redshifts, rising, within those of "
            f"data.parameters.zred, {low:g} to {high:g}"
        )
    if interlopers and low > INTERLOPER_Z:
        raise ValueError(
            f"data.mock_interlopers={interlopers} of the mock galaxies are at redshifts from "
            f"{INTERLOPER_Z} on, and data.parameters.zred begins at {low:g}: begin there, or set "
            f"data.mock_interlopers=0"
        )
