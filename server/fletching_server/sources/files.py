"""Folders of CSV, zipped CSV or Parquet files as a source, described by a small TOML mapping.

    file_mapping   the TOML and what it may say        file_layout    path patterns, and the files that match
    file_dataset   one dataset: its files and rows     file_values    text as values, or an error with its place
    file_rows      one file as a frame                 file_reuse     tickers that changed hands
    file_factors   LEAN's factor files as steps

The ready mappings are in ``mappings/``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from fletching_schemas.errors import UnknownDataset
from fletching_server.sources.file_dataset import FileDataset
from fletching_server.sources.file_mapping import FilesMapping, load_toml, read_mapping

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import pyarrow as pa

    from fletching_schemas import Dataset, FetchRequest


class FilesSource:
    """Market data that already lies in files, served where it lies: nothing is copied, moved or written.

    Folders are listed anew on every call, so new files appear without a restart. Safe to use from several threads.
    ``docs/files-source.md`` describes the mapping.
    """

    def __init__(self, mapping: FilesMapping, folder: Path) -> None:
        root = mapping.root_folder(folder)
        offered = [(entry, entry.dataset(mapping.prefix)) for entry in mapping.chosen()]
        self.name = mapping.name or mapping.mapping or "files"
        self._served = {dataset.name: FileDataset(entry, dataset, root) for entry, dataset in offered}

    @classmethod
    def from_toml(cls, path: Path) -> Self:
        """Return the source that the TOML file *path* describes; a relative ``root`` starts at the file's folder.

        Raises ``InvalidRequest`` naming the file, the field and what is wrong with it.
        """
        return cls(read_mapping(load_toml(path), str(path)), path.absolute().parent)

    @classmethod
    def from_config(cls, mapping: Mapping[str, Any], folder: Path) -> Self:
        """Return the source that *mapping*, the content of such a TOML file, describes.

        A relative ``root`` starts at *folder*. Raises ``InvalidRequest`` naming the field and what is wrong with it.
        """
        return cls(read_mapping(mapping, "files"), folder)

    def datasets(self) -> Sequence[Dataset]:
        """Return what the mapping describes, whether or not files are there yet."""
        return tuple(served.dataset for served in self._served.values())

    def symbols(self, dataset: str) -> Sequence[str]:
        """Return the symbols that have files now, in canonical notation, sorted.

        A file whose name is no symbol is passed over. Raises ``UnknownDataset``; ``SourceUnavailable`` where the root
        folder is missing.
        """
        return self._dataset(dataset).symbols()

    def fetch(self, request: FetchRequest) -> pa.Table:
        """Return the rows of the asked symbols and sessions, sorted by symbol, time and the other keys.

        Only files whose names may hold the asked days are opened. Times are UTC, prices as the file has them divided by
        ``price_scale``. Raises ``UnknownSymbol`` naming the nearest for a symbol without a file, ``BadSourceData``
        naming file, line, column and value, ``SourceUnavailable`` naming a missing folder, and ``UnknownDataset``.
        """
        return self._dataset(request.dataset).fetch(request)

    def _dataset(self, name: str) -> FileDataset:
        if name not in self._served:
            raise UnknownDataset(f"{self.name} has no dataset {name}; it has {', '.join(self._served)}")
        return self._served[name]
