"""Dead letters over REST: pages, filters, one of them whole, and replaying."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest

from shoal.errors import DeadReason, TransientError
from shoal.serve_apps.dead_letter_service import WAITING_MAX, DeadLetterQuery
from shoal.sources.dead_letter_state import State

LETTERS = "/api/v1/dead-letters"
REPLAY = f"{LETTERS}/replay"


def ids(body: dict[str, Any]) -> list[int]:
    return [int(one["id"].rsplit("/", 1)[1]) for one in body["dead_letters"]]


async def test_dead_letters_are_listed_newest_first_off_the_loop(http: Any, stand: Any, letter: Any) -> None:
    stand.letters.found = [letter(number) for number in range(3)]
    body = (await http.get(LETTERS)).json()
    assert (ids(body), body["matching"], body["next_cursor"]) == ([2, 1, 0], 3, None)
    assert (body["dead_letters"][0]["reason"], body["dead_letters"][0]["state"]) == ("object_missing", "open")
    assert "value" not in body["dead_letters"][0]
    assert threading.main_thread().name not in stand.letters.threads


async def test_pages_hold_each_once_even_where_many_failed_at_once(http: Any, stand: Any, letter: Any) -> None:
    stand.letters.found = [letter(number // 4 * 4) for number in range(23)]
    for number, one in enumerate(stand.letters.found):
        stand.letters.found[number] = _moved(one, number)
    found: list[int] = []
    cursor = ""
    while True:
        page = (await http.get(LETTERS, params={"limit": 5, "cursor": cursor})).json()
        assert page["matching"] == 23
        found += ids(page)
        if not (cursor := page["next_cursor"]):
            break
    assert sorted(found) == list(range(23))


def _moved(one: Any, number: int) -> Any:
    """The same, at another place of the topic."""
    position = replace(one.raw.position, offset=number)
    return replace(one, id=f"{position.topic}/0/{number}", raw=replace(one.raw, position=position))


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("reason=empty", [1]),
        ("dataset=caiso", [2]),
        ("topic=scraper-notifications_dlq", [2, 1, 0]),
        ("topic=other", []),
        ("since=2025-01-20T00:01:00Z", [2, 1]),
        ("until=2025-01-20T00:01:00Z", [0]),
        ("until=2025-01-20", [2, 1, 0]),
        ("handled=true", [3, 2, 1, 0]),
    ],
)
async def test_dead_letters_are_filtered(http: Any, stand: Any, letter: Any, asked: str, expected: list[int]) -> None:
    stand.letters.found = [
        letter(0), letter(1, DeadReason.EMPTY), letter(2, value={"dataset": "caiso"}),
        letter(3, state=State.PURGED, replays=0),
    ]  # fmt: skip
    assert ids((await http.get(f"{LETTERS}?{asked}")).json()) == expected


async def test_one_dead_letter_is_shown_with_its_message_redacted(http: Any, stand: Any, letter: Any) -> None:
    value = {"dataset": "a", "location": "https://user:hunter2@example.org/", "api_key": "hunter2"}
    stand.letters.found = [letter(0, value=value, state=State.PURGED, replays=0), letter(1)]
    body = (await http.get(LETTERS, params={"id": "scraper-notifications_dlq/0/0"})).json()
    assert ids(body) == [0]
    assert body["dead_letters"][0]["value"]["dataset"] == "a"
    assert "hunter2" not in str(body)


@pytest.mark.parametrize(
    ("asked", "parameter"),
    [
        ("id=nothing", "id"),
        ("since=soon", "since"),
        ("limit=0", "limit"),
        ("cursor=x", "cursor"),
        ("resaon=a", "resaon"),
    ],
)
async def test_wrong_parameters_are_named(http: Any, asked: str, parameter: str) -> None:
    answer = await http.get(f"{LETTERS}?{asked}")
    assert (answer.status_code, answer.json()["parameter"]) == (422, parameter)


async def test_a_replay_sends_messages_as_they_were_and_records_it(http: Any, stand: Any, letter: Any) -> None:
    stand.letters.found = [letter(0), letter(1, DeadReason.EMPTY), letter(2, state=State.REPLAYED, replays=1)]
    answer = await http.post(REPLAY, json={"reason": "object_missing"})
    assert (answer.status_code, answer.json()["replayed"]) == (202, 1)
    assert answer.json()["handled_left_out"] == {"replayed": 1}
    assert stand.log.topics == ["scraper-notifications", "scraper-notifications_dlq_state"]
    assert stand.log.sent[0] == {"dataset": "nyiso_load", "urn": "0.json"}
    assert stand.log.sent[1]["state"] == "replayed"


async def test_a_dry_run_sends_nothing(http: Any, stand: Any, letter: Any) -> None:
    stand.letters.found = [letter(number) for number in range(5)]
    answer = await http.post(REPLAY, json={"topic": "scraper-notifications", "dry_run": True, "limit": 3})
    assert (answer.status_code, answer.json()["would_be_replayed"], answer.json()["is_complete"]) == (200, 3, False)
    assert stand.log.sent == []


async def test_a_replay_of_many_says_that_there_are_more(http: Any, stand: Any, letter: Any) -> None:
    stand.letters.found = [letter(number) for number in range(5)]
    body = (await http.post(REPLAY, json={"topic": "scraper-notifications", "limit": 3})).json()
    assert (body["replayed"], body["is_complete"]) == (3, False)
    exact = (await http.post(REPLAY, json={"topic": "scraper-notifications", "limit": 5})).json()
    assert (exact["replayed"], exact["is_complete"]) == (5, True)


@pytest.mark.parametrize(
    "body", [{}, {"limit": 5}, {"ids": ["x"]}, {"ids": ["a_dlq/0/1"], "reason": "empty"}, {"reason": "a", "all": True}]
)
async def test_a_replay_of_everything_or_of_nonsense_is_refused(http: Any, stand: Any, letter: Any, body: Any) -> None:
    stand.letters.found = [letter(0)]
    assert (await http.post(REPLAY, json=body)).status_code == 422
    assert stand.log.sent == []


async def test_a_page_in_a_browser_can_not_replay(http: Any, stand: Any, letter: Any) -> None:
    stand.letters.found = [letter(0)]
    form = await http.post(REPLAY, content=b'{"reason": "object_missing"}', headers={"Content-Type": "text/plain"})
    assert (form.status_code, stand.log.sent) == (415, [])


async def test_a_log_that_is_down_is_503_and_the_next_replay_opens_it_anew(http: Any, stand: Any, letter: Any) -> None:
    stand.letters.found = [letter(0)]
    stand.log.error = TransientError("Kafka is down")
    assert (await http.post(REPLAY, json={"reason": "object_missing"})).status_code == 503
    stand.log.error = None
    assert (await http.post(REPLAY, json={"reason": "object_missing"})).json()["replayed"] == 1
    assert stand.log.opened == 2
    stand.letters.error = TransientError("Kafka is down")
    assert (await http.get(LETTERS)).status_code == 503


async def test_too_many_who_ask_at_once_are_told_to_come_back(http: Any, stand: Any) -> None:
    service = stand.dead_letters
    service._waiting = WAITING_MAX
    answer = await http.get(LETTERS)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "5")


def test_a_date_as_until_includes_that_day() -> None:
    asked = DeadLetterQuery.read({"since": "2025-01-20", "until": "2025-01-20"})
    chosen = asked.selection()
    assert chosen.since is not None
    assert chosen.until is not None
    assert (chosen.until - chosen.since).days == 1
