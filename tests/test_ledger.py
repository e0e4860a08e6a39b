"""The ledger's answers one by one: what may be written now, and what must wait."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hrl_planner.ledger import (
    Account,
    Claim,
    Idle,
    Pods,
    PoolView,
    QuotaWrite,
    ReadFresh,
    Reservation,
    Settlement,
    Target,
    TargetClaim,
    WriteReservation,
    WriteTarget,
    next_step,
    settle,
)

BUDGET = {"H200": 8.0}


def pool(name: str, quota: int | None, reserved: int | None, gpus: float | None = 1.0) -> Account:
    return Account(name, f"uid-{name}", "7", quota, reserved, maximum=8, cost={"H200": gpus})


def settled(*pools: Account, fresh: bool = True, **desired: int) -> Settlement:
    return settle(BUDGET, pools, (), desired, fresh=fresh)


def test_a_lowering_is_written_at_once_and_a_raise_is_claimed_first() -> None:
    answer = settled(pool("a", 6, 6), pool("b", 1, 1), a=4, b=2)
    assert answer.lower == (QuotaWrite("a", "uid-a", "7", 4),)
    assert answer.book == (Claim("b", "uid-b", "7", 2),)
    assert answer.raises == ()


def test_gpus_are_free_only_once_the_pool_that_lost_them_has_released_them() -> None:
    before = settled(pool("a", 2, 6), pool("b", 2, 2), a=2, b=6)
    assert before.book is None
    assert "to be released: a (6 > 2)" in before.waits["b"]
    after = settled(pool("a", 2, 2), pool("b", 2, 2), a=2, b=6)
    assert after.book == (Claim("b", "uid-b", "7", 6),)


def test_a_raise_goes_as_far_as_what_is_free() -> None:
    answer = settled(pool("a", 5, 5), pool("b", 1, 1), a=5, b=6)
    assert answer.book == (Claim("b", "uid-b", "7", 3),)
    assert "3 of 6 replicas wait for H200" in answer.waits["b"]


def test_nothing_is_raised_on_what_a_watch_says() -> None:
    answer = settled(pool("b", 1, 1), fresh=False, b=2)
    assert answer.stale
    assert answer.book is None


def test_a_claim_is_acted_on_at_the_version_it_names_and_counts_until_that_has_passed() -> None:
    claim = Claim("a", "uid-a", "7", 6)
    pools = [pool("a", 2, 2), pool("b", 2, 2)]
    answer = settle(BUDGET, pools, (claim,), {"a": 6, "b": 6}, fresh=True)
    assert answer.raises == (QuotaWrite("a", "uid-a", "7", 6),)
    assert answer.book is None, "six of eight GPUs are claimed and two held"
    moved = [replace(pools[0], version="8"), pools[1]]
    answer = settle(BUDGET, moved, (claim,), {"a": 2, "b": 6}, fresh=True)
    assert answer.book == (Claim("b", "uid-b", "7", 6),)


def test_a_claim_of_a_pool_that_was_recreated_is_dead() -> None:
    claim = Claim("a", "another", "7", 6)
    answer = settle(BUDGET, [pool("a", 2, 2)], (claim,), {"a": 2}, fresh=True)
    assert answer.book == ()
    assert answer.raises == ()


def test_over_budget_nothing_is_granted() -> None:
    answer = settled(pool("a", 2, 9), pool("b", 0, 0), a=4, b=1)
    assert answer.book is None
    assert set(answer.waits) == {"a", "b"}


def test_over_budget_a_claim_found_open_is_ended_without_a_raise() -> None:
    claim = Claim("b", "uid-b", "7", 6)
    raised_by_hand = [pool("a", 5, 5), pool("b", 2, 2)]
    answer = settle(BUDGET, raised_by_hand, (claim,), {"a": 2, "b": 6}, fresh=True)
    assert answer.lower == (QuotaWrite("a", "uid-a", "7", 2),)
    assert answer.raises == (QuotaWrite("b", "uid-b", "7", 2),)


def test_a_pool_that_never_reported_counts_as_the_most_it_may_have() -> None:
    answer = settled(pool("a", None, None), pool("b", 0, 0), b=1)
    assert answer.book is None
    assert "has not reported: a" in answer.waits["b"]


@pytest.mark.parametrize("wanting", ["a", "b"])
def test_unknown_gpus_per_replica_stop_all_growth_of_their_type(wanting: str) -> None:
    answer = settled(pool("a", 1, 1, gpus=None), pool("b", 1, 1), **{wanting: 2})
    assert answer.book is None
    assert "unknown" in answer.waits[wanting]


def test_a_pool_that_is_deleted_gives_everything_back_before_it_goes() -> None:
    leaving = replace(pool("a", 3, 3), leaving=True)
    assert settled(leaving, a=3).lower == (QuotaWrite("a", "uid-a", "7", 0),)
    assert settled(replace(leaving, quota=0)).release == ()
    empty = replace(leaving, quota=0, reserved=0)
    assert settled(empty).release == (empty,)


def view(
    quota: int | None,
    reserved: int | None,
    target: int,
    live: int | None = None,
    draining: int = 0,
    claim: TargetClaim | None = None,
    settled: bool = True,
    fresh: bool = True,
) -> PoolView:
    pods = Pods(target if live is None else live, draining)
    at = Target(target, "5", "uid/1")
    return PoolView(quota, Reservation(reserved, claim), at, pods, settled, fresh)


CLAIM = TargetClaim(2, 4, "5", "uid/1")


def test_a_target_is_raised_by_a_claim_and_then_a_write_at_the_version_claimed() -> None:
    assert next_step(view(4, 2, 2), 4) == WriteReservation(Reservation(2, CLAIM))
    assert next_step(view(4, 2, 2, claim=CLAIM), 4) == WriteTarget(4, "5")


def test_a_lowered_quota_lowers_the_target_and_then_the_reservation() -> None:
    assert next_step(view(2, 4, 4), 4) == WriteTarget(2, "5")
    draining = view(2, 4, 2, live=2, draining=2)
    assert next_step(draining, 2) == Idle()
    assert next_step(view(2, 4, 2), 2) == WriteReservation(Reservation(2))


def test_draining_replicas_leave_no_room_for_new_ones() -> None:
    step = next_step(view(4, 4, 2, live=2, draining=2), 4)
    assert isinstance(step, Idle)
    assert "draining" in step.waits


def test_the_reservation_sinks_only_when_the_controller_must_have_caught_up() -> None:
    assert next_step(view(4, 4, 2, settled=False), 2) == Idle()
    assert next_step(view(4, 4, 2, fresh=False), 2) == ReadFresh()


def test_what_was_never_booked_is_booked_when_found() -> None:
    by_hand = view(4, 2, 6)
    assert next_step(by_hand, 6) == WriteReservation(Reservation(6))
    assert next_step(replace(by_hand, reservation=Reservation(6)), 6) == WriteTarget(4, "5")


def test_a_claim_whose_version_has_passed_acted_if_the_spec_of_the_target_changed() -> None:
    died = replace(CLAIM, version="4")
    assert next_step(view(4, 2, 2, claim=died), 2) == WriteReservation(Reservation(2))
    acted = replace(CLAIM, version="4", spec_version="uid/0")
    assert next_step(view(4, 2, 4, claim=acted), 4) == WriteReservation(Reservation(4))


def test_a_claim_that_is_in_the_way_of_a_lowered_quota_is_ended_by_a_change_of_the_target() -> None:
    assert next_step(view(2, 2, 2, claim=CLAIM), 2) == WriteTarget(3, "5")
    assert next_step(view(4, 2, 2, claim=CLAIM), 2) == Idle()


def test_a_pool_without_quota_is_counted_and_left_alone() -> None:
    assert next_step(view(None, None, 3), 9) == WriteReservation(Reservation(3))
    assert next_step(view(None, 3, 3), 9) == Idle()
    assert next_step(view(None, 3, 3), 0) == Idle()
