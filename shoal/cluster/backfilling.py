"""`shoal backfill`: everything that lies at a place, announced, beside the live group and at a pace of its own.

An S3 prefix is listed page by page and announced where it lies; files of a directory under an allowed root too,
others are copied first, as `publish` does. One notification per object, keyed and named so that the same object
is the same document each time; its version is when it was last changed. Each says that it is a backfill (header
`shoal.lane`): what scrapers announce is embedded before it. Never more than `in_flight_max` are unanswered, so a
backfill of millions can't bury the live messages. Nothing is left out in silence: what is not announced is counted
under its reason.

A run remembers the last name below which everything has its outcome (`sending.StateFile`): the same command
goes on behind it after a kill or a Ctrl-C. Announcing an object twice is harmless: its bytes are the same.
"""

from __future__ import annotations

import mimetypes
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import orjson
from rich.text import Text

from shoal.cluster.output import Exit, Format, cell, err, say
from shoal.cluster.replaying import show_tally
from shoal.cluster.sending import PacedSender, StateFile, Window, interruptible
from shoal.errors import BadDocument, ConfigurationError
from shoal.records import Position
from shoal.settings import Settings
from shoal.sources.ids import document_id, parse_location
from shoal.sources.messages import LANE_HEADER, RawMessage, parse_message
from shoal.sources.publishing import Description, Publisher
from shoal.sources.s3 import ListedObject, S3Store
from shoal.sources.versions import compact

HEADERS = ((LANE_HEADER, b"backfill"),)
MARK = "after"
FOLDER = "folder markers"
HIDDEN = "hidden files"
IRREGULAR = "links, pipes and other irregular files"
UNREADABLE = "unreadable files"
REFUSED = "names that can't be announced"


@dataclass(frozen=True, slots=True)
class About:
    """What the objects are. `urn`: `path` (relative to the place) or `name` (the last part only)."""

    dataset: str
    source: str
    data_type: str
    environment: str = "prod"
    urn: str = "path"


@dataclass(frozen=True, slots=True)
class Found:
    """One name at the place, in order; `message` (key, value) or why it is not announced."""

    name: str
    message: tuple[bytes, bytes] | None
    why_not: str = ""


class Place(Protocol):
    """Something that can be listed in the order of names."""

    def after(self, name: str) -> Iterator[Found]:
        """Everything that comes after `name`. Raises TransientError, ConfigurationError."""

    def order(self, name: str) -> tuple[str, ...]:
        """What names are listed by."""


class Bucket:
    """s3://bucket/prefix."""

    def __init__(self, place: str, about: About, settings: Settings, store: S3Store | None = None) -> None:
        self._bucket, _, self._prefix = place.removeprefix("s3://").partition("/")
        try:
            parse_location(f"s3://{self._bucket}/{self._prefix or 'any'}")
        except BadDocument as error:
            raise ConfigurationError(f"{place}: {error.message}") from None
        if settings.allowed_buckets and self._bucket not in settings.allowed_buckets:
            raise ConfigurationError(f"{place}: the bucket is not among allowed_buckets")
        self._about, self._settings = about, settings
        self._store = store or S3Store(settings)

    def after(self, name: str) -> Iterator[Found]:
        for listed in self._store.objects(self._bucket, self._prefix, name):
            if listed.key.endswith("/") and not listed.size_bytes:
                yield Found(listed.key, None, FOLDER)
            else:
                yield checked(listed.key, self._announced(listed), self._settings)

    def order(self, name: str) -> tuple[str, ...]:
        return (name,)  # by code point, which is the order of UTF-8

    def _announced(self, listed: ListedObject) -> tuple[bytes, bytes]:
        # The prefix up to its last "/" is the place; what follows it belongs to the name.
        relative = listed.key[self._prefix.rfind("/") + 1 :]
        more = {"etag": listed.etag} if listed.etag else {}
        location = f"s3://{self._bucket}/{listed.key}"
        return notification(self._about, relative, location, listed.modified_at, listed.size_bytes, **more)


class Directory:
    """A directory of this machine, walked in order of name; links are not followed."""

    def __init__(self, place: str, about: About, settings: Settings) -> None:
        self._root = Path(place).resolve()
        if not self._root.is_dir():
            raise ConfigurationError(f"{place}: there is no such directory")
        self._about, self._settings = about, settings
        self._in_place = any(self._root.is_relative_to(root) for root in settings.file_roots)
        self._publisher = None if self._in_place else Publisher(settings)

    def after(self, name: str) -> Iterator[Found]:
        for path in walk(self._root):
            relative = path.relative_to(self._root).as_posix()
            if _order(relative) <= _order(name) and name:
                continue
            yield self._found(path, relative)

    def order(self, name: str) -> tuple[str, ...]:
        return _order(name)

    def _found(self, path: Path, relative: str) -> Found:
        if any(part.startswith(".") for part in relative.split("/")):
            return Found(relative, None, HIDDEN)
        try:
            if path.is_symlink() or not path.is_file():
                return Found(relative, None, IRREGULAR)
            about = path.stat()
            changed = datetime.fromtimestamp(int(about.st_mtime), UTC)
            if self._publisher is None:
                message = notification(self._about, relative, path.as_uri(), changed, about.st_size)
                return checked(relative, message, self._settings)
            urn = relative if self._about.urn == "path" else path.name
            described = Description(
                self._about.environment, self._about.dataset, urn, self._about.source, self._about.data_type, changed,
                mimetypes.guess_type(path.name)[0],
            )  # fmt: skip
            prepared = self._publisher.publish(path, described)
            return checked(relative, (prepared.key, prepared.value), self._settings)
        except (OSError, BadDocument):
            return Found(relative, None, UNREADABLE)
        except UnicodeEncodeError:
            return Found(relative, None, REFUSED)


def _order(relative: str) -> tuple[str, ...]:
    return tuple(relative.split("/"))


def walk(directory: Path) -> Iterator[Path]:
    """Everything under `directory` that is no directory, in the order of `_order`. Raises ConfigurationError where
    a directory can't be listed: its files would be left out in silence."""
    try:
        with os.scandir(directory) as entries:
            names = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)
    except OSError as error:
        raise ConfigurationError(f"{directory}: {error.strerror}") from error
    for name, is_directory in names:
        if is_directory:
            yield from walk(directory / name)
        else:
            yield directory / name


def notification(
    about: About, relative: str, location: str, changed: datetime, size_bytes: int, **more: str
) -> tuple[bytes, bytes]:
    """(key, value) of the message of contracts 1.1 for an object that is announced where it lies."""
    urn = relative if about.urn == "path" else relative.rsplit("/", 1)[-1]
    moment = changed.astimezone(UTC)
    metadata: dict[str, Any] = {
        "publish_dtm": moment.isoformat().replace("+00:00", "Z"),
        "source": about.source,
        "data_type": about.data_type,
        "original_file_size": size_bytes,
    }
    guessed = mimetypes.guess_type(urn)[0]
    if guessed:
        metadata["content_type"] = guessed
    value = {
        "dataset": about.dataset,
        "environment": about.environment,
        "urn": urn,
        "location": location,
        "version": compact(moment),
        "metadata": metadata,
        **more,
    }
    return document_id(about.environment, about.dataset, urn).encode(), orjson.dumps(value)


def checked(name: str, message: tuple[bytes, bytes], settings: Settings) -> Found:
    """What a reader would refuse is not announced, but counted."""
    raw = RawMessage(Position("", settings.kafka_topics[0], 0, 0, 0), *message)
    try:
        parse_message(raw, settings)
    except BadDocument:
        return Found(name, None, REFUSED)
    return Found(name, message)


def backfill(
    settings: Settings,
    place: str,
    about: About,
    *,
    rate: float,
    in_flight_max: int,
    timeout_s: float,
    restart: bool,
    form: Format,
) -> int:
    """The `backfill` command: an exit code."""
    listed, arguments = place_of(place, about, settings)
    began = time.monotonic()
    file = StateFile(settings.home / "backfills", arguments)
    kept = None if restart else file.load()
    window = Window(kept["marks"], kept["counts"]) if kept else Window()
    if kept:
        say(f"going on after {name_of(window.marks.get(MARK, 'the beginning'))!r} ({file.path}; --restart begins anew)")

    def save(now: Window) -> None:
        file.save({"marks": now.marks, "counts": now.counts})

    with interruptible() as asked, err.status("listing") as status:

        def progress(now: Window) -> None:
            # Names are what others made: neither markup nor anything that a terminal obeys.
            at = cell(name_of(now.marks.get(MARK, "")))
            status.update(Text(f"{now.counts['sent']} done, {now.unanswered} in flight; at {at}"))

        sender = PacedSender(
            settings, window, listen=True, rate=rate, in_flight_max=in_flight_max, timeout_s=timeout_s, save=save,
            asked_to_stop=asked, progress=progress,
        )  # fmt: skip

        def send() -> bool:
            return announce(sender, listed.after(name_of(window.marks.get(MARK, ""))), settings)

        end = sender.run(send, file)
    show_tally("announced", window, time.monotonic() - began, waited=True, finished=end is Exit.OK, form=form)
    if end is not Exit.OK:
        say(f"not finished: the same command goes on behind what is settled ({file.path})")
    return end


def place_of(place: str, about: About, settings: Settings) -> tuple[Place, dict[str, Any]]:
    """What is to be listed, and the arguments that name a run over it. Raises ConfigurationError."""
    refuse(about, settings)
    listed: Place = (Bucket if place.startswith("s3://") else Directory)(place, about, settings)
    where = place if place.startswith("s3://") else str(Path(place).resolve())
    return listed, {
        "place": mark_of(where), "dataset": about.dataset, "source": about.source, "data_type": about.data_type,
        "environment": about.environment, "urn": about.urn, "topic": settings.kafka_topics[0],
    }  # fmt: skip


def announce(sender: PacedSender, found: Iterator[Found], settings: Settings) -> bool:
    """Send what was found; False where it was asked to stop."""
    for each in found:
        mark = (MARK, mark_of(each.name))
        if each.message is None:
            if not sender.skip(each.why_not, mark):
                return False
            continue
        key, value = each.message
        if not sender.send(settings.kafka_topics[0], key, value, HEADERS, name=_shown(each.name), mark=mark):
            return False
    return True


def mark_of(name: str) -> str | dict[str, str]:
    """`name` as JSON can keep it: a file's name may be no UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return {"hex": os.fsencode(name).hex()}
    return name


def name_of(mark: str | dict[str, str]) -> str:
    """The name that `mark_of` kept."""
    return mark if isinstance(mark, str) else os.fsdecode(bytes.fromhex(mark["hex"]))


def _shown(name: str) -> str:
    return name.encode(errors="backslashreplace").decode()


def refuse(about: About, settings: Settings) -> None:
    """Raises ConfigurationError where no object could be announced so: told once, not counted a million times."""
    if about.urn not in ("path", "name"):
        raise ConfigurationError(f"--urn {about.urn}: choose path or name")
    key, value = notification(about, "any", "s3://any/any", datetime.now(UTC), 1)
    try:
        parse_message(RawMessage(Position("", settings.kafka_topics[0], 0, 0, 0), key, value), settings)
    except BadDocument as error:
        raise ConfigurationError(f"such an object can't be announced: {error.message}") from None
