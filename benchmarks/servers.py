"""Servers in processes of their own, which end with the block that started them, or with this process.

A child tells its addresses through a pipe and serves until its standard input is closed: when the parent is killed, the
system closes it.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.flight as fl
import pyarrow.parquet as pq

_END_SECONDS: Final = 20.0


@dataclass(frozen=True)
class Addresses:
    """Where a server listens: TCP on the loopback, and a UNIX socket; and which process it is."""

    tcp: str
    unix: str
    pid: int


@contextmanager
def fletching_server(folder: Path, *sims: Mapping[str, Any], first_uses: bool = False, **settings: Any) -> Iterator[Addresses]:
    """Yield a Fletching server over the store ``folder/store``, with a sim source per configuration in *sims*.

    With *first_uses* it takes every read of a file for the first: see ``every_use_the_first``.
    """
    given = {"folder": str(folder), "sims": sims, "settings": settings, "first_uses": first_uses}
    with _child("fletching", given) as addresses:
        yield addresses


@contextmanager
def bare_server(folder: Path, tables: Mapping[str, pa.Table]) -> Iterator[Addresses]:
    """Yield a plain pyarrow Flight server that streams *tables*; its ticket is ``NAME:ROWS_PER_BATCH``."""
    for name, table in tables.items():
        with pa.OSFile(str(folder / f"{name}.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    with _child("bare", {"folder": str(folder), "names": list(tables)}) as addresses:
        yield addresses


@contextmanager
def _child(kind: str, given: Mapping[str, Any]) -> Iterator[Addresses]:
    ready, tell = os.pipe()
    command = [sys.executable, "-m", "benchmarks.servers", kind, str(tell), json.dumps(given)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FLETCHING_")}
    root = Path(__file__).parent.parent
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=sys.stderr, pass_fds=[tell], cwd=root, env=environment)
    try:
        os.close(tell)
        with os.fdopen(ready) as pipe:
            told = pipe.readline()
        if not told:
            raise RuntimeError(f"the {kind} server did not start; what it said is above")
        yield Addresses(**json.loads(told))
    finally:
        assert child.stdin is not None
        child.stdin.close()
        try:
            child.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


# What runs in the children


class _BareServer(fl.FlightServerBase):  # type: ignore[misc]  # pyarrow has no types
    """As little as a Flight server can do: tables in memory, streamed from C++ without any Python per batch.

    What is put is written as one Parquet file and synced, with nothing checked, ordered or remembered.
    """

    def __init__(self, location: str, tables: Mapping[str, pa.Table], folder: Path) -> None:
        super().__init__(location)
        self._tables, self._folder = tables, folder
        self._numbers = itertools.count()

    def do_put(
        self,
        context: fl.ServerCallContext,
        descriptor: fl.FlightDescriptor,
        reader: fl.MetadataRecordBatchReader,
        writer: fl.FlightMetadataWriter,
    ) -> None:
        del context, descriptor
        path = self._folder / f"put-{next(self._numbers)}.parquet"
        pq.write_table(reader.read_all(), path)
        with path.open("rb") as file:
            os.fsync(file.fileno())
        writer.write(b"done")

    def do_get(self, context: fl.ServerCallContext, ticket: fl.Ticket) -> fl.RecordBatchStream:
        del context
        name, _, rows = ticket.ticket.decode().partition(":")
        return fl.RecordBatchStream(self._tables[name].to_reader(max_chunksize=int(rows)))


def _serve_bare(given: Mapping[str, Any], opened: ExitStack) -> Addresses:
    folder = Path(given["folder"])
    tables = {name: _loaded(folder / f"{name}.arrow") for name in given["names"]}
    unix = f"grpc+unix://{folder}/bare.sock"
    tcp = opened.enter_context(_BareServer("grpc://127.0.0.1:0", tables, folder))
    opened.enter_context(_BareServer(unix, tables, folder))
    return Addresses(f"grpc://127.0.0.1:{tcp.port}", unix, os.getpid())


def _loaded(path: Path) -> pa.Table:
    with pa.OSFile(str(path)) as source, pa.ipc.open_stream(source) as reader:
        return reader.read_all().combine_chunks()


def _serve_fletching(given: Mapping[str, Any], opened: ExitStack) -> Addresses:
    from fletching_server import Engine  # noqa: PLC0415  # the bare server must not pay for it
    from fletching_server.service import Service  # noqa: PLC0415  # the same
    from fletching_server.settings import load_settings  # noqa: PLC0415  # the same
    from fletching_server.sources.sim import SimSource  # noqa: PLC0415  # the same

    folder = Path(given["folder"])
    settings = load_settings(store=folder / "store", **given["settings"])
    sims = [SimSource.from_config(sim) for sim in given["sims"]]
    engine = opened.enter_context(Engine(settings, sims, shares=True))  # as `fletching serve` does
    if given["first_uses"]:
        every_use_the_first(engine)
    tcp = opened.enter_context(Service(engine, "grpc://127.0.0.1:0"))
    unix = opened.enter_context(Service(engine, f"grpc+unix://{folder}/cache.sock"))
    return Addresses(tcp.url, unix.url, os.getpid())


def every_use_the_first(engine: Any) -> None:
    """Make *engine* forget that a file was read before: from its second use on it would be held whole.

    So the first point read of a cold partition can be measured more than once.
    """
    policy = engine.hot._policy  # noqa: SLF001  # no setting says this, as nobody but a benchmark wants it
    touch = policy.touch

    def touch_anew(item: Any) -> None:
        policy.forget(item.lineage)
        touch(item)

    policy.touch = touch_anew


def _main(kind: str, tell: str, given: str) -> None:
    serve = {"bare": _serve_bare, "fletching": _serve_fletching}[kind]
    with ExitStack() as opened:
        addresses = serve(json.loads(given), opened)
        with os.fdopen(int(tell), "w") as pipe:
            pipe.write(json.dumps(vars(addresses)) + "\n")
        sys.stdin.read()  # until the parent closes it


if __name__ == "__main__":
    _main(*sys.argv[1:])
