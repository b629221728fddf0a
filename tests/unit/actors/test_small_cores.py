"""Backpressure, group commit and retry: the small pure cores beside the actors."""

import random

from hypothesis import given
from hypothesis import strategies as st

from shoal.actors.backpressure import Credits
from shoal.actors.group_commit import GroupCommit
from shoal.actors.retry import DELAY_MAX_S, DependencyHealth, backoff_s


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
    assert not health.failed("s3://b", "k", first_failed_at=0, now=0)
    health.succeeded("s3://b", "other", now=5)
    assert not health.failed("s3://b", "k", first_failed_at=0, now=9), "not before its time"
    assert health.failed("s3://b", "k", first_failed_at=0, now=10)


def test_an_outage_of_all_gives_up_nobody() -> None:
    health = DependencyHealth(give_up_after_s=10)
    health.succeeded("s3://b", "earlier", now=0)
    for key in ("k1", "k2"):
        health.failed("s3://b", key, first_failed_at=1, now=1)
    assert not health.failed("s3://b", "k1", first_failed_at=1, now=1000)
    assert not health.failed("s3://b", "k2", first_failed_at=1, now=1000)


def test_a_dependency_that_never_worked_gives_up_nobody() -> None:
    health = DependencyHealth(give_up_after_s=10)
    assert not health.failed("s3://typo", "k", first_failed_at=0, now=1000)


def test_a_lone_failing_key_is_given_up_on_a_quiet_but_healthy_bucket() -> None:
    health = DependencyHealth(give_up_after_s=10)
    health.succeeded("s3://b", "other", now=0)
    assert health.failed("s3://b", "k", first_failed_at=1, now=11)


def test_a_bucket_that_never_worked_is_given_up_while_other_buckets_work() -> None:
    health = DependencyHealth(give_up_after_s=10)
    assert not health.failed("s3://typo", "k", first_failed_at=0, now=0)
    health.succeeded("s3://good", "other", now=5)
    assert not health.failed("s3://typo", "k", first_failed_at=0, now=9), "not before its time"
    assert health.failed("s3://typo", "k", first_failed_at=0, now=10)


def test_an_outage_of_all_of_s3_gives_up_nobody_though_the_local_disk_works() -> None:
    health = DependencyHealth(give_up_after_s=10)
    for bucket in ("s3://a", "s3://b"):
        health.failed(bucket, "k", first_failed_at=0, now=0)
    health.succeeded("file://", "f", now=50)
    health.succeeded("inline", "i", now=50)
    assert not health.failed("s3://a", "k", first_failed_at=0, now=100)


def test_buckets_that_never_worked_are_not_remembered() -> None:
    health = DependencyHealth(give_up_after_s=10)
    for number in range(100):  # names come from messages
        health.failed(f"s3://b{number}", "k", first_failed_at=0, now=0)
        health.forget(f"s3://b{number}", "k")
    assert health._dependencies == {}
