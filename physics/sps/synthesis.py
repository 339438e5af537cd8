"""The generator: galaxy parameters to spectra and magnitudes, batched and differentiable."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from orrery.physics.sps.attenuation import (
    BIRTH_CLOUD_AGE,
    birth_cloud_depth,
    diffuse_depth,
)
from orrery.physics.sps.cosmology import Z_MAX, distance_modulus
from orrery.physics.sps.filters import Filter, filter_matrix
from orrery.physics.sps.igm import transmission
from orrery.physics.sps.population import (
    L_SUN,
    LIGHT,
    LOG_START,
    LOG_STEP,
    N_YOUNG,
    Population,
    age_edges,
    wavelengths,
)
from orrery.physics.sps.star_formation import StarFormation, star_formation

RATIOS = tuple(f"logsfr_ratio_{i}" for i in range(1, 7))
STELLAR = ("logmass", "logzsol", *RATIOS, "dust2", "dust_index", "dust1_fraction")
NEBULAR = ("gas_logz", "gas_logu")
TEN_PARSEC = 3.0856775814913673e19  # cm
AB_ZERO = -48.6  # AB magnitude of 1 erg/s/cm^2/Hz
LYMAN_ALPHA = 1215.67
CHUNK = 250  # galaxies that are synthesised together: their spectra stay in the cache
IGM_STEP = 0.01  # of redshift, in the table of transmission
LYMAN_LIMIT = 911.8
DUST_EMISSION = 1e4  # Angstrom at rest: beyond it dust emits
FAINTEST = 1e-37  # Lsun / Hz of 1 Msun formed: less is taken as this, for float32's sake


def parameter_names(nebular: bool) -> tuple[str, ...]:
    """Names of the parameters of a galaxy, in order."""
    return STELLAR + (NEBULAR if nebular else ()) + ("zred",)


class Synthesis:
    """Photometry of galaxies from their parameters, for one population and a set of filters.

    Stars of `star_formation` and of one metallicity, dust of `attenuation`, whose absorbed energy
    it emits, gas (``nebular``), intergalactic absorption (`igm`), redshift and filters.

    Parameters (n, p), in the order of `parameter_names`:

    - ``logmass``: log10 of the mass formed, Msun.
    - ``logzsol``: log10 Z / Z_sun of the stars, with the Z_sun of the population.
    - ``logsfr_ratio_1`` to ``_6``: log10 of the ratio of star formation rates of a bin and the
      next older one, the youngest first.
    - ``dust2``: optical depth at 5500 A of the diffuse dust; ``dust_index``: see
      `attenuation.diffuse_depth`; ``dust1_fraction``: depth of birth clouds over ``dust2``.
    - ``gas_logz``, ``gas_logu``: log10 Z / Z_sun of the gas, and of its ionisation parameter.
    - ``zred``: redshift, above 0 and not above ``z_max``.

    Spectra begin at 300 Angstrom at rest; there is no light below.
    """

    def __init__(
        self, population: Population, filters: Sequence[Filter], z_max: float, nebular: bool = False
    ) -> None:
        if nebular and not population.nebular.numel():
            raise ValueError(
                f"population '{population.name}' has no nebular emission; set data.nebular=false"
            )
        if not 0 < z_max <= Z_MAX:
            raise ValueError(f"z_max is {z_max}; expected a redshift above 0, up to {Z_MAX:g}")
        self.population, self.nebular, self.z_max = population, nebular, z_max
        self.names = parameter_names(nebular)
        low = min(float(f.wavelength[0]) for f in filters)
        high = max(float(f.wavelength[-1]) for f in filters)
        all_wavelengths = wavelengths()
        # dust emits what it absorbs at any wavelength, however blue
        self.emits = high > DUST_EMISSION
        bluest = min(low / (1 + z_max), LYMAN_LIMIT)
        first = 0 if self.emits else max(_pixel(bluest, down=True) - 1, 0)
        last = min(_pixel(max(high, LYMAN_ALPHA)), len(all_wavelengths) - 1)
        if _pixel(high) > last:
            raise ValueError(
                f"filters reach {high / 1e4:.1f} um; the spectra of stars, gas and dust end at "
                f"{float(all_wavelengths[-1]) / 1e4:.0f} um"
            )
        self._rest = slice(first, last + 1)
        self.wavelength = all_wavelengths[self._rest].float()
        n_z = len(population.metallicity)
        light = population.luminosity[:, :, self._rest]
        self._old = light.reshape(n_z * light.shape[1], -1)
        young = light[:, :N_YOUNG].clone()
        if nebular:  # the gas takes all ionising photons of young stars
            young[..., self.wavelength < LYMAN_LIMIT] = 0
            gas = population.nebular[..., self._rest]
            self._gas = gas.reshape(-1, gas.shape[-1])
        self._young = young.reshape(n_z * N_YOUNG, -1)
        self.edges = age_edges().float()
        # observed frame: the pixels that filters cover, on the same grid
        start = _pixel(low, down=True) - 1
        stop = _pixel(high) + 2
        self._observed_start = start
        grid = LOG_START + LOG_STEP * torch.arange(start, stop + 1, dtype=torch.float64)
        self._filters = filter_matrix(filters, grid).float()
        # up to the pixels that hold Lyman alpha
        self._n_blue = int((self.wavelength < LYMAN_ALPHA * math.exp(LOG_STEP)).sum())
        self._igm = self._igm_table()
        self._dust = population.dust[self._rest]

    def _igm_table(self) -> Tensor:
        """Transmission at redshifts 0, 0.01, ... of the pixels up to that of Lyman alpha."""
        n = math.ceil(self.z_max / IGM_STEP) + 2
        blue = self.wavelength[: self._n_blue].clamp_max(LYMAN_ALPHA - 0.01)
        return transmission(blue, IGM_STEP * torch.arange(n))

    def to(self, target: torch.device | torch.dtype) -> "Synthesis":
        """Move the tables to a device, or to float32 or float64; returns itself."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value.to(target))
        return self

    # --- photometry ---------------------------------------------------------------------------

    def magnitudes(self, parameters: Tensor) -> Tensor:
        """AB magnitudes, (n, filters), of galaxies at their redshifts; ``parameters``: (n, p).

        A magnitude is finite even where there is no light: about 80 for 10^10 Msun, with a gradient
        of 0. Raises ``ValueError`` for redshifts at which there are no tables.
        """
        parameters = parameters.to(self.wavelength)
        zred = parameters[:, self.names.index("zred")]
        if (bad := ~((zred > 0) & (zred <= self.z_max))).any():
            row = int(bad.nonzero()[0, 0])
            raise ValueError(
                f"zred of galaxy {row} is {float(zred[row]):g}; expected a redshift above 0, up to "
                f"{self.z_max:g}, that of this synthesis (z_max)"
            )
        return torch.cat([self._magnitudes(part) for part in parameters.split(CHUNK)])

    def _magnitudes(self, parameters: Tensor) -> Tensor:
        p = self.by_name(parameters)
        spectrum = self.spectrum(parameters)
        absorbed = torch.cat(
            [
                spectrum[:, : self._n_blue] * self.igm_transmission(p["zred"]),
                spectrum[:, self._n_blue :],
            ],
            1,
        )
        mean = self.observed(absorbed, p["zred"]) @ self._filters
        # f_nu = (1 + z) L_nu / 4 pi d^2
        zero = -2.5 * math.log10(L_SUN / (4 * math.pi * TEN_PARSEC**2)) + AB_ZERO
        magnitude = zero - 2.5 * (mean.clamp_min(FAINTEST) * (1 + p["zred"][:, None])).log10()
        distance = distance_modulus(p["zred"]) - 2.5 * p["logmass"]
        return magnitude + distance[:, None]

    def by_name(self, parameters: Tensor) -> dict[str, Tensor]:
        """Parameters (n, p) as a tensor (n,) per name."""
        return dict(zip(self.names, parameters.unbind(1), strict=True))

    def history(self, parameters: Tensor) -> StarFormation:
        """Star formation histories of 1 Msun formed."""
        p = self.by_name(parameters)
        return star_formation(torch.stack([p[name] for name in RATIOS], 1), p["zred"])

    def observed(self, spectrum: Tensor, zred: Tensor) -> Tensor:
        """A rest spectrum (n, pixels) on the pixels of the filters, (n, observed pixels).

        A redshift is a shift of the uniform grid in ln wavelength, with linear interpolation.
        """
        shift = self._observed_start - self._rest.start - torch.log1p(zred) / LOG_STEP
        whole = shift.detach().floor()
        share = (shift - whole)[:, None]
        pixel = torch.arange(len(self._filters), device=spectrum.device)
        index = whole.long()[:, None] + pixel
        n = spectrum.shape[1]
        inside = (index >= 0) & (index < n - 1)
        index = index.clamp(0, n - 2)
        low, high = spectrum.gather(1, index), spectrum.gather(1, index + 1)
        return torch.where(inside, torch.lerp(low, high, share), 0.0)

    def igm_transmission(self, zred: Tensor) -> Tensor:
        """Transmission (n, pixels below Lyman alpha) at redshifts (n,)."""
        place = zred / IGM_STEP
        low = place.detach().long().clamp(0, len(self._igm) - 2)
        share = (place - low)[:, None]
        return torch.lerp(self._igm[low], self._igm[low + 1], share)

    # --- spectra ------------------------------------------------------------------------------

    def spectrum(self, parameters: Tensor) -> Tensor:
        """L_nu, Lsun / Hz, of 1 Msun formed, at rest, without the IGM: (n, pixels)."""
        p = self.by_name(parameters)
        history = self.history(parameters)
        low, high = self.edges[:-1], self.edges[1:]
        cloud = torch.full_like(high, BIRTH_CLOUD_AGE).clamp(low, high)
        young = history.mass_formed(low, cloud)[:, :N_YOUNG]
        old = history.mass_formed(cloud, high)
        weight = self._between(p["logzsol"], self.population.metallicity)
        bright = _outer(weight, old) @ self._old
        clouds = _outer(weight, young) @ self._young
        if self.nebular:
            gas = self._between(p["gas_logz"], self.population.metallicity)
            ions = linear_weights(p["gas_logu"], self.population.log_u.to(parameters))
            clouds = clouds + _outer(_outer(gas, ions), young) @ self._gas
        diffuse = torch.exp(-diffuse_depth(self.wavelength, p["dust2"], p["dust_index"]))
        extra = birth_cloud_depth(self.wavelength, p["dust1_fraction"] * p["dust2"])
        emerging = (bright + clouds * torch.exp(-extra)) * diffuse
        if self.emits:
            absorbed = (bright + clouds - emerging) / self.wavelength
            energy = absorbed.sum(1, keepdim=True) * LIGHT * LOG_STEP
            emerging = emerging + energy * self._dust
        return emerging

    @staticmethod
    def _between(log_z: Tensor, metallicity: Tensor) -> Tensor:
        """Weights (n, metallicities), linear in Z, constant beyond the first and the last."""
        return linear_weights(10**log_z, metallicity.to(log_z))

    def derived(self, parameters: Tensor) -> dict[str, Tensor]:
        """What astronomers ask for, (n,) each.

        - ``log_stellar_mass``: of the stars of today, log10 Msun, see `Population.surviving`.
        - ``log_sfr``: mean of the last 100 Myr, log10 Msun/yr; ``log_ssfr``: over that mass, 1/yr.
        - ``mass_weighted_age``: Gyr.
        """
        return derived(
            parameters, self.names, self.population.metallicity, self.population.surviving
        )


def derived(
    parameters: Tensor, names: Sequence[str], metallicity: Tensor, surviving: Tensor
) -> dict[str, Tensor]:
    """`Synthesis.derived` from the table of surviving shares (metallicities, ages) alone."""
    p = dict(zip(names, parameters.unbind(1), strict=True))
    history = star_formation(torch.stack([p[name] for name in RATIOS], 1), p["zred"])
    edges = age_edges().to(parameters)
    # integral of the surviving share over age since 0, (metallicities, edges): linear between them
    grown = torch.nn.functional.pad((surviving.to(parameters) * edges.diff()).cumsum(1), (1, 0))
    row, row_share = _place(10 ** p["logzsol"], metallicity.to(parameters))
    column, column_share = _place(history.edges, edges)
    row = row[:, None]
    low, high = (
        torch.lerp(grown[row + i, column], grown[row + i, column + 1], column_share) for i in (0, 1)
    )
    alive = (history.sfr * torch.lerp(low, high, row_share[:, None]).diff(dim=1)).sum(1)
    mass = p["logmass"] + alive.log10()
    sfr = p["logmass"] + history.recent_sfr().log10()
    return {
        "log_stellar_mass": mass,
        "log_sfr": sfr,
        "log_ssfr": sfr - mass,
        "mass_weighted_age": history.mean_age(),
    }


def _place(x: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor]:
    """The interval of ``nodes`` in which x (...) lies, and the share of it below x, 0 to 1."""
    interval = torch.searchsorted(nodes, x.contiguous(), right=True).sub(1)
    interval = interval.clamp(0, len(nodes) - 2)
    share = (x - nodes[interval]) / (nodes[interval + 1] - nodes[interval])
    return interval, share.clamp(0, 1)


def linear_weights(x: Tensor, nodes: Tensor) -> Tensor:
    """Weights (n, nodes) of linear interpolation at x (n,), constant beyond the first and last."""
    x = x.clamp(nodes[0], nodes[-1])[:, None]
    step = nodes.diff()
    rise = ((x - nodes[:-1]) / step).clamp(0, 1)  # (n, nodes - 1), from 0 to 1 within each interval
    one = torch.ones_like(x)
    return torch.cat([one, rise], 1) - torch.cat([rise, torch.zeros_like(x)], 1)


def _outer(a: Tensor, b: Tensor) -> Tensor:
    """Products (n, i j) of (n, i) and (n, j)."""
    return (a[:, :, None] * b[:, None, :]).flatten(1)


def _pixel(wavelength: float, down: bool = False) -> int:
    """The pixel of the common grid next to a wavelength, Angstrom."""
    place = (math.log(wavelength) - LOG_START) / LOG_STEP
    return math.floor(place) if down else math.ceil(place)
