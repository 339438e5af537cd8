"""The peers of `benchmarks.zephyr`: FlexZBoost and PZFlow through RAIL, and a regression forest.

Each is a function `(data, seed) -> predict`, and `predict(test)` gives p(z) on `data.grid`: (n, g).
A peer is given the training table alone; nothing is tuned on the test table.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orrery.benchmarks.photoz_data import PhotozSet, fill_undetected

Array = NDArray[np.float64]
Predict = Callable[[dict[str, Array]], Array]
OBJECTS_AT_ONCE = 1000


def flexzboost(data: PhotozSet, seed: int) -> Predict:
    """FlexZBoost (Izbicki & Lee 2017; Schmidt et al. 2020) with RAIL's default settings.

    RAIL tunes its threshold and sharpening on a quarter of the training set. The seed moves that
    split; 1138 is RAIL's own.
    """
    from rail.estimation.algos.flexzboost import FlexZBoostEstimator, FlexZBoostInformer

    columns = {"bands": data.bands, "err_bands": data.errors}
    return _rail(FlexZBoostInformer, FlexZBoostEstimator, data, columns, {"seed": 1138 + seed})


def pzflow(data: PhotozSet, seed: int) -> Predict:
    """PZFlow (Crenshaw et al. 2024) with RAIL's default settings: magnitudes without errors."""
    from rail.estimation.algos.pzflow_nf import PZFlowEstimator, PZFlowInformer

    columns = {"column_names": data.bands}
    return _rail(PZFlowInformer, PZFlowEstimator, data, columns, {"seed": seed})


def forest(data: PhotozSet, seed: int) -> Predict:
    """A regression forest whose leaves give p(z) (as TPZ, Carrasco Kind & Brunner 2013).

    Features are the magnitudes, every colour and the magnitude errors. p(z) is the histogram of
    the training redshifts that share a leaf with the object, averaged over trees, smoothed by a
    Gaussian of `width` (1 + z) and raised to the power `sharpening`; these two come from the best
    log score on a fifth of the training set, the forest then grows on all of it.
    """
    features, redshift = _features(data, data.train), data.train["redshift"]
    order = np.random.default_rng(seed).permutation(len(redshift))
    held, kept = order[: len(order) // 5], order[len(order) // 5 :]
    histogram = _leaf_histograms(features[kept], redshift[kept], data.grid, seed)(features[held])
    nearest = _bin(redshift[held], data.grid)

    def log_score(width: float, sharpening: float) -> float:
        density = _sharpened(histogram, data.grid, width, sharpening)
        return float(np.log(density[np.arange(len(held)), nearest] + 1e-3).mean())

    widths = (0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03)
    powers = (0.8, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0)
    width, sharpening = max(((w, p) for w in widths for p in powers), key=lambda x: log_score(*x))
    histograms = _leaf_histograms(features, redshift, data.grid, seed)

    def predict(test: dict[str, Array]) -> Array:
        return _sharpened(histograms(_features(data, test)), data.grid, width, sharpening)

    return predict


def _rail(
    informer: Any,
    estimator: Any,
    data: PhotozSet,
    columns: dict[str, Any],
    training: dict[str, Any],
) -> Predict:
    """Train a RAIL informer; its estimator answers over the redshift range of the benchmark.

    It does so on RAIL's default of 301 redshifts, between which qp interpolates.
    """
    settings = {
        "hdf5_groupname": "",
        "output_mode": "return",  # nothing is written to disk
        "zmin": float(data.grid[0]),
        "zmax": float(data.grid[-1]),
        "ref_band": data.reference,
        "mag_limits": data.limits,
        **columns,
    }
    name = informer.name.lower()

    def table(rows: dict[str, Array], redshift: Array) -> dict[str, Array]:
        kept = {column: rows[column] for column in data.bands + data.errors}
        return {**fill_undetected(kept, data.limits), "redshift": redshift}

    stage = informer.make_stage(name=f"{name}_{data.name}", **settings, **training)
    model = stage.inform(table(data.train, data.train["redshift"]))

    def predict(test: dict[str, Array]) -> Array:
        # RAIL takes a table in memory as one chunk, and PZFlow then needs objects x grid rows.
        n = len(test[data.reference])
        pieces = [slice(start, start + OBJECTS_AT_ONCE) for start in range(0, n, OBJECTS_AT_ONCE)]
        return np.concatenate([estimate({k: v[rows] for k, v in test.items()}) for rows in pieces])

    def estimate(test: dict[str, Array]) -> Array:
        answer = estimator.make_stage(name=f"{name}_{data.name}_pz", model=model, **settings)
        # PZFlow asks for the redshift column of the test table and ignores it: it gets zeros.
        ensemble = answer.estimate(table(test, np.zeros(len(test[data.reference])))).data
        pdf = np.nan_to_num(np.asarray(ensemble.pdf(data.grid), float).clip(min=0))
        pdf[pdf.sum(axis=1) == 0] = 1.0  # no answer: a flat p(z)
        return pdf

    return predict


def _features(data: PhotozSet, rows: dict[str, Array]) -> Array:
    """Magnitudes, all their differences, and errors: (n, f)."""
    filled = fill_undetected(rows, data.limits)
    magnitude = np.column_stack([filled[band] for band in data.bands])
    first, second = np.triu_indices(len(data.bands), k=1)
    error = np.column_stack([filled[column] for column in data.errors])
    return np.column_stack([magnitude, magnitude[:, first] - magnitude[:, second], error])


def _leaf_histograms(
    features: Array, redshift: Array, grid: Array, seed: int
) -> Callable[[Array], Array]:
    """Grow a forest; return the function from features (n, f) to mean leaf histograms (n, g)."""
    from scipy.sparse import csr_matrix
    from sklearn.ensemble import RandomForestRegressor

    # Half of the features per split and leaves of three: chosen on a fifth of the training sets.
    trees = RandomForestRegressor(
        100, min_samples_leaf=3, max_features=0.5, random_state=seed, n_jobs=1
    ).fit(features, redshift)
    where = _bin(redshift, grid)
    tables = []
    for tree, leaf in zip(trees.estimators_, trees.apply(features).T, strict=True):
        count = np.bincount(leaf, minlength=tree.tree_.node_count)
        shape = (len(count), len(grid))
        tables.append(csr_matrix((1 / count[leaf], (leaf, where)), shape=shape))

    def predict(inputs: Array) -> Array:
        total = np.zeros((len(inputs), len(grid)))
        for table, leaf in zip(tables, trees.apply(inputs).T, strict=True):
            total += table[leaf].toarray()
        return total / len(tables)

    return predict


def _bin(redshift: Array, grid: Array) -> NDArray[np.intp]:
    """Index of the nearest point of an even grid: (n,)."""
    nearest = np.rint((redshift - grid[0]) / (grid[1] - grid[0])).astype(np.intp)
    return np.clip(nearest, 0, len(grid) - 1)


def _sharpened(histogram: Array, grid: Array, width: float, power: float) -> Array:
    """Smooth histograms (n, g) by a Gaussian of width (1 + z), take a power, normalise: (n, g)."""
    kernel = np.exp(-0.5 * ((grid - grid[:, None]) / (width * (1 + grid[:, None]))) ** 2)
    density = (histogram @ (kernel / np.trapezoid(kernel, grid, axis=1)[:, None])) ** power
    return density / np.trapezoid(density, grid, axis=1)[:, None]
