"""The half-price lane pays for each text once, whenever it is killed, and keeps only vectors that are right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shoal.embeddings import batch_lane
from shoal.embeddings.batch_files import Limits
from shoal.embeddings.batch_job import QUEUE_RETRY_S, summary
from shoal.errors import ConfigurationError, TransientError
from tests.fixtures.half_price import Killed, NoApi, Tripwire, World, lost

TEXTS = [f"load of hour {n}" for n in range(9)]
LIMITS = Limits(texts=5)


@pytest.fixture(autouse=True)
def _small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_lane, "GROUP", 2)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, list_lag_s=30.0)


def booked_right(world: World, lost_tokens: int = 0) -> None:
    billed = sum(len(text) * times for text, times in world.api.billed.items())
    assert billed - lost_tokens <= world.booked() <= billed


def test_a_job_ends_with_every_vector_in_the_cache_each_paid_once_and_booked(world: World) -> None:
    world.ask(TEXTS, LIMITS)
    world.run(world.lane())
    world.check_vectors(TEXTS)
    assert set(world.api.billed.values()) == {1}
    booked_right(world)
    state = world.state()
    assert state is not None
    found = summary(state)
    assert (found.embedded_texts, found.missing, found.phases) == (9, 0, {"done": 2})
    assert found.embedded_tokens == sum(map(len, TEXTS))
    assert not world.api.files, "what has served is deleted"
    assert [name for name in world.shelf.values if name.startswith("part")] == []
    assert list(world.scratch.iterdir()) == []


def steps_of(make: Callable[[], World]) -> int:
    world, trip = make(), Tripwire()
    world.ask(TEXTS, LIMITS)
    world.run(world.lane(trip))
    return trip.steps


def test_killed_at_any_step_it_goes_on_and_nothing_is_paid_twice(tmp_path: Path) -> None:
    def make() -> World:
        return World(tmp_path, list_lag_s=30.0)

    steps = steps_of(make)
    assert steps > 40
    for at in range(1, steps + 1):
        world = make()
        world.ask(TEXTS, LIMITS)
        # 1. It is killed before or after something that lasts.
        with pytest.raises(Killed):
            world.run(world.lane(Tripwire(at)))
        # 2. Another embedder starts, at once, over the same shelf and cache.
        world.run(world.lane())
        # 3. Every vector is there, and no batch was made twice.
        world.check_vectors(TEXTS)
        assert set(world.api.billed.values()) == {1}, f"killed at step {at}"
        assert len(world.api.batches) == 2, f"killed at step {at}"
        # 4. The ledger may lack the group that was being booked, and has nothing twice.
        booked_right(world, lost_tokens=batch_lane.GROUP * max(map(len, TEXTS)))


def test_a_call_whose_end_nobody_knows_is_not_paid_twice(tmp_path: Path) -> None:
    def make() -> World:
        return World(tmp_path, list_lag_s=30.0)

    for at in range(1, steps_of(make) + 1):
        world = make()
        world.ask(TEXTS, LIMITS)
        world.run(world.lane(Tripwire(at, lost)))
        world.check_vectors(TEXTS)
        assert set(world.api.billed.values()) == {1}, f"lost at step {at}"
        booked_right(world)


def test_a_lost_state_finds_its_batches_again(world: World) -> None:
    world.ask(TEXTS)
    world.api.steps = False
    lane = world.lane()
    lane.turn()
    del world.shelf.values["state j"]  # damaged by a power cut, which counts as absent
    world.api.steps, world.now = True, world.now + 7200
    world.run(world.lane())
    world.check_vectors(TEXTS)
    assert len(world.api.batches) == 1


def test_what_the_cache_has_is_not_asked_for(world: World) -> None:
    world.ask(TEXTS[:4], name="a")
    world.run(world.lane())
    world.ask(TEXTS, name="b")
    world.run(world.lane())
    world.check_vectors(TEXTS)
    assert set(world.api.billed.values()) == {1}
    world.ask(TEXTS, name="c")
    world.run(world.lane())
    assert len(world.api.batches) == 2


@pytest.mark.parametrize("status", ["expired", "cancelled"])
def test_what_came_before_a_batch_ended_early_is_kept_and_the_rest_is_left(world: World, status: str) -> None:
    world.ask(TEXTS)
    world.api.steps = False
    lane = world.lane()
    lane.turn()
    world.api.work(world.api.batches[0], status, answered=6)
    world.now += 60
    world.run(lane)
    state = world.state()
    assert state is not None
    found = summary(state)
    assert (found.embedded_texts, found.missing) == (6, 3)
    assert set(world.cached(TEXTS)) == set(world.api.billed)
    assert any(status in note and "batch_expired" in note for note in found.notes)
    booked_right(world)


def nan(row: dict[str, Any]) -> dict[str, Any]:
    row["response"]["body"]["data"][0]["embedding"][0] = None
    return row


def narrow(row: dict[str, Any]) -> dict[str, Any]:
    del row["response"]["body"]["data"][0]["embedding"][4:]
    return row


def two(row: dict[str, Any]) -> dict[str, Any]:
    row["response"]["body"]["data"] *= 2
    return row


def foreign(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"custom_id": "0" * 64}


def nothing(row: dict[str, Any]) -> dict[str, Any]:
    row["response"]["body"]["data"] = []
    return row


def refused(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"response": {"status_code": 400, "body": {"error": {"message": "no", "code": "bad_input"}}}}


@pytest.mark.parametrize("spoiled", [nan, narrow, two, foreign, nothing, refused])
def test_a_wrong_answer_is_no_vector_and_harms_no_other(world: World, spoiled: Any) -> None:
    world.ask(TEXTS)
    world.api.spoil[TEXTS[3]] = spoiled
    world.run(world.lane())
    world.check_vectors([text for text in TEXTS if text != TEXTS[3]])
    assert TEXTS[3] not in world.cached(TEXTS)
    state = world.state()
    assert state is not None
    assert summary(state).missing == 1
    assert summary(state).notes


def test_a_second_answer_to_one_text_does_not_replace_the_first(world: World) -> None:
    world.ask(TEXTS)
    lane = world.lane()
    world.api.steps = False
    lane.turn()
    batch = world.api.batches[0]
    world.api.work(batch)
    purpose, data = world.api.files[batch["output_file_id"]]
    first, second = data.splitlines(keepends=True)[:2]
    named = first[: first.index(b'"response"')]
    world.api.files[batch["output_file_id"]] = purpose, data + named + second[second.index(b'"response"') :]
    world.now += 60
    world.run(lane)
    world.check_vectors(TEXTS)


def test_a_batch_that_fails_its_validation_leaves_its_texts_and_says_why(world: World) -> None:
    world.ask(TEXTS)
    world.api.steps = False
    lane = world.lane()
    lane.turn()
    batch = world.api.batches[0]
    batch["status"] = "failed"
    batch["errors"] = {"data": [{"code": "invalid_json_line", "message": "line 1"}]}
    world.now += 60
    world.run(lane)
    state = world.state()
    assert state is not None
    assert (summary(state).missing, summary(state).notes) == (9, ("invalid_json_line: line 1",))
    assert len(world.api.batches) == 1, "it would fail the same way again"
    assert world.booked() == 0


def test_a_full_queue_is_waited_for_and_then_a_new_batch_is_made(world: World) -> None:
    world.api.queue_tokens = 10
    world.ask(TEXTS)
    lane = world.lane()
    for _ in range(3):
        lane.turn()
        world.now += 60
    state = world.state()
    assert state is not None
    assert (state.parts[0].phase, state.parts[0].attempt) == ("waiting", 1)
    assert "token_limit_exceeded" in state.parts[0].note
    world.api.queue_tokens = 10_000
    began = world.now
    world.run(lane)
    assert world.now - began >= QUEUE_RETRY_S - 240
    world.check_vectors(TEXTS)
    assert set(world.api.billed.values()) == {1}
    assert [batch["metadata"]["shoal_attempt"] for batch in world.api.batches] == ["0", "1"]


def test_no_more_is_queued_than_the_account_takes(world: World) -> None:
    limit = sum(map(len, TEXTS[:5])) + 1
    world.queue_tokens = world.api.queue_tokens = limit  # type: ignore[assignment]
    world.ask(TEXTS, Limits(texts=3))
    world.run(world.lane())
    world.check_vectors(TEXTS)
    assert len(world.api.batches) == 3, "none was refused for a full queue"


def test_the_budget_is_asked_with_all_that_is_under_way_and_holds_a_job_back(world: World) -> None:
    world.api.steps = False
    world.refusal = TransientError("the budget is spent: $1.00 of $1.00 spent today", 60)
    world.ask(TEXTS, LIMITS)
    lane = world.lane()
    lane.turn()
    state = world.state()
    assert state is not None
    assert "the budget is spent" in state.note
    assert not world.api.files
    world.refusal = None
    world.asked_for.clear()
    world.now += 60
    lane.turn()
    first, second = (sum(map(len, texts)) for texts in (TEXTS[:5], TEXTS[5:]))
    assert world.asked_for == [first, first + second]
    state = world.state()
    assert state is not None
    assert state.note == ""


def test_after_its_time_a_job_begins_nothing_more_and_still_reads_what_is_paid(world: World) -> None:
    world.give_up_s = 3600
    world.queue_tokens = sum(map(len, TEXTS[:5]))
    world.api.steps = False
    world.ask(TEXTS, LIMITS)
    lane = world.lane()
    lane.turn()
    world.now += 3700
    world.api.work(world.api.batches[0])
    world.run(lane)
    world.check_vectors(TEXTS[:5])
    state = world.state()
    assert state is not None
    assert summary(state).phases == {"done": 1, "failed": 1}
    assert (summary(state).missing, len(world.api.batches)) == (4, 1)
    assert any("given up after 1 hours" in note for note in summary(state).notes)


def test_a_server_without_a_batch_api_refuses_the_job_in_one_line(world: World) -> None:
    world.made = NoApi
    world.ask(TEXTS)
    world.lane().turn()
    state = world.state()
    assert state is not None
    assert state.is_ended
    assert "no Batch API" in state.refusal


def test_a_job_for_another_model_is_refused(world: World) -> None:
    job = world.ask(TEXTS)
    world.shelf.values["job j"] = world.shelf.values["job j"].replace(job.model.encode(), b"openai:other")
    world.lane().turn()
    state = world.state()
    assert state is not None
    assert "openai:other" in state.refusal
    assert not world.api.files


def test_a_cache_that_keeps_nothing_holds_the_job_and_pays_nothing_more(world: World) -> None:
    world.ask(TEXTS)
    kept, world.cache.put_many = world.cache.put_many, lambda vectors: None  # type: ignore[method-assign]
    lane = world.lane()
    for _ in range(8):
        lane.turn()
        world.now += 60
    state = world.state()
    assert state is not None
    assert (state.parts[0].phase, world.booked()) == ("reading", 0)
    assert "disk full" in state.note
    world.cache.put_many = kept  # type: ignore[method-assign]
    world.run(lane)
    world.check_vectors(TEXTS)
    assert set(world.api.billed.values()) == {1}


def test_an_embedder_that_was_replaced_creates_no_batch(world: World) -> None:
    world.ask(TEXTS)
    slow = world.lane()
    real = slow._provider.upload

    def upload(path: Path) -> str:
        file_id = real(path)
        world.lane().turn()  # 1. While it hangs here, another has taken the job and made the batch.
        return file_id

    slow._provider.upload = upload  # type: ignore[method-assign]
    slow.turn()
    # 2. Its own step is stored over the other's, and finds the batch by its tag.
    world.now += 60
    world.run(world.lane())
    assert set(world.api.billed.values()) == {1}
    assert len(world.api.batches) == 1


def test_a_wrong_key_is_waited_out_and_said(world: World) -> None:
    world.ask(TEXTS)
    lane = world.lane()
    real = lane._provider.upload

    def refused_key(path: Path) -> str:
        raise ConfigurationError("the key was refused (401): see OPENAI_API_KEY")

    lane._provider.upload = refused_key  # type: ignore[method-assign]
    lane.turn()
    state = world.state()
    assert state is not None
    assert "OPENAI_API_KEY" in state.note
    assert not state.is_ended
    lane._provider.upload = real  # type: ignore[method-assign]
    world.run(lane)
    world.check_vectors(TEXTS)


def test_a_life_that_could_not_store_its_name_takes_the_job_all_the_same(world: World) -> None:
    world.ask(TEXTS)
    world.lane().turn()
    for at in (1, 2):
        lane = world.lane(Tripwire(at, lost))
        lane.turn()
        world.now += 60
    world.run(lane)
    world.check_vectors(TEXTS)
    assert set(world.api.billed.values()) == {1}
