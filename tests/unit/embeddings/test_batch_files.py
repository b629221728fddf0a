"""Request files hold every text once and break no limit; what comes back is read for what it is."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.embeddings.batch_files import Limits, Parts, entries_of, read_line, stored
from shoal.embeddings.batch_job import Job, State
from shoal.embeddings.batch_provider import Entry, why_none
from shoal.embeddings.purposes import Purpose
from shoal.settings import load

entries = st.builds(Entry, st.text(min_size=1, max_size=40), st.sampled_from(["document", "query"]), st.integers(1, 50))
limits = st.builds(Limits, texts=st.integers(1, 8), tokens=st.integers(50, 200), text_bytes=st.integers(260, 600))


@given(st.lists(entries, max_size=60), limits)
def test_every_text_stands_in_one_part_and_no_part_breaks_a_limit(given_entries: list[Entry], limit: Limits) -> None:
    parts, made = Parts(limit), list[list[Entry]]()
    for entry in given_entries:
        made += filter(None, [parts.add(entry)])
    made += filter(None, [parts.take()])
    assert parts.take() is None
    placed = [(entry.kind, entry.text) for part in made for entry in part]
    assert len(set(placed)) == len(placed) == parts.texts
    assert set(placed) == {(entry.kind, entry.text) for entry in given_entries}
    assert parts.tokens == sum(entry.tokens for part in made for entry in part)
    for part in made:
        assert 1 <= len(part) <= limit.texts
        assert sum(entry.tokens for entry in part) <= limit.tokens
        assert sum(len(orjson.dumps(entry.text)) for entry in part) <= limit.text_bytes
        assert entries_of(orjson.loads(orjson.dumps(stored(part)))) == part


def test_a_part_stays_far_below_what_the_provider_takes() -> None:
    limit, line = Limits(), 64 + 200 + 8_000 + 1_000  # name, model, prefixes of 2000 characters, JSON around them
    assert limit.texts <= 50_000
    assert limit.text_bytes + limit.texts * line < 200_000_000


@pytest.mark.parametrize("value", [None, 3, {"a": 1}, [["document", "x"]], [[1]], [["document", "x", "many"]]])
def test_what_is_no_part_is_none(value: object) -> None:
    assert entries_of(value) is None


@pytest.mark.parametrize(
    ("raw", "body", "error"),
    [
        ({"custom_id": "a", "response": {"status_code": 200, "body": {"x": 1}}, "error": None}, b'{"x":1}', ""),
        ({"custom_id": "a", "response": {"status_code": 400, "body": {"error": {"code": "c", "message": "a\n b"}}}},
         None, "c a b"),
        ({"custom_id": "a", "response": None, "error": {"code": "batch_expired", "message": "late"}}, None,
         "batch_expired late"),
        ({"custom_id": "a", "response": {"status_code": 200, "body": "x"}}, None, "neither an answer nor an error"),
        ({"custom_id": "a", "response": {"status_code": 500}, "error": {}}, None, "an error without a word"),
    ],
)  # fmt: skip
def test_a_line_is_an_answer_or_says_why_not(raw: object, body: bytes | None, error: str) -> None:
    line = read_line(orjson.dumps(raw))
    assert (line.custom_id, line.body) == ("a", body)
    assert error in line.error


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"null", b'{"custom_id": 5}', b"\xff"])
def test_a_line_that_is_none_names_no_answer(raw: bytes) -> None:
    line = read_line(raw)
    assert line.body is None
    assert line.error


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {"id": "j"},
        {"id": "j", "parts": 3, "purpose": {}, "model": "m", "width": 1},
        {"parts": [{"phase": "dancing", "texts": 1, "tokens": 1}]},
    ],
)
def test_what_is_no_job_or_state_is_none(value: object) -> None:
    assert Job.of(value) is None
    assert State.of(value) is None


def test_jobs_and_states_survive_their_storage() -> None:
    job = Job("j", "m", 8, Purpose("backfill", "scraper", "NYISO", "load"), ((3, 40), (1, 2)), 5.5)
    state = State.begun(job, "me", 5.0)
    state = state.with_part(1, state.parts[1].moved("submitted", 7.0, batch_id="b", sent_tokens=2))
    assert Job.of(orjson.loads(orjson.dumps(job.stored()))) == job
    assert State.of(orjson.loads(orjson.dumps(state.stored()))) == state
    assert state.queued_tokens == 2


@pytest.mark.parametrize(
    ("model", "settings", "words"),
    [
        ("local:all-MiniLM-L6-v2", {}, "costs nothing"),
        ("hash:64", {"openai_batch_api": "on"}, "costs nothing"),
        ("openai:m", {"openai_batch_api": "off"}, "SHOAL_OPENAI_BATCH_API is off"),
        ("openai:m", {"openai_base_url": "http://gpu:8000/v1"}, "SHOAL_OPENAI_BATCH_API=on to try"),
        ("openai:m", {"azure_openai_endpoint": "https://x.openai.azure.com"}, "deployments of their own"),
        ("openai:m", {"openai_base_url": "http://gpu:8000/v1", "openai_batch_api": "on"}, None),
        ("openai:m", {"openai_base_url": "https://api.openai.com/v1"}, None),
        ("openai:m", {}, None),
    ],
)
def test_who_has_no_batch_api_is_told_what_to_do(model: str, settings: dict[str, str], words: str | None) -> None:
    why = why_none(load(**settings), model)
    assert why is None if words is None else words in (why or "")
