"""``fletching import``: what was asked for, shown; then run, with a bar."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final

import pyarrow as pa
import typer
from pydantic import ByteSize, TypeAdapter, ValidationError
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from fletching_schemas import Dataset
from fletching_schemas.errors import InvalidRequest, StoreInUse
from fletching_server import importing
from fletching_server.cli.access import Cache, StoreOption, UrlOption, reach
from fletching_server.embedding import open_engine
from fletching_server.importing import ImportPlan, ImportReport, ImportRequest, Reductions

_PLAIN_SECONDS: Final = 5.0  # between two lines where no bar can be drawn
console = Console(stderr=True)

Show = Callable[[importing.Progress], None]
Run = Callable[[Show], ImportReport]


def import_files(
    paths: Annotated[
        list[Path], typer.Argument(help="Files or folders: CSV (.gz, .zst, .zip), Parquet, Arrow, SQLite (FILE:TABLE).")
    ],
    dataset: Annotated[str, typer.Option(help="The user table to import into.")],
    mapping: Annotated[
        str | None, typer.Option(help="TOML that says what the columns mean; or the name of a ready one: lean.")
    ] = None,
    write_mapping: Annotated[
        Path | None, typer.Option(help="Write the mapping that was inferred to this file, and stop.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Read and count everything, write nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask whether what was inferred is right.")] = False,
    keys: Annotated[str | None, typer.Option(help="Key columns, the symbol's first, comma-separated; for a new table.")] = None,
    time: Annotated[str | None, typer.Option(help="The time column; for a new table.")] = None,
    partition: Annotated[str | None, typer.Option(help="year, month or day; for a new table.")] = None,
    buckets: Annotated[int | None, typer.Option(help="Files per period, by symbol; for a new table.")] = None,
    table: Annotated[str | None, typer.Option(help="The table to read in SQLite files.")] = None,
    nbbo: Annotated[bool, typer.Option("--nbbo", help="Keep only rows that change best bid, best ask or their sizes.")] = False,
    resample: Annotated[str | None, typer.Option(help="Keep the last row of each symbol and interval, such as 1s.")] = None,
    every: Annotated[int | None, typer.Option(help="Keep the first of every so many rows of a symbol and session.")] = None,
    memory: Annotated[str, typer.Option(help="What chunks and groups of rows may take, such as 512MiB.")] = "512MiB",
    url: UrlOption = None,
    store: StoreOption = None,
) -> None:
    """Import files of any size into a user table: sorted, without duplicates, visible all at once.

    What the columns mean is worked out from names and a sample, and shown first. Interrupted, the same command goes on where
    it was. Rows that cannot be imported are counted, and kept in a file with the reason.

    Examples:
      fletching import quotes/ --dataset my_quotes --store store

      fletching import trades.csv.gz --dataset trades --store store --write-mapping trades.toml
    """
    request = ImportRequest(
        paths,
        dataset,
        mapping,
        tuple(keys.split(",")) if keys else None,
        time,
        partition,  # type: ignore[arg-type]  # checked with the dataset
        buckets,
        table,
        Reductions(nbbo, resample, every),
        _bytes(memory),
    )
    with _planned(request, url, store, dry_run=dry_run) as (plan, run):
        if write_mapping is not None:
            write_mapping.write_text(importing.to_toml(plan.mapping), "utf8")
            console.print(
                f"the mapping is in {write_mapping}; edit it, then import with --mapping {write_mapping}", soft_wrap=True
            )
            return
        _show_plan(plan, is_inferred=mapping is None)
        if (
            not dry_run
            and mapping is None
            and not yes
            and sys.stdin.isatty()
            and not typer.confirm("Import this?", default=True, err=True)
        ):
            raise typer.Abort
        with _bar() as show:
            try:
                report = importing.dry_run(plan, memory_bytes=request.memory_bytes, show=show) if dry_run else run(show)
            except KeyboardInterrupt:
                console.print("interrupted; the same command goes on from here")
                raise
    _show_report(report)


def _bytes(text: str) -> int:
    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError as error:
        raise InvalidRequest(f"--memory takes a size such as 512MiB, not {text!r}") from error


@contextmanager
def _planned(request: ImportRequest, url: str | None, store: Path | None, *, dry_run: bool) -> Iterator[tuple[ImportPlan, Run]]:
    """Yield what will be done, and what does it: in this process, or through a server."""
    if store is not None and url is not None:
        raise InvalidRequest("give --url or --store, not both")
    if store is None:
        with reach(url, None, None) as cache:
            plan = importing.make_plan(request, _existing(cache, request.dataset), importing.workers())
            yield (
                plan,
                lambda show: importing.send_import(
                    cache.write, plan, _work_folder(), memory_bytes=request.memory_bytes, show=show
                ),
            )
        return
    if dry_run and not store.exists():  # there is no table to fit, and nothing is to be made
        yield importing.make_plan(request, None, importing.workers()), _nothing
        return
    try:
        opened = open_engine(store)
    except StoreInUse as error:
        raise StoreInUse(f"{error.message}. To import through that server: --url instead of --store") from error
    with opened as engine:
        plan = importing.plan_import(engine, request)
        yield plan, lambda show: importing.run_import(engine, plan, memory_bytes=request.memory_bytes, show=show)


def _nothing(_show: object) -> ImportReport:
    raise RuntimeError("a dry run imports nothing")


def _existing(cache: Cache, name: str) -> Dataset | None:
    """Return the table *name* as the server tells it."""
    found = [row for row in cache.datasets().iter_rows(named=True) if row["name"] == name]
    if not found:
        return None
    if found[0]["kind"] != "table":
        raise InvalidRequest(f"{name} is filled from a source; import into a table of your own")
    schema, keys = cache.schema(name), tuple(found[0]["keys"].split(", "))
    time = next(key for key in keys if pa.types.is_temporal(schema.field(key).type))
    return Dataset(name, schema, keys, time, found[0]["calendar"], found[0]["period"])


def _work_folder() -> Path:
    """Return where rows are staged on their way to a server."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fletching" / "import"


def _show_plan(plan: ImportPlan, *, is_inferred: bool) -> None:
    dataset = plan.dataset
    title = f"{dataset.name}: {'a new table' if plan.is_new else 'a table that is there'}" + ", as inferred" * is_inferred
    shown = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name in ("from", "to", "type", "sample"):
        shown.add_column(name, overflow="fold")
    for column in plan.columns:
        shown.add_row(*map(escape, (column.source, column.target, column.type, "  ".join(column.samples))))
    console.print(shown)
    for line in plan_lines(plan):
        console.print(line, markup=False, soft_wrap=True)


def plan_lines(plan: ImportPlan) -> list[str]:
    """Return what an import will do, beside its columns."""
    dataset, size = plan.dataset, sum(source.bytes for source in plan.inputs)
    buckets = "by size" if plan.free_buckets else str(dataset.buckets)
    lines = [
        f"keys {', '.join(dataset.keys)}; time {dataset.time}; a partition per {dataset.period}, buckets {buckets}",
        f"about {plan.estimated_rows:,} rows in {len(plan.inputs):,} inputs, {size:,} bytes",
    ]
    lines += [f"left out: {name} {value}" for name, value in plan.reductions.facts().items()]
    return lines + [f"note: {note}" for note in plan.notes]


@contextmanager
def _bar() -> Iterator[Show]:
    """Yield what shows how far an import is: a bar on a terminal, else a line now and then."""
    if not console.is_terminal:
        yield _lines()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        DownloadColumn(),
        TextColumn("{task.fields[speed]}"),
    )
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        reading = progress.add_task("reading", total=None, speed="")
        publishing = progress.add_task("publishing", total=None, speed="", visible=False)

        def show(now: importing.Progress) -> None:
            progress.update(reading, completed=min(now.bytes, now.total_bytes), total=now.total_bytes, speed=_speed(now))
            if now.stage == "publishing":
                progress.update(publishing, completed=now.merged, total=max(now.records, 1), visible=True)

        yield show


def _speed(now: importing.Progress) -> str:
    return f"{now.records:,} rows, {now.records / max(now.seconds, 1e-9):,.0f}/s"


def _lines() -> Show:
    told = 0.0

    def show(now: importing.Progress) -> None:
        nonlocal told
        if now.seconds - told >= _PLAIN_SECONDS:
            told = now.seconds
            share = now.merged / max(now.records, 1) if now.stage == "publishing" else now.bytes / max(now.total_bytes, 1)
            console.print(f"{now.stage} {share:.0%}: {_speed(now)}", markup=False)

    return show


def _show_report(report: ImportReport) -> None:
    shown = Table(title="would import" if report.dry_run else "imported", title_justify="left", box=None, show_header=False)
    shown.add_column(justify="left")
    shown.add_column(justify="right")
    for what, count in _counted(report):
        shown.add_row(what, f"{count:,}")
    shown.add_row("seconds", f"{report.seconds:,.1f}")
    shown.add_row("rows per second", f"{report.rows_per_second:,.0f}")
    console.print(shown)
    if report.rejects:
        console.print(f"[yellow]rejected rows and their reasons are in[/] {escape(str(report.rejects))}", soft_wrap=True)
    doing = "would be" if report.dry_run else "are"
    typer.echo(f"{report.kept:,} rows of {report.files:,} files {doing} in {report.dataset}")


def _counted(report: ImportReport) -> Iterator[tuple[str, int]]:
    yield "rows read", report.read
    yield "kept", report.kept
    yield "left out by reductions", report.reduced
    yield "exact duplicates", report.duplicates
    yield "same key, other values", report.different
    yield "rejected", report.rejected
    yield "replaced in the table", report.replaced
    yield "partitions", report.partitions
