"""A short soak, with kills: what `make soak` runs for half an hour, and the same verdict."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from bench import soak

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANCE_LOG", "error")
    monkeypatch.setenv(soak.DIRECTORY_VARIABLE, "")  # so that it is put back


def test_commits_with_upkeep_questions_and_kills_leave_tables_that_equal_the_log(tmp_path: Path) -> None:
    options = argparse.Namespace(
        commits=120, kills=2, seed=5, width=16, pause_ms=20.0, cleanup_age_s=10.0, compact_commits=8,
        index_rows_min=256, sample_s=1.0,
    )  # fmt: skip
    report = soak.run(tmp_path, options)
    figures = report["figures"]
    assert report["broken"] == [], report
    assert figures["commits"] == 120
    assert figures["kills"] == 2, report["kills"]
    assert figures["queries"] > 0
    assert report["coverage"]["vector"] == report["coverage"]["text"] == figures["rows"] > 256
