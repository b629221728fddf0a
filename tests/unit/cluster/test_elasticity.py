"""How many readers and fetch workers are wanted: by pressure that lasts, where another helps, and never in and out."""

from __future__ import annotations

import dataclasses
import itertools
import random
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.cluster.elasticity import FETCHERS, GAP_S, READERS, Demand, Elasticity, Flow, Pool, Staff, flow_of
from tests.fixtures.full_status import a_full_status

LOOK_S, OUT_S, IN_S = 2.0, 30.0, 300.0
NOW = datetime(2026, 1, 20, 3, tzinfo=UTC)
CALM = Flow(
    lag=0, per_s=0.0, partitions=12, crowded=0, unowned=0, full=0, unwell=None, embedder_full=False, writer_rows=0.0,
    fetching=0, room=8,
)  # fmt: skip
BURST = dataclasses.replace(CALM, lag=60_000, per_s=50.0, crowded=6)


class Scene:
    """A supervisor's looks at two pools that have at once what they want."""

    def __init__(self, readers: tuple[int, int] = (2, 16), fetchers: tuple[int, int] = (2, 16)) -> None:
        self.core = Elasticity(
            {READERS: readers, FETCHERS: fetchers}, lag_target_s=60.0, rows_max=2000, out_s=OUT_S, in_s=IN_S
        )
        self.now, self.staff = 0.0, {READERS: Staff(readers[0]), FETCHERS: Staff(fetchers[0])}

    def look(self, flow: Flow) -> dict[str, int]:
        self.now += LOOK_S
        wanted = self.core.look(flow, self.staff, self.now)
        self.staff = {name: Staff(count) for name, count in wanted.items()}
        return wanted

    def after(self, seconds: float, flow: Flow) -> dict[str, int]:
        until, wanted = self.now + seconds, {}
        while self.now < until:
            wanted = self.look(flow)
        return wanted

    def why(self, pool: str) -> str:
        return str(self.core.shown(self.staff)[pool]["why"])


def test_readers_come_once_pressure_has_lasted_and_at_most_double_at_a_time() -> None:
    scene = Scene()
    assert scene.after(OUT_S - LOOK_S, BURST)[READERS] == 2
    assert "more, once that has lasted 30 s" in scene.why(READERS)
    assert scene.after(2 * LOOK_S, BURST)[READERS] == 4
    assert scene.after(OUT_S, BURST)[READERS] == 4, "the figures are to show first what that did"
    assert scene.after(OUT_S + 2 * LOOK_S, BURST)[READERS] == 8
    assert scene.after(1000, BURST)[READERS] == 12, "one for each partition, though 16 may be"


def test_no_more_come_than_bring_the_lag_under_its_target() -> None:
    scene = Scene()
    flow = dataclasses.replace(CALM, lag=6000, per_s=80.0, crowded=6)  # 75 s with two, 50 s with three
    assert scene.after(OUT_S + 2 * LOOK_S, flow)[READERS] == 3


def test_pressure_that_breaks_off_counts_for_nothing() -> None:
    scene = Scene()
    for _ in range(20):
        scene.after(OUT_S - 2 * LOOK_S, BURST)
        assert scene.look(dataclasses.replace(BURST, lag=2000))[READERS] == 2, "40 s: within the target"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"unwell": "embedder"}, "embedder is unwell"),
        ({"per_s": 0.0}, "nothing ends"),
        ({"unowned": 1}, "changing hands"),
        ({"crowded": 1}, "a reader of its own"),
        ({"full": 1, "embedder_full": True}, "the embedder has all that it can do"),
        ({"full": 2, "writer_rows": 2000.0}, "the writer has all that it can do"),
        ({"full": 2, "fetching": 16}, "the fetch workers have all that they can do"),
        ({"lag": None}, "not known yet"),
        ({"per_s": None}, "not known yet"),
    ],
)
def test_no_reader_comes_where_another_one_would_not_help(changes: dict[str, Any], why: str) -> None:
    scene = Scene(fetchers=(2, 2))
    assert scene.after(1000, dataclasses.replace(BURST, **changes))[READERS] == 2
    assert why in scene.why(READERS)


def test_a_busy_embedder_is_no_reason_while_the_readers_do_not_get_it_enough() -> None:
    assert Scene().after(2 * OUT_S, dataclasses.replace(BURST, embedder_full=True))[READERS] > 2


def test_readers_go_once_calm_has_lasted_half_of_them_at_a_time() -> None:
    scene = Scene()
    scene.after(1000, BURST)
    assert scene.after(IN_S - LOOK_S, CALM)[READERS] == 12
    assert scene.after(2 * LOOK_S + OUT_S, CALM)[READERS] == 6
    assert scene.after(IN_S + OUT_S, CALM)[READERS] == 3
    assert scene.after(10 * IN_S, CALM)[READERS] == 2


def test_a_calm_that_only_the_newcomers_make_sends_none_of_them_away() -> None:
    scene = Scene()
    scene.after(1000, BURST)
    # Each did 25 a second under pressure; 12 of them do what comes in, 200 a second, at two thirds of that.
    steady = dataclasses.replace(CALM, lag=100, per_s=200.0)
    assert scene.after(20 * IN_S, steady)[READERS] == 12
    assert scene.after(20 * IN_S, dataclasses.replace(steady, per_s=50.0))[READERS] == 3


def test_fetch_workers_follow_their_queue() -> None:
    scene = Scene()
    long = dataclasses.replace(CALM, fetching=16, room=8)
    assert scene.after(OUT_S + 2 * LOOK_S, long) == {READERS: 2, FETCHERS: 4}
    even = dataclasses.replace(CALM, fetching=16, room=16)
    assert scene.after(10 * IN_S, even)[FETCHERS] == 4, "neither long nor short"
    assert scene.after(10 * IN_S, dataclasses.replace(CALM, room=16))[FETCHERS] == 2


def test_nothing_more_is_wanted_while_some_have_no_place_yet_but_fewer_may_be() -> None:
    scene = Scene()
    wanted = scene.after(OUT_S + 2 * LOOK_S, BURST)[READERS]
    for _ in range(500):
        scene.now += LOOK_S
        assert scene.core.look(BURST, {READERS: Staff(2, pending=2), FETCHERS: Staff(2)}, scene.now)[READERS] == wanted
    assert "2 of 4 not at work yet" in scene.core.pools[READERS].why
    found = {}
    for _ in range(200):
        scene.now += LOOK_S
        found = scene.core.look(CALM, {READERS: Staff(2, pending=2), FETCHERS: Staff(2)}, scene.now)
    assert found[READERS] == 2


def test_nothing_changes_while_some_are_on_their_way_out() -> None:
    pool = Pool(1, 8, 1.0, 1.0)
    for now in range(100):
        assert pool.follow(Demand(8, "much to do"), Staff(1, leaving=1), now) == 1
    assert pool.why == "much to do; 1 on the way out"


def test_looks_that_are_far_apart_say_nothing_of_what_was_between_them() -> None:
    pool = Pool(1, 8, 30.0, 30.0)
    for number in range(100):
        assert pool.follow(Demand(8, ""), Staff(1), number * (GAP_S + 1)) == 1


def test_a_pool_without_room_to_move_is_fixed_whatever_happens() -> None:
    scene = Scene(readers=(3, 3))
    assert scene.after(1000, BURST)[READERS] == 3
    assert scene.why(READERS) == "fixed"


def test_another_supervisor_goes_on_with_what_was_wanted_within_its_own_bounds() -> None:
    scene = Scene()
    shown = Scene((1, 40)).core.shown(scene.staff)
    shown[READERS]["wanted"] = 40
    scene.core.resume(shown)
    assert scene.core.pools[READERS].wanted == 16
    for odd in (None, {}, {"readers": None}, {"readers": {"wanted": "9"}}):
        scene.core.resume(odd)
    assert scene.core.pools[READERS].wanted == 16


looks = st.builds(
    Flow,
    lag=st.none() | st.integers(0, 10**7), per_s=st.none() | st.floats(0, 10**4), partitions=st.integers(0, 40),
    crowded=st.integers(0, 40), unowned=st.sampled_from((0, 0, 0, 1)), full=st.integers(0, 4),
    unwell=st.sampled_from((None, None, "kafka")), embedder_full=st.booleans(), writer_rows=st.floats(0, 10**4),
    fetching=st.integers(0, 500), room=st.integers(0, 64),
)  # fmt: skip


@given(
    st.integers(1, 8), st.integers(0, 24), st.lists(st.tuples(looks, st.integers(1, 200)), max_size=8),
    st.integers(0, 3), st.integers(0, 3),
)  # fmt: skip
def test_the_bounds_always_hold_and_steps_are_never_closer_than_the_pressure_must_last(
    least: int, more: int, flows: list[tuple[Flow, int]], pending: int, leaving: int
) -> None:
    core = Elasticity(
        {READERS: (least, least + more), FETCHERS: (least, least + more)},
        lag_target_s=60.0, rows_max=2000, out_s=OUT_S, in_s=IN_S,
    )  # fmt: skip
    now, before, changes = 0.0, least, []
    for flow, times in flows:
        for _ in range(times):
            now += LOOK_S
            staff = Staff(max(0, before - pending), pending, leaving * (flow.fetching % 2))
            wanted = core.look(flow, {READERS: staff, FETCHERS: staff}, now)
            assert all(least <= count <= least + more for count in wanted.values())
            if wanted[READERS] != before:
                assert wanted[READERS] <= 2 * before
                assert 2 * wanted[READERS] >= before
                changes.append((now, wanted[READERS] > before))
                before = wanted[READERS]
    for (earlier, _), (later, is_more) in itertools.pairwise(changes):
        assert later - earlier >= 2 * OUT_S if is_more else later - earlier >= IN_S


@pytest.mark.parametrize("seed", range(5))
def test_a_noisy_load_settles_and_stays(seed: int) -> None:
    """A queue, and readers that each do 20 a second: 110 a second come in, each look another 50 % more or less, and
    the figures are averages of the last minute. It ends with as many as keep up, and stays there for hours."""
    rng, scene = random.Random(seed), Scene((2, 16))
    lag, done, readers, history = 0.0, [0.0] * 30, 2, []
    for _ in range(4 * 1800):
        lag += LOOK_S * 110 * rng.uniform(0.5, 1.5)
        did = min(lag, LOOK_S * 20 * readers * rng.uniform(0.9, 1.1))
        lag -= did
        done = [*done[1:], did]
        held = did / LOOK_S  # each message is in hand for a second or so
        flow = dataclasses.replace(CALM, lag=int(lag + held), per_s=sum(done) / 60, crowded=max(1, 12 // readers))
        readers = scene.look(flow)[READERS]
        history.append(readers)
    settled = history[1800:]
    assert min(settled) >= 6, "fewer could not keep up"
    assert sum(a != b for a, b in itertools.pairwise(settled)) <= 1, history[::60]
    assert lag < 60 * 110


def test_what_a_status_says_is_read_from_one_that_the_supervisor_made() -> None:
    flow = flow_of(a_full_status(NOW), "shoal_commands")
    assert flow == Flow(
        lag=2, per_s=None, partitions=1, crowded=1, unowned=0, full=0, unwell=None, embedder_full=False,
        writer_rows=25.0, fetching=1, room=4,
    )  # fmt: skip
