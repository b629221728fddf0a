"""`shoal doctor`: what this machine and these settings lack, each with what to do about it.

Looks, and changes nothing; spends no money (a key is only looked for, never used).
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

import psutil

from shoal.cluster.ray_environment import haproxy_available
from shoal.errors import ShoalError
from shoal.settings import Settings

CONNECT_S = 5.0
DISK_FREE_BYTES_MIN = 2 * 1024**3
MEMORY_BYTES_MIN = 3 * 1024**3  # the measured stack peaks at 2.8 GiB (docs/benchmarks.md)
LANCE_PAIR = {"lancedb": "0.40.0", "pylance": "13.0.0"}  # other pairs write table formats that the fence never met


@dataclass(frozen=True, slots=True)
class Finding:
    check: str
    verdict: Literal["ok", "warn", "fail"]
    detail: str


def examine(settings: Settings) -> Iterator[Finding]:
    """Findings in the order in which a start would meet them."""
    checks: list[tuple[str, Callable[[Settings], Finding]]] = [
        ("python", _python),
        ("table format", _lance),
        ("memory", _memory),
        ("data directory", _data_directory),
        ("http port", _port),
        ("embedding model", _model),
        ("collection", _collection),
        ("broker", _broker),
        ("topics", _topics),
        ("buckets", _buckets),
        ("provider", _provider),
        ("traces", _collector),
        ("access", _access),
        ("ingress", _ingress),
    ]
    for name, check in checks:
        try:
            yield check(settings)
        except ShoalError as error:
            yield Finding(name, "fail", str(error))
        except (OSError, ImportError) as error:
            yield Finding(name, "fail", f"{type(error).__name__}: {error}")


def _python(_: Settings) -> Finding:
    return Finding("python", "ok", f"{sys.version.split()[0]}, Shoal {importlib.metadata.version('shoal')}")


def _lance(_: Settings) -> Finding:
    found = {name: importlib.metadata.version(name) for name in LANCE_PAIR}
    listed = ", ".join(f"{name} {version}" for name, version in found.items())
    if found != LANCE_PAIR:
        wanted = ", ".join(f"{name} {version}" for name, version in LANCE_PAIR.items())
        return Finding("table format", "fail", f"{listed}; Shoal needs {wanted}: install from the lock file")
    return Finding("table format", "ok", listed)


def _memory(_: Settings) -> Finding:
    free = psutil.virtual_memory().available
    if free < MEMORY_BYTES_MIN:
        return Finding(
            "memory", "warn", f"{_gib(free)} available; the whole stack takes about {_gib(MEMORY_BYTES_MIN)}"
        )
    return Finding("memory", "ok", f"{_gib(free)} available, {os.cpu_count()} cores")


def _data_directory(settings: Settings) -> Finding:
    place = next(place for place in (settings.home, *settings.home.parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        problem = f"{settings.home} can't be written ({error.strerror}): set SHOAL_DATA_DIR"
        return Finding("data directory", "fail", problem)
    free = shutil.disk_usage(place).free
    if free < DISK_FREE_BYTES_MIN:
        return Finding("data directory", "warn", f"{settings.home}, only {_gib(free)} free")
    return Finding("data directory", "ok", f"{settings.home}, {_gib(free)} free")


def _port(settings: Settings) -> Finding:
    with socket.socket() as probe:
        probe.settimeout(1)
        if probe.connect_ex((settings.http_host, settings.http_port)) == 0:
            return Finding("http port", "ok", f"{settings.http_port} answers: something runs there (`shoal status`)")
    return Finding("http port", "ok", f"{settings.http_port} is free")


def _model(settings: Settings) -> Finding:
    from shoal.cluster.runtime import check_key
    from shoal.embeddings.models import default_model_name, model_width, token_budget

    name = default_model_name(settings)
    width = model_width(settings, name)
    count, max_tokens, _ = token_budget(settings, name)
    count("one short text")
    check_key(settings, name)
    money = " (calls cost money)" if name.startswith("openai:") else ""
    return Finding("embedding model", "ok", f"{name}, {width} wide, chunks of {max_tokens} tokens{money}")


def _collection(settings: Settings) -> Finding:
    from shoal.cluster.runtime import choose_model
    from shoal.store.writing import collection_model, storage_options

    existing = collection_model(settings.tables_uri, storage_options(settings))
    if existing is None:
        return Finding("collection", "ok", f"none yet at {settings.tables_uri}; the first start creates it")
    choose_model(settings)
    return Finding("collection", "ok", f"scraper at {settings.tables_uri}: {existing[0]}, {existing[1]} wide")


def _broker(settings: Settings) -> Finding:
    if settings.is_embedded:
        return Finding("broker", "ok", "embedded (set KAFKA_BROKERS for a real Kafka)")
    from shoal.sources.kafka import connection

    place = connection(settings)
    return Finding("broker", "ok", f"Kafka at {place.brokers}, cluster {place.cluster}")


def _topics(settings: Settings) -> Finding:
    if settings.is_embedded:
        return Finding("topics", "ok", "of the embedded broker: made as they are needed")
    from shoal.sources.kafka import connection, missing_topics

    missing = missing_topics(settings, connection(settings))
    if missing:
        todo = "`shoal up` makes them where it may; else ask the cluster's administrator"
        return Finding("topics", "warn", f"the brokers don't know {', '.join(missing)}: {todo}")
    return Finding("topics", "ok", f"{', '.join(settings.kafka_topics)} and Shoal's own")


def _buckets(settings: Settings) -> Finding:
    from shoal.sources.s3 import S3Store

    if not settings.allowed_buckets:
        return Finding("buckets", "ok", "none named (SHOAL_ALLOWED_BUCKETS): any may be read, none is looked at here")
    store, wrong = S3Store(settings), []
    for bucket in settings.allowed_buckets:
        try:
            next(iter(store.objects(bucket, "")), None)
        except ShoalError as error:
            wrong.append(f"{bucket}: {error}")
    if wrong:
        todo = "a role that may only get objects is enough for ingest, `shoal backfill` lists them"
        return Finding("buckets", "warn", f"{'; '.join(wrong)} ({todo})")
    return Finding("buckets", "ok", f"{', '.join(settings.allowed_buckets)} can be listed")


def _provider(settings: Settings) -> Finding:
    from shoal.embeddings.models import default_model_name

    if not default_model_name(settings).startswith("openai:"):
        return Finding("provider", "ok", "none: the model runs here")
    url = settings.azure_openai_endpoint or settings.openai_base_url or "https://api.openai.com"
    return _reached("provider", url, "embedding waits until it can be reached: proxy, firewall, NetworkPolicy?")


def _collector(settings: Settings) -> Finding:
    if not settings.otlp_endpoint:
        return Finding("traces", "ok", "off (SHOAL_OTLP_ENDPOINT)")
    found = _reached("traces", settings.otlp_endpoint, "spans are lost until it can be reached; nothing else is")
    return Finding("traces", "warn" if found.verdict == "fail" else "ok", found.detail)


def _access(settings: Settings) -> Finding:
    from shoal.cluster.exposure import check_exposure, open_buckets

    check_exposure(settings)
    wrong = [open_buckets(settings) or ""]
    if settings.auth == "anyone_may_do_anything":
        wrong.append("anyone who reaches the port may read, change and delete all: SHOAL_AUTH")
    if any(wrong):
        return Finding("access", "warn", "; ".join(filter(None, wrong)))
    return Finding("access", "ok", f"{settings.http_host}, auth {settings.auth}")


def _reached(check: str, url: str, otherwise: str) -> Finding:
    """Whether something accepts connections there; nothing is sent."""
    parts = urlsplit(url)
    place = (parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))
    shown = f"{place[0]}:{place[1]}"
    try:
        socket.create_connection(place, timeout=CONNECT_S).close()
    except OSError as error:
        return Finding(check, "fail", f"{shown} can't be reached from here ({error}): {otherwise}")
    return Finding(check, "ok", f"{shown} accepts connections")


def _ingress(settings: Settings) -> Finding:
    if settings.haproxy == "off":
        return Finding("ingress", "ok", "plain Ray Serve proxy, by setting")
    if haproxy_available():
        return Finding("ingress", "ok", "HAProxy")
    return Finding("ingress", "warn", "plain Ray Serve proxy: a quarter of the throughput (HAProxy is for Linux)")


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 1024**3:.1f} GiB"
