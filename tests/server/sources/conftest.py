"""The fake internet as a fixture: one per module, its routes and records fresh for every test."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.server.sources.fake_internet import FakeInternet


def _load() -> type[FakeInternet]:
    """Return the class from the file beside this one: in importlib mode folders of tests are not packages."""
    spec = importlib.util.spec_from_file_location("fake_internet", Path(__file__).with_name("fake_internet.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.FakeInternet  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def shared_internet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeInternet]:
    """Send this process's children to a fake internet."""
    internet = _load()(tmp_path_factory.mktemp("internet"))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy", "SSL_CERT_DIR"):
            patch.delenv(name, raising=False)
        for name, value in internet.environment().items():
            patch.setenv(name, value)
        yield internet
    internet.close()


@pytest.fixture
def internet(shared_internet: FakeInternet) -> FakeInternet:
    """Return the module's fake internet without routes."""
    shared_internet.routes.clear()
    shared_internet.seen.clear()
    shared_internet.reached.clear()
    return shared_internet
