"""Sources by name: the ones that ship, and those that packages offer by entry point."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest

from fletching_schemas.errors import InvalidRequest
from fletching_server.sources import Source, registry
from fletching_server.sources.registry import make_source
from fletching_server.sources.sim import SimSource


def own_source(config: Mapping[str, Any]) -> Source:
    """What a package of somebody else's would offer."""
    return SimSource(symbols=config["universe"], name="own")


def test_a_shipped_source_is_made_with_its_configuration(tmp_path: Path) -> None:
    config = tmp_path / "sim.toml"
    config.write_text("symbols = 3\n")
    source = make_source(f"sim:{config}")
    assert isinstance(source, SimSource)
    assert len(source.symbols("bars_1d")) == 3


def test_a_package_offers_a_source_by_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("own", f"{__name__}:own_source", registry.ENTRY_POINTS)
    monkeypatch.setattr(EntryPoint, "load", lambda _self: own_source)
    monkeypatch.setattr(registry, "entry_points", lambda group: EntryPoints([entry]).select(group=group))
    config = tmp_path / "own.toml"
    config.write_text("universe = 2\n")
    assert make_source(f"own:{config}").name == "own"


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("simm", "there is no source 'simm'; there are akshare, files, sim"),
        ("sim:/no/such/file.toml", "cannot read the source's configuration"),
        ("files", "root"),
    ],
)
def test_a_wrong_specification_is_explained(spec: str, told: str) -> None:
    with pytest.raises(InvalidRequest, match=told):
        make_source(spec)


def test_a_configuration_that_is_no_toml_is_named(tmp_path: Path) -> None:
    config = tmp_path / "broken.toml"
    config.write_text("symbols =")
    with pytest.raises(InvalidRequest, match="is not TOML"):
        make_source(f"sim:{config}")
