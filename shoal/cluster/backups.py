"""`shoal backup` and `shoal restore`: the collection in use, the API keys and the trail of changes, there and back.

A backup is made of a running Shoal or of a stopped one, and asks nothing of either. Not in it: the log and the objects
(they are the scrapers' and the brokers' to keep), and what is made anew by itself (status, measurements, caches).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from shoal.errors import ConfigurationError
from shoal.serve_apps.key_store import KEYS, keys_place
from shoal.serve_apps.trail import CHANGES, READS
from shoal.settings import Settings
from shoal.sources.kafka import connection
from shoal.sources.rewinding import Rewound, rewind
from shoal.store import backups
from shoal.store.place import current
from shoal.store.trail_files import TrailFiles
from shoal.store.versioned_files import VersionedFile

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Restored:
    """`manifest`: of the backup. `rewound`: what is read again."""

    manifest: dict[str, Any]
    rewound: list[Rewound]


def back_up(settings: Settings, to: str, say: Say) -> dict[str, Any]:
    """Copies to the place `to`, a directory or s3://bucket/prefix without tables; the manifest. Raises
    ConfigurationError, TransientError."""
    used = current(settings)
    place = backups.target(settings, to)
    source = backups.open_source(used)
    say(f"{source.size_bytes / 1e6:.1f} MB as of commit {source.facts['commit_sequence']}")
    backups.copy(source, place, say)
    _copy_keys(keys_place(settings), VersionedFile(place, KEYS))
    segments = _copy_trail(settings, place)
    return backups.finish(place, {**source.facts, "audit_segments": segments}, datetime.now(UTC))


def restore(settings: Settings, from_: str, say: Say, *, keep_offsets: bool = False) -> Restored:
    """Puts the backup at `from_` into `settings.tables_uri`, where no tables may be, and sets the readers' group back
    to it first (not with `keep_offsets`, nor the embedded broker, which has no such group). Raises as `back_up` does.
    """
    place = backups.target(settings, from_)
    source = backups.open_backup(place)
    say(f"{source.size_bytes / 1e6:.1f} MB of {source.facts['made_at']}, commit {source.facts['commit_sequence']}")
    backups.check_empty(settings)
    _copy_keys(VersionedFile(place, KEYS), keys_place(settings))
    rewound = [] if keep_offsets or settings.is_embedded else _rewound(settings, source, say)
    _copy_trail(place, settings)
    backups.copy(source, settings, say)
    return Restored(source.facts, rewound)


def _rewound(settings: Settings, source: backups.Source, say: Say) -> list[Rewound]:
    """Before the tables come: it fails where another Shoal is at work; and were the copy cut, what is read again from
    too early is unchanged in the old tables."""
    fence = source.held["metadata"].fence
    assert fence is not None  # else it were no source
    place = connection(settings)
    done = {(topic, number): offset for (cluster, topic, number), offset in fence.progress if cluster == place.cluster}
    return rewind(settings, place, (*settings.kafka_topics, settings.command_topic), done, say)


def _copy_keys(source: VersionedFile, goal: VersionedFile) -> None:
    data = source.read().data
    found = goal.read()
    if data is None or found.data == data:
        return
    if found.data is not None or not goal.replace(data, None):
        raise ConfigurationError(f"other keys are in {goal.place}: move that file away, or choose an empty place")


def _copy_trail(source: Settings, goal: Settings) -> int:
    """How many segments. Each has one owner in the source; nobody writes those names at the goal."""
    count = 0
    for kind in (CHANGES, READS):
        files, copies = TrailFiles(source, kind), TrailFiles(goal, kind)
        there = {(segment.day, segment.name) for segment in copies.segments()}
        for segment in files.segments():
            if (segment.day, segment.name) not in there:
                copies.append(segment, b"", files.read(segment))
                count += 1
    return count
