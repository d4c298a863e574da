"""What a library's function returned, out of the table as which it travelled: the other half of the server's encoder."""

from __future__ import annotations

import json
from typing import Any, Final

import pyarrow as pa

from fletching_schemas.errors import Error
from fletching_schemas.tagged import from_tagged

FRAME_KEY: Final = b"fletching.frame"
FRAME_FORMAT: Final = 1


def decode(table: pa.Table) -> Any:
    """Return the frame, series or other value in *table*: same columns, dtypes, index and types of objects.

    ``ImportError`` where it is a frame and pandas is not installed.
    """
    told = (table.schema.metadata or {}).get(FRAME_KEY)
    about = json.loads(told) if told else {}
    if about.get("format") != FRAME_FORMAT:
        raise Error(
            f"the answer has form {about.get('format')!r:.20}, this client reads form {FRAME_FORMAT}: "
            "use a client of the server's release, or output='arrow'"
        )
    if about["form"] == "value":
        return from_tagged(json.loads(table["value"][0].as_py()), _pandas_value)
    return _pandas().rebuilt(table, about)


def _pandas_value(tag: str, held: Any) -> Any:
    return _pandas().untag(tag, held)


def _pandas() -> Any:
    try:
        from fletching import _frame_columns  # noqa: PLC0415  # only those who get frames need pandas
    except ModuleNotFoundError as error:
        if error.name not in {"pandas", "numpy"}:
            raise
        raise ImportError(
            "this answer is a pandas frame, and pandas is not installed: pip install pandas, or take output='polars'"
        ) from error
    return _frame_columns
