"""The fence row: it survives its JSON, its progress never goes back, and no text of others passes for one."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from shoal.errors import PermanentError
from shoal.records import Progress
from shoal.store import fence as fence_module
from shoal.store.fence import Fence, Partition
from tests.properties.profiles import examples

START = datetime(2025, 1, 20, 14, 30, tzinfo=UTC)
REMEMBERED = 4
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
PARTITIONS = st.tuples(st.sampled_from(["c1", "c2"]), st.sampled_from(["t", "commands"]), st.integers(0, 1))
REPORTS = st.lists(st.tuples(PARTITIONS, st.integers(0, 2**63 - 1) | st.integers(0, 20)), max_size=6)


@given(
    epoch=st.integers(0, 2**53), sequence=st.integers(0, 2**53), at=st.none() | st.datetimes(timezones=st.just(UTC)),
    model=TEXTS, width=st.integers(1, 10_000), token=TEXTS,
    progress=st.dictionaries(st.tuples(TEXTS, TEXTS, st.integers(0, 2**31)), st.integers(0, 2**63 - 1), max_size=5),
)  # fmt: skip
@examples(100)
def test_a_fence_comes_back_from_its_json_as_it_was(
    epoch: int, sequence: int, at: datetime | None, model: str, width: int, token: str, progress: dict[Partition, int]
) -> None:
    fence = Fence(epoch, sequence, at, model, width, 1, token, tuple(progress.items()))
    assert Fence.from_json(fence.to_json()) == fence


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=8,
)
NAMES = ["epoch", "commit_sequence", "committed_at", "model", "width", "layout", "token", "progress"]
SOUND = Fence(3, 7, START, "m", 8, 1, "t", ((("c", "t", 0), 5),))


@given(changes=st.dictionaries(st.sampled_from(NAMES), json_values), left_out=st.sets(st.sampled_from(NAMES)))
@examples(150)
def test_what_is_no_fence_is_refused_with_our_error(changes: dict[str, object], left_out: set[str]) -> None:
    body = {**json.loads(SOUND.to_json()), **changes}
    for name in left_out:
        del body[name]
    try:
        fence = Fence.from_json(json.dumps(body))
    except PermanentError:
        return
    assert not left_out
    assert Fence.from_json(fence.to_json()) == fence, "what passes for one is one"


@given(st.text() | json_values.map(json.dumps))
@examples(100)
def test_any_other_text_is_refused_with_our_error(text: str) -> None:
    with pytest.raises(PermanentError):
        Fence.from_json(text)


class ProgressMachine(RuleBasedStateMachine):
    """Commits that carry progress, from readers that change hands; the writer is killed and reads the row again."""

    def __init__(self) -> None:
        super().__init__()
        self.fence = Fence(1, 0, None, "m", 8, 1)
        self.model: dict[Partition, int] = {}  # least recently reported first
        self.commits = 0

    @rule(reports=REPORTS)
    def commit(self, reports: list[tuple[Partition, int]]) -> None:
        self.commits += 1
        before = self.fence
        now = START + timedelta(seconds=self.commits)
        self.fence = before.advanced(
            token=f"t{self.commits}", now=now, sequence=before.commit_sequence + 1,
            progress=[Progress(*partition, offset) for partition, offset in reports],
        )  # fmt: skip
        for partition, offset in reports:
            self.model[partition] = max(self.model.pop(partition, 0), offset)
        self.model = dict(list(self.model.items())[-REMEMBERED:])
        assert (self.fence.epoch, self.fence.model, self.fence.width) == (before.epoch, before.model, before.width)
        assert self.fence.commit_sequence == self.commits
        assert self.fence.committed_at == now
        for partition, offset in before.progress:
            after = self.fence.positions().get(partition)
            assert after is None or after >= offset, "progress never goes back"

    @rule()
    def kill(self) -> None:
        self.fence = Fence.from_json(self.fence.to_json())

    @invariant()
    def the_row_holds_what_was_reported_last(self) -> None:
        assert self.fence.progress == tuple(self.model.items())


def test_progress_never_goes_back_and_the_row_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fence_module, "PARTITIONS_MAX", REMEMBERED)
    ProgressMachine.TestCase.settings = examples(60, steps=20)
    ProgressMachine.TestCase("runTest").runTest()
