"""Between Arrow arrays (Parquet, CSV, data frames) and numpy arrays."""

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)


def to_numpy(array: pa.Array | pa.ChunkedArray, where: str) -> np.ndarray:
    """A numpy array, masked where there are blanks; lists of one length become (rows, length).

    Text is an object array of str. `where` names the column in the ValueError for other types.
    """
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    kind = array.type
    if pa.types.is_dictionary(kind):
        return to_numpy(array.cast(kind.value_type), where)
    if pa.types.is_decimal(kind) or pa.types.is_null(kind):
        return to_numpy(array.cast(pa.float64()), where)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return np.asarray(array.fill_null("").to_numpy(zero_copy_only=False))
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        try:
            return to_numpy(array.cast(pa.large_string()), where)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{where}: bytes that are not UTF-8 text ({error})") from error
    if pa.types.is_temporal(kind):
        return np.asarray(array.to_numpy(zero_copy_only=False))
    if pa.types.is_floating(kind):
        return np.asarray(array.to_numpy(zero_copy_only=False))
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        values = array.fill_null(False if pa.types.is_boolean(kind) else 0)
        blank = array.is_null().to_numpy(zero_copy_only=False)
        numbers = values.to_numpy(zero_copy_only=False)
        return np.ma.array(numbers, mask=blank) if array.null_count else numbers
    if any(is_list(kind) for is_list in _LISTS):
        return _stack(array, where)
    raise ValueError(f"{where}: type {kind} cannot be read as an array")


def _stack(array: pa.Array, where: str) -> np.ndarray:
    """(rows, k, ...) of lists of one length k; null and empty lists are masked rows."""
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy()
    sizes = np.unique(lengths[lengths > 0]).tolist()
    if len(sizes) > 1:
        raise ValueError(
            f"{where}: its arrays have unequal lengths, {sizes[0]} and {sizes[1]}; those of a "
            "column have one length, or are blank"
        )
    size = sizes[0] if sizes else getattr(array.type, "list_size", 0)
    inner = to_numpy(array.flatten(), where)
    if (lengths == size).all():
        return inner.reshape(len(array), size, *inner.shape[1:])
    shape = (len(array), size, *inner.shape[1:])
    rows = np.ma.array(np.zeros(shape, inner.dtype), mask=np.ones(shape, bool))
    rows[lengths > 0] = inner.reshape(-1, size, *inner.shape[1:])
    return rows


def from_numpy(values: np.ndarray) -> pa.Array:
    """An Arrow array; axes after the first become fixed-size lists."""
    if values.ndim > 1:
        inner = from_numpy(values.reshape(-1, *values.shape[2:]))
        return pa.FixedSizeListArray.from_arrays(inner, values.shape[1])
    if values.dtype.kind in "UO":
        return pa.array(values, pa.string())
    return pa.array(values)


def regroup(
    batches: Iterable[pa.RecordBatch], rows: int, start: int, stop: int
) -> Iterator[pa.Table]:
    """Cut a stream of batches into tables of `rows` rows, over rows start..stop of the stream."""
    held: list[pa.RecordBatch] = []
    position = 0
    for batch in batches:
        first, last = max(start - position, 0), min(stop - position, batch.num_rows)
        position += batch.num_rows
        if last > first:
            held.append(batch.slice(first, last - first))
        while sum(b.num_rows for b in held) >= rows:
            table = pa.Table.from_batches(held)
            yield table.slice(0, rows)
            held = table.slice(rows).to_batches()
        if position >= stop:
            break
    if held:
        yield pa.Table.from_batches(held)
