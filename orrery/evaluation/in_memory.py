"""Predictions of a table in memory: `Component.predict`."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from astropy.table import Table, vstack

from orrery.evaluation import flagged
from orrery.evaluation.predictions import SCALARS, joined, labelled, to_numpy
from orrery.models.base import Component, Output
from orrery.tables.arrow import from_numpy


def predict_table(
    model: Component, table: Any, outputs: Sequence[str] | str | None, asked: Mapping[str, Any]
) -> Table:
    """See `Component.predict`; ``asked``: settings of the data."""
    names = _chosen(model, outputs)
    data = _data_of_table(model, table, asked, names)
    parts = _predicted(model, data, names)
    rows = joined([{name: [v] for name, v in rows.items()} for _, _, rows in parts])
    predictions = vstack(
        [Table({**carried, **labelled(r, model.columns)}) for _, carried, r in parts],
        metadata_conflicts="silent",
    )
    for name, output in model.columns.items():
        if name in predictions.colnames:
            predictions[name].unit = output.unit or None
            predictions[name].description = output.text
    predictions.meta.update({k: c.values.squeeze() for k, c in model.constants.items()})
    predictions.meta |= _flags_and_remarks(model, rows, len(predictions))
    return predictions


def predict_frame(
    model: Component, table: Any, outputs: Sequence[str] | str | None, asked: Mapping[str, Any]
) -> Any:
    """The same of a DataFrame; arrays are lists of Arrow, and metadata are in ``attrs``.

    ``attrs`` holds the units and descriptions of the columns, and the constant arrays as lists.
    """
    import pandas as pd

    names = _chosen(model, outputs)
    data = _data_of_table(model, table, asked, names)
    if unknown := [name for name in data.keep if name not in table.columns]:
        raise ValueError(f"keep: there is no column {', '.join(map(repr, unknown))} in the table")
    parts = _predicted(model, data, names) if len(table) else []
    rows = joined([{name: [v] for name, v in rows.items()} for _, _, rows in parts])
    number = np.concatenate([np.zeros(0, int), *(row for row, _, _ in parts)])
    frame = pd.DataFrame(index=table.index[number])
    columns = {name: table[name].iloc[number] for name in data.keep}
    columns |= {
        name: pd.Series(_pandas_column(model.columns[name], rows.get(name), len(number)),
                        index=frame.index)
        for name in names
    }  # fmt: skip
    frame = frame.assign(**columns)
    frame.attrs = {
        "units": {name: model.columns[name].unit for name in names},
        "descriptions": {name: model.columns[name].text for name in names},
        **{name: c.values.squeeze().astype("U" if c.values.dtype.kind == "S" else c.values.dtype)
           .tolist() for name, c in model.constants.items()},
        **(_flags_and_remarks(model, rows, len(number)) if rows else {}),
    }  # fmt: skip
    return frame


def _pandas_column(output: Output, values: np.ndarray | None, n: int) -> Any:
    """A column of one type, whatever the rows; blanks where there are no ``values``."""
    import pandas as pd

    if output.labels:
        labels = np.array([*output.labels, ""])
        texts = np.full(n, "") if values is None else labels[values]
        return pd.arrays.ArrowExtensionArray(pa.array(texts, pa.string()))
    kind = np.dtype("int32" if output.bits else output.dtype)
    if output.axes:
        lists = pa.from_numpy_dtype(kind)
        for _ in output.axes:
            lists = pa.list_(lists)
        cells = pa.nulls(n, lists) if values is None else from_numpy(values).cast(lists)
        return pd.arrays.ArrowExtensionArray(cells)
    blank = np.nan if kind.kind == "f" else 0
    return np.full(n, blank, kind) if values is None else values.astype(kind)


def _chosen(model: Component, outputs: Sequence[str] | str | None) -> list[str]:
    """Names of the predicted columns to return."""
    known = model.columns
    if outputs is None:
        return list(known)
    if outputs == SCALARS:
        return [name for name, output in known.items() if not output.axes]
    names = [outputs] if isinstance(outputs, str) else list(outputs)
    if unknown := [name for name in names if name not in known]:
        raise ValueError(
            f"outputs: there is no {', '.join(map(repr, unknown))}; there are {list(known)}"
        )
    return names


def _data_of_table(
    model: Component, table: Any, asked: Mapping[str, Any], names: Sequence[str]
) -> Any:
    from orrery.runs import data_for

    of_a_file: dict[str, Any] = {"path": None, "group": None, "keep": [], "group_by": None}
    data = data_for(model.record, {**of_a_file, **asked})
    data.table, data.split = table, "all"
    if twice := [name for name in data.keep if name in names]:
        raise ValueError(f"keep: {', '.join(twice)}: predictions have this name; rename it")
    return data


def _predicted(
    model: Component, data: Any, names: Sequence[str]
) -> list[tuple[np.ndarray, Mapping[str, np.ndarray], dict[str, np.ndarray]]]:
    """(row numbers, carried columns, predictions) of each batch."""
    parts = []
    try:
        with torch.inference_mode():
            for batch in data.prediction_batches():
                number, carried = batch["row"].numpy(), batch.carried.columns
                rows = to_numpy(model.predict_step(batch))
                parts.append((number, carried, {n: rows[n] for n in names if n in rows}))
    except ValueError as error:
        if "data." not in str(error):
            raise
        raise ValueError(
            f"{error}\nFrom Python, data.<setting> is an argument of predict: data.keep=[a] is "
            f"keep=['a'], and data.columns.a=b is columns={{'a': 'b'}}"
        ) from error
    return parts


def _flags_and_remarks(model: Component, rows: Mapping[str, np.ndarray], n: int) -> dict[str, Any]:
    """Shares of flags and remarks on all ``n`` rows; each remark is also a warning."""
    found = flagged.shares(model.columns, rows)
    remarks = flagged.remarks(model.columns, found, n, model.record["metrics"])
    if flagged.unanswered(model.columns, rows):
        remarks.insert(0, "no row has a prediction: is each column the right one?")
    for remark in remarks:
        warnings.warn(remark, stacklevel=4)
    return {"flags": flagged.summary(model.columns, found), "remarks": remarks}
