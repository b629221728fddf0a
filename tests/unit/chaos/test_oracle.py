"""The campaign's oracle: it says what contracts 1.1 and 1.2 say, and a wrong table never passes it."""

from __future__ import annotations

import pytest

from tests.chaos.messages import Delete, Effect, Fix, Logged, Message, Put, moment, version_text
from tests.chaos.oracle import Expected, difference, expected


def put(minute: int, sha256: str, document_id: str = "d", **more: bool) -> Put:
    location = f"s3://b/{document_id}/{minute}"
    return Put(document_id, version_text(minute), location, sha256, "set", "urn", "s", "t", moment(0), **more)


def log(*effects: Effect, reason: str | None = None) -> list[Logged]:
    return [
        Logged(Message(offset, "test", "topic", 0, None, None, (effect,), reason), 0, offset, 1000 + offset)
        for offset, effect in enumerate(effects)
    ]


def rows(*effects: Effect) -> set[tuple[object, ...]]:
    facts = expected(log(*effects), lambda put: [put.sha256]).facts
    return {(fact[2], fact[3], fact[4]) for fact in facts if fact[0] == "row"}


V = [version_text(minute) for minute in range(5)]


@pytest.mark.parametrize(
    ("effects", "wanted"),
    [
        ([put(1, "a"), put(2, "b")], {(V[1], "a", "history"), (V[2], "b", "indexed")}),
        ([put(2, "b"), put(1, "a")], {(V[1], "a", "history"), (V[2], "b", "indexed")}),
        ([put(1, "a"), put(1, "a")], {(V[1], "a", "indexed")}),
        ([put(1, "a"), put(1, "b")], {(V[1], "b", "indexed")}),
        ([put(2, "a"), Delete("d"), put(1, "b")], {(V[1], "b", "indexed")}),
        ([put(1, "a"), Delete("d")], set()),
        ([put(1, "a"), Delete(location="s3://b/d/1")], set()),
        ([put(1, "a"), put(2, "b"), Delete(location="s3://b/d/1")], {(V[2], "b", "indexed")}),
        ([put(1, "a"), put(2, "b"), Delete(location="s3://b/d/2")], {(V[1], "a", "history")}),
        ([put(2, "b"), Delete(location="s3://b/d/2"), put(1, "a")], {(V[1], "a", "indexed")}),
        # What was removed already is not removed again: what was announced in between stays.
        (
            [put(2, "b"), Delete(location="s3://b/d/2"), put(1, "a"), Delete(location="s3://b/d/2")],
            {(V[1], "a", "indexed")},
        ),
        ([put(1, "a"), Delete(location="s3://b/d/1"), put(1, "a")], {(V[1], "a", "indexed")}),
        ([put(1, "a", row_only=True)], {(V[1], "a", "error")}),
    ],
)
def test_the_log_decides_which_versions_there_are(effects: list[Effect], wanted: set[tuple[object, ...]]) -> None:
    assert rows(*effects) == wanted


def test_reports_of_one_fix_are_counted_by_their_commands() -> None:
    group = ("scraper", "remedy")
    facts = expected(log(Fix("1", group), Fix("2", group), Fix("1", group)), lambda _: []).facts
    assert ("fix", *group, 2, 2) in facts
    assert {fact for fact in facts if fact[0] == "job"} == {("job", "1", "done"), ("job", "2", "done")}


def test_what_is_missing_extra_and_twice_is_told_apart() -> None:
    wanted = Expected({("a",), ("b",)}, {("t", 0, 1): "empty", ("t", 0, 2): "empty"})
    found = difference(wanted, [("b",), ("b",), ("c",)], [(("t", 0, 1), "empty"), (("t", 0, 1), "empty")])
    assert (found.missing, found.extra, found.duplicate) == ((("a",),), (("c",),), (("b",),))
    assert found.dead_letters_wrong == ("('t', 0, 2) should be dead (empty)",)
    assert not found.is_none


@pytest.mark.parametrize("dead", [[(("t", 0, 9), "empty")], [(("t", 0, 1), "not_json")]])
def test_a_dead_letter_of_a_good_message_or_for_another_reason_is_wrong(
    dead: list[tuple[tuple[str, int, int], str]],
) -> None:
    found = difference(Expected(set(), {("t", 0, 1): "empty"}), [], [(("t", 0, 1), "empty"), *dead])
    assert len(found.dead_letters_wrong) == 1


def test_nothing_differs_where_all_is_there_once() -> None:
    wanted = expected(log(put(1, "a"), Fix("1", ("s", "r"))), lambda put: ["one", "two"])
    assert difference(wanted, list(wanted.facts), []).is_none
