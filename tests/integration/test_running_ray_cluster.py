"""Shoal on a Ray cluster that others started, as on KubeRay: by a Serve config, and by `shoal up` attached to it."""

from __future__ import annotations

import json
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from shoal.settings import load
from shoal.store.state_files import read_state
from tests.fixtures.kafka_server import KafkaServer
from tests.fixtures.parts import free_ports
from tests.fixtures.ray_head import RayHead
from tests.fixtures.stack import SHOAL, Stack

CONFIG = Path(__file__).parents[2] / "kuberay/overlays/single-cluster/serve.yaml"
"""What the manifests deploy, all three applications."""


class Place:
    """A head, Shoal's settings there, and its command line beside it."""

    def __init__(self, directory: Path, kafka: KafkaServer) -> None:
        self.directory, name = directory, uuid.uuid4().hex[:8]
        self.settings = {
            "SHOAL_DATA_DIR": str(directory / "data"), "KAFKA_BROKERS": kafka.bootstrap, "KAFKA_TOPIC": f"in-{name}",
            "SHOAL_COMMAND_TOPIC": f"commands-{name}", "SHOAL_OUTCOME_TOPIC": f"outcomes-{name}",
            "KAFKA_GROUP_ID": f"group-{name}", "SHOAL_EMBEDDING_PROVIDER": "hash", "SHOAL_READERS": "1",
            "SHOAL_FETCHERS": "1", "SHOAL_SERVE_REPLICAS_MAX": "1",
            "SHOAL_CORE_RESOURCE": "shoal_core",
        }  # fmt: skip
        self.head = RayHead(directory, self.settings)
        self.port = free_ports(1)[0]
        self.url = f"http://127.0.0.1:{self.port}"
        config = yaml.safe_load(CONFIG.read_text())
        config["http_options"] |= {"host": "127.0.0.1", "port": self.port}
        self.config = directory / "serve.yaml"
        self.config.write_text(yaml.safe_dump(config))
        self.key = ""

    def run(
        self, *arguments: str, token: str | None = None, timeout_s: float = 300
    ) -> subprocess.CompletedProcess[str]:
        environment = self.head.environment | {
            "SHOAL_URL": self.url, "SHOAL_API_KEY": self.key, "RAY_DASHBOARD_ADDRESS": self.head.dashboard,
            "RAY_AUTH_TOKEN": self.head.token if token is None else token,
        }  # fmt: skip
        return subprocess.run(
            [SHOAL, *arguments], env=environment, cwd=self.directory, capture_output=True, text=True, timeout=timeout_s
        )

    def status(self) -> dict[str, Any]:
        found = read_state(load(data_dir=Path(self.settings["SHOAL_DATA_DIR"])), "status.json")
        assert isinstance(found, dict)
        return found

    def publish(self, name: str, text: str) -> dict[str, Any]:
        file = self.directory / name
        file.write_text(text)
        done = self.run("publish", str(file), "--source", "NYISO", "--wait", "--timeout", "120", "-o", "json")
        assert done.stdout, done.stderr[-2000:]
        return dict(json.loads(done.stdout))


@pytest.fixture(scope="module")
def place(kafka_server: KafkaServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    found = Place(tmp_path_factory.mktemp("cluster"), kafka_server)
    try:
        yield found
    finally:
        found.head.close()


def _ok(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, f"{done.args}: {done.returncode}\n{done.stdout}\n{done.stderr[-3000:]}"
    return done.stdout.strip()


@pytest.mark.timeout(900)
def test_a_serve_config_applied_once_or_twice_is_one_service_and_a_drained_one_begins_anew_when_told(
    place: Place,
) -> None:
    refused = place.run("deploy", str(place.config), token="0" * 64)
    assert refused.returncode == 2
    assert "RAY_AUTH_TOKEN" in refused.stderr

    _ok(place.run("deploy", str(place.config), "--timeout", "250"))
    assert place.head.applications() == dict.fromkeys(("ingest", "rest", "mcp"), "RUNNING")
    life = place.status()["life"]
    assert httpx.get(f"{place.url}/api/v1/ingest", timeout=30).status_code == 401, "on loopback, and yet not local"
    place.key = _ok(place.run("keys", "create", "--name", "test", "--scope", "admin"))
    assert place.publish("one.txt", "hourly load forecast by zone")["outcomes"]["indexed"] == 1
    found = _ok(place.run("search", "load forecast", "--mode", "keyword", "-o", "json"))
    assert "one.txt" in found

    _ok(place.run("deploy", str(place.config)))
    assert place.status()["life"] == life, "what runs was started anew"

    _ok(place.run("drain", "--timeout", "20"))
    _ok(place.run("drain", "--join", "--timeout", "20"))
    _ok(place.run("deploy", str(place.config), "--restart", "--timeout", "250"))
    assert place.publish("two.txt", "wind generation in MW")["outcomes"]["indexed"] == 1, (
        "drained, it reads on only when told to"
    )
    assert place.status()["life"] != life


@pytest.mark.timeout(900)
def test_shoal_up_runs_on_anothers_cluster_and_leaves_it_standing(place: Place, tmp_path: Path) -> None:
    # Serve listens where it was first told to: whoever attaches to a cluster must name that port.
    place.run("keys", "create", "--name", "up", "--scope", "admin")
    headers = {"Authorization": f"Bearer {place.head.token}"}
    httpx.delete(f"{place.head.dashboard}/api/serve/applications/", headers=headers, timeout=60).raise_for_status()
    environment = place.settings | {
        "SHOAL_RAY_ADDRESS": place.head.address, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": place.head.token,
    }  # fmt: skip
    with Stack(tmp_path, environment, ready_s=300) as stack:
        assert set(place.head.applications()) == {"ingest", "rest", "mcp"}
        assert stack.get("/readyz")["status"] in {"ready", "degraded"}
        assert place.status()["ingress"] == "proxy", "what the cluster listens with, not what this machine has"
    assert place.head.applications() == {}, f"its applications are ended: {place.head.log()}"
