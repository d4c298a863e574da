"""Between Arrow and what people hold in their hands."""

from __future__ import annotations

from typing import Any, Final, Literal

import polars as pl
import pyarrow as pa

from fletching._forking import in_forked_child
from fletching_schemas.errors import InvalidRequest

Output = Literal["polars", "arrow", "pandas"]
OUTPUTS: Final = ("polars", "arrow", "pandas")


def check_output(output: str) -> None:
    """Raise ``InvalidRequest`` for an output that does not exist, before anything is read."""
    if output not in OUTPUTS:
        raise InvalidRequest(f"output={output!r}; it is one of {', '.join(OUTPUTS)}")


def answered(answer: Any, output: str) -> Any:
    """Return all rows of *answer* as *output*; a frame that lies in mapped memory is there already."""
    frame = getattr(answer, "frame", None) if output == "polars" else None
    return frame() if frame else to_output(answer.table(), output)


def framed(table: pa.Table) -> pl.DataFrame:
    """Return *table* as a frame that shares its memory where the types allow.

    Polars' threads do not survive a fork, and ``from_arrow`` may wait for them for ever; column by column it needs none.
    """
    if in_forked_child():
        return pl.DataFrame([pl.Series(name, table.column(name)) for name in table.column_names])
    return pl.DataFrame(pl.from_arrow(table, rechunk=False))


def decoded(stream: bytes) -> pl.DataFrame:
    """Return the rows of an IPC stream; Polars decodes small ones sooner than pyarrow hands them over."""
    return framed(pa.ipc.open_stream(stream).read_all()) if in_forked_child() else pl.read_ipc_stream(stream)


def to_output(table: pa.Table, output: str) -> Any:
    """Return *table* as Polars (sharing its memory where the types allow), Arrow as it is, or pandas (a copy)."""
    if output == "arrow":
        return table
    if output == "polars":
        return framed(table)
    try:
        import pandas as pd  # noqa: F401, PLC0415  # only those who ask for it need it
    except ModuleNotFoundError as error:
        raise ImportError("output='pandas' needs pandas: pip install pandas") from error
    views = [item.with_type(pa.string()) if item.type == pa.string_view() else item for item in table.schema]
    return table.cast(pa.schema(views)).to_pandas(date_as_object=False)


def to_table(data: Any) -> pa.Table:
    """Return rows that were given as Polars, Arrow (table, batch, reader) or pandas, as one Arrow table."""
    if isinstance(data, pl.LazyFrame):
        data = data.collect()
    if isinstance(data, pl.DataFrame):
        return data.to_arrow(compat_level=pl.CompatLevel.newest())
    if isinstance(data, pa.Table):
        return data
    if isinstance(data, pa.RecordBatch):
        return pa.Table.from_batches([data])
    if isinstance(data, pa.RecordBatchReader):
        return data.read_all()
    if type(data).__module__.split(".")[0] == "pandas":
        return pa.Table.from_pandas(data, preserve_index=False).replace_schema_metadata(None)
    if hasattr(data, "__arrow_c_stream__"):
        return pa.table(data)
    raise InvalidRequest(f"cannot write a {type(data).__name__}; give a Polars or pandas frame, or an Arrow table or reader")
