"""Where the API keys are kept, how they are changed, and how a replica knows them.

Kept as one file, `{tables}/_shoal/keys.json`, replaced only where it is still as it was read, so that two people who
change keys at once lose nothing; or any file by the setting `keys_file` (a mounted secret), which is then changed where
it is kept.

`KeyWatch` is a replica's view. A key that is revoked is refused everywhere within 10 s: no request is judged by a file
read longer than `FRESH_S` ago, and reading takes `READ_S` at most. While the file can't be read, or is damaged, the
last good state stands for `keys_unreadable_s`; after that nobody with a key gets in (503), and the log says why. A file
that was there and is gone counts as unreadable, not as a service without keys.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import orjson

from shoal.errors import ShoalError, TransientError
from shoal.serve_apps.api_keys import KeyFileError, KeyRing, read_ring, write_ring
from shoal.settings import Settings
from shoal.store.versioned_files import VersionedFile

log = logging.getLogger("shoal.keys")

KEYS = "keys.json"
USE = "key_use.json"
FRESH_S = 4.0
"""With READ_S within the 10 s of the promise, with room for a busy loop; a local read takes 0.1 ms, S3 some 20 ms."""
RENEW_S = 2.0
"""From this age on it is read again beside the request, which so never waits in the usual case."""
READ_S = 3.0
AGAIN_S = 1.0
"""Rest after a read that failed: not every request should wait for a store that does not answer."""
USE_S = 60.0
"""How exact `last used` is; each write of it is one more request to the store."""
ATTEMPTS = 8


def keys_place(settings: Settings) -> VersionedFile:
    """The file of the keys."""
    return VersionedFile(settings, KEYS, settings.keys_file)


def load_ring(place: VersionedFile) -> tuple[KeyRing, str | None]:
    """(the keys, the version of their file). Raises TransientError, KeyFileError."""
    found = place.read()
    if found.data is None:
        return KeyRing(), None
    try:
        return read_ring(orjson.loads(found.data)), found.version
    except (orjson.JSONDecodeError, KeyFileError) as error:
        raise KeyFileError(f"{place.place}: {error}") from None


def change_ring(place: VersionedFile, change: Callable[[KeyRing], KeyRing]) -> KeyRing:
    """Replace the keys by `change` of them; it is called again where another was faster. Raises TransientError,
    PermanentError."""
    for _ in range(ATTEMPTS):
        ring, version = load_ring(place)
        changed = change(ring)
        if changed is ring:
            return ring
        if place.replace(orjson.dumps(write_ring(changed), option=orjson.OPT_INDENT_2), version):
            return changed
    raise TransientError(f"{place.place} is being changed by others all the time: try again", 1.0)


class KeyWatch:
    """The keys as a replica knows them. Used on its event loop; reads on a thread of its own."""

    def __init__(
        self,
        place: VersionedFile,
        unreadable_s: float,
        *,
        use: KeyUse | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._place, self._unreadable_s, self._clock, self._use = place, unreadable_s, clock, use
        self._ring: KeyRing | None = None
        self._was_there = False
        self._read_at = float("-inf")  # when the read began whose result stands
        self._failed_at = float("-inf")
        self._why = ""
        self._reading: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="keys")

    async def ring(self) -> KeyRing:
        """The keys as of `FRESH_S` ago or later, or the last good ones within the bound. Raises TransientError."""
        age_s = self._clock() - self._read_at
        if age_s > RENEW_S and self._reading is None and self._clock() - self._failed_at > AGAIN_S:
            self._reading = asyncio.create_task(self._read())
        if age_s > FRESH_S and self._reading is not None:
            await asyncio.wait([self._reading], timeout=READ_S)
            age_s = self._clock() - self._read_at
        if self._ring is None or age_s > max(self._unreadable_s, FRESH_S):
            raise TransientError(f"API keys can't be checked now: {self._why or 'their file does not answer'}", 2.0)
        return self._ring

    def used(self, identity: str, at: datetime) -> None:
        """Note that this key was used."""
        if self._use is not None and self._use.is_due(identity, at):
            self._thread.submit(self._use.write)

    async def _read(self) -> None:
        began = self._clock()
        try:
            # The thread may hang for longer than anybody waits; `_reading` stays until it ends, so there is one.
            ring, version = await asyncio.get_running_loop().run_in_executor(self._thread, load_ring, self._place)
            if version is None and self._was_there:
                raise KeyFileError(f"{self._place.place} was there and is gone")
        except (ShoalError, OSError) as error:
            self._failed(str(error))
        except RuntimeError:  # closed: the replica ends
            self._failed("this process ends")
        else:
            if self._why:
                log.warning("the API keys can be read again")
            self._ring, self._read_at, self._why = ring, began, ""
            self._was_there = self._was_there or version is not None
        finally:
            self._reading = None

    def _failed(self, why: str) -> None:
        self._failed_at = self._clock()
        if why != self._why:
            self._why = why
            log.error(
                "the API keys can't be read (%s); the last good state stands for %g s, then no key is taken",
                why, self._unreadable_s,
            )  # fmt: skip

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


class KeyUse:
    """When each key was last used, for `shoal keys list`: exact to `USE_S`, shared by all replicas, and nothing that
    anything depends on: what can't be written is written later."""

    def __init__(self, place: VersionedFile) -> None:
        self._place = place
        self._seen: dict[str, datetime] = {}
        self._written: datetime | None = None

    def is_due(self, identity: str, at: datetime) -> bool:
        """Note a use; whether it is time to write."""
        self._seen[identity] = at
        if self._written is not None and (at - self._written).total_seconds() < USE_S:
            return False
        self._written = at
        return True

    def write(self) -> None:
        """Blocking. Never raises."""
        seen = dict(self._seen)
        with contextlib.suppress(ShoalError, OSError):
            for _ in range(2):
                found = self._place.read()
                known = read_use(found.data)
                merged = known | {key: at for key, at in seen.items() if key not in known or at > known[key]}
                text = {key: at.astimezone(UTC).isoformat() for key, at in merged.items()}
                if self._place.replace(orjson.dumps(text), found.version):
                    return


def read_use(data: bytes | None) -> dict[str, datetime]:
    """{key id: when it was last used}; {} where it can't be read."""
    try:
        value = orjson.loads(data or b"{}")
        return {str(key): datetime.fromisoformat(at) for key, at in value.items()}
    except (ValueError, TypeError, AttributeError):
        return {}


def use_place(settings: Settings) -> VersionedFile:
    """The file of `KeyUse`; beside the tables, also where the keys are mounted."""
    return VersionedFile(settings, USE)
