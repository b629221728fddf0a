"""The work of `shoal keys`: API keys made, listed, ended and exchanged, in the file that every replica follows."""

from __future__ import annotations

import getpass
import os
import re
import secrets
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

from shoal.cluster.output import Format, emit_json, emit_rows, say
from shoal.errors import ConfigurationError, PermanentError
from shoal.serve_apps.api_keys import ApiKey, KeyRing, new_key
from shoal.serve_apps.key_store import change_ring, keys_place, load_ring, read_use, use_place
from shoal.serve_apps.scopes import Grant, read_grant
from shoal.serve_apps.times import time_bound
from shoal.serve_apps.trail import entry, record_now
from shoal.settings import Settings

_AGE = re.compile(r"(\d{1,6})([smhdw])")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
LIFE_DAYS_MAX = 3650


def duration(text: str) -> timedelta:
    """`90d`, `12h`. Raises ConfigurationError."""
    found = _AGE.fullmatch(text.strip())
    if found is None or int(found[1]) * _UNITS[found[2]] > LIFE_DAYS_MAX * 86_400:
        raise ConfigurationError(f"{text[:40]!r} is no length of time up to {LIFE_DAYS_MAX}d: 30m, 12h, 90d")
    return timedelta(seconds=int(found[1]) * _UNITS[found[2]])


def expiry(text: str, now: datetime) -> datetime | None:
    """When a key ends that `--expires` says it of. Raises ConfigurationError."""
    if not text.strip():
        return None
    if _AGE.fullmatch(text.strip()):
        return now + duration(text)
    try:
        at = time_bound(text, is_end=True)[0]
    except (ValueError, PermanentError):
        raise ConfigurationError(f"--expires {text[:40]!r}: a length (90d, 12h) or a time (2030-01-31)") from None
    return at


def create_key(settings: Settings, name: str, scopes: list[str], expires: str, rate: int, form: Format) -> None:
    """Raises ConfigurationError, TransientError, PermanentError."""
    now = datetime.now(UTC)
    try:
        grants: list[Grant] = [read_grant(text) for text in scopes]
        kept, key = new_key(
            name, grants, now, secrets.token_bytes, expires_at=expiry(expires, now), rate_per_minute=rate
        )
    except ValueError as error:
        raise ConfigurationError(str(error)) from None
    place = keys_place(settings)
    _record(settings, "keys create", kept)
    change_ring(place, lambda ring: _with(ring, kept, now))
    _show_once(kept, key, place.place, form)


def list_keys(settings: Settings, form: Format) -> None:
    """Raises TransientError, PermanentError."""
    now = datetime.now(UTC)
    ring, _ = load_ring(keys_place(settings))
    used = read_use(use_place(settings).read().data)
    rows = [_shown(key, now) | {"last_used_at": used.get(key.id)} for key in ring.keys]
    if form is Format.json:
        emit_json(rows)
    elif rows:
        columns = ("id", "name", "scopes", "state", "created_at", "last_used_at", "expires_at", "revoked_at")
        emit_rows([row | {"scopes": ", ".join(row["scopes"])} for row in rows], columns)
    else:
        say("there are no keys: `shoal keys create --name NAME --scope read` makes one")


def revoke_key(settings: Settings, wanted: str) -> None:
    """Raises TransientError, PermanentError."""
    now = datetime.now(UTC)
    ring, _ = load_ring(keys_place(settings))
    key = ring.get(wanted)
    _record(settings, "keys revoke", key)
    change_ring(keys_place(settings), lambda ring: ring.revoking(key.id, now))
    say(f"key {key.id} ({key.name}) is revoked: every replica refuses it within 10 s")


def rotate_key(settings: Settings, wanted: str, overlap: str, form: Format) -> None:
    """Raises ConfigurationError, TransientError, PermanentError."""
    now, stays = datetime.now(UTC), duration(overlap)
    place = keys_place(settings)
    ring, _ = load_ring(place)
    old = ring.get(wanted)
    if old.state(now) != "active":
        raise PermanentError(f"key {old.id} is {old.state(now)}: make a new one with `shoal keys create`")
    lifetime = None if old.expires_at is None else old.expires_at - old.created_at
    kept, key = new_key(
        old.name, old.grants, now, secrets.token_bytes, expires_at=None if lifetime is None else now + lifetime,
        replaces=old.id, rate_per_minute=old.rate_per_minute,
    )  # fmt: skip
    _record(settings, "keys rotate", kept)
    change_ring(place, lambda ring: _with(ring, kept, now, ends=old.id, ends_at=now + stays))
    _show_once(kept, key, place.place, form)
    say(f"the old key {old.id} ends in {overlap}; `shoal keys revoke {old.id}` ends it at once")


def _with(ring: KeyRing, key: ApiKey, now: datetime, *, ends: str = "", ends_at: datetime | None = None) -> KeyRing:
    """`ring` with `key`; itself where it has it already: a store may have taken what it did not confirm."""
    if key in ring.keys:
        return ring
    longer = ring.adding(key, now)
    return longer.revoking(ends, ends_at) if ends_at is not None else longer


def _record(settings: Settings, call: str, key: ApiKey) -> None:
    """The line in the audit trail, before it is done. Raises TransientError."""
    about = {"key": key.id, "name": key.name, "scopes": ", ".join(map(str, key.grants)), "replaces": key.replaces}
    line = entry(
        "change", datetime.now(UTC), via="cli", caller=_user(), caller_kind="operator", call=call,
        about={name: value for name, value in about.items() if value},
    )  # fmt: skip
    record_now(settings, line)


def _user() -> str:
    """Whose process this is; in a container often nobody's name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def _show_once(kept: ApiKey, key: str, place: str, form: Format) -> None:
    if form is Format.json:
        emit_json(_shown(kept, kept.created_at) | {"key": key})
    else:
        sys.stdout.write(key + "\n")
    say(f"key {kept.id} ({kept.name}: {', '.join(map(str, kept.grants))}); it is not shown again")
    say(f"its hash is in {place}; running replicas take it within 10 s")


def _shown(key: ApiKey, now: datetime) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "scopes": [str(grant) for grant in key.grants],
        "state": key.state(now),
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
        "replaces": key.replaces,
        "rate_per_minute": key.rate_per_minute or None,
    }
