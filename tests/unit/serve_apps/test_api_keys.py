"""API keys: their shape, what is kept of them, and which are taken."""

from __future__ import annotations

import json
import secrets
import string
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import PermanentError
from shoal.redaction import redact_text
from shoal.serve_apps.api_keys import (
    GONE_DAYS,
    KEYS_MAX,
    ApiKey,
    KeyFileError,
    KeyRing,
    key_id,
    new_key,
    read_ring,
    write_ring,
)
from shoal.serve_apps.scopes import Grant, Scope, read_grant, read_grants

NOW = datetime(2026, 1, 20, 12, tzinfo=UTC)
READ = (Grant(Scope.READ),)


def made(name: str = "ci", grants: tuple[Grant, ...] = READ, **more: Any) -> tuple[ApiKey, str]:
    return new_key(name, grants, NOW, secrets.token_bytes, **more)


def test_a_new_key_is_taken_and_says_whose_it_is() -> None:
    kept, key = made("claude", (Grant(Scope.WRITE, "scraper"),))
    caller = KeyRing([kept]).verify(key, NOW)
    assert caller is not None
    assert (caller.id, caller.name, caller.kind) == (kept.id, "claude", "key")
    assert caller.may(Scope.READ, "scraper")
    assert not caller.may(Scope.READ, "pages")


def test_only_a_hash_is_kept() -> None:
    kept, key = made()
    secret = key.split("_")[2]
    text = json.dumps(write_ring(KeyRing([kept])))
    assert key not in text
    assert secret not in text
    assert secret not in repr(kept)
    assert kept.sha256 in text


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=10, max_size=10))
def test_every_key_has_the_same_shape_and_a_checksum_that_a_wrong_character_breaks(
    secret: bytes, identity: bytes
) -> None:
    kept, key = new_key("a", READ, NOW, lambda count: secret if count == 32 else identity)
    assert len(key) == len("shoal_") + 10 + 1 + 43 + 6
    assert key_id(key) == kept.id
    for place in (8, 20, 40, len(key) - 1):
        other = "A" if key[place] != "A" else "B"
        assert key_id(key[:place] + other + key[place + 1 :]) is None


@given(
    st.one_of(
        st.text(), st.text(alphabet=string.ascii_letters + string.digits + "_", max_size=80).map("shoal_".__add__)
    )
)
def test_what_is_no_key_is_refused_and_never_an_error(text: str) -> None:
    assert KeyRing([made()[0]]).verify(text, NOW) is None


def test_another_secret_under_a_known_id_is_refused() -> None:
    kept, _ = made()
    _, forged = new_key("x", READ, NOW, lambda count: bytes(count) if count == 32 else secrets.token_bytes(count))
    from shoal.serve_apps import api_keys

    body = f"shoal_{kept.id}_{forged.split('_')[2][:43]}"
    forged = body + api_keys._checksum(body)
    assert key_id(forged) == kept.id, "its checksum is right: only the hash can tell"
    assert KeyRing([kept]).verify(forged, NOW) is None


def test_a_revoked_key_is_refused_from_that_moment() -> None:
    kept, key = made()
    ring = KeyRing([kept]).revoking(kept.id, NOW + timedelta(hours=1))
    assert ring.verify(key, NOW) is not None
    assert ring.verify(key, NOW + timedelta(hours=1)) is None
    sooner = ring.revoking(kept.id, NOW)
    assert sooner.verify(key, NOW) is None
    assert sooner.revoking(kept.id, NOW + timedelta(days=9)).verify(key, NOW) is None, "it can't be put off again"


def test_an_expired_key_is_refused() -> None:
    kept, key = made(expires_at=NOW + timedelta(days=1))
    assert KeyRing([kept]).verify(key, NOW) is not None
    assert KeyRing([kept]).verify(key, NOW + timedelta(days=1)) is None
    assert KeyRing([kept]).has_active(NOW)
    assert not KeyRing([kept]).has_active(NOW + timedelta(days=1))


def test_what_is_written_is_read_back() -> None:
    first, _ = made("a", (Grant(Scope.ADMIN),), expires_at=NOW + timedelta(days=1), rate_per_minute=7)
    second, _ = made("b", (Grant(Scope.READ, "scraper"), Grant(Scope.WRITE, "pages.x")), replaces=first.id)
    ring = KeyRing([first, second]).revoking(first.id, NOW)
    assert read_ring(json.loads(json.dumps(write_ring(ring)))).keys == ring.keys


GOOD = write_ring(KeyRing([made()[0]]))["keys"][0]


@pytest.mark.parametrize(
    "value",
    [
        None, [], {}, {"format": 2, "keys": []}, {"format": 1, "keys": {}}, {"format": 1, "keys": [1]},
        {"format": 1, "keys": [GOOD, GOOD]},
        *({"format": 1, "keys": [GOOD | wrong]} for wrong in (
            {"id": "../x"}, {"id": None}, {"sha256": "ff"}, {"scopes": ["root"]}, {"scopes": None},
            {"created_at": "yesterday"}, {"created_at": "2026-01-01T00:00:00"}, {"expires_at": 7},
            {"rate_per_minute": "many"},
        )),
    ],
)  # fmt: skip
def test_a_damaged_file_is_an_error_and_not_a_file_without_keys(value: Any) -> None:
    with pytest.raises(KeyFileError):
        read_ring(value)


@pytest.mark.parametrize("name", ["", "   ", "a\nb", "\x1b[31m", "x" * 101, "a\x9b0m"])
def test_a_name_that_would_harm_a_list_or_a_log_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="visible"):
        made(name)


def test_a_key_without_scope_or_already_expired_is_refused() -> None:
    with pytest.raises(ValueError, match="scope"):
        made(grants=())
    with pytest.raises(ValueError, match="expired"):
        made(expires_at=NOW)


def test_keys_that_ended_long_ago_are_forgotten_and_others_never() -> None:
    old, _ = made("old")
    ring = KeyRing([old, made("live")[0]]).revoking(old.id, NOW - timedelta(days=GONE_DAYS + 1))
    assert [key.name for key in ring.adding(made("new")[0], NOW).keys] == ["live", "new"]


def test_the_number_of_keys_is_bounded() -> None:
    kept, _ = made()
    ring = KeyRing([kept] * KEYS_MAX)
    with pytest.raises(PermanentError, match="identity provider"):
        ring.adding(made()[0], NOW)


def test_a_key_is_named_by_id_or_by_a_name_that_one_active_key_has() -> None:
    first, second = made("a")[0], made("a")[0]
    with pytest.raises(PermanentError, match="2 keys"):
        KeyRing([first, second]).get("a")
    assert KeyRing([first, second]).revoking(first.id, NOW).get("a").id == second.id
    assert KeyRing([first, second]).get(first.id) is first
    with pytest.raises(PermanentError, match="shoal keys list"):
        KeyRing([]).get("nobody")


@pytest.mark.parametrize(
    "text",
    ["", "root", "READ", "read:", "read: x", "read:a b", "read:../x", "read:a\n", "write:*:x", "read:" + "a" * 201],
)
def test_text_that_is_no_scope_grants_nothing(text: str) -> None:
    with pytest.raises(ValueError, match="no scope"):
        read_grant(text)
    assert read_grants([text, "read:scraper"]) == (Grant(Scope.READ, "scraper"),)


@given(st.sampled_from(Scope), st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9_.-]{0,30}\Z") | st.just("*"))
def test_a_grant_is_written_as_it_is_read(scope: Scope, collection: str) -> None:
    assert read_grant(str(Grant(scope, collection))) == Grant(scope, collection)


def test_keys_in_texts_are_redacted() -> None:
    _, key = made()
    assert key not in redact_text(f"it failed with {key} in the header")
