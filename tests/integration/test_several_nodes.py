"""Ingest on several Ray nodes, as KubeRay runs it: spread, nodes lost and drained, nodes that come; nothing is lost.

One machine, but real raylets: a head without CPUs, nodes for the flow, one that alone offers the core's resource, the
Serve config that production deploys, Kafka, tables and files in S3. Each test begins with what the one before it left.
How long recovery took is printed, never asserted: a machine with other work takes as long as it takes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition

from shoal.cluster.announcing import Announcer
from shoal.cluster.checking import check
from shoal.cluster.output import Format
from shoal.cluster.verifying import verify
from shoal.settings import Settings, load
from shoal.sources.publishing import Prepared, prepare
from shoal.store.state_files import read_state
from tests.fixtures.kafka_server import KafkaServer
from tests.fixtures.ray_head import RayHead
from tests.fixtures.s3_server import S3Server
from tests.fixtures.stack import SHOAL

CONFIG = Path(__file__).parents[2] / "kuberay/base/ingest/serve.yaml"
CORE = {"shoal_core": 1}
GUARD_S = 300.0
"""A guard against hanging, not a measure of recovery."""
FILES, FILES_A_SECOND = 200, 25
FLOWING = 10  # files that are indexed before something happens; most are announced after it, to every partition
pytestmark = pytest.mark.timeout(2 * GUARD_S)


class Files(threading.Thread):
    """So many files in S3, announced one after the other, each with an id of its own."""

    def __init__(self, settings: Settings, directory: Path, bucket: str) -> None:
        super().__init__(name="files", daemon=True)
        self._settings, run = settings, uuid.uuid4().hex[:8]
        place = directory / run
        place.mkdir()
        for number in range(FILES):
            (place / f"{run}-{number}.json").write_text(json.dumps({"load_mw": number, "run": run}))
        self._messages: list[Prepared] = list(
            prepare([place], settings, source="NYISO", dataset="nodes", to=f"s3://{bucket}/{run}")
        )
        self._announcer = Announcer(settings, listen=True)
        self._all_ended = False

    def run(self) -> None:
        with self._announcer as announcer:
            for message in self._messages:
                announcer.send([message])
                announcer._listen(1 / FILES_A_SECOND)
            self._all_ended = announcer.wait(GUARD_S)

    def flowing(self) -> bool:
        assert self.is_alive(), "they all ended before anything happened"
        return sum(self._announcer.tally.outcomes.values()) >= FLOWING

    def outcomes(self) -> dict[str, int]:
        """Of all of them, once each has one."""
        self.join(2 * GUARD_S)
        assert self._all_ended, self._announcer.tally
        return {str(outcome): count for outcome, count in self._announcer.tally.outcomes.items()}


class Cluster:
    """Head, nodes and Shoal on them."""

    def __init__(self, directory: Path, kafka: KafkaServer, s3: S3Server) -> None:
        self.directory, run = directory, uuid.uuid4().hex[:8]
        self.bucket = s3.bucket("nodes-files")
        self.environment = s3.env() | {
            "SHOAL_DATA_DIR": str(directory / "data"), "LANCEDB_PATH": f"s3://{s3.bucket('nodes-tables')}/{run}",
            "KAFKA_BROKERS": kafka.bootstrap, "KAFKA_TOPIC": f"in-{run}", "KAFKA_GROUP_ID": f"group-{run}",
            "SHOAL_COMMAND_TOPIC": f"commands-{run}", "SHOAL_OUTCOME_TOPIC": f"outcomes-{run}",
            "SHOAL_EMBEDDING_PROVIDER": "hash", "SHOAL_READERS": "2", "SHOAL_FETCHERS": "2",
            "SHOAL_CORE_RESOURCE": "shoal_core",
            # As kuberay/base/foundation/ray.env: a node is lost after five seconds without a sign of life.
            "RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "5",
            "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
        }  # fmt: skip
        self.head = RayHead(directory, self.environment, cpus=0, resources={})
        self.nodes = {
            "core": self.head.node("core", cpus=0, resources=CORE),
            "flow-1": self.head.node("flow-1", cpus=2),
            "flow-2": self.head.node("flow-2", cpus=2),
        }
        for node in self.nodes.values():
            node.joined()

    @property
    def settings(self) -> Settings:
        return load()

    def run(self, *arguments: str) -> None:
        environment = self.head.environment | {"RAY_DASHBOARD_ADDRESS": self.head.dashboard}
        done = subprocess.run(
            arguments, env=environment, cwd=self.directory, capture_output=True, text=True, timeout=GUARD_S
        )
        assert done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"

    def status(self) -> dict[str, Any]:
        return dict(read_state(self.settings, "status.json") or {})

    def actors(self) -> dict[str, Any]:
        return dict(self.status()["actors"])

    def where(self) -> dict[str, str]:
        """The node's name of each actor whose process is there."""
        on = {pid: name for name, node in self.nodes.items() for pid in node.processes()}
        return {name: on[actor["pid"]] for name, actor in self.actors().items() if actor["pid"] in on}

    def until(self, what: str, true: Callable[[], Any]) -> None:
        deadline = time.monotonic() + GUARD_S
        while time.monotonic() < deadline:
            if true():
                return
            time.sleep(0.2)
        told = json.dumps({name: self.status().get(name) for name in ("at", "actors", "problems")}, indent=1)
        raise AssertionError(f"not within {GUARD_S:g} s: {what}\n{self.where()}\n{told}")

    def is_whole(self) -> bool:
        """Whether everyone runs, on a node that is there."""
        actors = self.actors()
        return all(actor["state"] == "running" for actor in actors.values()) and self.where().keys() == actors.keys()

    def files(self) -> Files:
        found = Files(self.settings, self.directory, self.bucket)
        found.start()
        self.until("files are being indexed", found.flowing)
        return found

    def back(self, what: str, files: Files, since: float) -> None:
        """Every one of `files` is indexed; print how long that took. One whose commit was done when its reader was lost
        comes again, and is there already: `unchanged`."""
        outcomes = files.outcomes()
        assert outcomes.keys() <= {"indexed", "unchanged"}, outcomes
        assert sum(outcomes.values()) == FILES, outcomes
        indexed_s = time.monotonic() - since
        self.until("everyone runs", self.is_whole)
        whole_s, load_now = time.monotonic() - since, os.getloadavg()[0]
        print(f"{what}: all indexed after {indexed_s:.1f} s, whole after {whole_s:.1f} s (load {load_now:.0f})")

    def uncommitted(self) -> dict[int, int]:
        """The messages of each partition that the group has yet to commit, as the brokers know it."""
        topic, found = self.settings.kafka_topics[0], {}
        asking = Consumer(
            {"bootstrap.servers": self.settings.kafka_brokers, "group.id": self.settings.kafka_group_id, "log_level": 0}
        )
        try:
            partitions = asking.list_topics(topic, timeout=30).topics[topic].partitions
            for place in asking.committed([TopicPartition(topic, number) for number in partitions], timeout=30):
                end = asking.get_watermark_offsets(place, timeout=30)[1]
                if end > max(0, place.offset):
                    found[place.partition] = end - max(0, place.offset)
        finally:
            asking.close()
        return found

    def whole_tables(self) -> None:
        """The log and the tables say the same, document by document, and the tables are whole by themselves."""
        # What a lost reader had told already may be under way once more: nothing may be left that `verify` leaves out.
        self.until("the whole log is committed", lambda: not self.uncommitted())
        assert verify(self.settings, settle_s=60, from_time_ms=None, shown_max=20, form=Format.json) == 0
        assert check(self.settings, leaked_age_s=None, shown_max=20, form=Format.json, repair=False) == 0


@pytest.fixture(scope="module")
def cluster(
    kafka_server: KafkaServer, s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    found = None
    with pytest.MonkeyPatch.context() as patch:
        try:
            found = Cluster(tmp_path_factory.mktemp("nodes"), kafka_server, s3_server)
            for name, value in found.environment.items():
                patch.setenv(name, value)
            found.run(SHOAL, "deploy", str(CONFIG), "--timeout", str(GUARD_S))
            found.until("everyone runs", lambda: found.status().get("actors") and found.is_whole())
            yield found
        finally:
            if found is not None:
                found.head.close()


def test_the_flow_is_spread_the_core_is_where_its_resource_is_and_nothing_is_on_the_head(cluster: Cluster) -> None:
    where = cluster.where()
    assert {where["writer"], where["embedder"]} == {"core"}
    flow = {where[name] for name in ("reader-0", "reader-1", "fetcher-0", "fetcher-1")}
    assert flow == {"flow-1", "flow-2"}, where
    for name, actor in cluster.actors().items():
        assert actor["node"] is not None, name


def test_a_node_of_the_flow_is_lost_while_files_come_and_each_is_indexed_once(cluster: Cluster) -> None:
    where = cluster.where()
    flow = [name for name in ("flow-1", "flow-2") if name in where.values()]
    lost = max(flow, key=list(where.values()).count)
    before = cluster.actors()
    files = cluster.files()
    began = time.monotonic()
    cluster.nodes.pop(lost).kill()
    cluster.back(f"{lost} lost with {[name for name in where if where[name] == lost]}", files, began)
    now = cluster.actors()
    for name, place in where.items():
        restarts = now[name]["restarts"] - before[name]["restarts"]
        assert restarts == (place == lost), (name, now[name])
    cluster.whole_tables()


def test_the_core_waits_without_harm_for_a_node_that_has_its_resource_and_begins_there_once_one_comes(
    cluster: Cluster,
) -> None:
    before = cluster.actors()
    files = cluster.files()
    began = time.monotonic()
    cluster.nodes.pop("core").kill()

    def waits() -> bool:
        status = cluster.status()
        return all("has room" in status["problems"].get(f"{name} room", "") for name in ("writer", "embedder"))

    cluster.until("what is wrong is said", waits)
    cluster.nodes["core-2"] = cluster.head.node("core-2", cpus=2, resources=CORE).joined()
    cluster.back("core lost, another came later", files, began)
    where, now = cluster.where(), cluster.actors()
    assert {where["writer"], where["embedder"]} == {"core-2"}
    for name in ("writer", "embedder"):
        assert now[name]["restarts"] == before[name]["restarts"] + 1, "it waited, and was not begun over and over"
    assert not waits()


def test_a_node_that_is_drained_goes_by_itself_once_its_work_has_moved_and_nothing_is_lost(cluster: Cluster) -> None:
    (name,) = [name for name in cluster.nodes if name.startswith("flow")]
    going = cluster.nodes[name]
    moved = [actor for actor, place in cluster.where().items() if place == name]
    node_id = cluster.actors()[moved[0]]["node"]
    files = cluster.files()
    began = time.monotonic()
    ray = str(Path(sys.executable).with_name("ray"))
    cluster.run(
        ray, "drain-node", "--address", cluster.head.address, "--node-id", node_id, "--reason",
        "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "maintenance", "--deadline-remaining-seconds", "600",
    )  # fmt: skip
    cluster.until("its work has moved", lambda: name not in cluster.where().values() and cluster.is_whole())
    cluster.back(f"{name} drained of {moved}", files, began)
    assert moved
    assert {cluster.where()[actor] for actor in moved} == {"core-2"}, "the only other one that has CPUs"
    cluster.until("the node has gone", lambda: not going.processes())
    print(f"the node had gone after {time.monotonic() - began:.1f} s")
    cluster.whole_tables()
