"""n(z) of tomographic bins with realisations of its error, and the files that likelihoods read."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import torch
from astropy.io import fits
from torch import Tensor

from orrery.files import written_atomically
from orrery.models.layers.slices import slices
from orrery.models.layers.stack import BLANK, poisson_counts

if TYPE_CHECKING:
    from orrery.models.zephyr import Zephyr

MANY_BINS = 100  # a column of more values is no column of bins
SLICE_SIZE = 256  # objects whose densities are held at once
FITS_BLOCK = 2880  # bytes
FITS, HDF5 = (".fits", ".fit"), (".hdf5", ".h5")


@dataclass(frozen=True)
class TomographicNz:
    """n(z) of tomographic bins, each of integral 1, and realisations of its error.

    A realisation resamples the objects and takes one network of the ensemble, which was trained on
    other rows than the next: it holds the noise of the sample, and what the training set leaves
    open. It does not hold a training set that was selected otherwise than the sample.
    """

    edges: np.ndarray  # (n + 1,) redshifts, of the cells
    bins: list[str]  # names, in the order of the arrays
    density: np.ndarray  # (bins, n)
    realisations: np.ndarray  # (realisations, bins, n)
    n_objects: np.ndarray  # (bins,)
    n_effective: np.ndarray  # (bins,): (sum w)^2 / sum w^2 of the weights

    @property
    def z(self) -> np.ndarray:
        """Middles of the cells, (n,)."""
        return 0.5 * (self.edges[1:] + self.edges[:-1])

    @property
    def mean(self) -> np.ndarray:
        """Mean redshift of each bin, (bins,)."""
        return self.density @ self.z * (self.edges[1] - self.edges[0])

    @property
    def mean_std(self) -> np.ndarray:
        """Its standard deviation over the realisations, (bins,): a prior on the shift of a bin."""
        return (self.realisations @ self.z * (self.edges[1] - self.edges[0])).std(0)

    def write(self, path: str | Path, name: str = "source") -> None:
        """Write a file that downstream codes read, by its ending.

        ``.fits``: an extension ``nz_<name>`` as in the "2pt" files of CosmoSIS and of the Dark
        Energy Survey (NZDATA = T; Z_LOW, Z_MID, Z_HIGH, BIN1...), then ``nz_<name>_realisation_0``
        and so on, which its modules sample. ``.hdf5``: two ensembles of qp as RAIL's summarizers
        write them: ``qp.read_dict(path)`` gives ``single_NZ``, a row per bin, and ``realizations``,
        a row per bin and realisation, with ``bin_idx`` and ``i_realization`` in ``ancil``.
        """
        path = Path(path)
        if path.suffix.lower() in FITS:
            self._write_fits(path, name)
        elif path.suffix.lower() in HDF5:
            self._write_qp(path)
        else:
            raise ValueError(
                f"{path}: n(z) is written as {', '.join((*FITS, *HDF5))}, by the file's ending"
            )

    def _write_fits(self, path: Path, name: str) -> None:
        # one header serves all: astropy takes 50 ms per table
        header = self._extension(name).header
        densities = {f"nz_{name}": self.density}
        densities |= {f"nz_{name}_realisation_{i}": n for i, n in enumerate(self.realisations)}
        with written_atomically(path) as part, part.open("wb") as file:
            file.write(fits.PrimaryHDU().header.tostring().encode())
            for header["EXTNAME"], density in densities.items():
                cells = np.column_stack([self.edges[:-1], self.z, self.edges[1:], *density])
                content = cells.astype(">f8").tobytes()
                file.write(header.tostring().encode())
                file.write(content + bytes(-len(content) % FITS_BLOCK))

    def _extension(self, name: str) -> fits.BinTableHDU:
        columns = ["Z_LOW", "Z_MID", "Z_HIGH", *(f"BIN{i + 1}" for i in range(len(self.bins)))]
        empty = np.zeros(len(self.z), [(column, ">f8") for column in columns])
        table = fits.BinTableHDU(empty, name=name)
        table.header["NZDATA"] = (True, "n(z) of tomographic bins")
        table.header["NBIN"], table.header["NZ"] = len(self.bins), len(self.z)
        for i, label in enumerate(self.bins):
            table.header[f"NAME_{i + 1}"] = (label, "name of the bin")
            table.header[f"NOBJ_{i + 1}"] = (int(self.n_objects[i]), "objects")
            table.header[f"NEFF_{i + 1}"] = (float(self.n_effective[i]), "effective objects")
        return table

    def _write_qp(self, path: Path) -> None:
        n, n_bins = self.realisations.shape[:2]
        index = np.arange(n_bins)
        single = {"bin_idx": index, "n_objects": self.n_objects, "n_effective": self.n_effective}
        drawn = {"bin_idx": np.repeat(index, n), "i_realization": np.tile(np.arange(n), n_bins)}
        rows = self.realisations.swapaxes(0, 1).reshape(n * n_bins, -1)
        with written_atomically(path) as part, h5py.File(part, "w") as file:
            ensembles = {"single_NZ": (self.density, single), "realizations": (rows, drawn)}
            for name, (values, ancil) in ensembles.items():
                group = file.create_group(name)
                group["meta/pdf_name"] = np.array([b"interp"])
                group["meta/pdf_version"] = np.array([0])
                group["meta/xvals"] = self.z[None]
                group["data/yvals"] = values
                for key, column in ancil.items():
                    group[f"ancil/{key}"] = column


def tomographic_nz(
    model: "Zephyr",
    catalogue: Any,
    bins: Sequence[float] | None,
    by: str,
    weight: str | None,
    realisations: int,
    seed: int,
    data: Mapping[str, Any],
) -> TomographicNz:
    """See `Zephyr.nz`."""
    if bins is not None and (len(bins) < 2 or np.any(np.diff(bins) <= 0)):
        raise ValueError(f"bins={list(bins)}; expected two or more rising edges of '{by}'")
    if realisations < 0:
        raise ValueError(f"realisations={realisations}; expected 0 or more")
    stack = BinnedStack(model, realisations, seed)
    with torch.inference_mode():
        for batch, values in _batches(model, catalogue, by, weight, data):
            labels = _labels(values, bins)
            start = 0
            for part in slices(batch, SLICE_SIZE):
                stop = start + len(part["row"])
                stack.add(labels[start:stop], part)
                start = stop
    names = sorted(stack.sums, key=_by_number)
    if bins is not None:
        names = [f"{low:g} to {high:g}" for low, high in pairwise(bins)]
    if empty := [name for name in names if not stack.sums.get(name, torch.zeros(1))[0].any()]:
        raise ValueError(f"no object of any weight has {by} in {', '.join(empty)}")
    if not names:
        raise ValueError(f"no object has a bin: column '{by}' is blank in every row")
    step = float(model.edges[1] - model.edges[0])
    totals = torch.stack([stack.sums[name] for name in names], 1).numpy()
    # a sample of a small bin may be empty: it says what the bin itself says
    totals = np.where(totals.any(-1, keepdims=True), totals, totals[:1])
    normed = totals / (totals.sum(-1, keepdims=True) * step)
    count, weights, squares = np.array([stack.of_weights[name] for name in names]).T
    edges = model.edges.cpu().double().numpy()
    return TomographicNz(
        edges, names, normed[0], normed[1:], count.astype(int), weights**2 / squares
    )


class BinnedStack:
    """Sums of p(z) by bin, and of its realisations, in constant memory.

    Realisation r counts each object a Poisson(1) number of times (Chamandy et al. 2012), and takes
    the p(z) of network r modulo their number, recalibrated as that of the ensemble: the mean of
    the networks is the p(z) that is written.
    """

    def __init__(self, model: "Zephyr", realisations: int, seed: int) -> None:
        self.model, self.realisations, self.seed = model, realisations, seed
        self.sums: dict[str, Tensor] = {}  # (1 + realisations, n_grid), float64
        self.of_weights: dict[str, np.ndarray] = {}  # rows, sum of weights, of their squares

    def add(self, labels: np.ndarray, batch: Mapping[str, Tensor]) -> None:
        """``labels``: (batch,) names of bins; "" is none."""
        weight = batch.get("weight", torch.ones(len(labels))).cpu().double()
        of_networks = self.model.member_densities(batch).cpu().double()
        counts = poisson_counts(batch["row"].cpu(), self.realisations, self.seed)
        for name in set(labels.tolist()) - {""}:
            mine = torch.from_numpy(labels == name)
            w, p = weight[mine], of_networks[:, mine]
            drawn = (counts[mine] * w[:, None]).T  # (realisations, objects)
            total = torch.empty(1 + self.realisations, p.shape[-1], dtype=torch.float64)
            total[0] = w @ p.mean(0)
            for i, network in enumerate(p):
                total[1 + i :: len(p)] = drawn[i :: len(p)] @ network
            sums = np.array([int((w > 0).sum()), float(w.sum()), float(w.square().sum())])
            self.sums[name] = self.sums.get(name, 0) + total
            self.of_weights[name] = self.of_weights.get(name, 0) + sums
        if len(self.sums) > MANY_BINS:
            raise ValueError(
                f"there are more than {MANY_BINS} bins, such as {', '.join([*self.sums][:5])}; "
                f"give edges: bins=[0.2,0.5,0.8]"
            )


def _batches(
    model: "Zephyr", catalogue: Any, by: str, weight: str | None, settings: Mapping[str, Any]
) -> Iterator[tuple[Any, np.ndarray]]:
    """Batches of the catalogue, and the column ``by`` of each: predicted, or of the catalogue."""
    from orrery.runs import data_for

    is_file = isinstance(catalogue, str | Path)
    asked: dict[str, Any] = {
        "group": None, "group_by": None, **settings,
        "path": str(catalogue) if is_file else None, "keep": [] if by in model.columns else [by],
    }  # fmt: skip
    if weight is not None:
        asked["columns"] = {**asked.get("columns", {}), "weight": weight}
    data = data_for(model.record, asked)
    data.split = "all"
    if not is_file:
        data.table = catalogue
    for batch in data.prediction_batches():
        if by in model.columns:
            values = model.predict_step(batch)[by].cpu().numpy()
        else:
            values = np.ma.asarray(batch.carried.columns[by])
        if values.ndim > 1:
            raise ValueError(f"by={by}: bins need one value per object, and it has {values.shape}")
        yield batch, values


def _labels(values: np.ndarray, bins: Sequence[float] | None) -> np.ndarray:
    """The name of each object's bin, (batch,); "" is none."""
    if bins is None:
        names = np.char.strip(np.ma.filled(np.ma.asarray(values).astype(str), ""))
        return np.where(np.isin(names, BLANK), "", names)
    known: np.ndarray = np.ma.filled(np.ma.asarray(values, float), np.nan)
    names = np.array([f"{low:g} to {high:g}" for low, high in pairwise(bins)] + [""])
    index = np.searchsorted(bins, known, side="right") - 1  # NaN is behind the last edge
    return names[np.where((index >= 0) & (index < len(names) - 1), index, -1)]


def _by_number(name: str) -> tuple[float, str]:
    try:
        return float(name), name
    except ValueError:
        return np.inf, name
