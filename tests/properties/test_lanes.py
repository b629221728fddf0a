"""Whatever is brought, nobody starves: each lane that waits gets its share, and queries don't wait for backlogs."""

from __future__ import annotations

from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from shoal.embeddings.lanes import LANES, SHARES, FairShares
from shoal.embeddings.purposes import Lane
from tests.properties.profiles import examples

TOKENS_MAX = 1000
LANE = st.sampled_from(LANES)
# Steps: a batch of so many tokens comes to a lane, or (None) the next one is served.
STORIES = st.lists(st.one_of(st.none(), st.tuples(LANE, st.integers(1, TOKENS_MAX))), max_size=300)


def bound(lane: Lane) -> float:
    """How far a lane may be behind its share: a batch of its own and, as far as theirs reach, one of each other."""
    return TOKENS_MAX * (1 + SHARES[lane] * len(LANES))


@given(story=STORIES, always=LANE)
@examples(200)
def test_a_lane_that_waits_gets_its_share_of_what_is_served_meanwhile(
    story: list[tuple[Lane, int] | None], always: Lane
) -> None:
    shares = FairShares()
    waiting: dict[Lane, deque[int]] = {lane: deque() for lane in LANES}
    since: dict[Lane, list[int] | None] = dict.fromkeys(LANES)  # [served to it, served in all] while it waits
    for step in [*((always, TOKENS_MAX) for _ in range(20)), *story, *[None] * 40]:
        if step is not None:
            lane, tokens = step
            if not waiting[lane]:
                shares.began(lane)
                since[lane] = [0, 0]
            waiting[lane].append(tokens)
            continue
        busy = [lane for lane in LANES if waiting[lane]]
        if not busy:
            continue
        lane = shares.first(busy)
        assert waiting[lane], "only one that waits has its turn"
        tokens = waiting[lane].popleft()
        shares.served(lane, tokens)
        for each in busy:
            counted = since[each]
            assert counted is not None
            counted[0] += tokens if each == lane else 0
            counted[1] += tokens
            assert counted[0] >= SHARES[each] * counted[1] - bound(each), (each, counted)
        if not waiting[lane]:
            since[lane] = None


@given(
    backlog=st.lists(st.tuples(st.sampled_from(LANES[1:]), st.integers(1, TOKENS_MAX)), min_size=1, max_size=100),
    served=st.integers(0, 99),
)
@examples(100)
def test_a_query_is_next_whenever_it_comes(backlog: list[tuple[Lane, int]], served: int) -> None:
    shares = FairShares()
    waiting: dict[Lane, deque[int]] = {lane: deque() for lane in LANES}
    for lane, tokens in backlog:
        if not waiting[lane]:
            shares.began(lane)
        waiting[lane].append(tokens)
    for _ in range(min(served, len(backlog) - 1)):
        lane = shares.first([each for each in LANES if waiting[each]])
        shares.served(lane, waiting[lane].popleft())
    shares.began("query")
    assert shares.first([each for each in LANES if waiting[each] or each == "query"]) == "query"


def test_under_load_the_shares_are_what_they_say() -> None:
    shares = FairShares()
    got = dict.fromkeys(LANES, 0)
    for lane in LANES:
        shares.began(lane)
    for _ in range(10_000):
        lane = shares.first(LANES)
        shares.served(lane, 100)
        got[lane] += 100
    assert {lane: round(got[lane] / 1_000_000, 2) for lane in LANES} == SHARES
