"""What the tables must hold after a log, and how what they hold differs. Pure.

Written from contracts 1.1, 1.2, 1.5 and 1.6, not from Shoal's planner: messages are taken in log order, partition
by partition (whatever is about one document is in one partition). The removal of an object takes the versions that
lie there; what is older than one of them stays history, so that nothing old comes back. Only the chunks of a body
are asked of Shoal's own extraction: what a body says is not this campaign's subject.

A fact is a tuple whose first part is its kind. Missing: expected and not there. Extra: there and not expected.
Duplicate: there more than once.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from tests.chaos.messages import Delete, Logged, Put

Fact = tuple[object, ...]
Chunks = Callable[[Put], Sequence[str]]
"""The texts of a document's chunks."""


@dataclass(slots=True)
class Expected:
    """Everything that must be there, and nothing else may be. `dead`: (topic, partition, offset) -> reason."""

    facts: set[Fact] = field(default_factory=set)
    dead: dict[tuple[str, int, int], str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Difference:
    missing: tuple[Fact, ...]
    extra: tuple[Fact, ...]
    duplicate: tuple[Fact, ...]
    dead_letters_wrong: tuple[str, ...]

    @property
    def is_none(self) -> bool:
        return not (self.missing or self.extra or self.duplicate or self.dead_letters_wrong)

    def lines(self, most: int = 40) -> list[str]:
        found = []
        for name in ("missing", "extra", "duplicate", "dead_letters_wrong"):
            facts = getattr(self, name)
            found += [f"{name}: {fact}" for fact in facts[:most]]
            if len(facts) > most:
                found.append(f"{name}: and {len(facts) - most} more")
        return found


@dataclass(slots=True)
class _Version:
    put: Put
    timestamp_ms: int
    offset: int
    removed_at: int | None = None  # offset of the removal of its object: no row is left, but it still outranks

    @property
    def rank(self) -> tuple[bool, str, int, int]:
        return (not self.put.row_only, self.put.version, self.timestamp_ms, self.offset)


def expected(log: Iterable[Logged], chunks: Chunks) -> Expected:
    """Of a whole log, in any order of its partitions."""
    result = Expected()
    documents: dict[str, dict[str, _Version]] = {}
    groups: dict[tuple[str, ...], set[str]] = {}
    for entry in sorted(log, key=lambda entry: (entry.message.topic, entry.partition, entry.offset)):
        message = entry.message
        if message.reason is not None:
            result.dead[message.topic, entry.partition, entry.offset] = message.reason
        if message.failed_command is not None:
            result.facts.add(("job", message.failed_command, "failed"))
        for effect in message.effects:
            if isinstance(effect, Put):
                versions = documents.setdefault(effect.document_id, {})
                arriving = _Version(effect, entry.timestamp_ms, entry.offset)
                known = versions.get(effect.version)
                if known is None or known.removed_at is not None or arriving.rank > known.rank:
                    versions[effect.version] = arriving
            elif isinstance(effect, Delete):
                _delete(documents, effect, entry.offset)
            else:
                groups.setdefault(effect.group, set()).add(effect.command_id)
                result.facts.add(("job", effect.command_id, "done"))
    for versions in documents.values():
        _documents(result.facts, versions, chunks)
    for group, ids in groups.items():
        result.facts.add(("fix", *group, len(ids), len(ids)))
    return result


def _delete(documents: dict[str, dict[str, _Version]], effect: Delete, offset: int) -> None:
    if effect.document_id is not None:
        documents.pop(effect.document_id, None)
        return
    for versions in documents.values():
        for version in versions.values():
            if version.put.location == effect.location and version.removed_at is None:  # else it was gone already
                version.removed_at = offset


def _current(versions: dict[str, _Version]) -> _Version | None:
    removed = [(version.rank, version.removed_at) for version in versions.values() if version.removed_at is not None]
    live = (
        version
        for version in versions.values()
        if version.removed_at is None and not any(version.rank < rank and version.offset < at for rank, at in removed)
    )
    return max(live, key=lambda version: version.rank, default=None)


def _documents(facts: set[Fact], versions: dict[str, _Version], chunks: Chunks) -> None:
    current = _current(versions)
    for version in versions.values():
        put = version.put
        if version.removed_at is not None:
            continue
        if version is not current:
            facts.add(row_fact(put.document_id, put.version, put.sha256, "history"))
        elif put.row_only:
            facts.add(row_fact(put.document_id, put.version, put.sha256, "error", 0))
        else:
            texts = chunks(put)
            facts.add(row_fact(put.document_id, put.version, put.sha256, "indexed", len(texts)))
            for at, text in enumerate(texts):
                facts.add(chunk_fact(f"{put.document_id}#{at}", put.document_id, put.version, put.sha256, text))


def row_fact(document_id: str, version: str, sha256: str, *state: object) -> Fact:
    return ("row", document_id, _plain(version), sha256, *state)


def chunk_fact(chunk_id: str, document_id: str, version: str, sha256: str, text: str) -> Fact:
    return ("chunk", chunk_id, document_id, _plain(version), sha256, hashlib.sha256(text.encode()).hexdigest()[:16])


def _plain(version: str) -> str:
    """An S3 event's version by its sequencer: how its time is spelled is Shoal's own business."""
    return version.rpartition("~")[2]


def difference(wanted: Expected, found: Iterable[Fact], dead: Iterable[tuple[tuple[str, int, int], str]]) -> Difference:
    """`found`: the facts of the tables, as often as they are there; `dead`: what the dead letters name, and why."""
    counts = Counter(found)
    wrong, seen = [], set()
    for place, reason in sorted(dead):
        if place not in wanted.dead:
            wrong.append(f"{place} is dead ({reason}) and should not be")
        elif reason != wanted.dead[place]:
            wrong.append(f"{place} is dead for {reason}, not for {wanted.dead[place]}")
        seen.add(place)
    wrong += [f"{place} should be dead ({reason})" for place, reason in wanted.dead.items() if place not in seen]
    return Difference(
        missing=tuple(sorted(wanted.facts - counts.keys(), key=str)),
        extra=tuple(sorted(counts.keys() - wanted.facts, key=str)),
        duplicate=tuple(sorted((fact for fact, count in counts.items() if count > 1), key=str)),
        dead_letters_wrong=tuple(wrong),
    )


def story(found: Difference, log: Iterable[Logged], most: int = 10) -> list[str]:
    """Every message about the first documents that differ, in log order: what a failure is understood by."""
    facts = [*found.missing, *found.extra, *found.duplicate]
    ids = list(dict.fromkeys(str(fact[2] if fact[0] == "chunk" else fact[1]) for fact in facts))[:most]
    entries = sorted(log, key=lambda entry: (entry.partition, entry.offset))
    lines = []
    for document_id in ids:
        locations = {
            effect.location
            for entry in entries
            for effect in entry.message.effects
            if isinstance(effect, Put) and effect.document_id == document_id
        }
        for entry in entries:
            for effect in entry.message.effects:
                at = f"{entry.partition}@{entry.offset} {entry.timestamp_ms} {entry.message.kind} {entry.serial}"
                if isinstance(effect, Put) and effect.document_id == document_id:
                    lines.append(f"{document_id}: {at} put {effect.version} {effect.sha256[:8]} {effect.location}")
                elif isinstance(effect, Delete) and (effect.document_id == document_id or effect.location in locations):
                    lines.append(f"{document_id}: {at} delete {effect.document_id or effect.location}")
    return lines
