"""The keys' file: changed by several at once, followed by replicas, and what they do while it can't be read."""

from __future__ import annotations

import asyncio
import secrets
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from shoal.errors import TransientError
from shoal.serve_apps.api_keys import KeyFileError, KeyRing, new_key
from shoal.serve_apps.key_store import (
    FRESH_S,
    READ_S,
    RENEW_S,
    KeyUse,
    KeyWatch,
    change_ring,
    keys_place,
    load_ring,
    read_use,
    use_place,
)
from shoal.serve_apps.scopes import Grant, Scope
from shoal.settings import Settings, load
from shoal.store.versioned_files import Versioned, VersionedFile

NOW = datetime(2026, 1, 20, 12, tzinfo=UTC)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Place(VersionedFile):
    """The real file, which may be told to fail, or to hang until let go."""

    error: Exception | None = None
    reads = 0
    gate: threading.Event | None = None

    def read(self) -> Versioned:
        self.reads += 1
        if self.gate is not None:
            self.gate.wait(10)
        if self.error is not None:
            raise self.error
        return super().read()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load(data_dir=tmp_path)


@pytest.fixture
def place(settings: Settings) -> Place:
    return Place(settings, "keys.json")


def add(place: VersionedFile, name: str = "a") -> tuple[str, str]:
    """(id, key)"""
    kept, key = new_key(name, (Grant(Scope.READ),), NOW, secrets.token_bytes)
    change_ring(place, lambda ring: ring.adding(kept, NOW))
    return kept.id, key


def revoke(place: VersionedFile, identity: str) -> None:
    change_ring(place, lambda ring: ring.revoking(identity, NOW))


def test_keys_that_are_made_at_once_are_all_kept(place: Place) -> None:
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda number: add(place, f"n{number}")[0], range(4)))
    assert {key.id for key in load_ring(place)[0].keys} == set(made)


def test_the_file_is_readable_by_its_owner_alone(place: Place) -> None:
    add(place)
    assert Path(place.place).stat().st_mode & 0o077 == 0


def test_a_mounted_file_is_used_instead_of_the_one_beside_the_tables(tmp_path: Path) -> None:
    mounted = tmp_path / "secret" / "keys.json"
    settings = load(data_dir=tmp_path / "d", keys_file=mounted)
    _, key = add(keys_place(settings))
    ring, _ = load_ring(keys_place(settings))
    assert ring.verify(key, NOW) is not None
    assert mounted.exists()
    assert not (tmp_path / "d" / "lancedb" / "_shoal" / "keys.json").exists()


def test_a_stale_version_replaces_nothing(place: Place) -> None:
    assert place.replace(b"1", None)
    version = place.read().version
    assert place.replace(b"2", version)
    assert not place.replace(b"3", version)
    assert not place.replace(b"3", None)
    assert place.read().data == b"2"


def test_a_damaged_file_is_neither_read_nor_overwritten(place: Place) -> None:
    add(place)
    Path(place.place).write_bytes(b'{"format": 1, "ke')
    with pytest.raises(KeyFileError, match=r"keys\.json"):
        add(place)
    assert Path(place.place).read_bytes() == b'{"format": 1, "ke'


async def test_a_revoked_key_is_refused_before_ten_seconds_are_over(place: Place) -> None:
    clock = Clock()
    watch = KeyWatch(place, 60, clock=clock)
    identity, key = add(place)
    assert (await watch.ring()).verify(key, NOW) is not None
    revoke(place, identity)
    assert FRESH_S + READ_S < 10
    clock.now += FRESH_S + 0.01  # however long nobody asked: the next one to ask waits for a new look
    assert (await watch.ring()).verify(key, NOW) is None


async def test_a_look_that_is_not_old_is_not_repeated_and_an_ageing_one_is_renewed_beside_the_request(
    place: Place,
) -> None:
    clock = Clock()
    watch = KeyWatch(place, 60, clock=clock)
    add(place)
    await watch.ring()
    reads = place.reads
    for _ in range(5):
        await watch.ring()
    assert place.reads == reads
    clock.now += RENEW_S + 0.01
    place.gate = threading.Event()  # the store hangs: who asks does not notice
    ring = await watch.ring()
    assert len(ring) == 1
    place.gate.set()
    assert watch._reading is not None
    await watch._reading
    assert place.reads == reads + 1


async def test_many_who_ask_at_once_share_one_look(place: Place) -> None:
    add(place)
    watch = KeyWatch(place, 60, clock=Clock())
    before = place.reads
    await asyncio.gather(*(watch.ring() for _ in range(50)))
    assert place.reads == before + 1


async def test_while_the_file_cannot_be_read_the_last_state_stands_for_the_bound_and_then_none(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    # 1. a good look
    clock = Clock()
    watch = KeyWatch(place, 60, clock=clock)
    _, key = add(place)
    await watch.ring()
    # 2. the store is gone: the last state stands, and the log says so once
    place.error = TransientError("the store does not answer")
    for _ in range(3):
        clock.now += 15
        assert (await watch.ring()).verify(key, NOW) is not None
    assert caplog.text.count("last good state stands for 60 s") == 1
    # 3. after the bound nobody gets in
    clock.now += 16
    with pytest.raises(TransientError, match="does not answer"):
        await watch.ring()
    # 4. it is back
    place.error = None
    clock.now += 2
    assert (await watch.ring()).verify(key, NOW) is not None


async def test_a_file_that_vanished_or_is_damaged_is_not_a_service_without_keys(place: Place) -> None:
    clock = Clock()
    watch = KeyWatch(place, 60, clock=clock)
    _, key = add(place)
    await watch.ring()
    Path(place.place).write_bytes(b"")
    clock.now += 20
    assert (await watch.ring()).verify(key, NOW) is not None
    Path(place.place).unlink()
    clock.now += 20
    assert (await watch.ring()).verify(key, NOW) is not None
    clock.now += 21
    with pytest.raises(TransientError, match="gone"):
        await watch.ring()


async def test_no_file_at_all_is_no_key(place: Place) -> None:
    assert len(await KeyWatch(place, 60, clock=Clock()).ring()) == 0


def test_last_used_is_merged_and_written_once_a_minute(settings: Settings) -> None:
    one, other = KeyUse(use_place(settings)), KeyUse(use_place(settings))
    assert one.is_due("a", NOW)
    one.write()
    assert not one.is_due("a", NOW + timedelta(seconds=59))
    assert other.is_due("b", NOW + timedelta(seconds=5))
    other.write()
    assert one.is_due("a", NOW + timedelta(seconds=61))
    one.write()
    assert read_use(use_place(settings).read().data) == {
        "a": NOW + timedelta(seconds=61),
        "b": NOW + timedelta(seconds=5),
    }
    assert read_use(b"[]") == read_use(b"{") == {}


def test_an_unchanged_ring_is_not_written(place: Place) -> None:
    add(place)
    before = place.read().version
    assert isinstance(change_ring(place, lambda ring: ring), KeyRing)
    assert place.read().version == before
