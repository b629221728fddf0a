"""What a person sees of a running Shoal, by the real tools: Prometheus scrapes it as the docs say, OTLP is received."""

from __future__ import annotations

import json
import re
import secrets
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.fixtures.parts import free_ports
from tests.fixtures.prometheus import Prometheus
from tests.fixtures.stack import Stack

ROOT = Path(__file__).parents[2]
RULES = ROOT / "kuberay" / "alerts" / "shoal.rules.yaml"
WAIT_S = 60.0
pytestmark = pytest.mark.timeout(400)

# Nothing of the kind in a small, healthy Shoal without a budget: valid, and without a series.
EMPTY = {
    "overview": {"Reasons: unwell: {{dependency}}", "Stalled: {{actor}}"},
    "ingest": {
        "Retries: {{stage}}", "Oldest in flight: oldest",
        "Unowned or stuck partitions: unowned {{topic}}/{{partition}}",
        "Unowned or stuck partitions: stuck {{topic}}/{{partition}}",
    },
    "embedder": set(),
    "store": {"Recall: recall", "Recall and its target: recall", "Recall and its target: target"},
    "queries": {"Told to come back: {{status}}", "Errors of ours: 5xx"},
    "cost": {
        "Of the day's budget: used", "Of the month's budget: used", "Jobs at half price: jobs",
        "Left to the full price: texts",
    },
}  # fmt: skip


EVERY_STAGE = {"process", "fetch", "download", "extract", "embed", "write", "commit"}
QUESTION = "0af7651916cd43dd8448eb211c80319c"
SECRET = "sk-proj-" + "hunter2" * 6


class Collector:
    """Takes OTLP over HTTP, and keeps what came; a context manager."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    collector.spans += [span for scope in resource.scope_spans for span in scope.spans]
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def names_of(self, trace_id: bytes) -> set[str]:
        return {span.name for span in self.spans if span.trace_id == trace_id}

    def __enter__(self) -> Collector:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def until(found: Callable[[], Any], what: Callable[[], object] = lambda: "") -> Any:
    """`what` is told where it does not come to that."""
    deadline = time.monotonic() + WAIT_S
    while not (result := found()):
        assert time.monotonic() < deadline, f"not within {WAIT_S:g} s: {what()}"
        time.sleep(0.3)
    return result


def scrape_configs(rest_port: int, ray_port: int) -> list[dict[str, Any]]:
    """Those of the docs, on this test's ports."""
    rest, ray = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "metrics.md").read_text(), re.DOTALL)
    (config,) = yaml.safe_load(rest.replace("8000", str(rest_port)))["scrape_configs"]
    del config["scrape_interval"]
    nodes = [{"targets": [f"127.0.0.1:{ray_port}"]}]
    return [config, {"job_name": "ray", "static_configs": nodes, **yaml.safe_load(ray)}]


def jobs_of(prometheus: Prometheus, expression: str) -> set[str]:
    """Whose pages have it: a process that was replaced shows for some seconds beside its successor."""
    return {series["metric"]["job"] for series in prometheus.query(expression)}


def expressions(board: str) -> list[tuple[str, str]]:
    """(panel: legend, expression with Grafana's variables filled in) of a dashboard."""
    panels = json.loads((ROOT / "kuberay" / "dashboards" / f"{board}.json").read_text())["panels"]
    return [
        (f"{panel['title']}: {target['legendFormat']}",
         target["expr"].replace("$__rate_interval", "2m").replace("$namespace", ".*"))
        for panel in panels for target in panel["targets"]
    ]  # fmt: skip


@dataclass
class Seen:
    """A running stack, and who looks at it."""

    stack: Stack
    ray_port: int
    collector: Collector

    def scrape(self, directory: Path, zone: str) -> Path:
        file = directory / f"{zone}.csv"
        file.write_text(f"Time Stamp,Zone,Load (MW)\n01/20/2025 00:00,{zone},1350\n")
        return file


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    (ray_port,) = free_ports(1)
    with Collector() as collector:
        environment = {
            "SHOAL_EMBEDDING_PROVIDER": "hash", "SHOAL_METRICS_PORT": str(ray_port), "SHOAL_LOG_FORMAT": "json",
            "SHOAL_OTLP_ENDPOINT": collector.url, "OPENAI_API_KEY": SECRET,
        }  # fmt: skip
        with Stack(tmp_path_factory.mktemp("seen"), environment) as stack:
            yield Seen(stack, ray_port, collector)


def test_one_trace_spans_announcement_to_commit_and_one_request_to_search(seen: Seen, tmp_path: Path) -> None:
    assert seen.stack.publish(str(seen.scrape(tmp_path, "west")))["outcomes"]["indexed"] == 1
    spans = until(
        lambda: {"announce", "commit"} <= {span.name for span in seen.collector.spans} and seen.collector.spans
    )
    (announce,) = [span for span in spans if span.name == "announce"]
    until(
        lambda: seen.collector.names_of(announce.trace_id) >= EVERY_STAGE,
        lambda: (seen.collector.names_of(announce.trace_id), {span.name for span in spans}),
    )
    of_document = {span.name: span for span in seen.collector.spans if span.trace_id == announce.trace_id}
    assert of_document["process"].parent_span_id == announce.span_id
    for stage in ("fetch", "embed", "write"):
        assert of_document[stage].parent_span_id == of_document["process"].span_id
    assert of_document["commit"].parent_span_id == of_document["write"].span_id
    # Of a batch: a trace of its own, linked both ways.
    (group,) = [span for span in seen.collector.spans if span.span_id == of_document["commit"].links[0].span_id]
    assert group.name == "group commit"
    assert announce.trace_id in {link.trace_id for link in group.links}
    # A question goes on with its caller's trace, into another process.
    answer = httpx.get(
        f"{seen.stack.url}/api/v1/scrapes/search", params={"query": "load in the west"}, timeout=30,
        headers={"traceparent": f"00-{QUESTION}-b7ad6b7169203331-01"},
    )  # fmt: skip
    assert answer.headers["traceparent"].split("-")[1] == QUESTION
    until(lambda: seen.collector.names_of(bytes.fromhex(QUESTION)) >= {"GET", "search", "embed question"})


FIX = {
    "scraper_name": "nyiso_load", "error_type": "KeyError", "error_message": "'Time Stamp'",
    "summary": "the column is now called timestamp", "outcome": "worked",
}  # fmt: skip
REPORT = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "report_fix", "arguments": FIX}}
PUSHED = {"dataset": "pushed_load", "urn": "west.csv", "data_source": "nyiso", "data_type": "load"}


def test_what_a_request_changes_is_in_its_trace_to_the_commit(seen: Seen) -> None:
    collector, url = seen.collector, seen.stack.url

    def changed(method: str, path: str, *stages: str, **request: Any) -> Any:
        """What is answered, once the spans to the commit of what it asked for have come, each below the one before."""

        def asked() -> tuple[str, httpx.Response] | None:
            trace, headers = secrets.token_hex(16), {"Accept": "application/json, text/event-stream"}
            headers |= request.get("headers", {}) | {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
            answer = httpx.request(method, url + path, timeout=30, **request | {"headers": headers})
            # What was committed a moment ago may not be seen yet.
            return None if answer.status_code == 404 else (trace, answer)

        trace, answer = until(asked)
        assert answer.is_success, answer.text
        wanted = {method, "announce", "process", "write", "commit", *stages}
        until(
            lambda: collector.names_of(bytes.fromhex(trace)) >= wanted,
            lambda: (method, path, collector.names_of(bytes.fromhex(trace)), answer.text),
        )
        spans = {span.name: span for span in collector.spans if span.trace_id.hex() == trace}
        ways = [("announce", method), ("process", "announce"), ("write", "process"), ("commit", "write")]
        for name, parent in ways + [(stage, "process") for stage in stages]:
            assert spans[name].parent_span_id == spans[parent].span_id, (path, name)
        until(lambda: {link.span_id for link in spans["commit"].links} & {span.span_id for span in collector.spans})
        return answer.json()

    changed("POST", "/api/v1/agents/fixes", "embed", json=FIX)
    name = {"scraper_name": FIX["scraper_name"]}
    (found,) = until(lambda: seen.stack.post("/api/v1/agents/context/fix-patterns", name)["fix_patterns"])
    changed("PATCH", f"/api/v1/agents/fixes/{found['fix_history'][0]['id']}", json={"wrong": True})
    told = changed("POST", "/mcp", "embed", json=REPORT | {"id": 2})
    assert not told["result"].get("isError"), told
    pushed = changed(
        "POST", "/api/v1/collections/scraper/documents", "fetch", "embed", params=PUSHED,
        content=b"Zone,Load (MW)\nWest,1350\n", headers={"Content-Type": "text/csv"},
    )  # fmt: skip
    changed("DELETE", f"/api/v1/collections/scraper/documents/{pushed['document_id']}")


@pytest.mark.usefixtures("promtool")
def test_a_real_prometheus_answers_every_panel(seen: Seen, tmp_path: Path) -> None:
    stack = seen.stack
    configs = scrape_configs(stack.port, seen.ray_port)
    with Prometheus(tmp_path / "prometheus", configs, RULES) as prometheus:
        # 1. both pages are scraped; a counter that Ray shows is the one that REST shows
        until(lambda: jobs_of(prometheus, "shoal_status_age_seconds") == {"shoal", "ray"})
        assert stack.publish(str(seen.scrape(tmp_path, "north")))["outcomes"]["indexed"] == 1
        stack.get("/api/v1/scrapes/search", query="load in the north")
        indexed = 'shoal_outcomes_total{outcome="indexed"} >= 1'
        until(lambda: jobs_of(prometheus, indexed) == {"shoal", "ray"})
        search = 'route="/api/v1/scrapes/search"'
        until(lambda: jobs_of(prometheus, f"rate(shoal_http_requests_total{{{search}}}[2m])") == {"shoal", "ray"})
        until(lambda: prometheus.query("rate(shoal_query_embedder_request_seconds_count[2m]) >= 0"))
        # 2. every panel's question is valid, and has an answer where there is something to see
        unanswered = {
            board: {what for what, expression in expressions(board) if not prometheus.query(expression)} - empty
            for board, empty in EMPTY.items()
        }
        assert not any(unanswered.values()), unanswered
        # 3. what several processes show is one series
        lag = dict(expressions("overview"))["Lag: messages"]
        assert len(prometheus.query(lag)) == 1
        until(lambda: [float(series["value"][1]) for series in prometheus.query(lag)] == [0.0])
        # 4. every alert is evaluated, and none fires of a Shoal that is well
        rules = until(lambda: all(rule["lastEvaluation"] > "1" for rule in prometheus.rules()) and prometheus.rules())
        assert {rule["health"] for rule in rules} == {"ok"}, rules
        assert [rule["name"] for rule in rules if rule["state"] == "firing"] == []


def test_a_bundle_of_a_running_shoal_has_everything_and_no_secret(seen: Seen, tmp_path: Path) -> None:
    to = tmp_path / "bundle.tar.gz"
    done = seen.stack.run("support-bundle", "--to", str(to))
    assert (done.returncode, done.stdout.split()) == (0, [str(to)]), done.stderr
    with tarfile.open(to) as archive:
        texts = {entry.name: _text(archive, entry) for entry in archive.getmembers()}
    assert texts["shoal-support/missing.txt"] == "nothing\n"
    assert json.loads(texts["shoal-support/check.json"])["ok"] is True
    assert json.loads(texts["shoal-support/status.json"])["health"] == "ok"
    assert "shoal_lag_records" in texts["shoal-support/metrics.txt"]
    # The actors' logs are lines of JSON.
    logs = [text for name, text in texts.items() if name.startswith("shoal-support/logs/ray/worker")]
    assert any(json.loads(line)["logger"] for text in logs for line in text.splitlines() if line.startswith('{"at"'))
    assert [name for name, text in texts.items() if SECRET in text] == []


def _text(archive: tarfile.TarFile, entry: tarfile.TarInfo) -> str:
    file = archive.extractfile(entry)
    assert file is not None
    return file.read().decode()
