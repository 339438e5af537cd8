"""Networks that replace stellar population synthesis: parameters of galaxies to magnitudes."""

import copy
import math
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from orrery.physics.sps.attenuation import (
    BIRTH_CLOUD_SLOPE,
    V_BAND,
    calzetti,
    calzetti_slope,
)
from orrery.physics.sps.cosmology import distance_modulus, distance_modulus_slope
from orrery.physics.sps.star_formation import FIRST_EDGES, N_BINS, star_formation
from orrery.physics.sps.synthesis import BIRTH_CLOUD_AGE, RATIOS

POGSON = 2.5 / math.log(10.0)
OCTAVES = 4  # of the waves in ln(1 + z) that the network is given
SHIFT = 0.1  # scale of the learned shift of a band's ln wavelength, where dust is evaluated
# Stars behind birth clouds are a part of the youngest bin, and have spectra of their own
N_COMPONENTS = N_BINS + 1
DUST = ("dust2", "dust_index", "dust1_fraction")
Z_STEP = 1e-3  # of the difference by which masses of bins are derived
N_SCREENS = 2  # of dust: before these stars, and before all others
YOUNG_SHARE = BIRTH_CLOUD_AGE / FIRST_EDGES[0]  # of the mass of the youngest bin


class Network(nn.Module):
    """Common to all networks: the box of parameters, and the mean magnitude per band."""

    low: Tensor
    high: Tensor
    mean: Tensor
    scale: Tensor
    inputs: list[str]  # names of the parameters that the perceptron is given

    def __init__(self, names: Sequence[str], n_bands: int) -> None:
        super().__init__()
        self.names = tuple(names)
        for name, size in (("low", len(names)), ("high", len(names))):
            self.register_buffer(name, torch.full((size,), float(name == "high")))
        # of magnitudes at 10 pc of 1 Msun formed: median, and mean deviation from it
        self.register_buffer("mean", torch.zeros(n_bands))
        self.register_buffer("scale", torch.ones(n_bands))

    def prepare(self, parameters: Tensor, magnitudes: Tensor, low: Tensor, high: Tensor) -> None:
        """Set the scaling from training rows, parameters (n, p) and magnitudes (n, bands)."""
        self.low.copy_(low)
        self.high.copy_(high)
        intrinsic = magnitudes - self.distance_and_mass(parameters)
        self.mean.copy_(intrinsic.median(0).values)
        self.scale.copy_((intrinsic - self.mean.cpu()).abs().mean(0).clamp_min(1e-3))

    def of_bands(self, index: Tensor) -> Self:
        """A network of some of the bands, in the order of ``index`` (m,)."""
        found = copy.deepcopy(self)
        found.mean, found.scale = self.mean[index], self.scale[index]
        return found

    def derivatives(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Magnitudes (n, bands) of parameters (n, p), and derivatives by these, (n, bands, p)."""
        raise NotImplementedError

    def column(self, parameters: Tensor, name: str) -> Tensor:
        """One parameter of (n, p) by name, (n,)."""
        return parameters[:, self.names.index(name)]

    def distance_and_mass(self, parameters: Tensor) -> Tensor:
        """Magnitudes (n, 1) that the distance adds and the mass takes away."""
        modulus = distance_modulus(self.column(parameters, "zred"))
        return (modulus - 2.5 * self.column(parameters, "logmass"))[:, None]

    def scaled(self, parameters: Tensor, names: Sequence[str]) -> Tensor:
        """Parameters of ``names``, -1 to 1 within the box, and waves in ln(1 + z)."""
        place = [self.names.index(name) for name in names]  # a list as an index would be copied
        values, low, high = (
            torch.stack([x[..., i] for i in place], -1) for x in (parameters, self.low, self.high)
        )
        x = 2 * (values - low) / (high - low) - 1
        phase = math.pi * torch.log2(1 + self.column(parameters, "zred"))
        turns = phase[:, None] * 2 ** torch.arange(OCTAVES, device=x.device)
        return torch.cat([x, turns.sin(), turns.cos()], 1)

    def scaled_derivatives(self, parameters: Tensor) -> Tensor:
        """Derivatives of `scaled` by the ``inputs``, (n, inputs, features)."""
        n, k = len(parameters), len(self.inputs)
        index = [self.names.index(name) for name in self.inputs]
        own = torch.diag(2 / (self.high - self.low)[index]).expand(n, -1, -1)
        ratio = 1 + self.column(parameters, "zred")[:, None]
        octave = 2 ** torch.arange(OCTAVES, device=parameters.device)
        turns, speed = math.pi * torch.log2(ratio) * octave, math.pi / math.log(2) / ratio * octave
        waves = torch.zeros(n, k, 2 * OCTAVES).to(parameters)
        wave = torch.cat([speed * turns.cos(), -speed * turns.sin()], 1)
        waves[:, self.inputs.index("zred")] = wave
        return torch.cat([own, waves], 2)

    def log_mass(self, parameters: Tensor) -> Tensor:
        """ln of the share of the mass formed per component, (n, components)."""
        ratios = torch.stack([self.column(parameters, name) for name in RATIOS], 1)
        history = star_formation(ratios, self.column(parameters, "zred"))
        mass = (history.sfr * history.edges.diff(dim=1)).clamp_min(1e-30).log()
        young, rest = mass[:, :1] + math.log(YOUNG_SHARE), mass[:, :1] + math.log(1 - YOUNG_SHARE)
        return torch.cat([young, rest, mass[:, 1:]], 1)

    def distance_derivative(self, parameters: Tensor) -> Tensor:
        """Derivative of the distance modulus by redshift, (n, 1)."""
        return distance_modulus_slope(self.column(parameters, "zred"))[:, None]


def _of_components(screens: Tensor) -> Tensor:
    """(..., components) of (..., screens): all but the first component are behind the second."""
    others = screens[..., 1:].expand(*screens.shape[:-1], N_COMPONENTS - 1)
    return torch.cat([screens[..., :1], others], -1)


class HistoryNetwork(Network):
    """Magnitudes as the sum over the bins of a star formation history, which is exact.

    The light of a bin is its mass times that of a bin of unit mass, which depends on metallicity,
    dust and redshift alone; the network gives its ln flux per band. Of dust it is given the optical
    depth at the band's wavelength, and learns by which factor the wavelength is to be shifted.
    With ``at_rest`` the bands are those of the galaxy at rest, at its distance all the same.
    """

    wavelength: Tensor

    def __init__(
        self,
        names: Sequence[str],
        wavelengths: Sequence[float],
        width: int,
        depth: int,
        at_rest: bool = False,
    ) -> None:
        super().__init__(names, len(wavelengths))
        self.at_rest = at_rest
        self.inputs = [n for n in names if n not in ("logmass", *RATIOS)]
        self.register_buffer("wavelength", torch.tensor(list(wavelengths)))
        self.body = perceptron(len(self.inputs) + 2 * OCTAVES + 2, width, depth)
        self.out = nn.Linear(width, len(wavelengths) * (N_COMPONENTS + N_SCREENS))
        with torch.no_grad():
            self.out.weight.mul_(0.5)

    def forward(self, parameters: Tensor) -> Tensor:
        """AB magnitudes (n, bands) of galaxies with parameters (n, p)."""
        light = self.log_flux(parameters) + self.log_mass(parameters)[:, None]
        magnitude = -POGSON * light.logsumexp(2)
        return magnitude + self.distance_and_mass(parameters)

    def of_bands(self, index: Tensor) -> Self:
        found = super().of_bands(index)
        found.wavelength = self.wavelength[index]
        found.out = of_outputs(self.out, index, len(self.wavelength))
        return found

    def log_flux(self, parameters: Tensor) -> Tensor:
        """ln flux at 10 pc of 1 Msun formed in each component, (n, bands, components)."""
        log_flux, shift = self._split(self.out(self.body(self.features(parameters))))
        depth = self._depth(self._log_wavelength(parameters, shift), self._dust(parameters))
        return log_flux - self.mean[:, None] / POGSON - _of_components(depth)

    def features(self, parameters: Tensor) -> Tensor:
        """Inputs of the perceptron, (n, features)."""
        dust2, index, fraction = (x[:, 0] for x in self._dust(parameters))
        known = (dust2 * (index + 0.4), 0.5 * dust2 * fraction)
        return torch.cat([self.scaled(parameters, self.inputs), *known], 1)

    def _feature_derivatives(self, parameters: Tensor) -> Tensor:
        """Derivatives of `features` by the ``inputs``, (n, inputs, features)."""
        dust2, index, fraction = (x[:, 0, 0] for x in self._dust(parameters))
        known = torch.zeros(len(parameters), len(self.inputs), 2).to(parameters)
        at = [self.inputs.index(name) for name in DUST]
        known[:, at[0], 0], known[:, at[0], 1] = index + 0.4, 0.5 * fraction
        known[:, at[1], 0], known[:, at[2], 1] = dust2, 0.5 * dust2
        return torch.cat([self.scaled_derivatives(parameters), known], 2)

    def _dust(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``dust2``, ``dust_index`` and ``dust1_fraction``, (n, 1, 1) each."""
        dust2, index, fraction = (self.column(parameters, name)[:, None, None] for name in DUST)
        return dust2, index, fraction

    def _split(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """ln flux (..., bands, components) and shift (..., bands, screens) of the last layer."""
        shaped = output.unflatten(-1, (len(self.wavelength), N_COMPONENTS + N_SCREENS))
        log_flux, shift = shaped.split([N_COMPONENTS, N_SCREENS], -1)
        return log_flux, shift

    def _log_wavelength(self, parameters: Tensor, shift: Tensor) -> Tensor:
        """ln of the wavelength at rest, Angstrom, at which dust is evaluated: shape of shift."""
        zred = self.column(parameters, "zred")[:, None, None]
        redshift = 0.0 if self.at_rest else torch.log1p(zred)
        return self.wavelength.log()[:, None] - redshift + SHIFT * shift

    @staticmethod
    def _depth(log_wavelength: Tensor, dust: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Optical depth (n, bands, screens): of stars in birth clouds, and of others."""
        dust2, index, fraction = dust
        log_ratio = log_wavelength - math.log(V_BAND)
        depth = dust2 * calzetti(log_wavelength.exp()) * torch.exp(index * log_ratio)
        young, others = depth.split(1, 2)
        cloud = fraction * dust2 * torch.exp(BIRTH_CLOUD_SLOPE * log_ratio[..., :1])
        return torch.cat([young + cloud, others], 2)

    def derivatives(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Magnitudes (n, bands) and d magnitude / d parameter, (n, bands, p).

        By forward mode, along the inputs of the network alone: of mass and of the star formation
        ratios the derivatives are closed forms.
        """
        index = {name: i for i, name in enumerate(self.names)}
        light, by_input = self._light_derivatives(parameters)
        mass = self.log_mass(parameters)
        total = light + mass[:, None]
        share = total.softmax(2)
        slopes = torch.zeros(*light.shape[:2], len(self.names)).to(parameters)
        slopes[..., [index[name] for name in self.inputs]] = -POGSON * (
            share[:, None] * by_input
        ).sum(3).transpose(1, 2)
        slopes[..., [index[name] for name in RATIOS]] = -POGSON * _by_ratio(mass, share)
        slopes[..., index["logmass"]] = -2.5
        slopes[..., index["zred"]] += self.distance_derivative(parameters)
        slopes[..., index["zred"]] -= POGSON * (share @ self._mass_by_z(parameters))[..., 0]
        magnitude = self.distance_and_mass(parameters) - POGSON * total.logsumexp(2)
        return magnitude, slopes

    def _mass_by_z(self, parameters: Tensor) -> Tensor:
        """d ln mass of components / d redshift, (n, components, 1), by a central difference."""
        step = torch.zeros_like(parameters)
        step[:, self.names.index("zred")] = Z_STEP
        change = self.log_mass(parameters + step) - self.log_mass(parameters - step)
        return (change / (2 * Z_STEP))[..., None]

    def _light_derivatives(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """`log_flux`, and its derivatives by the ``inputs``, (n, inputs, bands, components)."""
        hidden, tangents = _forward(
            self.body, self.features(parameters), self._feature_derivatives(parameters)
        )
        log_flux, shift = self._split(self.out(hidden))
        by_input, by_shift = self._split(tangents @ self.out.weight.T)
        dust = self._dust(parameters)
        place = self._log_wavelength(parameters, shift)
        by_place, *by_dust = self._depth_derivatives(place, dust)
        move = SHIFT * by_shift
        if not self.at_rest:
            zred = self.column(parameters, "zred")[:, None, None]
            move[:, self.inputs.index("zred")] -= 1 / (1 + zred)
        by_depth = by_place[:, None] * move
        for name, slope in zip(DUST, by_dust, strict=True):
            by_depth[:, self.inputs.index(name)] += slope
        depth = self._depth(place, dust)
        light = log_flux - self.mean[:, None] / POGSON - _of_components(depth)
        return light, by_input - _of_components(by_depth)

    @staticmethod
    def _depth_derivatives(
        log_wavelength: Tensor, dust: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, ...]:
        """Derivatives of `_depth` by ln wavelength and by the parameters of dust."""
        dust2, index, fraction = dust
        log_ratio = log_wavelength - math.log(V_BAND)
        wavelength, tilt = log_wavelength.exp(), torch.exp(index * log_ratio)
        curve = calzetti(wavelength) * tilt
        cloud = torch.exp(BIRTH_CLOUD_SLOPE * log_ratio)
        cloud = cloud * torch.tensor([1.0, 0.0]).to(cloud)  # before young stars alone
        by_place = dust2 * (calzetti_slope(wavelength) * tilt + index * curve)
        by_place = by_place + BIRTH_CLOUD_SLOPE * fraction * dust2 * cloud
        return by_place, curve + fraction * cloud, dust2 * curve * log_ratio, dust2 * cloud


def _forward(body: nn.Sequential, x: Tensor, tangents: Tensor) -> tuple[Tensor, Tensor]:
    """A perceptron of linear layers and GELU: its output, and tangents (n, k, inputs) behind it."""
    for layer in body:
        if isinstance(layer, nn.Linear):
            x, tangents = layer(x), tangents @ layer.weight.T
        else:  # GELU(x) = x Phi(x)
            cumulative = torch.special.ndtr(x)
            slope = cumulative + x * torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
            x, tangents = x * cumulative, tangents * slope[:, None]
    return x, tangents


def _by_ratio(log_mass: Tensor, share: Tensor) -> Tensor:
    """d ln flux / d star formation ratio, (n, bands, ratios).

    ``log_mass`` (n, components), ``share`` (n, bands, components) of the light. A ratio takes the
    star formation of all older bins down, relative to the younger ones, at a fixed total.
    """

    def older(values: Tensor) -> Tensor:
        # a sum, not a product of matrices, whose rounding depends on the place of a row
        return values.flip(-1).cumsum(-1).flip(-1)[..., N_COMPONENTS - len(RATIOS) :]

    return math.log(10) * (older(log_mass.exp())[:, None] - older(share))


class DirectNetwork(Network):
    """Magnitudes as a function of all parameters, as published: one perceptron."""

    def __init__(self, names: Sequence[str], n_bands: int, width: int, depth: int) -> None:
        super().__init__(names, n_bands)
        self.inputs = [n for n in names if n != "logmass"]
        self.body = perceptron(len(self.inputs) + 2 * OCTAVES, width, depth)
        self.out = nn.Linear(width, n_bands)

    def forward(self, parameters: Tensor) -> Tensor:
        """AB magnitudes (n, bands) of galaxies with parameters (n, p)."""
        intrinsic = self.out(self.body(self.features(parameters)))
        return intrinsic * self.scale + self.mean + self.distance_and_mass(parameters)

    def of_bands(self, index: Tensor) -> Self:
        found = super().of_bands(index)
        found.out = of_outputs(self.out, index, len(self.mean))
        return found

    def features(self, parameters: Tensor) -> Tensor:
        """Inputs of the perceptron, (n, features)."""
        return self.scaled(parameters, self.inputs)

    def derivatives(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Magnitudes (n, bands) and d magnitude / d parameter, (n, bands, p)."""
        hidden, tangents = _forward(
            self.body, self.features(parameters), self.scaled_derivatives(parameters)
        )
        slopes = torch.zeros(len(parameters), len(self.mean), len(self.names)).to(parameters)
        columns = [self.names.index(name) for name in self.inputs]
        slopes[..., columns] = ((tangents @ self.out.weight.T) * self.scale).transpose(1, 2)
        slopes[..., self.names.index("logmass")] = -2.5
        slopes[..., self.names.index("zred")] += self.distance_derivative(parameters)
        intrinsic = self.out(hidden) * self.scale + self.mean
        return intrinsic + self.distance_and_mass(parameters), slopes


def of_outputs(layer: nn.Linear, index: Tensor, n_bands: int) -> nn.Linear:
    """The part of a last layer, whose outputs are as many for each band, of some bands."""
    weight = layer.weight.unflatten(0, (n_bands, -1))[index].flatten(0, 1)
    bias = layer.bias.unflatten(0, (n_bands, -1))[index].flatten()
    found = nn.Linear(weight.shape[1], len(weight), device=weight.device, dtype=weight.dtype)
    found.load_state_dict({"weight": weight.detach(), "bias": bias.detach()})
    return found.requires_grad_(layer.weight.requires_grad)


def perceptron(n_in: int, width: int, depth: int) -> nn.Sequential:
    """Hidden layers (n, n_in) -> (n, width)."""
    layers: list[nn.Module] = [nn.Linear(n_in, width), nn.GELU()]
    for _ in range(depth - 1):
        layers += [nn.Linear(width, width), nn.GELU()]
    return nn.Sequential(*layers)
