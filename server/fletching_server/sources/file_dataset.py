"""One dataset in a folder of files: its symbols, and the rows of some symbols and sessions."""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from datetime import date
from functools import lru_cache
from typing import TYPE_CHECKING

import polars as pl

from fletching_schemas import Dataset, FetchRequest, Notation, normalise_symbol
from fletching_schemas.errors import BadSourceData, InvalidRequest, UnknownSymbol
from fletching_server.sources.file_reuse import ALWAYS, Owners, TickerReuse, without_former
from fletching_server.sources.file_rows import members, read_rows

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    import pyarrow as pa

    from fletching_server.sources.file_layout import FoundFile, Keep
    from fletching_server.sources.file_mapping import DatasetMapping


class FileDataset:
    """A dataset whose rows lie in files below *root*, read anew on every call; safe to use from several threads."""

    def __init__(self, mapping: DatasetMapping, dataset: Dataset, root: Path) -> None:
        self.dataset = dataset
        self._mapping, self._root = mapping, root
        self._placeholders = {name.lower() for name in re.findall(r"\{(\w+)\}", mapping.symbol or "")}
        self._reuse = TickerReuse(root / mapping.reuse.text) if mapping.reuse else None

    def symbols(self) -> list[str]:
        """Return every symbol that has a file, sorted, former securities of a reused ticker included."""
        if self._mapping.symbol is None:
            return self._symbols_in_files()
        if self._reuse is None:
            return sorted(self._symbols_with_files())
        return sorted(name for base, files in self._files_by_symbol().items() for name in self._owners(base, files))

    def fetch(self, request: FetchRequest) -> pa.Table:
        """Return the rows asked for, sorted by the dataset's ``sort_keys`` and cast to its schema.

        Raises ``UnknownSymbol``, ``BadSourceData`` or ``SourceUnavailable``; see ``FilesSource.fetch``.
        """
        by_name = self._mapping.symbol is not None
        return self._table(self._rows_by_name(request) if by_name else self._rows_by_column(request))

    def _rows_by_column(self, request: FetchRequest) -> list[pl.DataFrame]:
        files = self._files(lambda here: here.overlaps(request.start, request.end))
        asked = pl.col(self.dataset.symbol).is_in(request.symbols)
        return [self._read(file, request).filter(asked) for file in files]

    def _rows_by_name(self, request: FetchRequest) -> list[pl.DataFrame]:
        asked: dict[str, list[str]] = defaultdict(list)
        for symbol in request.symbols:
            asked[without_former(symbol) if self._reuse else symbol].append(symbol)
        files = self._files_by_symbol(asked, request.start, request.end)
        frames: list[pl.DataFrame] = []
        for base, symbols in asked.items():
            owners = self._owners_asked(base, symbols, files.get(base, []))
            frames += self._rows_owned(files.get(base, []), {name: owners[name] for name in symbols}, request)
        return frames

    def _rows_owned(self, files: list[FoundFile], owners: Owners, request: FetchRequest) -> list[pl.DataFrame]:
        """Return the rows of a ticker's *files* in file order, each under the symbol that owns its session."""
        if not files:
            return []
        rows = pl.concat([self._read(file, request) for file in files], how="diagonal")
        session = pl.col(self.dataset.session)
        return [
            rows.filter(pl.any_horizontal(session.is_between(first, last) for first, last in stretches)).with_columns(
                pl.lit(symbol).alias(self.dataset.symbol)
            )
            for symbol, stretches in owners.items()
        ]

    def _owners_asked(self, base: str, symbols: list[str], files: list[FoundFile]) -> Owners:
        """Return the days of each of *symbols*, all with the ticker of *base*; ``UnknownSymbol`` names the nearest."""
        has_former = symbols != [base]
        every = files if files and not has_former else self._files_by_symbol([base]).get(base, [])
        owners = self._owners(base, every, has_former=has_former) if every else {}
        for symbol in symbols:
            if symbol not in owners:
                raise self._unknown(symbol)
        return owners

    def _owners(self, base: str, files: list[FoundFile], *, has_former: bool = True) -> Owners:
        """Return the securities with rows in a ticker's *files*, by symbol, and the days for which each carried it."""
        if self._reuse is None:
            return {base: (ALWAYS,)}
        tenure = self._reuse.tenure(files[0].names["code"])
        if not has_former:
            return {base: tenure.own}
        former = self._reuse.former(tenure, files, self._sessions)
        return {base: tenure.own, **{str(self._symbol(files[0], end)): (days,) for end, days in former.items()}}

    def _sessions(self, file: FoundFile) -> set[date]:
        rows = read_rows(file, self._mapping, self.dataset)
        return set(rows[self.dataset.session].unique())

    def _unknown(self, symbol: str) -> UnknownSymbol:
        there = self.symbols()
        near = difflib.get_close_matches(symbol, there, n=3, cutoff=0.5) or there[:3]
        return UnknownSymbol(
            f"{self.dataset.name}: no file for {symbol} below {self._root} ({self._mapping.path.text}); "
            f"there {'are' if len(there) != 1 else 'is'} {len(there):,}, the nearest {', '.join(near) or 'none'}"
        )

    def _symbol(self, found: FoundFile, code_end: str = "") -> str | None:
        """Return the canonical symbol that a file's name gives; None where it is not (yet) one."""
        if not self._placeholders <= set(found.names):
            return None
        names = {name: text + (code_end if name == "code" else "") for name, text in found.names.items()}
        names |= {name.upper(): text.upper() for name, text in names.items()}
        return _canonical((self._mapping.symbol or "").format_map(names), self.dataset.notation)

    def _symbols_with_files(self) -> set[str]:
        """Return the symbols of files, without looking for a second file of a symbol."""
        found: dict[str, FoundFile] = {}
        for file in self._files(lambda here: self._symbol(here) not in found):
            if symbol := self._symbol(file):
                found[symbol] = file
        return set(found)

    def _symbols_in_files(self) -> list[str]:
        frames = [read_rows(file, self._mapping, self.dataset) for file in self._files(lambda _: True)]
        found = {name for frame in frames for name in frame[self.dataset.symbol].unique()}
        return sorted({symbol for name in found if (symbol := _canonical(name, self.dataset.notation))})

    def _files_by_symbol(
        self, symbols: Collection[str] | None = None, start: date = date.min, end: date = date.max
    ) -> dict[str, list[FoundFile]]:
        """Return the files of *symbols* (None: all) with days between *start* and *end*, ordered by path."""
        files: dict[str, list[FoundFile]] = defaultdict(list)

        def keep(here: FoundFile) -> bool:
            is_bound = symbols is not None and self._placeholders <= set(here.names)
            return here.overlaps(start, end) and (not is_bound or self._symbol(here) in (symbols or ()))

        for file in self._files(keep):
            if symbol := self._symbol(file):
                files[symbol].append(file)
        return files

    def _files(self, keep: Keep) -> Iterator[FoundFile]:
        for file in self._mapping.path.find(self._root, keep):
            yield from (entry for entry in members(file, self._mapping) if keep(entry))

    def _read(self, file: FoundFile, request: FetchRequest) -> pl.DataFrame:
        rows = read_rows(file, self._mapping, self.dataset)
        if self._mapping.symbol is None:
            rows = rows.with_columns(self._canonical_symbols(rows[self.dataset.symbol], file))
        return rows.filter(pl.col(self.dataset.session).is_between(request.start, request.end))

    def _canonical_symbols(self, values: pl.Series, file: FoundFile) -> pl.Series:
        spelled = {name: _canonical(name, self.dataset.notation) for name in values.unique()}
        if wrong := sorted(name for name, symbol in spelled.items() if symbol is None):
            raise BadSourceData(f"{file.origin}: column {values.name}: {wrong[0]!r} is not a symbol")
        return values.replace_strict(spelled, return_dtype=pl.String)

    def _table(self, frames: list[pl.DataFrame]) -> pa.Table:
        """Return *frames* as one table of the dataset's schema, with rows numbered before they are sorted."""
        schema = self.dataset.schema
        if not frames:
            return schema.empty_table()
        rows = pl.concat(frames, how="diagonal")
        if self._mapping.seq:
            within = (self.dataset.symbol, self.dataset.session)
            rows = rows.with_columns(pl.int_range(pl.len(), dtype=pl.Int64).over(within).alias(self._mapping.seq))
        ordered = rows.sort(self.dataset.sort_keys, maintain_order=True)
        absent = [pl.lit(None).alias(name) for name in schema.names if name not in ordered.columns]
        table = ordered.with_columns(absent).select(schema.names).to_arrow(compat_level=pl.CompatLevel.newest())
        return table.cast(schema)


@lru_cache(maxsize=65_536)
def _canonical(text: str, notation: Notation) -> str | None:
    """Return the canonical symbol, or None for a name that is none, such as that of a stray README.csv."""
    try:
        return normalise_symbol(text, notation)
    except InvalidRequest:
        return None
