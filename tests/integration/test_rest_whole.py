"""REST whole, against a running Shoal: a file is pushed, found, read, taken out raw and deleted by the typed client."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from shoal.client import Shoal
from shoal.client.client import RefusedError
from shoal.errors import TransientError
from tests.fixtures.stack import Stack

BYTES = b"Time Stamp,Zone,Load (MW)\n01/20/2025 00:00,West,1350\n01/20/2025 01:00,West,1290\n"
WAIT_S = 90.0


def until(what: Callable[[], Any], wait_s: float = WAIT_S) -> Any:
    """Its first answer that is something; a store that is not there yet is waited for."""
    deadline = time.monotonic() + wait_s
    while True:
        try:
            if found := what():
                return found
        except TransientError:
            pass
        assert time.monotonic() < deadline, "did not come"
        time.sleep(0.2)


def done(client: Shoal, job: dict[str, Any]) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        now = client.job(job["job_id"])
        return now if now["status"] != "accepted" else None

    found: dict[str, Any] = until(look)
    return found


def life_of_a_pushed_file(url: str) -> None:
    told = {"dataset": "pushed_load", "urn": "2025/load é.csv", "data_source": "nyiso", "data_type": "load"}
    with Shoal(url, timeout_s=60) as client:
        # 1. pushed twice with one key: one job, and it gets done
        job = client.push(
            BYTES, **told, collected_at="2025-01-20T14:30:00Z", content_type="text/csv", idempotency_key="a"
        )
        again = client.push(
            BYTES, **told, collected_at="2025-01-20T14:30:00Z", content_type="text/csv", idempotency_key="a"
        )
        assert job == again
        assert done(client, job)["status"] == "done"
        # 2. found by its bytes, in a search, and as itself
        found = client.by_hash(hashlib.sha256(BYTES).hexdigest())
        assert (found["exists"], found["count"]) == (True, 1)
        assert [one["id"] for one in client.search(dataset="pushed_load")["results"]] == [job["document_id"]]
        document = client.document(job["document_id"])
        assert document["document"]["version"] == "20250120T143000Z"
        assert "West" in document["chunks"][0]["text"]
        # 3. the raw file is what was pushed
        assert client.raw(job["document_id"]) == BYTES
        # 4. the catalogue and the collection know of it
        datasets = until(lambda: client.datasets(dataset="pushed_load")["datasets"], 150)
        assert datasets[0]["formats"] == {"CSV": 1}
        assert client.collection()["documents"] >= 1
        # 5. deleted, it is nowhere
        gone = client.delete(job["document_id"])
        assert done(client, gone)["status"] == "done"
        until(lambda: not client.by_hash(hashlib.sha256(BYTES).hexdigest())["exists"])
        with pytest.raises(RefusedError, match="there is no document"):
            client.document(job["document_id"])
        assert client.delete(job["document_id"])["status"] == "done"
        # 6. nothing died on the way; requests were counted
        assert client.dead_letters()["dead_letters"] == []
        assert "shoal_http_requests_total" in httpx.get(f"{url}/metrics", timeout=30).text
    # 7. what Serve adds does not take away what we say
    refused = httpx.get(f"{url}/nowhere", headers={"X-Request-Id": "mine"}, timeout=30)
    assert refused.headers["content-type"] == "application/problem+json"
    assert (refused.json()["request_id"], refused.headers["x-request-id"]) == ("mine", "mine")
    long = httpx.get(f"{url}/openapi.json", headers={"Accept-Encoding": "gzip"}, timeout=30)
    assert long.headers["content-encoding"] == "gzip"


@pytest.mark.timeout(300)
def test_a_file_lives_and_dies_over_rest(tmp_path: Path) -> None:
    with Stack(tmp_path / "stack", {"SHOAL_EMBEDDING_PROVIDER": "hash"}) as stack:
        life_of_a_pushed_file(stack.url)
