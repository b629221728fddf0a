"""Snapshots: older states of a collection that cleanup spares, so that a search can ask for them (`as_of`).

A snapshot is a tag of one name on both tables, set on a whole state: the chunks are not ahead of their metadata.
The name carries the commit sequence and its time, so that listing tags is all that a reader needs. Lance's cleanup
spares tagged versions and the files they name (facts 4; a test holds it to that). Untagged versions stay for the
cleanup age, and any commit among them can be asked for; of older states, those that are tagged.

The tag on the chunks is set first; a name that only one table has counts for nothing and is removed in the next
round. Tags are not fenced, and need not be: what a zombie tags is a state that it read whole, which is true
whoever tags it; a name that exists is never set again; what it removes costs history, not data; and what it adds
falls under the heir's next round.

Pure but for `SnapshotKeeper`, which runs in the writer's thread between commits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, Literal

from shoal.errors import TransientError
from shoal.faults import reach
from shoal.settings import Settings
from shoal.store.tables import FencedTable, lance_errors

PREFIX = "shoal.asof."
DENSE = timedelta(days=1)
"""Snapshots younger than this are all kept, older ones one per `SPARSE`: a week then has some 250, each a small file
on either table that a reader lists."""
SPARSE = timedelta(hours=1)
OPENED_MAX = 8
"""Kept states opened in one round, of either table one version: after a start none is known, there may be some 250,
and commits wait meanwhile. One costs milliseconds on disk, some requests in S3."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

PairKind = Literal["metadata", "vectors"]
Files = Mapping[str, int]


@dataclass(frozen=True, slots=True, order=True)
class Snapshot:
    """A whole state: that of commit `sequence`, and the version of each table that holds it."""

    sequence: int
    committed_at: datetime
    metadata: int
    vectors: int

    @property
    def name(self) -> str:
        return tag_name(self.sequence, self.committed_at)


@dataclass(frozen=True, slots=True)
class Keeping:
    """The policy. What all snapshots hold beyond the current files stays within `factor` times the current bytes,
    or within `free_bytes` where that is more."""

    age: timedelta
    interval: timedelta
    factor: float
    free_bytes: int

    @classmethod
    def of(cls, settings: Settings) -> Keeping:
        # Between two snapshots no version may grow older than cleanup spares: else a state is lost for good.
        interval_s = min(settings.as_of_interval_s, settings.cleanup_age_s / 2)
        return cls(
            timedelta(days=settings.as_of_days),
            timedelta(seconds=interval_s),
            settings.as_of_disk_factor,
            settings.as_of_bytes_min,
        )

    def is_due(self, newest: Snapshot | None, sequence: int, now: datetime) -> bool:
        """Whether the state of `sequence` should be tagged."""
        if not self.age or sequence <= 0:
            return False
        return newest is None or (sequence > newest.sequence and now - newest.committed_at >= self.interval)

    def outlived(self, snapshots: Sequence[Snapshot], now: datetime) -> list[Snapshot]:
        """Those of `snapshots` (ascending) to drop by age. One was the state until its successor came, so it goes once
        that one is `age` old, and the newest never; of those older than `DENSE`, the last of each `SPARSE` stays."""
        if not self.age:
            return list(snapshots)
        return [
            one
            for one, successor in pairwise(snapshots)
            if successor.committed_at <= now - self.age
            or (
                successor.committed_at <= now - DENSE
                and (one.committed_at - _EPOCH) // SPARSE == (successor.committed_at - _EPOCH) // SPARSE
            )
        ]

    def beyond_bound(self, snapshots: Sequence[Snapshot], files: Mapping[int, Files], current: Files) -> list[Snapshot]:
        """The oldest of `snapshots` (ascending) that must go for the bound on disk. `files`: sequence -> what it
        names, with sizes in bytes, as far as that is known: it is told from the newest to the first that is not."""
        bound = max(self.free_bytes, self.factor * sum(current.values()))
        held: set[str] = set(current)
        extra = 0
        for kept, one in enumerate(reversed(snapshots)):
            if one.sequence not in files:
                break
            new = {path: size for path, size in files[one.sequence].items() if path not in held}
            extra += sum(new.values())
            if extra > bound:
                return list(snapshots[: len(snapshots) - kept])
            held |= new.keys()
        return []


def tag_name(sequence: int, committed_at: datetime) -> str:
    return f"{PREFIX}{sequence}.{(committed_at - _EPOCH) // _MICROSECOND}"


def paired(metadata: Mapping[str, int], vectors: Mapping[str, int]) -> list[Snapshot]:
    """The snapshots among the tags (name -> version) of both tables, oldest first."""
    found = []
    for name in metadata.keys() & vectors.keys():
        if name.startswith(PREFIX):
            sequence, _, at_us = name.removeprefix(PREFIX).partition(".")
            if sequence.isdecimal() and at_us.isdecimal():
                at = _EPOCH + int(at_us) * _MICROSECOND
                found.append(Snapshot(int(sequence), at, metadata[name], vectors[name]))
    return sorted(found)


class SnapshotKeeper:
    """Makes and drops the snapshots of a pair of tables. The caller has settled both tables on their latest versions,
    under its own epoch, and commits nothing meanwhile."""

    def __init__(self, metadata: FencedTable, vectors: FencedTable, keeping: Keeping) -> None:
        self._tables: dict[PairKind, FencedTable] = {"metadata": metadata, "vectors": vectors}
        self._keeping = keeping
        self._files: dict[tuple[PairKind, int], dict[str, int]] = {}  # by version: it never changes
        self._is_learning = False

    @property
    def interval(self) -> timedelta:
        return self._keeping.interval

    @property
    def is_learning(self) -> bool:
        """Whether kept states were left unopened in the last round: the next one is worth having soon."""
        return self._is_learning

    def keep(self, now: datetime) -> str | None:
        """One round: what is due is made, and what has outlived its time or is beyond the bound, as far as that is
        known, goes. Returns what was done. Raises TransientError."""
        self._is_learning = False
        metadata, vectors = self._tables["metadata"], self._tables["vectors"]
        fence = metadata.fence
        if vectors.fence.commit_sequence > fence.commit_sequence or fence.committed_at is None:
            return None  # half a commit, which the next batch mends; or nothing yet
        tags = {kind: _tags(table) for kind, table in self._tables.items()}
        snapshots = paired(tags["metadata"], tags["vectors"])
        names = {one.name for one in snapshots}
        done = []
        for kind, listed in tags.items():
            for name in listed.keys() - names:  # its other half was never set, or is gone
                self._untag(kind, name)
        if self._keeping.is_due(snapshots[-1] if snapshots else None, fence.commit_sequence, now):
            made = Snapshot(
                fence.commit_sequence, fence.committed_at, int(metadata.dataset.version), int(vectors.dataset.version)
            )
            self._tag("vectors", made.name, made.vectors)
            reach("writer.snapshotting")
            self._tag("metadata", made.name, made.metadata)
            snapshots.append(made)
            done.append(f"kept the state of commit {made.sequence}")
        dropped = self._keeping.outlived(snapshots, now)
        left = [one for one in snapshots if one not in dropped]
        dropped += self._keeping.beyond_bound(left, self._known(left), self._current())
        self.drop(dropped)
        self._forget([one for one in left if one not in dropped])
        if dropped:
            done.append(f"dropped {len(dropped)} older states")
        return ", ".join(done) or None

    def listed(self) -> list[Snapshot]:
        """Oldest first. Raises TransientError."""
        return paired(_tags(self._tables["metadata"]), _tags(self._tables["vectors"]))

    def drop(self, snapshots: Iterable[Snapshot]) -> None:
        """Untag them; their files go with the next cleanup. The metadata's tag first: half a snapshot is none."""
        for one in snapshots:
            self._untag("metadata", one.name)
            self._untag("vectors", one.name)

    def _current(self) -> Files:
        return {
            f"{kind}/{path}": size
            for kind, table in self._tables.items()
            for path, size in files_of(table.dataset, table.uri).items()
        }

    def _known(self, snapshots: Sequence[Snapshot]) -> dict[int, Files]:
        """Sequence -> files, of the newest; those that were not opened before up to a number."""
        found: dict[int, Files] = {}
        opened = 0
        for one in reversed(snapshots):
            is_new = ("metadata", one.metadata) not in self._files or ("vectors", one.vectors) not in self._files
            if is_new and opened == OPENED_MAX:
                self._is_learning = True
                break
            opened += is_new
            found[one.sequence] = self._held(one)
        return found

    def _held(self, snapshot: Snapshot) -> Files:
        held: dict[str, int] = {}
        for kind, table in self._tables.items():
            version = snapshot.metadata if kind == "metadata" else snapshot.vectors
            known = self._files.get((kind, version))
            if known is None:
                with lance_errors(f"opening version {version} of {table.uri}"):
                    dataset = table.dataset.checkout_version(version)
                known = self._files[kind, version] = files_of(dataset, table.uri)
            held |= {f"{kind}/{path}": size for path, size in known.items()}
        return held

    def _forget(self, kept: Sequence[Snapshot]) -> None:
        versions = {("metadata", one.metadata) for one in kept} | {("vectors", one.vectors) for one in kept}
        self._files = {key: files for key, files in self._files.items() if key in versions}

    def _tag(self, kind: PairKind, name: str, version: int) -> None:
        table = self._tables[kind]
        try:
            with lance_errors(f"tagging {table.uri}"):
                table.dataset.tags.create(name, version)
        except ValueError as error:
            if "already exists" not in str(error):  # by a writer before us, of the same commit
                raise TransientError(f"tagging {table.uri}: {error}") from error

    def _untag(self, kind: PairKind, name: str) -> None:
        table = self._tables[kind]
        try:
            with lance_errors(f"untagging {table.uri}"):
                table.dataset.tags.delete(name)
        except ValueError as error:
            if "not found" not in str(error):
                raise TransientError(f"untagging {table.uri}: {error}") from error


def _tags(table: FencedTable) -> dict[str, int]:
    """Our tags: name -> version."""
    try:
        with lance_errors(f"listing the tags of {table.uri}"):
            found: Mapping[str, Any] = table.dataset.tags.list()
    except ValueError as error:
        raise TransientError(f"listing the tags of {table.uri}: {error}") from error
    return {name: int(tag["version"]) for name, tag in found.items() if name.startswith(PREFIX)}


def files_of(dataset: Any, uri: str) -> dict[str, int]:
    """The data and index files that a version names, with sizes in bytes. Manifests and deletion files, some KB each,
    are left out."""
    with lance_errors(f"looking at the files of {uri}"):
        files = {
            f"data/{file.path}": int(file.file_size_bytes or 0)
            for fragment in dataset.get_fragments()
            for file in fragment.metadata.files
        }
        for index in dataset.describe_indices():
            files |= {f"_indices/{segment.uuid}": int(segment.size_bytes or 0) for segment in index.segments}
    return files
