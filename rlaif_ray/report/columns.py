"""Columns of a run's parquet files. Whoever reads them names what is needed: prompts and replies may fill memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rlaif_ray.config import UserError

if TYPE_CHECKING:
    import pyarrow as pa


def read_columns(path: Path, names: Sequence[str]) -> pa.Table | None:
    """The named columns; None where there is no file. Raises UserError, naming it, as `require_columns` does."""
    import pyarrow.parquet as pq

    if not path.exists():
        return None
    require_columns(path, names)
    return pq.read_table(path, columns=list(names))


def require_columns(path: Path, names: Sequence[str]) -> None:
    """Raises UserError where the file is no parquet file or lacks one of the columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        found = pq.read_schema(path).names
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: is not a parquet file ({error})") from error
    for name in names:
        if name not in found:
            raise UserError(f"{path}: has no column {name!r}; it has {', '.join(found)}")


def numbers(table: pa.Table, name: str) -> NDArray[np.float64]:
    """A column of numbers (N,), NaN where there is none."""
    import pyarrow as pa

    column = table.column(name).cast(pa.float64())
    return np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.float64)
