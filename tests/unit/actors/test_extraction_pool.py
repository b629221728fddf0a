"""The extraction pool with real children: what kills a child is the system, until it happens to one document twice."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest

from shoal.actors.extraction import ExtractionPool
from shoal.documents.pipeline import Context
from shoal.errors import TransientError
from shoal.settings import Settings

CONTEXT = Context("a.csv", None, None, "S", "x", "d", datetime(2026, 1, 1, tzinfo=UTC))
DATA = b"time,load (MW)\n2025-01-01,1\n2025-01-02,2\n"


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ExtractionPool]:
    main = sys.modules["__main__"]
    if hasattr(main, "__file__"):
        monkeypatch.setattr(main, "__file__", main.__file__)  # the pool takes it away; pytest wants it back
    made = ExtractionPool(Settings(data_dir=tmp_path, embedding_provider="hash", _env_file=None), "hash:8")
    yield made
    made.close()


def children() -> list[int]:
    found = psutil.Process().children()
    return [child.pid for child in found if "spawn_main" in " ".join(child.cmdline())]


async def test_a_child_that_is_killed_while_idle_costs_no_document(pool: ExtractionPool) -> None:
    assert (await pool.extract(DATA, CONTEXT)).file_format == "CSV"
    for child in children():
        os.kill(child, signal.SIGKILL)
    for _ in range(100):  # the pool notices within some tenths of a second, and says so at most once
        try:
            extraction = await pool.extract(DATA, CONTEXT)
        except TransientError:
            await asyncio.sleep(0.01)
        else:
            break
    assert extraction.file_format == "CSV"
