"""The global planner of one group: plans now and then, and brings quotas to the plan all the time.

A plan is decided every `intervals.globalS`. In between, every `localS`, what has been released
since is granted to those who wait. The plan in force stands in the group's status, so a planner
that starts anew goes on with it. Which writes are allowed, the ledger says, and what it has to
know for certain is read from the API server; the rest may be as old as a watch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from hrl_planner.control.conditions import condition, event
from hrl_planner.control.connector import Connector, PoolList
from hrl_planner.control.decide import Allocator, GroupPlan, plannable
from hrl_planner.control.decision import Decision
from hrl_planner.control.metrics import PoolMetrics
from hrl_planner.control.requests import NotFoundError
from hrl_planner.control.watched import Reader
from hrl_planner.errors import HrlPlannerError
from hrl_planner.kube.convert import accounts_of, budget_of
from hrl_planner.kube.crds import FINALIZER
from hrl_planner.kube.resources import ServingGroup
from hrl_planner.ledger import Account, Claim, Settlement, counted, settle

# Of settling in one round: lower, read, claim, raise, read, strike out, and conflicts.
_MOST_STEPS = 10
COMPONENT = "hrl-planner-global"


@dataclass(frozen=True, slots=True)
class GlobalRound:
    """What a round read, decided and did.

    Attributes:
        mode: shadow or active.
        plan: made in this round; None if none was due, or none could be made.
        planned: quotas by the plan in force.
        quotas: that the pools have now; None for one without.
        budget: amount of every bounded resource.
        used: how much of it is granted or held; infinite if unknown.
        settlement: what the ledger said last.
        written: writes that were accepted, in words.
        error: why there is no new plan.
    """

    mode: str
    plan: GroupPlan | None
    planned: Mapping[str, int]
    quotas: Mapping[str, int | None]
    budget: Mapping[str, float]
    used: Mapping[str, float]
    settlement: Settlement
    written: tuple[str, ...]
    error: str = ""

    @property
    def decision(self) -> Decision | None:
        """Where the plan of this round comes from."""
        return None if self.plan is None else self.plan.decision


@dataclass(frozen=True)
class _Seen:
    """A group and its pools, and whether both are known to be how things are."""

    group: ServingGroup
    listed: PoolList
    fresh: bool

    @cached_property
    def claims(self) -> tuple[Claim, ...]:
        """The group's book."""
        found = self.group.status.claims
        return tuple(Claim(c.pool, c.uid, c.version, c.quota) for c in found)

    @cached_property
    def accounts(self) -> list[Account]:
        """The pools' accounts; a pool nobody understands may hold anything of everything."""
        unknown: dict[str, float | None] = dict.fromkeys(budget_of(self.group))
        strangers = [
            Account(name, "", "", quota=None, reserved=None, maximum=1, cost=unknown)
            for name in self.listed.unreadable
        ]
        return [*accounts_of(self.group, self.listed.pools), *strangers]

    @property
    def used(self) -> Mapping[str, float]:
        """How much of every bounded resource is granted or held; infinite if unknown."""
        return counted(budget_of(self.group), self.accounts, self.claims)

    def settle(self, quotas: Mapping[str, int], *, fresh: bool) -> Settlement:
        """Return what the ledger says of it."""
        return settle(budget_of(self.group), self.accounts, self.claims, quotas, fresh=fresh)


class GlobalPlanner:
    """See the module.

    Args:
        connector: of the group's namespace.
        name: of the group.
        metrics: what is known of the traffic.
        clock: seconds, monotonic.
        look: where to look first; absent: at the API server itself.
        dry_run: write nothing.
    """

    def __init__(
        self,
        connector: Connector,
        name: str,
        metrics: PoolMetrics,
        clock: Callable[[], float],
        *,
        look: Reader | None = None,
        dry_run: bool = False,
    ) -> None:
        """See the class."""
        self.name = name
        self.interval_s = 10.0
        self._connector = connector
        self._look_at = look or connector
        self._allocator = Allocator(metrics)
        self._clock = clock
        self._dry_run = dry_run
        self._next_plan_s = -math.inf

    def round(self) -> GlobalRound:
        """Look once, decide if it is time to, write what is allowed.

        Raises:
            KubeError: if the API server refuses or does not know the group.
        """
        try:
            group = self._look_at.group(self.name)
        except NotFoundError:
            self._let_go()
            raise
        seen = _Seen(group, self._look_at.pools(self.name), fresh=False)
        self.interval_s = group.spec.intervals.local_s
        plan, error = self._plan(group, seen.listed)
        quotas = dict(group.status.planned) if plan is None else plan.quotas
        writes = group.spec.policy.mode == "active" and not self._dry_run
        seen, settlement, written = self._settle(seen, quotas, writes=writes)
        if group.spec.policy.mode == "shadow":
            self._let_go()
        if not self._dry_run:
            self._report(seen, plan, settlement, error)
        return GlobalRound(
            group.spec.policy.mode,
            plan,
            quotas,
            {pool.name: pool.spec.quota for pool in seen.listed.pools},
            budget_of(group),
            seen.used,
            settlement,
            tuple(written),
            error,
        )

    def _plan(self, group: ServingGroup, listed: PoolList) -> tuple[GroupPlan | None, str]:
        now_s = self._clock()
        if now_s < self._next_plan_s:
            return None, ""
        try:
            plan = self._allocator.plan(group, listed.pools, now_s)
        except HrlPlannerError as error:
            return None, str(error)
        self._next_plan_s = now_s + group.spec.intervals.global_s
        return plan, ""

    def _let_go(self) -> None:
        """Let deleted pools go at once where no budget is enforced."""
        leaving = [
            pool
            for pool in self._look_at.pools(self.name).pools
            if FINALIZER in pool.metadata.finalizers and pool.metadata.deletion_timestamp
        ]
        if not leaving or self._dry_run or self._guards_a_budget():
            return
        for pool in leaving:
            self._connector.release(pool)

    def _guards_a_budget(self) -> bool:
        """Ask the API server itself: a watch may still say what was true a moment ago."""
        try:
            return self._connector.group(self.name).spec.policy.mode == "active"
        except NotFoundError:
            return False

    def _settle(
        self, seen: _Seen, quotas: Mapping[str, int], *, writes: bool
    ) -> tuple[_Seen, Settlement, list[str]]:
        """Write what the ledger allows until it allows no more."""
        written: list[str] = []
        settlement = Settlement()
        for _ in range(_MOST_STEPS):
            settlement = seen.settle(quotas, fresh=seen.fresh)
            if settlement.stale:
                forecast = seen.settle(quotas, fresh=True)
                if writes and forecast.book is not None:
                    seen = self._look_afresh()
                    continue
                # Nothing would come of reading afresh but another wording of who waits.
                settlement = replace(settlement, waits=forecast.waits)
            if not writes:
                break
            done, seen = self._write(seen, settlement)
            written += done
            if not done:
                break
        return seen, settlement, written

    def _look_afresh(self) -> _Seen:
        group = self._connector.group(self.name)  # the book, before the pools
        return _Seen(group, self._connector.pools(self.name), fresh=True)

    def _write(self, seen: _Seen, what: Settlement) -> tuple[list[str], _Seen]:
        """Return what was done, in words, and how things are then."""
        pools = {pool.name: pool for pool in seen.listed.pools}
        done = []
        for write in (*what.lower, *what.raises):
            before = pools[write.pool]
            after = self._connector.write_quota(write, before)
            if after is not None:
                pools[write.pool] = after
                done.append(f"{write.pool}: quota {before.spec.quota} -> {write.quota}")
        for account in what.release:
            if self._connector.release(pools[account.name]):
                del pools[account.name]
                done.append(f"{account.name}: released")
        group = seen.group
        if what.book is not None:
            book = [
                {"pool": c.pool, "uid": c.uid, "version": c.version, "quota": c.quota}
                for c in what.book
            ]
            booked = self._connector.write_group_status(group, {"claims": book})
            if booked is not None:
                group = booked
                done.append(
                    "claims: " + (", ".join(f"{c.pool} {c.quota}" for c in what.book) or "none")
                )
        listed = PoolList(tuple(pools.values()), seen.listed.unreadable)
        return done, _Seen(group, listed, fresh=False)

    def _report(
        self, seen: _Seen, plan: GroupPlan | None, settlement: Settlement, error: str
    ) -> None:
        """Bring the group's status up to date, and tell what changed."""
        group, listed = seen.group, seen.listed
        status: dict[str, Any] = {"observedGeneration": group.metadata.generation}
        if plan is not None:
            status |= {"planned": _replaced(group.status.planned, plan.quotas)}
            status |= {"reason": plan.reason}
            if plan.flows is not None:
                before = group.status.flows
                status["flows"] = _replaced(before, plan.flows) | {
                    name: _replaced(before.get(name, {}), rates)
                    for name, rates in plan.flows.items()
                }
        status["waits"] = _replaced(group.status.waits, settlement.waits)
        used = seen.used
        finite = {name: amount for name, amount in used.items() if math.isfinite(amount)}
        status["granted"] = _replaced(group.status.granted, finite)
        status["conditions"] = self._conditions(group, listed, plan, used, error)
        now = group.status.model_dump(mode="json", by_alias=True)
        if any(now.get(name) != value for name, value in status.items()):
            self._connector.write_group_status(group, status)
        if plan is not None and plan.quotas != group.status.planned:
            self._connector.event(
                event(
                    "ServingGroup",
                    group.metadata,
                    "Planned",
                    _words(plan),
                    COMPONENT,
                    warning=False,
                )
            )

    def _conditions(
        self,
        group: ServingGroup,
        listed: PoolList,
        plan: GroupPlan | None,
        used: Mapping[str, float],
        error: str,
    ) -> list[dict[str, Any]]:
        before = {c.type: c for c in group.status.conditions}
        over = [
            f"{r}: {used[r]:g} of {n:g}" for r, n in budget_of(group).items() if used[r] > n + 1e-6
        ]
        result = [
            condition(
                group.status.conditions, "WithinBudget", not over,
                "OverBudget" if over else "Fits", "; ".join(over),
            )
        ]  # fmt: skip
        left_out = {**plannable(group, listed.pools)[1], **listed.unreadable}
        result.append(
            condition(
                group.status.conditions, "AllPoolsPlanned", not left_out,
                "PoolsLeftOut" if left_out else "Complete",
                "; ".join(f"{name}: {why}" for name, why in left_out.items()),
            )
        )  # fmt: skip
        if plan is not None or error:
            planned = not error
            result.append(
                condition(
                    group.status.conditions, "Planned", planned,
                    "Decided" if planned else "NoPlan", error,
                )
            )  # fmt: skip
        kinds = {c["type"] for c in result}
        kept = [c for kind, c in before.items() if kind not in kinds]
        # As the status is read back, so that an unchanged one is recognised.
        made = [{**c, "observedGeneration": None} for c in result]
        return [*made, *(c.model_dump(by_alias=True) for c in kept)]


def _replaced(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Return a merge patch from one mapping to another: what is gone is null."""
    return {name: None for name in before if name not in after} | dict(after)


def _words(plan: GroupPlan) -> str:
    quotas = ", ".join(f"{name} {quota}" for name, quota in plan.quotas.items())
    return f"{quotas} ({plan.reason})" if plan.reason else quotas
