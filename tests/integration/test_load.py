"""A short `make load`: one look of some seconds at a thousand documents, with every part that the long one has."""

from __future__ import annotations

import argparse
import importlib.util
import os
from pathlib import Path

import pytest

from loadtests import run
from loadtests.looks import ALL, OUTSIDE

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

# Looked for, not imported: Locust changes sockets and threads of the process that imports it.
HAS_LOCUST = importlib.util.find_spec("locust") is not None


@pytest.mark.skipif(not HAS_LOCUST and "CI" not in os.environ, reason="Locust is not installed")
def test_people_are_answered_while_files_come_in_and_the_report_says_where_the_time_went(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LANCE_LOG", "error")
    options = argparse.Namespace(documents=1_000, users=3, seconds=5, files_per_minute=120, looks=["thinking"], set=[])
    figures, looks = run.run(tmp_path, options)
    told = figures, looks, (tmp_path / "thinking.log").read_text()
    assert figures["thinking.failed"] == 0, told
    assert (figures["thinking.qps"] or 0) > 0, told
    assert (figures["core_qps"] or 0) > 0, told
    assert (figures["ingest.files"] or 0) > 0, told
    assert figures["ingest.without_outcome"] == figures["ingest.dead"] == 0, told
    assert looks["thinking"].stages_ms[ALL].keys() >= {"accept", "search", "send", OUTSIDE}, told
    assert looks["thinking"].cpu_s.keys() >= {"ray::ServeReplica:rest:Rest", "ray::Embedder", "locust"}, told
    assert (tmp_path / "thinking.html").stat().st_size > 0
