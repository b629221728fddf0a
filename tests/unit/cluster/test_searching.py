"""`shoal search` with filters, facets and explanations: what is typed becomes the tree that the service takes."""

from __future__ import annotations

import json
import sys
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from shoal.client import Shoal
from shoal.cluster import cli
from shoal.cluster.output import Format
from shoal.cluster.searching import UsageError, condition, explained, show, tree

TYPES = {"year": "integer", "dataset": "text", "ok": "boolean", "collected_at": "time"}


@pytest.mark.parametrize(
    ("text", "node"),
    [
        ("year=2025", {"column": "year", "eq": 2025}),
        (" year >= 2024 ", {"column": "year", "gte": 2024}),
        ("year<2024", {"column": "year", "lt": 2024}),
        ("year=2024,2025", {"column": "year", "in": [2024, 2025]}),
        ("dataset=a b", {"column": "dataset", "eq": "a b"}),
        ("dataset=nyiso_*", {"column": "dataset", "prefix": "nyiso_"}),
        ("dataset!=a,b", {"not": {"column": "dataset", "in": ["a", "b"]}}),
        ("dataset=null", {"column": "dataset", "is_null": True}),
        ("dataset!=null", {"not": {"column": "dataset", "is_null": True}}),
        ("dataset=x' OR 1=1", {"column": "dataset", "eq": "x' OR 1=1"}),
        ("ok=true", {"column": "ok", "eq": True}),
        ("collected_at<=2025-01-20", {"column": "collected_at", "lte": "2025-01-20"}),
        ('{"or": []}', {"or": []}),
    ],
)
def test_a_condition_is_read_as_people_write_it(text: str, node: dict[str, Any]) -> None:
    assert condition(text, TYPES) == node


@pytest.mark.parametrize("text", ["", "year", "=2025", "fence=1", "year=soon", "ok=yes", "{", "{" * 100_000, "a b=1"])
def test_what_is_no_condition_says_what_would_be(text: str) -> None:
    with pytest.raises(UsageError, match="--filter"):
        condition(text, TYPES)


def test_the_plain_options_join_the_conditions() -> None:
    asked = {"data_source": "nyiso", "start_date": "2025-01-20", "hash": "AB", "dataset": ""}
    assert tree(asked, ["year=2025"], TYPES) == {
        "and": [
            {"column": "data_source", "eq": "NYISO"},
            {"column": "collected_at", "gte": "2025-01-20"},
            {"column": "sha256_hash", "eq": "ab"},
            {"column": "year", "eq": 2025},
        ]
    }
    assert tree({}, [], TYPES) is None


ANSWER = {
    "results": [
        {
            "document": {"data_source": "NYISO", "dataset": "nyiso_load", "urn": "load.json"},
            "score": 0.83,
            "chunks": [{"text": "hourly \x1b[31mload", "snippet": {"text": "the load [red]", "spans": [[4, 8]]}}],
            "explain": {
                "fusion": "weighted",
                "legs": {"vector": {"rank": 2, "raw": 0.34, "normalised": 0.9, "weight": 0.7}},
                "boosts": {"recency": {"value": 0.5, "weight": 1.0}},
            },
        }
    ],
    "count": 1,
    "mode": "keyword",
    "took_ms": 3.2,
    "timings_ms": {"total": 3.0},
    "facets": {
        "of": 7,
        "exact": False,
        "columns": {"dataset": {"values": [{"value": "nyiso_load", "count": 6}], "others": 0, "missing": 1}},
    },
    "warnings": ["the query embedder does not answer: these results are by keyword"],
}


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[Any, dict[str, Any]]:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json=ANSWER)

    client = Shoal("http://shoal", transport=httpx.MockTransport(answer))
    monkeypatch.setattr(cli, "_client", lambda url: client)
    done = CliRunner().invoke(cli.app, ["search", *arguments], env={"COLUMNS": "200"})
    assert (done.exit_code, seen[0].url.path) == (0, "/api/v1/collections/scraper/search")
    return done, json.loads(seen[0].content)


def test_flags_reach_the_general_search_and_its_answer_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    done, sent = run(
        monkeypatch, "load", "--mode", "vector", "--filter", "year=2025", "--filter", "urn=load*",
        "--facets", "dataset, year", "--explain", "--source", "nyiso",
    )  # fmt: skip
    assert sent == {
        "query": "load", "mode": "vector", "limit": 10, "facets": ["dataset", "year"], "highlight": True,
        "explain": True, "chunks_per_document": 1,
        "filters": {"and": [
            {"column": "data_source", "eq": "NYISO"}, {"column": "year", "eq": 2025},
            {"column": "urn", "prefix": "load"},
        ]},
    }  # fmt: skip
    assert "the load [red]" in done.output
    assert "1. weighted: vector #2 raw 0.340 = 0.900 x 0.7, boost recency 0.500 x 1" in done.output
    assert "dataset (of the best 7): nyiso_load 6, none 1" in done.output
    assert "\x1b[31m" not in done.output


def test_a_hash_finds_older_versions_also_in_the_general_search(monkeypatch: pytest.MonkeyPatch) -> None:
    _, sent = run(monkeypatch, "--hash", "ab" * 32, "--explain")
    assert sent["include_superseded"] is True
    _, sent = run(monkeypatch, "load", "--hash", "ab" * 32, "--explain")
    assert "include_superseded" not in sent


def test_an_answer_of_the_past_says_of_which_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    state = {"commit_sequence": 412, "committed_at": "2025-01-20T14:30:04Z"}
    monkeypatch.setitem(ANSWER, "as_of", state)
    done, sent = run(monkeypatch, "load", "--as-of", "412", "--explain")
    assert sent["as_of"] == "412"
    assert "as of commit 412, 2025-01-20T14:30:04Z" in done.output


def test_results_of_the_search_for_scrapes_are_shown_the_same_way(capfd: pytest.CaptureFixture[str]) -> None:
    result = {"data_source": "NYISO", "urn": "load.json", "score": 0.5, "content_summary": "hourly load"}
    plain = {"results": [result], "count": 1, "query_type": "vector", "took_ms": 2, "next_cursor": "x"}
    show({**plain, "as_of": {"commit_sequence": 0, "committed_at": None}}, Format.table)
    shown = capfd.readouterr()
    assert "NYISO" in shown.out
    assert "hourly load" in shown.out
    assert "1 results (vector, 2 ms, more with" in shown.err
    assert "as of commit 0, before any commit" in shown.err


@pytest.mark.parametrize("arguments", [("--filter", "nothing=1"), ("--limit", "201", "--explain")])
def test_an_option_that_is_wrong_is_a_usage_error_of_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    monkeypatch.setattr(sys, "argv", ["shoal", "search", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert capfd.readouterr().err.startswith(f"shoal: {arguments[0]}")


def test_an_answer_by_words_for_want_of_an_embedder_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    done, _ = run(monkeypatch, "load", "--mode", "vector", "--facets", "dataset")
    assert "these results are by keyword" in " ".join(done.output.split())
    assert "keyword, 3.2 ms" in done.output


def test_an_explanation_names_everything_that_moved_a_result() -> None:
    assert explained({}) == "newest first"
    line = explained({"identifier": "urn", "mmr": {"place_before": 4}, "rerank": {"rank_before": 3}})
    assert line == "is its urn, spread from #4, reranked from #3"
