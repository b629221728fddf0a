"""Who asks: people and agents with a mixed day, as Locust runs them. `run` starts it; the settings come by environment.

Four in five questions are from a pool that many share; the others are new to every cache and are reported by
themselves. An answer that found nothing, that fell back to keywords, or an error inside a JSON-RPC answer, counts as
failed: its time would be of something else.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urlencode

import orjson
from locust import FastHttpUser, constant, events, task

from loadtests.looks import server_timing, wrong
from loadtests.texts import SOURCES, new_questions, questions, sha256, topics

WAIT_S = float(os.environ.get("SHOAL_LOAD_WAIT_S", "1"))
DOCUMENTS = int(os.environ.get("SHOAL_LOAD_DOCUMENTS", "100000"))
SEED = int(os.environ.get("SHOAL_LOAD_SEED", "0"))
STAGES_FILE = os.environ.get("SHOAL_LOAD_STAGES", "")
NEW_SHARE = 0.2
LIMIT = 10
POOL, TOPICS = questions(), topics()
HEADERS = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
_numbers = iter(range(10**9))
_stages: dict[str, dict[str, float]] = {}


class Asker(FastHttpUser):
    """One person or agent. The weights are those of a day of a data team and its agents."""

    wait_time = constant(WAIT_S)
    connection_timeout = network_timeout = 30.0

    def on_start(self) -> None:
        number = f"{SEED}.{next(_numbers)}"
        self.rng, self.new = Random(number), new_questions(number)

    def question(self) -> tuple[str, str]:
        """(text, how it is named in the report)."""
        if self.rng.random() < NEW_SHARE:
            return next(self.new), "new text"
        return self.rng.choice(POOL), "known text"

    def asked(self, name: str, method: str, path: str, **how: Any) -> None:
        with self.client.request(method, path, name=name, catch_response=True, **how) as answer:
            if answer.status_code != 200:
                answer.failure(f"HTTP {answer.status_code}: {str(answer.text)[:200]}")
                return
            if why := wrong(orjson.loads(answer.content)):
                answer.failure(why)
            _count(name, answer.request_meta["response_time"], answer.headers.get("Server-Timing", ""))

    @task(20)
    def by_hash(self) -> None:
        self.asked("by hash", "GET", f"/api/v1/scrapes/{sha256(self.rng.randrange(DOCUMENTS))}")

    @task(20)
    def by_filter(self) -> None:
        source = self.rng.choice(SOURCES)
        self.asked(
            "by filter", "GET", f"/api/v1/scrapes/search?data_source={source}&start_date=2025-01-01&limit={LIMIT}"
        )

    @task(20)
    def by_meaning(self) -> None:
        text, age = self.question()
        path = "/api/v1/scrapes/search?" + urlencode({"query": text, "mode": "vector", "limit": LIMIT})
        self.asked(f"by meaning, {age}", "GET", path)

    @task(15)
    def hybrid(self) -> None:
        text, age = self.question()
        self.asked(f"hybrid, {age}", "POST", "/api/v1/collections/scraper/search", json={"query": text, "limit": LIMIT})

    @task(10)
    def similar(self) -> None:
        # An agent describes the API it is about to scrape: mostly one that others asked about, too.
        topic = self.rng.choice(TOPICS[:40])
        spec = {"endpoint": topic.endpoint, "method": "GET", "fields": [topic.data_type, "interval_start", "value"]}
        self.asked("similar APIs", "POST", "/api/v1/agents/context/similar-apis?limit=5", json=spec)

    @task(15)
    def over_mcp(self) -> None:
        text, age = self.question()
        call = {"name": "search_scrapes", "arguments": {"query": text, "limit": 5}}
        message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}
        self.asked(f"MCP search, {age}", "POST", "/mcp", data=orjson.dumps(message), headers=HEADERS)


def _count(name: str, took_ms: float, timing: str) -> None:
    sums = _stages.setdefault(name, {"count": 0, "took": 0.0})
    sums["count"] += 1
    sums["took"] += took_ms
    for stage, spent_ms in server_timing(timing).items():
        sums[stage] = sums.get(stage, 0.0) + spent_ms


@events.spawning_complete.add_listener
def _begin(**_: Any) -> None:
    _stages.clear()  # as --reset-stats does: what was seen while users came is no figure


@events.quit.add_listener
def _end(**_: Any) -> None:
    if STAGES_FILE:
        Path(STAGES_FILE).write_text(json.dumps(_stages))
