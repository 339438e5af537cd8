"""A seeded population of rotating stars in open clusters, and the exact density of its periods.

A member star rotates on the slow sequence, the gyrochrone of Angus et al. (2019), or has not yet
converged onto it; the share of such fast rotators falls with age, later for redder stars (Barnes
2003). Stars with a membership probability below one may be field stars or aliases instead.
`simulate` draws from `log_density`, so that its score is the best any model of these data can
reach. Ages are in Myr, periods in days, colours are (BP-RP)_0; densities are per dex of period;
float64. Numbers called "measured" are ours, from 8,412 stars of 30 open clusters (the catalogue of
ChronoFlow, arXiv:2412.12244). Left out: stalled spin-down (Curtis et al. 2020) and weakened
braking (van Saders et al. 2016); a simulated star follows one power of its age.
"""

import numpy as np
from numpy.typing import ArrayLike
from scipy.interpolate import PchipInterpolator
from scipy.special import ndtr, softmax

INPUT_NAMES = (  # of log_density, in its order
    "log10_period",
    "log10_age_myr",
    "bp_rp0",
    "e_log10_period",
    "e_bp_rp0",
    "mem_prob",
)

# Angus et al. (2019, AJ 158, 173), Table 1, c_4 ... c_0 and c_A, with 12 digits of their package
# stardate. Fitted for 0.56 < BP-RP < 2.7 to Praesepe, and to the Sun for the age.
COLOUR_TERMS = (-38.9575861986, 28.7094185795, -4.91905643705, 0.716111483562, -4.71681967458)
AGE_POWER = 0.647095086232
# The colour is held at these ends. Blueward of 0.65 the polynomial dives under the real periods:
# half of Praesepe's stars at 0.55 to 0.60 lie 0.2 dex and more above it (measured).
COLOUR_LIMITS = (0.65, 2.7)
# Contraction and the coupling of core and envelope hold slow rotators at their period for long
# (Gallet & Bouvier 2013): the relation runs in hypot(age, plateau). 190 Myr is measured.
PLATEAU_MYR = 190.0
WIDTH_DAYS = 0.51  # of the slow sequence: Bouma et al. (2023, ApJL 947, L3) in their gyrointerp
WIDTH_DEX = 0.03  # least width: measured scatter of Praesepe (0.02) to M67 (0.04)

# Stars leave the fast branch at random, on a time that grows as mass falls: Barnes (2003, ApJ 586,
# 464), with an exponential as in Brown (2014, ApJ 789, 101). Both numbers are measured.
CONVERGENCE_MYR = 50.0  # mean life of the fast branch at BP-RP = 1
CONVERGENCE_GROWTH = 2.4  # of its logarithm, per mag: 0.3 Msun (2.7) is mostly fast at 0.7 Gyr
# Bouma et al. (2023) spread fast rotators evenly from zero to the slow sequence; in log P here,
# from the shortest period of McQuillan et al. (2014), with soft edges.
FASTEST_DAYS, EDGE_DEX = 0.2, 0.05

# Outliers. Field: a normal in log P about what Kepler sees (0.2 to 70 d, McQuillan et al. 2014,
# ApJS 211, 24). Aliases: a member's period halved or doubled. Shares and shape are ours.
FIELD_LOG10_PERIOD, FIELD_DEX, FIELD_SHARE = 1.15, 0.4, 0.7
MISSING_PERIOD_ERROR = 0.02  # relative; the truth where e_prot_d is NaN (measured median 0.01)
MISSING_COLOUR_ERROR = 0.03  # mag
# Possible periods, d, and (BP-RP)_0, mag; a column with others holds something else.
POSSIBLE_PERIODS, POSSIBLE_COLOURS = (0.02, 500.0), (-1.5, 6.0)

# Dwarfs: BP-RP, M_G, mass in Msun; Pecaut & Mamajek (2013, ApJS 208, 9), table of 2024.05.15.
DWARF_COLOUR = (0.49, 0.587, 0.694, 0.823, 0.983, 1.19, 1.43, 1.84, 2.23, 2.5, 2.78, 3.16)
_M_G = (2.89, 3.26, 3.9, 4.635, 5.553, 6.22, 6.85, 8.1, 9.29, 10.05, 10.82, 12.04)
_MASS = (1.43, 1.32, 1.16, 1.0, 0.86, 0.76, 0.7, 0.585, 0.45, 0.36, 0.29, 0.18)
dwarf_magnitude = PchipInterpolator(DWARF_COLOUR, _M_G)
dwarf_mass = PchipInterpolator(DWARF_COLOUR, _MASS)
# Heights above the sequence of dwarfs, mag: those of binaries begin at the first, and none reaches
# the second; log g of dwarfs is above the third.
BINARY_MAG, EVOLVED_MAG, EVOLVED_LOGG = 0.3, 0.9, 4.1
# The survey is ours: periods to G = 18.5, over distance moduli that give the colours of the real
# table; its colour errors (0.017 when bright, 0.05 at G = 17.5, 0.10 at 18.5).
G_LIMIT, DISTANCE_MODULI = 18.5, (5.0, 11.0)
LOG10_AGE_MYR = (1.0, 3.6)  # of the clusters, even in between


def slow_sequence(log10_age_myr: ArrayLike, bp_rp0: ArrayLike) -> np.ndarray:
    """log10 of the period of a converged star, d: Angus et al. (2019), eq. 1."""
    colour = np.log10(np.clip(np.asarray(bp_rp0, float), *COLOUR_LIMITS))
    log10_age_yr = np.log10(np.hypot(10 ** np.asarray(log10_age_myr, float), PLATEAU_MYR)) + 6
    return np.polyval(COLOUR_TERMS, colour) + AGE_POWER * log10_age_yr


def slow_width(log10_period: ArrayLike) -> np.ndarray:
    """Standard deviation of log10 P about the slow sequence, dex, where that has this period."""
    return np.hypot(WIDTH_DAYS / 10 ** np.asarray(log10_period, float) / np.log(10), WIDTH_DEX)


def fast_share(log10_age_myr: ArrayLike, bp_rp0: ArrayLike) -> np.ndarray:
    """Probability that a member has not yet converged onto the slow sequence."""
    life = CONVERGENCE_MYR * np.exp(CONVERGENCE_GROWTH * (np.asarray(bp_rp0, float) - 1))
    return np.exp(-(10 ** np.asarray(log10_age_myr, float)) / life)


def period_error(prot_d: ArrayLike, e_prot_d: ArrayLike) -> np.ndarray:
    """Error of log10 P, dex; where e_prot_d is NaN, that of MISSING_PERIOD_ERROR."""
    relative = np.asarray(e_prot_d, float) / np.asarray(prot_d, float)
    return np.where(np.isnan(relative), MISSING_PERIOD_ERROR, relative) / np.log(10)


def log_density(
    log10_period: ArrayLike,
    log10_age_myr: ArrayLike,
    bp_rp0: ArrayLike,
    e_log10_period: ArrayLike = 0.0,
    e_bp_rp0: ArrayLike = 0.0,
    mem_prob: ArrayLike = 1.0,
    nodes: int = 101,
) -> np.ndarray:
    """ln p(log10 P | true age, observed colour, errors, membership), per dex; inputs broadcast.

    Errors are normal: dex of the period, mag of the colour. That of the period is convolved
    analytically, that of the colour by the trapezoid rule on ``nodes`` over 4.5 sigma either side.
    An error of zero gives the intrinsic density, mem_prob = 1 that of members.
    """
    inputs = (log10_period, log10_age_myr, bp_rp0, e_log10_period, e_bp_rp0, mem_prob)
    x, age, colour, e_x, e_colour, member = (
        np.asarray(value, float)[..., None] for value in inputs
    )
    for name, value in zip(INPUT_NAMES, inputs, strict=True):
        if not np.isfinite(value).all():
            raise ValueError(f"log_density: {name} is not finite; for errors see period_error")
    if (e_x < 0).any() or (e_colour < 0).any() or (member < 0).any() or (member > 1).any():
        raise ValueError("log_density: errors must not be negative, mem_prob within [0, 1]")
    node = np.linspace(-4.5, 4.5, nodes if (e_colour > 0).any() else 1)
    node = node - node.mean()
    weight = softmax(-0.5 * node**2)
    colour = colour + e_colour * node
    mean, share = slow_sequence(age, colour), fast_share(age, colour)

    def member_density(y: np.ndarray) -> np.ndarray:
        slow = _normal(y - mean, np.hypot(slow_width(mean), e_x))
        low, edge = np.log10(FASTEST_DAYS), np.hypot(EDGE_DEX, e_x)
        fast = (ndtr((y - low) / edge) - ndtr((y - mean) / edge)) / (mean - low)
        return ((1 - share) * slow + share * fast) @ weight

    density = member[..., 0] * member_density(x)
    if (member < 1).any():
        field = _normal(x - FIELD_LOG10_PERIOD, np.hypot(FIELD_DEX, e_x))[..., 0]
        alias = 0.5 * (member_density(x + np.log10(2)) + member_density(x - np.log10(2)))
        density += (1 - member[..., 0]) * (FIELD_SHARE * field + (1 - FIELD_SHARE) * alias)
    return np.log(np.maximum(density, np.finfo(float).tiny))


def simulate(
    random: np.random.Generator, n_clusters: int = 24, stars: int = 6000, e_age_dex: float = 0.05
) -> dict[str, np.ndarray]:
    """A table of ``stars`` rows with the columns of the real one, and the truth.

    star_id, cluster, age_myr (the literature's: true with an error of e_age_dex), e_age_dex,
    prot_d, e_prot_d (NaN for half), bp_rp0, e_bp_rp0, g0, mem_prob, good; true_age_myr, is_outlier,
    branch (slow, fast; of outliers field, half, double). Errors of colour are Berkson's: the true
    colour scatters about the observed one, which makes log_density exact.
    """
    if n_clusters < 1 or stars < 5 * n_clusters:
        raise ValueError(f"simulate: needs 5 stars a cluster, got {stars} in {n_clusters} clusters")
    stratum = (np.arange(n_clusters) + random.random(n_clusters)) / n_clusters
    age = LOG10_AGE_MYR[0] + np.ptp(LOG10_AGE_MYR) * stratum
    quoted = age + e_age_dex * random.standard_normal(n_clusters)
    richness = random.lognormal(0.0, 0.9, n_clusters)  # as of the real 30: 6 to 824 stars
    count = 5 + random.multinomial(stars - 5 * n_clusters, richness / richness.sum())
    row = np.repeat(np.arange(n_clusters), count)
    modulus = random.uniform(*DISTANCE_MODULI, n_clusters)
    colours = [_draw_colours(n, m, random) for n, m in zip(count, modulus, strict=True)]
    colour = np.concatenate(colours)
    magnitude = dwarf_magnitude(colour) + modulus[row]
    magnitude += 0.15 * random.standard_normal(stars)
    e_colour = np.hypot(0.016, 0.1 * 10 ** (0.3 * (magnitude - 18.5)))

    true_age, true_colour = age[row], colour + e_colour * random.standard_normal(stars)
    mean = slow_sequence(true_age, true_colour)
    fast = random.random(stars) < fast_share(true_age, true_colour)
    span = mean - np.log10(FASTEST_DAYS)
    period = np.where(fast, mean - span * random.random(stars), mean)
    period += np.where(fast, EDGE_DEX, slow_width(mean)) * random.standard_normal(stars)

    good = random.random(stars) < 0.9  # measured share
    mem_prob = np.where(good, random.beta(4, 0.5, stars), random.beta(1.5, 1, stars))
    outlier = random.random(stars) > mem_prob
    aliased = (1 - FIELD_SHARE) / 2
    kind = random.choice(["field", "half", "double"], stars, p=[FIELD_SHARE, aliased, aliased])
    branch = np.where(outlier, kind, np.where(fast, "fast", "slow"))
    field = FIELD_LOG10_PERIOD + FIELD_DEX * random.standard_normal(stars)
    period = np.where(branch == "field", field, period)
    period += np.log10(2) * ((branch == "double").astype(float) - (branch == "half"))

    known = random.random(stars) < 0.5
    relative = np.where(known, random.lognormal(np.log(0.01), 1.1, stars), MISSING_PERIOD_ERROR)
    period += relative / np.log(10) * random.standard_normal(stars)
    return {
        "star_id": 10**15 + random.permutation(stars).astype(np.int64),
        "cluster": np.array([f"SIM{k + 1:02d}" for k in range(n_clusters)])[row],
        "age_myr": 10 ** quoted[row],
        "e_age_dex": np.full(stars, e_age_dex),
        "prot_d": 10**period,
        "e_prot_d": np.where(known, relative * 10**period, np.nan),
        "bp_rp0": colour,
        "e_bp_rp0": e_colour,
        "g0": magnitude,
        "mem_prob": mem_prob,
        "good": good.astype(np.int64),
        "true_age_myr": 10**true_age,
        "is_outlier": outlier,
        "branch": branch,
    }


def _draw_colours(n: int, modulus: float, random: np.random.Generator) -> np.ndarray:
    """Colours of dwarfs of Kroupa's (2001, MNRAS 322, 231) mass function within reach, 0.5 to 3."""
    colour = np.linspace(0.5, 3.0, 1001)
    mass = dwarf_mass(colour)
    number = np.where(mass > 0.5, 0.5 * mass**-2.3, mass**-1.3) * -dwarf_mass.derivative()(colour)
    observed_fraction = ndtr((G_LIMIT - modulus - dwarf_magnitude(colour)) / 0.3)
    cumulative = np.cumsum(number * observed_fraction)
    return np.interp(random.random(n) * cumulative[-1], cumulative, colour)


def _normal(deviation: np.ndarray, width: np.ndarray) -> np.ndarray:
    return np.exp(-0.5 * (deviation / width) ** 2) / (np.sqrt(2 * np.pi) * width)
