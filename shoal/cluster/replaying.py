"""`shoal replay`: messages of the log once more, beside the live group and at a pace of their own.

The log is the only road into a table, so a replay goes down that road: a bounded, group-less read of the chosen
stretch, and a copy of every message to the same topic. A copy is not a newer announcement: it carries the
position of its original (`messages.REPLAY_HEADER`), by which it is ordered. So whatever is replayed, in whatever
order, however often: no old version replaces a newer one, nothing deleted comes back, and no old deletion hits
what was announced after it. A copy of what is whole writes the same rows again; of what is lost or damaged, it
mends it. The headers of waiting publishers and of dead letters are left out: a copy has its own.

A run remembers what is settled (`sending.StateFile`): the same command goes on after a kill or a Ctrl-C.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from shoal.cluster.output import Exit, Format, emit_json, emit_pairs, emit_rows, err, say
from shoal.cluster.sending import PacedSender, StateFile, Window, interruptible
from shoal.errors import BadDocument, ConfigurationError
from shoal.records import Announcement, Deletion, Outcome, Work
from shoal.settings import Settings
from shoal.sources.dead_letters import OWN_HEADERS
from shoal.sources.kafka import connection
from shoal.sources.log_reader import LogReader, Partition, Stretch
from shoal.sources.messages import OUTCOME_HEADER, REPLAY_HEADER, RawMessage, origin_of, origin_text, parse_message

_PLACE = re.compile(r"([a-zA-Z0-9._-]{1,249})/(\d{1,9}):(\d{1,18})(?:-(\d{1,18}))?", re.ASCII)

OTHER_TIME = "of another time"
OTHER_DATASET = "of another dataset"
NOTHING_ASKED = "asking for nothing"
COPY = "copies whose original is in the log"


@dataclass(frozen=True, slots=True)
class Choice:
    """Which messages are meant; all conditions hold. `places`: TOPIC/PARTITION:OFFSET, or :FIRST-LAST."""

    places: tuple[str, ...] = ()
    from_time: datetime | None = None
    until: datetime | None = None
    dataset: str = ""
    topics: tuple[str, ...] = ()
    said: tuple[str, ...] = ()  # the times as they were written: an age names the same run later

    @property
    def is_empty(self) -> bool:
        return not (self.places or self.from_time or self.dataset)


@dataclass(slots=True)
class Judged:
    """What is to be done with one message: `why_not`, or how many outcomes it will have."""

    why_not: str | None = None
    answers: int = 1


def stretches_of(choice: Choice, reader: LogReader, settings: Settings) -> list[Stretch]:
    """The stretches of the log that `choice` may be in, up to their ends as of now. Raises ConfigurationError."""
    if not choice.places:
        found = reader.whole(choice.topics or settings.kafka_topics)
        return reader.since(found, _ms(choice.from_time)) if choice.from_time else found
    chosen: dict[Partition, Stretch] = {}
    for text in choice.places:
        match = _PLACE.fullmatch(text)
        if match is None:
            raise ConfigurationError(f"--from-offset {text}: write TOPIC/PARTITION:OFFSET, or :FIRST-LAST")
        topic, number, first, last = match[1], int(match[2]), int(match[3]), match[4]
        if topic not in (*settings.kafka_topics, settings.command_topic):
            raise ConfigurationError(f"--from-offset {text}: {topic} is not among kafka_topics")
        whole = {each.key: each for each in reader.whole([topic])}.get((topic, number))
        if whole is None:
            raise ConfigurationError(f"--from-offset {text}: {topic} has no partition {number}")
        if not whole.start <= first <= whole.end:
            raise ConfigurationError(f"--from-offset {text}: the log holds {whole.start} to {whole.end - 1} there")
        end = whole.end if last is None else min(whole.end, int(last) + 1)
        if whole.key in chosen:  # one stretch a partition: from the first of them to the last
            first, end = min(first, chosen[whole.key].start), max(end, chosen[whole.key].end)
        chosen[whole.key] = replace(whole, start=first, end=end)
    return list(chosen.values())


def _ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


@dataclass(slots=True)
class Chooser:
    """Decides message by message. `starts`: where each partition of the log begins."""

    choice: Choice
    settings: Settings
    cluster: str
    starts: Mapping[Partition, int]
    seen: Counter[str] = field(default_factory=Counter)

    def judge(self, raw: RawMessage) -> Judged:
        """What to do with `raw`."""
        at = raw.position
        if self.choice.from_time and at.timestamp_ms < _ms(self.choice.from_time):
            return Judged(OTHER_TIME)
        if self.choice.until and at.timestamp_ms >= _ms(self.choice.until):
            return Judged(OTHER_TIME)
        try:
            works = parse_message(raw, self.settings)
            origin = origin_of(raw)
        except BadDocument:
            return Judged(OTHER_DATASET) if self.choice.dataset else Judged()
        if origin is not None and origin.cluster == self.cluster:
            start = self.starts.get((origin.topic, origin.partition))
            if start is not None and origin.offset >= start:
                return Judged(COPY)
        if not works:
            return Judged(NOTHING_ASKED)
        if self.choice.dataset and not any(_is_of(work, self.choice.dataset) for work in works):
            return Judged(OTHER_DATASET)
        return Judged(answers=len(works))


def _is_of(work: Work, dataset: str) -> bool:
    if isinstance(work, Announcement):
        return work.dataset == dataset
    return isinstance(work, Deletion) and (work.document_id or "").split(":", 2)[1:2] == [dataset]


def copy_headers(raw: RawMessage) -> list[tuple[str, bytes | None]]:
    """The headers of the copy of `raw`: its own, and where the original stood."""
    kept = [
        (name, value)
        for name, value in raw.headers
        if name not in (OUTCOME_HEADER, REPLAY_HEADER) and not name.startswith(OWN_HEADERS)
    ]
    origin = origin_text(origin_of(raw) or raw.position)
    return [*kept, (REPLAY_HEADER, origin.encode())]


def replay(
    settings: Settings,
    choice: Choice,
    *,
    dry_run: bool,
    wait: bool,
    rate: float,
    in_flight_max: int,
    timeout_s: float,
    restart: bool,
    form: Format,
) -> int:
    """The `replay` command: an exit code."""
    if choice.is_empty:
        raise ConfigurationError("say what to replay: --from-offset TOPIC/PARTITION:OFFSET, --from-time or --dataset")
    began = time.monotonic()
    where = connection(settings)
    file = StateFile(settings.home / "replays", {"cluster": where.cluster, "choice": _plain(choice)})
    with LogReader(settings, where) as reader:
        kept = None if restart or dry_run else file.load()
        if kept is None:
            stretches = stretches_of(choice, reader, settings)
            window = Window()
        else:
            stretches = [Stretch(*each) for each in kept["stretches"]]
            window = Window(kept["marks"], kept["counts"])
            from_time, until = (datetime.fromisoformat(each) if each else None for each in kept["times"])
            choice = replace(choice, from_time=from_time, until=until)
            say(f"going on with an interrupted replay ({file.path}; --restart begins anew)")
        starts = {each.key: each.start for each in reader.whole(dict.fromkeys(each.topic for each in stretches))}
        chooser = Chooser(choice, settings, where.cluster, starts)
        left = [replace(each, start=max(each.start, window.marks.get(_name(each.key), 0))) for each in stretches]
        if dry_run:
            return _count(reader, left, chooser, form)

        def save(now: Window) -> None:
            state = [[each.topic, each.partition, each.start, each.end] for each in stretches]
            times = [each.isoformat() if each else None for each in (choice.from_time, choice.until)]
            file.save({"stretches": state, "times": times, "marks": now.marks, "counts": now.counts})

        total = sum(each.end - each.start for each in left)
        with interruptible() as asked, err.status("replaying") as status:

            def progress(now: Window) -> None:
                status.update(f"{now.counts['sent']} replayed, {now.unanswered} unanswered; {total} to read")

            sender = PacedSender(
                settings, window, listen=wait, rate=rate, in_flight_max=in_flight_max, timeout_s=timeout_s, save=save,
                asked_to_stop=asked, progress=progress,
            )  # fmt: skip
            end = sender.run(lambda: _send(sender, reader, left, chooser), file)
    show_tally("replayed", window, time.monotonic() - began, waited=wait, finished=end is Exit.OK, form=form)
    if end is not Exit.OK:
        say(f"not finished: the same command goes on behind what is settled ({file.path})")
    return end


def _send(sender: PacedSender, reader: LogReader, stretches: Sequence[Stretch], chooser: Chooser) -> bool:
    for raw in reader.read(stretches):
        at = raw.position
        mark = (_name((at.topic, at.partition)), at.offset + 1)
        judged = chooser.judge(raw)
        if judged.why_not is not None:
            if not sender.skip(judged.why_not, mark):
                return False
            continue
        name = f"{at.topic}/{at.partition}:{at.offset}"
        if not sender.send(
            at.topic, raw.key, raw.value, copy_headers(raw), name=name, mark=mark, answers=judged.answers
        ):
            return False
    return True


def _count(reader: LogReader, stretches: Sequence[Stretch], chooser: Chooser, form: Format) -> int:
    counts: Counter[str] = Counter({"to replay": 0})
    for raw in reader.read(stretches):
        counts[chooser.judge(raw).why_not or "to replay"] += 1
    if form is Format.json:
        emit_json(counts)
    else:
        emit_pairs(counts)
    return Exit.OK


def _name(key: Partition) -> str:
    return f"{key[0]}/{key[1]}"


def _plain(choice: Choice) -> dict[str, Any]:
    return {
        "places": sorted(choice.places), "times": choice.said or [choice.from_time, choice.until],
        "dataset": choice.dataset, "topics": sorted(choice.topics),
    }  # fmt: skip


def show_tally(verb: str, window: Window, took_s: float, *, waited: bool, finished: bool, form: Format) -> None:
    """What became of a run, over all its interruptions. Everything looked at is in one of the counts."""
    outcomes = {outcome.value: window.counts[outcome] for outcome in Outcome}
    passed = {name: count for name, count in window.counts.items() if name != "sent" and name not in outcomes}
    tally: dict[str, Any] = {verb: window.counts["sent"], "not " + verb: sum(passed.values()), **passed}
    if form is Format.json:
        dead = [dict(zip(("message", "reason", "detail"), each, strict=True)) for each in window.dead]
        emit_json(
            tally
            | ({"outcomes": outcomes, "dead_letters": dead} if waited else {})
            | {"finished": finished, "took_s": round(took_s, 2)}
        )
        return
    emit_pairs(tally | ({name.replace("_", " "): count for name, count in outcomes.items()} if waited else {}))
    if window.dead:
        emit_rows(
            [{"dead letter": name, "reason": reason, "message": text} for name, reason, text in window.dead],
            ("dead letter", "reason", "message"),
        )
