"""A source from its name: the ones that ship, and those that other packages offer by entry point."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Final

from fletching_schemas.errors import InvalidRequest
from fletching_server.sources.protocol import Source

ENTRY_POINTS: Final = "fletching.sources"

Factory = Callable[[Mapping[str, Any], Path], Source]


def _sim(config: Mapping[str, Any], _folder: Path) -> Source:
    from fletching_server.sources.sim import SimSource  # noqa: PLC0415  # sources are imported when they are used

    return SimSource.from_config(config)


def _files(config: Mapping[str, Any], folder: Path) -> Source:
    from fletching_server.sources.files import FilesSource  # noqa: PLC0415  # the same

    return FilesSource.from_config(config, folder)


def _akshare(config: Mapping[str, Any], _folder: Path) -> Source:
    from fletching_server.sources.akshare import AkshareSource  # noqa: PLC0415  # the same

    return AkshareSource.from_config(config)


SHIPPED: Final[Mapping[str, Factory]] = {"akshare": _akshare, "files": _files, "sim": _sim}


def make_source(spec: str) -> Source:
    """Return the source that ``NAME`` or ``NAME:CONFIG.toml`` describes; ``InvalidRequest`` names what there is.

    A package offers a source of its own with an entry point in the group ``fletching.sources``: a callable that takes the
    configuration (a mapping) and returns the source.
    """
    name, _, config_path = spec.partition(":")
    config, folder = _config(Path(config_path)) if config_path else ({}, Path())
    if name in SHIPPED:
        return SHIPPED[name](config, folder)
    offered = {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}
    if name not in offered:
        there = ", ".join(sorted({*SHIPPED, *offered}))
        raise InvalidRequest(f"there is no source {name!r}; there are {there}. Write --source NAME or NAME:CONFIG.toml")
    source: Source = offered[name].load()(config)
    return source


def _config(path: Path) -> tuple[Mapping[str, Any], Path]:
    try:
        return tomllib.loads(path.read_text("utf-8")), path.resolve().parent
    except OSError as error:
        raise InvalidRequest(f"cannot read the source's configuration {path}: {error.strerror}") from error
    except ValueError as error:  # TOML that does not parse, or bytes that are no UTF-8
        raise InvalidRequest(f"{path} is not TOML: {error}") from error
