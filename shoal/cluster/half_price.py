"""`shoal backfill --half-price`: the texts first, through the provider's Batch API; then the documents, as ever.

Round by round, each of as many texts as half of the embedding cache holds: its objects are read and their texts laid
beside the tables as a job (`half_price_planning`), the embedder's half-price lane fills its cache from it within a day
or so, and the round's objects are announced like any backfill's, which find their vectors there. Whatever the job did
not bring is embedded then, at the full price. Memory is the backfill's own state file and the job itself, so the same
command goes on after a Ctrl-C or a kill wherever it was; the job goes on without it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from threading import Event
from typing import Any

from rich.text import Text

from shoal.actors.half_price import saved_usd
from shoal.cluster.backfilling import MARK, About, Found, Place, announce, mark_of, name_of, place_of
from shoal.cluster.half_price_planning import Plan, Planner
from shoal.cluster.living import living_status
from shoal.cluster.output import Exit, Format, cell, err, say
from shoal.cluster.replaying import show_tally
from shoal.cluster.sending import PacedSender, StateFile, Window, interruptible
from shoal.embeddings.batch_files import Limits, stored
from shoal.embeddings.batch_job import Job, State, summary
from shoal.embeddings.batch_provider import Entry, why_none
from shoal.embeddings.models import default_model_name, model_width
from shoal.embeddings.prices import Prices
from shoal.errors import ConfigurationError, TransientError
from shoal.settings import Settings
from shoal.store.half_price_shelf import HalfPriceShelf
from shoal.store.place import current
from shoal.store.writing import collection_model, storage_options

LOOK_S = 5.0
NOBODY_S = 120.0
"""Without a living Shoal for so long, the command ends: the job stays."""
ENTRY_BYTES = 160
"""What an entry of the cache takes beside its vector: key, seal, two indexes."""


@dataclass(frozen=True, slots=True)
class Round:
    """A job, and up to which name objects are announced when it has ended."""

    job: Job
    until: str
    is_last: bool


def texts_of_a_round(cache_bytes_max: int, width: int) -> int:
    """Half of what the cache holds: live documents and queries use it too, and what it drops would be paid twice."""
    return max(1, cache_bytes_max // (4 * width + ENTRY_BYTES) // 2)


def limits_of(settings: Settings, texts_max: int) -> Limits:
    """Of a part: it must fit the account's queue, and a round."""
    plain = Limits()
    return Limits(min(plain.texts, texts_max), min(plain.tokens, settings.openai_batch_queue_tokens), plain.text_bytes)


def backfill_at_half_price(
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
    """The `backfill --half-price` command: an exit code. Raises ConfigurationError, TransientError."""
    listed, arguments = place_of(place, about, settings)
    used = current(settings)
    kept_model = collection_model(used.tables_uri, storage_options(used))
    name = kept_model[0] if kept_model is not None else default_model_name(settings)
    if (why := why_none(settings, name)) is not None:
        raise ConfigurationError(why)
    living_status(settings)
    width = kept_model[1] if kept_model is not None else model_width(settings, name)
    file = StateFile(settings.home / "backfills", {**arguments, "half_price": True})
    run = _Run(settings, listed, file, name, width)
    kept = None if restart else file.load()
    if restart:
        run.forget_ended()
    window = Window(kept["marks"], kept["counts"]) if kept else Window()
    began, end, is_last = time.monotonic(), Exit.OK, False
    with interruptible() as asked:
        while end is Exit.OK and not is_last:
            after = name_of(window.marks.get(MARK, ""))
            this = run.under_way(after) or run.planned(after, asked)
            if this is None or not run.waited(this, asked):
                end = Exit.INTERRUPTED
                break
            is_last = this.is_last
            end = run.announced(this, window, asked, rate, in_flight_max, timeout_s)
            if end is Exit.OK:
                window.marks[MARK] = mark_of(this.until)  # also where what lay there last is gone meanwhile
                run.save(window)
                run.shelf.forget(this.job.id)
    if end is Exit.OK:
        file.forget()
    show_tally("announced", window, time.monotonic() - began, waited=True, finished=end is Exit.OK, form=form)
    if end is not Exit.OK:
        say(f"not finished: the same command goes on ({file.path}); a job under way goes on without it")
    return end


class _Unforgotten(StateFile):
    """A round's end is not the run's."""

    def __init__(self, file: StateFile) -> None:
        self.path = file.path

    def forget(self) -> None:
        pass


class _Run:
    """One command's way through its rounds."""

    def __init__(self, settings: Settings, listed: Place, file: StateFile, model: str, width: int) -> None:
        self._settings, self._listed, self._file, self._model, self._width = settings, listed, file, model, width
        self._prices = Prices.load(settings.prices)
        self._beginning = f"{file.path.stem}-"
        self.shelf = HalfPriceShelf(settings)

    def save(self, window: Window) -> None:
        self._file.save({"marks": window.marks, "counts": window.counts})

    def forget_ended(self) -> None:
        """Raises ConfigurationError where a job of this command is under way: its texts would be paid twice."""
        for name in self.shelf.jobs(self._beginning):
            state = State.of(self.shelf.state(name))
            if state is None or not state.is_ended:
                raise ConfigurationError(
                    f"half-price job {name} is under way: run the same command without --restart; it goes on with it"
                )
            self.shelf.forget(name)

    def under_way(self, after: str) -> Round | None:
        """The job of objects behind `after`, where an earlier run left one. What has ended and is announced is
        forgotten."""
        order, found = self._listed.order, list[Round]()
        for name in self.shelf.jobs(self._beginning):
            value = self.shelf.job(name)
            job = Job.of(value)
            if job is None or not isinstance(value, dict):
                continue
            this = Round(job, name_of(value.get("until", "")), bool(value.get("is_last")))
            if this.is_last or order(this.until) > order(after):
                found.append(this)
                continue
            state = State.of(self.shelf.state(name))
            if state is not None and state.is_ended:
                self.shelf.forget(name)
        first = min(found, key=lambda this: order(this.until), default=None)
        if first is not None:
            say(f"going on with half-price job {first.job.id}")
        return first

    def planned(self, after: str, asked: Event) -> Round | None:
        """A new job for the objects behind `after`; None where it was asked to stop."""
        self.shelf.sweep(self._beginning)
        texts_max = texts_of_a_round(self._settings.embedding_cache_bytes_max, self._width)
        number = f"{self._beginning}{time.time_ns()}"
        with err.status("reading") as status:

            def progress(plan: Plan) -> None:
                status.update(Text(f"{plan.objects} objects, {plan.texts} texts; at {cell(plan.until)}"))

            plan = asyncio.run(self._plan(after, number, texts_max, asked, progress))
        if plan is None:
            return None
        left = "; ".join(f"{count} {why}" for why, count in plan.left_out.items() if count)
        say(
            f"{plan.objects} objects: {plan.texts} texts, {plan.tokens} tokens for half the price"
            + (f"; {left}" * bool(left))
        )
        if not plan.is_last:
            say(
                f"more than the embedding cache holds beside its other use ({texts_max} texts): the rest follows in "
                "further rounds of up to a day each; a larger SHOAL_EMBEDDING_CACHE_BYTES_MAX makes fewer"
            )
        job = Job(number, self._model, self._width, plan.purpose, tuple(plan.parts), time.time())
        until = plan.until or after
        if plan.parts:
            more = {"until": mark_of(until), "is_last": plan.is_last}
            self.shelf.ask(number, {**job.stored(), **more})
        return Round(job, until, plan.is_last)

    async def _plan(self, after: str, job: str, texts_max: int, asked: Event, progress: Any) -> Plan | None:
        planner = Planner(self._settings, self._model, self._width)

        def write(number: int, entries: list[Entry]) -> None:
            self.shelf.write_part(job, number, stored(entries))

        limits = limits_of(self._settings, texts_max)
        try:
            return await planner.plan(self._listed.after(after), limits, texts_max, write, asked, progress)
        finally:
            await planner.close()

    def waited(self, this: Round, asked: Event) -> bool:
        """True once the round's job has ended; False where it was asked to stop before. Raises ConfigurationError
        where nothing of it will be done, TransientError where no Shoal is there to do it."""
        if not this.job.parts:
            return True
        seen_at = asked_at = time.monotonic()
        with err.status("waiting for the embedder to take the job") as status:
            while not asked.is_set():
                state = State.of(self.shelf.state(this.job.id))
                if state is not None:
                    status.update(Text(self._told(state)))
                if state is not None and state.refusal:
                    self.shelf.forget(this.job.id)
                    raise ConfigurationError(state.refusal)
                if state is not None and state.is_ended:
                    say(self._told(state))
                    return True
                if state is None and time.monotonic() - asked_at > NOBODY_S:
                    asked_at = float("inf")
                    say(
                        "the embedder has not taken the job: was Shoal started with the settings that this command has?"
                    )
                try:
                    living_status(self._settings)
                    seen_at = time.monotonic()
                except TransientError as error:
                    if time.monotonic() - seen_at > NOBODY_S:
                        raise TransientError(f"{error}: start it, and the same command goes on") from None
                asked.wait(LOOK_S)
        return False

    def _told(self, state: State) -> str:
        """A job's progress in a line."""
        found = summary(state)
        saved = saved_usd(self._prices, self._model, found.embedded_tokens)
        hours = (datetime.now(UTC).timestamp() - state.began_at) / 3600
        parts = [
            f"half price: {found.embedded_texts} of {found.texts} texts, {found.embedded_tokens} tokens",
            "" if saved is None else f"${saved:.4f} saved",
            f"{found.missing} texts left to the full price" if found.missing else "",
            f"parts: {_phases(found.phases)}",
            f"{hours:.1f} h",
            *map(cell, found.notes),
        ]
        return "; ".join(filter(None, parts))

    def announced(
        self, this: Round, window: Window, asked: Event, rate: float, in_flight_max: int, timeout_s: float
    ) -> Exit:
        """Announce the round's objects, and in the last round whatever came meanwhile."""

        def bounded() -> Iterator[Found]:
            last = self._listed.order(this.until)
            for each in self._listed.after(name_of(window.marks.get(MARK, ""))):
                if not this.is_last and self._listed.order(each.name) > last:
                    return
                yield each

        with err.status("announcing") as status:

            def progress(now: Window) -> None:
                status.update(Text(f"{now.counts['sent']} done, {now.unanswered} in flight"))

            sender = PacedSender(
                self._settings, window, listen=True, rate=rate, in_flight_max=in_flight_max, timeout_s=timeout_s,
                save=self.save, asked_to_stop=asked, progress=progress,
            )  # fmt: skip
            return sender.run(lambda: announce(sender, bounded(), self._settings), _Unforgotten(self._file))


def _phases(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {phase}" for phase, count in counts.items())
