"""The watcher: who is left alone, who is ended, who is begun again and when."""

from __future__ import annotations

import pytest

from shoal.cluster.watching import BACKOFF_MAX_S, FREE_NAME_S, STEADY_S, Do, State, Streak, Watched

HANG_S, START_S = 60.0, 300.0


def running(pid: int = 7, now: float = 0.0) -> Watched:
    watched = Watched(HANG_S, START_S)
    assert watched.decide(now) is Do.CREATE
    watched.created(now)
    watched.answered(pid, 0.0, 0.0, now)
    return watched


def test_who_is_missing_is_created_at_once_and_starting_until_it_answers() -> None:
    watched = Watched(HANG_S, START_S)
    assert watched.decide(0.0) is Do.CREATE
    watched.created(0.0)
    assert watched.state is State.STARTING
    watched.answered(7, 0.1, 0.0, 1.0)
    assert watched.shown(1.0) == {
        "state": "running", "has_run": True, "pid": 7, "restarts": 0, "reason": None, "backoff_s": 0.0
    }  # fmt: skip


def test_a_slow_answer_is_no_death() -> None:
    watched = running()
    assert watched.decide(HANG_S - 0.1) is Do.NOTHING
    watched.answered(7, 59.0, 0.0, HANG_S - 0.1)
    assert watched.decide(2 * HANG_S - 0.2) is Do.NOTHING


def test_who_answers_nothing_for_the_bound_is_ended_and_then_begun_again() -> None:
    watched = running()
    assert watched.decide(HANG_S) is Do.END
    assert watched.reason == "hung: no answer for 60 s"
    assert watched.decide(HANG_S) is Do.NOTHING, "its name is not free yet"
    assert watched.decide(HANG_S + FREE_NAME_S) is Do.CREATE


def test_who_answers_but_whose_own_loop_stands_still_is_ended() -> None:
    watched = running()
    watched.answered(7, 10.0, HANG_S, 10.0)
    assert watched.decide(10.0) is Do.END
    assert watched.reason == "hung: its loop has not turned for 60 s"


def test_starting_may_take_longer_than_answering() -> None:
    watched = Watched(HANG_S, START_S)
    watched.created(0.0)
    assert watched.decide(START_S - 0.1) is Do.NOTHING
    assert watched.decide(START_S) is Do.END


def test_a_start_call_that_takes_long_is_a_hang_only_where_the_actor_itself_says_that_it_stalls() -> None:
    watched = running()
    watched.start_called(1.0)
    watched.answered(7, START_S, 0.0, START_S + 1.0)
    assert watched.decide(START_S + 1.0) is Do.NOTHING, "it opens tables, and builds what they lack"
    watched.answered(7, START_S, 10.0, START_S + 2.0)
    assert watched.decide(START_S + 2.0) is Do.END


def test_the_watchers_own_sleep_is_nobodys_silence() -> None:
    watched = running()
    watched.start_called(0.0)
    watched.skip(1000.0)
    assert watched.decide(1000.0 + HANG_S - 0.1) is Do.NOTHING
    assert watched.decide(1000.0 + HANG_S) is Do.END


def test_the_first_deaths_cost_no_pause_and_the_next_ones_twice_as_long_each() -> None:
    watched, now, pauses = Watched(HANG_S, START_S), 0.0, []
    for _ in range(12):
        watched.created(now)
        watched.answered(7, 0.0, 0.0, now)
        now += 1.0
        watched.died("its process ended", now)
        pauses.append(watched.backoff_s(now))
        now += pauses[-1]
        assert watched.decide(now) is Do.CREATE
    assert pauses == [0, 0, 0, 1, 2, 4, 8, 16, 32, BACKOFF_MAX_S, BACKOFF_MAX_S, BACKOFF_MAX_S]


def test_a_constructor_that_fails_is_never_tried_again_at_once() -> None:
    watched = Watched(HANG_S, START_S)
    watched.created(0.0)
    watched.died("no such model", 0.0, hopeless=True)
    assert watched.decide(0.9) is Do.NOTHING
    assert watched.shown(0.5) == {
        "state": "crash loop", "has_run": False, "pid": None, "restarts": 0, "reason": "no such model", "backoff_s": 0.5
    }  # fmt: skip
    assert watched.decide(1.0) is Do.CREATE


def test_a_steady_life_ends_the_crash_loop() -> None:
    watched, now = Watched(HANG_S, START_S), 0.0
    for _ in range(6):
        watched.created(now)
        watched.died("its process ended", now)
        now += watched.backoff_s(now)
    assert watched.shown(now)["state"] == "crash loop"
    watched.created(now)
    watched.answered(7, STEADY_S, 0.0, now + STEADY_S)
    watched.died("its process ended", now + STEADY_S)
    assert watched.decide(now + STEADY_S) is Do.CREATE


def test_restarts_are_counted_also_across_watchers() -> None:
    watched = running(pid=7)
    watched.died("its process ended", 1.0)
    watched.created(1.0)
    watched.answered(8, 0.0, 0.0, 2.0)
    assert (watched.restarts, watched.pid) == (1, 8)
    adopted, replaced = Watched(HANG_S, START_S), Watched(HANG_S, START_S)
    for successor, pid in ((adopted, 8), (replaced, 9)):
        successor.remember(8, 1, "its process ended", ran=True)
        successor.created(3.0)
        successor.answered(pid, 1.0, 0.0, 3.0)
    assert (adopted.restarts, replaced.restarts) == (1, 2)


def test_one_that_ran_and_hangs_as_it_is_adopted_is_not_given_the_time_of_a_start() -> None:
    watched = Watched(HANG_S, START_S)
    watched.remember(8, 0, None, ran=True)
    watched.created(0.0)
    assert watched.decide(HANG_S) is Do.END
    watched.created(HANG_S + FREE_NAME_S)
    assert watched.decide(HANG_S + FREE_NAME_S + START_S - 0.1) is Do.NOTHING


def test_a_late_answer_from_the_life_before_brings_nobody_back() -> None:
    watched = running()
    watched.died("its process ended", 1.0)
    watched.answered(7, 1.0, 0.0, 1.1)
    assert watched.state is State.WAITING


def test_who_is_replaced_on_purpose_is_in_no_crash_loop() -> None:
    watched, now = running(), 0.0
    for _ in range(10):
        watched.replace("it read from a broker that has ended", now)
        now += FREE_NAME_S
        assert watched.decide(now) is Do.CREATE
        watched.created(now)
        watched.answered(7, 0.0, 0.0, now)
    assert not watched.streak.is_loop


def test_who_is_retired_is_neither_ended_nor_begun_again() -> None:
    watched = running()
    watched.retire()
    assert watched.decide(10 * HANG_S) is Do.NOTHING
    watched.died("its process ended", 10 * HANG_S)
    assert watched.decide(20 * HANG_S) is Do.NOTHING
    assert watched.shown(20 * HANG_S)["state"] == "drained"


@pytest.mark.parametrize("lives", [1, 50, 5000])
def test_a_pause_has_a_bound(lives: int) -> None:
    streak = Streak()
    for _ in range(lives):
        pause_s = streak.ended(0.0, hopeless=True)
    assert 1.0 <= pause_s <= BACKOFF_MAX_S


def test_a_stopped_actor_is_found_out_in_time_though_its_watchers_die_one_after_the_other() -> None:
    first = running()
    for _ in range(3):  # each adopts it, hears nothing, and dies
        heir = Watched(hang_s=HANG_S, start_s=START_S)
        known = first.shown(1.0)
        heir.remember(7, 0, None, ran=bool(known["has_run"]))
        heir.created(1.0)
        first = heir
    assert first.decide(1.0 + HANG_S - 0.1) is Do.NOTHING
    assert first.decide(1.0 + HANG_S) is Do.END
