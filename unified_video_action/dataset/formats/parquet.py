"""Columns and row groups of parquet files; errors name file, column and row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from unified_video_action.dataset.store import StoreError
from unified_video_action.files import unreadable
from unified_video_action.messages import few

T = TypeVar("T")


def read_columns(path: Path, columns: Sequence[str] | None) -> pa.Table:
    """Columns of a parquet file (None: all). Raises FileNotFoundError, or StoreError naming file and column."""

    def read(file: pq.ParquetFile) -> pa.Table:
        missing = [name for name in columns or () if name not in file.schema_arrow.names]
        if missing:
            raise StoreError(f"{path}: has no column {few(missing)}; it has {few(file.schema_arrow.names)}")
        return file.read(columns=columns)

    return _of(path, read)


def numbers_of(column: pa.ChunkedArray, path: Path, name: str) -> np.ndarray:
    """A column of numbers or of equally long lists of numbers: (rows, d)."""
    array = column.combine_chunks()
    if isinstance(array.type, pa.BaseExtensionType):
        array = array.storage
    lists = (
        pa.types.is_list(array.type) or pa.types.is_fixed_size_list(array.type) or pa.types.is_large_list(array.type)
    )
    rows, flat = len(array), array.flatten() if lists else array
    try:
        values = flat.to_numpy(zero_copy_only=False)
    except pa.ArrowException as error:
        raise StoreError(f"{path}: the column {name} is {array.type}, expected numbers or lists of numbers") from error
    missing = array.null_count + flat.null_count
    unequal = lists and pc.count_distinct(pc.list_value_length(array)).as_py() > 1
    if missing or unequal or values.dtype.kind not in "fiub":
        raise StoreError(
            f"{path}: the column {name} is {array.type} with {missing} missing values; expected numbers, equally many "
            "in every row"
        )
    values = values.reshape(rows, len(values) // max(rows, 1))
    finite = np.isfinite(values).all(axis=1)
    if not finite.all():
        raise StoreError(f"{path}: the column {name} holds something that is not a number in row {np.argmin(finite)}")
    return values


def row_groups(path: Path) -> np.ndarray:
    """First row of each row group of a parquet file, and the number of rows."""
    return _of(
        path, lambda file: np.cumsum([0, *(file.metadata.row_group(n).num_rows for n in range(file.num_row_groups))])
    )


def read_group(path: Path, name: str, group: int) -> pa.Array:
    return _of(path, lambda file: file.read_row_group(group, columns=[name])[name].combine_chunks())


def _of(path: Path, look: Callable[[pq.ParquetFile], T]) -> T:
    """What `look` finds in a file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with pq.ParquetFile(path) as file:
            return look(file)
    except (pa.ArrowException, OSError) as error:
        raise StoreError(unreadable(path, "parquet file", error)) from error
