"""Backpressure, group commit and retry: the small pure cores beside the actors."""

import random

from hypothesis import given
from hypothesis import strategies as st

from shoal.actors.backpressure import Credits
from shoal.actors.group_commit import GroupCommit
from shoal.actors.retry import DELAY_MAX_S, DependencyHealth, Verdict, backoff_s


def test_credits_pause_at_the_bound_and_resume_at_half_of_it() -> None:
    credits = Credits(items_max=4, bytes_max=1000)
    for _ in range(4):
        credits.take(10)
    assert credits.should_pause()
    credits.give(10)
    assert credits.should_pause(), "no flapping at the edge"
    credits.give(10)
    assert not credits.should_pause()


def test_credits_pause_on_bytes_too() -> None:
    credits = Credits(items_max=100, bytes_max=1000)
    credits.take(1000)
    assert credits.should_pause()


def test_a_batch_closes_on_rows_bytes_or_age() -> None:
    def fresh() -> GroupCommit[str]:
        return GroupCommit(rows_max=10, bytes_max=100, linger_s=0.5)

    group = fresh()
    assert group.due_in(0.0) is None
    group.add("a", 1, 1, now=10.0)
    assert group.due_in(10.2) == 0.5 - (10.2 - 10.0)
    assert group.due_in(11.0) == 0.0
    rows, size = fresh(), fresh()
    rows.add("a", 10, 1, now=0.0)
    size.add("a", 1, 100, now=0.0)
    assert rows.due_in(0.0) == size.due_in(0.0) == 0.0


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 300)), max_size=30))
def test_batches_keep_order_lose_nothing_and_obey_the_bounds(weights: list[tuple[int, int]]) -> None:
    group: GroupCommit[int] = GroupCommit(rows_max=20, bytes_max=200, linger_s=1.0)
    for number, (rows, size) in enumerate(weights):
        group.add(number, rows, size, now=0.0)
    seen: list[int] = []
    while len(group):
        batch = group.take(now=0.0)
        assert batch
        if len(batch) > 1:
            assert sum(weights[n][0] for n in batch) <= 20
            assert sum(weights[n][1] for n in batch) <= 200
        seen += batch
    assert seen == list(range(len(weights)))
    assert group.due_in(0.0) is None


@given(st.integers(1, 10_000))
def test_backoff_is_bounded_and_never_zero(attempt: int) -> None:
    delay = backoff_s(attempt, None, random.Random(attempt))
    assert 0.05 < delay <= DELAY_MAX_S


def test_backoff_obeys_what_the_system_asked_for() -> None:
    assert backoff_s(1, 7.5, random.Random(0)) == 7.5
    assert backoff_s(1, 10_000.0, random.Random(0)) == 60.0


def test_one_bad_key_is_given_up_while_its_bucket_works() -> None:
    health = DependencyHealth(give_up_after_s=10)
    assert health.failed("s3://b", "k", now=0) is Verdict.RETRY
    health.succeeded("s3://b", "other")
    assert health.failed("s3://b", "k", now=9) is Verdict.RETRY, "not before its time"
    assert health.failed("s3://b", "k", now=10) is Verdict.GIVE_UP


def test_an_outage_of_all_gives_up_nobody() -> None:
    health = DependencyHealth(give_up_after_s=10)
    health.succeeded("s3://b", "earlier")
    keys = ("k1", "k2", "k3", "k4")
    for key in keys:
        health.failed("s3://b", key, now=1)
    assert [health.failed("s3://b", key, now=1000) for key in keys] == [Verdict.RETRY] * 4


def test_a_bucket_that_serves_fewer_than_it_fails_gives_up_nobody() -> None:
    health = DependencyHealth(give_up_after_s=10)
    for number in range(20):
        health.failed("s3://b", f"k{number}", now=0)
    for number in range(8):
        health.succeeded("s3://b", f"k{number}")
    assert health.failed("s3://b", "k19", now=1000) is Verdict.RETRY
    for number in range(8, 15):
        health.succeeded("s3://b", f"k{number}")
    assert health.failed("s3://b", "k19", now=1001) is Verdict.GIVE_UP, "most were served by now"


def test_who_fails_alone_is_undecided_even_where_the_bucket_worked_before() -> None:
    health = DependencyHealth(give_up_after_s=10)
    health.succeeded("s3://b", "other")
    assert health.failed("s3://b", "k", now=1) is Verdict.RETRY
    assert health.failed("s3://b", "k", now=11) is Verdict.UNKNOWN


def test_a_bucket_that_never_worked_is_given_up_while_other_buckets_work() -> None:
    health = DependencyHealth(give_up_after_s=10)
    assert health.failed("s3://typo", "k", now=0) is Verdict.RETRY
    health.succeeded("s3://good", "other")
    assert health.failed("s3://typo", "k", now=9) is Verdict.RETRY, "not before its time"
    assert health.failed("s3://typo", "k", now=10) is Verdict.GIVE_UP


def test_an_outage_of_all_of_s3_gives_up_nobody_though_the_local_disk_works() -> None:
    health = DependencyHealth(give_up_after_s=10)
    for bucket in ("s3://a", "s3://b", "s3://c", "s3://d"):
        health.failed(bucket, "k", now=0)
    health.succeeded("file://", "f")
    health.succeeded("inline", "i")
    assert health.failed("s3://a", "k", now=100) is Verdict.RETRY


def test_buckets_that_never_worked_are_not_remembered() -> None:
    health = DependencyHealth(give_up_after_s=10)
    for number in range(100):  # names come from messages
        health.failed(f"s3://b{number}", "k", now=0)
        health.forget(f"s3://b{number}", "k")
    assert health._failing == {}
    assert health._successes == {}
