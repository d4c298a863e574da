"""Where settings come from, and what a wrong one says."""

from __future__ import annotations

from pathlib import Path

import pytest

from fletching_schemas.errors import InvalidRequest
from fletching_server.settings import load_settings


def test_arguments_win_over_the_environment_and_that_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "fletching.toml"
    config.write_text('memory = "1GiB"\nsource_calls = 2\ndrain_seconds = 3.0\nsources = ["sim"]\n')
    monkeypatch.setenv("FLETCHING_MEMORY", "2GiB")
    monkeypatch.setenv("FLETCHING_SOURCE_CALLS", "3")
    settings = load_settings(config, memory="3GiB", listen=None)
    assert (settings.memory, settings.source_calls, settings.drain_seconds) == (3 << 30, 3, 3.0)
    assert settings.sources == ["sim"]
    assert settings.listen == "grpc://127.0.0.1:8815"


def test_the_client_s_address_variable_is_not_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLETCHING_URL", "grpc://127.0.0.1:1")
    assert load_settings().listen == "grpc://127.0.0.1:8815"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"memory": "much"}, "setting memory"),
        ({"source_calls": 0}, "setting source_calls"),
        ({"no_such": 1}, "setting no_such"),
        ({"log_level": "loud"}, "setting log_level"),
    ],
)
def test_a_wrong_setting_is_named(given: dict[str, object], told: str) -> None:
    with pytest.raises(InvalidRequest, match=told):
        load_settings(None, **given)


def test_a_file_that_is_absent_or_no_toml_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="no settings file"):
        load_settings(tmp_path / "absent.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("memory = [")
    with pytest.raises(InvalidRequest, match="cannot be read"):
        load_settings(broken)
