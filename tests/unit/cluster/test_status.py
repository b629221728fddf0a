"""The status: one truth out of many reports, through the deaths of those who report."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.cluster.status import Facts, ModelChange, build_status
from shoal.cluster.tallies import Report
from shoal.cluster.verdict import CHANGE_S, DOWN_AFTER_S, STUCK_S, UNOWNED_S
from shoal.metrics import (
    EmbedderStatistics,
    FetcherStatistics,
    PartitionStatistics,
    ReaderStatistics,
    RecallStatistics,
    SpendStatistics,
    WriterStatistics,
)

T0 = datetime(2026, 1, 20, 3, tzinfo=UTC)
FACTS = Facts("cluster", "kafka", "proxy", "hash:8", ("news", "shoal_commands"))


def a_partition(number: int = 0, **fields: Any) -> PartitionStatistics:
    known: dict[str, Any] = {
        "cluster": "cluster", "topic": "news", "partition": number, "next_offset": 10, "committed_offset": 10,
        "end_offset": 10, "lag_records": 0, "lag_s": 0.0, "in_flight": 0, "paused_because": None,
    }  # fmt: skip
    return PartitionStatistics(**known | fields)


def a_reader(name: str = "reader-0", *partitions: PartitionStatistics, **fields: Any) -> ReaderStatistics:
    known: dict[str, Any] = {
        "name": name, "pid": 100, "uptime_s": 60.0, "partitions": partitions, "in_flight_items": 0,
        "in_flight_bytes": 0, "oldest_item_s": None, "oldest_item_stage": None, "held_bytes_max": 1000,
    }  # fmt: skip
    return ReaderStatistics(**known | fields)


WRITER = WriterStatistics(
    pid=1, uptime_s=60, epoch=3, commit_sequence=7, commits=7, last_commit_at=(T0 - timedelta(seconds=5)).isoformat(),
    queued=0, documents=4, chunks=9, unindexed_rows=0, maintenance="idle",
)  # fmt: skip
EMBEDDER = EmbedderStatistics(
    model="hash:8", width=8, pid=2, uptime_s=60, texts=9, cache_hits=1, requests=2, tokens=90, queued_texts=0
)
FETCHER = FetcherStatistics(
    name="fetcher-0", pid=3, uptime_s=60, in_flight=0, fetched=4, fetched_bytes=4000, failed=0, extraction_kills=0
)


def a_crew(*readers: ReaderStatistics) -> dict[str, Report]:
    return {
        "writer": WRITER, "embedder": EMBEDDER, "fetcher-0": FETCHER,
        **{reader.name: reader for reader in readers or (a_reader("reader-0", a_partition()),)},
    }  # fmt: skip


class Desk:
    """A supervisor that turns every two seconds; `restart` is one that begins again from the file."""

    def __init__(self) -> None:
        self.now = self.started_at = T0
        self.previous: Any = None

    def turn(
        self,
        reports: Mapping[str, Report] | None = None,
        *,
        after_s: float = 2.0,
        problems: Mapping[str, str] | None = None,
        refusals: Mapping[str, str] | None = None,
        actors: Mapping[str, Mapping[str, Any]] | None = None,
        facts: Facts = FACTS,
        recall: RecallStatistics | None = None,
        change: ModelChange | None = None,
    ) -> dict[str, Any]:
        self.now += timedelta(seconds=after_s)
        self.previous = build_status(
            now=self.now, started_at=self.started_at, facts=facts, reports=a_crew() if reports is None else reports,
            problems=problems or {}, refusals=refusals or {}, actors=actors or {}, previous=self.previous,
            recall=recall, change=change,
        )  # fmt: skip
        return dict(self.previous)

    def restart(self, after_s: float = 0.0) -> None:
        self.now += timedelta(seconds=after_s)
        self.started_at = self.now
        self.previous = orjson.loads(orjson.dumps(self.previous, option=orjson.OPT_NON_STR_KEYS))


@pytest.fixture
def desk() -> Desk:
    return Desk()


def reasons(status: Mapping[str, Any]) -> dict[str, str]:
    return {reason["what"]: reason["why"] for reason in status["reasons"]}


# --- shape ------------------------------------------------------------------------------------


def test_every_key_that_clients_know_is_still_there(desk: Desk) -> None:
    status = desk.turn(problems={"reader-0 start": "no"}, refusals={"reader-0 start": "no"})
    for name in (
        "at", "started_at", "health", "problems", "refusals", "cluster", "broker", "ingress", "model", "writer",
        "embedder", "fetchers", "readers",
    ):  # fmt: skip
        assert name in status
    assert status["problems"] == status["refusals"] == {"reader-0 start": "no"}
    assert status["writer"]["documents"] == 4
    assert status["readers"][0]["partitions"][0]["committed_offset"] == 10
    assert (status["writer_epoch"], status["last_commit_age_s"]) == (3, 7.0)


def test_a_status_that_went_through_the_file_goes_on_as_if_it_had_not(desk: Desk) -> None:
    busy = a_reader("reader-0", a_partition(lag_records=3, lag_s=4.0, in_flight=2), outcomes={"indexed": 5}, ended=5)
    for _ in range(10):
        desk.turn(a_crew(busy))
    other = Desk()
    other.now, other.previous = desk.now, desk.previous
    other.restart()
    other.started_at = desk.started_at
    assert orjson.dumps(other.turn(a_crew(busy))) == orjson.dumps(desk.turn(a_crew(busy)))


@pytest.mark.parametrize(
    "previous", [{}, [], "odd", {"cluster": "cluster"}, {"cluster": "cluster", "memory": {"tallies": 3}, "at": "x"}]
)
def test_an_odd_earlier_status_counts_for_nothing_and_breaks_nothing(desk: Desk, previous: Any) -> None:
    desk.previous = previous
    assert desk.turn()["health"] == "ok"


def test_offsets_of_another_cluster_are_forgotten_and_tallies_are_not(desk: Desk) -> None:
    desk.turn(a_crew(a_reader("reader-0", a_partition(), outcomes={"indexed": 50})))
    status = desk.turn({}, facts=replace(FACTS, cluster="other"))
    assert (status["partitions"], status["totals"]["outcomes"]) == ([], {"indexed": 50})


def test_the_docs_explain_every_field_of_the_status(desk: Desk) -> None:
    page = (Path(__file__).parents[3] / "docs" / "status.md").read_text()
    words = set(re.findall(r"\w+", page))
    status = desk.turn()
    named = {*status, *status["totals"]} - {"memory"}
    assert {name for name in named if name not in words and not name.startswith("oldest_item")} == set()


def test_the_budget_is_shown_from_80_percent_on_and_says_what_to_do(desk: Desk) -> None:
    def turn(**fields: Any) -> dict[str, Any]:
        spend = SpendStatistics("ok", "$0.10 of $1.00 spent today", "2026-01-20", 0.1, 0.1, 1.0, 0.0)
        return desk.turn(a_crew() | {"embedder": replace(EMBEDDER, spend=replace(spend, **fields))})

    fine = turn()
    assert (fine["health"], fine["embedder"]["spend"]["spent_day_usd"]) == ("ok", 0.1)
    for level, told in (("warned", "At 100 %"), ("exhausted", "Nothing is lost")):
        (reason,) = turn(level=level)["reasons"]
        assert (reason["severity"], reason["what"]) == ("degraded", "budget")
        assert told in reason["do"]
    (unpriced,) = turn(unpriced_models=("openai:mystery",))["reasons"]
    assert "SHOAL_PRICES" in unpriced["do"]
    (behind,) = turn(last_error="no broker")["reasons"]
    assert (behind["what"], "no broker" in behind["why"]) == ("ledger", True)


def test_recall_is_shown_and_its_alarm_says_what_to_do(desk: Desk) -> None:
    figures = RecallStatistics(T0.isoformat(), 0.97, 0.95, 10, 20, 2, 60, 4, None)
    status = desk.turn(recall=figures)
    assert (status["health"], status["recall"]["recall"], status["recall"]["nprobes"]) == ("ok", 0.97, 20)
    low = desk.turn(recall=replace(figures, recall=0.8, alarm="recall@10 is 0.800 at best, below 0.95"))
    assert low["health"] == "degraded"
    (reason,) = low["reasons"]
    assert "0.800 at best" in reason["why"]
    assert "shoal index rebuild" in reason["do"]
    assert desk.turn()["health"] == "ok"  # there is no index


# --- tallies ----------------------------------------------------------------------------------


def test_outcomes_survive_the_restart_of_a_reader_and_of_the_supervisor(desk: Desk) -> None:
    """1. a reader counts to 50; 2. it is killed and counts anew; 3. the supervisor begins again; 4. on it goes."""
    desk.turn(a_crew(a_reader(outcomes={"indexed": 50}, dead_letters={"empty": 2}, retries=3, ended=52)))
    desk.turn(a_crew(a_reader(pid=101, uptime_s=1.0, outcomes={"indexed": 7}, ended=7)))
    desk.restart(after_s=30)
    totals = desk.turn(a_crew(a_reader(pid=101, uptime_s=33.0, outcomes={"indexed": 9}, retries=1, ended=9)))["totals"]
    assert totals["outcomes"] == {"indexed": 59}
    assert (totals["dead_letters"], totals["retries"], totals["ended"]) == ({"empty": 2}, 4, 61)


@settings(deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(0, 50), st.booleans()), min_size=1, max_size=8), min_size=1, max_size=6))
def test_a_tally_is_what_all_lives_reported_and_never_falls(lives: list[list[tuple[int, bool]]]) -> None:
    """Lives of one reader, each a list of (done since the last report, the supervisor begins again after it)."""
    desk, expected, shown = Desk(), 0, 0
    for life, reports in enumerate(lives):
        count = 0
        for turn, (done, restarts) in enumerate(reports):
            count += done
            expected += done
            report = a_reader(pid=7, uptime_s=2.0 * turn + 0.001 * (len(lives) - life), outcomes={"indexed": count})
            found = desk.turn(a_crew(report))["totals"]["outcomes"].get("indexed", 0)
            assert found >= shown
            shown = found
            if restarts:
                desk.restart()
    assert shown == expected


def test_rates_are_over_the_last_minute_and_outlive_a_restart_of_a_reader(desk: Desk) -> None:
    for second in range(0, 300, 2):  # one document a second, then the reader is killed at 200 s
        life = second if second < 200 else second - 200
        report = a_reader(pid=1 if second < 200 else 2, uptime_s=life, outcomes={"indexed": life}, ended=life)
        status = desk.turn(a_crew(report))
    rates = status["totals"]["rates"]
    assert rates["per_min"]["indexed"] == pytest.approx(60, abs=2)
    assert rates["ended_per_min"] == pytest.approx(60, abs=2)
    assert 55 <= rates["window_s"] <= 70
    idle = report
    for _ in range(40):
        status = desk.turn(a_crew(idle))
    assert status["totals"]["rates"]["per_min"] == {"indexed": 0}


def test_a_rate_is_not_known_from_one_look_nor_over_a_gap(desk: Desk) -> None:
    assert desk.turn()["totals"]["rates"]["ended_per_min"] is None
    desk.turn(after_s=10)
    desk.restart(after_s=600)
    rates = desk.turn(a_crew(a_reader(outcomes={"indexed": 900}, ended=900)))["totals"]["rates"]
    assert (rates["ended_per_min"], rates["per_min"]) == (None, {})


# --- partitions -------------------------------------------------------------------------------


def test_a_partition_stays_in_sight_while_its_readers_restart(desk: Desk) -> None:
    """1. reader-0 has it; 2. it dies; 3. nobody has it; 4. reader-1 takes it over."""
    behind = a_partition(lag_records=5, lag_s=8.0, in_flight=2, end_offset=15)
    desk.turn(a_crew(a_reader("reader-0", behind), a_reader("reader-1", pid=101)))
    desk.turn(a_crew(a_reader("reader-1", pid=101)))
    status = desk.turn(a_crew(a_reader("reader-1", pid=101)))
    (entry,) = status["partitions"]
    assert (entry["owner"], entry["last_owner"], entry["unowned_s"]) == (None, "reader-0", 4.0)
    assert (entry["lag_records"], entry["committed_offset"], entry["in_flight"]) == (5, 10, 0)
    assert entry["lag_s"] == 12.0, "what waits there gets older"
    assert status["totals"]["lag_records"] == 5
    (entry,) = desk.turn(a_crew(a_reader("reader-1", behind, pid=101)))["partitions"]
    assert (entry["owner"], entry["unowned_s"]) == ("reader-1", 0.0)


def test_nobody_s_partition_is_seen_through_a_restart_of_everything(desk: Desk) -> None:
    desk.turn()
    desk.restart(after_s=3600)
    status = desk.turn({})
    assert [entry["owner"] for entry in status["partitions"]] == [None]
    assert status["partitions"][0]["unowned_s"] > 3600
    assert status["partitions"][0]["lag_s"] is None, "more may have come: nobody knows"
    assert "news/0" not in reasons(status), "a start is not blamed for the time before it"
    assert "news/0" in reasons(desk.turn({}, after_s=UNOWNED_S))


def test_a_partition_of_a_topic_that_nobody_reads_any_more_is_forgotten(desk: Desk) -> None:
    desk.turn()
    status = desk.turn(a_crew(a_reader()), facts=replace(FACTS, topics=("other",)))
    assert status["partitions"] == []


def test_of_two_readers_that_name_a_partition_the_one_that_is_further_speaks(desk: Desk) -> None:
    old, new = a_reader("reader-0", a_partition()), a_reader("reader-1", a_partition(next_offset=12, end_offset=12))
    for readers in ((old, new), (new, old)):
        (entry,) = desk.turn(a_crew(*readers))["partitions"]
        assert (entry["owner"], entry["next_offset"]) == ("reader-1", 12)


def test_a_partition_that_does_the_same_work_again_and_again_is_stuck(desk: Desk) -> None:
    """Each life of the reader gets a bit further, and dies before it can commit."""
    for turn in range(int(STUCK_S / 2) + 5):
        mark = a_partition(next_offset=10 + turn % 4, lag_records=5, lag_s=2.0, in_flight=3)
        report = a_reader("reader-0", mark, uptime_s=turn % 4, oldest_item_s=3.0, oldest_item_stage="fetching")
        status = desk.turn(a_crew(report))
    assert status["partitions"][0]["stuck_s"] >= STUCK_S
    assert "no progress" in reasons(status)["news/0"]
    assert "fetching" in reasons(status)["news/0"]
    moved = a_reader("reader-0", a_partition(committed_offset=11, lag_records=4, in_flight=3))
    status = desk.turn(a_crew(moved))
    assert (status["partitions"][0]["stuck_s"], status["health"]) == (0.0, "ok")


def test_a_partition_at_rest_is_never_stuck(desk: Desk) -> None:
    for _ in range(int(STUCK_S)):
        status = desk.turn()
    assert (status["partitions"][0]["stuck_s"], status["health"]) == (0.0, "ok")


# --- totals -----------------------------------------------------------------------------------


def test_totals_are_of_all_readers_and_name_the_oldest(desk: Desk) -> None:
    first = a_reader(
        "reader-0", a_partition(0, lag_records=3, lag_s=2.0, in_flight=1), in_flight_items=1, in_flight_bytes=10,
        held_bytes=100, oldest_item_s=2.0, oldest_item_stage="embedding",
    )  # fmt: skip
    second = a_reader(
        "reader-1", a_partition(1, lag_records=4, lag_s=9.0, in_flight=2, next_offset=77), in_flight_items=2,
        in_flight_bytes=20, held_bytes=200, oldest_item_s=9.0, oldest_item_stage="fetching", last_error="slow",
    )  # fmt: skip
    unknown = a_reader("reader-2", a_partition(2, lag_records=None, lag_s=None, end_offset=None))
    totals = desk.turn(a_crew(first, second, unknown))["totals"]
    assert (totals["lag_records"], totals["lag_unknown_partitions"], totals["lag_s"]) == (7, 1, 9.0)
    assert (totals["in_flight_items"], totals["in_flight_bytes"]) == (3, 30)
    assert (totals["held_bytes"], totals["held_bytes_max"]) == (300, 3000)
    assert (totals["oldest_item_s"], totals["oldest_item_waits_for"]) == (9.0, "fetching")
    assert (totals["oldest_item_position"], totals["oldest_item_error"]) == ("news/1@77", "slow")
    told = replace(second, oldest_item_position="news/1@80")
    assert desk.turn(a_crew(told))["totals"]["oldest_item_position"] == "news/1@80"


def test_lag_that_nobody_knows_is_not_zero(desk: Desk) -> None:
    nobody_knows = a_reader("reader-0", a_partition(lag_records=None, lag_s=None))
    assert desk.turn(a_crew(nobody_knows))["totals"]["lag_records"] is None


def test_what_is_paused_is_told_with_its_reason_and_since_when(desk: Desk) -> None:
    full = a_partition(paused_because="256 documents in flight (in_flight_items_max)")
    reader = a_reader("reader-0", full, breakers={"s3://bucket": "access denied (for 3 s)"})
    since = desk.turn(a_crew(reader))["at"]
    status = desk.turn(a_crew(replace(reader, breakers={"s3://bucket": "access denied (for 5 s)"})))
    paused = {one["what"]: one for one in status["paused"]}
    assert paused["news/0"]["because"] == "256 documents in flight (in_flight_items_max)"
    assert paused["s3://bucket"]["kind"] == "dependency"
    assert paused["s3://bucket"]["since"] == since
    assert desk.turn()["paused"] == []
    assert desk.turn(a_crew(reader))["paused"][0]["since"] == desk.now.isoformat(), "a new pause begins anew"


# --- health -----------------------------------------------------------------------------------


def test_a_flow_at_rest_is_ok_without_a_reason(desk: Desk) -> None:
    watched = {name: {"state": "running", "pid": 1, "restarts": 0} for name in a_crew()}
    status = desk.turn(actors=watched)
    assert (status["health"], status["reasons"]) == ("ok", [])


def test_holding_back_at_a_bound_is_no_illness(desk: Desk) -> None:
    full = a_partition(paused_because="256 documents in flight", lag_records=9, in_flight=256)
    assert desk.turn(a_crew(a_reader("reader-0", full)))["health"] == "ok"


@pytest.mark.parametrize("gone", ["writer", "embedder", "fetcher-0", "reader-0"])
def test_who_is_missed_degrades_at_once_and_is_an_outage_after_a_while(desk: Desk, gone: str) -> None:
    for _ in range(20):
        desk.turn()
    rest = {name: report for name, report in a_crew().items() if name != gone}
    first = desk.turn(rest, problems={f"{gone} statistics": "down, restarting"})
    assert first["health"] == "degraded"
    assert "down, restarting" in " ".join(reasons(first).values())
    assert desk.turn(rest, after_s=DOWN_AFTER_S)["health"] == "down"
    assert desk.turn()["health"] == "ok"


def test_one_of_several_readers_is_no_outage(desk: Desk) -> None:
    watched = {"reader-0": {"state": "crash loop", "reason": "killed", "restarts": 9, "backoff_s": 8.0}}
    others = a_crew(a_reader("reader-1", a_partition()))
    status = desk.turn(others, after_s=60, actors=watched, problems={"reader-0 statistics": "down, restarting"})
    assert status["health"] == "degraded"
    assert "killed" in reasons(status)["reader-0"]
    assert "in 8 s" in reasons(status)["reader-0"]
    assert len(status["reasons"]) == 1, "one trouble is told once"


@pytest.mark.parametrize("state", ["pending", "leaving"])
def test_readers_that_come_and_go_with_the_load_are_no_reason(desk: Desk, state: str) -> None:
    watched = {"reader-0": {"state": "running"}, "reader-1": {"state": state}}
    assert desk.turn(after_s=600, actors=watched)["health"] == "ok"


def test_a_start_is_not_an_outage(desk: Desk) -> None:
    status = desk.turn({}, problems={"supervisor start": "RuntimeError: no node has room"})
    assert status["health"] == "degraded"
    assert status["problems"] == {"supervisor start": "RuntimeError: no node has room"}
    assert desk.turn({}, after_s=DOWN_AFTER_S)["health"] == "down"


def test_a_writer_that_was_fenced_is_an_outage_at_once(desk: Desk) -> None:
    status = desk.turn(a_crew() | {"writer": replace(WRITER, ended="FENCED: epoch 4 writes")})
    assert status["health"] == "down"
    assert status["problems"]["writer ended"] == "FENCED: epoch 4 writes"
    assert "FENCED" in reasons(status)["writer"]


def test_a_change_of_the_model_is_told_as_that_and_not_as_an_outage_of_whoever_starts_anew(desk: Desk) -> None:
    for _ in range(20):
        desk.turn()
    change = ModelChange("hash:64", "hash:128", desk.now)
    waiting = {"state": "crash loop", "reason": "the collection has moved to hash:128", "restarts": 1, "backoff_s": 1.0}
    actors = dict.fromkeys(("writer", "embedder", "fetcher-0", "reader-0"), waiting)
    away = {"change": change, "actors": actors, "problems": {"writer statistics": "no answer for 6 s"}}
    status = desk.turn({}, after_s=DOWN_AFTER_S + 25, **away)
    assert status["health"] == "degraded"
    assert list(reasons(status)) == ["changing model"], "nobody's partitions and silent actors belong to it"
    assert "hash:64 to hash:128" in reasons(status)["changing model"]
    assert status["changing_model"]["for_s"] == DOWN_AFTER_S + 25


def test_a_change_of_the_model_that_does_not_end_is_an_outage(desk: Desk) -> None:
    desk.turn()
    change = ModelChange("hash:64", "hash:128", desk.now)
    status = desk.turn({}, after_s=CHANGE_S + 1, change=change)
    assert status["health"] == "down"
    assert {"changing model", "the writer"} <= reasons(status).keys()


def test_what_a_person_must_mend_in_the_new_model_is_told_at_once(desk: Desk) -> None:
    desk.turn()
    change = ModelChange("hash:64", "openai:x", desk.now)
    why = {"embedder create": "openai:x needs a key: set OPENAI_API_KEY"}
    status = desk.turn(
        {}, change=change, problems=why, refusals=why, actors={"embedder": {"state": "waiting", "reason": None}}
    )
    assert why["embedder create"] in reasons(status).values()


def test_a_dependency_that_fails_for_all_is_named(desk: Desk) -> None:
    status = desk.turn(a_crew(a_reader("reader-0", a_partition(), breakers={"s3://b": "access denied (for 3 s)"})))
    assert status["health"] == "degraded"
    assert "access denied" in reasons(status)["s3://b"]


def test_a_loop_that_does_not_turn_is_told(desk: Desk) -> None:
    status = desk.turn(a_crew() | {"embedder": replace(EMBEDDER, stalled_s=25.0)})
    assert "25 s" in reasons(status)["embedder"]


def test_a_flood_of_dead_letters_degrades_and_a_trickle_does_not(desk: Desk) -> None:
    def after_a_minute(dead: int, indexed: int) -> dict[str, Any]:
        turning = Desk()
        for share in range(31):
            done = {"dead_lettered": dead * share // 30, "indexed": indexed * share // 30}
            status = turning.turn(a_crew(a_reader("reader-0", a_partition(), outcomes=done, ended=sum(done.values()))))
        return status

    assert "documents" in reasons(after_a_minute(dead=600, indexed=10))
    assert after_a_minute(dead=5, indexed=0)["health"] == "ok"
    assert after_a_minute(dead=100, indexed=600)["health"] == "ok"


def test_every_reason_says_what_to_do(desk: Desk) -> None:
    status = desk.turn(
        {"reader-0": a_reader("reader-0", a_partition(), breakers={"kafka": "down"}, stalled_s=60)},
        after_s=60,
        problems={"writer start": "no key", "supervisor start": "odd"},
        refusals={"writer start": "no key"},
        actors={"reader-1": {"state": "waiting", "reason": "killed"}},
    )
    assert len(status["reasons"]) >= 6
    assert all(reason["do"] and reason["why"] for reason in status["reasons"])
    severities = [reason["severity"] for reason in status["reasons"]]
    assert severities == sorted(severities, reverse=True), "the worst first"
