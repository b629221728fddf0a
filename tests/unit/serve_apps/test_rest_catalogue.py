"""`GET /api/v1/scrapes/datasets` and the collections: what there is."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from shoal.errors import TransientError
from shoal.store.cadence import rhythm
from shoal.store.feeds import Catalogue, Feed

HOUR_S = 3600.0
DATASETS = "/api/v1/scrapes/datasets"


def a_feed(dataset: str, silent_s: float, source: str = "NYISO", environment: str = "prod") -> Feed:
    last_s = datetime.now(UTC).timestamp() - silent_s
    usual = rhythm([last_s - HOUR_S * n for n in range(9, -1, -1)])
    first = datetime(2024, 1, 20, tzinfo=UTC)
    return Feed(environment, dataset, source, 10, 12, {"CSV": 2, "JSON": 10}, first, first, first, usual, last_s)


@pytest.fixture
def feeds(stand: Any) -> Any:
    def put(*feeds: Feed) -> None:
        stand.index.catalogue = Catalogue(datetime(2025, 1, 20, tzinfo=UTC), feeds)

    return put


async def test_a_dataset_tells_how_much_there_is_and_whether_it_is_overdue(http: Any, feeds: Any) -> None:
    feeds(a_feed("late", 9 * HOUR_S), a_feed("well", 60.0))
    body = (await http.get(DATASETS)).json()
    assert (body["total"], body["overdue"], body["next_cursor"]) == (2, 1, None)
    late = body["datasets"][0]
    assert (late["dataset"], late["overdue"], late["expected_every_s"]) == ("late", True, HOUR_S)
    assert (late["documents"], late["versions"], late["formats"]) == (10, 12, {"CSV": 2, "JSON": 10})
    assert late["first_seen_at"] == "2024-01-20T00:00:00Z"


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("data_source=nyiso", ["late", "well"]),
        ("dataset=caiso_load", ["caiso_load"]),
        ("environment=dev", ["new"]),
        ("overdue=true", ["late"]),
        ("overdue=false", ["new", "caiso_load", "well"]),
    ],
)
async def test_datasets_are_filtered(http: Any, feeds: Any, asked: str, expected: list[str]) -> None:
    feeds(
        a_feed("late", 9 * HOUR_S), a_feed("well", 60.0), a_feed("caiso_load", 60.0, "CAISO"),
        a_feed("new", 60.0, "ERCOT", "dev"),
    )  # fmt: skip
    found = (await http.get(f"{DATASETS}?{asked}")).json()["datasets"]
    assert [one["dataset"] for one in found] == expected


async def test_pages_hold_every_dataset_once(http: Any, feeds: Any) -> None:
    feeds(*(a_feed(f"d{number:02}", 60.0, environment=("prod", "dev")[number % 2]) for number in range(23)))
    found, cursor = [], ""
    while True:
        page = (await http.get(DATASETS, params={"limit": 5, "cursor": cursor})).json()
        assert page["total"] == 23
        found += [(one["environment"], one["dataset"]) for one in page["datasets"]]
        if not (cursor := page["next_cursor"]):
            break
    assert found == sorted(set(found))
    assert len(found) == 23


@pytest.mark.parametrize("cursor", ["x", "WzFd", "WyJkYXRhc2V0cyIsMSwyXQ", "WyJkZWFkLWxldHRlcnMiLCJhIiwiYiJd", "é"])
async def test_a_cursor_of_nothing_is_refused(http: Any, feeds: Any, cursor: str) -> None:
    feeds(a_feed("well", 60.0))
    answer = await http.get(DATASETS, params={"cursor": cursor})
    assert (answer.status_code, answer.json()["parameter"]) == (422, "cursor")


async def test_the_catalogue_is_the_same_to_its_etag_while_nothing_arrives(http: Any, feeds: Any) -> None:
    fixed = a_feed("well", 60.0)
    feeds(fixed)
    tag = (await http.get(DATASETS)).headers["etag"]
    assert (await http.get(DATASETS, headers={"If-None-Match": tag})).status_code == 304
    feeds(fixed, a_feed("new", 60.0))
    assert (await http.get(DATASETS, headers={"If-None-Match": tag})).status_code == 200


async def test_while_datasets_are_counted_for_the_first_time_callers_shall_come_back(http: Any, stand: Any) -> None:
    answer = await http.get(DATASETS)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
    stand.index.catalogue = TransientError("the store is down")
    assert (await http.get(DATASETS)).status_code == 503


async def test_an_unknown_parameter_is_refused(http: Any, feeds: Any) -> None:
    feeds()
    answer = await http.get(f"{DATASETS}?over_due=true")
    assert (answer.status_code, answer.json()["parameter"]) == (422, "over_due")


async def test_collections_are_listed_and_described(http: Any) -> None:
    listed = (await http.get("/api/v1/collections")).json()["collections"]
    one = (await http.get("/api/v1/collections/scraper")).json()
    assert [each["name"] for each in listed] == ["scraper"]
    assert (one["embedding_model"], one["width"], one["documents"], one["chunks"]) == ("hash:4", 4, 1, 2)
    assert one["freshness"]["wait_token"] == "7"
    assert (await http.get("/api/v1/collections/nothing")).status_code == 404


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
async def test_making_and_dropping_collections_is_refused_honestly(http: Any, method: str) -> None:
    answer = await http.request(method, "/api/v1/collections/mine")
    assert (answer.status_code, answer.json()["type"]) == (501, "urn:shoal:problem:not-implemented")
    assert "scraper" in answer.json()["detail"]
