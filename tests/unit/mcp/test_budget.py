"""No answer is longer than its caller asked for, whatever the texts are."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fastmcp import Client
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shoal.embeddings.cl100k import count
from shoal.mcp.budget import TOKENS_MIN, count_bytes, fitted, longest_prefix, size
from shoal.mcp.server import build_server
from tests.unit.mcp.test_server import FakeService, a_row, chunks_of

HOSTILE = st.text(alphabet=st.sampled_from('a \n"\\{}é漢🜁\u0301𒀀ﷺ0xZ'), max_size=40).map(lambda text: text * 30)
TEXTS = st.one_of(HOSTILE, st.text(max_size=300), st.sampled_from(["load in MW " * 90, "9" * 2500, "ﷺ" * 1200]))
BUDGETS = st.integers(TOKENS_MIN, 4000)
QUICK = settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@given(st.text(max_size=2000))
@settings(max_examples=50, deadline=None)
def test_the_bytes_of_a_text_are_no_fewer_than_its_tokens(text: str) -> None:
    assert count(text) <= count_bytes(text)


@given(st.lists(st.dictionaries(st.sampled_from(["id", "title", "text"]), TEXTS, min_size=1), max_size=8), BUDGETS)
@QUICK
def test_what_is_fitted_is_the_longest_beginning_that_fits(items: list[dict[str, Any]], budget: int) -> None:
    frame = {"notice": "data"}
    kept, short = fitted(frame, "results", items, budget, count)
    assert size({**frame, "results": kept}, count) <= budget
    if not short:
        assert kept == items[: len(kept)]
        if len(kept) < len(items):
            # By the sum of the parts, which may be a few tokens above the whole.
            assert size({**frame, "results": items[: len(kept) + 1]}, count) > budget - 8 * (len(kept) + 2)


@given(st.text(max_size=200), st.integers(0, 250))
def test_the_longest_prefix_fits_and_loses_at_most_a_word(text: str, room: int) -> None:
    length = longest_prefix(text, lambda head: len(head) <= room)
    assert length <= room
    assert length >= min(len(text), room) * 3 // 4


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=6), BUDGETS)
@QUICK
async def test_no_tool_answers_beyond_its_budget(texts: list[tuple[str, str]], budget: int) -> None:
    service = FakeService()
    service.rows = [a_row(n, title=a, content_summary=b, dataset=a, s3_path=b) for n, (a, b) in enumerate(texts)]
    service.api = {"content_summary": texts[0][0], "api_endpoint": texts[0][1]}
    service.fixes = [{"id": f"f{n}", "summary": a, "diff": b, "error_message": a} for n, (a, b) in enumerate(texts)]
    service.chunks = chunks_of("".join(a + b for a, b in texts) or "x", 700, 60)
    calls: tuple[tuple[str, dict[str, Any]], ...] = (
        ("search_scrapes", {"query": "x", "limit": 50}),
        ("search", {"query": "x", "limit": 50}),
        ("find_similar_apis", {"endpoint": "/x", "limit": 20}),
        ("get_document", {"id": "d", "include": ["text", "schema", "similar"]}),
        ("get_fix_patterns", {"scraper_name": "s", "limit": 20}),
    )
    async with Client(build_server(service, count=count)) as client:
        for tool, arguments in calls:
            result = await client.call_tool(tool, {**arguments, "max_tokens": budget}, raise_on_error=False)
            assert not result.is_error, result.content
            shown = json.dumps(result.structured_content, ensure_ascii=False, separators=(",", ":"))
            assert count(shown) <= budget, tool


@pytest.mark.parametrize("tool", ["search_scrapes", "search"])
async def test_a_result_that_fits_in_no_way_is_passed_over_with_a_warning(tool: str) -> None:
    service = FakeService()
    service.rows = [a_row(0, id="ﷺ" * 900), a_row(1)]
    async with Client(build_server(service, count=count)) as client:
        first = (await client.call_tool(tool, {"query": "x", "max_tokens": TOKENS_MIN})).structured_content
        assert first["results"] == []
        assert "max_tokens" in first["warnings"][0]
        rest = await client.call_tool(tool, {"query": "x", "cursor": first["next_cursor"], "max_tokens": TOKENS_MIN})
        assert [one["id"] for one in rest.structured_content["results"]] == ["d1"]
