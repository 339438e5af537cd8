"""gyrointerp (Bouma, Palumbo & Hillenbrand 2023), the peer of `gyro`, for `benchmarks.gyro`.

Its `gyro_age_posterior` computes the model anew for every star, 10 to 40 s each. With grids of
residual and temperature that all stars share it is computed once per age here: the likelihood is
otherwise its own, before it is divided by its integral over age (within 4e-6 of the posterior's
peak). Colours become temperatures by its `teff` module; missing errors are its defaults.

It does not model outliers, and a single one excludes every age: `OUTLIERS` and `FLOOR` are added
here. Its slow sequences are fitted to eight of the ten benchmark clusters.
"""

import math
import time
from typing import NamedTuple

import numpy as np
from gyrointerp import gyro_age_posterior
from gyrointerp.models import slow_sequence, slow_sequence_residual
from gyrointerp.teff import given_dr2_BpmRp_AV_get_Teff_Curtis2020 as teff_of_colour

N_GRID = 500  # of 666 by default at the least error of a period; it asks for 0.7 of the default
TEFF_GRID = np.linspace(3800.0, 6200.0, N_GRID - 1)  # K
RESIDUAL_GRID = np.linspace(-14.0, 6.0, N_GRID)  # P less the slow sequence, d
PERIOD_ERROR, LEAST_PERIOD_ERROR, TEFF_ERROR = 0.01, 0.03, 100.0  # its own: relative, d, K
BEYOND_4_GYR = "4gyrextrap"  # the slow sequence grows on linearly
AGES = np.concatenate([[0.0], np.geomspace(50.0, 5_000.0, 400)])  # Myr; flat below 80
FLOOR = 0.01  # of each posterior is the prior, so that no star alone rules out an age
OUTLIERS, OUTLIER_RANGE = 0.05, 3.6  # fraction; dex over which they are uniform in log P
LEVELS = (0.16, 0.5, 0.84)

Array = np.ndarray


class Stars(NamedTuple):
    prot: Array  # d
    e_prot: Array  # d
    teff: Array  # K


def likelihood(stars: Stars, ages: Array) -> Array:
    """p(P | age, Teff) per day, (stars, ages in Myr), convolved with the errors of P and Teff.

    Its model is normalised over residuals at each Teff and age.
    """
    step = RESIDUAL_GRID[1] - RESIDUAL_GRID[0]
    near = [np.abs(TEFF_GRID - teff) < 5 * TEFF_ERROR for teff in stars.teff]
    likelihoods = np.empty((len(stars.prot), len(ages)))
    for j, age in enumerate(ages):
        options = {"bounds_error": BEYOND_4_GYR, "verbose": False}
        sequence = slow_sequence(TEFF_GRID, age, **options)
        model = slow_sequence_residual(age, RESIDUAL_GRID, TEFF_GRID, **options)
        for i, mask in enumerate(near):
            residual = stars.prot[i] - sequence[mask]
            p_teff = normal(TEFF_GRID[mask] - stars.teff[i], TEFF_ERROR)
            p_period = normal(RESIDUAL_GRID[:, None] - residual, stars.e_prot[i])
            p_period[[0, -1]] *= 0.5  # the trapezoid rule
            given_teff = np.einsum("yt,yt->t", p_period, model[:, mask]) * step
            likelihoods[i, j] = given_teff @ p_teff / p_teff.sum()
    return likelihoods


def density(stars: Stars, age: float) -> Array:
    """ln p(log10 P | age in Myr, Teff) per dex; -inf where its model has no such period."""
    with np.errstate(divide="ignore"):
        return np.log(likelihood(stars, np.array([age]))[:, 0] * stars.prot * math.log(10))


def with_outliers(log_p: Array) -> Array:
    """ln p of a star that it describes, or of an outlier, uniform in log P: not gyrointerp's."""
    return np.log((1 - OUTLIERS) * np.exp(log_p) + OUTLIERS / OUTLIER_RANGE)


def age_posterior(likelihoods: Array, ages: Array) -> Array:
    """p(age) per Myr of each star, flat prior; the prior where its model has no such period."""
    total = np.trapezoid(likelihoods, ages)[:, None]
    flat = np.full_like(likelihoods, 1 / (ages[-1] - ages[0]))
    return np.divide(likelihoods, total, out=flat, where=total > 0)


def joint(posteriors: Array, ages: Array) -> Array:
    """p(age) per Myr of stars of one age: the product of theirs, of which FLOOR is the prior."""
    flat = 1 / (ages[-1] - ages[0])
    log_p = np.log((1 - FLOOR) * posteriors + FLOOR * flat).sum(0)
    p = np.exp(log_p - log_p.max())
    return p / np.trapezoid(p, ages)


def quantiles(posterior: Array, ages: Array) -> Array:
    """Ages, Myr, of LEVELS."""
    cdf = np.cumsum(0.5 * (posterior[1:] + posterior[:-1]) * np.diff(ages))
    return np.interp(LEVELS, np.concatenate([[0], cdf]) / cdf[-1], ages)


def normal(deviation: Array, width: float) -> Array:
    return np.exp(-0.5 * (deviation / width) ** 2) / (math.sqrt(2 * math.pi) * width)


def stars_of(prot: Array, e_prot: Array, colour: Array) -> Stars:
    """From periods and their errors, d (NaN where there are none), and (BP-RP)_0, mag."""
    e_prot = np.where(e_prot > 0, e_prot, PERIOD_ERROR * prot).clip(min=LEAST_PERIOD_ERROR)
    return Stars(prot, e_prot, teff_of_colour(colour, 0.0))


def cpu_seconds(stars: Stars, i: int) -> float:
    """Process CPU time of its own posterior of the i-th star, at its default settings."""
    started = time.process_time()
    gyro_age_posterior(float(stars.prot[i]), float(stars.teff[i]))
    return time.process_time() - started
