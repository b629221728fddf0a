"""Batches close by inputs, tokens or age, and lose nothing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shoal.embeddings.batching import Batcher

# A story is a list of steps: seconds that pass, then the tokens of an item that comes, or a batch that is taken.
STORIES = st.lists(st.tuples(st.floats(0, 2), st.one_of(st.integers(1, 120), st.none())), max_size=60)


@given(STORIES, st.integers(1, 8), st.integers(1, 200))
def test_everything_leaves_once_in_order_and_within_the_bounds(
    story: list[tuple[float, int | None]], inputs_max: int, tokens_max: int
) -> None:
    batcher: Batcher[int] = Batcher(inputs_max, tokens_max, linger_s=0.5)
    now, came, left, tokens_of = 0.0, 0, [], {}
    for seconds, tokens in [*story, *[(1.0, None)] * len(story)]:
        now += seconds
        if tokens is not None:
            tokens_of[came] = tokens
            batcher.add(came, tokens, now)
            came += 1
            continue
        batch, batch_tokens = batcher.take(now)
        assert len(batch) <= inputs_max
        assert batch_tokens == sum(tokens_of[item] for item in batch)
        assert batch_tokens <= tokens_max or len(batch) == 1
        left += batch
    assert left == list(range(came))
    assert len(batcher) == 0
    assert batcher.due_at() is None


@given(STORIES)
def test_a_batch_is_given_exactly_from_the_moment_it_is_due(story: list[tuple[float, int | None]]) -> None:
    batcher: Batcher[int] = Batcher(4, 100, linger_s=0.5)
    now = 0.0
    for seconds, tokens in story:
        now += seconds
        if tokens is not None:
            batcher.add(0, tokens, now)
            continue
        due = batcher.due_at()
        batch, _ = batcher.take(now)
        assert bool(batch) == (due is not None and due <= now)


def test_a_lone_item_waits_for_company_no_longer_than_the_linger() -> None:
    batcher: Batcher[str] = Batcher(10, 1000, linger_s=0.5)
    batcher.add("a", 1, now=10.0)
    assert batcher.take(10.49) == ([], 0)
    assert batcher.due_at() == 10.5
    assert batcher.take(10.5) == (["a"], 1)


def test_a_full_batch_waits_for_nothing() -> None:
    by_inputs: Batcher[int] = Batcher(2, 1000, linger_s=60)
    by_tokens: Batcher[int] = Batcher(100, 30, linger_s=60)
    for i in range(2):
        by_inputs.add(i, 1, now=0.0)
        by_tokens.add(i, 20, now=0.0)
    assert by_inputs.take(0.0) == ([0, 1], 2)
    assert by_tokens.take(0.0) == ([0], 20)


def test_an_item_above_the_token_bound_goes_alone() -> None:
    batcher: Batcher[str] = Batcher(10, 100, linger_s=0)
    for item, tokens in (("small", 1), ("huge", 500), ("small too", 1)):
        batcher.add(item, tokens, now=0.0)
    assert [batcher.take(0.0)[0] for _ in range(3)] == [["small"], ["huge"], ["small too"]]
