"""An index that stays wrong is not made anew for ever."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from shoal.settings import Settings
from shoal.store.index_keeping import IndexKeeper
from shoal.store.remaking import PERIOD, TRIES_MAX, Remakes
from shoal.store.writing import TableWriter
from tests.fixtures.documents import MODEL, WIDTH

NOW = datetime(2025, 1, 20, 15, 0, tzinfo=UTC)


def test_an_index_is_made_anew_a_few_times_and_again_after_an_hour() -> None:
    remakes = Remakes()
    assert [remakes.may("metadata", "id_idx", NOW) for _ in range(TRIES_MAX + 2)] == [True] * TRIES_MAX + [False] * 2
    assert remakes.may("vectors", "id_idx", NOW), "each for itself"
    assert "id_idx of metadata" in remakes.told(NOW)
    assert not remakes.may("metadata", "id_idx", NOW + PERIOD - timedelta(seconds=1))
    later = NOW + PERIOD
    assert remakes.may("metadata", "id_idx", later)
    assert remakes.told(later) == ""


def test_the_tables_open_though_an_index_is_refused_whenever_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = 0

    def refusing(self: IndexKeeper, kind: str, after: str, now: datetime, *, whole: frozenset[str]) -> list[str]:
        nonlocal made
        if kind != "metadata" or "id_idx" not in whole:
            return []
        made += 1
        assert made <= TRIES_MAX + 1, "it would go on for ever"
        return ["id_idx"]

    monkeypatch.setattr(IndexKeeper, "verify", refusing)
    writer = TableWriter.open(str(tmp_path / "tables"), {}, MODEL, WIDTH, settings=Settings(), now=NOW)
    assert made == TRIES_MAX + 1
    assert "id_idx of metadata" in writer.statistics().maintenance
