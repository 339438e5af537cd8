"""The generator: galaxy parameters to spectra and magnitudes, batched and differentiable."""

from collections.abc import Sequence

import torch
from torch import Tensor

from orrery.physics.sps.attenuation import BIRTH_CLOUD_AGE, behind_dust, reemitted
from orrery.physics.sps.cosmology import Z_MAX
from orrery.physics.sps.filters import Filter
from orrery.physics.sps.observed import (
    LYMAN_LIMIT,
    FilterLayer,
    filter_weights,
    magnitudes,
)
from orrery.physics.sps.population import (
    LOG_START,
    LOG_STEP,
    N_PIXELS,
    N_YOUNG,
    Population,
    add_line,
    age_edges,
    fine_wavelengths,
    wavelengths,
)
from orrery.physics.sps.star_formation import StarFormation, star_formation

RATIOS = tuple(f"logsfr_ratio_{i}" for i in range(1, 7))
STELLAR = ("logmass", "logzsol", *RATIOS, "dust2", "dust_index", "dust1_fraction")
NEBULAR = ("gas_logz", "gas_logu")
DUST = ("dust2", "dust_index", "dust1_fraction")
CHUNK = 250  # galaxies that are synthesised together: their spectra stay in the cache


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

    Spectra begin at 300 Angstrom at rest; there is no light below. Where a ``history`` is given, it
    takes the place of that of the ratios.

    ``rest_filters``: those of `rest_magnitudes`.
    """

    def __init__(
        self,
        population: Population,
        filters: Sequence[Filter],
        z_max: float,
        nebular: bool = False,
        rest_filters: Sequence[Filter] = (),
    ) -> None:
        if nebular and not population.nebular.numel():
            raise ValueError(
                f"population '{population.name}' has no nebular emission; set data.nebular=false"
            )
        if not 0 < z_max <= Z_MAX:
            raise ValueError(f"z_max is {z_max}; expected a redshift above 0, up to {Z_MAX:g}")
        self.population, self.nebular, self.z_max = population, nebular, z_max
        self.names, self.filters = parameter_names(nebular), list(filters)
        every = [*filters, *rest_filters]
        high = max(float(f.wavelength[-1]) for f in every)
        if high > (reach := float(wavelengths()[-1])):
            raise ValueError(
                f"filters reach {high / 1e4:.1f} um; the spectra of stars, gas and dust end at "
                f"{reach / 1e4:.0f} um"
            )
        weights = filter_weights(every)
        self._layer = FilterLayer(weights, z_max)  # spectra reach the filters at rest as well
        self._rest_weights = weights[self._layer.rest, len(filters) :]
        self.wavelength = wavelengths()[self._layer.rest].float()
        n_z = len(population.metallicity)
        light = population.luminosity[:, :, self._layer.rest]
        self._old = light.reshape(n_z * light.shape[1], -1)
        young = light[:, :N_YOUNG].clone()
        if nebular:  # the gas takes all ionising photons of young stars
            young[..., self.wavelength < LYMAN_LIMIT] = 0
            gas = population.nebular[..., self._layer.rest]
            self._gas = gas.reshape(-1, gas.shape[-1])
        self._young = young.reshape(n_z * N_YOUNG, -1)
        self.edges = age_edges().float()
        self._dust = population.dust[self._layer.rest]

    def to(self, target: torch.device | torch.dtype) -> "Synthesis":
        """Move the tables to a device, or to float32 or float64; returns itself."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value.to(target))
        self._layer.to(target)
        return self

    # --- photometry ---------------------------------------------------------------------------

    def magnitudes(self, parameters: Tensor, history: StarFormation | None = None) -> Tensor:
        """AB magnitudes, (n, filters), of galaxies at their redshifts; ``parameters``: (n, p).

        A magnitude is finite even where there is no light: about 80 for 10^10 Msun, with a gradient
        of 0. Raises ``ValueError`` for redshifts at which there are no tables.
        """
        return self.all_magnitudes(parameters, history)[0]

    def rest_magnitudes(self, parameters: Tensor, history: StarFormation | None = None) -> Tensor:
        """AB magnitudes (n, rest filters) through the filters at rest, at the galaxy's distance.

        Absolute magnitudes plus the distance modulus, without the IGM.
        """
        return self.all_magnitudes(parameters, history)[1]

    def all_magnitudes(
        self, parameters: Tensor, history: StarFormation | None = None
    ) -> tuple[Tensor, Tensor]:
        """`magnitudes` and `rest_magnitudes`, of one synthesis."""
        parameters = parameters.to(self.wavelength)
        zred = parameters[:, self.names.index("zred")]
        if (bad := ~((zred > 0) & (zred <= self.z_max))).any():
            row = int(bad.nonzero()[0, 0])
            raise ValueError(
                f"zred of galaxy {row} is {float(zred[row]):g}; expected a redshift above 0, up to "
                f"{self.z_max:g}, that of this synthesis (z_max)"
            )
        parts = []
        for start in range(0, max(len(parameters), 1), CHUNK):
            rows = slice(start, start + CHUNK)
            part = None if history is None else history.rows(rows)
            parts.append(self._magnitudes(parameters[rows], part))
        observed, rest = (torch.cat(each) for each in zip(*parts, strict=True))
        return observed, rest

    def _magnitudes(
        self, parameters: Tensor, history: StarFormation | None
    ) -> tuple[Tensor, Tensor]:
        p = self.by_name(parameters)
        spectrum = self.spectrum(parameters, history)
        observed = self._layer(spectrum, p["zred"])[:, : len(self.filters)]
        rest = (spectrum @ self._rest_weights) / (1 + p["zred"][:, None])  # which is then taken out
        return tuple(magnitudes(mean, p["zred"], p["logmass"]) for mean in (observed, rest))  # type: ignore[return-value]

    def by_name(self, parameters: Tensor) -> dict[str, Tensor]:
        """Parameters (n, p) as a tensor (n,) per name."""
        return dict(zip(self.names, parameters.unbind(1), strict=True))

    def history(self, parameters: Tensor, history: StarFormation | None = None) -> StarFormation:
        """Star formation histories of 1 Msun formed: of the ratios, unless one is given."""
        if history is not None:
            return history.to(parameters)
        p = self.by_name(parameters)
        return star_formation(torch.stack([p[name] for name in RATIOS], 1), p["zred"])

    # --- spectra ------------------------------------------------------------------------------

    def spectrum(self, parameters: Tensor, history: StarFormation | None = None) -> Tensor:
        """L_nu, Lsun / Hz, of 1 Msun formed, at rest, without the IGM: (n, pixels)."""
        p = self.by_name(parameters)
        old, young = self._mass_by_age(self.history(parameters, history))
        weight = self._between(p["logzsol"], self.population.metallicity)
        bright = _outer(weight, old) @ self._old
        clouds = _outer(weight, young) @ self._young
        if self.nebular:
            clouds = clouds + _outer(self._gas_weight(p), young) @ self._gas
        dust = [p[name] for name in DUST]
        emerging = behind_dust(self.wavelength, bright, clouds, *dust)
        if self._layer.emits:
            absorbed = bright + clouds - emerging
            emerging = emerging + reemitted(self.wavelength, absorbed, self._dust)
        return emerging

    def _mass_by_age(self, history: StarFormation) -> tuple[Tensor, Tensor]:
        """Mass outside birth clouds (n, ages) and in them (n, young ages), of 1 Msun formed."""
        low, high = self.edges[:-1], self.edges[1:]
        cloud = torch.full_like(high, BIRTH_CLOUD_AGE).clamp(low, high)
        return history.mass_formed(cloud, high), history.mass_formed(low, cloud)[:, :N_YOUNG]

    def _gas_weight(self, p: dict[str, Tensor]) -> Tensor:
        """Weights (n, metallicities times ionisation parameters) of the gas's tables."""
        gas = self._between(p["gas_logz"], self.population.metallicity)
        return _outer(gas, linear_weights(p["gas_logu"], self.population.log_u.to(gas)))

    def fine_spectrum(
        self, parameters: Tensor, history: StarFormation | None = None
    ) -> tuple[Tensor, Tensor]:
        """At rest, of 1 Msun formed: L_nu on the fine grid without lines, and lines, Lsun.

        (n, fine pixels) and (n, lines); the latter are none without gas. In float32.
        """
        p = self.by_name(parameters)
        dust = [p[name] for name in DUST]
        old, young = self._mass_by_age(self.history(parameters, history))
        weight = self._between(p["logzsol"], self.population.metallicity)
        fine = self.population.fine
        bright = _outer(weight, old) @ fine.flatten(0, 1)
        clouds = _outer(weight, young) @ fine[:, :N_YOUNG].flatten(0, 1)
        lines = clouds.new_zeros(len(parameters), 0)
        if self.nebular:
            share = _outer(self._gas_weight(p), young)
            gas = nebular_continuum(self.population)[..., N_PIXELS:].flatten(0, 2)
            clouds = clouds + share @ gas
            place = self.population.line_wavelength.to(clouds)
            lines = share @ self.population.lines.flatten(0, 2)
            lines = behind_dust(place, torch.zeros_like(lines), lines, *dust)
        return behind_dust(fine_wavelengths().float(), bright, clouds, *dust), lines

    @staticmethod
    def _between(log_z: Tensor, metallicity: Tensor) -> Tensor:
        """Weights (n, metallicities), linear in Z, constant beyond the first and the last."""
        return linear_weights(10**log_z, metallicity.to(log_z))

    def derived(
        self, parameters: Tensor, history: StarFormation | None = None
    ) -> dict[str, Tensor]:
        """What astronomers ask for, (n,) each.

        - ``log_stellar_mass``: of the stars of today, log10 Msun, see `Population.surviving`.
        - ``log_sfr``: mean of the last 100 Myr, log10 Msun/yr; ``log_ssfr``: over that mass, 1/yr.
        - ``mass_weighted_age``: Gyr.
        """
        return derived(
            parameters, self.names, self.population.metallicity, self.population.surviving, history
        )


def derived(
    parameters: Tensor,
    names: Sequence[str],
    metallicity: Tensor,
    surviving: Tensor,
    history: StarFormation | None = None,
) -> dict[str, Tensor]:
    """`Synthesis.derived` from the table of surviving shares (metallicities, ages) alone."""
    p = dict(zip(names, parameters.unbind(1), strict=True))
    if history is None:
        history = star_formation(torch.stack([p[name] for name in RATIOS], 1), p["zred"])
    history = history.to(parameters)
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


def nebular_continuum(population: Population) -> Tensor:
    """L_nu of the gas without lines, on both grids, (..., common and fine pixels).

    Between pixels of the common grid it is linear.
    """
    common = population.nebular.clone()
    for i, line in enumerate(population.line_wavelength.tolist()):
        add_line(common, line, -population.lines[..., i])
    common = common.clamp_min(0)
    place = (fine_wavelengths().log() - LOG_START) / LOG_STEP
    low = place.long()
    fine = torch.lerp(common[..., low], common[..., low + 1], (place - low).float())
    return torch.cat([common, fine], -1)


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
