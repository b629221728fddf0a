"""What killed writers leave behind: files in a table's place that no version of the table names.

A killed commit leaves the rows it had staged, a killed compaction a copy of what it joined, a killed index build
half an index. Lance's own cleanup keeps such files for seven days, or with `delete_unverified` spares not even
those that somebody is writing now; and what its uploads were still writing it doesn't see at all. Here they go
once they are older than an age, by the storage's own clock, so that no skew of ours counts.

Who could still need one? No reader: they read versions. No zombie's commit and no zombie's compaction: the heir has
rewritten the fence row, in which both would have to land, before it cleans; they are refused whatever their files.
Only an index build is not refused: the age must exceed any. One that was stopped for longer than the age in its
very last step commits an index without files; `fileless_indexes` finds it, and it is built again.
An index goes whole or not at all, by its youngest file.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Protocol

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from shoal.errors import TransientError
from shoal.store.query_sample import AGE_MAX as SAMPLE_AGE
from shoal.store.query_sample import FILE_PREFIX as SAMPLE_PREFIX
from shoal.store.state_files import DIRECTORY, UNFINISHED_PREFIX
from shoal.store.tables import lance_errors

CANDIDATES_MAX = 100_000
"""Orphans looked at in one step; each costs a look at its age. What is beyond it comes up in the next."""
_EVERY_VERSION = timedelta(days=36_500)
"""No version is this old, so what Lance would remove is what none of them names. Asked with a lower age, it calls
the files of older versions unverified too."""
_DELETED_AT_ONCE = 1_000  # what S3 takes in one request
_STAGED = re.compile(r"#\d+$")
"""How Lance's local writes are called until they are whole: no version can name them."""


@dataclass(frozen=True, slots=True)
class Swept:
    """What one sweep removed."""

    files: int = 0
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class _File:
    path: str  # relative to the place
    size_bytes: int
    written_at: datetime


class Opened(Protocol):
    """A table at a version: a FencedTable, or what the check holds of one that can't be opened as such."""

    @property
    def uri(self) -> str: ...
    @property
    def options(self) -> dict[str, str]: ...
    @property
    def dataset(self) -> Any: ...


class _Place(Protocol):
    """A table's directory or prefix. Methods raise OSError, BotoCoreError or ClientError."""

    def look(self, paths: list[str]) -> list[_File]:
        """Those of `paths` that are there."""

    def unfinished(self) -> list[_File]:
        """Files that a killed write left, and no listing of versions shows."""

    def now(self) -> datetime: ...

    def remove(self, files: list[_File]) -> None: ...

    def holds(self, folder: str) -> bool: ...


def sweep(table: Opened, age: timedelta) -> Swept:
    """Remove the orphans of `table` that are older than `age`. The caller holds the fence of its latest version.

    Raises TransientError. What is half swept is an orphan still, and goes the next time.
    """
    paths = _unnamed(table)
    with _storage_errors(f"sweeping {table.uri}"):
        place = _place(table)
        old = _older(place, paths, place.now() - age)
        place.remove(old)
    return Swept(len(old), sum(file.size_bytes for file in old))


def leaked(table: Opened, before: datetime) -> list[tuple[str, int]]:
    """(path within the table's place, size in bytes) of the orphans last written before `before`; removes nothing.
    Raises TransientError."""
    paths = _unnamed(table)
    with _storage_errors(f"looking for orphans of {table.uri}"):
        return [(file.path, file.size_bytes) for file in _older(_place(table), paths, before)]


def sizes(table: Opened, paths: list[str]) -> dict[str, int]:
    """Path within the table's place -> size in bytes, of those that are there. Raises TransientError."""
    with _storage_errors(f"looking at files of {table.uri}"):
        return {file.path: file.size_bytes for file in _place(table).look(paths)}


def _unnamed(table: Opened) -> list[str]:
    """Files that no version names."""
    with lance_errors(f"looking for orphans of {table.uri}"):
        found = table.dataset.explain_cleanup_old_versions(
            _EVERY_VERSION, delete_unverified=True, error_if_tagged_old_versions=False, include_files=True,
            max_files=CANDIDATES_MAX,
        )  # fmt: skip
    return [_relative(file.path, table.uri) for file in found.candidate_files if file.unverified]


def _older(place: _Place, paths: list[str], before: datetime) -> list[_File]:
    files = [*_whole_indexes(place.look(paths), before), *place.unfinished()]
    return [file for file in files if file.written_at < before]


def fileless_indexes(table: Opened) -> list[str]:
    """The indexes that the held version names and whose files are gone. Raises TransientError."""
    with lance_errors(f"looking at the indexes of {table.uri}"):
        segments = [
            (index.name, str(segment.uuid)) for index in table.dataset.describe_indices() for segment in index.segments
        ]
    with _storage_errors(f"looking at the indexes of {table.uri}"):
        place = _place(table)
        return sorted({name for name, uuid in segments if not place.holds(f"_indices/{uuid}")})


def sweep_state(uri: str, age: timedelta) -> Swept:
    """Remove the state files that their writer was killed over (state_files.py), and the samples of questions of
    search replicas that are gone. In S3 there are none of the former, and the latter go when recall is looked at."""
    if uri.startswith("s3://"):
        return Swept()
    with _storage_errors(f"sweeping {uri}"):
        place = _Directory(Path(uri) / DIRECTORY)
        if not place.root.is_dir():
            return Swept()
        now = place.now()
        old = _unfinished_state(place, now - age) + _state(place, SAMPLE_PREFIX, now - SAMPLE_AGE)
        place.remove(old)
    return Swept(len(old), sum(file.size_bytes for file in old))


def unfinished_state(uri: str, before: datetime) -> list[str]:
    """The names of state files whose writer was killed before `before`; removes nothing. Raises TransientError."""
    if uri.startswith("s3://"):
        return []
    with _storage_errors(f"looking at the state of {uri}"):
        place = _Directory(Path(uri) / DIRECTORY)
        return [file.path for file in _unfinished_state(place, before)] if place.root.is_dir() else []


def _unfinished_state(place: _Directory, before: datetime) -> list[_File]:
    return _state(place, UNFINISHED_PREFIX, before)


def _state(place: _Directory, prefix: str, before: datetime) -> list[_File]:
    names = [entry.name for entry in place.root.iterdir() if entry.name.startswith(prefix)]
    return [file for file in place.look(names) if file.written_at < before]


def _relative(path: str, uri: str) -> str:
    """`path`, as Lance writes it (absolute, or within the bucket), from the table's place."""
    name = uri.rstrip("/").rpartition("/")[2]
    return f"/{path}".rpartition(f"/{name}/")[2]


def _whole_indexes(files: list[_File], before: datetime) -> list[_File]:
    """`files` without those of an index of which any part is younger than `before`: it is being built."""
    building = {_index_of(file.path) for file in files if file.written_at >= before} - {None}
    return [file for file in files if _index_of(file.path) not in building]


def _index_of(path: str) -> str | None:
    parts = path.split("/")
    return parts[1] if parts[0] == "_indices" and len(parts) > 2 else None


def _place(table: Opened) -> _Place:
    if table.uri.startswith("s3://"):
        return _Prefix(table.uri, table.options)
    return _Directory(Path(table.uri))


class _Directory:
    def __init__(self, root: Path) -> None:
        self.root = root

    def look(self, paths: list[str]) -> list[_File]:
        found = []
        for path in paths:
            try:
                stat = (self.root / path).stat()
            except FileNotFoundError:
                continue
            found.append(_File(path, stat.st_size, datetime.fromtimestamp(stat.st_mtime, UTC)))
        return found

    def unfinished(self) -> list[_File]:
        staged = [
            os.path.relpath(os.path.join(folder, name), self.root)
            for folder, _, names in os.walk(self.root)
            for name in names
            if _STAGED.search(name)
        ]
        return self.look(staged)

    def now(self) -> datetime:
        with tempfile.TemporaryFile(dir=self.root) as file:  # the file system's clock, which may be another machine's
            return datetime.fromtimestamp(os.fstat(file.fileno()).st_mtime, UTC)

    def remove(self, files: list[_File]) -> None:
        for file in files:
            path = self.root / file.path
            path.unlink(missing_ok=True)
            if _index_of(file.path):
                for folder in path.parents:
                    if folder.name == "_indices":
                        break
                    try:
                        folder.rmdir()
                    except OSError:  # not empty yet
                        break

    def holds(self, folder: str) -> bool:
        return any(names for _, _, names in os.walk(self.root / folder))


class _Prefix:
    def __init__(self, uri: str, options: dict[str, str]) -> None:
        self._bucket, _, self._prefix = uri.removeprefix("s3://").partition("/")
        self._client: Any = boto3.client(
            "s3",
            endpoint_url=options.get("aws_endpoint"),
            aws_access_key_id=options.get("aws_access_key_id"),
            aws_secret_access_key=options.get("aws_secret_access_key"),
            aws_session_token=options.get("aws_session_token"),
            region_name=options.get("aws_region"),
        )
        self._uploads: dict[str, str] = {}  # key of an upload that was never completed -> its id

    def look(self, paths: list[str]) -> list[_File]:
        found = []
        for path in paths:
            try:
                head = self._client.head_object(Bucket=self._bucket, Key=self._key(path))
            except ClientError as error:
                if error.response.get("Error", {}).get("Code") in ("404", "NoSuchKey", "NotFound"):
                    continue
                raise
            found.append(_File(path, head["ContentLength"], head["LastModified"]))
        return found

    def unfinished(self) -> list[_File]:
        """Uploads in parts that were never completed: no listing shows them, but they are paid for."""
        found = []
        pages = self._client.get_paginator("list_multipart_uploads")
        for page in pages.paginate(Bucket=self._bucket, Prefix=self._key("")):
            for upload in page.get("Uploads", ()):
                path = upload["Key"].removeprefix(self._key(""))
                self._uploads[path] = upload["UploadId"]
                found.append(_File(path, 0, upload["Initiated"]))
        return found

    def now(self) -> datetime:
        head = self._client.list_objects_v2(Bucket=self._bucket, Prefix=self._key(""), MaxKeys=1)
        return parsedate_to_datetime(head["ResponseMetadata"]["HTTPHeaders"]["date"])

    def remove(self, files: list[_File]) -> None:
        for file in files:
            if file.path in self._uploads:
                self._client.abort_multipart_upload(
                    Bucket=self._bucket, Key=self._key(file.path), UploadId=self._uploads[file.path]
                )
        objects = [{"Key": self._key(file.path)} for file in files if file.path not in self._uploads]
        for start in range(0, len(objects), _DELETED_AT_ONCE):
            some = objects[start : start + _DELETED_AT_ONCE]
            self._client.delete_objects(Bucket=self._bucket, Delete={"Objects": some, "Quiet": True})

    def holds(self, folder: str) -> bool:
        found = self._client.list_objects_v2(Bucket=self._bucket, Prefix=self._key(folder) + "/", MaxKeys=1)
        return bool(found.get("KeyCount", 0))

    def _key(self, path: str) -> str:
        return f"{self._prefix}/{path}"


@contextmanager
def _storage_errors(doing: str) -> Iterator[None]:
    try:
        yield
    except (OSError, BotoCoreError, ClientError) as error:
        raise TransientError(f"{doing}: {error}") from error
