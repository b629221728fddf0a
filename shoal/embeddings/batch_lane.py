"""The half-price lane: takes jobs from beside the tables through the provider's Batch API into the embedding cache.

Guarantee: whatever is killed and whenever, a text of a part is in one batch at a time, and a part gets a second batch
only where the first failed before any of it was worked on. So what a batch answers is paid for once. Each step is
stored before the next begins (`batch_job` has the order); the provider is asked for a batch of the same tag before one
is created. A vector enters the cache after the checks of a live answer, under the key of its own text. What a batch did
not answer, answered wrongly, or what a job is given up with, is left: its documents pay the full price when they flow.
Fails softly: a provider, store or disk that is unwell holds a job back, and its state says why.

Blocking; `run` is for a thread of its own, `turn` is one round of it and the whole of it for tests. It must be the only
lane over a job; a second one (two embedders for a moment) takes the job over by name, and the first lets go of it at
its next step that could cost money.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from shoal.embeddings.batch_files import entries_of, output_bytes_max, read_line
from shoal.embeddings.batch_job import Job, Part, State, summary, tag_of
from shoal.embeddings.batch_provider import Batch, BatchProvider, EndpointRefused, Entry, NoBatchApi
from shoal.embeddings.cache import EmbeddingCache, cache_key
from shoal.embeddings.purposes import Charge, Purpose
from shoal.errors import ConfigurationError, ShoalError, TransientError
from shoal.records import Vector

log = logging.getLogger("shoal.batches")

LOOK_S = 10.0
"""Between two looks for new jobs: one listing of small files."""
GROUP = 500
"""Vectors between two writes of the state: what a kill costs in work, and the most that the ledger may miss of it."""


class Shelf(Protocol):
    """Where jobs lie: JSON values, read and written whole. Raises TransientError."""

    def jobs(self) -> Sequence[str]:
        """Ids, oldest first."""

    def job(self, job: str) -> Any | None:
        """What the command asked for."""

    def state(self, job: str) -> Any | None:
        """How it is; the lane's own."""

    def save(self, job: str, state: Any) -> None: ...

    def part(self, job: str, number: int) -> Any | None:
        """The texts of a part."""

    def drop_part(self, job: str, number: int) -> None: ...


class _Lost(Exception):
    """Another lane moves this job now."""


class BatchLane:
    """One per embedder."""

    def __init__(
        self,
        provider: BatchProvider,
        width: int,
        cache: EmbeddingCache,
        shelf: Shelf,
        scratch: Path,
        *,
        charge: Callable[[Sequence[Charge]], None],
        may_spend: Callable[[Purpose, int], ShoalError | None] | None,
        queue_tokens: int,
        give_up_s: float,
        poll_s: float,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`scratch`: a directory for the files of one step. `queue_tokens`: that may be in unfinished batches;
        `give_up_s`: after which a job begins no further batch; `poll_s`: between two questions about a batch. `now`:
        Unix time."""
        self._provider, self._width, self._cache, self._shelf = provider, width, cache, shelf
        self._scratch = scratch
        self._charge, self._may_spend = charge, may_spend
        self._queue_tokens, self._give_up_s, self._poll_s, self._now = queue_tokens, give_up_s, poll_s, now
        self._owner = uuid4().hex
        self._jobs: dict[str, Job] = {}
        self._states: dict[str, State] = {}
        self._lost: set[str] = set()
        self._looked_at: dict[tuple[str, int], float] = {}
        self._closing = threading.Event()

    def run(self) -> None:
        """Turns until `close`. Never raises."""
        while not self._closing.is_set():
            try:
                wait_s = self.turn()
            except ShoalError as error:
                log.warning("half-price jobs can't be looked at: %s", error)
                wait_s = LOOK_S
            except Exception:
                log.exception("the half-price lane stumbled")
                wait_s = LOOK_S
            self._closing.wait(wait_s)
        self._provider.close()

    def close(self) -> None:
        """The turn under way is the last."""
        self._closing.set()

    def states(self) -> list[State]:
        """Of every job that lies there."""
        return list(self._states.values())

    def turn(self) -> float:
        """Move each job as far as it goes now; seconds until the next turn. Raises TransientError where the shelf
        can't be read."""
        names = self._shelf.jobs()
        for gone in self._jobs.keys() - set(names):
            del self._jobs[gone]
            self._states.pop(gone, None)
        for name in names:
            if self._closing.is_set():
                break
            if name not in self._lost:
                self._move(name)
        has_work = any(not state.is_ended for state in self._states.values())
        return min(LOOK_S, self._poll_s) if has_work else LOOK_S

    # --- a job --------------------------------------------------------------------------------

    def _move(self, name: str) -> None:
        try:
            note, refusal = self._moved(name)
            state = self._states.get(name)
            if state is None:
                if note:
                    log.warning("half-price job %s: %s", name, note)
            elif (note, refusal) != (state.note, state.refusal):
                if note or refusal:
                    log.warning("half-price job %s: %s", name, note or refusal)
                self._save(replace(state, note=note, refusal=refusal))
        except _Lost:
            log.warning("half-price job %s is moved by another embedder now", name)
            self._lost.add(name)
            self._jobs.pop(name, None)
            self._states.pop(name, None)
        except TransientError as error:
            log.warning("half-price job %s: %s", name, error)

    def _moved(self, name: str) -> tuple[str, str]:
        """What holds the job back, and why none of it will be done; both empty where it goes on."""
        note = refusal = ""
        try:
            if name not in self._jobs and not self._taken(name):
                return "", ""
            refusal = self._states[name].refusal
            if not self._states[name].is_ended:
                self._advance(self._jobs[name])
        except NoBatchApi as error:
            refusal = str(error)
        except (TransientError, ConfigurationError) as error:
            note = str(error)
        except OSError as error:
            note = f"{self._scratch}: {error.strerror or error}"
        return note, refusal

    def _taken(self, name: str) -> bool:
        """Whether there is a job to move, which is this lane's from now on."""
        job = Job.of(self._shelf.job(name))
        if job is None or job.id != name:
            log.warning("half-price job %s can't be read: it is left alone", name)
            self._lost.add(name)
            return False
        state = State.of(self._shelf.state(name))
        if state is None or len(state.parts) != len(job.parts):
            state = State.begun(job, self._owner, self._now())
        refusal = state.refusal
        if (job.model, job.width) != (self._provider.name, self._width):
            refusal = (
                f"it is for {job.model}, {job.width} wide; the collection has {self._provider.name}, {self._width}"
            )
        if not state.is_ended:
            self._save(replace(state, owner=self._owner, refusal=refusal), takes_over=True)
        else:
            self._states[name] = state
        self._jobs[name] = job  # last: a job that could not be taken is tried again
        return True

    def _save(self, state: State, *, takes_over: bool = False) -> None:
        """Raises _Lost where another lane has taken the job over: what it does is not undone by a late step of ours."""
        stored = None if takes_over else State.of(self._shelf.state(state.id))
        if stored is not None and stored.owner != self._owner:
            raise _Lost
        state = replace(state, at=self._now())
        self._shelf.save(state.id, state.stored())
        self._states[state.id] = state

    def _store(self, job: Job, number: int, part: Part) -> Part:
        self._save(self._states[job.id].with_part(number, part))
        if part.is_ended:
            log.info("half-price job %s: part %d of %d is %s", job.id, number + 1, len(job.parts), part.phase)
            self._shelf.drop_part(job.id, number)
        return part

    def _advance(self, job: Job) -> None:
        failure: TransientError | ConfigurationError | None = None
        for number in range(len(job.parts)):
            if self._closing.is_set():
                return
            try:
                while not (part := self._states[job.id].parts[number]).is_ended:
                    if not self._stepped(job, number, part):
                        break
            except EndpointRefused as refused:
                part = self._states[job.id].parts[number]
                self._store(job, number, part.moved("failed", self._now(), note=str(refused)[:300]))
            except NoBatchApi:
                raise
            except (TransientError, ConfigurationError) as error:  # the other parts are looked after all the same
                failure = error
        if failure is not None:
            raise failure

    # --- a part -------------------------------------------------------------------------------

    def _stepped(self, job: Job, number: int, part: Part) -> bool:
        """One step, stored; False where there is none to be made now."""
        match part.phase:
            case "waiting":
                return self._upload(job, number, part)
            case "uploaded" | "creating":
                return self._create(job, number, part)
            case "submitted":
                return self._poll(job, number, part)
            case _:
                return self._read(job, number, part)

    def _is_given_up(self, job: Job) -> bool:
        return self._now() > self._states[job.id].began_at + self._give_up_s

    def _give_up(self, job: Job, number: int, part: Part) -> None:
        hours = self._give_up_s / 3600
        why = f"given up after {hours:g} hours" + (f" ({part.note})" if part.note else "")
        self._store(job, number, part.moved("failed", self._now(), note=why[:300]))

    def _upload(self, job: Job, number: int, part: Part) -> bool:
        now = self._now()
        if self._is_given_up(job):
            self._give_up(job, number, part)
            return True
        if now < part.not_before:
            return False
        queued = sum(state.queued_tokens for state in self._states.values())
        if queued and queued + part.tokens > self._queue_tokens:
            return False
        entries = self._lacking(job, number)
        if entries is None:
            self._store(job, number, part.moved("failed", now, note="its texts are gone"))
            return True
        tokens = sum(entry.tokens for entry in entries.values())
        if not entries:
            self._store(job, number, part.moved("done", now, note="the cache had all of it"))
            return True
        if self._may_spend is not None and (refusal := self._may_spend(job.purpose, queued + tokens)) is not None:
            raise refusal
        path = self._scratch / f"{job.id}-{number}.jsonl"
        self._scratch.mkdir(parents=True, exist_ok=True)
        try:
            with path.open("wb") as file:
                file.writelines(self._provider.line(custom_id, entry) for custom_id, entry in entries.items())
            file_id = self._provider.upload(path)
        finally:
            path.unlink(missing_ok=True)
        self._store(
            job, number,
            part.moved("uploaded", self._now(), file_id=file_id, sent_texts=len(entries), sent_tokens=tokens, note=""),
        )  # fmt: skip
        return True

    def _create(self, job: Job, number: int, part: Part) -> bool:
        """Whoever comes here may come after a life that created the batch and could not say so: it is looked for by its
        tag, after a while in which the provider's list may have learned of it."""
        if part.phase == "creating" and self._now() < part.since + self._poll_s:
            return False
        tag = tag_of(job.id, number, part.attempt)
        batch = self._provider.find(tag, job.asked_at)
        if batch is None:
            if self._is_given_up(job):
                self._give_up(job, number, part)
                return True
            part = self._store(job, number, part.moved("creating", self._now()))
            batch = self._provider.create(part.file_id, tag)
        self._looked_at.pop((job.id, number), None)
        self._store(job, number, part.moved("submitted", self._now(), batch_id=batch.id, status=batch.status))
        return True

    def _poll(self, job: Job, number: int, part: Part) -> bool:
        now = self._now()
        if now < self._looked_at.get((job.id, number), float("-inf")) + self._poll_s:
            return False
        self._looked_at[job.id, number] = now
        batch: Batch = self._provider.look(part.batch_id)
        after = part.answered(batch, now)
        if after != part:
            self._store(job, number, after)
        if after.phase == "waiting":  # its file has served; the next attempt has one of its own
            self._provider.delete([part.file_id])
        return after.phase != part.phase

    def _read(self, job: Job, number: int, part: Part) -> bool:
        wanted = self._named(job, number)
        if wanted is None:
            self._store(job, number, part.moved("failed", self._now(), note="its texts are gone"))
            return True
        files = (part.file_id, part.output_id, part.error_id)
        for raw_lines in self._downloaded(part.output_id, part.sent_texts):
            part = self._taken_in(job, number, part, wanted, raw_lines)
        note = part.note
        for raw_lines in self._downloaded(part.error_id, part.sent_texts):
            first = next((line.error for line in map(read_line, raw_lines) if line.error), "")
            note = "; ".join(filter(None, (note, first)))[:300]
        self._store(job, number, part.moved("done", self._now(), note=note))
        self._provider.delete(files)
        return True

    def _downloaded(self, file_id: str, texts: int) -> Iterator[Iterator[bytes]]:
        """The lines of a file, where there is one."""
        if not file_id:
            return
        self._scratch.mkdir(parents=True, exist_ok=True)
        path = self._scratch / "download.jsonl"
        try:
            self._provider.download(file_id, path, output_bytes_max(texts, self._width))
            with path.open("rb") as file:
                yield (line for line in file if line.strip())
        finally:
            path.unlink(missing_ok=True)

    def _taken_in(
        self, job: Job, number: int, part: Part, wanted: Mapping[str, Entry], raw_lines: Iterator[bytes]
    ) -> Part:
        """Every good vector into the cache, group by group; the part as it is then."""
        read, wrong, note = 0, part.wrong, part.note
        seen: set[str] = set()
        good: dict[str, Vector] = {}
        skipped = part.read_lines
        for raw in raw_lines:
            read += 1
            line = read_line(raw)
            is_first = line.custom_id in wanted and line.custom_id not in seen
            seen.add(line.custom_id)
            if read <= skipped:  # taken in by a life before this one
                continue
            try:
                if not is_first:
                    raise ValueError("an answer that nobody asked for, or a second one")
                if line.body is None:
                    raise ValueError(line.error)
                good[line.custom_id] = self._provider.read(line.body, wanted[line.custom_id])
            except (ValueError, ConfigurationError) as error:
                wrong += 1
                note = note or str(error)[:300]
            if len(good) >= GROUP:
                part = self._kept(job, number, replace(part, read_lines=read, wrong=wrong, note=note), wanted, good)
                good = {}
        return self._kept(job, number, replace(part, read_lines=read, wrong=wrong, note=note), wanted, good)

    def _kept(self, job: Job, number: int, part: Part, wanted: Mapping[str, Entry], good: Mapping[str, Vector]) -> Part:
        """Cache, state, ledger: in this order a kill loses no vector, and books none twice."""
        if good:
            vectors = {bytes.fromhex(custom_id): vector for custom_id, vector in good.items()}
            self._cache.put_many(vectors)
            if len(self._cache.get_many(list(vectors), self._width)) < len(vectors):
                raise TransientError("the embedding cache does not keep what was paid for: is its disk full?")
        tokens = sum(wanted[custom_id].tokens for custom_id in good)
        part = replace(
            part, embedded_texts=part.embedded_texts + len(good), embedded_tokens=part.embedded_tokens + tokens
        )
        part = self._store(job, number, part)
        if good:
            self._charge([
                Charge(self._provider.name, job.purpose, len(good), len(good), tokens, is_batch=True)
            ])  # fmt: skip
        return part

    def _named(self, job: Job, number: int) -> dict[str, Entry] | None:
        """The texts of a part by the name of their request: the key of their vector, in hex: 64 characters, as many
        as a name may have."""
        entries = entries_of(self._shelf.part(job.id, number))
        if entries is None:
            return None
        return {cache_key(job.model, job.width, each.kind, each.text).hex(): each for each in entries}

    def _lacking(self, job: Job, number: int) -> dict[str, Entry] | None:
        """Those of them that the cache lacks."""
        named = self._named(job, number)
        if named is None:
            return None
        known = self._cache.get_many([bytes.fromhex(name) for name in named], self._width)
        return {name: entry for name, entry in named.items() if bytes.fromhex(name) not in known}


def notes_of(states: Sequence[State]) -> tuple[str, ...]:
    """What is to be said of unfinished jobs, each once."""
    return tuple(dict.fromkeys(note for state in states if not state.is_ended for note in summary(state).notes))[:3]
