"""A caller's requests per minute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.serve_apps import rate_limit
from shoal.serve_apps.rate_limit import BURST_S, RateLimiter, retry_after
from shoal.serve_apps.rest import create_rest
from tests.fixtures.callers import Callers, an_agent


@given(st.integers(1, 6000), st.lists(st.floats(0, 30), min_size=1, max_size=200), st.sampled_from([1.0, 0.5]))
def test_nobody_gets_more_than_the_limit_and_a_burst(per_minute: int, gaps: list[float], share: float) -> None:
    limiter, now, taken = RateLimiter(per_minute, share), 0.0, 0
    for gap in gaps:
        now += gap
        taken += limiter.wait_s("a", now) == 0.0
    rate = per_minute * share / 60
    assert taken <= max(1.0, rate * BURST_S) + rate * now + 1e-6


def test_who_waits_as_long_as_it_was_told_is_let_in() -> None:
    limiter, now = RateLimiter(60), 0.0
    while limiter.wait_s("a", now) == 0.0:
        pass
    wait_s = limiter.wait_s("a", now)
    assert 0 < wait_s <= 1.0
    assert int(retry_after(wait_s)) >= wait_s
    assert limiter.wait_s("a", now + wait_s + 1e-9) == 0.0


def test_one_callers_haste_is_not_anothers() -> None:
    limiter = RateLimiter(6)
    while limiter.wait_s("a", 0.0) == 0.0:
        pass
    assert limiter.wait_s("b", 0.0) == 0.0


def test_no_limit_and_a_limit_of_its_own() -> None:
    assert all(RateLimiter(0).wait_s("a", 0.0) == 0.0 for _ in range(100))
    limiter = RateLimiter(0)
    assert limiter.wait_s("a", 0.0, per_minute=1) == 0.0
    assert limiter.wait_s("a", 0.0, per_minute=1) == pytest.approx(60.0)


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limit, "CALLERS_MAX", 10)
    limiter = RateLimiter(60)
    for number in range(1000):
        limiter.wait_s(str(number), 0.0)
    assert len(limiter._buckets) == 10


async def test_above_its_limit_a_key_is_told_when_to_come_back_over_rest_and_mcp(stand: Any, tmp_path: Path) -> None:
    callers = Callers(tmp_path)
    gate = callers.gate(limiter=RateLimiter(6), clock=lambda: 0.0)
    transport = httpx.ASGITransport(create_rest(stand.service(), gate=gate))
    async with httpx.AsyncClient(transport=transport, base_url="http://shoal") as http:
        first, second = [
            await http.get("/api/v1/scrapes/search", headers=callers.headers("read")) for _ in range(2)
        ]  # fmt: skip
        assert (first.status_code, second.status_code) == (200, 429)
        assert second.headers["retry-after"] == "10"
        assert second.json()["type"] == "urn:shoal:problem:too-many-requests"
        assert (await http.get("/healthz")).status_code == 200, "probes are not counted"
    async with an_agent(stand.service(), gate) as agent:
        message = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
        assert (await agent.post("/", json=message, headers=callers.headers("read"))).status_code == 429
