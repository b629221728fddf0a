"""Announcing files: PATHs become stored objects and the notifications that name them (`shoal publish`).

A path is a file, a directory (walked in order, hidden files and links to directories left out), or a manifest:
a MANIFEST.json, or a directory that has one, whose rows name members of the tar.zst archives beside it, or
files beside it. Every file is stored once under a name made from its content, so that an object never changes
after it was announced, and described with its size and md5. Files are streamed: none is held in memory.
What can't be published is told to `on_problem` and the others go on. Sending is the caller's business.
"""

from __future__ import annotations

import hashlib
import logging
import mimetypes
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import orjson

from shoal.errors import BadDocument, ConfigurationError
from shoal.settings import Settings
from shoal.sources.ids import S3_DATASET, document_id, parse_location
from shoal.sources.manifests import Manifest, Row, members
from shoal.sources.s3 import S3Store
from shoal.sources.versions import compact

_PIECE_BYTES = 1024 * 1024
_UNSAFE = re.compile(r"[^\w.\-]+")
log = logging.getLogger("shoal.publish")


@dataclass(frozen=True, slots=True)
class Prepared:
    """A notification ready to be sent to the first of `kafka_topics`; its object is already stored."""

    key: bytes
    value: bytes
    urn: str
    document_id: str
    location: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Description:
    """What is known of a file before its bytes are read."""

    environment: str
    dataset: str
    urn: str
    source: str
    data_type: str
    collected_at: datetime
    content_type: str | None = None
    url: str | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a file's bytes went, and what they are; hashes in lower-case hex."""

    location: str
    size_bytes: int
    md5: str
    sha256: str


def notification(description: Description, stored: Stored) -> bytes:
    """The message of contracts 1.1 for a stored file; its version is the time it was collected."""
    metadata: dict[str, Any] = {
        "publish_dtm": description.collected_at.astimezone(UTC).isoformat().replace("+00:00", "Z"),
        "source": description.source,
        "data_type": description.data_type,
        "original_file_size": stored.size_bytes,
        "original_file_md5sum": stored.md5,
    }
    if description.url:
        metadata["url"] = description.url
    if description.content_type:
        metadata["content_type"] = description.content_type
    return orjson.dumps(
        {
            "dataset": description.dataset,
            "environment": description.environment,
            "urn": description.urn,
            "location": stored.location,
            "version": compact(description.collected_at),
            "metadata": metadata,
        }
    )


def prepare(
    paths: Sequence[Path],
    settings: Settings,
    *,
    dataset: str = "",
    source: str = "",
    data_type: str = "",
    environment: str = "prod",
    to: str = "",
    on_problem: Callable[[str], None] = log.warning,
) -> Iterator[Prepared]:
    """Store the files that `paths` name, one after the other, and yield the notification of each.

    `dataset`, `source` and `data_type` win over what a manifest or the directories' names say. `to`:
    s3://bucket/prefix; without it objects go under {data_dir}/objects. Raises ConfigurationError for a path
    or target that can't be used, before anything is stored; TransientError where the store is unwell.
    """
    shelf = _shelf(settings, to)
    for path in paths:
        if not path.exists():
            raise ConfigurationError(f"{path}: there is no such file or directory")
    given = {"dataset": dataset, "source": source, "data_type": data_type}
    given = {name: value for name, value in given.items() if value}
    return _prepared(paths, given, environment, shelf, on_problem)


def _prepared(
    paths: Sequence[Path],
    given: dict[str, str],
    environment: str,
    shelf: _Shelf,
    on_problem: Callable[[str], None],
) -> Iterator[Prepared]:
    for path in paths:
        if (manifest := Manifest.find(path)) is not None:
            for row, file in members(manifest, on_problem):
                described = _described_row(row, given, environment)
                try:
                    yield _publish(described, file, shelf, row.sha256)
                except (BadDocument, OSError) as error:
                    on_problem(f"{row.file}: {error}")
            continue
        for file_path, urn in _walk(path):
            try:
                with file_path.open("rb") as file:
                    yield _publish(_described_file(file_path, path, urn, given, environment), file, shelf, None)
            except (BadDocument, OSError) as error:
                on_problem(f"{file_path}: {error}")


def _publish(description: Description, file: _Readable, shelf: _Shelf, sha256: str | None) -> Prepared:
    stored = shelf.store(description, file, sha256)
    identity = document_id(description.environment, description.dataset, description.urn)
    return Prepared(
        key=identity.encode(),
        value=notification(description, stored),
        urn=description.urn,
        document_id=identity,
        location=stored.location,
        size_bytes=stored.size_bytes,
    )


class Publisher:
    """Stores and describes single files, as `prepare` does, for a caller that chooses them itself."""

    def __init__(self, settings: Settings, to: str = "") -> None:
        """`to`: as for `prepare`. Raises ConfigurationError."""
        self._shelf = _shelf(settings, to)

    def publish(self, path: Path, description: Description) -> Prepared:
        """Copy the file to where files go. Raises OSError, BadDocument."""
        with path.open("rb") as file:
            return self.publish_file(file, description)

    def publish_file(self, file: _Readable, description: Description) -> Prepared:
        """The same of an open file, from where it stands."""
        return _publish(description, file, self._shelf, None)


def _walk(path: Path) -> Iterator[tuple[Path, str]]:
    """(file, urn) of a file, or of all under a directory, in order of name."""
    if not path.is_dir():
        yield path, path.name
        return
    for directory, directories, files in os.walk(path):
        directories[:] = sorted(name for name in directories if not name.startswith("."))
        for name in sorted(files):
            file = Path(directory) / name
            if not name.startswith(".") and file.is_file():  # no FIFOs, sockets, broken links
                yield file, file.relative_to(path).as_posix()


def _described_file(file: Path, path: Path, urn: str, given: dict[str, str], environment: str) -> Description:
    directory = file.resolve().parent
    top = path.resolve() if path.is_dir() else directory
    return Description(
        environment=environment,
        urn=urn,
        dataset=given.get("dataset") or _dataset_name(directory.name),
        source=given.get("source") or top.name or "files",
        data_type=given.get("data_type") or "other",
        collected_at=datetime.fromtimestamp(int(file.stat().st_mtime), UTC),
        content_type=mimetypes.guess_type(file.name)[0],
    )


def _described_row(row: Row, given: dict[str, str], environment: str) -> Description:
    described = {"dataset": row.dataset, "source": row.source, "data_type": row.data_type} | given
    return Description(
        environment=environment,
        urn=row.file,
        collected_at=row.publish_time,
        content_type=row.content_type,
        url=row.url,
        **described,
    )


def _dataset_name(name: str) -> str:
    """A directory's name as a dataset's: no colon, no blanks, not the reserved one."""
    safe = _UNSAFE.sub("_", name).strip("_") or "files"
    return f"{safe}_files" if safe == S3_DATASET else safe


# --- where files go ---------------------------------------------------------------------------


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _Shelf:
    """Stores files under {dataset}/{first 32 hex digits of the sha256}/{name} of wherever `keep` puts them.

    The content's hash in the path makes an object immutable and a second publication free; the name is kept
    because formats are told by it too. `drafts` is a local directory; `keep(draft, place, content_type)`
    takes a finished file there and returns its location.
    """

    def __init__(self, drafts: Path, keep: Callable[[Path, str, str | None], str]) -> None:
        drafts.mkdir(parents=True, exist_ok=True)
        self._drafts, self._keep = drafts, keep

    def store(self, description: Description, file: _Readable, sha256: str | None) -> Stored:
        """Copy `file` in. Raises OSError where it can't be read or is not what its manifest says."""
        handle, name = tempfile.mkstemp(dir=self._drafts, prefix=".draft-")
        draft = Path(name)
        try:
            size, digests = 0, (hashlib.md5(usedforsecurity=False), hashlib.sha256())
            with os.fdopen(handle, "wb") as out:
                while piece := file.read(_PIECE_BYTES):
                    size += len(piece)
                    out.write(piece)
                    for digest in digests:
                        digest.update(piece)
            md5, found = (digest.hexdigest() for digest in digests)
            if sha256 is not None and found != sha256:
                raise OSError(f"sha256 is {found}, the manifest says {sha256}")
            base = _UNSAFE.sub("_", description.urn.rsplit("/", 1)[-1])[-150:].lstrip(".") or "file"
            place = f"{_UNSAFE.sub('_', description.dataset)[:150].lstrip('.')}/{found[:32]}/{base}"
            return Stored(self._keep(draft, place, description.content_type), size, md5, found)
        finally:
            draft.unlink(missing_ok=True)


def _shelf(settings: Settings, to: str) -> _Shelf:
    if not to:
        root = settings.home / "objects"

        def keep_in_directory(draft: Path, place: str, _content_type: str | None) -> str:
            target = root / place
            target.parent.mkdir(parents=True, exist_ok=True)
            draft.chmod(0o644)
            draft.replace(target)
            return target.as_uri()

        return _Shelf(root, keep_in_directory)

    bucket, _, prefix = to.removeprefix("s3://").partition("/")
    try:
        parse_location(f"s3://{bucket}/{prefix or 'any'}")
        usable = to.startswith("s3://")
    except BadDocument:
        usable = False
    if not usable:
        raise ConfigurationError(f"{to!r}: the target of publish is s3://bucket/prefix")
    store = S3Store(settings)

    def keep_in_bucket(draft: Path, place: str, content_type: str | None) -> str:
        key = "/".join(filter(None, (prefix.strip("/"), place)))
        with draft.open("rb") as body:
            store.put(bucket, key, body, content_type)
        return f"s3://{bucket}/{key}"

    return _Shelf(settings.home / "tmp", keep_in_bucket)
