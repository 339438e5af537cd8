"""An analytic stellar population: a demonstrator, which needs no file, and no measurement's equal.

Main-sequence stars of Kroupa's initial mass function, as black bodies with breaks, up to the mass
that leaves the main sequence at an age, and giants. It has the trends of real populations (blue
light fades, the 4000 A break grows with age and metallicity), not their spectra.
"""

import math

import torch
from torch import Tensor

from orrery.physics.sps.attenuation import black_body_dust
from orrery.physics.sps.population import (
    LIGHT,
    LOG_AGES,
    LOG_STEP,
    N_PIXELS,
    N_YOUNG,
    Population,
    add_line,
    fine_wavelengths,
    wavelengths,
)

T_SUN = 5772.0  # K
HC_OVER_K = 1.438776877e8  # Angstrom K
H_PLANCK = 6.62607015e-27  # erg s
METALLICITIES = (0.01, 0.1, 0.4, 1.0, 2.5)
LOG_U = (-4.0, -2.5, -1.0)
# Luminosity of H-beta per ionising photon: case B, 10^4 K (Osterbrock & Ferland 2006, table 4.2)
H_BETA = 4.76e-13  # erg
# Lines as Cloudy calls them, by ion and wavelength in air, with wavelength in vacuum, Angstrom
LINES = {
    "H 1 1215.67A": 1215.67,
    "O 2 3728.81A": 3729.87,
    "H 1 4101.73A": 4102.89,
    "H 1 4340.46A": 4341.69,
    "H 1 4861.32A": 4862.69,
    "O 3 4958.91A": 4960.30,
    "O 3 5006.84A": 5008.24,
    "H 1 6562.80A": 6564.61,
}
BALMER = {"6562.80A": 2.86, "4861.32A": 1.0, "4340.46A": 0.468, "4101.73A": 0.259, "1215.67A": 23.0}
GIANT_TEMPERATURE = 4400.0  # K, at solar metallicity
GIANT_LIGHT = 0.8  # of giants, over that of the main sequence, of populations older than 1 Gyr


def analytic() -> Population:
    """The demonstrator as a `Population`."""
    lam = wavelengths()
    z, ages = torch.tensor(METALLICITIES).double(), 10 ** torch.tensor(LOG_AGES).double()
    light, fine = (
        torch.stack([_spectra(x, ages, m) for m in z]) for x in (lam, fine_wavelengths())
    )
    lines = torch.stack([torch.stack([_lines(lam, light, m, u) for u in LOG_U]) for m in z])
    nebular = torch.zeros(*lines.shape[:-1], N_PIXELS, dtype=torch.float64)
    for i, line in enumerate(LINES.values()):
        add_line(nebular, line, lines[..., i])
    surviving = 1 - 0.4 * torch.sigmoid(2.5 * (torch.tensor(LOG_AGES) - 8.0))
    return Population(
        "analytic",
        "analytic populations, a demonstrator: black bodies with breaks, not real spectra of stars",
        0.0142,
        z.float(),
        light.float(),
        surviving.expand(len(z), -1).float(),
        torch.tensor(LOG_U),
        nebular.float(),
        black_body_dust(lam).float(),
        fine.float(),
        lines.float(),
        tuple(LINES),
        torch.tensor(list(LINES.values()), dtype=torch.float64),
    )


def _spectra(lam: Tensor, ages: Tensor, metallicity: Tensor) -> Tensor:
    """L_nu, Lsun / Hz, of 1 Msun formed at ``ages`` ago (ages,), yr: (ages, pixels)."""
    mass = torch.logspace(-1, 2, 121, dtype=torch.float64)
    turn_off = (ages[:, None] / 1e10) ** -0.4 + 0.1  # Msun: they live for a time ~ mass^-2.5
    number = torch.where(mass < 0.5, 2 * mass**-1.3, mass**-2.3)
    number = number / torch.trapezoid(number * mass, mass)
    alive = torch.sigmoid((turn_off / mass).log() / 0.05)
    luminosity = torch.where(mass < 20, mass**3.5, 20.0**2 * mass**1.5)  # Lsun
    temperature = (T_SUN * mass**0.475 * metallicity**-0.03).clamp(2800, 48000)
    weight = alive * number * luminosity * mass * math.log(1000) / 120
    main = weight @ _star(lam, temperature, metallicity)
    cool = GIANT_TEMPERATURE * metallicity**-0.05
    share = GIANT_LIGHT * torch.sigmoid((ages[:, None].log10() - 8.9) / 0.15)
    giants = _star(lam, cool[None], metallicity)
    return main + share * weight.sum(1, keepdim=True) * giants


def _star(lam: Tensor, temperature: Tensor, metallicity: Tensor) -> Tensor:
    """L_nu, 1/Hz, of stars of 1 Lsun, (stars, pixels): black bodies with two breaks."""
    every = wavelengths()
    total = (_shape(every, temperature, metallicity) * LIGHT / every).sum(-1) * LOG_STEP
    return _shape(lam, temperature, metallicity) / total[:, None]


def _shape(lam: Tensor, temperature: Tensor, metallicity: Tensor) -> Tensor:
    t = temperature[:, None]
    x = (HC_OVER_K / (lam * t)).clamp_max(500)
    shape = lam**-3 / torch.expm1(x)
    balmer = 0.55 * torch.exp(-((t / 9500).log() / 0.35).square())
    metals = 0.5 * torch.sigmoid((6200 - t) / 500) * (0.5 + 0.5 * metallicity.clamp_max(2.0))
    shape = shape * (1 - balmer * torch.sigmoid((3700 - lam) / 25))
    shape = shape * (1 - metals * torch.sigmoid((4000 - lam) / 40))
    for line, depth in ((4102.9, 0.25), (4341.7, 0.25), (4862.7, 0.25)):
        shape = shape * (1 - balmer * depth * torch.exp(-0.5 * ((lam - line) / 15).square()))
    return torch.where(lam < 911.8, shape * torch.sigmoid((t - 25000) / 2000), shape)


def _lines(lam: Tensor, light: Tensor, metallicity: Tensor, log_u: float) -> Tensor:
    """Luminosities, Lsun, of lines of hydrogen and oxygen, (young ages, lines).

    Stars are those of solar metallicity. There is no continuum. The lines of oxygen follow rough
    trends of H II regions.
    """
    solar = light[METALLICITIES.index(1.0), :N_YOUNG]
    ionising = solar[:, lam < 911.8].sum(-1) * LOG_STEP / H_PLANCK  # photons / s / Lsun
    h_beta = H_BETA * ionising  # Lsun, as erg / s per erg / s
    z = float(metallicity)
    oxygen_3 = 6.0 * 10 ** (0.5 * (log_u + 2)) * z / (0.25 + z**2.5)
    oxygen_2 = 2.5 * 10 ** (-0.4 * (log_u + 2.5)) * z / (0.3 + z**2)
    oxygen = {"5006.84A": oxygen_3, "4958.91A": oxygen_3 / 2.98, "3728.81A": oxygen_2}
    ratio = BALMER | oxygen
    return torch.stack([ratio[name.split()[-1]] * h_beta for name in LINES], -1)
