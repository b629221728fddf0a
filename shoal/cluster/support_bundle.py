"""`shoal support-bundle`: what one needs for a bug report, in one .tar.gz, without secrets.

Gathers versions, the settings in force, what the doctor finds, the status, the indexes, metrics, a check of the tables,
and the ends of recent logs. Each part is gathered by itself: what can't be had is told in `missing.txt`, and the rest
goes on. Nothing leaves but through `Scrubber`: known secrets by their value, others by name and shape. No document's
text and no question is taken; ids and addresses of documents are, as they stand in logs. It changes nothing.
"""

from __future__ import annotations

import io
import json
import os
import platform
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from shoal.cluster.configuration import SECRET_WORDS, rows
from shoal.redaction import REDACTED, redact_json, redact_text
from shoal.settings import Settings

LOG_BYTES_MAX = 128 * 1024
"""Of the end of each log: minutes to hours of a process. More would make a bundle that no mail takes."""
LOGS_MAX = 60
CHECK_S = 120.0
SECRET_CHARS_MIN = 6
"""A shorter value is no key, and replacing it everywhere would only make the rest unreadable."""
_ENVIRONMENT_SECRETS = ("KEY", "SECRET", "TOKEN", "PASSWORD", "CREDENTIAL")
# Where Ray itself puts its sessions.
_RAY = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp") / "ray"  # noqa: S108


class Scrubber:
    """Takes secrets out of text: those that are known, wherever they stand; and what looks like one."""

    def __init__(self, secrets: Iterable[str]) -> None:
        # The longest first: one may be the beginning of another.
        self._secrets = sorted({value for value in secrets if len(value) >= SECRET_CHARS_MIN}, key=len, reverse=True)

    @classmethod
    def of(cls, settings: Settings, environment: Mapping[str, str]) -> Scrubber:
        """Those of the settings, and what the environment holds under a telling name."""
        found = [value for name, value in environment.items() if any(word in name for word in _ENVIRONMENT_SECRETS)]
        for name in Settings.model_fields:
            value = getattr(settings, name)
            if isinstance(value, SecretStr):
                found.append(value.get_secret_value())
        for name, item in settings.kafka_properties.items():
            if any(word in name.lower() for word in SECRET_WORDS):
                found.append(str(item))
        return cls(found)

    def text(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, REDACTED)
            text = text.replace(json.dumps(secret)[1:-1], REDACTED)  # as it stands in JSON
        return redact_text(text)

    def json(self, value: Any) -> str:
        """`value` as JSON text. Each text in it is taken by itself: numbers stay (`tokens` are counts here), and so
        does the form."""
        plain = json.loads(json.dumps(redact_json(value), default=str))
        return json.dumps(self._scrubbed(plain), indent=1, ensure_ascii=False)

    def _scrubbed(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {self.text(name): self._scrubbed(each) for name, each in value.items()}
        return [self._scrubbed(each) for each in value] if isinstance(value, list) else value


def bundle(settings: Settings, to: Path, url: str, now: datetime, progress: Callable[[str], None]) -> list[str]:
    """Writes the bundle to `to`; the names of what could not be had, with why. Raises OSError where `to` can't be
    written, FileExistsError where it is there already."""
    scrubber = Scrubber.of(settings, os.environ)
    missing: list[str] = []
    with to.open("xb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
        os.chmod(to, 0o600)

        def add(name: str, text: str) -> None:
            data = text.encode("utf-8", "replace")
            entry = tarfile.TarInfo(f"shoal-support/{name}")
            entry.size, entry.mtime, entry.mode = len(data), int(now.timestamp()), 0o600
            archive.addfile(entry, io.BytesIO(data))

        for name, gather in _parts(settings, url).items():
            progress(f"gathering {name}")
            try:
                found = gather()
            except Exception as error:  # whatever is broken is why somebody makes a bundle
                missing.append(scrubber.text(f"{name}: {type(error).__name__}: {error}"[:500]))
            else:
                add(name, scrubber.text(found) if isinstance(found, str) else scrubber.json(found))
        progress("gathering logs")
        taken = 0
        for path, name in _logs(settings):
            try:
                add(f"logs/{name}", scrubber.text(_end(path)))
                taken += 1
            except OSError as error:
                missing.append(f"logs/{name}: {error}")
        if not taken:
            missing.append(f"logs: none under {settings.home / 'logs'} nor of this Shoal under {_RAY}")
        add("missing.txt", "\n".join(missing) + "\n" if missing else "nothing\n")
    return missing


def _parts(settings: Settings, url: str) -> dict[str, Callable[[], Any]]:
    return {
        "versions.json": _versions,
        "settings.json": lambda: [{k: v for k, v in row.items() if k != "meaning"} for row in rows(settings)],
        "doctor.json": lambda: _findings(settings),
        "status.json": lambda: _state(settings, "status.json"),
        "index.json": lambda: _state(settings, "index.json"),
        "metrics.txt": lambda: _metrics(settings, url),
        "check.json": lambda: _check(settings),
    }


def _versions() -> dict[str, Any]:
    return {
        "python": sys.version,
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "packages": dict(sorted((each.metadata["Name"], each.version) for each in metadata.distributions())),
    }


def _findings(settings: Settings) -> list[dict[str, str]]:
    from shoal.cluster.doctor import examine

    return [asdict(finding) for finding in examine(settings)]


def _state(settings: Settings, name: str) -> Any:
    from shoal.store.state_files import read_state

    found = read_state(settings, name)
    if found is None:
        raise LookupError(f"there is no {name} beside the tables: nothing ever ran on them")
    return found


def _metrics(settings: Settings, url: str) -> str:
    import httpx

    key = settings.api_key.get_secret_value() if settings.api_key else None
    answer = httpx.get(f"{url}/metrics", headers={"Authorization": f"Bearer {key}"} if key else {}, timeout=10)
    answer.raise_for_status()
    return answer.text


def _check(settings: Settings) -> Any:
    """By the command itself, in a process of its own: tables that are broken may bring it down."""
    environment = os.environ | {"SHOAL_DATA_DIR": str(settings.home), "LANCEDB_PATH": settings.lancedb_path}
    command = [sys.executable, "-c", "from shoal.cluster.cli import main; main()", "check", "-o", "json"]
    done = subprocess.run(  # noqa: S603 - ourselves
        command, env=environment, capture_output=True, text=True, timeout=CHECK_S, check=False
    )
    return json.loads(done.stdout) if done.stdout.strip() else {"exit": done.returncode, "said": done.stderr[-2000:]}


def _logs(settings: Settings) -> Iterator[tuple[Path, str]]:
    """(file, name in the bundle): of `shoal up`, and of this Shoal's Ray session where it runs on this machine."""
    for path in _newest((settings.home / "logs").glob("*.log*")):
        yield path, path.name
    try:
        session = str(_state(settings, "status.json").get("session", "")).rpartition("/")[2]
    except Exception:
        return
    if session.startswith("session_") and (place := _RAY / session / "logs").is_dir():
        wanted = [path for pattern in ("worker-*.err", "serve/*.log", "raylet.err", "gcs_server.err", "monitor.err")
                  for path in place.glob(pattern)]  # fmt: skip
        for path in _newest(wanted):
            yield path, f"ray/{path.relative_to(place)}"


def _newest(paths: Iterable[Path]) -> list[Path]:
    found = [(path.stat().st_mtime, path) for path in paths if path.is_file() and path.stat().st_size]
    return [path for _, path in sorted(found, reverse=True)[:LOGS_MAX]]


def _end(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - LOG_BYTES_MAX))
        return file.read(LOG_BYTES_MAX).decode("utf-8", "replace")


def default_name(now: datetime) -> str:
    """Of the file, by the time."""
    return f"shoal-support-{now:%Y%m%dT%H%M%SZ}.tar.gz"
