"""The tour: starts everything, indexes sample scrapes, asks questions, and checks that nothing was lost.

Runs in a data directory of its own, with the embedded broker and the local model whatever the environment
says, so it never touches a real index and never spends money. The tour fails (exit code 1) unless every
announced file has its expected outcome and every question an answer.
"""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from shoal.client import Shoal
from shoal.cluster.announcing import Announcer, Tally, show_dead
from shoal.cluster.output import Exit, cell, emit_rows, err, out, say
from shoal.cluster.runtime import Running, claimed
from shoal.cluster.samples import make_samples, prepared
from shoal.cluster.serving import StopSignal, begin, describe, end
from shoal.settings import Settings

MARKER = ".shoal-demo"  # only a directory that a demo made is ever emptied by one
INDEXING_IDLE_S = 120.0
API = {
    "endpoint": "https://api.example-grid.org/v2/forecast/load",
    "method": "GET",
    "auth_required": False,
    "response_fields": ["interval_start", "zone", "forecast_mw"],
}


def tour(settings: Settings, *, count: int, stay: bool) -> int:
    """An exit code."""
    settings = demo_settings(settings)
    with claimed(settings):  # a demo that runs there keeps its files
        _empty(settings.home)
    stop = StopSignal()
    running = begin(settings)
    try:
        describe(running)
        good = _index(settings, count) and _ask(running)
        out.print()
        if stay:
            say(f"That was the tour. It stays up: {running.url}/docs shows the API. Ctrl-C stops it.")
            stop.arm()
            stop.wait(running)
    finally:
        end(running)
    return Exit.OK if good else Exit.FAILED


def demo_settings(settings: Settings) -> Settings:
    """`settings` made harmless: own directory, embedded broker, local model."""
    return settings.model_copy(
        update={
            "data_dir": settings.home / "demo",
            "lancedb_path": "",
            "kafka_brokers": "",
            "kafka_properties": {},
            "embedding_provider": "local",
            "openai_api_key": None,
            "ray_address": None,
        }
    )


def _empty(home: Path) -> None:
    if (home / MARKER).exists():
        shutil.rmtree(home)
    home.mkdir(parents=True, exist_ok=True)
    (home / MARKER).touch()


def _index(settings: Settings, count: int) -> bool:
    samples = make_samples(settings.home / "objects" / "samples", count)
    out.print(Text(f"\n{len(samples)} sample scrapes of {len({s.source for s in samples})} market operators", "bold"))
    with (
        Announcer(settings, listen=True) as announcer,
        Progress(
            TextColumn("indexing"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=err
        ) as progress,
    ):
        task = progress.add_task("indexing", total=len(samples))

        def show(tally: Tally) -> None:
            progress.update(task, completed=sum(tally.outcomes.values()))

        announcer.send((prepared(sample) for sample in samples), show)
        finished = announcer.wait(INDEXING_IDLE_S, show)
    tally = announcer.tally
    out.print(Text(tally.line()))
    show_dead(tally)
    expected = Counter(str(sample.expect) for sample in samples)
    if not finished or not tally.adds_up or tally.outcomes != expected:
        say(f"expected {dict(expected)}, found {dict(tally.outcomes)}, {len(tally.waiting)} without an outcome")
        return False
    return True


def _ask(running: Running) -> bool:
    """Five questions over REST and one over MCP; True when each has an answer."""
    client = Shoal(running.url)
    listed = client.search(limit=20)["results"]
    newest = next(row for row in listed if row["validation_status"] == "indexed")  # a broken one is known too
    found = [
        _question(
            1, f"Have we got the file {newest['sha256_hash'][:12]}…?", _known(client.by_hash(newest["sha256_hash"]))
        ),
        _question(2, "What did NYISO publish?", client.search(data_source="nyiso", limit=3)),
        _question(
            3,
            "What came in between 2025-01-20 and 2025-01-21?",
            client.search(start_date="2025-01-20", end_date="2025-01-21", limit=3),
        ),
        _question(
            4,
            "Where is a forecast of tomorrow's electricity demand, by zone?",
            client.search(query="forecast of tomorrow's electricity demand by zone", limit=3),
        ),
        _similar(client.similar_apis(API, limit=3)),
        asyncio.run(_over_mcp(running.url)),
    ]
    return all(found)


def _known(answer: Mapping[str, Any]) -> dict[str, Any]:
    return {"results": [answer["data"]] if answer.get("exists") else [], "query_type": "hash"}


def _question(number: int, words: str, answer: Mapping[str, Any]) -> bool:
    out.print(Text(f"\n{number}. {words}", "bold"))
    rows = [
        {
            "score": result.get("score"),
            "source": result.get("data_source"),
            "kind": result.get("data_type"),
            "file": result.get("urn"),
            "collected": str(result.get("collected_at"))[:16],
            "what": cell(result.get("content_summary") or result.get("title") or result.get("dataset"), 70),
        }
        for result in answer["results"]
    ]
    emit_rows(rows, [name for name in rows[0] if rows[0][name] is not None] if rows else ("source",))
    return bool(rows)


def _similar(apis: Sequence[Mapping[str, Any]]) -> bool:
    out.print(Text(f"\n5. Which API that we scrape already is like {API['method']} {API['endpoint']}?", "bold"))
    rows = [
        {
            "similarity": api["similarity_score"],
            "source": api["data_source"],
            "endpoint": cell(api["api_endpoint"], 60),
            "auth": api["auth_method"],
            "what": cell(api["content_summary"], 70),
        }
        for api in apis
    ]
    emit_rows(rows, ("similarity", "source", "endpoint", "auth", "what"))
    return bool(rows)


async def _over_mcp(url: str) -> bool:
    from fastmcp import Client

    words = "outages of generators"
    out.print(Text(f"\n6. The same over MCP, as a coding agent asks: search_scrapes(query={words!r})", "bold"))
    async with Client(f"{url}/mcp") as client:
        answer = (await client.call_tool("search_scrapes", {"query": words, "limit": 3})).structured_content or {}
    rows = [
        {"source": hit.get("data_source"), "id": hit.get("id"), "what": cell(hit.get("content_summary"), 80)}
        for hit in answer.get("results", ())
    ]
    emit_rows(rows, ("source", "id", "what"))
    return bool(rows)
