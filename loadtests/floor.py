"""What a question costs around the search: `python -m loadtests.floor`.

The questions of `make load` over three documents, where there is next to nothing to search, asked of the query side as
it is deployed (HAProxy, REST, MCP, the query embedder), without ingest. What is left of a question's processor time is
HTTP, parsing, Serve, embedding a known text, and writing the answer: no search core, however good, makes it less.
Printed are CPU-ms of the servers per question, by kind and for the mix, and who spent them; who asks is not among them.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil

from tests.fixtures.serve_side import MCP_HEADERS, Hosted, seed

Ask = Callable[[httpx.Client, int], httpx.Response]


def _by_hash(client: httpx.Client, number: int) -> httpx.Response:
    return client.get(f"/api/v1/scrapes/{number % 3:064x}")


def _by_filter(client: httpx.Client, _: int) -> httpx.Response:
    return client.get("/api/v1/scrapes/search?data_source=NYISO&start_date=2025-01-01&limit=10")


def _by_meaning(client: httpx.Client, number: int) -> httpx.Response:
    return client.get(f"/api/v1/scrapes/search?query=load+{number % 50}&mode=vector&limit=10")


def _hybrid(client: httpx.Client, number: int) -> httpx.Response:
    return client.post("/api/v1/collections/scraper/search", json={"query": f"load {number % 50}", "limit": 10})


def _similar(client: httpx.Client, number: int) -> httpx.Response:
    spec = {"endpoint": f"https://example.org/{number % 40}", "method": "GET", "fields": ["load", "value"]}
    return client.post("/api/v1/agents/context/similar-apis?limit=5", json=spec)


def _over_mcp(client: httpx.Client, number: int) -> httpx.Response:
    call = {"name": "search_scrapes", "arguments": {"query": f"load {number % 50}", "limit": 5}}
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}
    return client.post("/mcp", json=message, headers=MCP_HEADERS)


MIX: dict[str, tuple[int, Ask]] = {
    "by hash": (20, _by_hash), "by filter": (20, _by_filter), "by meaning": (20, _by_meaning), "hybrid": (15, _hybrid),
    "similar APIs": (10, _similar), "MCP search": (15, _over_mcp),
}  # fmt: skip
"""Share in percent, as `loadtests.users` weighs them."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--questions", type=int, default=1000, help="of each kind (%(default)s)")
    parser.add_argument("--callers", type=int, default=8, help="who ask at once (%(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="shoal-floor-") as directory:
        seed(Path(directory))
        with Hosted(Path(directory), "haproxy") as hosted:
            mixed = 0.0
            for name, (share, ask) in MIX.items():
                _asked(hosted, ask, options.callers, 100)  # imports, first plans, connections
                before = _spent_s(hosted)
                _asked(hosted, ask, options.callers, options.questions)
                spent = _spent_s(hosted) - before
                each_ms = 1000 * spent.total() / options.questions
                mixed += each_ms * share / 100
                most = ", ".join(f"{who} {1000 * s / options.questions:.1f}" for who, s in spent.most_common(4))
                print(f"{name:13} {each_ms:5.1f} CPU-ms: {most}", flush=True)
            print(f"{'the mix':13} {mixed:5.1f} CPU-ms")


def _asked(hosted: Hosted, ask: Ask, callers: int, count: int) -> None:
    """Ask `count` times, `callers` at once. Raises where an answer is none."""

    def some(first: int) -> None:
        with httpx.Client(base_url=hosted.url, timeout=60) as client:
            for number in range(first, count, callers):
                ask(client, number).raise_for_status()

    with ThreadPoolExecutor(callers) as pool:
        for done in [pool.submit(some, first) for first in range(callers)]:
            done.result()


def _spent_s(hosted: Hosted) -> Counter[str]:
    """CPU seconds of every process of the query side, by what it is."""
    found: Counter[str] = Counter()
    for process in hosted.processes():
        try:
            times, title = process.cpu_times(), process.cmdline()[:1]
            found[title[0].removeprefix("ray::") if title and "ray::" in title[0] else process.name()] += (
                times.user + times.system
            )
        except psutil.NoSuchProcess:
            continue
    return found


if __name__ == "__main__":
    main()
