"""The cluster's host: a child process of `shoal up` that runs Ray and Serve, so that their death isn't its own.

Ray's head can't be mended in place: where it dies, the process that drives it hangs, or is aborted by Ray after a
while. So `shoal up` (shoal.cluster.runtime) keeps the claim on the data directory, the embedded broker and the
terminal, and this process has the rest; when it, Ray's head or its node daemon ends, all that is left of them is
ended and a new host is started.

It gets a pickled `Plan` on its standard input, which then stays open: when that closes, `shoal up` is dead, and the
host ends at once, and Ray's processes with it. It tells its progress as JSON lines on a pipe of its own, since Ray
prints to the standard streams, which go to `{home}/logs/service.log`. SIGTERM drains and stops it in order.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from types import FrameType
from typing import Any, NoReturn

import psutil

from shoal.cluster.leftovers import end_leftovers
from shoal.errors import ConfigurationError, ShoalError, TransientError
from shoal.settings import Settings
from shoal.sources.kafka import Connection, connection, ensure_topics
from shoal.store.state_files import read_state

READY_S = 240.0  # on a machine with other work the first start was seen to take 150 s
REFUSALS_INTERVAL_S = 2.0
CPUS_MIN = 4  # logical shares: below this Ray can't place the actors at all
STOP_S = 25.0  # beyond what draining may take
HEAD = frozenset({"gcs_server", "raylet"})
APPLICATIONS = ("mcp", "rest", "ingest")
LOG_BYTES_MAX = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Plan:
    """What a host runs. `life`: of the service, across its hosts."""

    settings: Settings
    model: str
    width: int
    ingress: str
    url: str
    life: str


class Host:
    """A host process as `shoal up` holds it. Nothing here waits, except `stop`."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.is_ready = False
        self.step = ""
        self._failure: ShoalError | None = None
        self._text = b""
        self._family: set[psutil.Process] = set()
        self._head: list[psutil.Process] = []
        output = plan.settings.home / "logs" / "service.log"
        output.parent.mkdir(parents=True, exist_ok=True)
        mode = "ab" if output.exists() and output.stat().st_size < LOG_BYTES_MAX else "wb"
        self._told, telling = os.pipe()
        os.set_blocking(self._told, False)
        # Ctrl-C in a terminal reaches the whole group: the host must end after it was told to, not when it hears it.
        inherited = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            with output.open(mode) as sink:
                self._process = subprocess.Popen(  # noqa: S603
                    [sys.executable, "-m", __name__, str(telling)],
                    stdin=subprocess.PIPE, stdout=sink, stderr=sink, pass_fds=(telling,),
                )  # fmt: skip
        finally:
            signal.signal(signal.SIGINT, inherited)
            os.close(telling)
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it ended at once: `trouble` says so
            self._process.stdin.write(pickle.dumps(plan))
            self._process.stdin.flush()

    @property
    def pid(self) -> int:
        return self._process.pid

    def listen(self) -> None:
        """Take note of what it has told."""
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self._told, 65536):
                self._text += chunk
        *lines, self._text = self._text.split(b"\n")
        for line in lines:
            self._hear(json.loads(line))
        self._look()

    def _hear(self, told: dict[str, str]) -> None:
        if "step" in told:
            self.step = told["step"]
        elif "failed" in told:
            branch = ConfigurationError if told["failed"] == ConfigurationError.__name__ else TransientError
            self._failure = branch(told["message"])
        else:
            self.is_ready = True

    def _look(self) -> None:
        """Whom it has started: once it is gone, nobody could say any more."""
        with contextlib.suppress(psutil.Error):
            children = psutil.Process(self.pid).children(recursive=True)
            self._family.update(children)
            if not self._head and self.is_ready and not self._plan.settings.ray_address:
                self._head = [child for child in children if child.name() in HEAD]

    def trouble(self) -> ShoalError | None:
        """Why this host is no good any more, or never was."""
        if self._failure is not None:
            return self._failure
        if (code := self._process.poll()) is not None:
            log = self._plan.settings.home / "logs" / "service.log"
            return TransientError(f"the process that runs Ray and Serve ended ({_how(code)}; see {log})")
        for process in self._head:
            if not _runs(process):
                return TransientError("Ray's head process has died")
        return None

    def stop(self) -> None:
        """Drain and stop it, or else end it by force; then end whatever is left of it. Never raises."""
        with contextlib.suppress(Exception):
            self.listen()
        try:
            if self._process.poll() is None and self.trouble() is None:
                self._process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(self._plan.settings.drain_s + STOP_S if self.is_ready else STOP_S)
        finally:  # also at a second Ctrl-C
            self.kill()

    def kill(self) -> None:
        """End it and all that it started, at once."""
        with contextlib.suppress(psutil.Error):
            self._family.update(psutil.Process(self.pid).children(recursive=True))
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for process in self._family:
            with contextlib.suppress(psutil.Error):
                process.kill()  # psutil compares the start time: a reused id is left alone
        psutil.wait_procs(list(self._family), timeout=5)
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        with contextlib.suppress(OSError):
            os.close(self._told)
        end_leftovers(self._plan.settings)


def _how(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running()) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


# --- the host process -------------------------------------------------------------------------


class _Stopped(BaseException):
    """SIGTERM: nothing of Ray may mistake it for an error of its own."""


def _host(plan: Plan, tell: Callable[..., None]) -> None:
    """Run the cluster until SIGTERM, from which on it is stopped in order. Raises ShoalError where it can't start."""
    _arm()
    try:
        place = connection(plan.settings)
        since = datetime.now().astimezone()

        def progress(step: str) -> None:
            tell(step=step)
            _arm()

        _start_cluster(plan, place, progress)
        tell(step="waiting for the tables and the query side")
        _wait_ready(plan.url, lambda: _refusals(plan.settings, place.cluster, since))
        tell(ready=True)
        while True:
            signal.pause()
    except (_Stopped, SystemExit):  # Ray's own handler of SIGTERM, while it starts, raises the latter
        pass
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _stop_cluster(plan.settings)


def _arm() -> None:
    """Anew after each step: Ray puts a handler of its own in place as it starts."""

    def stop(_number: int, _frame: FrameType | None) -> NoReturn:
        raise _Stopped

    signal.signal(signal.SIGTERM, stop)


def _start_cluster(plan: Plan, place: Connection, progress: Callable[[str], Any]) -> None:
    settings = plan.settings
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
    serve.start(http_options={"host": settings.http_host, "port": settings.http_port}, logging_config=quiet)
    ingest = ingest_app(settings, place, plan.model, plan.width, plan.ingress, plan.life)
    targets: list[Any] = [
        serve.RunTarget(ingest, name="ingest", route_prefix=None),
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
                _metrics_export_port=settings.metrics_port or None,
                object_store_memory=settings.object_store_bytes,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except Exception as error:
            # Ray gives a node 30 s to start, whatever else the machine is doing.
            ray.shutdown()
            for process in psutil.Process().children(recursive=True):  # it forgets those of a start that failed
                with contextlib.suppress(psutil.Error):
                    process.kill()
            if attempt == 2:
                raise TransientError(f"Ray did not start: {error}") from error
        else:
            return


def _stop_cluster(settings: Settings) -> None:
    import ray
    from ray import serve

    if ray.is_initialized() and settings.ray_address:  # another's cluster: his applications, and his Serve, stay
        for name in APPLICATIONS:
            with contextlib.suppress(Exception):
                serve.delete(name)
    elif ray.is_initialized():  # else Serve would start a cluster only to look for its applications
        with contextlib.suppress(Exception):
            serve.shutdown()  # type: ignore[no-untyped-call]  # the supervisor drains as it goes
    with contextlib.suppress(Exception):
        ray.shutdown()  # also what an interrupted start has left


def _refusals(settings: Settings, cluster: str, since: datetime) -> list[str]:
    """What the ingest side says a person must mend. From its status: with the throughput settings a Serve handle
    works only within an event loop, which this process has none of."""
    try:
        status = read_state(settings, "status.json") or {}
    except TransientError:
        return []
    mine = status.get("cluster") == cluster and datetime.fromisoformat(status["at"]) >= since
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
def _told_over(descriptor: int) -> Iterator[Callable[..., None]]:
    os.set_inheritable(descriptor, False)  # else whatever Ray starts would hold it open
    with os.fdopen(descriptor, "w", buffering=1) as lines:
        yield lambda **told: print(json.dumps(told), file=lines)


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


def main() -> int:
    """The host process; returns its exit code."""
    # Lance warns at every fork; what we fork executes another program at once.
    warnings.filterwarnings("ignore", message="lance is not fork-safe")
    plan: Plan = pickle.load(sys.stdin.buffer)  # noqa: S301 - from `shoal up`, which started this process
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    with _told_over(int(sys.argv[1])) as tell:
        try:
            _host(plan, tell)
        except Exception as error:
            logging.getLogger("shoal.host").exception("the cluster could not be started")
            known = isinstance(error, ShoalError)
            message = str(error) if known else f"{type(error).__name__}: {error}"[:500]
            tell(failed=type(error).__name__, message=message)
            return 1
    return 0


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    os._exit(code)
