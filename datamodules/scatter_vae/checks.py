"""Checks of the numbers of stars: coefficients, errors, correlations, and the flux to divide by."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from orrery.datamodules.scatter_vae.columns import SAMPLED
from orrery.datamodules.values import refuse
from orrery.physics.gaia_xp import xp
from orrery.physics.gaia_xp.correlations import check_positive_definite

LARGEST_NUMBER = 1e10  # coefficient, electron/s, or flux density: of Sirius they are below
TRUNCATED = 3  # coefficients that are 0 at the end of a star without its irrelevant bases


def checked_band(
    band: str, x: np.ndarray, e: np.ndarray, column: str, error_column: str, expected: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coefficients and errors (batch, n), and a mask of the stars that have this band.

    ``expected``: coefficients of the model; None in training. Raises ``ValueError`` for another
    number of them, for impossible values or errors, and for a star without RP.
    """
    n = expected or x.shape[1]
    for values, name in ((x, column), (e, error_column)):
        if values.shape[1] not in (n, 0):
            raise ValueError(
                f"column '{name}' has {values.shape[1]} numbers per star, expected {n}"
                + (
                    f": the model was trained on {n}, and needs as many. Data releases differ "
                    f"in their functions: apply a model to the release that it learned from, "
                    f"or train one on this file"
                    if expected
                    else f", as many as '{column}'"
                )
            )
    if x.shape[1] == 0 or e.shape[1] == 0:  # no star has it
        x = e = np.full((len(x), n), np.nan)
    missing = np.isnan(x).all(1)
    hint = "drop those stars"
    impossible = ~(np.abs(x) < LARGEST_NUMBER)  # and NaN
    bad = impossible.any(1) & ~missing
    first = np.where(bad, x[np.arange(len(x)), impossible.argmax(1)], 0.0)
    refuse(bad, column, first, "is NaN or impossible among a star's numbers",
           f"finite ones below {LARGEST_NUMBER:g}", hint)  # fmt: skip
    truncated = (x[:, -TRUNCATED:] == 0).all(1) & (band != SAMPLED)
    refuse(
        truncated,
        column,
        x[:, -1],
        "is the last coefficient, and so are those before it: the star is truncated to its "
        "relevant bases, and these zeros are not measured",
        "all coefficients, as the archive gives them without truncation",
        hint,
    )
    invalid = ~(np.isfinite(e) & (e > 0))
    first = e[np.arange(len(e)), invalid.argmax(1)]
    refuse(
        invalid.any(1) & ~missing,
        error_column,
        first,
        "is not a valid error",
        "positive, finite errors",
        hint,
    )
    if band != "bp":
        refuse(
            missing,
            column,
            x[:, 0],
            f"is the first value of a star without {band.upper()}: it, or '{error_column}', is "
            f"blank throughout",
            f"{band.upper()} of every star (only BP may be missing)",
            hint,
        )
    return x, e, ~missing


def flux_of_spectra(bands: Mapping[str, tuple[np.ndarray, ...]], column: str) -> np.ndarray:
    """The flux to divide by, (batch,): the photons of RP, or the mean of a sampled spectrum.

    ``bands``: band -> its coefficients and errors, see `checked_band`; ``column``: of RP, or of the
    sampled spectrum, for messages.
    """
    if SAMPLED in bands:
        return np.asarray(bands[SAMPLED][0].mean(1))
    weight, coefficients = xp.photons("rp"), bands["rp"][0]
    if len(weight) != coefficients.shape[1]:
        raise ValueError(
            f"column '{column}' has {coefficients.shape[1]} coefficients, whose functions "
            f"are not known (those of DR3 are {len(weight)}): name a column to divide by, "
            f"data.columns.flux=phot_g_mean_flux"
        )
    return np.asarray(coefficients @ weight)


def refuse_fluxes(flux: np.ndarray, column: str) -> None:
    """Raise for a ``flux`` (batch,) that nothing can be divided by."""
    refuse(
        ~(flux > 0) | ~np.isfinite(flux),
        column,
        flux,
        "is not a valid flux of a star",
        "a positive flux to divide by",
        "drop those stars, or name another column by data.columns.flux",
    )


def packed_correlations(packed: np.ndarray, n: int, observed: np.ndarray, column: str) -> Tensor:
    """Correlations (batch, n (n - 1) / 2), float16; zero where the band is not ``observed``.

    Raises ``ValueError`` for another number of them, and unless they are positive definite.
    """
    expected = n * (n - 1) // 2
    if packed.shape[1] == 0:
        packed = np.full((len(packed), expected), np.nan)
    if packed.shape[1] != expected:
        raise ValueError(
            f"column '{column}' has {packed.shape[1]} numbers per star, expected {expected}: the "
            f"upper triangle of {n} x {n} without the diagonal, column by column"
        )
    packed = np.where(observed[:, None], packed, 0.0)
    worst = np.abs(np.nan_to_num(packed, nan=9.0)).max(1, initial=0)
    refuse(worst > 1, column, worst, "is not a valid correlation", "-1 to 1", "drop those stars")
    tensor = torch.from_numpy(packed.astype(np.float16))
    try:
        check_positive_definite(tensor, n)
    except ValueError as error:
        raise ValueError(f"column '{column}': {error}") from error
    return tensor
