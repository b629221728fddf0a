"""`shoal deploy`: keep a Serve config applied on a Ray cluster that others run (KubeRay's RayCluster, `ray start`).

The cluster's dashboard takes the whole config at once, and Serve starts anew only what differs from what runs: to
apply it twice changes nothing. Who watches applies it again where an application is missing (the head was lost, and
Serve with it), differs, or could not be built (Kafka was away), the last with a growing pause. It needs no Ray and no
state of its own, so it may itself be killed and moved at any time. ADR 8 says why there is one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import httpx

from shoal.errors import ConfigurationError, PermanentError, TransientError

PATH = "/api/serve/applications/"
TIMEOUT_S = 60.0
"""Of one request: the first one starts Serve's controller on the head."""
LOOK_S = 5.0
BACKOFF_S_MIN, BACKOFF_S_MAX = 10.0, 300.0
UNWELL = frozenset({"DEPLOY_FAILED"})
"""Serve tries everything else again by itself."""


class Do(Enum):
    """What the next look at the cluster asks for."""

    APPLY = "apply"
    WAIT = "wait"  # it is under way, or a failed try is not yet to be repeated
    NOTHING = "nothing"  # all of it runs


@dataclass(slots=True)
class Applier:
    """What is to be done about a config, look by look. Holds no clock: `now` is in seconds of any monotonic one."""

    wanted: Mapping[str, Any]
    _failures: int = 0
    _not_before: float = 0.0
    has_applied: bool = False
    told: dict[str, str] = field(default_factory=dict)  # application -> its status at the last look

    def look(self, observed: Mapping[str, Any], now: float) -> Do:
        """Decide by what GET of the applications answered."""
        there: Mapping[str, Any] = observed.get("applications") or {}
        self.told = {name: str(there[name].get("status")) if name in there else "missing" for name in self._names()}
        if not self.has_applied or any(self._differs(application, there) for application in self._applications()):
            return Do.APPLY if now >= self._not_before else Do.WAIT
        if any(status in UNWELL for status in self.told.values()):
            return Do.APPLY if now >= self._not_before else Do.WAIT
        if all(status == "RUNNING" for status in self.told.values()):
            self._failures = 0
            return Do.NOTHING
        return Do.WAIT

    def applied(self, now: float) -> None:
        """The config was taken. Should it come to nothing, the next try waits: at first 10 s, then twice as long."""
        self.has_applied = True
        self._not_before = now + min(BACKOFF_S_MIN * 2**self._failures, BACKOFF_S_MAX)
        self._failures = min(self._failures + 1, 16)

    def body(self, observed: Mapping[str, Any], restart: str = "") -> dict[str, Any]:
        """What to PUT: the config; ingest keeps the mark of its last asked-for restart, else it would start anew."""
        there: Mapping[str, Any] = observed.get("applications") or {}
        applications = []
        for application in self._applications():
            name = str(application.get("name"))
            mark = restart or _config(there.get(name)).get("args", {}).get("restart")
            if name == "ingest" and mark:
                application = {**application, "args": {**(application.get("args") or {}), "restart": mark}}
            applications.append(dict(application))
        return {**self.wanted, "applications": applications}

    def messages(self, observed: Mapping[str, Any]) -> dict[str, str]:
        """Why applications could not be built, in their own words."""
        there: Mapping[str, Any] = observed.get("applications") or {}
        return {
            name: str(there[name].get("message") or "")[-1500:]
            for name, status in self.told.items()
            if status in UNWELL and name in there
        }

    def _applications(self) -> list[Mapping[str, Any]]:
        return list(self.wanted["applications"])

    def _names(self) -> list[str]:
        return [str(application.get("name")) for application in self._applications()]

    def _differs(self, application: Mapping[str, Any], there: Mapping[str, Any]) -> bool:
        found = there.get(str(application.get("name")))
        return found is None or not _holds(_config(found), application)


def _config(application: Any) -> Mapping[str, Any]:
    return (application or {}).get("deployed_app_config") or {}


def _holds(found: Any, wanted: Any) -> bool:
    """Whether `found` says all that `wanted` does; it may say more (defaults that Serve filled in)."""
    if isinstance(wanted, Mapping):
        return isinstance(found, Mapping) and all(_holds(found.get(key), value) for key, value in wanted.items())
    if isinstance(wanted, list):
        return isinstance(found, list) and len(found) == len(wanted) and all(map(_holds, found, wanted))
    return bool(found == wanted)


class Dashboard:
    """A Ray cluster's dashboard, as far as Serve's applications go."""

    def __init__(self, address: str, token: str = "", transport: httpx.BaseTransport | None = None) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            self._http = httpx.Client(
                base_url=address.rstrip("/"), headers=headers, timeout=TIMEOUT_S, transport=transport
            )
        except httpx.InvalidURL as error:
            raise ConfigurationError(f"--address {address}: {error}") from None
        self._address = address

    def look(self) -> dict[str, Any]:
        """What runs. Raises TransientError where it does not answer, ConfigurationError where it refuses us."""
        found = self._ask("GET").json()
        return found if isinstance(found, dict) else {}

    def apply(self, config: Mapping[str, Any]) -> None:
        """Raises PermanentError where Serve refuses the config, TransientError, ConfigurationError."""
        self._ask("PUT", config)

    def _ask(self, method: str, body: Mapping[str, Any] | None = None) -> httpx.Response:
        try:
            answer = self._http.request(method, PATH, json=body)
        except httpx.UnsupportedProtocol as error:
            raise ConfigurationError(f"--address {self._address}: {error}") from None
        except httpx.HTTPError as error:
            raise TransientError(f"the Ray dashboard at {self._address} does not answer: {error}") from None
        if answer.status_code in (401, 403):
            raise ConfigurationError(
                f"the Ray dashboard at {self._address} refuses the token ({answer.status_code}): set RAY_AUTH_TOKEN to "
                "the cluster's own"
            )
        if answer.status_code == 400:
            raise PermanentError(f"Serve refuses the config: {answer.text[:1000]}")
        if answer.status_code != 200:
            raise TransientError(f"the Ray dashboard at {self._address} answers {answer.status_code}")
        return answer


def token_of(environment: Mapping[str, str] = os.environ) -> str:
    """The cluster's token, as Ray's own tools find it: RAY_AUTH_TOKEN, or the file that RAY_AUTH_TOKEN_PATH names."""
    if token := environment.get("RAY_AUTH_TOKEN", ""):
        return token.strip()
    if path := environment.get("RAY_AUTH_TOKEN_PATH", ""):
        try:
            with open(path) as file:
                return file.read().strip()
        except OSError as error:
            raise ConfigurationError(f"RAY_AUTH_TOKEN_PATH: {path} can't be read ({error.strerror})") from None
    return ""


def keep_applied(
    applier: Applier,
    dashboard: Dashboard,
    say: Callable[[str], None],
    *,
    restart: str = "",
    until_running_s: float | None = None,
    pause: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> bool:
    """Apply, and look again and again. `until_running_s`: return True once all of it runs, False after so long; None:
    never return, and outlive a dashboard that is away. Raises ConfigurationError; and, with `until_running_s`,
    PermanentError where Serve refuses the config."""
    began, last = clock(), ""
    while True:
        line = ""
        try:
            observed = dashboard.look()
            do = applier.look(observed, clock())
            if do is Do.APPLY:
                dashboard.apply(applier.body(observed, restart))
                applier.applied(clock())
                restart, line = "", "applied"
            elif do is Do.NOTHING and until_running_s is not None:
                return True
            line = " ".join(filter(None, (line, *(f"{name}: {status};" for name, status in applier.told.items()))))
            for name, message in applier.messages(observed).items():
                line += f"\n{name} could not be built: {message}"
        except TransientError as error:
            line = str(error)
        except PermanentError as error:
            if until_running_s is not None:
                raise
            applier.applied(clock())
            applier.has_applied = False  # it was not: the next try comes after the pause
            line = str(error)
        if line != last:
            say(line)
            last = line
        if until_running_s is not None and clock() - began >= until_running_s:
            return False
        pause(LOOK_S if until_running_s is None else 1.0)
