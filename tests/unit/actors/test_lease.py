"""The lease: an actor ends itself when nobody leads it, and never before."""

from __future__ import annotations

import threading

from shoal.actors.lease import Lease, LeaseKeeper


def test_a_lease_runs_out_when_nobody_renews_it() -> None:
    lease = Lease(120.0, now=0.0)
    assert not lease.has_run_out(119.9)
    assert lease.has_run_out(120.0)


def test_each_renewal_counts_from_its_own_time() -> None:
    lease = Lease(120.0, now=0.0)
    lease.renew(100.0)
    assert not lease.has_run_out(219.9)
    assert lease.has_run_out(220.0)


def test_the_keeper_ends_who_is_not_led() -> None:
    ended = threading.Event()
    LeaseKeeper("writer", 0.05, ended.set)
    assert ended.wait(30)


def test_a_process_that_is_no_actor_is_never_ended() -> None:
    before = threading.active_count()
    LeaseKeeper("writer", 0.0)
    assert threading.active_count() == before
