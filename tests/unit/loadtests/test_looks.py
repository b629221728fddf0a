"""The pure parts of the load test: what is asked, what counts as an answer, and what a look makes of Locust's files."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest

from bench.budgets import read_budgets
from loadtests import texts
from loadtests.looks import ALL, OUTSIDE, Look, read_rows, read_stages, server_timing, spent, wrong

CSV = """\
Type,Name,Request Count,Failure Count,Median Response Time,Average Response Time,Requests/s,50%,95%
GET,by hash,40,0,9,10.5,4.0,9,30
GET,"hybrid, known text",30,1,20,22.0,3.0,20,44
GET,"hybrid, new text",10,0,60,66.0,1.0,60,90
,Aggregated,80,1,15,20.0,8.0,15,N/A
"""


@pytest.fixture
def rows(tmp_path: Path) -> dict[str, dict[str, str]]:
    (tmp_path / "look_stats.csv").write_text(CSV)
    return read_rows(tmp_path / "look_stats.csv")


def test_what_is_indexed_and_asked_is_the_same_for_every_run() -> None:
    assert texts.topics() == texts.topics()
    assert len({topic.text for topic in texts.topics()}) == 910
    assert texts.questions() == texts.questions()
    assert len(texts.questions()) == texts.QUESTIONS_SEEN
    assert texts.sha256(7) == texts.sha256(7) != texts.sha256(8)


def test_new_questions_are_new_to_the_pool_and_to_each_other() -> None:
    asked = [*islice(texts.new_questions("0.1"), 500), *islice(texts.new_questions("0.2"), 500)]
    assert len(set(asked) - set(texts.questions())) == 1000
    assert [*islice(texts.new_questions("0.1"), 5)] == asked[:5]


def test_figures_tell_known_texts_from_new_ones_and_say_what_was_not_measured(rows: dict[str, dict[str, str]]) -> None:
    assert Look(rows).figures("thinking") == {
        "thinking.failed": 1, "thinking.qps": 8.0, "thinking.p50_ms": 15, "thinking.p95_ms": None,
        "thinking.known_p95_ms": 44, "thinking.new_text_p95_ms": 90,
    }  # fmt: skip
    assert set(Look({}).figures("thinking").values()) == {None}


def test_the_table_shows_each_kind_of_question_and_where_the_time_went(rows: dict[str, dict[str, str]]) -> None:
    look = Look(rows, {"by hash": {"search": 7.5, OUTSIDE: 3.0}}, {"Rest": 9.0, "locust": 1.0, "idle": 0.01}, 10.0)
    head, first, *_, last = look.lines()
    assert head.split()[-2:] == ["search", OUTSIDE]
    assert first.split() == ["by", "hash", "40", "0", "9", "30", "10.5", "7.5", "3"]
    assert last == "cores in use: 1.00 (Rest 0.90, locust 0.10)"


def test_what_the_service_did_not_count_is_outside(tmp_path: Path) -> None:
    sums = {
        "by hash": {"count": 2, "took": 30.0, "accept": 4.0, "search": 16.0},
        "never asked": {"count": 0, "took": 0},
    }
    (tmp_path / "stages.json").write_text(json.dumps(sums))
    means = {"accept": 2.0, "search": 8.0, OUTSIDE: 5.0}
    assert read_stages(tmp_path / "stages.json") == {"by hash": means, ALL: means}


def test_server_timing_is_read_as_far_as_it_is_one() -> None:
    assert server_timing("accept;dur=1.50, search;dur=20") == {"accept": 1.5, "search": 20.0}
    assert server_timing("") == server_timing("miss, db;desc=x;dur=soon") == {}


def test_processor_time_of_a_process_that_came_meanwhile_counts_whole() -> None:
    assert spent({"Rest": 5.0, "gone": 2.0}, {"Rest": 7.0, "new": 1.0}) == {"Rest": 2.0, "new": 1.0}


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({"results": [{"id": "a"}], "warnings": []}, None),
        ({"exists": True}, None),
        ({"similar_apis": [{"data_source": "PJM"}], "warnings": []}, None),
        ({"result": {"structuredContent": {"results": [{"id": "a"}]}}}, None),
        ({"exists": False}, "found nothing"),
        ({"results": []}, "found nothing"),
        ({"results": [{"id": "a"}], "warnings": ["late: these results are by keyword"]}, "degraded"),
        ({"similar_apis": [{}], "warnings": ["late: these APIs have words in common"]}, "degraded"),
        ({"jsonrpc": "2.0", "error": {"code": -32600}}, "refused"),
        ({"result": {"isError": True, "content": []}}, "refused"),
        ({"result": {"structuredContent": {"results": [{}], "warnings": ["by keyword"]}}}, "degraded"),
    ],
)
def test_an_answer_that_is_none_counts_as_failed(body: dict[str, object], why: str | None) -> None:
    found = wrong(body)
    assert found is None if why is None else found is not None and found.startswith(why)


def test_every_budget_can_be_read_and_is_of_a_figure_that_a_run_has(rows: dict[str, dict[str, str]]) -> None:
    known = {"ingest.without_outcome", "ingest.dead", "ingest.drained_s", "rebuilding.builds", "saturated_vs_core"}
    known |= {name for look in ("thinking", "saturated", "rebuilding") for name in Look(rows).figures(look)}
    assert {budget.figure for budget in read_budgets(Path(texts.__file__).with_name("budgets.toml"))} <= known
