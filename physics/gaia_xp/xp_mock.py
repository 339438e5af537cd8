"""Simulated stars in the archive's layout of BP/RP spectra, with their truth."""

from collections.abc import Mapping

import numpy as np

from orrery.physics.gaia_xp import stellar_spectra, xp, xp_noise

WAVELENGTH = np.arange(320.0, 1101.0, 2.0)  # nm
# numbers of the coefficients with intrinsic scatter, from 0
SCATTERED = {"bp": (2, 6, 14), "rp": (3, 9)}
G_OF_BP_RP = 0.84  # flux in G / (BP + RP), of a star like the Sun
STARS_AT_ONCE = 2000  # their matrices take 25 kB each
G_ZERO_POINT = 25.6874  # Vega magnitudes (Riello et al. 2021, A&A 649, A3)


def simulate(
    n: int,
    random: np.random.Generator,
    magnitudes: tuple[float, float] = (11.5, 17.5),
    scatter: float = 4e-4,
    packed: Mapping[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Columns of the archive's names, of n stars uniform in G, and their truth.

    ``{band}_coefficients``, ``{band}_coefficient_errors`` (n, 55), electrons s^-1;
    ``{band}_coefficient_correlations`` (n, 1485), float16; ``phot_g_mean_flux`` (n,), electrons
    s^-1, without error; ``true_{band}`` (n, 55), free of noise and scatter; ``scatter_{band}``
    (n, 55), the standard deviation of the scatter: ``scatter`` times the first coefficient for
    `SCATTERED` ones, else 0; and the stellar parameters of `stellar_spectra.draw`.

    ``packed``: by band, correlations (k, 1485) of real stars, which simulated stars get
    at random; None: `xp_noise.correlations`.
    """
    sizes = [min(STARS_AT_ONCE, n - i) for i in range(0, n, STARS_AT_ONCE)]
    blocks = [_simulate(size, random, magnitudes, scatter, packed or {}) for size in sizes]
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def _simulate(
    n: int,
    random: np.random.Generator,
    magnitudes: tuple[float, float],
    scatter: float,
    given: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
    stars = stellar_spectra.draw(n, random)
    magnitude = random.uniform(*magnitudes, n)
    spectrum = stellar_spectra.flux(WAVELENGTH, **stars)
    true = {band: spectrum @ xp.projection(band, WAVELENGTH).T for band in xp.BANDS}
    g_flux = G_OF_BP_RP * sum(true[band] @ xp.photons(band) for band in xp.BANDS)
    scale = 10 ** (0.4 * (G_ZERO_POINT - magnitude)) / g_flux
    table = {
        "source_id": random.integers(2**58, 2**62, n),
        "phot_g_mean_flux": scale * g_flux,
    }
    for band in xp.BANDS:
        coefficients = scale[:, None] * true[band]
        sigma = np.zeros_like(coefficients)
        sigma[:, SCATTERED[band]] = scatter * np.abs(coefficients[:, :1])
        error = xp_noise.errors(band, coefficients[:, 0], coefficients.shape[1], magnitude, random)
        if band in given:  # of real stars, drawn at random
            packed = given[band][random.integers(len(given[band]), size=n)].astype("f2")
        else:
            packed = xp_noise.pack(xp_noise.correlations(band, coefficients, random)).astype("f2")
        root = np.linalg.cholesky(xp_noise.unpack(packed.astype(float), error.shape[1]))
        noise = np.einsum("bnm,bm->bn", root, random.normal(size=error.shape))
        observed = coefficients + sigma * random.normal(size=sigma.shape) + error * noise
        table |= {
            f"{band}_coefficients": observed,
            f"{band}_coefficient_errors": error,
            f"{band}_coefficient_correlations": packed,
            f"true_{band}": coefficients,
            f"scatter_{band}": sigma,
        }
    return table | stars
