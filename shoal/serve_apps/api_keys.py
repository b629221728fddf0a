"""API keys: what they look like, what is kept of them, and whether one is good. Pure: `now` and randomness are given.

A key is `shoal_<id>_<secret>`: a public id, 256 random bits and a checksum, so that a typing error, or another
service's key, is refused without a look-up, and scanners for leaked secrets know ours. Only its SHA-256 is kept. A
slow, salted hash (as for passwords) would guard nothing here: it makes guessing costly where there is little to guess,
and nobody guesses 256 bits; a fast one lets every request be checked. Whoever steals the file can neither use nor
invert it.

A ring of keys answers for one moment: revoked, expired and unknown keys are refused alike, after the same work, by a
comparison in constant time.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from shoal.errors import PermanentError
from shoal.serve_apps.scopes import GRANTS_MAX, Caller, Grant, read_grant

PREFIX = "shoal_"
KEYS_MAX = 10_000
"""All are read every few seconds by each replica, some 300 bytes each; who needs more wants an identity provider."""
NAME_CHARS_MAX = 100
GONE_DAYS = 400.0
"""A key that was revoked or has expired is listed for so long; then it is forgotten."""

_ID_CHARS = 10
_SECRET_BYTES = 32
_SECRET_CHARS = 43  # 62 ** 43 > 256 ** 32
_CHECK_CHARS = 6  # 62 ** 6 > 2 ** 32
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_KEY = re.compile(rf"{PREFIX}([0-9a-z]{{{_ID_CHARS}}})_([0-9A-Za-z]{{{_SECRET_CHARS}}})([0-9A-Za-z]{{{_CHECK_CHARS}}})")
_NAME = re.compile(r"[^\x00-\x1f\x7f-\x9f]{1,100}")
_NO_HASH = "0" * 64

Randomness = Callable[[int], bytes]


class KeyFileError(PermanentError):
    """The file of the keys is not one; its text says where it is wrong."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What is kept of a key."""

    id: str
    name: str
    sha256: str
    grants: tuple[Grant, ...]
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    replaces: str | None = None  # the id of the key that it was rotated from
    rate_per_minute: int = 0

    def state(self, now: datetime) -> str:
        """active, revoked or expired."""
        if self.revoked_at is not None and self.revoked_at <= now:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= now else "active"

    def ended_at(self) -> datetime | None:
        """When it stopped, or will stop, being good."""
        ends = [at for at in (self.revoked_at, self.expires_at) if at is not None]
        return min(ends) if ends else None


def new_key(
    name: str,
    grants: Sequence[Grant],
    now: datetime,
    randomness: Randomness,
    *,
    expires_at: datetime | None = None,
    replaces: str | None = None,
    rate_per_minute: int = 0,
) -> tuple[ApiKey, str]:
    """(what is kept, the key itself, to be shown once). Raises ValueError for a name, grants or expiry that is none."""
    if not _NAME.fullmatch(name) or not name.strip():
        raise ValueError(f"a name has 1 to {NAME_CHARS_MAX} visible characters")
    if not 1 <= len(grants) <= GRANTS_MAX:
        raise ValueError(f"a key needs at least one scope, and at most {GRANTS_MAX}")
    if expires_at is not None and expires_at <= now:
        raise ValueError("it would have expired already")
    identity = _base62(randomness(_ID_CHARS), _ID_CHARS).lower()
    secret = _base62(randomness(_SECRET_BYTES), _SECRET_CHARS)
    body = f"{PREFIX}{identity}_{secret}"
    key = body + _checksum(body)
    kept = ApiKey(
        identity, name.strip(), _sha256(key), tuple(dict.fromkeys(grants)), now, expires_at, None, replaces,
        rate_per_minute,
    )  # fmt: skip
    return kept, key


def key_id(key: str) -> str | None:
    """The id in `key`; None where it is none of ours or was mistyped."""
    found = _KEY.fullmatch(key)
    if found is None or _checksum(key[:-_CHECK_CHARS]) != found[3]:
        return None
    return found[1]


class KeyRing:
    """The keys of one moment."""

    def __init__(self, keys: Sequence[ApiKey] = ()) -> None:
        self.keys = tuple(keys)
        self._by_id = {key.id: key for key in keys}

    def __len__(self) -> int:
        return len(self.keys)

    def has_active(self, now: datetime) -> bool:
        return any(key.state(now) == "active" for key in self.keys)

    def verify(self, key: str, now: datetime) -> Caller | None:
        """Whose key this is; None where it is unknown, revoked, expired or no key at all."""
        identity = key_id(key)
        if identity is None:
            return None
        kept = self._by_id.get(identity)
        is_right = hmac.compare_digest(_sha256(key), kept.sha256 if kept is not None else _NO_HASH)
        if kept is None or not is_right or kept.state(now) != "active":
            return None
        return Caller(kept.id, kept.name, "key", kept.grants, kept.rate_per_minute)

    def get(self, name_or_id: str) -> ApiKey:
        """By id, or by the name of one active key. Raises PermanentError."""
        if name_or_id in self._by_id:
            return self._by_id[name_or_id]
        named = [key for key in self.keys if key.name == name_or_id and key.revoked_at is None]
        if len(named) == 1:
            return named[0]
        if named:
            raise PermanentError(f"{len(named)} keys are named {name_or_id!r}: give the id (`shoal keys list`)")
        raise PermanentError(f"there is no key {name_or_id[:100]!r}: `shoal keys list` shows them")

    def adding(self, key: ApiKey, now: datetime) -> KeyRing:
        """With `key`, and without those that ended long ago. Raises PermanentError."""
        oldest = now - timedelta(days=GONE_DAYS)
        kept = [one for one in self.keys if (one.ended_at() or now) > oldest]
        if len(kept) >= KEYS_MAX:
            raise PermanentError(
                f"there are {KEYS_MAX} keys already: revoke some, or use an identity provider (oidc_*)"
            )
        if key.id in self._by_id:
            raise PermanentError("this key's id is taken: try again")
        return KeyRing([*kept, key])

    def revoking(self, identity: str, at: datetime) -> KeyRing:
        """With that key ended at `at`, unless it ends earlier already."""
        return KeyRing([
            replace(key, revoked_at=min(at, key.revoked_at or at)) if key.id == identity else key for key in self.keys
        ])  # fmt: skip


def write_ring(ring: KeyRing) -> dict[str, Any]:
    """The file: {format, keys}."""
    return {
        "format": 1,
        "keys": [
            {
                "id": key.id,
                "name": key.name,
                "sha256": key.sha256,
                "scopes": [str(grant) for grant in key.grants],
                "created_at": _text(key.created_at),
                "expires_at": _text(key.expires_at),
                "revoked_at": _text(key.revoked_at),
                "replaces": key.replaces,
                "rate_per_minute": key.rate_per_minute,
            }
            for key in ring.keys
        ],
    }


def read_ring(value: Any) -> KeyRing:
    """What `write_ring` wrote. Raises KeyFileError: a file that is damaged is not a file without keys."""
    if not isinstance(value, Mapping) or value.get("format") != 1 or not isinstance(value.get("keys"), list):
        raise KeyFileError('the keys\' file must be {"format": 1, "keys": [...]}')
    if len(value["keys"]) > KEYS_MAX:
        raise KeyFileError(f"the keys' file has more than {KEYS_MAX} keys")
    keys = []
    for place, entry in enumerate(value["keys"]):
        try:
            keys.append(_read_key(entry))
        except (KeyError, TypeError, ValueError) as error:
            raise KeyFileError(f"the keys' file: entry {place}: {type(error).__name__}: {error}") from None
    if len({key.id for key in keys}) != len(keys):
        raise KeyFileError("the keys' file has an id twice")
    return KeyRing(keys)


def _read_key(entry: Mapping[str, Any]) -> ApiKey:
    if not re.fullmatch(rf"[0-9a-z]{{{_ID_CHARS}}}", entry["id"]) or not re.fullmatch("[0-9a-f]{64}", entry["sha256"]):
        raise ValueError("id or sha256 is not of its shape")
    return ApiKey(
        id=entry["id"],
        name=str(entry["name"])[:NAME_CHARS_MAX],
        sha256=entry["sha256"],
        grants=tuple(read_grant(text) for text in entry["scopes"]),
        created_at=_time(entry["created_at"]),
        expires_at=_time_or_none(entry.get("expires_at")),
        revoked_at=_time_or_none(entry.get("revoked_at")),
        replaces=entry.get("replaces"),
        rate_per_minute=int(entry.get("rate_per_minute") or 0),
    )


def _time(text: str) -> datetime:
    at = datetime.fromisoformat(text)
    if at.tzinfo is None:
        raise ValueError("a time without a zone")
    return at


def _time_or_none(text: str | None) -> datetime | None:
    return None if text is None else _time(text)


def _text(at: datetime | None) -> str | None:
    return None if at is None else at.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _sha256(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _checksum(body: str) -> str:
    return _base62(zlib.crc32(body.encode()).to_bytes(4), _CHECK_CHARS)


def _base62(data: bytes, chars: int) -> str:
    number, text = int.from_bytes(data), ""
    for _ in range(chars):
        number, place = divmod(number, 62)
        text = _ALPHABET[place] + text
    return text
