"""The state of a collection's indexes over REST: what `shoal index status` shows, of the same state."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from shoal.errors import TransientError
from shoal.store.index_report import report
from shoal.store.index_state import IndexRecord

INDEX = "/api/v1/collections/scraper/index"
GOOD = asdict(IndexRecord(kind="ivf_pq", rows=10, indexed=9, unindexed=1, verified={"after": "fold", "outcome": "ok"}))


def state(**vectors: Any) -> dict[str, Any]:
    return {
        "at": "2025-01-20T14:30:04Z",
        "tables": {"vectors": {"content_embedding": {**GOOD, **vectors}}, "metadata": {"schema_embedding": GOOD}},
        "build": None,
        "requests": {"c1": {"state": "done", "detail": ""}},
    }


async def test_it_is_what_the_writer_published_and_what_this_replica_sees(http: Any, stand: Any) -> None:
    stand.indexes = state()
    body = (await http.get(INDEX)).json()
    assert (body["collection"], body["at"], body["ok"], body["warnings"]) == (
        "scraper",
        "2025-01-20T14:30:04Z",
        True,
        [],
    )
    assert [(row["table"], row["column"], row["indexed"]) for row in body["indexes"]] == [
        ("vectors", "content_embedding", 9),
        ("metadata", "schema_embedding", 9),
    ]
    assert body["requests"] == {"c1": {"state": "done", "detail": ""}}
    assert body["freshness"]["unindexed_rows"] == {"vector": 3, "keyword": None, "hash": 1, "schema": 2}


@pytest.mark.parametrize(
    "wrong", [{"failures": 2}, {"verified": {"after": "fold", "outcome": "3 rows are not covered"}}]
)
async def test_what_verification_or_builds_found_is_not_ok(http: Any, stand: Any, wrong: dict[str, Any]) -> None:
    stand.indexes = state(**wrong)
    assert (await http.get(INDEX)).json()["ok"] is False


@pytest.mark.parametrize("found", [None, ["odd"], "text"])
async def test_before_a_writer_described_them_there_are_none_and_a_warning(http: Any, stand: Any, found: Any) -> None:
    stand.indexes = found
    body = (await http.get(INDEX)).json()
    assert (body["at"], body["indexes"]) == (None, [])
    assert "shoal up" in body["warnings"][0]


async def test_other_collections_unknown_parameters_and_a_store_that_is_away_are_problems(
    http: Any, stand: Any
) -> None:
    unknown = await http.get("/api/v1/collections/other/index")
    assert (unknown.status_code, "those are: scraper" in unknown.json()["detail"]) == (404, True)
    assert (await http.get(f"{INDEX}?verbose=1")).status_code == 422
    stand.indexes = TransientError("the store is away", 3.0)
    assert (await http.get(INDEX)).status_code == 503


@pytest.mark.parametrize("found", [{}, {"tables": []}, {"tables": {"vectors": {"x": 3}}, "build": 7, "requests": None}])
def test_a_state_of_another_shape_is_shown_as_far_as_it_goes(found: dict[str, Any]) -> None:
    shown = report(found)
    assert shown is not None
    assert shown.shown() == {"at": None, "ok": True, "indexes": [], "build": None, "requests": {}}
