"""What one document costs each process of a real stack: where the simulation's figures of processor time come from.

    python -m bench.flow.measure                              # 300 generated files, fake provider with tier 5's limits
    python -m bench.flow.measure --data ../shared/data/scrapes --provider local

Starts `shoal up` in a directory of its own (embedded broker, tables on the local disk), publishes the files once,
and divides what each role's processes used by the documents. The fake provider is no part of what is counted. Processor
time hardly depends on the neighbours; times by the clock do, so the load average is printed beside them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import resource
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx

from bench.embedder_load import LATENCY_PER_KILOTOKEN_S, LATENCY_S, Account, Provider
from bench.ingest import STATUS_S, WARM_UP_DOCUMENTS, generate
from bench.processes import Tree
from tests.fixtures.stack import Stack

TIER_5 = Account(10_000, 10_000_000)
READY_S = 600.0  # of a crowded machine
IDLE_S = 15.0  # what the stack uses without documents
_STAGE = re.compile(r'^shoal_stage_seconds_(sum|count)\{[^}]*stage="([a-z_]+)"[^}]*\} (\S+)$')


def main() -> int:
    parser = argparse.ArgumentParser("python -m bench.flow.measure", description=__doc__.partition("\n")[0])
    parser.add_argument("--documents", type=int, default=300, metavar="N", help="generated files (default: 300)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="publish this file or directory instead")
    parser.add_argument("--provider", choices=("openai", "local", "hash"), default="openai")
    options = parser.parse_args()
    if options.documents < 1:
        parser.error("--documents: at least 1")
    if options.data is not None and not options.data.exists():
        parser.error(f"--data: {options.data} does not exist")
    directory = Path(tempfile.mkdtemp(prefix="shoal-bench-flow-"))
    try:
        print(json.dumps(_measure(directory, options), indent=2))
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return 0


def _measure(directory: Path, options: argparse.Namespace) -> dict[str, Any]:
    data = options.data.resolve() if options.data is not None else directory / "files"
    if options.data is None:
        generate(data, options.documents)
    warm_up = directory / "warm-up"
    generate(warm_up, WARM_UP_DOCUMENTS, seed=7)
    load = os.getloadavg()[0]
    with (
        _environment(directory, options.provider) as environment,
        Stack(directory, environment, ready_s=READY_S) as stack,
    ):
        tree = Tree(stack.pid)
        stack.publish(str(warm_up), "--dataset", "warm_up")
        status = _ingest(stack)
        before = tree.cpu_s()
        time.sleep(IDLE_S)
        idle = (tree.cpu_s() - before) / IDLE_S
        roles, stages = tree.cpu_by_role_s(), _stages(stack)
        published = _children_cpu_s()
        tally = stack.publish(str(data), timeout_s=3600)
        published = _children_cpu_s() - published
        after, then = tree.cpu_by_role_s(), _ingest(stack)
        count = max(1, int(tally["announced"]))
        spent = {role: 1000 * (after[role] - roles.get(role, 0.0)) / count for role in after}
        later = _stages(stack)
    return {
        "provider": options.provider,
        "documents": count,
        "outcomes": tally["outcomes"],
        "took_s": tally["took_s"],
        "documents_per_s": count / max(0.001, float(tally["took_s"])),
        "cores": os.cpu_count(),
        "load_before": load,
        "load_after": os.getloadavg()[0],
        "chunks_per_document": (then["writer"]["chunks"] - status["writer"]["chunks"]) / count,
        "tokens_per_document": (then["embedder"]["tokens"] - status["embedder"]["tokens"]) / count,
        "requests": then["embedder"]["requests"] - status["embedder"]["requests"],
        "commits": then["writer"]["commits"] - status["writer"]["commits"],
        "idle_cores": idle,
        "publisher_cpu_ms_per_document": 1000 * published / count,
        "cpu_ms_per_document": dict(sorted(spent.items(), key=lambda one: -one[1])),
        "cpu_ms_per_document_all": sum(spent.values()),
        "stage_mean_s": {
            stage: (total - stages[stage][0]) / (calls - stages[stage][1])
            for stage, (total, calls) in later.items()
            if calls > stages[stage][1]
        },
    }


@contextlib.contextmanager
def _environment(directory: Path, provider: str) -> Iterator[dict[str, str]]:
    if provider != "openai":
        yield {"SHOAL_EMBEDDING_PROVIDER": provider}
        return
    latency = ["--latency", str(LATENCY_S), "--latency-per-kilotoken", str(LATENCY_PER_KILOTOKEN_S)]
    fake = Provider(directory, [*TIER_5.arguments(), *latency])
    try:
        yield {"SHOAL_EMBEDDING_PROVIDER": "openai", "OPENAI_API_KEY": "sk-bench", "OPENAI_BASE_URL": fake.url}
    finally:
        fake.close()


def _children_cpu_s() -> float:
    """Of commands that have ended; the stack has not."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _ingest(stack: Stack) -> dict[str, Any]:
    """The flow as the supervisor published it after this call, with nothing of it in flight."""
    asked_at = time.time()
    while time.time() < asked_at + STATUS_S:
        status: dict[str, Any] | None = stack.get("/api/v1/ingest")["ingest"]
        if status and status["embedder"] and status["writer"]:
            is_new = datetime.fromisoformat(status["at"]).timestamp() > asked_at
            if is_new and not any(one["in_flight_items"] for one in status["readers"]):
                return status
        time.sleep(0.2)
    raise RuntimeError(f"the flow does not come to rest within {STATUS_S:g} s: {stack.log()}")


def _stages(stack: Stack) -> dict[str, tuple[float, float]]:
    """Seconds and calls of each stage so far."""
    found: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for line in httpx.get(f"{stack.url}/metrics", timeout=30).text.splitlines():
        if match := _STAGE.match(line):
            found[match[2]][match[1] == "count"] += float(match[3])
    return defaultdict(lambda: (0.0, 0.0), {stage: (total, calls) for stage, (total, calls) in found.items()})


if __name__ == "__main__":
    sys.exit(main())
