"""The example of docs/sources.md works, keeps the contract, and is found by its entry point."""

from __future__ import annotations

import re
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest

import fletching
from fletching_schemas.errors import InvalidRequest
from fletching_server.sources import Source, SymbolLister, registry
from fletching_server.testing import SourceTests

PAGE = (Path(__file__).resolve().parents[3] / "docs/sources.md").read_text()
SPACE: dict[str, Any] = {"__name__": "my_package"}
for _block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
    exec(compile(_block, "docs/sources.md", "exec"), SPACE)


TestSunshine: type[SourceTests] = SPACE["TestSunshine"]  # the suite as the page has it


def test_the_example_is_a_source_that_lists_symbols() -> None:
    source = SPACE["SunshineSource"]()
    assert issubclass(TestSunshine, SourceTests)
    assert isinstance(source, Source)
    assert isinstance(source, SymbolLister)


def test_the_example_is_served(tmp_path: Path) -> None:
    with fletching.open(tmp_path / "store", sources=[SPACE["SunshineSource"]()]) as cache:
        frame, info = cache.read("sunshine_1d", None, "2024-04-01", "2024-04-12", info=True)
        assert (frame.height, info.upstream_calls) == (16, 1)
        assert cache.read("sunshine_1d", None, "2024-04-01", "2024-04-12", info=True)[1].upstream_calls == 0


def test_a_source_is_found_by_its_entry_point(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []

    def make(config: dict[str, Any]) -> Source:
        seen.append(config)
        return SPACE["SunshineSource"]()  # type: ignore[no-any-return]

    class Offered(EntryPoint):
        def load(self) -> Any:
            return make

    entry = Offered("sunshine", "my_package:make_source", registry.ENTRY_POINTS)
    monkeypatch.setattr(registry, "entry_points", lambda group: EntryPoints([entry]).select(group=group))
    (tmp_path / "my.toml").write_text("hours = 3\n")
    assert registry.make_source("sunshine").name == "sunshine"
    assert registry.make_source(f"sunshine:{tmp_path / 'my.toml'}").name == "sunshine"
    assert seen == [{}, {"hours": 3}]
    with pytest.raises(InvalidRequest, match="there are akshare, files, sim, sunshine"):
        registry.make_source("moonshine")


@pytest.mark.parametrize(("text", "message"), [(None, "cannot read"), ("hours = ", "is not TOML"), (b"\xff\xfe", "is not TOML")])
def test_a_configuration_that_cannot_be_read_is_named(text: str | bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "sim.toml"
    if text is not None:
        path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(InvalidRequest, match=f"{path}.*|{message}"):
        registry.make_source(f"sim:{path}")
