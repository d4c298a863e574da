"""The embedded plane: the same engine in this process. The one place where the client imports the server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fletching._cache import Cache

if TYPE_CHECKING:
    import pyarrow as pa

    from fletching._transport import Answer
    from fletching_schemas import Action, ReadRequest, WriteRequest, WriteResult


def open(  # noqa: A001  # on purpose, as gzip.open
    store: str | Path, sources: Sequence[Any] = (), *, clock: Any = None, **settings: Any
) -> Cache:
    """Return a cache over the folder *store*, which is created where it is missing, run by this very process.

    *sources* are objects that implement ``fletching_server.sources.Source``, or names: ``"sim"``, ``"files:lean.toml"``.
    Without any, what the store holds and user tables are served. *settings* are those of the server, such as
    ``memory="4GiB"``. Raises ``StoreInUse`` where another process has the store open.
    """
    try:
        from fletching_server import open_engine  # noqa: PLC0415  # only those who embed the server pay for importing it
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.split(".")[0] == "fletching_server":
            raise
        raise ImportError(f"fletching.open needs {error.name}: pip install 'fletching[server]'") from error
    return Cache(EmbeddedTransport(open_engine(store, sources, clock, **settings)))


class EmbeddedTransport:
    """The five calls as plain calls."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.address = str(engine.store.root)

    def read(self, request: ReadRequest) -> Answer:
        """Return the answer; its batches share the engine's memory."""
        answer: Answer = self._engine.read(request)
        return answer

    def write(self, request: WriteRequest, rows: pa.Table) -> WriteResult:
        """Return once *rows* are durable."""
        result: WriteResult = self._engine.write(request, rows)
        return result

    def schema(self, dataset: str) -> pa.Schema:
        """Return the schema of *dataset*."""
        return self._engine.schema(dataset).schema

    def act(self, action: Action, body: Mapping[str, Any]) -> dict[str, Any] | pa.Table:
        """Return what *action* answers."""
        return self._engine.act(action, {name: value for name, value in body.items() if value is not None})

    def close(self) -> None:
        """Close the engine and give the store back."""
        self._engine.close()
