"""A catalogue made anew from what the data files tell about themselves, where the catalogue is lost or damaged.

A file's id says when it was written, its footer what it holds, which files went into it, and of a fill what it learned.
Before each fold the partitions that make up the dataset are written down. So of each dataset: the newest such list whose
files are there, and over it the segments that were written since. What is in no file does not come back: the past, what a
fill learned of cells without rows, records of what came from where, and the keys of writes.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fletching_schemas import Dataset
from fletching_schemas.errors import StoreError
from fletching_server import disk, parquet
from fletching_server.image import build_image
from fletching_server.snapshot import Asked, Fact, StoredFile
from fletching_server.spans import Span
from fletching_server.store import MANIFESTS, Store
from fletching_server.upkeep import Adopt


@dataclass
class Rebuilt:
    """What became of a store: datasets with their files, files that are left over, and what is wrong."""

    datasets: dict[str, int] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    left_over: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    aside: Path | None = None


@dataclass(frozen=True)
class _Found:
    """One data file, as its footer tells of it."""

    file: StoredFile
    dataset: Dataset
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class _Manifest:
    """Which partitions made up a dataset, as they were written down."""

    dataset: Dataset
    source: str | None
    through: str
    partitions: tuple[str, ...]
    facts: tuple[Fact, ...]


def rebuild(root: Path) -> Rebuilt:
    """Make the catalogue of the store at *root* anew; the present one and files that are not needed are set aside.

    ``StoreError`` where there is nothing to make it of; ``StoreInUse`` where a process has the store open.
    """
    told = Rebuilt()
    found = [each for path in _data_files(root) if (each := _looked_at(root, path, told))]
    manifests = _manifests(root, told)
    if not found and not manifests:
        raise StoreError(f"{root} holds no data files that tell about themselves: there is nothing to rebuild a catalogue from")
    told.aside = root / "set-aside" / f"catalogue-{1 + len(list((root / 'set-aside').glob('catalogue-*')))}"
    store = Store(root, aside=told.aside)
    try:
        for name in sorted({each.dataset.name for each in found} | manifests.keys()):
            _adopt(store, [each for each in found if each.dataset.name == name], manifests.get(name, []), told)
        for path in store.orphans():
            told.left_over.append(str(path.relative_to(root)))
            disk.set_aside(path, told.aside)
    finally:
        store.close()
    return told


# What there is


def _data_files(root: Path) -> list[Path]:
    return sorted(path for folder in ("journal", "data") for path in (root / folder).rglob("*.parquet"))


def _looked_at(root: Path, path: Path, told: Rebuilt) -> _Found | None:
    """Return what *path* tells of itself; a file that is damaged, or of somebody else, is a problem."""
    try:
        facts = parquet.footer_facts(path)
        dataset = Dataset.from_json(facts["dataset"])
        return _Found(_record(root, path, dataset, facts), dataset, facts)
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        told.problems.append(f"{path.relative_to(root)} cannot be used: {str(error).splitlines()[0] if str(error) else error!r}")
        return None


def _record(root: Path, path: Path, dataset: Dataset, facts: Mapping[str, Any]) -> StoredFile:
    """Return the record of a file, from its rows, every page of which is checked."""
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        rows = file.read()
    schema = pa.schema([dataset.schema.field(name) for name in rows.column_names])
    image = build_image(dataset, rows.cast(schema))
    first, last = image.days
    asked = _asked(facts)
    named = {symbol for cells in asked for symbol in cells.symbols or ()}
    return StoredFile(
        str(facts["id"]),
        dataset.name,
        facts["kind"],
        facts["period"],
        facts["bucket"],
        str(path.relative_to(root)),
        disk.file_digest(path),
        path.stat().st_size,
        image.nbytes,
        image.table.num_rows,
        first,
        last,
        tuple(sorted(named | set(image.symbols))),
        asked=asked,
        through=facts.get("through", "") or ("" if facts.get("format") else _before_ids(path)),
    )


def _asked(facts: Mapping[str, Any]) -> tuple[Asked, ...]:
    """Return which cells fills asked for: of one as its request said, of merged ones as their entries did."""
    merged = facts.get("asked_cells") or []
    if merged:
        return tuple(Asked(first, last, tuple(symbols) if symbols else None) for first, last, symbols, *_ in merged)
    if not facts.get("asked"):
        return ()
    first, last, *symbols = facts["asked"]
    return (Asked(first, last, tuple(sorted(symbols))),)


def _before_ids(path: Path) -> str:
    """Return where a file of an older release stands, whose id says nothing of when it was written."""
    return f"{path.stat().st_mtime_ns:016x}"


def _manifests(root: Path, told: Rebuilt) -> dict[str, list[_Manifest]]:
    """Return the lists of partitions per dataset, the newest first."""
    found: dict[str, list[_Manifest]] = defaultdict(list)
    for path in sorted((root / MANIFESTS).glob("*.json"), key=lambda path: path.stem.rpartition("-")[2], reverse=True):
        try:
            manifest = _manifest(json.loads(path.read_bytes()))
        except (OSError, ValueError, KeyError, TypeError) as error:
            told.problems.append(f"{path.relative_to(root)} cannot be used: {error!r}")
        else:
            found[manifest.dataset.name].append(manifest)
    return found


def _manifest(document: Mapping[str, Any]) -> _Manifest:
    facts = [
        Fact(symbol, Span(first, last, state, reason, fetched_at), None)
        for first, last, state, reason, fetched_at, symbols in document["coverage"]
        for symbol in symbols
    ]
    partitions = tuple(file for file, _, _ in document["partitions"])
    dataset = Dataset.from_json(document["dataset"])
    return _Manifest(dataset, document["source"], document["through"], partitions, tuple(facts))


# Which of it counts


def _adopt(store: Store, found: Sequence[_Found], manifests: Sequence[_Manifest], told: Rebuilt) -> None:
    segments = [each for each in found if each.file.kind == "segment"]
    cleared = max((str(each.facts.get("from") or each.file.id) for each in segments if each.facts.get("clears")), default="")
    manifest, partitions = _partitions(found, manifests, cleared, told)
    through = manifest.through if manifest else ""
    standing = [each for each in _unmerged(segments) if each.file.place > through and each.file.place >= cleared]
    kept = sorted([*partitions, *standing], key=lambda each: each.file.place)
    dataset = kept[-1].dataset if kept else (manifest.dataset if manifest else found[-1].dataset)
    source = _source(manifest, kept or found)
    older = frozenset(each.file.id for each in kept if each.dataset.schema != dataset.schema)
    facts = manifest.facts if manifest and len(partitions) == len(manifest.partitions) else ()
    store.commit(Adopt(dataset, source, tuple(each.file for each in partitions), facts, older))
    for each in sorted(standing, key=lambda each: each.file.place):
        store.commit(Adopt(dataset, source, (each.file,), tuple(_learned(each)), older))
    told.datasets[dataset.name] = len(kept)
    told.rows[dataset.name] = sum(each.file.rows for each in kept)


def _partitions(
    found: Sequence[_Found], manifests: Sequence[_Manifest], cleared: str, told: Rebuilt
) -> tuple[_Manifest | None, list[_Found]]:
    """Return the newest list whose files are all there, or else the one that misses fewest, and its files."""
    there = {each.file.id: each for each in found if each.file.kind == "partition"}
    candidates = [manifest for manifest in manifests if manifest.through >= cleared]
    if not candidates:
        return None, []
    chosen = min(candidates, key=lambda manifest: sum(file not in there for file in manifest.partitions))
    for file in chosen.partitions:
        if file not in there:
            told.problems.append(f"{chosen.dataset.name}: partition file {file} is lost, with the rows in it")
    return chosen, [there[file] for file in chosen.partitions if file in there]


def _unmerged(segments: Iterable[_Found]) -> Iterator[_Found]:
    """Yield the segments that are not part of a larger one which is there too."""
    listed = list(segments)
    runs = [(str(each.facts["from"]), each.file.place) for each in listed if each.facts.get("from")]
    for each in listed:
        own = (str(each.facts.get("from") or each.file.place), each.file.place)
        if not any(first <= own[0] and own[1] <= last and (first, last) != own for first, last in runs):
            yield each


def _source(manifest: _Manifest | None, kept: Sequence[_Found]) -> str | None:
    if manifest:
        return manifest.source
    return next((each.facts["source"] for each in reversed(kept) if each.facts.get("source")), None)


def _learned(each: _Found) -> Iterator[Fact]:
    for symbol, first, last, state, reason, fetched_at in each.facts.get("coverage") or ():
        yield Fact(symbol, Span(first, last, state, reason, fetched_at), None)
