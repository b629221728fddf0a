"""Where a campaign takes place: its servers, the provider, `shoal up`, and a second Ray node, each its own process.

Everything lies in one directory. What the campaign itself asks of Kafka and S3 goes past the proxies.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import IO

import httpx
import psutil

from shoal.settings import Settings, load
from shoal.store.state_files import read_state
from tests.chaos import load as loads
from tests.chaos.messages import BUCKET, MODEL, WIDTH
from tests.chaos.victims import living
from tests.fixtures.kafka_server import KafkaServer
from tests.fixtures.parts import ServerProcess, accepts_connections, free_ports
from tests.fixtures.proxy import Proxy
from tests.fixtures.s3_server import S3Server
from tests.fixtures.stack import Stack

TOPIC, COMMANDS, OUTCOMES = "scrapes", "commands", "outcomes"
PARTITIONS, COMMAND_PARTITIONS = 6, 2
HANG_S = 8
NODE_CPUS = 4
READY_S = 400.0  # of `shoal up`: a campaign is not about how fast that is, and may share its machine
# Two nodes on one machine must not share these.
NODE_PORTS = ("RAY_SERVE_HAPROXY_STATS_PORT", "RAY_SERVE_HAPROXY_METRICS_PORT", "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT")
SETTINGS = {
    "SHOAL_COMPACT_COMMITS": "6",
    "SHOAL_INDEX_ROWS_MIN": "256",
    "SHOAL_CLEANUP_AGE_S": "600",
    "SHOAL_OBJECT_BYTES_MAX": str(loads.OBJECT_BYTES_MAX),
    "SHOAL_HANG_S": str(HANG_S),
    # An outage of ours must never look like a bad object: the campaign's longest ends well before.
    "SHOAL_TRANSIENT_RETRY_S": "600",
    "RAY_scheduler_spread_threshold": "0.0",  # else everything lives on the head, and a worker node's death is nothing
}


class Place:
    """Started by `start`, ended by `close`; `directory` stays."""

    def __init__(self, directory: Path, seed: int, *, tables_on_s3: bool = False) -> None:
        self.directory, self.seed = directory, seed
        self._tables_on_s3 = tables_on_s3
        self._ended = ExitStack()
        self.fault_dir = directory / "faults"
        self.node: Node | None = None
        self.exits = 0  # of `shoal up`, after a head's death

    def start(self) -> None:
        self.fault_dir.mkdir(parents=True)
        self.proxies = {name: self._ended.enter_context(Proxy(0)) for name in ("kafka", "s3", "provider")}
        self.kafka = self._ended.enter_context(
            closing(KafkaServer(self.directory / "kafka", advertised_port=self.proxies["kafka"].port))
        )
        self.proxies["kafka"].retarget(self.kafka.proxied_port)
        self.s3 = self._ended.enter_context(closing(S3Server(self.directory / "s3")))
        self.proxies["s3"].retarget(self.s3.port)
        for name, partitions in {
            TOPIC: PARTITIONS, COMMANDS: COMMAND_PARTITIONS, f"{TOPIC}_dlq": 1, f"{COMMANDS}_dlq": 1, OUTCOMES: 1,
        }.items():  # fmt: skip
            self.kafka.create_topic(name, partitions)
        self.s3.bucket(BUCKET)
        self.tables = (
            f"s3://{self.s3.bucket('chaos-tables')}/t" if self._tables_on_s3 else str(self.directory / "tables")
        )
        (self.provider_port,) = free_ports(1)
        self.provider = ServerProcess(
            [
                sys.executable,
                "-m",
                "tests.fixtures.openai_server",
                str(self.provider_port),
                "--width",
                str(WIDTH),
                "--limits",
                "3000",
                "1000000",
                "--seed",
                str(self.seed),
            ],
            self.directory / "provider.log",
        )
        self._ended.callback(self.provider.kill)
        self.proxies["provider"].retarget(self.provider_port)
        self.provider.wait_until(lambda: accepts_connections(self.provider_port), 60)
        self.environment = {
            **SETTINGS,
            **self.s3.env(),
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.proxies['s3'].port}",
            "SHOAL_FAULT_DIR": str(self.fault_dir),
            "KAFKA_BROKERS": f"127.0.0.1:{self.proxies['kafka'].port}",
            "KAFKA_TOPIC": TOPIC,
            "SHOAL_COMMAND_TOPIC": COMMANDS,
            "SHOAL_OUTCOME_TOPIC": OUTCOMES,
            "KAFKA_GROUP_ID": "chaos",
            "LANCEDB_PATH": self.tables,
            "OPENAI_API_KEY": "sk-chaos",
            "OPENAI_BASE_URL": f"http://127.0.0.1:{self.proxies['provider'].port}/v1",
            "OPENAI_EMBEDDING_MODEL": MODEL,
            **({"PYTHONPATH": os.environ["PYTHONPATH"]} if "PYTHONPATH" in os.environ else {}),
        }
        self.stack = Stack(self.directory / "stack", self.environment, ready_s=READY_S)
        self._ended.callback(self.stack.kill)
        self.stack.start()
        self.settings = self._settings()

    def close(self) -> None:
        if self.node is not None:
            self.node.kill()
        self._ended.close()

    @property
    def roots(self) -> list[int]:
        """What the campaign started of Shoal: the head first."""
        found = [self.stack.pid] if self.stack.is_alive else []
        return found + ([self.node.pid] if self.node is not None else [])

    def head_address(self) -> str | None:
        """Where a worker node finds the head, if there is one now."""
        head = self._head()
        try:
            words = head.cmdline() if head is not None else []
        except psutil.Error:  # it ended just now
            return None
        return next((word.partition("=")[2] for word in words if word.startswith("--gcs-address=")), None)

    def start_node(self) -> None:
        """A (new) worker node, in the environment that `shoal up` gave the head's. Without a head: none."""
        head, address = self._head(), self.head_address()
        try:
            environment = head.environ() if head is not None else {}
        except psutil.Error:
            return
        if address is None:
            return
        if self.node is not None:
            self.node.kill()
        self.node = Node(address, environment, self.directory / "node.log")

    def _head(self) -> psutil.Process | None:
        raylets = living([self.stack.pid]).get("raylet", []) if self.stack.is_alive else []
        return psutil.Process(raylets[0].pid) if raylets else None

    def loose(self, bad: bool) -> None:
        """Let the provider misbehave, or tell it to stop."""
        httpx.post(f"http://127.0.0.1:{self.provider_port}/control", json={"bad": bad}, timeout=30)

    def status(self) -> dict[str, object]:
        """What the supervisor wrote last; {} where that can't be had now."""
        try:
            return dict(read_state(self.settings, "status.json") or {})
        except Exception:
            return {}

    def _settings(self) -> Settings:
        """Those of the stack, for reading what it wrote."""
        os.environ.update(self.s3.env())
        return load(
            data_dir=self.directory / "stack" / "data",
            lancedb_path=self.tables,
            kafka_brokers=self.kafka.bootstrap,
            kafka_topics=(TOPIC,),
            openai_embedding_model=MODEL,
            object_bytes_max=loads.OBJECT_BYTES_MAX,
            s3_endpoint_url=self.s3.endpoint,
        )


class Node:
    """A second Ray node on this machine, that joins the cluster of `shoal up`."""

    def __init__(self, address: str, environment: Mapping[str, str], log: Path) -> None:
        self.address = address
        ray = str(Path(sys.executable).with_name("ray"))
        places = dict(zip(NODE_PORTS, map(str, free_ports(len(NODE_PORTS))), strict=True))
        self._log: IO[bytes] = log.open("ab")
        self.process = subprocess.Popen(
            [ray, "start", f"--address={address}", "--block", f"--num-cpus={NODE_CPUS}",
             f"--object-store-memory={128 * 1024 * 1024}", "--disable-usage-stats"],
            env={**environment, **places}, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log,
            start_new_session=True,
        )  # fmt: skip
        self.started_at = time.time()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        """Everything of it."""
        try:
            os.killpg(self.process.pid, 9)
        except ProcessLookupError:
            pass
        threading.Thread(target=self.process.wait, daemon=True).start()
        self._log.close()
