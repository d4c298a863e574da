"""``fletching replay``."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import polars as pl
import typer
from pydantic import ByteSize, TypeAdapter, ValidationError
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from fletching_schemas.errors import InvalidRequest
from fletching_server.access_trace import trace_of as trace_of_store
from fletching_server.clairvoyant import belady
from fletching_server.density import DensityPolicy
from fletching_server.policy import LruPolicy, Policy
from fletching_server.replaying import KeysOutcome, Outcome, Plan, Trace, read_trace, replay_keys, trace_of
from fletching_server.replaying import replay as run
from fletching_server.worth import KAPPA, Rule


class TraceFormat(StrEnum):
    """How a trace is written."""

    log = "log"
    keys = "keys"


class PolicyName(StrEnum):
    """How memory is ranked."""

    density = "density"
    lru = "lru"


def replay(
    trace: Annotated[
        Path,
        typer.Argument(
            help="The trace: Parquet with ts, principal, profile, dataset, bucket, session, bytes, request_id; the folder of a "
            "store, for its access log; or, with --format keys, text with one key per line (.gz too)."
        ),
    ],
    memory: Annotated[str, typer.Option(help="Budget of memory, such as 8GiB; for --format keys: objects.")] = "512MiB",
    disk: Annotated[str, typer.Option(help="Budget of the disk, such as 150GiB.")] = "50GB",
    policy: Annotated[
        PolicyName, typer.Option(help="density: decayed use x refill seconds / bytes; lru: the yardstick.")
    ] = PolicyName.density,
    warm: Annotated[
        str, typer.Option(help="on: what pays is made ready; p>=0.7: what is at least that likely; off: only what is asked for.")
    ] = "on",
    trace_format: Annotated[
        TraceFormat, typer.Option("--format", help="log: a trace of requests; keys: one key per line.")
    ] = TraceFormat.log,
    calendar: Annotated[
        str | None, typer.Option(help="Whose hours the trace keeps, such as XNYS; without it those that fit it best.")
    ] = None,
    holdout: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the warmer's decisions not carried out, as a live server does.")
    ] = 0.0,
    kappa: Annotated[
        float, typer.Option(min=0, help="What a background second is worth, in seconds of somebody who waits.")
    ] = KAPPA,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Replay a trace through the memory policy, the predictor and the warmer's rule, at full speed and without a server.

    The clock is the trace's. Memory, disk and upstream take 2 ms + 5 GB/s, 10 ms + 600 MB/s, 1.5 s + 40 MB/s. Of --warm off
    nothing is made ready, but a sweep is read ahead of (density). Every object of a keys trace counts as one byte, so
    --memory is a number of objects there. What the figures mean: docs/replay.md.
    """
    if not trace.exists():
        raise InvalidRequest(f"there is no trace {trace}")
    room = _bytes(memory, "--memory")
    if trace_format is TraceFormat.keys:
        _tell_keys(trace, policy, room, as_json=as_json)
        return
    plan = Plan(room, _bytes(disk, "--disk"), policy.value, *_warming(warm, kappa), calendar=calendar, holdout=holdout)
    outcome = _followed(_trace(trace), plan)
    if as_json:
        typer.echo(json.dumps(outcome.told()))
    else:
        _show(trace.name, outcome)


def _warming(said: str, kappa: float) -> tuple[bool, Rule]:
    """Return whether to warm, and by which rule."""
    if said in {"on", "off"}:
        return said == "on", Rule(kappa)
    try:
        confidence = float(said.removeprefix("p>="))
    except ValueError:
        confidence = -1.0
    if not said.startswith("p>=") or not 0 <= confidence <= 1:
        raise InvalidRequest(f"--warm {said!r:.40}; it is on, off, or a chance such as p>=0.7")
    return True, Rule(kappa, confidence)


def _trace(path: Path) -> Trace:
    if not path.is_dir():
        return read_trace(path)
    return trace_of(pl.DataFrame(pl.from_arrow(trace_of_store(path))), path.name)


def _followed(trace: Trace, plan: Plan) -> Outcome:
    """Return the outcome of a replay, with a progress bar where somebody looks."""
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(f"replaying {trace.name}", total=len(trace) * (3 if plan.warm else 2))
        return run(trace, plan, lambda done: progress.advance(task, done))


def _bytes(text: str, option: str) -> int:
    try:
        return TypeAdapter(ByteSize).validate_python(text)
    except ValidationError as error:
        raise InvalidRequest(f"{option} {text!r:.40} is not a size; write 8GiB, 500MB or a number") from error


# Telling


def _show(name: str, outcome: Outcome) -> None:
    told = outcome.told()
    table = Table("", "requests", "hot", "cold", "upstream", "mean ms", "seconds saved", title=name, title_justify="left")
    for label, figures in (("overall", told["overall"]), ("interactive", told["interactive"]), *told["profiles"].items()):
        table.add_row(label, *_cells(figures))
    table.add_row("interactive, after 10 sessions", *_cells(told["settled"]["interactive"]))
    table.add_row("under plain LRU", *_cells(told["lru"]["overall"]))
    table.add_row("interactive, under plain LRU", *_cells(told["lru"]["interactive"]))
    console = Console()
    console.print(table)
    names = ("precision", "coverage", "timeliness", "pollution", "brier", "brier_skill")
    console.print("  ".join(f"{name} {_number(told[name])}" for name in names))
    seconds = "  ".join(f"{name} {told[f'{name}_seconds']:,.0f}" for name in ("background", "demand", "waited"))
    console.print(
        f"seconds of fills: {seconds}; interactive hits without prefetching are at most "
        f"{told['ceiling_without_prefetch']:.1%}, all hits of a clairvoyant memory of this size {told['clairvoyant_at_most']:.1%}"
    )
    for arm, figures in told["judged"]["arms"].items():
        used = f"{figures['used']:,} of {figures['acted']:,} used, {figures['late']:,} late"
        console.print(
            f"{arm}: {used}, {figures['fill_seconds']:,.0f} s of work saved {figures['saved_seconds']:,.0f} s of waiting"
        )


def _cells(figures: dict[str, Any]) -> tuple[str, ...]:
    requests = max(figures["requests"], 1)
    shares = (f"{figures[tier] / requests:.2%}" for tier in ("hot", "cold", "upstream"))
    return f"{figures['requests']:,}", *shares, f"{figures['mean_ms']:,.1f}", f"{figures['seconds_saved']:,.0f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.3f}".rstrip("0").rstrip(".")


# Traces of keys


def _tell_keys(path: Path, policy: PolicyName, objects: int, *, as_json: bool) -> None:
    """Print what *policy* makes of the keys, beside LRU and the clairvoyant optimum."""
    keys = list(_keys(path))
    chosen: Policy = LruPolicy() if policy is PolicyName.lru else DensityPolicy(objects)
    outcome = replay_keys(((key, 1) for key in keys), chosen, objects)
    lru = replay_keys(((key, 1) for key in keys), LruPolicy(), objects).hit_ratio
    optimum = float(belady(np.unique(keys, return_inverse=True)[1].astype(np.int64), objects).mean()) if keys else 0.0
    told = _keys_told(outcome, lru, optimum)
    if as_json:
        typer.echo(json.dumps(told))
        return
    table = Table("figure", "value", title=f"{path.name} under {policy.value}, {objects:,} objects")
    for name, value in told.items():
        table.add_row(name, "-" if value is None else f"{value:,}")
    Console().print(table)


def _keys_told(outcome: KeysOutcome, lru: float, optimum: float) -> dict[str, Any]:
    """Return the figures of *outcome*; its score is 0 where it does as LRU, 1 where it does as the optimum."""
    score = (outcome.hit_ratio - lru) / (optimum - lru) if optimum > lru else None
    return {
        **vars(outcome),
        "hit_ratio": round(outcome.hit_ratio, 6),
        "byte_hit_ratio": round(outcome.byte_hit_ratio, 6),
        "lru_hit_ratio": round(lru, 6),
        "optimum_hit_ratio": round(optimum, 6),
        "score": score and round(score, 6),
    }


def _keys(path: Path) -> Iterator[str]:
    """Yield one key per line; empty lines and lines of ``*`` are breaks, not requests."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt") as lines:
            for line in lines:
                key = line.strip()
                if key and key != "*":
                    yield key
    except (OSError, UnicodeDecodeError, EOFError) as error:
        raise InvalidRequest(f"{path} cannot be read as text with one key per line: {error}") from error
