"""The global planner of one group: plans now and then, and brings quotas to the plan all the time.

A plan is decided every `intervals.globalS`. In between, every `localS`, what has been released
since is granted to those who wait. The plan in force stands in the group's status, so a planner
that starts anew goes on with it. Which writes are allowed, the ledger says, read by read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hrl_planner.control.conditions import reason_of
from hrl_planner.control.connector import Connector, UnreadableError
from hrl_planner.control.decide import Allocator, GroupPlan
from hrl_planner.control.group_status import conditions_of, status_of
from hrl_planner.control.metrics import PoolMetrics
from hrl_planner.control.pool_list import PoolList, accounts, claims_of
from hrl_planner.control.requests import DeniedError, NotFoundError
from hrl_planner.control.telling import Telling
from hrl_planner.errors import HrlPlannerError
from hrl_planner.kube.convert import budget_of
from hrl_planner.kube.crds import FINALIZER
from hrl_planner.kube.resources import ServingGroup
from hrl_planner.ledger import Settlement, settle

_MOST_STEPS = 8  # of settling in one round: lower, claim, raise, strike out, and conflicts
COMPONENT = "hrl-planner-global"


@dataclass(frozen=True, slots=True)
class GlobalRound:
    """What a round read, decided and did; the line of the decision log.

    Attributes:
        plan: the plan in force; None if none could be made.
        settlement: what the ledger said last.
        written: writes that were accepted, in words.
        error: why there is no new plan.
    """

    plan: GroupPlan | None
    settlement: Settlement
    written: tuple[str, ...]
    error: str = ""


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
        self._telling = Telling(connector, "ServingGroup", COMPONENT)

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
        except UnreadableError as error:
            if not self._dry_run:
                self._telling.unreadable(error, "Planned")
            raise
        listed = self._connector.pools(self.name)
        self.interval_s = group.spec.intervals.local_s
        plan, fault = self._plan(group, listed)
        quotas = dict(group.status.planned) if plan is None else plan.quotas
        writes = group.spec.policy.mode == "active" and not self._dry_run
        settlement, written, denied = self._settle(quotas, writes=writes)
        if group.spec.policy.mode == "shadow":
            self._let_go()
        if not self._dry_run:
            self._report(plan, settlement, fault, denied)
        wrong = "; ".join(filter(None, (str(fault or ""), denied)))
        return GlobalRound(plan, settlement, tuple(written), wrong)

    def _plan(
        self, group: ServingGroup, listed: PoolList
    ) -> tuple[GroupPlan | None, HrlPlannerError | None]:
        now_s = self._clock()
        if now_s < self._next_plan_s:
            return None, None
        try:
            plan = self._allocator.plan(group, listed, now_s)
        except HrlPlannerError as error:
            return None, error
        self._next_plan_s = now_s + group.spec.intervals.global_s
        return plan, None

    def _let_go(self) -> None:
        """Let deleted pools go at once where no budget is enforced."""
        for pool in self._connector.pools(self.name).pools:
            kept = FINALIZER in pool.metadata.finalizers
            if kept and pool.metadata.deletion_timestamp is not None and not self._dry_run:
                self._connector.release(pool)

    def _settle(
        self, quotas: Mapping[str, int], *, writes: bool
    ) -> tuple[Settlement, list[str], str]:
        """Write what the ledger allows until it allows no more, or the API server does not."""
        written: list[str] = []
        settlement = Settlement()
        for _ in range(_MOST_STEPS):
            group = self._connector.group(self.name)  # the book, before the pools
            listed = self._connector.pools(self.name)
            books = accounts(group, listed)
            settlement = settle(budget_of(group), books, claims_of(group), quotas, fresh=True)
            if not writes:
                break
            try:
                done = self._write(group, listed, settlement)
            except DeniedError as error:
                return settlement, written, str(error)
            written += done
            if not done:
                break
        return settlement, written, ""

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

    def _report(
        self,
        plan: GroupPlan | None,
        settlement: Settlement,
        fault: HrlPlannerError | None,
        denied: str,
    ) -> None:
        """Bring the group's status up to date, and tell what changed."""
        group = self._connector.group(self.name)
        listed = self._connector.pools(self.name)
        planned = None if plan is None else (True, "Decided", "")
        if fault is not None:
            planned = (False, reason_of(fault, "NoPlan"), str(fault))
        conditions = conditions_of(group, listed, planned=planned, denied=denied)
        status = status_of(group, listed, plan, settlement) | {"conditions": conditions}
        try:
            written = self._connector.write_group_status(group, status)
        except DeniedError as error:
            self._telling.denied(group.metadata, str(error))
            raise
        if not written:
            return
        self._telling.conditions(group.metadata, group.status.conditions, conditions)
        if plan is not None and plan.quotas != group.status.planned:
            self._telling.tell(group.metadata, "Planned", _words(plan))


def _words(plan: GroupPlan) -> str:
    quotas = ", ".join(f"{name} {quota}" for name, quota in plan.quotas.items())
    return f"{quotas} ({plan.reason})" if plan.reason else quotas
