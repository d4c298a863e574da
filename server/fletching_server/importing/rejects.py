"""What was not imported, as a CSV file for people: the input, the row, the reason, and the row as it was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import polars as pl

from fletching_server import disk
from fletching_server.failpoints import Purpose
from fletching_server.importing.conversion import PLACE
from fletching_server.importing.job import Job, Staged
from fletching_server.importing.merging import Lost
from fletching_server.importing.plan import ImportPlan

DUPLICATE = "duplicate: a row with the same key and other values came after it"


def lost_rows(lost: Lost) -> pl.DataFrame:
    """Return the rows of *lost* that differ from the row that won, ready to be kept."""
    differ = pl.Series(~lost.equal)
    values = lost.rows.filter(differ)
    texts = [pl.col(name).cast(pl.String).fill_null("") for name in values.columns if name != PLACE]
    return values.select(
        pl.Series("rank", lost.rank[~lost.equal]), pl.col(PLACE).alias("place"), pl.concat_str(texts, separator=",").alias("text")
    )


def write_rejects(path: Path, plan: ImportPlan, job: Job, staged: Sequence[Staged]) -> int:
    """Write what was rejected to *path*, and return how many rows that is; without any there is no file.

    Rows are counted from 1, the header of a text included: the line, unless there are empty lines or quoted line ends.
    """
    count = 0
    frames = (frame for frame in _frames(plan, job, staged) if frame.height)
    first = next(frames, None)
    if first is None:
        return 0
    with disk.creating(path, sync=True, purpose=Purpose.IMPORT) as file:
        file.write(b"file,row,reason,text\n")
        for frame in chain([first], frames):
            count += _add(file, frame)
    return count


def _add(file: disk.NewFile, frame: pl.DataFrame) -> int:
    file.write(frame.write_csv(include_header=False).encode())
    return frame.height


def _frames(plan: ImportPlan, job: Job, staged: Sequence[Staged]) -> Iterator[pl.DataFrame]:
    bases = np.array(first_rows(plan, staged), np.int64)
    origins = pl.Series([plan.inputs[chunk.input].origin for chunk in staged], dtype=pl.String)
    for rank, chunk in enumerate(staged):
        if chunk.bad:
            bad = job.bad(chunk).with_columns(pl.lit(rank).alias("rank"))
            yield _told(bad, bases, origins)
    for lost in job.lost():
        yield _told(lost.with_columns(pl.lit(DUPLICATE).alias("reason")), bases, origins)


def _told(frame: pl.DataFrame, bases: np.ndarray[tuple[int], np.dtype[np.int64]], origins: pl.Series) -> pl.DataFrame:
    ranks = frame["rank"].to_numpy()
    rows = pl.Series("row", bases[ranks] + frame["place"].to_numpy())
    return frame.select(origins.gather(ranks).alias("file"), rows, "reason", "text")


def first_rows(plan: ImportPlan, staged: Sequence[Staged]) -> list[int]:
    """Return the number of the first row of each chunk."""
    found: list[int] = []
    passed: dict[int, int] = {}
    for chunk in staged:
        header = int(plan.inputs[chunk.input].format == "csv" and plan.mapping.has_header)
        start = passed.setdefault(chunk.input, 1 + header)
        found.append(start)
        passed[chunk.input] = start + chunk.records
    return found
