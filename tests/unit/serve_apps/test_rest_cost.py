"""`GET /api/v1/cost`: the ledger over HTTP, read beside the loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from shoal.serve_apps import cost as cost_module
from shoal.serve_apps.cost import Costs
from shoal.serve_apps.rest import create_rest
from shoal.settings import Settings
from shoal.spending import Counts, entry, spend_key
from tests.fixtures.ledger import tell

SMALL = "openai:text-embedding-3-small"


@pytest_asyncio.fixture
async def client(stand: Any, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    costs = Costs(Settings(data_dir=tmp_path, budget_day_usd=0.5))
    transport = httpx.ASGITransport(create_rest(stand.service(), costs=costs))
    async with httpx.AsyncClient(transport=transport, base_url="http://shoal") as asking:
        yield asking
    costs.close()


async def test_what_was_spent_is_told_by_the_groups_asked_for(client: httpx.AsyncClient, tmp_path: Path) -> None:
    today = datetime.now(UTC).date().isoformat()
    keys = [spend_key(today, SMALL, "scraper", source, "d", "live") for source in ("NYISO", "CAISO")]
    tell(tmp_path / "lancedb", {"book": "b", "entries": [entry(key, Counts(1, 0, 2, 10_000_000, 0)) for key in keys]})
    body = (await client.get("/api/v1/cost", params={"by": "source"})).json()
    assert [(row["source"], row["usd"], row["tokens"]) for row in body["rows"]] == [
        ("CAISO", 0.2, 10_000_000), ("NYISO", 0.2, 10_000_000),
    ]  # fmt: skip
    assert (body["total"]["usd"], body["total"]["texts"]) == (0.4, 4)
    assert (body["budget"]["level"], body["budget"]["limit_month_usd"]) == ("warned", None)
    assert body["recorded_through"]
    only = (await client.get("/api/v1/cost", params={"by": "source,day", "data_source": "caiso", "limit": 1})).json()
    assert [row["source"] for row in only["rows"]] == ["CAISO"]


@pytest.mark.parametrize(
    ("parameters", "named"),
    [({"by": "week"}, "by"), ({"since": "soon"}, "since"), ({"limit": 0}, "limit"), ({"form": "x"}, "form")],
)
async def test_a_wrong_parameter_is_a_problem_that_names_it(
    client: httpx.AsyncClient, parameters: dict[str, Any], named: str
) -> None:
    answer = await client.get("/api/v1/cost", params=parameters)
    assert (answer.status_code, answer.json()["parameter"]) == (422, named)
    assert answer.headers["content-type"].startswith("application/problem+json")


async def test_a_store_that_hangs_holds_up_no_other_call_and_is_a_problem(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. The store hangs. 2. Another call is answered meanwhile. 3. The first ends as 503 with Retry-After."""
    ending = threading.Event()
    monkeypatch.setattr(cost_module, "read_spend", lambda *_: ending.wait(60) and [])
    monkeypatch.setattr(cost_module, "DEADLINE_S", 0.3)
    asking = asyncio.create_task(client.get("/api/v1/cost"))
    try:
        await asyncio.sleep(0)
        assert (await client.get("/healthz")).status_code == 200
        answer = await asking
    finally:
        ending.set()
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
