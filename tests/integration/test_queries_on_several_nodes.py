"""Queries on several Ray nodes, as KubeRay runs them: spread, a node lost, one that comes, more and fewer replicas.

One machine, but real raylets: a head without CPUs, nodes that each hold one replica of a deployment, the Serve config
of `kuberay/base/queries`, and a HAProxy on the head and on every node that has a replica, each on a port of its own.
Questions are asked of all of them all along. Each test begins with what the one before it left. How long things took
is printed, never asserted: a machine with other work takes as long as it takes.
"""

from __future__ import annotations

import csv
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from shoal.cluster.ingress import haproxy_environment
from shoal.cluster.ray_environment import ALWAYS, HAPROXY
from shoal.settings import Settings
from tests.fixtures.good_clients import Load
from tests.fixtures.parts import free_ports
from tests.fixtures.ray_head import RayHead, RayNode
from tests.fixtures.serve_side import LIST_TOOLS, MCP_HEADERS, seed, until
from tests.fixtures.stack import SHOAL

RAY_SERVICE = Path(__file__).parents[2] / "kuberay/base/queries/ray-service.yaml"
DEPLOYMENTS = ("rest:Rest", "rest:QueryEmbedder", "mcp:Mcp")
SCALED = ("rest:Rest", "mcp:Mcp")
"""What the requests of these tests make more of; of the embedder one answers more than they ask."""
NODES, REPLICAS, REPLICAS_MAX = 3, 2, 3
TARGET = (
    2  # requests at once of a replica: one client of each kind at every proxy, at most four, asks for no more of them
)
MANY = 14  # clients of each kind, who do
NODE_CPUS = 3  # as in that RayService: one of each deployment
GUARD_S = 300.0
"""A guard against hanging, not a measure of recovery."""
ENOUGH = 60  # questions answered before and after what happens

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(3 * GUARD_S),
    pytest.mark.skipif(sys.platform != "linux", reason="Ray ships HAProxy for Linux only"),
]


class Haproxy:
    """What one of them says of itself at `stats`."""

    def __init__(self, stats: str) -> None:
        self._stats = stats

    def asked(self) -> dict[str, dict[str, int]]:
        """Of each application each replica that it counts in, and how often it has asked it since it last changed."""
        table = csv.DictReader(httpx.get(f"{self._stats};csv", timeout=30).text.removeprefix("# ").splitlines())
        found: dict[str, dict[str, int]] = {}
        for row in table:
            if row["svname"].startswith("SERVE_REPLICA") and row["status"] == "UP":
                found.setdefault(row["pxname"], {})[row["svname"]] = int(row["lbtot"])
        return found

    def asks_everyone(self) -> bool:
        asked = self.asked()
        return {name: len(replicas) for name, replicas in asked.items()} == {
            "http-rest": REPLICAS, "http-mcp": REPLICAS,
        } and all(count for replicas in asked.values() for count in replicas.values())  # fmt: skip


class Cluster:
    """Head, nodes, and queries on them over three documents."""

    def __init__(self, directory: Path) -> None:
        """The head alone; `start` brings the rest."""
        self._directory = directory
        seed(directory / "data")
        environment = ALWAYS | HAPROXY | haproxy_environment(Settings().client_timeout_s) | {
            "SHOAL_DATA_DIR": str(directory / "data"), "SHOAL_EMBEDDING_PROVIDER": "hash",
            "SHOAL_RATE_LIMIT_PER_MINUTE": "0",  # all questions are one key's
            "SHOAL_SERVE_REPLICAS_MIN": str(REPLICAS), "SHOAL_SERVE_REPLICAS_MAX": str(REPLICAS_MAX),
            "SHOAL_SERVE_TARGET_REQUESTS": str(TARGET), "SHOAL_SERVE_UPSCALE_DELAY_S": "1",
            "SHOAL_SERVE_DOWNSCALE_DELAY_S": "4",
            "RAY_health_check_failure_threshold": "5",  # as kuberay/base/foundation/ray.env
        }  # fmt: skip
        self.head = RayHead(directory, environment, cpus=0, resources={})
        self._came = 0
        self.nodes: dict[str, RayNode] = {}

    def start(self) -> None:
        self.come(NODES)
        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        self.headers = {"Authorization": f"Bearer {self._run(SHOAL, 'keys', 'create', '--name', 'asker')}"}
        config = yaml.safe_load(yaml.safe_load(RAY_SERVICE.read_text())["spec"]["serveConfigV2"])
        config["http_options"]["port"] = port  # of the head's; each node has its own (ray_head)
        path = self._directory / "serve.yaml"
        path.write_text(yaml.safe_dump(config))
        self._run(SHOAL, "deploy", str(path), "--timeout", str(GUARD_S))

    def come(self, count: int) -> list[RayNode]:
        """So many nodes more, as KubeRay brings them."""
        found = []
        for _ in range(count):
            self._came += 1
            found.append(self.head.node(f"queries-{self._came}", cpus=NODE_CPUS))
        for node in found:
            self.nodes[node.name] = node.joined()
        return found

    def _run(self, *arguments: str) -> str:
        environment = self.head.environment | {"RAY_DASHBOARD_ADDRESS": self.head.dashboard}
        done = subprocess.run(
            arguments, env=environment, cwd=self._directory, capture_output=True, text=True, timeout=GUARD_S + 30
        )
        assert done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        return done.stdout.strip()

    def where(self) -> dict[str, Counter[str]]:
        """How many replicas of each deployment run on each node, and on `head`."""
        found: dict[str, Counter[str]] = {name: Counter() for name in DEPLOYMENTS}
        places = {"head": self.head.processes()} | {name: node.processes() for name, node in self.nodes.items()}
        for place, processes in places.items():
            for title in processes.values():
                for name in DEPLOYMENTS:
                    found[name][place] += title.startswith(f"ray::ServeReplica:{name}")
        return {name: +counts for name, counts in found.items()}

    def is_settled(self) -> bool:
        """Whether as many run as should without load, on as many nodes, and every proxy there is leads to them."""
        if any(len(places) != REPLICAS or places.total() != REPLICAS for places in self.where().values()):
            return False
        return set(self.head.applications().values()) == {"RUNNING"} and all(map(self.answers, self.proxies()))

    def until(self, what: str, true: Callable[[], Any]) -> None:
        until(true, GUARD_S, lambda: f"not within {GUARD_S:g} s: {what}; {self.where()}; {self.head.deployments()}")

    def settle(self) -> None:
        self.until("as many replicas run as should without load", self.is_settled)

    def proxies(self) -> dict[str, Haproxy]:
        """By address: the head's, and that of every node with a replica of REST or MCP."""
        where = self.where()
        doors = [node for name, node in self.nodes.items() if any(where[door][name] for door in SCALED)]
        return {self.url: Haproxy(self.head.stats)} | {node.url: Haproxy(node.stats) for node in doors}

    def answers(self, url: str) -> bool:
        try:
            # Of any replica: while its embedder is away a query falls back to keywords.
            ready = httpx.get(f"{url}/readyz", timeout=5)
            listed = httpx.post(f"{url}/mcp", json=LIST_TOOLS, headers=MCP_HEADERS | self.headers, timeout=5)
        except httpx.HTTPError:
            return False
        return ready.status_code == listed.status_code == 200 and ready.json()["status"] == "ready"

    def load(self, urls: list[str], rest: int, mcp: int) -> Load:
        return Load(urls, rest, mcp, self.headers)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    found = Cluster(tmp_path_factory.mktemp("queries"))
    try:
        found.start()
        found.settle()
        yield found
    finally:
        found.head.close()


def test_replicas_are_on_different_nodes_none_on_the_head_and_every_proxy_asks_all_of_them(cluster: Cluster) -> None:
    where = cluster.where()
    for name in DEPLOYMENTS:
        assert len(where[name]) == where[name].total() == REPLICAS, where
        assert "head" not in where[name], where
    proxies = cluster.proxies()
    with cluster.load(list(proxies), len(proxies), len(proxies)) as load:
        until(lambda: all(load.answered_since(0, url) >= ENOUGH for url in proxies), GUARD_S)
        for url, proxy in proxies.items():
            until(proxy.asks_everyone, GUARD_S, lambda url=url, proxy=proxy: f"{url}: {proxy.asked()}")  # type: ignore[misc]
    assert load.failed() == []


def test_a_node_is_lost_and_only_what_went_through_its_own_proxy_can_fail(cluster: Cluster) -> None:
    # 1. All of them are asked, and each client stays with the proxy that it has.
    where, proxies = cluster.where(), cluster.proxies()
    lost = max(cluster.nodes, key=lambda node: sum(where[name][node] for name in DEPLOYMENTS))
    gone = cluster.nodes[lost]
    assert gone.url in proxies
    with cluster.load(list(proxies), len(proxies), len(proxies)) as load:
        until(lambda: all(load.answered_since(0, url) >= ENOUGH for url in proxies), GUARD_S)
        # 2. One node is gone at once, with its replicas and its proxy.
        began = time.monotonic()
        gone.kill()
        del cluster.nodes[lost]
        left = [url for url in proxies if url != gone.url]
        # 3. Those that are left go on answering, then all of what was lost is on them.
        until(lambda: all(load.answered_since(began, url) >= ENOUGH for url in left), GUARD_S)
        answered_s = time.monotonic() - began
        cluster.settle()
        settled = time.monotonic()
        until(lambda: all(load.answered_since(settled, url) >= ENOUGH for url in left), GUARD_S)
    failed = load.failed()
    print(
        f"{lost} lost with {[name for name in DEPLOYMENTS if where[name][lost]]}: {len(failed)} of {len(load.asked)} "
        f"failed; {ENOUGH} more were answered by each of the other proxies after {answered_s:.1f} s, "
        f"whole after {settled - began:.1f} s; {sum(one.is_by_words for one in load.asked)} by words, the slowest took "
        f"{max(one.ended - one.began for one in load.asked):.1f} s"
    )
    assert {one.url for one in failed} <= {gone.url}, failed
    assert len(failed) <= 2, "one of each client that it had"
    now = cluster.where()
    assert all(set(now[name]) <= set(cluster.nodes) for name in DEPLOYMENTS), now
    assert not any(one.is_by_words for one in load.asked if one.began > settled)


def test_replicas_come_with_questions_on_a_node_that_came_and_go_without_them(cluster: Cluster) -> None:
    # 1. A node comes, as KubeRay brings one for one that is lost. Nobody is moved there.
    (fresh,) = cluster.come(1)
    proxies = cluster.proxies()
    assert fresh.url not in proxies
    with cluster.load(list(proxies), len(proxies), len(proxies)) as few:  # all along, also while replicas leave
        # 2. With more questions there is a third of each, on the node that has none, and its own proxy answers, too.
        with cluster.load(list(proxies), MANY, MANY) as many:
            cluster.until(
                "a third of each runs there", lambda: all(cluster.where()[name][fresh.name] == 1 for name in SCALED)
            )
            cluster.until("its own proxy answers", lambda: cluster.answers(fresh.url))
        # 3. Without them it is as before.
        cluster.settle()
        settled = time.monotonic()
        until(lambda: few.answered_since(settled) > ENOUGH, GUARD_S)
    print(f"{len(few.asked) + len(many.asked)} questions meanwhile")
    assert many.failed() == []
    assert few.failed() == []
