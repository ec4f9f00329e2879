"""Columns and row groups of parquet files; errors name file, column and row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from unified_video_action.dataset.store import StoreError
from unified_video_action.files import unreadable
from unified_video_action.messages import few


def read_columns(path: Path, columns: Sequence[str] | None) -> pa.Table:
    """Columns of a parquet file (None: all). Raises FileNotFoundError, or StoreError naming file and column."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with pq.ParquetFile(path) as file:
            missing = [name for name in columns or () if name not in file.schema_arrow.names]
            if missing:
                raise StoreError(f"{path}: has no column {few(missing)}; it has {few(file.schema_arrow.names)}")
            return file.read(columns=None if columns is None else list(columns))
    except (pa.ArrowException, OSError) as error:
        raise StoreError(unreadable(path, "parquet file", error)) from error


def numbers_of(column: pa.ChunkedArray, path: Path, name: str) -> np.ndarray:
    """A column of numbers or of equally long lists of numbers: (rows, d)."""
    array = column.combine_chunks()
    rows, flat = len(array), array
    if isinstance(array.type, pa.BaseExtensionType):
        array = flat = array.storage
    if pa.types.is_list(array.type) or pa.types.is_fixed_size_list(array.type) or pa.types.is_large_list(array.type):
        flat = array.flatten()
    try:
        values = flat.to_numpy(zero_copy_only=False)
    except pa.ArrowException as error:
        raise StoreError(f"{path}: the column {name} is {array.type}, expected numbers or lists of numbers") from error
    if array.null_count or flat.null_count or values.dtype.kind not in "fiub" or len(values) % max(rows, 1):
        raise StoreError(
            f"{path}: the column {name} is {array.type} with {array.null_count + flat.null_count} missing values; "
            "expected numbers, equally many in every row"
        )
    if not np.isfinite(values).all():
        row = int(np.argmin(np.isfinite(values.reshape(rows, -1)).all(axis=1)))
        raise StoreError(f"{path}: the column {name} holds something that is not a number in row {row}")
    return values.reshape(rows, -1)


def row_groups(path: Path) -> np.ndarray:
    """First row of each row group of a parquet file, and the number of rows."""
    with pq.ParquetFile(path) as file:
        return np.cumsum([0, *(file.metadata.row_group(group).num_rows for group in range(file.num_row_groups))])


def read_group(path: Path, name: str, group: int) -> pa.Array:
    try:
        with pq.ParquetFile(path) as file:
            return file.read_row_group(group, columns=[name])[name].combine_chunks()
    except (pa.ArrowException, OSError) as error:
        raise StoreError(unreadable(path, "parquet file", error)) from error
