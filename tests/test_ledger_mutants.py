"""Each safeguard of the ledger taken out: the machine that finds no fault must find one now."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from hrl_planner.ledger import (
    Account,
    PoolView,
    QuotaWrite,
    Reservation,
    WriteReservation,
    WriteTarget,
)
from hrl_planner.ledger import quotas as quotas_side
from hrl_planner.ledger import replicas as replicas_side
from tests.ledger_machine import LedgerMachine
from tests.ledger_model import Send, World

Patch = Callable[[pytest.MonkeyPatch], None]
SEARCH = settings(
    max_examples=1500,
    stateful_step_count=12,
    database=None,
    derandomize=True,
    phases=[Phase.generate],
    print_blob=False,
    suppress_health_check=list(HealthCheck),
)


def grants_before_release(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Account, "counts", property(lambda self: self.quota or 0))


def forgets_reserved_of_the_lowered(patch: pytest.MonkeyPatch) -> None:
    """A lowered quota counts as followed although nothing proves it."""

    def counts(self: Account) -> int:
        return self.maximum if self.reserved is None else max(self.quota or 0, self.seen)

    patch.setattr(Account, "counts", property(counts))


def believes_silent_pools_empty(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Account, "counts", property(lambda a: max(a.quota or 0, a.reserved or 0, a.seen)))


def ignores_claims_of_others(patch: pytest.MonkeyPatch) -> None:
    used = quotas_side.counted
    patch.setattr(quotas_side, "counted", lambda budget, pools, claims: used(budget, pools, ()))


def grants_on_what_the_watch_says(patch: pytest.MonkeyPatch) -> None:
    settle = quotas_side.settle
    patch.setattr(quotas_side, "settle", lambda *a, fresh: settle(*a, fresh=True))


def grants_what_is_counted_although_over_budget(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        quotas_side, "_costs_nothing", lambda account, want, free: min(want, account.counts)
    )


def raises_quotas_without_the_book(patch: pytest.MonkeyPatch) -> None:
    settle = quotas_side.settle

    def at_once(*a: Any, fresh: bool) -> quotas_side.Settlement:
        settlement = settle(*a, fresh=fresh)
        booked = [
            QuotaWrite(claim.pool, claim.uid, claim.version, claim.quota)
            for claim in settlement.book or ()
        ]
        return replace(settlement, raises=(*settlement.raises, *booked))

    patch.setattr(quotas_side, "settle", at_once)


def unguarded(kind: str) -> Patch:
    """Writes of a kind are accepted whatever the object's version is."""

    def change(patch: pytest.MonkeyPatch) -> None:
        deliver = World.deliver

        def careless(self: World, write: Send) -> bool:
            if write.kind == kind == "book":
                write = write._replace(version=self.group.version)
            elif write.kind == kind == "target":
                write = write._replace(version=int(self.targets[write.pool].version))
            elif write.kind == kind and write.pool in self.pools:
                write = write._replace(version=self.pools[write.pool].version)
            return deliver(self, write)

        patch.setattr(World, "deliver", careless)

    change.__name__ = f"unguarded_{kind}_writes"
    return change


def lets_pools_go_with_replicas(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(quotas_side, "_empty", lambda account: account.quota == 0)


def local_trusts_its_watch(patch: pytest.MonkeyPatch) -> None:
    step = replicas_side.next_step
    patch.setattr(
        replicas_side, "next_step", lambda view, wanted: step(replace(view, fresh=True), wanted)
    )


def local_does_not_wait_for_the_controller(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(World, "settled", lambda self, name: True)


def local_forgets_draining_replicas(patch: pytest.MonkeyPatch) -> None:
    def holds(self: PoolView) -> int:
        return max(self.pods.live, self.target.replicas)

    patch.setattr(PoolView, "holds", property(holds))


def local_raises_without_a_claim(patch: pytest.MonkeyPatch) -> None:
    raising = replicas_side._raise

    def at_once(view: PoolView, want: int) -> replicas_side.Step:
        step = raising(view, want)
        if isinstance(step, WriteReservation) and step.reservation.claim is not None:
            return WriteTarget(step.reservation.claim.to, view.target.version)
        return step

    patch.setattr(replicas_side, "_raise", at_once)


def local_strikes_out_claims_that_acted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(replicas_side, "Reservation", lambda n, claim=None: Reservation(n, claim))
    with_claim = replicas_side._with_claim

    def strike(view: PoolView, claim: Any, want: int) -> Any:
        step = with_claim(view, claim, want)
        if isinstance(step, WriteReservation):
            return WriteReservation(replace(view.reservation, claim=None))
        return step

    patch.setattr(replicas_side, "_with_claim", strike)


def local_strikes_out_claims_that_may_act(patch: pytest.MonkeyPatch) -> None:
    with_claim = replicas_side._with_claim

    def strike(view: PoolView, claim: Any, want: int) -> Any:
        if want <= view.target.replicas and view.fresh:
            return WriteReservation(replace(view.reservation, claim=None))
        return with_claim(view, claim, want)

    patch.setattr(replicas_side, "_with_claim", strike)


def local_reserves_only_what_is_asked_for(patch: pytest.MonkeyPatch) -> None:
    """Room is taken from the target, so a quick down and up stacks on draining replicas."""
    raising = replicas_side._raise

    def stack(view: PoolView, want: int) -> replicas_side.Step:
        fewer = replace(view.reservation, replicas=view.target.replicas)
        return raising(replace(view, reservation=fewer), want)

    patch.setattr(replicas_side, "_raise", stack)


def local_ignores_its_quota(patch: pytest.MonkeyPatch) -> None:
    step = replicas_side.next_step
    patch.setattr(
        replicas_side,
        "next_step",
        lambda view, wanted: step(view if view.quota is None else replace(view, quota=8), wanted),
    )


MUTANTS: list[Patch] = [
    grants_before_release,
    forgets_reserved_of_the_lowered,
    believes_silent_pools_empty,
    ignores_claims_of_others,
    grants_on_what_the_watch_says,
    grants_what_is_counted_although_over_budget,
    raises_quotas_without_the_book,
    unguarded("book"),
    unguarded("quota"),
    unguarded("target"),
    unguarded("reservation"),
    lets_pools_go_with_replicas,
    local_trusts_its_watch,
    local_does_not_wait_for_the_controller,
    local_forgets_draining_replicas,
    local_raises_without_a_claim,
    local_strikes_out_claims_that_acted,
    local_strikes_out_claims_that_may_act,
    local_reserves_only_what_is_asked_for,
    local_ignores_its_quota,
]


class Endless(LedgerMachine):
    """Faults never stop: what is looked for is a budget exceeded, not a plan never reached."""

    def teardown(self) -> None:
        pass


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_the_machine_finds_a_ledger_that(mutant: Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant(monkeypatch)
    with pytest.raises(AssertionError, match=r"may come to be|granted or held"):
        run_state_machine_as_test(Endless, settings=SEARCH)
