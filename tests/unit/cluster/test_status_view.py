"""What a person on call reads: the verdict first, the trouble and its remedy next, every figure by its name."""

from __future__ import annotations

import io
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rich.console import Console

from shoal.cluster import status_view
from shoal.cluster.asking import show_status
from shoal.cluster.output import Exit, Format
from shoal.cluster.status import Facts, build_status
from shoal.cluster.status_view import PARTITIONS_MAX, health_of, render, span
from shoal.metrics import BatchStatistics, EmbedderStatistics, PartitionStatistics, ReaderStatistics, WriterStatistics

T0 = datetime(2026, 1, 20, 3, tzinfo=UTC)


def printed(answer: dict[str, Any], width: int = 150) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(render(answer))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def a_night(partitions: int = 1) -> dict[str, Any]:
    """An answer of `/api/v1/ingest` at three in the morning: one bucket refuses, one reader died, a feed is quiet."""
    mine = tuple(
        PartitionStatistics("c", "news", n, 77, 77, 88, 11, 45.0, 3, "256 documents in flight (in_flight_items_max)")
        for n in range(partitions)
    )
    other = PartitionStatistics("c", "news", 900, 5, 5, 5, 0, 0.0, 0, None)

    def reader(name: str, *marks: PartitionStatistics, **fields: Any) -> ReaderStatistics:
        known: dict[str, Any] = {
            "pid": 4711, "uptime_s": 7200.0, "in_flight_items": 3, "in_flight_bytes": 10, "oldest_item_s": 44.0,
            "oldest_item_stage": "fetching", "held_bytes": 3 * 1024**2, "held_bytes_max": 128 * 1024**2,
            "breakers": {"s3://scrapes": "access denied (for 41 s)"}, "retries": 31, "last_error": "access denied",
            "outcomes": {"indexed": 600, "dead_lettered": 2}, "dead_letters": {"object_missing": 2}, "ended": 602,
        }  # fmt: skip
        return ReaderStatistics(name=name, partitions=marks, **known | fields)

    writer = WriterStatistics(
        pid=1, uptime_s=60, epoch=3, commit_sequence=412, commits=7, queued=0, documents=80211, chunks=301442,
        last_commit_at=(T0 - timedelta(seconds=38)).isoformat(), unindexed_rows=0, maintenance="compacting",
    )  # fmt: skip
    facts = Facts("c", "kafka", "proxy", "hash:8", ("news",))
    status: Any = None
    for second in range(0, 32, 2):
        reports = {"writer": writer, "reader-0": reader("reader-0", *mine, ended=602 + second)}
        if second < 10:
            reports["reader-1"] = reader("reader-1", other)
        status = build_status(
            now=T0 + timedelta(seconds=second), started_at=T0 - timedelta(hours=2), facts=facts, reports=reports,
            problems={}, refusals={}, previous=status,
            actors={
                "reader-0": {"state": "running", "pid": 4711, "restarts": 0},
                "reader-1": {"state": "crash loop", "restarts": 9, "reason": "out of memory", "backoff_s": 8.0},
            },
        )  # fmt: skip
    quiet = {
        "environment": "prod", "dataset": "nyiso_load_forecast", "silent_s": 5 * 3600.0, "expected_every_s": 3600.0,
        "overdue_after_s": 3 * 3600.0, "overdue": True, "last_seen_at": "2026-01-19T22:00:00Z",
    }  # fmt: skip
    return {
        "health": status["health"], "reasons": status["reasons"], "ingest": status, "age_s": 1.2, "warnings": [],
        "feeds": {"at": None, "total": 212, "overdue": 1, "unknown": 8, "listed": [quiet, {**quiet, "overdue": False}]},
    }  # fmt: skip


def test_the_first_line_is_the_verdict() -> None:
    first = printed(a_night()).splitlines()[0]
    assert first.startswith("DOWN, ")
    assert "lag 11 messages" in first
    assert "1 feed gone quiet" in first


def test_each_trouble_stands_with_what_to_do_before_any_figure() -> None:
    text = printed(a_night())
    head = text.split("\nlag  ")[0]
    for trouble in ("s3://scrapes", "access denied (for 41 s)", "out of memory", "every fetcher", "news/900"):
        assert trouble in head
    assert head.count("->") == head.count("\n! ")


@pytest.mark.parametrize(
    "figure",
    [
        "11 messages, 45 s",  # lag
        "3 documents, 3.0 MiB of 128.0 MiB",  # in flight
        "44 s, news/0@77: fetching (access denied)",  # the oldest
        "object_missing 4 (`shoal dlq list`)",  # dead letters by reason
        "indexed 1200",
        "epoch 3, last commit 68 s ago (number 412)",
        "80211 documents, 301442 chunks",
        "256 documents in flight (in_flight_items_max)",  # paused because
        "nobody for 22 s",  # a partition without an owner
        "crash loop",
        "nyiso_load_forecast",
        "1 of 204 gone quiet (8 more are too new to tell)",
    ],
)
def test_every_figure_is_there(figure: str) -> None:
    assert figure in printed(a_night())


def test_the_embedders_line_says_what_cost_nothing_what_waits_and_how_the_provider_is() -> None:
    answer = a_night()
    answer["ingest"]["embedder"] = asdict(
        EmbedderStatistics(
            model="hash:8", width=8, pid=2, uptime_s=60, texts=1000, cache_hits=700, reused=50, requests=9, tokens=90,
            failed_requests=2, queued_texts=260, queued_by_lane={"query": 0, "live": 4, "backfill": 256}, running=4,
            running_max=6, unwell_s=75.0, last_error="rate [limit] reached",
        )
    )  # fmt: skip
    assert (
        "1000 texts, 75% not paid for (700 from the cache, 50 from the tables); 9 requests, 2 failed; "
        "260 queued (4 live, 256 backfill); 4 of 6 requests under way; unwell for 75 s; "
        "last error: rate [limit] reached"
    ) in " ".join(printed(answer, 400).split())


def test_only_the_quiet_feeds_are_listed() -> None:
    assert printed(a_night()).count("nyiso_load_forecast") == 1


def test_many_partitions_are_cut_to_a_screenful_with_nobody_s_first() -> None:
    text = printed(a_night(partitions=60))
    rows = [line for line in text.splitlines() if line.startswith("news/")]
    assert len(rows) == PARTITIONS_MAX
    assert rows[0].startswith("news/900")
    assert "37 more partitions" in text


@pytest.mark.parametrize("ingest", [None, {}, ["odd"], {"health": "ok", "at": "soon"}, {"totals": {}, "writer": None}])
def test_a_status_that_is_missing_or_of_another_version_is_shown_and_not_well(ingest: Any) -> None:
    answer = {"ingest": ingest, "age_s": None, "warnings": ["no ingest status yet"]}
    assert printed(answer).splitlines()[0].startswith("UNKNOWN")
    assert "no ingest status yet" in printed(answer)
    assert health_of(answer) != "ok"


def test_text_from_outside_can_not_draw_on_the_terminal() -> None:
    answer = a_night()
    answer["ingest"]["actors"]["reader-1"]["reason"] = "[red]\x1b[2Jgone"
    answer["reasons"][0]["why"] = "[bold]\x1b[2Jwhy"
    assert "\x1b" not in printed(answer)
    assert "[red]" in printed(answer)


@pytest.mark.parametrize(("health", "code"), [("ok", 0), ("degraded", 1), ("down", 1), ("unknown", 1)])
@pytest.mark.parametrize("form", list(Format))
def test_the_exit_code_says_whether_it_is_well(health: str, code: int, form: Format) -> None:
    assert show_status({"health": health, "ingest": None}, form) == Exit(code)


def test_an_older_server_that_does_not_judge_is_judged_here() -> None:
    assert health_of({"ingest": {"health": "ok"}, "age_s": 1.0}) == "ok"
    assert health_of({"ingest": {"health": "ok"}, "age_s": 60.0}) == "unknown"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0, "0 s"),
        (0.31, "0.31 s"),
        (45, "45 s"),
        (90, "90 s"),
        (600, "10 min"),
        (9000, "2.5 h"),
        (3e5, "3.47 d"),
    ],
)
def test_lengths_of_time_are_said_as_people_say_them(seconds: float | None, text: str) -> None:
    assert span(seconds) == text


def test_jobs_at_half_price_have_a_row_where_there_are_any() -> None:
    assert status_view._half_price({}) == {}
    found = asdict(
        BatchStatistics(
            jobs=2,
            unfinished=1,
            texts=900,
            embedded_texts=500,
            tokens=9000,
            embedded_tokens=5000,
            missing_texts=3,
            saved_usd=1.5,
            parts={"submitted": 2, "done": 5},
            oldest_since="2026-01-20T10:00:00+00:00",
            notes=("late",),
        )
    )
    assert status_view._half_price(found) == {
        "half price": "500 of 900 texts; 1 of 2 jobs unfinished; parts: 2 submitted, 5 done; $1.50 saved; "
        "3 left to the full price; since 2026-01-20T10:00; late"
    }


def test_what_the_load_wants_of_a_pool_is_said_with_its_reason_and_nothing_of_one_that_is_fixed() -> None:
    readers = {"min": 2, "max": 8, "wanted": 4, "working": 2, "pending": 2, "leaving": 0, "why": "9 messages behind"}
    fetchers = dict.fromkeys(("min", "max", "wanted", "working"), 2) | {"pending": 0, "leaving": 0, "why": "fixed"}
    assert status_view._scaling({"scaling": {"readers": readers, "fetchers": fetchers}}) == (
        "4 readers wanted (2 to 8), 2 working, 2 pending: 9 messages behind"
    )
    assert status_view._scaling({"scaling": {"fetchers": fetchers}}) == status_view._scaling({}) == ""
