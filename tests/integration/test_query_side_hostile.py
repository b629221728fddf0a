"""The query side as it is deployed, under people who mean it ill and machines that die: no good request suffers.

One deployment for all of it: two replicas each of REST and MCP, up to three, behind HAProxy; clients have CLIENT_S.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest

from tests.fixtures.good_clients import Load
from tests.fixtures.serve_side import READY_S, Hosted, seed, until

CLIENT_S = 4.0
ENDED_S = 30.0  # until all that overstayed are ended: a hang, not a measure
REPLICAS, REPLICAS_MAX = 2, 3
DEPLOYMENTS = ("rest:Rest", "mcp:Mcp")
GROWTH_BYTES_MAX = 200 * 1024**2
SLOW = "/api/v1/scrapes/search?wait_token=999999999999"  # of a commit that never comes: answered after 5 s

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(READY_S + 240),
    pytest.mark.skipif(sys.platform != "linux", reason="Ray ships HAProxy for Linux only"),
]


@pytest.fixture(scope="module")
def hosted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosted]:
    directory = tmp_path_factory.mktemp("hostile")
    seed(directory)
    environment = {
        "SHOAL_CLIENT_TIMEOUT_S": str(CLIENT_S),
        "SHOAL_SERVE_REPLICAS_MIN": str(REPLICAS),
        "SHOAL_SERVE_REPLICAS_MAX": str(REPLICAS_MAX),
        "SHOAL_SERVE_TARGET_REQUESTS": "1.5",
        "SHOAL_SERVE_UPSCALE_DELAY_S": "1",
        "SHOAL_SERVE_DOWNSCALE_DELAY_S": "4",
    }
    with Hosted(directory, "haproxy", environment) as hosted:
        _settle(hosted)
        yield hosted


def _settle(hosted: Hosted) -> None:
    """Wait until as many replicas run as should without load."""
    until(
        lambda: all(len(hosted.replicas(name)) == REPLICAS for name in DEPLOYMENTS), 120,
        lambda: f"{[[str(one) for one in hosted.replicas(name)] for name in DEPLOYMENTS]}: {hosted.log()}",
    )  # fmt: skip


# --- bad clients ------------------------------------------------------------------------------


class Bad:
    """Connections that misuse their time: each sends `first`, then `drip` a byte a second."""

    def __init__(self, address: tuple[str, int], count: int, first: bytes = b"", drip: bytes = b"") -> None:
        self.sockets: list[socket.socket] = []
        for _ in range(count):
            one = socket.socket()
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # so that an unread answer is unread here
            one.connect(address)
            one.sendall(first)
            self.sockets.append(one)
        self.ports = {one.getsockname()[1] for one in self.sockets}
        self._drip = drip

    def drip(self) -> None:
        for one in self.sockets if self._drip else ():
            with contextlib.suppress(OSError):  # ended already
                one.send(self._drip)

    def close(self) -> None:
        for one in self.sockets:
            one.close()

    def said(self) -> set[tuple[bytes, bool]]:
        """What they have got: the status line, and whether it is a problem of ours."""
        told = set()
        for one in self.sockets:
            one.settimeout(5)
            with contextlib.suppress(OSError):
                text = one.recv(65536)
                told.add((text.partition(b"\r\n")[0], b"urn:shoal:problem:" in text))
        return told


def _haproxy(hosted: Hosted) -> list[psutil.Process]:
    return [process for process in hosted.processes() if process.name() == "haproxy"]


def _held(hosted: Hosted, ports: set[int]) -> int:
    """How many connections of these client ports HAProxy still has."""
    connections = [one for process in _haproxy(hosted) for one in process.net_connections("tcp")]
    return sum(1 for one in connections if one.raddr and one.raddr.port in ports)


def _memory(hosted: Hosted) -> int:
    family = [*_haproxy(hosted), *(process for name in DEPLOYMENTS for process in hosted.replicas(name))]
    return sum(process.memory_full_info().uss for process in family)


POST = b"POST /api/v1/collections/scraper/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
PUSH = (
    b"POST /api/v1/collections/scraper/documents?dataset=a&urn=b&data_source=c&data_type=d HTTP/1.1\r\n"
    b"Host: localhost\r\nContent-Type: text/csv\r\nX-Request-Timeout: 6\r\nContent-Length: 1000000\r\n\r\n"
)


def test_slow_silent_and_deaf_clients_are_ended_and_good_ones_are_served_all_along(hosted: Hosted) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4096)), hard))
    before = _memory(hosted)
    address = hosted.address
    with Load(hosted.url, 2, 2) as load:
        until(lambda: len(load.asked) > 20, 30)
        bad = {
            "idle": Bad(address, 1000),
            "a head a byte a second": Bad(address, 100, b"GET / HTTP/1.1\r\nHost: localhost\r\nX-A: ", b"a"),
            "a body a byte a second": Bad(address, 300, POST + b"Content-Length: 500\r\n\r\n", b" "),
            "no body at all": Bad(address, 100, POST + b"Content-Length: 500\r\n\r\n"),
            "a push that dries up": Bad(address, 20, PUSH + b"a,b\n" * 8000, b"1"),
            "never reads": Bad(address, 20, b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: localhost\r\n\r\n" * 4),
        }
        ports = set().union(*(one.ports for one in bad.values()))
        began, most = time.monotonic(), before
        until(lambda: _held(hosted, ports) > 500, 20, lambda: f"{_held(hosted, ports)} connections are there")
        while held := {name: left for name, one in bad.items() if (left := _held(hosted, one.ports))}:
            assert time.monotonic() - began < ENDED_S, f"still there: {held}"
            most = max(most, _memory(hosted))
            for one in bad.values():
                one.drip()
            time.sleep(1)
        until(lambda: load.answered_since(began) > 50, 30)
    print(f"ended after {time.monotonic() - began:.1f} s; memory grew by {(most - before) / 1024**2:.0f} MiB")
    slowest = max(one.ended - one.began for one in load.asked)
    print(f"{len(load.asked)} good requests meanwhile, the slowest took {slowest:.2f} s")
    assert load.failed() == []
    assert most - before < GROWTH_BYTES_MAX
    assert bad["a head a byte a second"].said() == {(b"HTTP/1.1 408 Request Time-out", False)}
    assert bad["a body a byte a second"].said() == {(b"HTTP/1.1 408 Request Time-out", True)}
    assert bad["a push that dries up"].said() == {(b"HTTP/1.1 504 Gateway Timeout", True)}
    for one in bad.values():
        one.close()


def test_an_answer_may_take_longer_than_a_client_may_be_silent(hosted: Hosted) -> None:
    began = time.monotonic()
    assert httpx.get(hosted.url + SLOW, timeout=60).status_code == 200
    assert time.monotonic() - began > CLIENT_S


def test_half_a_connection_and_what_is_no_request_harm_nobody(hosted: Hosted) -> None:
    with socket.create_connection(hosted.address, 30) as one:
        one.sendall(b"BREW coffee\r\n\r\n")
        assert one.recv(65536).startswith(b"HTTP/1.1 400")
    # One that hangs up half of the connection has nobody to answer to; all others are answered as before.
    with socket.create_connection(hosted.address, 30) as one:
        one.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        one.shutdown(socket.SHUT_WR)
        one.recv(65536)
    assert httpx.get(f"{hosted.url}/healthz", timeout=60).status_code == 200


# --- replicas that die, change and multiply ---------------------------------------------------


def test_a_killed_replica_fails_no_question_not_even_those_it_had_in_hand(hosted: Hosted) -> None:
    for name in DEPLOYMENTS:
        _settle(hosted)
        with Load(hosted.url, 4, 4) as load:
            until(lambda load=load: len(load.asked) > 50, 90)  # type: ignore[misc]
            victim = hosted.replicas(name)[0]
            killed = time.monotonic()
            os.kill(victim.pid, signal.SIGKILL)
            victim.wait(30)
            gone = time.monotonic()
            until(lambda load=load, gone=gone: load.answered_since(gone) > 100, 90)  # type: ignore[misc]
            until(lambda name=name: len(hosted.replicas(name)) >= REPLICAS, 120, hosted.log)  # type: ignore[misc]
            healed = time.monotonic()
            until(lambda load=load, healed=healed: load.answered_since(healed) > 50, 90)  # type: ignore[misc]
        in_hand = [one for one in load.asked if one.began <= gone and one.ended >= killed]
        print(
            f"{name}: {len(load.failed())} of {len(in_hand)} in flight failed, of {len(load.asked)} in all; "
            f"another replica after {healed - gone:.1f} s"
        )
        assert load.failed() == []


def test_a_new_version_is_rolled_out_without_a_failed_request(hosted: Hosted) -> None:
    _settle(hosted)
    old = [process for name in DEPLOYMENTS for process in hosted.replicas(name)]
    with (
        Load(hosted.url, 3, 3) as load,
        ThreadPoolExecutor(6) as slow,
        httpx.Client(base_url=hosted.url, timeout=60) as silent,  # it keeps its connection and asks nothing meanwhile
    ):
        assert silent.get("/healthz").status_code == 200
        until(lambda: len(load.asked) > 50, 60)
        unfinished = [slow.submit(httpx.get, hosted.url + SLOW, timeout=60) for _ in range(6)]
        hosted.roll_out()
        _, left = psutil.wait_procs(old, 90)
        assert left == [], "replicas of the old version stay"
        ended = time.monotonic()
        until(lambda: load.answered_since(ended) > 50, 60)
        assert silent.get("/healthz").status_code == 200
    assert load.failed() == []
    assert [one.result().status_code for one in unfinished] == [200] * len(unfinished)


def test_replicas_come_with_load_and_go_without_it(hosted: Hosted) -> None:
    _settle(hosted)
    with Load(hosted.url, 1, 1) as few:  # who asks all along, also while replicas leave
        with Load(hosted.url, 10, 10) as many:
            _grown(hosted, DEPLOYMENTS)
        _settle(hosted)
        settled = time.monotonic()
        until(lambda: few.answered_since(settled) > 20, 60)
    assert many.failed() == []
    assert few.failed() == []


def _grown(hosted: Hosted, names: Sequence[str]) -> None:
    most = dict.fromkeys(names, 0)

    def look() -> bool:
        for name in names:
            most[name] = max(most[name], len(hosted.replicas(name)))
        return all(count == REPLICAS_MAX for count in most.values())

    until(look, 120, lambda: f"{most}: {hosted.log()}")
