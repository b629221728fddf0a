"""The ledger of kills: what a recovery's time is, and when a kill is made good."""

from __future__ import annotations

import pytest

from tests.chaos.recovery import Ledger, percentile


def test_a_kill_is_made_good_when_its_role_is_back_and_its_probe_indexed() -> None:
    ledger = Ledger()
    kill = ledger.killed("writer", "SIGKILL", "writer", 10.0)
    kill.probe = 7
    kill.back_at = 12.0
    assert ledger.open() == [kill]
    ledger.indexed(7, 15.0)
    assert ledger.open() == []
    assert ledger.percentiles() == (5.0, 5.0, 5.0)


def test_a_role_killed_again_is_measured_from_the_last_kill() -> None:
    ledger = Ledger()
    ledger.killed("reader", "SIGKILL", "reader-0", 0.0)
    second = ledger.killed("reader", "SIGKILL", "reader-1", 6.0)
    second.back_at = 10.0
    assert ledger.open() == []
    assert ledger.percentiles() == (4.0, 4.0, 4.0)


def test_what_the_campaign_took_away_is_measured_from_when_it_gave_it_back() -> None:
    ledger = Ledger()
    broker = ledger.killed("broker", "SIGKILL", "broker", 0.0)
    s3, writer = (ledger.killed(role, "SIGKILL", role, 1.0) for role in ("s3", "writer"))
    ledger.given_back(5.0, but=broker)
    broker.back_at = s3.back_at = 5.0
    assert (s3.took_s, broker.took_s) == (0.0, 5.0)
    writer.back_at = 3.0
    writer.probe = 9
    assert ledger.indexed(9, 8.0) == [writer]
    assert writer.took_s == 3.0
    assert ledger.back_p95(lambda kill: kill is writer) == 2.0, "it was back before that, whatever was away"


def test_a_kill_during_another_recovery_is_not_alone() -> None:
    ledger = Ledger()
    first, second = (ledger.killed(role, "SIGKILL", role, 0.0) for role in ("reader", "writer"))
    assert not first.alone
    assert not second.alone
    first.back_at = second.back_at = 1.0
    assert ledger.killed("writer", "SIGKILL", "writer", 2.0).alone


@pytest.mark.parametrize(("share", "value"), [(0.5, 5), (0.95, 10), (1.0, 10), (0.1, 1)])
def test_percentiles_are_by_nearest_rank(share: float, value: float) -> None:
    assert percentile([float(number) for number in range(1, 11)], share) == value
    assert percentile([], share) == 0.0
