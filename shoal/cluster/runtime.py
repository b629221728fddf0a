"""The runtime: one call brings the whole service up on this machine, one keeps it up, one takes it down.

`start` checks what can be checked before anything runs (ports, model against tables, broker), then starts the
embedded broker where no Kafka is configured, and the host (shoal.cluster.hosting) of Ray, Serve, the ingest side and
the query applications. It raises `ConfigurationError` with what to do next; whatever it had started is stopped again.
Later either of the two may die, or the host hang: `keep_up` starts it again in place, at once or, after short lives,
with a growing pause, and says so. A broker's new life has another address; the supervisor reads it where the broker
puts it.
"""

from __future__ import annotations

import fcntl
import socket
import tempfile
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from shoal.cluster import ray_environment
from shoal.cluster.embedded_broker import BrokerHandle, start_broker
from shoal.cluster.exposure import check_exposure
from shoal.cluster.hosting import READY_S, Host, Plan
from shoal.cluster.leftovers import end_leftovers
from shoal.cluster.watching import GAP_S, Do, Watched
from shoal.embeddings.models import create_model, default_model_name, model_width
from shoal.embeddings.prices import Prices
from shoal.errors import ConfigurationError, ShoalError
from shoal.settings import Settings

LISTEN_S = 0.1
PROBE_S = 10.0
SILENT_S = 120.0
"""Ray and Serve replace what hangs among their own within some tens of seconds; after this it is they who hang."""
START_S = READY_S + 60.0

Progress = Callable[[str], None]


def _watched_for_ever() -> Watched:
    return Watched(hang_s=float("inf"), start_s=float("inf"))


def _watched_by_probe() -> Watched:
    return Watched(hang_s=SILENT_S, start_s=START_S)


@dataclass(slots=True)
class Running:
    """A started service. `stop()` may be called once."""

    plan: Plan
    claim: IO[str]
    broker: BrokerHandle | None = None
    host: Host | None = None
    started_s: float = 0.0
    _broker_watched: Watched = field(default_factory=_watched_for_ever)
    _host_watched: Watched = field(default_factory=_watched_by_probe)
    _broker_since: float = 0.0
    _host_since: float = 0.0
    _ready_since: float | None = None
    _probes: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="probe"))
    _probe: Future[bool] | None = None
    _probed_at: float = 0.0
    _kept_at: float | None = None

    @property
    def settings(self) -> Settings:
        return self.plan.settings

    @property
    def ingress(self) -> str:
        return self.plan.ingress

    @property
    def model(self) -> str:
        return self.plan.model

    @property
    def url(self) -> str:
        return self.plan.url

    def start_broker(self) -> None:
        """Raises ConfigurationError, TransientError."""
        self.broker = start_broker(self.settings)
        self._broker_since = now = time.monotonic()
        self._broker_watched.created(now)
        self._broker_watched.answered(self.broker.process.pid, 0.0, 0.0, now)

    def start_host(self) -> Host:
        """It becomes ready, or has trouble, later."""
        self.host = Host(self.plan)
        self._host_since, self._ready_since = time.monotonic(), None
        self._host_watched.created(self._host_since)
        return self.host

    def keep_up(self, say: Progress) -> None:
        """Look once at what must run, and start again what does not. Call it every half second or so."""
        now, before = time.monotonic(), self._kept_at
        self._kept_at = now
        if before is not None and now - before > GAP_S:  # this process itself was stopped: that was nobody's silence
            self._host_watched.skip(now - before)
        if self.settings.is_embedded:
            self._keep_broker(time.monotonic(), say)
        self._keep_host(time.monotonic(), say)

    def _keep_broker(self, now: float, say: Progress) -> None:
        watched = self._broker_watched
        if self.broker is not None:
            if self.broker.process.poll() is None:
                watched.answered(self.broker.process.pid, now - self._broker_since, 0.0, now)
                return
            self.broker.stop()
            self.broker = None
            watched.died("the embedded broker has ended", now)
            say(f"{watched.reason}; nothing announced is lost; it is started again{_in(watched.backoff_s(now))}")
        if watched.decide(now) is Do.CREATE:
            try:
                self.start_broker()
            except (ShoalError, OSError) as error:
                now = time.monotonic()
                watched.died(str(error), now, hopeless=True)
                say(f"{error}; tried again{_in(watched.backoff_s(now))}")
            else:
                say("the embedded broker is back")

    def _keep_host(self, now: float, say: Progress) -> None:
        watched = self._host_watched
        if self.host is not None:
            self.host.listen()
            trouble: ShoalError | str | None = self.host.trouble()
            if trouble is not None:
                watched.died(str(trouble), now, hopeless=not self.host.is_ready)
            elif self._is_well(self.host, now, say):
                watched.answered(self.host.pid, now - self._host_since, 0.0, now)
            if trouble is None and watched.decide(now) is Do.END:
                trouble = watched.reason
            if trouble is None:
                return
            self.host.kill()
            self.host = None
            say(f"{trouble}: Ray and Serve are started again{_in(watched.backoff_s(now))}")
        broker_is_there = self.broker is not None or not self.settings.is_embedded
        if broker_is_there and watched.decide(time.monotonic()) is Do.CREATE:
            try:
                self.start_host()
            except OSError as error:  # no memory or no processes left on this machine
                watched.died(str(error), time.monotonic(), hopeless=True)
                say(f"{error}; tried again{_in(watched.backoff_s(time.monotonic()))}")

    def _is_well(self, host: Host, now: float, say: Progress) -> bool:
        """Whether the host has just become ready, or queries answer."""
        if not host.is_ready:
            return False
        if self._ready_since is None:
            self._ready_since = self._probed_at = now
            say(f"Shoal is back after {now - self._host_since:.1f} s")
            return True
        if self._probe is None and now - self._probed_at >= PROBE_S:
            self._probed_at = now
            self._probe = self._probes.submit(_answers, self.url)
        if self._probe is None or not self._probe.done():
            return False
        probe, self._probe = self._probe, None
        return probe.result()

    def became_ready(self) -> None:
        """The first start is done: from now on `keep_up` looks after it."""
        self._ready_since = self._probed_at = now = time.monotonic()
        if self.host is not None:
            self._host_watched.answered(self.host.pid, now - self._host_since, 0.0, now)

    def stop(self) -> None:
        """Drain, then stop everything this call started. Never raises."""
        if self.host is not None:
            self.host.stop()
        if self.broker is not None:
            self.broker.stop()
        self._probes.shutdown(wait=False, cancel_futures=True)
        self.claim.close()


def _in(seconds: float) -> str:
    return f" in {seconds:.0f} s" if seconds >= 1 else ""


def _answers(url: str) -> bool:
    """Whether HTTP answers at all. Not how old the status is: a full disk stops that, and starting Ray again would
    mend nothing; a supervisor that hangs is Serve's to replace."""
    import httpx

    try:
        httpx.get(f"{url}/healthz", timeout=5)
    except httpx.HTTPError:
        return False
    return True


def start(settings: Settings, progress: Progress = lambda _: None) -> Running:
    """Bring the service up and wait until it answers."""
    began = time.monotonic()
    end_leftovers(settings)
    check_exposure(settings)
    _check_port(settings)
    model, width = choose_model(settings)
    check_key(settings, model)
    Prices.load(settings.prices)
    _check_place(settings)
    ingress = ray_environment.prepare(settings)
    host = "127.0.0.1" if settings.http_host in ("0.0.0.0", "::") else settings.http_host  # noqa: S104
    plan = Plan(settings, model, width, ingress, f"http://{host}:{settings.http_port}", uuid.uuid4().hex)
    running = Running(plan, claimed(settings))
    try:
        if settings.is_embedded:
            progress("starting the embedded broker")
            running.start_broker()
        _wait_for(running.start_host(), progress)
        running.became_ready()
    except BaseException:
        running.stop()
        raise
    running.started_s = time.monotonic() - began
    return running


def _wait_for(host: Host, progress: Progress) -> None:
    shown = ""
    while not host.is_ready:
        host.listen()
        if host.step != shown:
            shown = host.step
            progress(shown)
        if (trouble := host.trouble()) is not None:
            raise trouble
        time.sleep(LISTEN_S)


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
