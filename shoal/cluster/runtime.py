"""The runtime: one call brings the whole service up on this machine, one takes it down.

`start` checks what can be checked before anything runs (ports, model against tables, broker), then starts
the embedded broker where no Kafka is configured, Ray, Serve, the ingest side and the two query applications.
It raises `ConfigurationError` with what to do next; whatever it had started is stopped again.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import socket
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import psutil

from shoal.cluster import ray_environment
from shoal.cluster.embedded_broker import BrokerHandle, start_broker
from shoal.cluster.leftovers import end_leftovers
from shoal.embeddings.models import create_model, default_model_name, model_width
from shoal.errors import ConfigurationError, TransientError
from shoal.settings import Settings
from shoal.sources.kafka import Connection, connection, ensure_topics
from shoal.store.state_files import read_state

READY_S = 120.0
REFUSALS_INTERVAL_S = 2.0
CPUS_MIN = 4  # logical shares: below this Ray can't place the actors at all

Progress = Callable[[str], None]


@dataclass(slots=True)
class Running:
    """A started service. `stop()` may be called once."""

    settings: Settings
    ingress: str
    model: str
    broker: BrokerHandle | None
    started_s: float
    claim: IO[str]
    bystanders: frozenset[psutil.Process] = frozenset()  # children that were there before

    @property
    def url(self) -> str:
        host = "127.0.0.1" if self.settings.http_host in ("0.0.0.0", "::") else self.settings.http_host  # noqa: S104
        return f"http://{host}:{self.settings.http_port}"

    def stop(self) -> None:
        """Drain, then stop everything this call started. Never raises."""
        import ray
        from ray import serve

        descendants = _descendants() - self.bystanders
        with _quiet():
            if ray.is_initialized():  # else Serve would start a cluster only to look for its applications
                with contextlib.suppress(Exception):
                    serve.shutdown()  # type: ignore[no-untyped-call]  # the supervisor drains as it goes
            with contextlib.suppress(Exception):
                ray.shutdown()  # also what an interrupted start has left
            if self.broker is not None:
                self.broker.stop()
        # A Ray that was interrupted while it started leaves agents behind, which notice only after a minute.
        _, left = psutil.wait_procs(list(descendants), timeout=1)
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        self.claim.close()


def start(settings: Settings, progress: Progress = lambda _: None) -> Running:
    """Bring the service up and wait until it answers."""
    began = time.monotonic()
    bystanders = _descendants()
    # Lance warns at every fork; what we fork executes another program at once.
    warnings.filterwarnings("ignore", message="lance is not fork-safe")
    end_leftovers(settings)
    _check_port(settings)
    model, width = choose_model(settings)
    check_key(settings, model)
    _check_place(settings)
    ingress = ray_environment.prepare(settings)
    running = Running(settings, ingress, model, None, 0.0, claimed(settings), bystanders)
    try:
        if settings.is_embedded:
            progress("starting the embedded broker")
            running.broker = start_broker(settings)
        place = connection(settings)
        since = datetime.now(UTC)
        _start_cluster(settings, place, model, width, ingress, progress)
        progress("waiting for the tables and the query side")
        _wait_ready(running.url, lambda: _refusals(settings, place.cluster, since))
    except BaseException:
        running.stop()
        raise
    running.started_s = time.monotonic() - began
    return running


def _descendants() -> frozenset[psutil.Process]:
    return frozenset(psutil.Process().children(recursive=True))


def claimed(settings: Settings) -> IO[str]:
    """The data directory, held by this process until the file is closed.

    Raises ConfigurationError where another `shoal` runs on it, or it can't be written."""
    place = settings.home / "run" / "up.lock"
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        held = place.open("a")
    except OSError as error:
        raise ConfigurationError(
            f"the data directory {settings.home} can't be written ({error.strerror}): set SHOAL_DATA_DIR"
        ) from None
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        held.close()
        raise ConfigurationError(
            f"another Shoal runs on {settings.home}: use that one (`shoal status`), stop it, or set SHOAL_DATA_DIR"
        ) from None
    return held


def choose_model(settings: Settings) -> tuple[str, int]:
    """The model that ingest must use, and its width: the collection's own where it exists already.

    Raises ConfigurationError where the settings ask for another model by name. Changes nothing.
    """
    from shoal.store.writing import collection_model, storage_options

    wanted = default_model_name(settings)
    existing = collection_model(settings.tables_uri, storage_options(settings))
    if existing is None:
        return wanted, model_width(settings, wanted)
    name, width = existing
    if name != wanted and settings.embedding_provider != "auto":
        raise ConfigurationError(
            f"the tables at {settings.tables_uri} were built with {name}, but the settings ask for {wanted}: unset "
            "SHOAL_EMBEDDING_PROVIDER and OPENAI_EMBEDDING_MODEL to go on with them, or use another LANCEDB_PATH"
        )
    return name, width


def check_key(settings: Settings, model: str) -> None:
    """Raises ConfigurationError where a provider's key is missing. Costs nothing, and loads no weights."""
    if model.startswith("openai:"):
        create_model(settings, model).close()


def _check_place(settings: Settings) -> None:
    if "://" in settings.tables_uri:
        return
    try:
        Path(settings.tables_uri).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=settings.tables_uri):
            pass
    except OSError as error:
        raise ConfigurationError(
            f"tables can't be made at {settings.tables_uri} ({error.strerror}): set LANCEDB_PATH or SHOAL_DATA_DIR"
        ) from None


def _check_port(settings: Settings) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.http_host, settings.http_port))
        except OSError as error:
            raise ConfigurationError(
                f"port {settings.http_port} on {settings.http_host} can't be used ({error.strerror}): stop what "
                "uses it, or set SHOAL_HTTP_PORT"
            ) from None


def _start_cluster(
    settings: Settings, place: Connection, model: str, width: int, ingress: str, progress: Progress
) -> None:
    if not settings.is_embedded:
        ensure_topics(settings, place)
    progress("starting Ray")
    from ray import serve

    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    _start_ray(settings)
    progress("starting Serve, the ingest actors and the query applications")
    from shoal.cluster.supervisor import ingest_app
    from shoal.serve_apps.apps import mcp_app, rest_app

    quiet = {"log_level": "WARNING", "enable_access_log": False}
    with _quiet():
        serve.start(http_options={"host": settings.http_host, "port": settings.http_port}, logging_config=quiet)
        targets: list[Any] = [
            serve.RunTarget(ingest_app(settings, place, model, width, ingress), name="ingest", route_prefix=None),
            serve.RunTarget(rest_app(settings), name="rest", route_prefix="/"),
            serve.RunTarget(mcp_app(settings), name="mcp", route_prefix="/mcp"),
        ]
        # Who is ready is asked below: an application whose replicas are refused would be waited for for minutes.
        serve.run_many(targets, wait_for_applications_running=False)


def _start_ray(settings: Settings) -> None:
    import ray

    if settings.ray_address:
        ray.init(address=settings.ray_address, log_to_driver=False, logging_level=logging.ERROR)
        return
    for attempt in (1, 2):
        try:
            ray.init(
                address="local",  # not another's cluster that happens to run here, nor RAY_ADDRESS
                num_cpus=max(CPUS_MIN, os.cpu_count() or 1),
                include_dashboard=bool(settings.dashboard_port),
                dashboard_port=settings.dashboard_port or None,
                object_store_memory=settings.object_store_bytes,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except Exception as error:
            # Ray gives a node 30 s to start, whatever else the machine is doing.
            ray.shutdown()
            if attempt == 2:
                raise TransientError(f"Ray did not start: {error}") from error
        else:
            return


def _refusals(settings: Settings, cluster: str, since: datetime) -> list[str]:
    """What the ingest side says a person must mend. From its status: with the throughput settings a Serve handle
    works only within an event loop, which this process has none of."""
    try:
        status = read_state(settings, "status.json") or {}
    except TransientError:
        return []
    mine = status.get("cluster") == cluster and status.get("at", "") >= since.isoformat()
    return list(status.get("refusals", {}).values()) if mine else []


def _wait_ready(url: str, refusals: Callable[[], list[str]]) -> None:
    """Until the tables are open and the query embedder has loaded; without the embedder, at the deadline.

    Raises ConfigurationError as soon as the ingest side says what a person must mend."""
    import httpx

    deadline, last, degraded = time.monotonic() + READY_S, "no answer", False
    asked = time.monotonic()
    while time.monotonic() < deadline:
        if time.monotonic() - asked >= REFUSALS_INTERVAL_S:
            asked = time.monotonic()
            if refused := refusals():
                raise ConfigurationError(refused[0])
        try:
            response = httpx.get(f"{url}/readyz", timeout=5)
        except httpx.HTTPError as error:
            last = str(error)
        else:
            degraded = response.status_code == 200
            if degraded and response.json().get("status") == "ready":
                return
            last = response.text[:300]
        time.sleep(0.2)
    if degraded:
        return  # searches by meaning fall back to keywords, and say so
    raise TransientError(f"the service did not become ready within {READY_S:g} s; last answer: {last}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide what Ray prints while it starts and stops, on either stream: it is neither data, progress nor an error."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = {number: os.dup(number) for number in (1, 2)}
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        for number in saved:
            os.dup2(sink, number)
        yield
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        for number, copy in saved.items():
            os.dup2(copy, number)
            os.close(copy)
        os.close(sink)
