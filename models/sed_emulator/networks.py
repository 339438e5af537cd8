"""Networks that replace stellar population synthesis: parameters of galaxies to magnitudes."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from orrery.physics.sps.attenuation import BIRTH_CLOUD_SLOPE, V_BAND, calzetti
from orrery.physics.sps.cosmology import distance_modulus
from orrery.physics.sps.star_formation import FIRST_EDGES, N_BINS, star_formation
from orrery.physics.sps.synthesis import BIRTH_CLOUD_AGE, RATIOS

POGSON = 2.5 / math.log(10.0)
OCTAVES = 4  # of the waves in ln(1 + z) that the network is given
SHIFT = 0.1  # scale of the learned shift of a band's ln wavelength, where dust is evaluated
# Stars behind birth clouds are a part of the youngest bin, and have spectra of their own
N_COMPONENTS = N_BINS + 1
YOUNG_SHARE = BIRTH_CLOUD_AGE / FIRST_EDGES[0]  # of the mass of the youngest bin


class _Network(nn.Module):
    """Common to both networks: the box of parameters, and the mean magnitude per band."""

    low: Tensor
    high: Tensor
    mean: Tensor
    scale: Tensor

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

    def column(self, parameters: Tensor, name: str) -> Tensor:
        """One parameter of (n, p) by name, (n,)."""
        return parameters[:, self.names.index(name)]

    def distance_and_mass(self, parameters: Tensor) -> Tensor:
        """Magnitudes (n, 1) that the distance adds and the mass takes away."""
        modulus = distance_modulus(self.column(parameters, "zred"))
        return (modulus - 2.5 * self.column(parameters, "logmass"))[:, None]

    def scaled(self, parameters: Tensor, names: Sequence[str]) -> Tensor:
        """Parameters of ``names``, -1 to 1 within the box, and waves in ln(1 + z)."""
        index = [self.names.index(name) for name in names]
        low, high = self.low[index], self.high[index]
        x = 2 * (parameters[:, index] - low) / (high - low) - 1
        phase = math.pi * torch.log2(1 + self.column(parameters, "zred"))
        turns = phase[:, None] * 2 ** torch.arange(OCTAVES, device=x.device)
        return torch.cat([x, turns.sin(), turns.cos()], 1)


def jacobian(
    function: Callable[[Tensor], Tensor], x: Tensor, columns: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Values (n, ...) of a function of rows x (n, p), and its derivatives (columns, n, ...).

    By forward mode: ``columns`` are the coordinates of x with respect to which it is derived.
    """

    def along(direction: Tensor) -> tuple[Tensor, Tensor]:
        value, derivative, *_ = torch.func.jvp(function, (x,), (direction.expand_as(x),))
        return value, derivative

    basis = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)[list(columns)]
    values, derivatives = torch.func.vmap(along)(basis)
    return values[0], derivatives


class HistoryNetwork(_Network):
    """Magnitudes as the sum over the bins of a star formation history, which is exact.

    The light of a bin is its mass times that of a bin of unit mass, which depends on metallicity,
    dust and redshift alone; the network gives its ln flux per band. Of dust it is given the optical
    depth at the band's wavelength, and learns by which factor the wavelength is to be shifted.
    """

    wavelength: Tensor

    def __init__(
        self, names: Sequence[str], wavelengths: Sequence[float], width: int, depth: int
    ) -> None:
        super().__init__(names, len(wavelengths))
        self.inputs = [n for n in names if n not in ("logmass", *RATIOS)]
        self.register_buffer("wavelength", torch.tensor(list(wavelengths)))
        self.body = _perceptron(len(self.inputs) + 2 * OCTAVES + 2, width, depth)
        self.out = nn.Linear(width, len(wavelengths) * (N_COMPONENTS + 2))
        with torch.no_grad():
            self.out.weight.mul_(0.5)

    def forward(self, parameters: Tensor) -> Tensor:
        """AB magnitudes (n, bands) of galaxies with parameters (n, p)."""
        light = self.log_flux(parameters) + self.log_mass(parameters)[:, None]
        magnitude = -POGSON * light.logsumexp(2)
        return magnitude + self.distance_and_mass(parameters)

    def derivatives(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Magnitudes (n, bands) and d magnitude / d parameter, (n, bands, p)."""
        index = {name: i for i, name in enumerate(self.names)}
        light, by_light = jacobian(self.log_flux, parameters, [index[n] for n in self.inputs])
        in_mass, in_distance = (*RATIOS, "zred"), ("logmass", "zred")
        mass, by_mass = jacobian(self.log_mass, parameters, [index[n] for n in in_mass])
        far, by_far = jacobian(self.distance_and_mass, parameters, [index[n] for n in in_distance])
        total = light + mass[:, None]
        share = total.softmax(2)
        slopes = torch.zeros(*light.shape[:2], len(self.names)).to(parameters)
        for name, slope in zip(self.inputs, by_light, strict=True):
            slopes[:, :, index[name]] -= POGSON * (share * slope).sum(2)
        by_ratio = -POGSON * share @ by_mass.permute(1, 2, 0)
        for i, name in enumerate(in_mass):
            slopes[:, :, index[name]] += by_ratio[:, :, i]
        for name, slope in zip(in_distance, by_far, strict=True):
            slopes[:, :, index[name]] += slope
        return far - POGSON * total.logsumexp(2), slopes

    def log_mass(self, parameters: Tensor) -> Tensor:
        """ln of the share of the mass formed per component, (n, components)."""
        ratios = torch.stack([self.column(parameters, name) for name in RATIOS], 1)
        history = star_formation(ratios, self.column(parameters, "zred"))
        mass = (history.sfr * history.edges.diff(dim=1)).clamp_min(1e-30).log()
        young, rest = mass[:, :1] + math.log(YOUNG_SHARE), mass[:, :1] + math.log(1 - YOUNG_SHARE)
        return torch.cat([young, rest, mass[:, 1:]], 1)

    def log_flux(self, parameters: Tensor) -> Tensor:
        """ln flux at 10 pc of 1 Msun formed in each component, (n, bands, components)."""
        dust2, index, fraction, zred = (
            self.column(parameters, name)[:, None, None]
            for name in ("dust2", "dust_index", "dust1_fraction", "zred")
        )
        known = (dust2 * (index + 0.4), 0.5 * dust2 * fraction)
        inputs = [self.scaled(parameters, self.inputs), *(k[:, 0] for k in known)]
        hidden = self.body(torch.cat(inputs, 1))
        log_flux, shift = (
            self.out(hidden)
            .reshape(-1, len(self.wavelength), N_COMPONENTS + 2)
            .split([N_COMPONENTS, 2], 2)
        )
        # of stars in birth clouds, and of others
        wavelength = self.wavelength[:, None] / (1 + zred) * torch.exp(SHIFT * shift)
        log_ratio = (wavelength / V_BAND).log()
        depth = dust2 * calzetti(wavelength) * torch.exp(index * log_ratio)
        young, others = depth.split(1, 2)
        cloud = fraction * dust2 * torch.exp(BIRTH_CLOUD_SLOPE * log_ratio[..., :1])
        depth = torch.cat([young + cloud, others.expand(-1, -1, N_COMPONENTS - 1)], 2)
        return log_flux - self.mean[:, None] / POGSON - depth


class DirectNetwork(_Network):
    """Magnitudes as a function of all parameters, as published: one perceptron."""

    def __init__(self, names: Sequence[str], n_bands: int, width: int, depth: int) -> None:
        super().__init__(names, n_bands)
        self.inputs = [n for n in names if n != "logmass"]
        self.body = _perceptron(len(self.inputs) + 2 * OCTAVES, width, depth)
        self.out = nn.Linear(width, n_bands)

    def forward(self, parameters: Tensor) -> Tensor:
        """AB magnitudes (n, bands) of galaxies with parameters (n, p)."""
        intrinsic = self.out(self.body(self.scaled(parameters, self.inputs)))
        return intrinsic * self.scale + self.mean + self.distance_and_mass(parameters)

    def derivatives(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Magnitudes (n, bands) and d magnitude / d parameter, (n, bands, p)."""
        values, slopes = jacobian(self, parameters, range(len(self.names)))
        return values, slopes.movedim(0, 2)


def _perceptron(n_in: int, width: int, depth: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Linear(n_in, width), nn.GELU()]
    for _ in range(depth - 1):
        layers += [nn.Linear(width, width), nn.GELU()]
    return nn.Sequential(*layers)
