"""``python -m benchmarks.desk --profile desk-a --seed 1 --out trace.parquet``: write the trace of a desk."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from benchmarks.desk import profiles, trace


def main(arguments: Sequence[str] | None = None) -> None:
    """Write what was asked for, and say what it is."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.desk", description=__doc__)
    known = ", ".join(profiles.names())
    parser.add_argument("--profile", default="desk-a", help=f"one of {known}, or the path of a .toml file")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sessions", type=int, help="how many the desk works (default: as the profile says)")
    parser.add_argument("--out", type=Path, required=True, help="the Parquet file to write")
    asked = parser.parse_args(arguments)
    profile = profiles.load(asked.profile)
    frame = trace.simulate(profile, asked.seed, asked.sessions)
    trace.write(frame, asked.out, profile, asked.seed)
    print(_told(frame, asked.out))


def _told(frame: pl.DataFrame, path: Path) -> str:
    waiting = (frame["profile"] != trace.BATCH).sum()
    first, last = (frame["ts"].dt.date().cast(pl.String)[row] for row in (0, -1))
    return (
        f"{path}: {len(frame):,} partitions in {frame['request_id'].n_unique():,} requests of {frame['principal'].n_unique()} "
        f"principals, {first} to {last}; {waiting:,} of them interactive; "
        f"1.5 median days of these: {trace.memory(frame) / 1e9:.1f} GB"
    )


if __name__ == "__main__":
    main()
