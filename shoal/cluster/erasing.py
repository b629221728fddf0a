"""`shoal erase`: delete documents through the log, then prove where they no longer are, and say where they still are.

The deletion is a tombstone per document, so it has the log's order and durability; this process writes no table. The
proof is a look into every version of the tables there is, not a promise. What Shoal can't reach (Kafka's own
retention, the stored files, backups, other machines' caches) is named in the answer and not passed over.

Once a deletion is applied the tables no longer tell what it was of. So that the same command can go on after a timeout
or a kill, and can prove, the run's subject is a small file in the data directory (ids, places, and hashes of texts)
from before anything is sent until a run finds nothing left in any version.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from shoal.cluster.output import Exit, Format, emit_json, emit_pairs, err, say
from shoal.cluster.sending import StateFile
from shoal.embeddings.cache import EmbeddingCache, cache_key
from shoal.errors import ConfigurationError
from shoal.records import SCRAPER_COLLECTION
from shoal.settings import Settings
from shoal.sources.dead_letter_log import open_dead_letters
from shoal.sources.dead_letters import DEAD_LETTER_SUFFIX
from shoal.sources.kafka import open_producer
from shoal.store.erasure import documents_of, stand_of, target_of
from shoal.store.place import current, has_another
from shoal.store.purging import HOLD, Request, gone_by, holding, is_purged, request_purge
from shoal.store.scrubbing import gone_by as scrubbed_by
from shoal.store.writing import storage_options

POLL_S = 0.5
FLUSH_S = 30.0
DOCUMENTS_MAX = 100_000  # of one run: their ids and texts are held in memory
SENT_A_FLUSH = 1_000


@dataclass(frozen=True, slots=True)
class Subject:
    """What a run erases, earlier runs of the same command included. `keys`: of the texts' vectors in the cache, hex;
    `request`: the rewrite that was asked for, as (id, commit)."""

    ids: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    objects: tuple[str, ...] = ()
    width: int = 0
    request: tuple[str, int] | None = None


def _recalled(file: StateFile) -> Subject:
    """What earlier runs of the same command were about. Raises ConfigurationError."""
    found = file.load() or {}
    try:
        ids, keys, objects = (tuple(map(str, found.get(name, ()))) for name in ("ids", "keys", "objects"))
        request = (str(found["request"][0]), int(found["request"][1])) if found.get("request") else None
        [bytes.fromhex(key) for key in keys]
        return Subject(ids, keys, objects, int(found.get("width", 0)), request)
    except (TypeError, ValueError, IndexError, KeyError) as error:
        raise ConfigurationError(f"{file.path} can't be read ({error}): remove it to start over") from None


def _joined(*parts: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(each for part in parts for each in part))


def erase(
    settings: Settings,
    ids: Sequence[str],
    *,
    dataset: str,
    before: datetime | None,
    now: bool,
    timeout_s: float,
    confirm: Callable[[str], bool],
    form: Format,
    pause: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """The command: an exit code. FAILED: something is still there that should not be; TIMEOUT: not yet known."""
    if bool(ids) == bool(dataset):
        raise ConfigurationError("erase what? Name documents by id, or --dataset D (with --before T), not both")
    if before is not None and not dataset:
        raise ConfigurationError("--before belongs to --dataset")
    if has_another(settings):
        raise ConfigurationError(
            "the collection has a second generation of tables, with another model, which would hold the documents "
            "still: remove it first (`shoal migrate-model scraper --drop`, or --cancel while it is being built)"
        )
    settings = current(settings)
    file = StateFile(settings.home / "erasures", {"ids": sorted(set(ids)), "dataset": dataset, "before": before})
    earlier = _recalled(file)
    target = target_of(settings, _joined(earlier.ids, ids or documents_of(settings, dataset, before)))
    if not target.ids:
        say(
            f"no document of {dataset}: nothing to erase. What was deleted before is looked at by id: shoal erase ID..."
        )
        return Exit.OK
    if len(target.ids) > DOCUMENTS_MAX:
        raise ConfigurationError(f"{len(target.ids)} documents are too many for one run: use --before for parts")
    if target.known < len(target.ids):
        say(f"{len(target.ids) - target.known} of {len(target.ids)} ids have no rows now; older versions are looked at")
    if not confirm(f"Erase {len(target.ids)} documents for good ({', '.join(target.ids[:3])}, ...)?"):
        say("nothing was erased")
        return Exit.FAILED
    keys = [cache_key(target.model, target.width, "document", text).hex() for text in target.texts]
    subject = Subject(
        target.ids, _joined(earlier.keys, keys), _joined(earlier.objects, target.objects), target.width, earlier.request
    )
    file.save(asdict(subject))
    deadline = clock() + timeout_s
    _send(settings, subject.ids)
    first = _forget(settings, subject)
    if (sequence := _applied(settings, subject.ids, deadline, pause, clock)) is None:
        say(
            f"the deletions are in the log and not all applied after {timeout_s:g} s: is Shoal running (see `shoal "
            "status`)? Run the same command again; it is safe to repeat"
        )
        return Exit.TIMEOUT
    # Again: what was on its way into the tables when the first look was taken was embedded after it.
    cached = _forget(settings, subject)
    cached["forgotten"] += first["forgotten"]
    purged = None
    if now:
        # The one that was asked for goes on where it still covers every deletion: another begins anew.
        request = Request(*subject.request) if subject.request and not target.known else None
        if request is None or not is_purged(settings, request):
            if request is None:
                request = Request(uuid.uuid4().hex, sequence)
                subject = replace(subject, request=(request.id, request.sequence))
                file.save(asdict(subject))
            request_purge(settings, request)
        asked = request
        purged = _waited(lambda: is_purged(settings, asked), deadline, pause, clock)
    proof = _proof(settings, subject, cached, purged=purged)
    if form is Format.json:
        emit_json(proof)
    else:
        emit_pairs({name: value for name, value in proof.items() if name != "not_erased"})
        for line in proof["not_erased"]:
            say(f"not erased: {line}")
    if purged is False:
        say(f"the rewrite was asked for and not finished after {timeout_s:g} s; the writer goes on with it")
        return Exit.TIMEOUT
    is_gone = proof["rows"] == proof["chunks"] == cached["left"] == 0 and (not now or proof["older_versions"] == 0)
    if is_gone and proof["older_versions"] == 0:
        file.forget()  # there is nothing left that a later run could find
    return Exit.OK if is_gone else Exit.FAILED


def _send(settings: Settings, ids: Sequence[str]) -> None:
    """A tombstone for each document, durable when this returns. Sent again it changes nothing."""
    producer = open_producer(settings)
    for start in range(0, len(ids), SENT_A_FLUSH):
        for id_ in ids[start : start + SENT_A_FLUSH]:
            producer.send(settings.kafka_topics[0], id_.encode(), None)
        producer.flush(FLUSH_S)


def _applied(
    settings: Settings, ids: Sequence[str], deadline: float, pause: Callable[[float], None], clock: Callable[[], float]
) -> int | None:
    """The commit by which all are deleted, and remembered as deleted; None where that did not come in time."""
    sequence: list[int] = []

    def done() -> bool:
        stand = stand_of(settings, ids)
        sequence[:] = [stand.sequence]
        return stand.rows == 0 and stand.remembered == len(ids)

    with err.status("waiting for the deletions to be applied"):
        return sequence[0] if _waited(done, deadline, pause, clock) else None


def _waited(
    done: Callable[[], bool], deadline: float, pause: Callable[[float], None], clock: Callable[[], float]
) -> bool:
    while not done():
        if clock() >= deadline:
            return False
        pause(POLL_S)
    return True


def _forget(settings: Settings, subject: Subject) -> dict[str, int]:
    """The vectors of the documents' texts, out of this machine's cache."""
    path = settings.home / "cache" / "embeddings.sqlite"
    keys = [bytes.fromhex(key) for key in subject.keys]
    if not path.exists():
        return {"texts": len(keys), "forgotten": 0, "left": 0}
    cache = EmbeddingCache(path, settings.embedding_cache_bytes_max)
    try:
        forgotten = cache.forget_many(keys)
        left = len(cache.get_many(keys, subject.width))
    finally:
        cache.close()
    return {"texts": len(keys), "forgotten": forgotten, "left": left}


def _dead_letters(settings: Settings, ids: Sequence[str]) -> int:
    """Dead letters about the documents: their messages as they came."""
    wanted = set(ids)
    with open_dead_letters(settings) as log, err.status("reading dead letters"):
        return sum(_is_about(letter.raw.key, letter.raw.value, wanted) for letter in log.letters())


def _is_about(key: bytes | None, value: bytes | None, ids: set[str]) -> bool:
    if (key or b"").decode(errors="replace") in ids:
        return True
    try:
        body = json.loads(value or b"")
        found = f"{body.get('environment') or 'prod'}:{body['dataset']}:{body['urn']}"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False
    return found in ids


def _proof(settings: Settings, subject: Subject, cached: dict[str, int], *, purged: bool | None) -> dict[str, Any]:
    with err.status("looking into every version of the tables"):
        held = holding(settings, storage_options(settings), SCRAPER_COLLECTION, subject.ids)
    letters = _dead_letters(settings, subject.ids)
    at = datetime.now(UTC)
    by = at if held.versions == 0 else at + HOLD + timedelta(minutes=2) if purged is False else gone_by(settings, at)
    files_by = by if purged is not None else scrubbed_by(settings, at)
    rest = [
        f"the {len(subject.objects)} stored files themselves: Shoal reads objects and deletes none",
        f"messages in {', '.join(settings.kafka_topics)} (names, places and what the scraper said): until Kafka's "
        "retention of these topics takes them",
        f"their ids, in {held.remembered} tombstones, so that a redelivery does not bring them back: for "
        f"{settings.log_retention_days:g} days (log_retention_days)",
        "in embedding caches (vectors under hashes, no texts): what other machines embedded, texts of older versions "
        "and API descriptions; they go by use, or with the file cache/embeddings.sqlite",
        "backups of any of these",
    ]
    if letters:
        topics = ", ".join(f"{topic}{DEAD_LETTER_SUFFIX}" for topic in settings.kafka_topics)
        rest.insert(2, f"{letters} dead letters about them: until Kafka's retention of {topics} takes them")
    if purged is None:
        until = f"until {files_by:%Y-%m-%d %H:%M}" if files_by else "until a compaction takes these (scrub_days is 0)"
        bytes_left = "bytes of deleted rows in files of the tables, which no query finds"
        rest.insert(0, f"{bytes_left}: {until}; `--now` rewrites them at once")
    return {
        "documents": len(subject.ids),
        "looked_at": at.isoformat(),
        **{name: value for name, value in asdict(held).items() if name not in ("versions", "kept")},
        "older_versions": held.versions,
        "kept_states": list(held.kept),
        "embedding_cache": cached,
        "dead_letters": letters,
        "rewritten": bool(purged),
        "gone_from_older_versions_by": by.isoformat(),
        "gone_from_files_by": files_by.isoformat() if files_by else None,
        "not_erased": rest,
    }
