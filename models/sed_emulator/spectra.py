"""Spectra by a network: the light of each bin of a star formation history, compressed by PCA.

What has a closed form is not learned: sums over bins, dust and what it emits, the IGM, redshift,
filters, the broadening by velocities and by a spectrograph.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from orrery.models.sed_emulator.ages import YOUNG_EDGES, mass_at_nodes, nodes
from orrery.models.sed_emulator.basis import LEAST_SCATTER, principal_components
from orrery.models.sed_emulator.exact_light import Populations
from orrery.models.sed_emulator.networks import N_COMPONENTS, OCTAVES, Network, perceptron
from orrery.physics.sps.attenuation import behind_dust, reemitted
from orrery.physics.sps.filters import Filter
from orrery.physics.sps.observed import (
    LYMAN_LIMIT,
    FilterLayer,
    filter_weights,
    line_profiles,
    magnitudes,
    microjansky,
    sampled,
    sigma_of,
)
from orrery.physics.sps.population import (
    FINE_START,
    FINE_STEP,
    LIGHT,
    LOG_START,
    LOG_STEP,
    N_FINE,
    N_PIXELS,
    Population,
    fine_wavelengths,
    wavelengths,
)
from orrery.physics.sps.star_formation import StarFormation
from orrery.physics.sps.synthesis import (
    DUST,
    NEBULAR,
    RATIOS,
    Synthesis,
    linear_weights,
)

FINE = slice(N_PIXELS, N_PIXELS + N_FINE)  # of the pixels of both grids
EXAMPLES = 160  # training galaxies of whose components the basis is made
FAINTEST_LINE = 1e-6  # of the brightest line: fainter ones are learned as this
LOSS_CORNER = 0.005  # relative: larger errors count linearly
LINE_CORNER = 0.05
AT_ONCE = 128  # galaxies: their spectra stay in the cache


class Light(NamedTuple):
    """Light of galaxies before dust, of 1 Msun formed.

    ``bright`` and ``clouds`` (n, k): coefficients of the basis, of stars outside birth clouds, and
    of those in them with their gas. ``lines`` (n, lines): Lsun, in clouds.
    """

    bright: Tensor
    clouds: Tensor
    lines: Tensor


class SpectrumNetwork(Network):
    """Spectra at rest as combinations of ``n_components`` principal components.

    Components of a galaxy are the bins of its star formation history, of which the youngest is two,
    and its gas. The spectrum of a bin, of 1 Msun formed, depends on metallicity and on redshift, by
    which bins have their ages; that of the gas on its metallicity and ionisation. Two perceptrons
    give brightness and shape, the coefficients of a basis that is orthogonal in relative flux.
    Fluxes are compressed, not their logarithms, so that components are added before they are made
    spectra. Emission lines are luminosities of their own.

    Args:
        lines: name -> wavelength in vacuum, Angstrom, of the lines of the gas.
        metallicities: Z / Z_sun of the populations, between which their light is linear: it has
            kinks there, which the perceptrons need not find.
        ionisations: log10 of the ionisation parameters of the gas, as well.
    """

    basis: Tensor
    pixel_scale: Tensor
    center: Tensor
    spread: Tensor
    root: Tensor
    brightness: Tensor
    line_scale: Tensor
    filters: Tensor
    dust: Tensor
    pixel_error: Tensor
    line_wavelength: Tensor
    wavelength: Tensor
    metallicities: Tensor
    ionisations: Tensor

    def __init__(
        self,
        names: Sequence[str],
        n_bands: int,
        lines: Mapping[str, float],
        metallicities: Sequence[float],
        ionisations: Sequence[float],
        n_components: int,
        width: int,
        depth: int,
    ) -> None:
        super().__init__(names, n_bands)
        self.nebular = NEBULAR[0] in names
        self.inputs = [n for n in names if n not in ("logmass", *RATIOS, *DUST)]
        self.lines = list(lines)
        n, k, n_pixels = N_COMPONENTS + self.nebular, n_components, N_PIXELS + N_FINE
        for name, shape in {
            "basis": (k, n_pixels),
            "pixel_scale": (n_pixels,),  # that makes spectra alike in all pixels
            "center": (n, k),  # mean shape of a component
            "spread": (n, k, k),  # shape = center + output @ spread
            "root": (n, k, k),  # errors of shape @ root are relative errors
            "brightness": (2, n),  # mean and scatter of ln of the mean L_nu on the fine grid
            "line_scale": (2, len(lines)),  # of ln luminosity
            "filters": (N_PIXELS, n_bands),
            "dust": (N_PIXELS,),
            "pixel_error": (N_FINE,),  # relative, 68%, of emulated spectra
        }.items():
            self.register_buffer(name, torch.zeros(shape))
        self.register_buffer("line_wavelength", torch.tensor(list(lines.values())).double())
        grids = torch.cat([wavelengths(), fine_wavelengths()]).float()
        self.register_buffer("wavelength", grids, persistent=False)
        self.register_buffer("metallicities", torch.tensor(list(metallicities)))
        self.register_buffer("ionisations", torch.tensor(list(ionisations)))
        n_metals, n_ions = len(self.metallicities), len(self.ionisations)
        self.stars = perceptron(2 + 2 * OCTAVES + n_metals, width, depth)
        self.of_stars = nn.Linear(width, N_COMPONENTS * (1 + k))
        if self.nebular:
            self.gas = perceptron(len(NEBULAR) + n_metals + n_ions, width, depth)
            self.of_gas = nn.Linear(width, 1 + k + len(lines))
        self._layer: FilterLayer | None = None
        self._populations: Populations | None = None  # while it learns

    # --- training -----------------------------------------------------------------------------

    def learn_basis(
        self, synthesis: Synthesis, parameters: Tensor, low: Tensor, high: Tensor
    ) -> None:
        """Basis and scaling from training ``parameters`` (n, p) within the box low to high."""
        self.low.copy_(low)
        self.high.copy_(high)
        self.filters.copy_(filter_weights(synthesis.filters))
        self.dust.copy_(synthesis.population.dust)
        few = self.columns(parameters[:EXAMPLES])
        spectra, _ = Populations(synthesis.population, self.nebular).components(few)
        shapes = spectra / spectra[..., FINE].mean(2, keepdim=True)
        found = principal_components(shapes.double(), self.wavelength, len(self.basis))
        self.basis.copy_(found.vectors)
        self.pixel_scale.copy_(found.pixel_scale)
        self.center.copy_(found.center)
        self.spread.copy_(found.spread)
        self.root.copy_(found.root)
        self.learn_from(synthesis.population)
        _, brightness, lines = self._targets(parameters[: 10 * EXAMPLES])
        self.brightness.copy_(_mean_and_scatter(brightness))
        self.line_scale.copy_(_mean_and_scatter(lines))

    def learn_from(self, population: Population) -> None:
        """Have the targets of `loss` at hand, which come from the populations themselves."""
        self._populations = Populations(population, self.nebular, self._project)

    def _project(self, light: Tensor) -> Tensor:
        """Coefficients (..., k) of spectra (..., pixels), and their means on the fine grid."""
        coefficients = (light * self.pixel_scale) @ (self.basis * self.pixel_scale).T
        return torch.cat([coefficients, light[..., FINE].mean(-1, keepdim=True)], -1)

    def _targets(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Shapes (n, components, k), ln brightness (n, components), ln L of lines (n, lines)."""
        if self._populations is None:
            raise RuntimeError("the populations are not at hand: call learn_from before the loss")
        projected, lines = self._populations.components(self.columns(parameters))
        light = projected[..., -1:]
        lines = (
            torch.maximum(lines, FAINTEST_LINE * lines.amax(1, keepdim=True))
            if len(self.lines)
            else lines
        )
        return projected[..., :-1] / light, light[..., 0].log(), lines.log()

    def loss(self, parameters: Tensor) -> Tensor:
        """Mean relative error of the components' spectra, and of their lines."""
        shape, brightness, lines = self._components(parameters)
        true_shape, true_brightness, true_lines = self._targets(parameters)
        error = torch.einsum("njk,jkl->njl", shape - true_shape, self.root).square().sum(2)
        loss = _size(error + (brightness - true_brightness).square(), LOSS_CORNER).mean()
        if self.lines:
            loss = loss + _size((lines - true_lines).square(), LINE_CORNER).mean()
        return loss

    # --- light before dust --------------------------------------------------------------------

    def columns(self, parameters: Tensor) -> dict[str, Tensor]:
        """Parameters (n, p) by name, (n,) each."""
        return dict(zip(self.names, parameters.unbind(1), strict=True))

    def _components(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Shapes, ln brightness and ln L of lines as in `_targets`, by the network."""
        k = self.basis.shape[0]
        p = self.columns(parameters)
        stars = self.scaled(parameters, ("logzsol", "zred"))
        metals = linear_weights(10 ** p["logzsol"], self.metallicities)
        hidden = self.stars(torch.cat([stars, metals], 1))
        output = self.of_stars(hidden).unflatten(1, (N_COMPONENTS, 1 + k))
        lines = output.new_zeros(output.shape[0], 0)
        if self.nebular:
            index = [self.names.index(name) for name in NEBULAR]
            low, high = self.low[index], self.high[index]
            own = 2 * (parameters[:, index] - low) / (high - low) - 1
            metals = linear_weights(10 ** p["gas_logz"], self.metallicities)
            ions = linear_weights(p["gas_logu"], self.ionisations)
            gas = self.of_gas(self.gas(torch.cat([own, metals, ions], 1)))
            gas, lines = gas.split([1 + k, len(self.lines)], 1)
            output = torch.cat([output, gas[:, None]], 1)
            lines = self.line_scale[0] + self.line_scale[1] * lines
        brightness = self.brightness[0] + self.brightness[1] * output[..., 0]
        shape = self.center + torch.einsum("njk,jkl->njl", output[..., 1:], self.spread)
        return shape, brightness, lines

    def light(self, parameters: Tensor, history: StarFormation | None = None) -> Light:
        """Light of galaxies (n, p) before dust, of 1 Msun formed.

        A ``history`` takes the place of that of the ratios. Its light is put together of stars of
        many ages, see `ages`: it is that of the populations to a few per cent.
        """
        if history is not None:
            return self._of_history(parameters, history.to(parameters))
        return self._summed(self.log_mass(parameters), *self._components(parameters))

    def _of_history(self, parameters: Tensor, history: StarFormation) -> Light:
        index = self.names.index("zred")
        every = nodes(float(self.low[index]), float(self.high[index]))
        weight = mass_at_nodes(history, parameters.new_tensor([node.age for node in every]))
        young = history.mass_since(parameters.new_tensor(YOUNG_EDGES)).diff(dim=1)
        # components of young stars are the same at every redshift
        light, lines = self._of_unit_mass(parameters, every[0].zred)
        bright = (young[:, 1:, None] * light[:, 1 : young.shape[1]]).sum(1)
        clouds = light[:, 0] + light[:, -1] if self.nebular else light[:, 0]
        for zred in dict.fromkeys(node.zred for node in every):
            chosen = [i for i, node in enumerate(every) if node.zred == zred]
            if bool((weight[:, chosen] > 0).any()):  # not older than all of these galaxies
                light, _ = self._of_unit_mass(parameters, zred)
                of_nodes = light[:, [every[i].component for i in chosen]]
                bright = bright + (weight[:, chosen, None] * of_nodes).sum(1)
        return Light(bright, young[:, :1] * clouds, young[:, :1] * lines)

    def _of_unit_mass(self, parameters: Tensor, zred: float) -> tuple[Tensor, Tensor]:
        """Light (n, components, k) of 1 Msun in each, and L of lines (n, lines), at a redshift."""
        moved = parameters.clone()
        moved[:, self.names.index("zred")] = zred
        shape, brightness, lines = self._components(moved)
        return brightness.exp()[..., None] * shape, lines.exp()

    def _summed(self, mass: Tensor, shape: Tensor, brightness: Tensor, lines: Tensor) -> Light:
        """Of components of ln ``mass`` (n, components)."""
        each = (brightness[:, :N_COMPONENTS] + mass).exp()[..., None] * shape[:, :N_COMPONENTS]
        clouds = each[:, 0]
        if self.nebular:
            clouds = clouds + (brightness[:, -1:] + mass[:, :1]).exp() * shape[:, -1]
        return Light(each[:, 1:].sum(1), clouds, (lines + mass[:, :1]).exp())

    def exact_light(self, parameters: Tensor) -> Light:
        """`light` of the populations that it learns from, in the same basis: without its errors."""
        return self._summed(self.log_mass(parameters), *self._targets(parameters))

    # --- spectra ------------------------------------------------------------------------------

    def rest_spectrum(self, parameters: Tensor, light: Light | None = None) -> Tensor:
        """L_nu (n, fine pixels), Lsun / Hz of 1 Msun formed, behind dust, without lines."""
        light = self.light(parameters) if light is None else light
        basis = self.basis[:, FINE]
        return behind_dust(
            self.wavelength[FINE],
            light.bright @ basis,
            light.clouds @ basis,
            *self._dust_of(parameters),
        )

    def rest_lines(self, parameters: Tensor, light: Light | None = None) -> Tensor:
        """Luminosities (n, lines), Lsun of 1 Msun formed, behind dust."""
        lines = (self.light(parameters) if light is None else light).lines
        place = self.line_wavelength.to(lines)
        return behind_dust(place, torch.zeros_like(lines), lines, *self._dust_of(parameters))

    def _dust_of(self, parameters: Tensor) -> list[Tensor]:
        return [self.column(parameters, name) for name in DUST]

    def common_spectrum(
        self, parameters: Tensor, light: Light, pixels: slice, emits: bool, lines: bool
    ) -> Tensor:
        """L_nu on ``pixels`` of the common grid, as `Synthesis.spectrum`, with or without lines."""
        basis = self.basis[:, pixels]
        wavelength = self.wavelength[pixels]
        bright, clouds = light.bright @ basis, light.clouds @ basis
        if self.nebular:  # the gas takes all ionising photons of young stars
            clouds = torch.where(wavelength < LYMAN_LIMIT, 0.0, clouds)
        if lines and self.lines:
            clouds = self._with_lines(clouds, light.lines, pixels)
        emerging = behind_dust(wavelength, bright, clouds, *self._dust_of(parameters))
        if emits:
            absorbed = bright + clouds - emerging
            emerging = emerging + reemitted(wavelength, absorbed, self.dust[pixels])
        return emerging

    def _with_lines(self, spectrum: Tensor, lines: Tensor, pixels: slice) -> Tensor:
        """A spectrum to which each line is added in two pixels, as `population.add_line` does."""
        place = (self.line_wavelength.log() - LOG_START) / LOG_STEP
        low = place.long()
        place = place.to(spectrum)
        for pixel, share in ((low, low + 1 - place), (low + 1, place - low)):
            inside = (pixel >= pixels.start) & (pixel < pixels.stop)
            at = pixel[inside]
            per_hertz = self.wavelength[at] / LIGHT / LOG_STEP
            spectrum = spectrum.index_add(
                1, at - pixels.start, lines[:, inside] * share[inside] * per_hertz
            )
        return spectrum

    # --- bands --------------------------------------------------------------------------------

    def forward(self, parameters: Tensor) -> Tensor:
        """AB magnitudes (n, bands) of galaxies with parameters (n, p)."""
        layer = self.own_layer()
        parts = [self._magnitudes(part, layer) for part in parameters.split(AT_ONCE)]
        return torch.cat(parts)

    def _magnitudes(self, parameters: Tensor, layer: FilterLayer) -> Tensor:
        zred, logmass = (self.column(parameters, name) for name in ("zred", "logmass"))
        return magnitudes(self.means(parameters, layer), zred, logmass)

    def means(self, parameters: Tensor, layer: FilterLayer, light: Light | None = None) -> Tensor:
        """Means of L_nu (n, filters) through the filters of any `FilterLayer`."""
        light = self.light(parameters) if light is None else light
        spectrum = self.common_spectrum(parameters, light, layer.rest, layer.emits, True)
        return layer(spectrum, self.column(parameters, "zred"))

    def fluxes(
        self, parameters: Tensor, layer: FilterLayer, history: StarFormation | None = None
    ) -> Tensor:
        """f_nu (n, filters), uJy, of parameters (n, p); proportional to 10^logmass."""
        zred, logmass = (self.column(parameters, name) for name in ("zred", "logmass"))
        light = self.light(parameters, history)
        return microjansky(self.means(parameters, layer, light), zred, logmass)

    def layer(self, filters: Sequence[Filter]) -> FilterLayer:
        """Of any filters, up to the highest redshift that was learned."""
        return FilterLayer(filter_weights(filters), self._z_max()).to(self.basis)

    def of_bands(self, index: Tensor) -> Self:
        found = super().of_bands(index)
        found.filters, found._layer = self.filters[:, index], None
        return found

    def own_layer(self) -> FilterLayer:
        """That of the bands of training."""
        if self._layer is None:
            self._layer = FilterLayer(self.filters.cpu(), self._z_max())
        self._layer.to(self.basis)  # where the network is today
        return self._layer

    def _z_max(self) -> float:
        return float(self.high[self.names.index("zred")])

    def derivatives(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Magnitudes (n, bands) and d magnitude / d parameter, (n, bands, p), in forward mode."""
        layer = self.own_layer()
        parts = [self._derivatives(part, layer) for part in parameters.split(AT_ONCE // 4)]
        values, slopes = (torch.cat(each) for each in zip(*parts, strict=True))
        return values, slopes

    def _derivatives(self, parameters: Tensor, layer: FilterLayer) -> tuple[Tensor, Tensor]:
        def along(direction: Tensor) -> tuple[Tensor, Tensor]:
            values, slopes, *_ = torch.func.jvp(
                lambda x: self._magnitudes(x, layer),
                (parameters,),
                (direction.expand_as(parameters),),
            )
            return values, slopes

        directions = torch.eye(parameters.shape[1]).to(parameters)
        many = torch.func.vmap(along, out_dims=(None, 2))  # type: ignore[arg-type]
        values, slopes = many(directions)
        return values, slopes

    # --- spectrographs ------------------------------------------------------------------------

    def spectrum(
        self,
        parameters: Tensor,
        wavelength: Tensor,
        sigma_v: Tensor,
        resolution: float | Tensor | None = None,
        sigma_gas: Tensor | None = None,
        lines: bool = True,
        history: StarFormation | None = None,
    ) -> Tensor:
        """f_nu (n, m), uJy, at observed ``wavelength`` (m,), Angstrom in vacuum.

        ``sigma_v`` (n,): velocity dispersion of the stars, km/s; ``sigma_gas`` (n,): of the gas, by
        default the same. ``resolution``: of the spectrograph, wavelength over FWHM, a number or
        (n,); None: infinite. The stars' spectra have that of MILES, 2.5 A, at least. Proportional
        to 10^logmass. ``lines``: whether emission lines are added. ``history``: see `light`.
        """
        light = self.light(parameters, history)
        zred, logmass = (self.column(parameters, name) for name in ("zred", "logmass"))
        width = sigma_of(resolution, sigma_v)

        def common() -> Tensor:
            return self.common_spectrum(parameters, light, slice(0, N_PIXELS), True, False)

        flux = sampled(self.rest_spectrum(parameters, light), common, wavelength, zred, width)
        if lines and self.lines:
            width = sigma_of(resolution, sigma_v if sigma_gas is None else sigma_gas)
            strength = self.rest_lines(parameters, light)
            flux = flux + line_profiles(strength, self.line_wavelength, wavelength, zred, width)
        return microjansky(flux, zred, logmass)

    def relative_error(self, parameters: Tensor, wavelength: Tensor) -> Tensor:
        """Error (n, m), 68%, of spectra at observed wavelengths (m,), over the flux.

        NaN beyond the fine grid.
        """
        zred = self.column(parameters, "zred")
        rest = wavelength.double().log() - torch.log1p(zred.double())[:, None]
        pixel = ((rest - FINE_START) / FINE_STEP).round().long()
        inside = (pixel >= 0) & (pixel < N_FINE)
        error = self.pixel_error[pixel.clamp(0, N_FINE - 1)]
        return torch.where(inside, error, torch.nan)

    def line_fluxes(self, parameters: Tensor) -> Tensor:
        """Observed fluxes of lines (n, lines), in the order of ``lines``, 1e-18 erg/s/cm^2."""
        zred, logmass = (self.column(parameters, name) for name in ("zred", "logmass"))
        strength = self.rest_lines(parameters)
        # without the (1 + z) of fluxes by frequency; 1 uJy is 1e-29 erg/s/cm^2/Hz
        return microjansky(strength, zred, logmass) / (1 + zred[:, None]) * 1e-11


def _mean_and_scatter(values: Tensor) -> Tensor:
    """Of values (n, k), (2, k)."""
    return torch.stack([values.mean(0), values.std(0).clamp_min(LEAST_SCATTER)])


def _size(square: Tensor, corner: float) -> Tensor:
    """Of a squared error: quadratic where it is small, linear where it is large."""
    return square / (square.clamp_min(1e-14).sqrt() + corner)
