"""The global planner of one group: plans now and then, and brings quotas to the plan all the time.

A plan is decided every `intervals.globalS`. In between, every `localS`, what has been released
since is granted to those who wait. The plan in force stands in the group's status, so a planner
that starts anew goes on with it. Which writes are allowed, the ledger says, read by read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from hrl_planner.control.conditions import condition, event
from hrl_planner.control.connector import Connector, PoolList
from hrl_planner.control.decide import Allocator, GroupPlan, plannable
from hrl_planner.control.decision import Decision
from hrl_planner.control.metrics import PoolMetrics
from hrl_planner.control.requests import NotFoundError
from hrl_planner.errors import HrlPlannerError
from hrl_planner.kube.convert import accounts_of, budget_of
from hrl_planner.kube.crds import FINALIZER
from hrl_planner.kube.resources import ServingGroup
from hrl_planner.ledger import Account, Claim, Settlement, counted, settle

_MOST_STEPS = 8  # of settling in one round: lower, claim, raise, strike out, and conflicts
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


class _Settled(NamedTuple):
    """What the ledger said last, what was written in all, and what was read for the last step."""

    settlement: Settlement
    written: list[str]
    listed: PoolList
    used: Mapping[str, float]


class GlobalPlanner:
    """See the module.

    Args:
        connector: of the group's namespace.
        name: of the group.
        metrics: what is known of the traffic.
        clock: seconds, monotonic.
        dry_run: write nothing.
    """

    def __init__(
        self,
        connector: Connector,
        name: str,
        metrics: PoolMetrics,
        clock: Callable[[], float],
        *,
        dry_run: bool = False,
    ) -> None:
        """See the class."""
        self.name = name
        self.interval_s = 10.0
        self._connector = connector
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
            group = self._connector.group(self.name)
        except NotFoundError:
            self._let_go()  # without a group there is no budget to guard
            raise
        listed = self._connector.pools(self.name)
        self.interval_s = group.spec.intervals.local_s
        plan, error = self._plan(group, listed)
        quotas = dict(group.status.planned) if plan is None else plan.quotas
        writes = group.spec.policy.mode == "active" and not self._dry_run
        settled = self._settle(quotas, writes=writes)
        if group.spec.policy.mode == "shadow":
            self._let_go()
        if not self._dry_run:
            self._report(plan, settled.settlement, error)
        return GlobalRound(
            group.spec.policy.mode,
            plan,
            quotas,
            {pool.name: pool.spec.quota for pool in settled.listed.pools},
            budget_of(group),
            settled.used,
            settled.settlement,
            tuple(settled.written),
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
        for pool in self._connector.pools(self.name).pools:
            kept = FINALIZER in pool.metadata.finalizers
            if kept and pool.metadata.deletion_timestamp is not None and not self._dry_run:
                self._connector.release(pool)

    def _settle(self, quotas: Mapping[str, int], *, writes: bool) -> _Settled:
        """Write what the ledger allows until it allows no more."""
        written: list[str] = []
        for _ in range(_MOST_STEPS):
            group = self._connector.group(self.name)  # the book, before the pools
            listed = self._connector.pools(self.name)
            accounts = _accounts(group, listed)
            settlement = settle(budget_of(group), accounts, _claims(group), quotas, fresh=True)
            if not writes:
                break
            done = self._write(group, listed, settlement)
            written += done
            if not done:
                break
        used = counted(budget_of(group), accounts, _claims(group))
        return _Settled(settlement, written, listed, used)

    def _write(self, group: ServingGroup, listed: PoolList, what: Settlement) -> list[str]:
        pools = {pool.name: pool for pool in listed.pools}
        done = [
            f"{write.pool}: quota {pools[write.pool].spec.quota} -> {write.quota}"
            for write in (*what.lower, *what.raises)
            if self._connector.write_quota(write, pools[write.pool])
        ]
        for account in what.release:
            if self._connector.release(pools[account.name]):
                done.append(f"{account.name}: released")
        if what.book is not None:
            book = [
                {"pool": c.pool, "uid": c.uid, "version": c.version, "quota": c.quota}
                for c in what.book
            ]
            if self._connector.write_group_status(group, {"claims": book}):
                done.append(
                    "claims: " + (", ".join(f"{c.pool} {c.quota}" for c in what.book) or "none")
                )
        return done

    def _report(self, plan: GroupPlan | None, settlement: Settlement, error: str) -> None:
        """Bring the group's status up to date, and tell what changed."""
        group = self._connector.group(self.name)
        listed = self._connector.pools(self.name)
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
        used = counted(budget_of(group), _accounts(group, listed), _claims(group))
        finite = {name: amount for name, amount in used.items() if math.isfinite(amount)}
        status["granted"] = _replaced(group.status.granted, finite)
        status["conditions"] = self._conditions(group, listed, plan, used, error)
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
        return [*result, *(c.model_dump(by_alias=True, exclude_none=True) for c in kept)]


def _claims(group: ServingGroup) -> tuple[Claim, ...]:
    return tuple(Claim(c.pool, c.uid, c.version, c.quota) for c in group.status.claims)


def _accounts(group: ServingGroup, listed: PoolList) -> list[Account]:
    """Return the accounts; a pool nobody understands may hold anything of everything."""
    unknown: dict[str, float | None] = dict.fromkeys(budget_of(group))
    strangers = [
        Account(name, "", "", quota=None, reserved=None, maximum=1, cost=unknown)
        for name in listed.unreadable
    ]
    return [*accounts_of(group, listed.pools), *strangers]


def _replaced(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Return a merge patch from one mapping to another: what is gone is null."""
    return {name: None for name in before if name not in after} | dict(after)


def _words(plan: GroupPlan) -> str:
    quotas = ", ".join(f"{name} {quota}" for name, quota in plan.quotas.items())
    return f"{quotas} ({plan.reason})" if plan.reason else quotas
