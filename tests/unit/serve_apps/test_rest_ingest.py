"""`GET /api/v1/ingest`: the published status judged when it is asked for, and the feeds that went quiet."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from shoal.errors import PermanentError, TransientError
from shoal.serve_apps.flow import FEEDS_MAX, STATUS_AGE_S_MAX
from shoal.store.cadence import rhythm
from shoal.store.feeds import Catalogue, Feed

HOUR_S = 3600.0


def a_feed(dataset: str, silent_s: float, every_s: float | None = HOUR_S) -> Feed:
    last_s = datetime.now(UTC).timestamp() - silent_s
    usual = None if every_s is None else rhythm([last_s - every_s * n for n in range(9, -1, -1)])
    return Feed("prod", dataset, "NYISO", 10, 12, {"JSON": 12}, None, None, None, usual, last_s)


def a_status(age_s: float = 1.0, **fields: Any) -> dict[str, Any]:
    at = datetime.now(UTC) - timedelta(seconds=age_s)
    return {"at": at.isoformat(), "health": "ok", "reasons": [], "memory": {"tallies": {}}, **fields}


async def ask(http: Any) -> dict[str, Any]:
    response = await http.get("/api/v1/ingest")
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


async def test_the_published_health_and_its_reasons_are_told(http: Any, stand: Any) -> None:
    reason = {"severity": "degraded", "what": "writer", "why": "slow", "do": "wait"}
    stand.status = a_status(health="degraded", reasons=[reason])
    body = await ask(http)
    assert (body["health"], body["reasons"]) == ("degraded", [reason])


async def test_a_status_too_old_to_believe_is_unknown_however_well_it_says_things_are(http: Any, stand: Any) -> None:
    stand.status = a_status(age_s=STATUS_AGE_S_MAX + 5)
    body = await ask(http)
    assert body["health"] == "unknown"
    assert [reason["what"] for reason in body["reasons"]] == ["supervisor"]
    assert body["ingest"]["health"] == "ok", "what was published is shown as it was"


async def test_without_a_status_health_is_unknown(http: Any) -> None:
    body = await ask(http)
    assert (body["health"], body["ingest"]) == ("unknown", None)


async def test_what_the_status_remembers_for_its_next_turn_is_not_shown(http: Any, stand: Any) -> None:
    stand.status = a_status()
    assert "memory" not in (await ask(http))["ingest"]


async def test_feeds_gone_quiet_come_first_and_the_longest_beyond_its_bound_before_others(
    http: Any, stand: Any
) -> None:
    well = a_feed("well", HOUR_S)
    new = a_feed("new", 30 * HOUR_S, every_s=None)
    late, later = a_feed("late", 4 * HOUR_S), a_feed("later", 9 * HOUR_S)
    stand.index.catalogue = Catalogue(datetime.now(UTC), (well, new, late, later))
    feeds = (await ask(http))["feeds"]
    assert [feed["dataset"] for feed in feeds["listed"]] == ["later", "late", "well", "new"]
    assert [feed["overdue"] for feed in feeds["listed"]] == [True, True, False, None]
    assert (feeds["total"], feeds["overdue"], feeds["unknown"]) == (4, 2, 1)
    assert feeds["listed"][0]["expected_every_s"] == HOUR_S


async def test_the_list_of_feeds_is_bounded_while_their_counts_are_whole(http: Any, stand: Any) -> None:
    many = tuple(a_feed(f"feed {number}", HOUR_S) for number in range(FEEDS_MAX + 20))
    stand.index.catalogue = Catalogue(datetime.now(UTC), (*many, a_feed("quiet", 10 * HOUR_S)))
    feeds = (await ask(http))["feeds"]
    assert (len(feeds["listed"]), feeds["total"]) == (FEEDS_MAX, FEEDS_MAX + 21)
    assert feeds["listed"][0]["dataset"] == "quiet"


@pytest.mark.parametrize("trouble", [None, TransientError("the store is down"), PermanentError("no such column")])
async def test_feeds_that_are_not_known_don_t_hide_the_rest(http: Any, stand: Any, trouble: Any) -> None:
    stand.status, stand.index.catalogue = a_status(), trouble
    body = await ask(http)
    assert (body["feeds"], body["health"]) == (None, "ok")
