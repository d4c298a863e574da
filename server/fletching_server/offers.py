"""What the sources offer, recorded in the catalogue: never two sources, or two schemas, under one name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fletching_schemas import Dataset
from fletching_schemas.errors import StoreError
from fletching_server.changes import Define
from fletching_server.desk import Desk
from fletching_server.settings import FreshnessSettings
from fletching_server.store import Store


def record(desk: Desk, store: Store, settings: Mapping[str, FreshnessSettings]) -> None:
    """Record what the sources of *desk* offer, as *settings* override it; refuse what does not fit what *store* holds."""
    for name, offered in list(desk.offers.items()):
        dataset = desk.offers[name] = _overridden(offered, settings.get(name))
        source = desk.source(name)
        provider = source.name if source else ""
        state = store.catalogue.state(name)
        if state and (state.files or state.coverage):
            _check_same(state.dataset, state.source, dataset, provider)
        if state is None or state.dataset != dataset or state.source != provider:
            store.commit(Define(dataset, provider))


def _overridden(offered: Dataset, said: FreshnessSettings | None) -> Dataset:
    chosen = said.model_dump(exclude_none=True) if said else {}
    return replace(offered, **chosen) if chosen else offered


def _check_same(held: Dataset, held_source: str | None, offered: Dataset, provider: str) -> None:
    way_out = f"use another store, or delete {held.name} from this one, or offer it under another name"
    if held_source is None:
        raise StoreError(f"{held.name} is a user table of this store, and source {provider} offers it too: {way_out}")
    if held_source != provider:
        raise StoreError(f"{held.name} in this store came from source {held_source}, not from {provider}: {way_out}")
    if (held.schema, held.keys, held.period, held.buckets) != (offered.schema, offered.keys, offered.period, offered.buckets):
        raise StoreError(f"{held.name} in this store has other columns, keys or partitions than {provider} offers: {way_out}")
