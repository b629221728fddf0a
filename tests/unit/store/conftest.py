"""Tables to search, for every test that asks for them."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from shoal.store import reading
from shoal.store.search import SearchIndex
from tests.fixtures.library import Library


@pytest.fixture
def settle_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests leave commits half-way for good; those where the second half comes set a long wait."""
    monkeypatch.setattr(reading, "_SETTLE_S", 0.0)


@pytest_asyncio.fixture
async def library(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, settle_s: None) -> Library:
    """Empty tables: made once, copied for each test."""
    template = tmp_path_factory.getbasetemp() / "empty-tables"
    if not template.exists():
        await Library.create(template)
    return await Library.open(Path(shutil.copytree(template, tmp_path / "tables")))


@pytest_asyncio.fixture
async def index(library: Library) -> AsyncIterator[SearchIndex]:
    """Looks for new commits at every search, as if a refresh interval had passed."""
    opened = await SearchIndex.open(str(library.uri), {}, refresh_interval_s=0.0)
    yield opened
    await opened.close()
