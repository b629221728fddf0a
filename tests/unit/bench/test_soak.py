"""The soak's own parts: the log it writes and the verdict it gives."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.corpus import MODEL
from bench.soak_log import MESSAGES, Log, audit
from bench.soak_processes import Plan, Shared, _torn
from bench.soak_verdict import closing, growth, judge
from shoal.records import Announcement, Deletion, Embedded
from shoal.settings import Settings
from shoal.store.requests import Hit, SearchPage
from shoal.store.search import Freshness
from shoal.store.writing import TableWriter
from tests.unit.store.test_written_then_read import T0

HELD: dict[str, Any] = {
    "commits": 20_000, "queries": 9, "query_errors": 0, "coverage": 1.0, "recall@10": 0.99, "disk_factor": 4.0,
    "disk_peak_mb": 900.0, "rss_max_mb": 700.0, "rss_growth_writer": 1.1, "rss_growth_asker": None, "findings": 0,
    "deaths": 0,
}  # fmt: skip


def test_a_writer_that_begins_anew_is_given_the_same_log() -> None:
    one, other = Log(3, 8), Log(3, 8)
    assert one.batch(0)  # what was asked before changes nothing
    for first, second in zip(one.batch(40), other.batch(40), strict=True):
        assert type(first) is type(second)
        if isinstance(first, Embedded) and isinstance(second, Embedded):
            assert first.fetched == second.fetched
            np.testing.assert_array_equal(first.vectors, second.vectors)  # type: ignore[arg-type]


def test_the_log_has_new_documents_newer_and_older_versions_and_deletions() -> None:
    log, kinds, newest = Log(1, 8), Counter[str](), dict[str, str]()
    for _, work in log.works(200):
        if isinstance(work, Deletion):
            kinds["gone"] += 1
            continue
        assert isinstance(work, Announcement)
        known = newest.get(work.document_id)
        kinds["new" if known is None else "newer" if work.version > known else "late"] += 1
        newest[work.document_id] = max(work.version, known or "")
    assert kinds.keys() == {"new", "newer", "late", "gone"}
    assert kinds["new"] > 100


def test_the_check_finds_a_chunk_that_vanished_and_nothing_before(tmp_path: Path) -> None:
    log = Log(1, 8)
    writer = TableWriter.open(str(tmp_path), {}, MODEL, 8, settings=Settings(), now=T0)
    for number in range(12):
        writer.apply(log.batch(number), log.progress(number), T0)
    assert audit(log, 12, str(tmp_path)).differences == 0
    writer._tables["vectors"].dataset.delete("chunk_index = 1 AND id LIKE '%:0#1'")
    report = audit(log, 12, str(tmp_path))
    assert {kind: count for kind, count in report.counts.items() if kind == "missing_chunks"} == {"missing_chunks": 1}
    assert audit(log, 13, str(tmp_path)).differences > report.differences, "a commit that is not in is missing"


@pytest.mark.parametrize(
    ("figure", "value", "said"),
    [
        ("query_errors", 1, "1 questions failed"),
        ("queries", 0, "nothing was asked"),
        ("coverage", 0.999, "coverage is 0.9990"),
        ("recall@10", 0.94, "recall@10 is 0.940"),
        ("disk_factor", 13.0, "13.0 times"),
        ("rss_growth_writer", 1.6, "memory of the writer"),
        ("rss_growth_asker", 1.6, "memory of the asker"),
        ("findings", 2, "2 findings"),
        ("deaths", 1, "died 1 times"),
    ],
)
def test_each_promise_that_does_not_hold_is_named(figure: str, value: float, said: str) -> None:
    assert judge(HELD) == []
    (line,) = judge({**HELD, figure: value})
    assert said in line


def test_of_a_short_soak_memory_and_a_small_disk_are_not_judged() -> None:
    assert judge({**HELD, "commits": 300, "rss_growth_writer": 3.0, "disk_factor": 30.0, "disk_peak_mb": 9.0}) == []


def test_memory_that_only_warms_up_has_not_grown_and_a_leak_has() -> None:
    assert growth([100.0] * 3) is None
    assert growth([20.0, 100, 200, 300, 400, 400, 410, 400, 405, 400, 400, 400]) == pytest.approx(1, abs=0.05)
    leak = growth([float(200 + 50 * at) for at in range(16)])
    assert leak is not None
    assert leak > 1.5


def test_a_chunk_beside_another_versions_metadata_is_torn() -> None:
    shared = Shared(words="/dev/null")
    whole = Hit({"id": "a", "version": "v2"}, {"content_summary": "[a v2] words"})
    torn = Hit({"id": "a", "version": "v2"}, {"content_summary": "[a v1] words"})
    page = SearchPage("vector", (whole, torn, Hit({"id": "b", "version": "v1"})), None, Freshness(1, None))
    assert _torn(page, shared) == 1


def test_the_plan_may_go_below_the_settings_floor() -> None:
    plan = Plan("uri", 1, 1, 8, cleanup_age_s=5.0, compact_commits=40, index_rows_min=300, pause_s=0.1)
    settings = plan.settings(compact_commits=2)
    assert (settings.cleanup_age_s, settings.index_rows_min, settings.compact_commits) == (5.0, 300, 2)
    assert MESSAGES == 2


def test_the_closing_line_has_every_promise() -> None:
    assert closing(HELD) == (
        "commits=20000 query_errors=0 coverage=1 recall@10=0.990 disk_factor=4.0 rss_max_mb=700 findings=0"
    )
