"""A half-price job: its parts, how each moves, and what to say of it. Pure: `now` is Unix time, an argument.

    waiting -> uploaded -> creating -> submitted -> reading -> done
       ^                                   |           (failed from anywhere: its texts are left to the ordinary lane)
       +--------- the queue was full ------+

Each arrow is one write of the job's state. `creating` is written *before* the provider is asked to create the batch, so
whoever finds it there knows that a batch may exist, and looks for it by its tag before it makes another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from shoal.embeddings.batch_provider import Batch
from shoal.embeddings.purposes import Purpose

Phase = Literal["waiting", "uploaded", "creating", "submitted", "reading", "done", "failed"]
PHASES: tuple[Phase, ...] = ("waiting", "uploaded", "creating", "submitted", "reading", "done", "failed")
ENDED = ("done", "failed")
WITH_OUTPUT = ("completed", "expired", "cancelled")
"""States of a batch that is at its end, with as much as was answered."""
FULL_CODES = ("token_limit_exceeded", "billing_hard_limit_reached", "insufficient_quota", "rate_limit_exceeded")
"""Why a batch fails before any of it was worked on, and need not the next time."""
QUEUE_RETRY_S = 600.0
"""After a full queue: somebody else's batches are in it, for hours as a rule."""
OVERDUE_S = 30 * 3600.0
"""A batch is promised for 24 hours; this long after, nobody waits for it any more."""


@dataclass(frozen=True, slots=True)
class Part:
    """One request file. `sent_…`: what of it the cache lacked when it was uploaded; `read_lines`: of its output, whose
    vectors are kept. `note`: why it is as it is, where that needs a word."""

    texts: int
    tokens: int
    phase: Phase = "waiting"
    since: float = 0.0
    not_before: float = 0.0
    attempt: int = 0
    file_id: str = ""
    batch_id: str = ""
    status: str = ""
    output_id: str = ""
    error_id: str = ""
    sent_texts: int = 0
    sent_tokens: int = 0
    read_lines: int = 0
    embedded_texts: int = 0
    embedded_tokens: int = 0
    wrong: int = 0
    note: str = ""

    @property
    def is_ended(self) -> bool:
        return self.phase in ENDED

    @property
    def missing(self) -> int:
        """Texts that it ended without a vector for: they cost the full price when their documents flow."""
        if self.phase == "failed":
            return (self.sent_texts or self.texts) - self.embedded_texts
        return self.sent_texts - self.embedded_texts if self.phase == "done" else 0

    def moved(self, phase: Phase, now: float, **changes: Any) -> Part:
        """In another phase."""
        return replace(self, phase=phase, since=now, **changes)

    def answered(self, batch: Batch, now: float) -> Part:
        """What the provider's word on its batch makes of it."""
        if batch.status in WITH_OUTPUT:
            note = "" if batch.status == "completed" else f"its batch was {batch.status}"
            return self.moved(
                "reading", now, status=batch.status, output_id=batch.output_id, error_id=batch.error_id, note=note
            )
        if batch.status == "failed":
            note = f"{batch.code}: {batch.message}".strip(": ")[:300] or "its batch failed without a word"
            if batch.code in FULL_CODES:
                return Part(
                    self.texts,
                    self.tokens,
                    since=now,
                    not_before=now + QUEUE_RETRY_S,
                    attempt=self.attempt + 1,
                    note=note,
                )
            return self.moved("failed", now, status=batch.status, note=note)
        if now > self.since + OVERDUE_S:
            return self.moved("failed", now, note=f"its batch is {batch.status} after {OVERDUE_S / 3600:.0f} hours")
        return replace(self, status=batch.status)


@dataclass(frozen=True, slots=True)
class Job:
    """What a command asked for. `asked_at`: Unix time; no batch of it is older."""

    id: str
    model: str
    width: int
    purpose: Purpose
    parts: tuple[tuple[int, int], ...]  # texts and tokens of each
    asked_at: float

    def stored(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, value: Any) -> Job | None:
        """What `stored` made; None where it is something else."""
        try:
            parts = tuple((int(texts), int(tokens)) for texts, tokens in value["parts"])
            purpose, asked_at = Purpose(**value["purpose"]), float(value["asked_at"])
            return cls(str(value["id"]), str(value["model"]), int(value["width"]), purpose, parts, asked_at)
        except (TypeError, ValueError, KeyError):
            return None


@dataclass(frozen=True, slots=True)
class State:
    """How a job is. `owner`: whose life of the embedder moves it; `refusal`: why none of it will be done."""

    id: str
    owner: str
    began_at: float
    parts: tuple[Part, ...]
    at: float = 0.0
    note: str = ""
    refusal: str = ""

    @classmethod
    def begun(cls, job: Job, owner: str, now: float) -> State:
        return cls(job.id, owner, now, tuple(Part(texts, tokens) for texts, tokens in job.parts), now)

    @classmethod
    def of(cls, value: Any) -> State | None:
        """What `stored` made; None where it is something else."""
        try:
            known = {field.name for field in fields(Part)}
            parts = tuple(Part(**{name: row[name] for name in row if name in known}) for row in value["parts"])
            if any(part.phase not in PHASES for part in parts):
                return None
            return cls(
                str(value["id"]), str(value["owner"]), float(value["began_at"]), parts, float(value["at"]),
                str(value["note"]), str(value["refusal"]),
            )  # fmt: skip
        except (TypeError, ValueError, KeyError):
            return None

    def stored(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def is_ended(self) -> bool:
        return bool(self.refusal) or all(part.is_ended for part in self.parts)

    @property
    def queued_tokens(self) -> int:
        """In batches that the provider has not ended, or may have been asked for."""
        return sum(part.sent_tokens for part in self.parts if part.phase in ("uploaded", "creating", "submitted"))

    def with_part(self, number: int, part: Part) -> State:
        return replace(self, parts=(*self.parts[:number], part, *self.parts[number + 1 :]))


@dataclass(frozen=True, slots=True)
class Summary:
    """A job in figures, for people. `embedded_…`: at half price; `missing`: texts left to the full price."""

    texts: int
    tokens: int
    embedded_texts: int
    embedded_tokens: int
    missing: int
    parts: int
    phases: Mapping[str, int]
    notes: tuple[str, ...]


def summary(state: State) -> Summary:
    """Notes are those of the parts, each once, at most five."""
    phases: dict[str, int] = {}
    for part in state.parts:
        phases[part.phase] = phases.get(part.phase, 0) + 1
    notes = dict.fromkeys(note for note in (state.refusal, state.note, *(part.note for part in state.parts)) if note)
    return Summary(
        sum(part.texts for part in state.parts),
        sum(part.tokens for part in state.parts),
        sum(part.embedded_texts for part in state.parts),
        sum(part.embedded_tokens for part in state.parts),
        sum(part.missing for part in state.parts),
        len(state.parts),
        {phase: phases[phase] for phase in PHASES if phase in phases},
        tuple(notes)[:5],
    )


def tag_of(job: str, number: int, attempt: int) -> dict[str, str]:
    """What a batch carries so that it is found again; the same for the same attempt, for ever."""
    return {"shoal_job": job, "shoal_part": str(number), "shoal_attempt": str(attempt)}
