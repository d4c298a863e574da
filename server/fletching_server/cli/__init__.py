"""The command ``fletching``.

serving   serve          demo      demo
reading   read           looking   coverage, stats, verify
doctor    doctor         records   calendar, provenance, guard
loading   import         replaying replay
keeping   delete, retention, compact, vacuum    warming   warm
tracing   trace
"""

from __future__ import annotations

import sys

import typer
from rich.console import Console

from fletching_schemas.errors import Error
from fletching_server.cli import (
    demo,
    doctor,
    keeping,
    loading,
    looking,
    reading,
    records,
    replaying,
    serving,
    tracing,
    warming,
)

app = typer.Typer(
    name="fletching",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A shared columnar cache for market data. Start with `fletching demo`: no network, no configuration.",
)
app.command("demo")(demo.demo)
app.command("serve")(serving.serve)
app.command("read")(reading.read)
app.command("coverage")(looking.coverage)
app.command("stats")(looking.stats)
app.command("verify")(looking.verify)
app.command("doctor")(doctor.doctor)
app.command("calendar")(records.calendar)
app.command("provenance")(records.provenance)
app.command("guard")(records.guard)
app.command("import")(loading.import_files)
app.command("warm")(warming.warm)
app.command("delete")(keeping.delete)
app.command("retention")(keeping.retention)
app.command("compact")(keeping.compact)
app.command("vacuum")(keeping.vacuum)
app.command("replay")(replaying.replay)
app.command("trace")(tracing.trace)


def main() -> None:
    """Run the command line; an error of ours is one line on stderr and exit status 1."""
    try:
        app()
    except Error as error:
        Console(stderr=True, soft_wrap=True).print(f"[bold red]{type(error).__name__}[/]: ", error.message, sep="", markup=True)
        sys.exit(1)
