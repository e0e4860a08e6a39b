"""Each safeguard of the planners taken out: schedules that find no fault must find one now."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("kubernetes")

from hrl_planner.control import GlobalPlanner, LocalPlanner
from hrl_planner.control import global_planner as global_side
from hrl_planner.kube.crds import GROUPS, POOLS
from hrl_planner.ledger import WriteReservation, WriteTarget
from hrl_planner.ledger import quotas as quotas_side
from tests.modelled_kubernetes import DEPLOYMENTS, Answer, ModelApi, Request
from tests.planner_cluster import PlannerCluster, Watches

Patch = Callable[[pytest.MonkeyPatch], None]
MOST_SCHEDULES = 2000


def unguarded(plural: str, part: str) -> Patch:
    """The server accepts writes of a kind whatever the object's version is."""

    def change(patch: pytest.MonkeyPatch) -> None:
        answer = ModelApi.answer

        def careless(self: ModelApi, request: Request) -> Answer:
            if request.writes and (request.plural, request.part) == (plural, part):
                body = dict(request.body or {})
                metadata = dict(body.get("metadata", {}))
                metadata.pop("resourceVersion", None)
                request = request._replace(body=body | {"metadata": metadata})
            return answer(self, request)

        patch.setattr(ModelApi, "answer", careless)

    change.__name__ = f"does_not_guard_{plural}_{part or 'spec'}"
    return change


def counts_pods_of_the_watch(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Watches, "pods_now", Watches.pods)


def grants_on_pools_of_the_watch(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Watches, "pools_now", Watches.pools)


def reads_the_book_after_the_pools(patch: pytest.MonkeyPatch) -> None:
    def look(self: Any) -> Any:
        listed = self._look_at.pools_now(self.name)
        return global_side._Seen(self._connector.group(self.name), listed, fresh=True)

    patch.setattr(GlobalPlanner, "_look_afresh", look)


def takes_the_past_for_fresh_after_a_write(patch: pytest.MonkeyPatch) -> None:
    write = GlobalPlanner._write

    def fresh(self: Any, seen: Any, what: Any) -> Any:
        done, after = write(self, seen, what)
        return done, replace(after, fresh=True)

    patch.setattr(GlobalPlanner, "_write", fresh)


def takes_what_was_read_before_the_book_for_fresh(patch: pytest.MonkeyPatch) -> None:
    write = LocalPlanner._write

    def fresh(self: Any, seen: Any, step: Any) -> Any:
        done = write(self, seen, step)
        return done and (done[0], replace(done[1], fresh=True))

    patch.setattr(LocalPlanner, "_write", fresh)


def acts_on_the_watch_alone(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(LocalPlanner, "_look_afresh", lambda self, seen: replace(seen, fresh=True))


def does_not_wait_for_the_controller(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(LocalPlanner, "_settled", lambda self, target, pool: True)


def scales_without_a_claim(patch: pytest.MonkeyPatch) -> None:
    step_of = LocalPlanner._step

    def at_once(self: Any, seen: Any, *, active: bool) -> Any:
        step = step_of(self, seen, active=active)
        if isinstance(step, WriteReservation) and step.reservation.claim is not None:
            return WriteTarget(step.reservation.claim.to, seen.target.target.version)
        return step

    patch.setattr(LocalPlanner, "_step", at_once)


def writes_quotas_without_the_book(patch: pytest.MonkeyPatch) -> None:
    settle = quotas_side.settle

    def at_once(*a: Any, fresh: bool) -> Any:
        settlement = settle(*a, fresh=fresh)
        booked = [
            quotas_side.QuotaWrite(claim.pool, claim.uid, claim.version, claim.quota)
            for claim in settlement.book or ()
        ]
        return replace(settlement, raises=(*settlement.raises, *booked))

    patch.setattr(global_side, "settle", at_once)


def grants_before_release(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(quotas_side.Account, "counts", property(lambda self: self.quota or 0))


def lets_pools_go_with_replicas(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(quotas_side, "_empty", lambda account: account.quota == 0)


MUTANTS: list[Patch] = [
    unguarded(GROUPS, "status"),
    unguarded(POOLS, ""),
    unguarded(POOLS, "status"),
    unguarded(DEPLOYMENTS, "scale"),
    counts_pods_of_the_watch,
    grants_on_pools_of_the_watch,
    reads_the_book_after_the_pools,
    takes_the_past_for_fresh_after_a_write,
    takes_what_was_read_before_the_book_for_fresh,
    acts_on_the_watch_alone,
    does_not_wait_for_the_controller,
    scales_without_a_claim,
    writes_quotas_without_the_book,
    grants_before_release,
    lets_pools_go_with_replicas,
]


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_schedules_find_a_planner_that(mutant: Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant(monkeypatch)
    with pytest.raises(AssertionError, match=r"may come to be|granted or held"):
        for seed in range(MOST_SCHEDULES):
            PlannerCluster(seed, hands=False).run()
