"""What stands between a learned policy and a cluster: reasons not to follow it, in order.

    metrics missing                     -> the LP's answer, which holds, and in a long outage
                                           returns to its floor
    metrics stale                       -> hold what runs
    features outside the training range -> the LP's plan
    the network fails or answers NaN    -> the LP's plan
    the LP fails                        -> the threshold rule
    the rule fails                      -> hold

The local level holds what runs where metrics are missing or stale, and elsewhere takes the quota:
that is what the allocator planned, and a rule that moved within it would be a planner of its own.
Every departure from the network is an `Intervention` with its reason; they are logged, counted, and
stand in the plan's reason. The budget is not the shield's business: whatever comes out is projected
onto it like every plan.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hrl_planner.encoding import CLASS_COLUMNS, POOL_COLUMNS
from hrl_planner.observation import ClusterObservation
from hrl_planner.planner.checkpoint import Ranges
from hrl_planner.planner.learned import LearnedAllocator, LearnedScaler
from hrl_planner.planner.loop import current_targets
from hrl_planner.planner.policy import Plan, PlanContext, Policy
from hrl_planner.planner.quota import QuotaPolicy

_log = logging.getLogger(__name__)

Action = Literal["hold", "plan", "rule", "quota"]
Cause = Literal["missing", "stale", "range", "network", "prior"]
_STALE_S = 60.0
_MARGIN = 0.1  # of a feature's range: how far outside is still inside
_LEAST_MARGIN = 0.05


@dataclass(frozen=True, slots=True)
class Intervention:
    """One decision that was not the network's.

    Attributes:
        t_s: when.
        level: `allocator` or `scaler`.
        action: what was done instead.
        cause: why, in one of a few words: metrics missing or stale, a feature out of range, the
            network or the planner it corrects failed.
        reason: why, for people.
    """

    t_s: float
    level: str
    action: Action
    cause: Cause
    reason: str


class Interventions:
    """The departures of one run, newest last; a bounded list and counts of all."""

    def __init__(self, keep: int = 1000) -> None:
        """See the class."""
        self.latest: list[Intervention] = []
        self.counts: Counter[str] = Counter()
        self._keep = keep

    def add(self, entry: Intervention) -> None:
        """Log and count one."""
        self.counts[f"{entry.level}:{entry.action}"] += 1
        self.latest = [*self.latest[-self._keep + 1 :], entry]
        _log.info(
            "%s at %.0f s: %s instead of the network: %s",
            entry.level, entry.t_s, entry.action, entry.reason,
        )  # fmt: skip


class RangeCheck:
    """Says which feature of a vector lies outside what training saw.

    Args:
        ranges: from a checkpoint's manifest.
    """

    def __init__(self, ranges: Ranges) -> None:
        """See the class."""
        self._pools = _limits(ranges.pools, POOL_COLUMNS)
        self._classes = _limits(ranges.classes, CLASS_COLUMNS)

    def outside(self, pools: NDArray[np.float32], classes: NDArray[np.float32]) -> str | None:
        """Return what is outside, worst feature first; None if all is inside.

        Args:
            pools: rows of pools, shape (P, len(POOL_COLUMNS)).
            classes: rows of classes, shape (C, len(CLASS_COLUMNS)).
        """
        for what, rows, limits, names in (
            ("pool", pools, self._pools, POOL_COLUMNS),
            ("class", classes, self._classes, CLASS_COLUMNS),
        ):
            if not np.all(np.isfinite(rows)):
                return f"a {what} feature is not finite"
            excess = np.maximum(limits[0] - rows, rows - limits[1])
            if excess.max() > 0.0:
                row, column = np.unravel_index(int(excess.argmax()), excess.shape)
                value = float(rows[row, column])
                return (
                    f"{what} {row}: {names[column]} is {value:.3g}, training saw "
                    f"{limits[0][column]:.3g} to {limits[1][column]:.3g}"
                )
        return None


def _limits(
    ranges: dict[str, tuple[float, float]], columns: tuple[str, ...]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    bounds = np.array([ranges[name] for name in columns])
    margin = np.maximum(_MARGIN * (bounds[:, 1] - bounds[:, 0]), _LEAST_MARGIN)
    return bounds[:, 0] - margin, bounds[:, 1] + margin


def missing(observation: ClusterObservation) -> str | None:
    """Return which metrics there are none of, None if there is enough to decide on."""
    rates = observation.class_field("arrivals_rps")
    if np.any(np.isnan(rates)):
        return "no arrival metrics of some class"
    serving = observation.pool_field("ready") >= 1.0
    if serving.any() and np.all(np.isnan(observation.pool_field("waiting")[serving])):
        return "no metrics from any worker"
    return None


def stale(observation: ClusterObservation) -> str | None:
    """Return how old the newest metrics are where that is too old, else None."""
    ages = observation.pool_field("metrics_age_s")[observation.pool_field("ready") >= 1.0]
    known = ages[~np.isnan(ages)]
    if known.size == 0 or known.min() <= _STALE_S:
        return None
    return f"the newest metrics are {known.min():.0f} s old"


def _blind(observation: ClusterObservation) -> tuple[Cause, str] | None:
    """Return why metrics cannot be decided on; None if they can."""
    why = missing(observation)
    if why is not None:
        return "missing", why
    why = stale(observation)
    return None if why is None else ("stale", why)


def hold(observation: ClusterObservation, reason: str) -> Plan:
    """Return a plan that changes nothing."""
    return Plan(np.maximum(current_targets(observation), 0), reason=f"hold: {reason}")


class ShieldedAllocator:
    """A learned allocator that gives way where it should not decide.

    Args:
        learned: the allocator; its prior is the first fallback.
        rule: the second.
        ranges: what training saw.
        log: where interventions go.
    """

    name = "learned"

    def __init__(
        self, learned: LearnedAllocator, rule: Policy, ranges: Ranges, log: Interventions
    ) -> None:
        """See the class."""
        self._learned, self._rule = learned, rule
        self._check = RangeCheck(ranges)
        self._log = log
        self._prior_failed = False
        self.interval_s = learned.interval_s

    def reset(self, context: PlanContext) -> None:
        """Reset every policy there is to fall back to."""
        self._learned.reset(context)
        self._rule.reset(context)
        self.interval_s = self._learned.interval_s

    def decide(self, observation: ClusterObservation) -> Plan:
        """Follow the network, or say why not."""
        # The prior sees every observation, also those it is not asked about: it keeps the demand.
        plan, failure = _attempt(lambda: self._learned.planned(observation))
        self._prior_failed = plan is None
        blind = _blind(observation)
        if blind is not None:
            held = (
                plan if blind[0] == "missing" and plan is not None else hold(observation, blind[1])
            )
            return self._instead(observation, "hold", *blind, held)
        if plan is None:
            return self._by_rule(observation, failure)
        cause: Cause = "range"
        try:
            vector = self._learned.vector(observation, plan)
            why = self._check.outside(*self._learned.reader.rows(vector))
            if why is None:
                return self._learned.correct(observation, plan, vector)
        except Exception as error:  # whatever a network or an odd observation can raise
            cause, why = "network", f"{type(error).__name__}: {error}"
        return self._instead(observation, "plan", cause, why, plan)

    def listen(self, observation: ClusterObservation) -> Plan | None:
        """Let the prior see what happens between two decisions; it must not stop the loop.

        Where metrics are missing or stale, and where the last decision was not the prior's, what
        was decided stands; once they are there again nobody waits for the next decision.
        """
        try:
            heard = self._learned.listen(observation)
        except Exception as error:
            _log.info("the prior failed between decisions: %s: %s", type(error).__name__, error)
            return None
        if heard is not None and (self._prior_failed or _blind(observation) is not None):
            return Plan.of_flows(heard.flows)
        return heard

    def _by_rule(self, observation: ClusterObservation, failure: str) -> Plan:
        plan, failure_2 = _attempt(lambda: self._rule.decide(observation))
        if plan is not None:
            return self._instead(observation, "rule", "prior", f"the LP failed: {failure}", plan)
        why = f"the LP failed: {failure}; the rule failed: {failure_2}"
        return self._instead(observation, "hold", "prior", why, hold(observation, why))

    def _instead(
        self, observation: ClusterObservation, action: Action, cause: Cause, why: str, plan: Plan
    ) -> Plan:
        self._log.add(Intervention(observation.now_s, "allocator", action, cause, why))
        return Plan(plan.replicas, plan.flows, reason=f"shield, {action}: {why}; {plan.reason}")


class ShieldedScaler:
    """A learned scaler that gives way to the quota, and to holding.

    Args:
        learned: the scaler.
        rule: wishes what the network is shown.
        ranges: what training saw.
        log: where interventions go.
    """

    name = "scaler"

    def __init__(
        self, learned: LearnedScaler, rule: Policy, ranges: Ranges, log: Interventions
    ) -> None:
        """See the class."""
        self._learned, self._rule, self._quota = learned, rule, QuotaPolicy()
        self._check = RangeCheck(ranges)
        self._log = log
        self.interval_s = learned.interval_s

    def reset(self, context: PlanContext) -> None:
        """Reset both."""
        self._learned.reset(context)
        self._rule.reset(context)
        self.interval_s = self._learned.interval_s

    def decide(self, observation: ClusterObservation) -> Plan:
        """Follow the network, or say why not."""
        # Both see every observation, also those they are not asked about: they count intervals.
        self._learned.see(observation)
        wish, failure = _attempt(lambda: self._rule.decide(observation))
        blind = _blind(observation)
        if blind is not None:
            return self._instead(observation, "hold", *blind, hold(observation, blind[1]))
        if wish is None:
            failed = f"the rule failed: {failure}"
            return self._instead(
                observation, "quota", "prior", failed, self._quota.decide(observation)
            )
        cause: Cause = "range"
        try:
            vector = self._learned.vector(observation, wish.replicas)
            why = self._check.outside(*self._learned.reader.rows(vector))
            if why is None:
                return self._learned.decide(observation)
        except Exception as error:
            cause, why = "network", f"{type(error).__name__}: {error}"
        return self._instead(observation, "quota", cause, why, self._quota.decide(observation))

    def _instead(
        self, observation: ClusterObservation, action: Action, cause: Cause, why: str, plan: Plan
    ) -> Plan:
        self._log.add(Intervention(observation.now_s, "scaler", action, cause, why))
        return Plan(plan.replicas, reason=f"shield, {action}: {why}")


def _attempt(decide: Callable[[], Plan]) -> tuple[Plan | None, str]:
    """Return a plan, or None and what went wrong."""
    try:
        return decide(), ""
    except Exception as error:  # a fallback must stand whatever its predecessor did
        return None, f"{type(error).__name__}: {error}"
