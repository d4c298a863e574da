"""Whatever a library's function returned, as one Arrow table that the client's ``_akshare_frames`` turns back exactly.

It runs in the worker's child, where pandas is. The columns of a frame are columns of the table, under their own names, so
that any Arrow tool can read them; index columns follow. What Arrow has no word for (Decimals, mixed columns, lists) stands
as JSON text, one value per row. How to put it together again is in the schema's metadata, as JSON:

    form      frame, series, index, or value (a single cell of JSON: text, numbers, dicts, also dicts of frames)
    columns   per column what it was: see ``_frame_columns``
    index     how to make the index, from the last columns or from nothing; labels: the index of the columns, as a table in base64
"""

from __future__ import annotations

import json
import sys
from typing import Any, Final

import pyarrow as pa

from fletching_schemas.tagged import to_tagged

FRAME_KEY: Final = "fletching.frame"
FRAME_FORMAT: Final = 1


def encode(value: Any) -> pa.Table:
    """Return *value* as a table; ``TypeError`` names what cannot travel. Frames are recognised once pandas is loaded."""
    other = None
    if "pandas" in sys.modules:
        from fletching_server.sources import _frame_columns  # noqa: PLC0415  # it needs pandas, which only the child has

        if (table := _frame_columns.table_of(value)) is not None:
            return table
        other = _frame_columns.tag
    text = json.dumps(to_tagged(value, other), allow_nan=False)
    schema = pa.schema([("value", pa.large_string())], {FRAME_KEY: json.dumps({"form": "value", "format": FRAME_FORMAT})})
    return pa.table([pa.array([text], pa.large_string())], schema=schema)
