"""`shoal dlq` on the journal of the embedded broker, which needs no service; the test plays the reader."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from shoal.cluster.cli import app
from shoal.errors import ConfigurationError, DeadReason, PermanentError
from shoal.records import Failure, Outcome, Position
from shoal.redaction import printable
from shoal.settings import Settings, load
from shoal.sources import dead_letter_replaying
from shoal.sources.dead_letter_choice import Choice, Selection, choose, moment, value_of
from shoal.sources.dead_letter_log import open_dead_letters
from shoal.sources.dead_letter_record import DeadLetter
from shoal.sources.dead_letter_replaying import Replayer
from shoal.sources.dead_letter_state import settled
from shoal.sources.dead_letters import VALUE_BYTES_MAX, dead_letter
from shoal.sources.journal import Journal, JournalProducer
from shoal.sources.kafka import journal_path
from shoal.sources.messages import RawMessage

TOPIC = "scraper-notifications"
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load(data_dir=tmp_path)


@pytest.fixture
def journal(settings: Settings) -> Iterator[Journal]:
    with closing(Journal(journal_path(settings))) as journal:
        yield journal


@pytest.fixture
def die(journal: Journal) -> Callable[..., None]:
    """Makes a message a dead letter, as the reader does."""

    def bury(
        body: Any = b"{}", *, key: bytes | None = b"k", reason: DeadReason = DeadReason.EMPTY, why: str = "why",
        at: datetime | None = None, count: int = 0, headers: tuple[tuple[str, bytes | None], ...] = (),
    ) -> None:  # fmt: skip
        value = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        raw = RawMessage(Position("c", TOPIC, 1, 5, 1_737_383_400_000), key, value, headers)
        producer = JournalProducer(journal)
        producer.send(*dead_letter(raw, Failure(reason, why, "fetch"), at or datetime.now(UTC), count))
        producer.flush(1.0)

    return bury


@pytest.fixture
def dlq(settings: Settings) -> Callable[..., tuple[int, Any, str]]:
    """Runs `shoal dlq ... -o json`: exit code, what it printed, what it said."""

    def run(*arguments: str) -> tuple[int, Any, str]:
        done = CliRunner().invoke(app, ["dlq", *arguments, "-o", "json", "--data-dir", str(settings.home)])
        if isinstance(done.exception, ConfigurationError):  # main() makes the exit code of it
            return 2, None, str(done.exception)
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code, json.loads(done.stdout) if done.stdout else None, done.stderr

    return run


def letters(settings: Settings) -> list[DeadLetter]:
    with open_dead_letters(settings) as log:
        return list(log.letters())


def sent(journal: Journal, topic: str = TOPIC) -> list[RawMessage]:
    end = journal.last_seq() + 1
    return [
        RawMessage(Position("c", topic, 0, entry.seq, entry.created_ms), entry.key, entry.value, entry.headers)
        for entry in journal.entries_between(topic, 0, end)
    ]


def settle(journal: Journal, outcome: Outcome) -> None:
    """The reader is done with the last replay."""
    record = settled(sent(journal)[-1], outcome, datetime.now(UTC))
    assert record is not None
    producer = JournalProducer(journal)
    producer.send(*record)
    producer.flush(1.0)


def ids(listed: Any) -> list[str]:
    return [row["id"] for row in listed["dead_letters"]]


# --- choosing ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("", None),
        ("2h", NOW - timedelta(hours=2)),
        ("3d", NOW - timedelta(days=3)),
        ("90 s", NOW - timedelta(seconds=90)),
        ("2026-02-01", datetime(2026, 2, 1, tzinfo=UTC)),
        ("2026-02-01T10:00", datetime(2026, 2, 1, 10, tzinfo=UTC)),
        ("2026-02-01T10:00:00.5+02:00", datetime(2026, 2, 1, 8, 0, 0, 500_000, tzinfo=UTC)),
    ],
)
def test_times_are_rfc_3339_or_ages(text, at):
    assert moment(text, NOW) == at


@pytest.mark.parametrize(
    "text",
    [
        "yesterday", "2", "h", "-2h", "2026-13-01", "2026-02-30", "20260201", "2h ago", "999999w",
        "0001-01-01T00:00+14:00",
    ],
)  # fmt: skip
def test_what_is_no_time_is_refused_with_how_to_write_one(text):
    with pytest.raises(ConfigurationError, match="2025-01-20T14:30:00Z"):
        moment(text, NOW)


def test_filters_hold_together_and_since_is_inclusive_and_until_is_not(settings, die, dlq):
    for hour, reason in ((1, DeadReason.EMPTY), (2, DeadReason.NOT_JSON), (3, DeadReason.EMPTY)):
        die({"dataset": f"d{hour}"}, reason=reason, at=datetime(2026, 2, 1, hour, tzinfo=UTC))
    first, second, third = (letter.id for letter in letters(settings))
    for arguments, expected in (
        ((), [third, second, first]),
        (("--reason", "empty"), [third, first]),
        (("--reason", "empty", "--reason", "not_json", "--limit", "2"), [third, second]),
        (("--since", "2026-02-01T02:00Z"), [third, second]),
        (("--until", "2026-02-01T02:00Z"), [first]),
        (("--reason", "empty", "--since", "2026-02-01T02:00Z"), [third]),
        (("--dataset", "d2"), [second]),
        (("--topic", TOPIC), [third, second, first]),
        (("--topic", f"{TOPIC}_dlq", "--dataset", "d1"), [first]),
        (("--topic", "shoal_commands"), []),
    ):
        code, listed, _ = dlq("list", *arguments)
        assert (code, ids(listed)) == (0, expected), arguments


def test_what_others_wrote_is_listed_and_chosen_as_none(journal, dlq):
    producer = JournalProducer(journal)
    producer.send(f"{TOPIC}_dlq", None, b"\xff\x00", [("shoal.dlq.failed_at", b"\xff"), ("x", None)])
    producer.flush(1.0)
    code, listed, _ = dlq("list", "--reason", "none")
    (row,) = listed["dead_letters"]
    assert (code, row["reason"], row["key"], row["offset"], row["value_bytes"]) == (0, "none", None, None, 2)
    assert dlq("show", row["id"])[1]["value"] == "0xff00"


def test_a_summary_counts_by_topic_reason_and_state(die, dlq):
    for hour, reason in enumerate((DeadReason.EMPTY, DeadReason.NOT_JSON, DeadReason.EMPTY)):
        die(reason=reason, at=datetime(2026, 2, 1, hour, tzinfo=UTC))
    dlq("purge", "--reason", "not_json", "--yes")
    empty = {"topic": TOPIC, "reason": "empty", "state": "open", "count": 2, "oldest": "2026-02-01T00:00:00.000Z",
             "newest": "2026-02-01T02:00:00.000Z"}  # fmt: skip
    assert dlq("list", "--by-reason")[1] == [empty]
    assert [row["state"] for row in dlq("list", "--by-reason", "--all")[1]] == ["open", "purged"]


def test_the_summary_counts_all_whatever_the_limit(die, dlq):
    for _ in range(5):
        die()
    assert [row["count"] for row in dlq("list", "--by-reason", "--limit", "2")[1]] == [5]
    assert dlq("list", "--limit", "2")[1]["matching"] == 5


@pytest.mark.parametrize("command", ["replay", "purge"])
def test_nothing_is_done_to_all_of_them_by_mistake(command, die, dlq):
    die()
    code, _, said = dlq(command)
    assert code == 2
    assert "--reason" in said


@pytest.mark.parametrize(
    "arguments",
    [
        ("show", "17"),
        ("replay", "no/id"),
        ("list", "--topic", "others"),
        ("list", "--since", "tomorrow"),
        ("replay", f"{TOPIC}_dlq/0/1", "--reason", "empty"),
    ],
)
def test_wrong_arguments_are_told_before_anything_is_read(arguments, dlq):
    assert dlq(*arguments)[0] == 2


def test_looking_makes_no_data_directory(tmp_path):
    home = tmp_path / "none"
    for arguments in (["list"], ["replay", "--topic", TOPIC], ["show", f"{TOPIC}_dlq/0/1"]):
        CliRunner().invoke(app, ["dlq", *arguments, "--data-dir", str(home)])
    assert not home.exists()


# --- show -------------------------------------------------------------------------------------


def test_a_letter_is_shown_without_secrets_and_without_what_a_terminal_obeys(settings, die):
    die(
        {"url": "https://u:pw@h/x?api_key=hunter2", "password": "hunter2", "note": "\x1b[2Jgone\u202e\x9b"},
        key=b"\x1b]0;title\x07", why="token=hunter2 \x1b[31m",
        headers=(("authorization", b"Bearer hunter2hunter2"), ("bin", b"\xff"), ("h\x1b", b"\x1b[1m"), ("none", None)),
    )  # fmt: skip
    (letter,) = letters(settings)
    for form in ("table", "json"):
        for command in (["show", letter.id], ["list"]):
            done = CliRunner().invoke(app, ["dlq", *command, "-o", form, "--data-dir", str(settings.home)])
            assert done.exit_code == 0
            assert "hunter2" not in done.output
            assert "pw@" not in done.output
            assert all(character.isprintable() or character in "\n\t" for character in done.output)
            assert "gone" in done.output or command == ["list"]
            assert "why" not in done.output
            assert "token=REDACTED" in done.output


def test_broken_json_and_the_head_of_a_stub_are_redacted_too():
    raw_text = '{"dataset": "x", "password": "hunter2", '
    assert "hunter2" not in value_of(raw_text.encode())
    assert "hunter2" not in json.dumps(value_of(json.dumps({"shoal_stub": True, "head": raw_text}).encode()))
    assert "dataset" in value_of(raw_text.encode())


def test_ordinary_text_is_shown_as_it_is():
    assert printable("naïve – 負荷\n\tx") == "naïve – 負荷\n\tx"
    assert value_of(b'{"sha256": "' + b"a" * 64 + b'", "n": 1}') == {"sha256": "a" * 64, "n": 1}
    assert value_of(None) is None


def test_a_long_value_is_cut_unless_it_is_asked_for(settings, die):
    die({"text": "x" * 10_000})
    (letter,) = letters(settings)
    arguments = ["dlq", "show", letter.id, "--data-dir", str(settings.home)]
    short, full = CliRunner().invoke(app, arguments), CliRunner().invoke(app, [*arguments, "--full"])
    assert "--full" in short.stderr
    assert short.stdout.count("x") < 5_000 < 10_000 <= full.stdout.count("x")


def test_an_id_that_is_not_there_is_said_to_be(die, dlq):
    die()
    for command in (["show"], ["replay"], ["purge", "--yes"]):
        code, _, said = dlq(*command, f"{TOPIC}_dlq/0/999")
        assert code == 1
        assert "no such dead letter" in said


# --- replay -----------------------------------------------------------------------------------


def test_a_replay_sends_the_message_as_it_was_and_is_recorded(settings, journal, die, dlq):
    die({"a": 1}, key=b"id", headers=(("origin", b"\xff"),))
    (letter,) = letters(settings)
    code, told, _ = dlq("replay", "--reason", "empty")
    assert (code, told["replayed"]) == (0, 1)
    (message,) = sent(journal)
    assert (message.key, message.value) == (b"id", b'{"a": 1}')
    headers = dict(message.headers)
    assert (headers.pop("shoal.replay.of") or b"").endswith(b"@%d" % (letter.original_timestamp_ms or 0))
    assert headers == {"shoal.dlq.id": letter.id.encode(), "shoal.dlq.replayed": b"1", "origin": b"\xff"}
    assert [row["state"] for row in dlq("list", "--all")[1]["dead_letters"]] == ["replayed"]
    assert dlq("list")[1] == {"dead_letters": [], "matching": 0, "handled_left_out": {"replayed": 1}}


def test_what_succeeded_is_not_replayed_again_unless_asked(settings, journal, die, dlq):
    die()
    dlq("replay", "--topic", TOPIC)
    settle(journal, Outcome.INDEXED)
    (letter,) = letters(settings)
    shown = dlq("show", letter.id)[1]
    assert (shown["state"], shown["outcome"]) == ("succeeded", "indexed")
    code, told, said = dlq("replay", letter.id)
    assert (code, told["replayed"], told["handled_left_out"]) == (1, 0, {"succeeded": 1})
    assert "--all" in said
    assert dlq("replay", letter.id, "--all")[1]["replayed"] == 1
    assert [header for _, header in sent(journal)[-1].headers][:2] == [letter.id.encode(), b"2"]


def test_one_that_dies_again_returns_with_its_count_raised(settings, journal, die, dlq):
    """1. A letter is replayed. 2. It dies again. 3. The old one is returned, the new one open, and names the old."""
    die({"a": 1})
    (old,) = letters(settings)
    dlq("replay", old.id)
    message = sent(journal)[-1]
    settle(journal, Outcome.DEAD_LETTERED)
    die(message.value, headers=message.headers, count=1)
    rows = {row["id"]: row for row in dlq("list", "--all")[1]["dead_letters"]}
    (new,) = set(rows) - {old.id}
    assert (rows[old.id]["state"], rows[new]["state"]) == ("returned", "open")
    assert (rows[new]["retry_count"], rows[new]["replays"], rows[new]["replay_of"]) == (1, 1, old.id)


def test_what_was_replayed_too_often_is_left_out_and_said_so(settings, journal, die, dlq):
    die(headers=(("shoal.dlq.replayed", b"5"),), count=5)
    die(headers=(("shoal.dlq.replayed", b"4"),), count=4)
    code, told, said = dlq("replay", "--topic", TOPIC)
    assert (code, told["replayed"], told["replayed_too_often"]) == (0, 1, 1)
    assert "--replays-max" in said
    assert dlq("replay", letters(settings)[0].id)[0] == 1
    assert dlq("replay", letters(settings)[0].id, "--replays-max", "6")[1]["replayed"] == 1


def test_a_dry_run_sends_and_records_nothing(journal, die, dlq):
    for _ in range(3):
        die()
    before = journal.last_seq()
    assert dlq("replay", "--topic", TOPIC, "--dry-run")[1]["would_be_replayed"] == 3
    assert dlq("replay", "--topic", TOPIC, "--dry-run", "--limit", "2")[1]["would_be_replayed"] == 2
    assert dlq("purge", "--topic", TOPIC, "--dry-run")[1]["would_be_purged"] == 3
    assert journal.last_seq() == before


def test_a_limit_takes_the_oldest(settings, journal, die, dlq):
    for number in range(3):
        die({"number": number})
    assert dlq("replay", "--topic", TOPIC, "--limit", "2")[1]["replayed"] == 2
    assert [json.loads(message.value or b"")["number"] for message in sent(journal)] == [0, 1]


def test_a_stub_is_replayed_from_its_original_while_the_log_has_it(settings, journal, die, dlq):
    value = b"x" * (VALUE_BYTES_MAX + 1)
    die(value, key=b"large")
    code, told, _ = dlq("replay", "--topic", TOPIC)
    (one,) = told["why_not_replayable"]
    assert (code, told["replayed"], told["not_replayable"]) == (1, 0, 1)
    assert "not in the log any more" in one["why"]
    assert sent(journal) == []

    producer = JournalProducer(journal)
    for key, body in ((b"large", b"y" * len(value)), (b"other", value), (b"large", value)):
        producer.send(TOPIC, key, body, [("h", b"1")])
    producer.flush(1.0)
    assert dlq("replay", "--topic", TOPIC)[:2][0] == 0
    replayed = sent(journal)[-1]
    assert (replayed.key, replayed.value) == (b"large", value)
    assert [name for name, _ in replayed.headers] == ["shoal.dlq.id", "shoal.dlq.replayed", "shoal.replay.of", "h"]


def test_waiting_needs_a_service(settings, die):
    die()
    done = CliRunner().invoke(app, ["dlq", "replay", "--topic", TOPIC, "--wait", "--data-dir", str(settings.home)])
    assert "start `shoal up`" in str(done.exception)


def test_a_crash_between_sending_and_recording_leaves_it_open_and_a_second_replay_counts_the_same(
    settings, journal, die
):
    """1. A letter is sent. 2. The sender dies before it records so. 3. It is open still, and replayed once more."""
    die()

    class Dying(JournalProducer):
        def send(self, topic: str, *rest: Any, **named: Any) -> None:
            if topic.endswith("_state"):
                raise KeyboardInterrupt
            super().send(topic, *rest, **named)

    with open_dead_letters(settings) as log:
        replayer = Replayer(log, lambda: Dying(journal), None, replays_max=5)
        replayer.add(next(log.letters()))
        with pytest.raises(KeyboardInterrupt):
            replayer.flush()
    assert len(sent(journal)) == 1
    (letter,) = letters(settings)
    assert letter.state is None
    with open_dead_letters(settings) as log:
        replayer = Replayer(log, lambda: JournalProducer(journal), None, replays_max=5)
        replayer.add(letter)
        replayer.flush()
    first, second = sent(journal)
    assert first.headers == second.headers


def test_one_message_that_the_topic_refuses_does_not_keep_the_others(settings, journal, die):
    for number in range(4):
        die({"number": number})

    class Picky(JournalProducer):
        """Refuses at the flush, as Kafka does, and does not say which."""

        refused = False

        def send(self, topic: str, key: bytes | None, value: bytes | None, headers: Any = ()) -> None:
            if topic == TOPIC and b"2" in (value or b""):
                self.refused = True
                return
            super().send(topic, key, value, headers)

        def flush(self, timeout_s: float) -> None:
            super().flush(timeout_s)
            refused, self.refused = self.refused, False
            if refused:
                raise PermanentError("too large")

    with open_dead_letters(settings) as log:
        replayer = Replayer(log, lambda: Picky(journal), None, replays_max=5)
        for letter in log.letters():
            replayer.add(letter)
        replayer.flush()
    assert (replayer.tally.sent, replayer.tally.unsendable) == (3, 1)
    assert {json.loads(message.value or b"")["number"] for message in sent(journal)} == {0, 1, 3}
    assert [letter.state is None for letter in letters(settings)] == [False, False, True, False]


def test_who_waits_hears_how_each_replay_ended_by_its_number(settings, journal, die):
    """1. Two letters are sent. 2. An outcome of an earlier replay comes late: not it. 3. The right ones come."""
    die(headers=(("shoal.dlq.replayed", b"1"),), count=1)
    die()
    with open_dead_letters(settings) as log, closing(log.tail()) as tail:
        replayer = Replayer(log, lambda: JournalProducer(journal), tail, replays_max=5)
        for letter in log.letters():
            replayer.add(letter)
        replayer.flush()
        first, second = sent(journal)
        stale = replace(first, headers=(first.headers[0], ("shoal.dlq.replayed", b"1")))
        for raw, outcome in ((stale, Outcome.INDEXED), (first, Outcome.DEAD_LETTERED), (second, Outcome.UNCHANGED)):
            record = settled(raw, outcome, NOW, Failure(DeadReason.EMPTY, "empty still", "fetch"))
            assert record is not None
            producer = JournalProducer(journal)
            producer.send(*record)
            producer.flush(1.0)
        assert replayer.wait(5.0)
    tally = replayer.tally
    assert (tally.succeeded, tally.returned, dict(tally.outcomes)) == (1, 1, {"unchanged": 1})
    assert [(reason, message) for _, reason, message in tally.why_returned] == [("empty", "empty still")]


def test_who_waits_in_vain_gives_up(settings, journal, die):
    die()
    with open_dead_letters(settings) as log, closing(log.tail()) as tail:
        replayer = Replayer(log, lambda: JournalProducer(journal), tail, replays_max=5)
        replayer.add(next(log.letters()))
        replayer.flush()
        assert not replayer.wait(0.0)
        assert len(replayer.tally.waiting) == 1


def test_batches_are_bounded_by_bytes_too(settings, journal, die, monkeypatch):
    monkeypatch.setattr(dead_letter_replaying, "BATCH_BYTES", 3_000)
    for _ in range(9):
        die(b"x" * 1_000)
    with open_dead_letters(settings) as log:
        replayer = Replayer(log, lambda: JournalProducer(journal), None, replays_max=5)
        held = []
        for letter in log.letters():
            replayer.add(letter)
            held.append(replayer.held)
        replayer.flush()
    assert max(held) == 2
    assert len(sent(journal)) == 9


def test_what_dies_while_it_is_replayed_is_not_replayed_in_the_same_run(settings, journal, die):
    """Else a cause that was not mended would turn one command into an endless loop."""
    die()
    choice = Choice()
    with open_dead_letters(settings) as log:
        for _ in choose(log, Selection(topics=frozenset([TOPIC])), choice):
            die()
        assert len(list(log.letters())) == 1
    assert (choice.chosen, len(letters(settings))) == (1, 2)


# --- purge ------------------------------------------------------------------------------------


def test_purged_letters_are_marked_and_nothing_is_deleted(settings, die, dlq):
    die(reason=DeadReason.EMPTY)
    die(reason=DeadReason.NOT_JSON)
    code, told, _ = dlq("purge", "--reason", "empty", "--yes")
    assert (code, told["purged"], told["reasons"]) == (0, 1, {"empty": 1})
    assert [row["reason"] for row in dlq("list")[1]["dead_letters"]] == ["not_json"]
    assert [letter.state.state if letter.state else None for letter in letters(settings)] == ["purged", None]
    assert dlq("replay", "--reason", "empty")[1]["replayed"] == 0
    assert dlq("replay", "--reason", "empty", "--all")[1]["replayed"] == 1


def test_without_a_terminal_purge_wants_a_yes(settings, die, dlq):
    die()
    code, _, said = dlq("purge", "--topic", TOPIC)
    assert code == 2
    assert "--yes" in said
    assert letters(settings)[0].state is None


def test_states_outlive_the_lives_of_the_broker_as_long_as_their_letters(settings, journal, die, dlq):
    die()
    dlq("purge", "--topic", TOPIC, "--yes")
    for life in range(1, 4):
        journal.begin_life(life * 10**13)  # each 300 years later: only what is kept on purpose is there
    assert [row["state"] for row in dlq("list", "--all")[1]["dead_letters"]] == ["purged"]
