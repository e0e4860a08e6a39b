"""The global planner of one group: plans now and then, and brings quotas to the plan all the time.

A plan is decided every `intervals.globalS`, and at once when the group has been changed. In
between, every `localS`, what has been released since is granted to those who wait, and a policy
that listens sees the traffic and may change the router's weights. The plan in force stands in the
group's status, so a planner that starts anew goes on with it. Which writes are allowed, the ledger
says, and what it has to know for certain is read from the API server; the rest may be as old as a
watch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from hrl_planner.control.conditions import reason_of
from hrl_planner.control.connector import Connector, UnreadableError
from hrl_planner.control.decide import Allocator, GroupPlan
from hrl_planner.control.decision import Decision, Flows, Followed
from hrl_planner.control.group_status import conditions_of, status_of
from hrl_planner.control.metrics import PoolMetrics
from hrl_planner.control.pool_list import PoolList, accounts, claims_of
from hrl_planner.control.requests import DeniedError, NotFoundError
from hrl_planner.control.telling import Telling
from hrl_planner.control.watched import Reader
from hrl_planner.errors import HrlPlannerError
from hrl_planner.kube.convert import budget_of
from hrl_planner.kube.crds import FINALIZER
from hrl_planner.kube.resources import ServingGroup
from hrl_planner.ledger import Settlement, counted, settle

# Of settling in one round: lower, read, claim, raise, read, strike out, and conflicts.
_MOST_STEPS = 10
COMPONENT = "hrl-planner-global"


@dataclass(frozen=True, slots=True)
class GlobalRound:
    """What a round read, decided and did.

    Attributes:
        mode: shadow or active.
        plan: made in this round; None if none was due, or none could be made.
        heard: what the policy made of the traffic between two plans, if it wants to know.
        planned: quotas by the plan in force.
        quotas: that the pools have now; None for one without.
        budget: amount of every bounded resource.
        used: how much of it is granted or held; infinite if unknown.
        settlement: what the ledger said last.
        written: writes that were accepted, in words.
        error: why there is no new plan, or what could not be written.
    """

    mode: str
    plan: GroupPlan | None
    heard: Decision | None
    planned: Mapping[str, int]
    quotas: Mapping[str, int | None]
    budget: Mapping[str, float]
    used: Mapping[str, float]
    settlement: Settlement
    written: tuple[str, ...]
    error: str = ""

    @property
    def decision(self) -> Decision | None:
        """What the policy was asked in this round."""
        return self.heard if self.plan is None else self.plan.decision


@dataclass(frozen=True)
class _Seen:
    """A group and its pools, and whether both are known to be how things are."""

    group: ServingGroup
    listed: PoolList
    fresh: bool

    @property
    def used(self) -> Mapping[str, float]:
        """How much of every bounded resource is granted or held; infinite if unknown."""
        books, claims = accounts(self.group, self.listed), claims_of(self.group)
        return counted(budget_of(self.group), books, claims)

    def settle(self, quotas: Mapping[str, int], *, fresh: bool) -> Settlement:
        """Return what the ledger says of it."""
        books, claims = accounts(self.group, self.listed), claims_of(self.group)
        return settle(budget_of(self.group), books, claims, quotas, fresh=fresh)


class GlobalPlanner:
    """See the module.

    Args:
        connector: of the group's namespace.
        name: of the group.
        metrics: what is known of the traffic.
        clock: seconds, monotonic.
        look: where to look first; absent: at the API server itself.
        dry_run: write nothing.
        patient: wait, for a global interval at most, until all pools have reported.
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
        patient: bool = False,
    ) -> None:
        """See the class."""
        self.name = name
        self.interval_s = 10.0
        self._connector = connector
        self._look_at = look or connector
        self._allocator = Allocator(metrics)
        self._clock = clock
        self._dry_run, self._patient = dry_run, patient
        self._next_plan_s = self._next_heard_s = -math.inf
        self._planned_for: tuple[int, frozenset[str]] | None = None
        self._patient_until_s: float | None = None
        self._telling = Telling(connector, "ServingGroup", COMPONENT)
        self.asked: Decision | None = None

    def round(self) -> GlobalRound:
        """Look once, decide if it is time to, write what is allowed.

        Raises:
            KubeError: if the API server refuses or does not know the group.
        """
        self.asked = None
        try:
            group = self._look_at.group(self.name)
        except NotFoundError:
            self._let_go()
            raise
        except UnreadableError as error:
            if not self._dry_run:
                self._telling.unreadable(error, "Planned")
            raise
        seen = _Seen(group, self._look_at.pools(self.name), fresh=False)
        self.interval_s = group.spec.intervals.local_s
        plan, fault = self._plan(group, seen.listed)
        heard = self._listen(group, seen.listed) if plan is None else None
        latest = plan or _plan_heard(heard)
        quotas = dict(group.status.planned) if latest is None else latest.quotas
        writes = group.spec.policy.mode == "active" and not self._dry_run
        # What a pool has that never said so would be released for a plan that did not know of it.
        known = {name: quotas[name] for name in quotas.keys() & _reported(seen.listed)}
        seen, settlement, written, denied = self._settle(seen, known, writes=writes)
        if group.spec.policy.mode == "shadow":
            self._let_go()
        if not self._dry_run:
            flows = None if heard is None else heard.flows
            flows = flows if plan is None else plan.flows
            self._report(seen, latest, flows, settlement, fault, denied)
        wrong = "; ".join(filter(None, (str(fault or ""), denied)))
        return GlobalRound(
            group.spec.policy.mode,
            plan,
            heard,
            quotas,
            {pool.name: pool.spec.quota for pool in seen.listed.pools},
            budget_of(group),
            seen.used,
            settlement,
            tuple(written),
            wrong,
        )

    def follow(self) -> Followed:
        """Listen to what the leader listens to; errors as those of a round."""
        group = self._look_at.group(self.name)
        self.interval_s = group.spec.intervals.local_s
        return Followed(self.name, self._listen(group, self._look_at.pools(self.name)))

    def _plan(
        self, group: ServingGroup, listed: PoolList
    ) -> tuple[GroupPlan | None, HrlPlannerError | None]:
        now_s = self._clock()
        facts = (group.metadata.generation, _reported(listed))
        if facts == self._planned_for and now_s < self._next_plan_s:
            return None, None
        if self._waits_for_reports(group, listed, now_s):
            return None, None
        try:
            plan = self._allocator.plan(group, listed, now_s)
        except HrlPlannerError as error:
            return None, error
        self.asked = plan.decision
        self._next_plan_s = now_s + group.spec.intervals.global_s
        self._next_heard_s = now_s + group.spec.intervals.local_s
        self._planned_for = facts
        return plan, None

    def _waits_for_reports(self, group: ServingGroup, listed: PoolList, now_s: float) -> bool:
        """Wait with the first plan for pools to say what they have: policies remember it."""
        if self._patient_until_s is None:
            self._patient_until_s = now_s + (
                group.spec.intervals.global_s if self._patient else 0.0
            )
        silent = len(_reported(listed)) < len(listed.pools)
        return silent and now_s < self._patient_until_s

    def _listen(self, group: ServingGroup, listed: PoolList) -> Decision | None:
        """Let the policy hear once per local interval, as it did when it was trained."""
        now_s = self._clock()
        if now_s < self._next_heard_s:
            return None
        self._next_heard_s = now_s + group.spec.intervals.local_s
        try:
            self.asked = self._allocator.listen(group, listed, now_s)
        except HrlPlannerError:
            return None  # that there is no plan either is told where one is due
        return self.asked

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
    ) -> tuple[_Seen, Settlement, list[str], str]:
        """Write what the ledger allows until it allows no more, or the API server does not."""
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
            try:
                done, seen = self._write(seen, settlement)
            except DeniedError as error:
                return seen, settlement, written, str(error)
            written += done
            if not done:
                break
        return seen, settlement, written, ""

    def _look_afresh(self) -> _Seen:
        group = self._connector.group(self.name)  # the book, before the pools
        return _Seen(group, self._look_at.pools_now(self.name), fresh=True)

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
        listed = replace(seen.listed, pools=tuple(pools.values()))
        return done, _Seen(group, listed, fresh=False)

    def _report(
        self,
        seen: _Seen,
        plan: GroupPlan | None,
        flows: Flows | None,
        settlement: Settlement,
        fault: HrlPlannerError | None,
        denied: str,
    ) -> None:
        """Bring the group's status up to date, and tell what changed."""
        group = seen.group
        planned = None if plan is None else (True, "Decided", "")
        if fault is not None:
            planned = (False, reason_of(fault, "NoPlan"), str(fault))
        conditions = conditions_of(group, seen.listed, planned=planned, denied=denied)
        status = status_of(group, seen.listed, plan, flows, settlement) | {"conditions": conditions}
        now = group.status.model_dump(mode="json", by_alias=True)
        if all(now.get(name) == value for name, value in status.items()):
            return
        try:
            written = self._connector.write_group_status(group, status)
        except DeniedError as error:
            self._telling.denied(group.metadata, str(error))
            raise
        if written is None:
            return
        self._telling.conditions(group.metadata, group.status.conditions, conditions)
        if plan is not None and plan.quotas != group.status.planned:
            self._telling.tell(group.metadata, "Planned", _words(plan))


def _plan_heard(heard: Decision | None) -> GroupPlan | None:
    """Return what a policy that listened wants instead of the plan in force, if anything."""
    if heard is None or not heard.replicas:
        return None
    return GroupPlan(heard.replicas, heard.flows, heard.plan.reason, heard)


def _reported(listed: PoolList) -> frozenset[str]:
    """Return the pools of which it is known how many replicas they have."""
    return frozenset(pool.name for pool in listed.pools if pool.status.desired is not None)


def _words(plan: GroupPlan) -> str:
    quotas = ", ".join(f"{name} {quota}" for name, quota in plan.quotas.items())
    return f"{quotas} ({plan.reason})" if plan.reason else quotas
