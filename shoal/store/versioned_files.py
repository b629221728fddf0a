"""Small shared files that several may change: read with a version, replaced only where that version still stands.

For what must neither be lost between two writers nor be mistaken: the API keys. Unlike state_files.py a damaged file is
not an absent one; the bytes are the caller's to judge. A place is a file beside the tables (on disk or in S3, where the
condition is the server's: If-Match, If-None-Match), or a file anywhere on this machine (mounted, say), where a lock on
a file beside it makes comparing and replacing one step for all who come by this module.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from shoal.errors import ConfigurationError, TransientError
from shoal.settings import Settings
from shoal.store.state_files import DIRECTORY, UNFINISHED_PREFIX, s3_client, s3_place

BYTES_MAX = 16 * 1024 * 1024
"""What is larger was not written by us; reading it whole would let a mounted file eat a replica's memory."""

_LOST = frozenset({"PreconditionFailed", "ConditionalRequestConflict", "412", "409"})


@dataclass(frozen=True, slots=True)
class Versioned:
    """The bytes of a file and the version that they are; both None where there is no file."""

    data: bytes | None
    version: str | None


class VersionedFile:
    """One such file. Blocking."""

    def __init__(self, settings: Settings, name: str, path: Path | None = None) -> None:
        """`name` beside the tables; or the file `path`, whatever the tables are."""
        self._settings = settings
        self._bucket, self._key = (None, "") if path else s3_place(settings, name)
        self._path = path or Path(settings.tables_uri) / DIRECTORY / name
        self.place = f"s3://{self._bucket}/{self._key}" if self._bucket else str(self._path)

    def read(self) -> Versioned:
        """Raises TransientError."""
        if self._bucket is not None:
            return self._from_s3()
        try:
            if self._path.stat().st_size > BYTES_MAX:
                raise TransientError(f"{self.place} is larger than {BYTES_MAX} bytes")
            data = self._path.read_bytes()
        except FileNotFoundError:
            return Versioned(None, None)
        except OSError as error:
            raise TransientError(f"{self.place} can't be read: {error.strerror}") from None
        return Versioned(data, hashlib.sha256(data).hexdigest())

    def replace(self, data: bytes, version: str | None) -> bool:
        """Write `data` if the file still has `version` (None: is absent); False where it has not. Raises
        TransientError, ConfigurationError."""
        if self._bucket is not None:
            return self._to_s3(data, version)
        try:
            return self._to_disk(data, version)
        except PermissionError:
            raise ConfigurationError(f"{self.place} can't be written by this user: run this where it is kept") from None
        except OSError as error:
            raise TransientError(f"{self.place} can't be written: {error.strerror}") from None

    def _to_disk(self, data: bytes, version: str | None) -> bool:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with (self._path.parent / f".{self._path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self.read().version != version:
                return False
            # Readable by its owner alone, as mkstemp makes it: hashes are no secrets, but nobody else's business.
            handle, temporary = tempfile.mkstemp(dir=self._path.parent, prefix=UNFINISHED_PREFIX)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, self._path)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
        return True

    def _from_s3(self) -> Versioned:
        try:
            found = self._client.get_object(Bucket=self._bucket, Key=self._key)
            if found["ContentLength"] > BYTES_MAX:
                raise TransientError(f"{self.place} is larger than {BYTES_MAX} bytes")
            return Versioned(found["Body"].read(), found["ETag"])
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") in ("NoSuchKey", "404"):
                return Versioned(None, None)
            raise TransientError(f"{self.place}: {error}") from None
        except BotoCoreError as error:
            raise TransientError(f"{self.place}: {error}") from None

    def _to_s3(self, data: bytes, version: str | None) -> bool:
        condition = {"IfNoneMatch": "*"} if version is None else {"IfMatch": version}
        try:
            self._client.put_object(Bucket=self._bucket, Key=self._key, Body=data, **condition)
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") in _LOST:
                return False
            raise TransientError(f"{self.place}: {error}") from None
        except BotoCoreError as error:
            raise TransientError(f"{self.place}: {error}") from None
        return True

    @property
    def _client(self) -> Any:
        return s3_client(self._settings.s3_endpoint_url)
