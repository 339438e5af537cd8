"""Search by example: the stars of a catalogue that are most like one, and those least explained.

Both read the catalogue once, a chunk at a time, and hold no more than the best rows.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from orrery.models.base import Batch
from orrery.models.scatter_vae.inference import LatentPosterior, log_tail
from orrery.models.scatter_vae.outputs import SAMPLED, misfit
from orrery.physics.gaia_xp import xp, xp_mock

if TYPE_CHECKING:
    from astropy.table import Table

    from orrery.models.scatter_vae import ScatterVAE

ALIKE = 0.3  # distance at which stars are alike, in units of the spread of the training set
ROUNDING = 1e-6  # of a variance
LINES = 3  # that are named for an outlier
MIN_VARIANCE = 0.01  # of a line's signature, left by the latent numbers and the lines before it
Arrays = dict[str, np.ndarray]
Columns = Callable[[Batch], dict[str, Tensor]]  # of the stars of a batch


class Described(NamedTuple):
    """A column of a result."""

    values: np.ndarray
    unit: str
    meaning: str


# --- the stars most like one ----------------------------------------------------------------------


def similar(
    model: "ScatterVAE", spectrum: Any, catalogue: Any, n: int = 10, **data: Any
) -> "Table":
    """The ``n`` stars of a catalogue whose latent numbers z are nearest to those of a spectrum.

    The distance of two posteriors of z, of means m, m' and covariances C, C', is by the overlap of
    one with the other, blurred by ``ALIKE`` h times the spread of the training set,

        d^2 = (m - m')^T V^-1 (m - m') + ln det V / det(h^2 S),  V = h^2 S + C + C',

    with S the covariance of z in the training set, whose normal distribution is the prior of both.
    Between spectra of little noise it is their distance in units of h; two stars of which all is
    known have 0 if they are the same. A star of which nothing is known has the likelihood of one at
    random, and is before most, for most are known to be unlike: see ``p_same``. The amplitude of
    spectra is not compared.

    Args:
        model: any `ScatterVAE`.
        spectrum: a table of one row, as ``predict`` takes it, or a row of an astropy Table.
        catalogue: a path, or a table.
        n: how many stars.
        data: settings of the data, such as ``columns={"bp_coefficients": "BP"}`` or
            ``skip_bad=True``; of the catalogue alone ``keep=["source_id"]``.

    Returns:
        A Table, the nearest first: ``row`` in the catalogue, the columns of ``keep``, and

        - ``distance``: d
        - ``share``: of the catalogue's stars, those that are no farther
        - ``p_same``: probability of means farther apart if both had the same latent numbers
        - ``p_value``: of the misfit; where it is small the model does not describe the star

    Raises:
        ValueError: for spectra that cannot be read, with their row.
    """
    population = Population.of(model)
    alike = ALIKE**2 * population.covariance
    mean, covariance = _example(model, spectrum, data, population)

    def compare(batch: Batch) -> dict[str, Tensor]:
        posterior = model.posterior(batch)
        means, covariances = population.posterior(posterior, model.latent)
        apart, both = means - mean, covariances + covariance
        blurred = alike + both
        overlap = _squares(apart, blurred) + torch.logdet(blurred) - torch.logdet(alike)
        # the covariance of apart if both have the same z
        shared = covariances @ population.precision @ covariance
        squares = _squares(apart, both - shared - shared.mT + ROUNDING * population.covariance)
        return {
            "distance": overlap.clamp_min(0).sqrt(),
            "p_same": log_tail(squares, torch.full_like(squares, model.latent)).exp(),
            "p_value": _misfit(model, posterior, batch)["p_value"],
        }

    found = _least(model, catalogue, data, n, "distance", compare)
    share = np.arange(1, len(found.rows["row"]) + 1) / found.searched
    meanings = {
        "distance": "of the posteriors of the latent numbers, 0 for the same star without noise",
        "share": "of the catalogue's stars, those that are no farther",
        "p_same": "probability of means farther apart if the latent numbers are the same",
        "p_value": "probability of a larger chi^2 for a star of the model",
    }
    values = {**found.rows, "share": share}
    return _table(found, {k: Described(values[k], "", text) for k, text in meanings.items()})


def _squares(apart: Tensor, covariance: Tensor) -> Tensor:
    """Squared distances (batch,) of ``apart`` (batch, k) in units of ``covariance``."""
    return (apart * torch.linalg.solve(covariance, apart[..., None])[..., 0]).sum(1)


class Population(NamedTuple):
    """A normal distribution of the latent numbers of the training set, float64."""

    mean: Tensor  # (latent,)
    covariance: Tensor  # (latent, latent)
    precision: Tensor  # its inverse

    @classmethod
    def of(cls, model: "ScatterVAE") -> "Population":
        z = model.population.double()
        covariance = torch.atleast_2d(torch.cov(z.T))
        # a collapsed number has none
        covariance = covariance + ROUNDING * torch.eye(len(covariance)).to(covariance)
        return cls(z.mean(0), covariance, torch.linalg.inv(covariance))

    def posterior(self, posterior: LatentPosterior, k: int) -> tuple[Tensor, Tensor]:
        """Mean (batch, k) and covariance of z, with this prior in place of the standard normal."""
        one = torch.eye(k).to(self.mean)
        precision = torch.linalg.inv(posterior.covariance[:, :k, :k].double())
        weighted = (precision @ posterior.mean[:, :k, None].double())[..., 0]
        covariance = torch.linalg.inv(precision - one + self.precision)
        mean = covariance @ (weighted + self.precision @ self.mean)[..., None]
        return mean[..., 0], covariance


def _example(
    model: "ScatterVAE", spectrum: Any, settings: Mapping[str, Any], population: Population
) -> tuple[Tensor, Tensor]:
    """Mean (latent,) and covariance of z of the one row of a table."""
    from astropy.table import Row, Table

    table = Table(spectrum) if isinstance(spectrum, Row) else spectrum
    data = _data(model, table, {**settings, "keep": []})
    try:
        if (rows := data.n_predicted()) != 1:
            raise ValueError(f"{rows:,} rows; expected one, such as table[5:6]")
        (batch,) = data.prediction_batches()
    except ValueError as error:
        raise ValueError(f"the spectrum to compare with: {error}") from error
    with torch.inference_mode():
        posterior = model.posterior({k: v.to(model.device) for k, v in batch.items()})
        mean, covariance = population.posterior(posterior, model.latent)
    return mean[0], covariance[0]


# --- the stars least explained --------------------------------------------------------------------


def outliers(model: "ScatterVAE", catalogue: Any, n: int = 10, **data: Any) -> "Table":
    """The ``n`` stars of a catalogue that the model explains least, and where they differ from it.

    A star's reasons are the narrow lines, in emission or absorption, that improve its fit most, one
    after another, latent numbers and amplitude being fitted again with each. A broad misfit is
    described by lines, too.

    Args:
        model: any `ScatterVAE`.
        catalogue: a path, or a table.
        n: how many stars.
        data: settings of the data, as in `similar`.

    Returns:
        A Table, the worst first: ``row`` in the catalogue, the columns of ``keep``, and

        - ``score``: -ln of the probability of a larger chi^2 for a star of the model
        - ``chi2``, per degree of freedom, and ``dof``
        - ``residual_1``, ``residual_2``, ``residual_3``: height of the line over its error,
          positive in emission; 0 where there is none
        - ``low_1``, ``high_1``...: the range, nm, where a line would have at least half this
          ratio. Where the functions of the coefficients are not known (55 + 55 of DR3 are)
          ``coefficient_1``... in their place, such as "bp_12"

    Raises:
        ValueError: for spectra that cannot be read, with their row.
    """

    def compute(batch: Batch) -> dict[str, Tensor]:
        found = _misfit(model, model.posterior(batch), batch)
        return {**found, "negative_score": -found["score"]}

    def reasons(batch: Batch) -> dict[str, Tensor]:
        parts = lines(model, batch)
        return {f"{name}_{i + 1}": v for i, part in enumerate(parts) for name, v in part.items()}

    found = _least(model, catalogue, data, n, "negative_score", compute, reasons)
    places, wavelengths = _places(model)
    columns = {
        "score": Described(found.rows["score"], "", "-ln P(larger chi^2) for a star of the model"),
        "chi2": Described(found.rows["chi2"], "", "chi^2 per degree of freedom"),
        "dof": Described(found.rows["dof"], "", "degrees of freedom"),
    }
    for i in range(1, LINES + 1):
        text = "height of a line over its error, positive in emission"
        columns[f"residual_{i}"] = Described(found.rows[f"residual_{i}"], "", text)
        low, high = (found.rows[f"{end}_{i}"] for end in ("low", "high"))
        if wavelengths:
            columns[f"low_{i}"] = Described(places[low], "nm", "from this wavelength")
            columns[f"high_{i}"] = Described(places[high], "nm", "to this wavelength")
        else:
            peak = places[found.rows[f"peak_{i}"]]
            columns[f"coefficient_{i}"] = Described(peak, "", "that differs")
    return _table(found, columns)


def lines(model: "ScatterVAE", batch: Batch) -> list[dict[str, Tensor]]:
    """The `LINES` strongest lines of each star, in units of their errors; see `outliers`.

    Of each ``residual`` (batch,), and ``low``, ``high`` and ``peak`` (batch,), indices of the
    wavelengths of `_places`.

    Whitened residuals at the maximum have the covariance 1 - J C J^T, J the whitened derivatives
    by z. With its root both residuals and the signatures of lines become those of white noise.
    """
    posterior = model.posterior(batch)
    white = model.whitening(posterior.mean, batch)
    _, error = model.standardised(batch)
    j = white(posterior.jacobian / error[..., None]).double()
    one = torch.eye(j.shape[1], dtype=j.dtype, device=j.device)
    fitted = torch.linalg.inv(torch.eye(j.shape[2]).to(j) + j.mT @ j)
    root = torch.linalg.cholesky(one - j @ fitted @ j.mT + 1e-6 * one)
    signatures = _signatures(model).to(error)
    unit = batch["errors"] / batch["errors"].mean(1, keepdim=True)  # a line has any height
    t = root.mT @ white(signatures / unit[..., None]).double()
    v = torch.linalg.solve_triangular(root, posterior.residual.double()[..., None], upper=False)
    least = MIN_VARIANCE * t.square().sum(1)
    found = []
    for _ in range(LINES):
        norm = t.square().sum(1)
        ratio = (t.mT @ v)[..., 0] / norm.sqrt()
        ratio = torch.where(norm > least, ratio, 0.0)
        peak = ratio.abs().argmax(1)
        row = torch.arange(len(peak), device=peak.device)
        height = ratio[row, peak]
        low, high = _range(ratio, peak)
        found.append({"residual": height.float(), "low": low, "high": high, "peak": peak})
        line = t[row, :, peak] / norm[row, peak, None].sqrt().clamp_min(1e-30)
        line = torch.where((height != 0)[:, None], line, 0.0)[..., None]
        v = v - line * (line.mT @ v)
        t = t - line * (line.mT @ t)
    return found


def _range(ratio: Tensor, peak: Tensor) -> tuple[Tensor, Tensor]:
    """First and last index about ``peak`` (batch,) of half the ratio (batch, k) or more."""
    height = ratio.gather(1, peak[:, None])
    inside = ratio * height.sign() >= 0.5 * height.abs()
    index = torch.arange(ratio.shape[1], device=ratio.device)
    below = torch.where(~inside & (index < peak[:, None]), index, -1).max(1).values + 1
    above = torch.where(~inside & (index > peak[:, None]), index, ratio.shape[1]).min(1).values - 1
    return below, above


def _signatures(model: "ScatterVAE") -> Tensor:
    """A line at each of the places of `_places`, as coefficients, (n, places)."""
    return torch.eye(len(model.center)) if model.spectra is None else _lines_of_dr3()


@cache
def _lines_of_dr3() -> Tensor:
    wavelength = xp_mock.WAVELENGTH
    chosen = np.isin(wavelength, xp.SAMPLED)
    matrix = np.concatenate([xp.projection(band, wavelength)[:, chosen] for band in xp.BANDS])
    return torch.from_numpy(matrix / np.abs(matrix).max()).float()


def _places(model: "ScatterVAE") -> tuple[np.ndarray, bool]:
    """Wavelengths, nm, or names of coefficients, and whether they are wavelengths."""
    if model.spectra is not None:
        return xp.SAMPLED, True
    if wavelengths := model.record.get("found_out", {}).get("wavelengths"):
        return np.asarray(wavelengths, float), True
    return np.array([f"{b}_{i}" for b, n in model.bands.items() for i in range(n)]), False


def _misfit(model: "ScatterVAE", posterior: LatentPosterior, batch: Batch) -> dict[str, Tensor]:
    """chi^2 per degree of freedom, these, ``p_value`` of `outputs` and its -ln, (batch,).

    The latter also of sampled spectra, for which it ranks them and is no probability.
    """
    squares, dof, log_p = misfit(posterior, model.whitened_mask(batch["observed"]))
    p_value = torch.full_like(log_p, torch.nan) if SAMPLED in model.bands else log_p.exp()
    return {"chi2": squares / dof, "dof": dof, "p_value": p_value, "score": -log_p}


# --- what they share ------------------------------------------------------------------------------


class _Found(NamedTuple):
    """Rows of a catalogue that were found, how many were searched, and names of carried columns."""

    rows: Arrays
    searched: int
    carried: Sequence[str]


def _least(
    model: "ScatterVAE",
    catalogue: Any,
    settings: Mapping[str, Any],
    n: int,
    key: str,
    compute: Columns,
    more: Columns | None = None,
) -> _Found:
    """The ``n`` rows of the least ``key`` among the columns of ``compute``, the least first.

    ``more``: columns that are computed of those rows alone. Of equal rows the first is taken.
    """
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"n is {n!r}; expected the number of stars to find, 1 or more")
    data = _data(model, catalogue, settings)
    best: Arrays = {}
    searched = 0
    for batch in data.prediction_batches():
        searched += len(batch["row"])
        stars = {name: values.to(model.device) for name, values in batch.items()}
        with torch.inference_mode():
            found = model.by_star(compute, stars)
            order = found[key].argsort(stable=True)[:n]
            if len(best.get(key, ())) == n:  # only those that take the place of another
                order = order[found[key][order] < best[key][-1]]
            if not len(order):
                continue
            found = {"row": stars["row"], **found}
            found = {name: values[order] for name, values in found.items()}
            if more is not None:
                found |= model.by_star(more, {k: v[order] for k, v in stars.items()})
        rows = {name: values.cpu().numpy() for name, values in found.items()}
        if taken := [name for name in batch.carried.columns if name in rows]:
            raise ValueError(
                f"keep: {', '.join(taken)}: a column of the result has this name; rename it"
            )
        chosen = order.cpu().numpy()
        rows = {name: np.asarray(v)[chosen] for name, v in batch.carried.columns.items()} | rows
        if best:
            rows = {name: np.concatenate([best[name], rows[name]]) for name in rows}
        first = np.argsort(rows[key], kind="stable")[:n]
        best = {name: values[first] for name, values in rows.items()}
    return _Found(best, searched, data.keep)


def _data(model: "ScatterVAE", catalogue: Any, settings: Mapping[str, Any]) -> Any:
    """The data module of a path or a table, with the settings of the checkpoint's own."""
    from orrery.runs import data_for

    if isinstance(catalogue, str | Path):
        return data_for(model.record, {"path": str(catalogue), **settings})
    of_a_file: dict[str, Any] = {"path": None, "group": None, "keep": [], "group_by": None}
    data = data_for(model.record, {**of_a_file, **settings})
    data.table, data.split = catalogue, "all"
    return data


def _table(found: _Found, columns: Mapping[str, Described]) -> "Table":
    from astropy.table import Table

    table = Table({name: found.rows[name] for name in ("row", *found.carried)})
    table["row"].description = "number of the row in the catalogue, from 0"
    for name, column in columns.items():
        table[name] = column.values
        table[name].unit = column.unit or None
        table[name].description = column.meaning
    table.meta["searched"] = found.searched
    return table
