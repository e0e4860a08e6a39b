"""A decision: a policy, what it was shown, what it answered, and how to ask it again.

A `Decider` keeps a policy and its memory. What it answers is all the decision log keeps; shown the
same observations in the same order, another one answers the same, and that is what a replay does.
Nothing here knows custom resources or the API server.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from hrl_planner.budget import BudgetArrays
from hrl_planner.errors import PolicyError
from hrl_planner.kube.resources import PolicySpec
from hrl_planner.observation import ClusterObservation
from hrl_planner.planner import Plan, PlanContext, Policy
from hrl_planner.planner.checkpoint import digest, find, load
from hrl_planner.planner.deployed import allocator_of, scaler_of
from hrl_planner.planner.hpa import HpaPolicy
from hrl_planner.planner.loop import within_budget
from hrl_planner.planner.policy import Listener
from hrl_planner.planner.queue_length import QueueLengthPolicy
from hrl_planner.planner.quota import QUOTA, QuotaPolicy
from hrl_planner.planner.registry import make_policy
from hrl_planner.planner.rule import RulePolicy
from hrl_planner.planner.shield import Intervention, Interventions
from hrl_planner.spec import ClusterSpec

Level = Literal["allocator", "scaler"]
Asked = Literal["decide", "listen"]
Flows = dict[str, dict[str, float]]


@dataclass(frozen=True, slots=True)
class Choice:
    """Which policy decides at one level.

    Attributes:
        level: allocator or scaler.
        policy: as the registry spells it, or `quota`; a checkpoint takes its place.
        checkpoint: folder, or the name of the spec one ships for.
    """

    level: Level
    policy: str
    checkpoint: str | None = None

    @staticmethod
    def of(spec: PolicySpec, level: Level) -> Choice:
        """Return what a group chose for a level."""
        return Choice(
            level, spec.allocator if level == "allocator" else spec.scaler, spec.checkpoint
        )


@dataclass(frozen=True, slots=True)
class Decision:
    """What a policy was asked and what it answered.

    Attributes:
        choice: the policy.
        asked: to decide, or only to listen, which changes its memory, and perhaps flows.
        digest: of its checkpoint; empty without one.
        turn: how often it was asked before, since it was made; at 0 it has no memory.
        spec: the cluster.
        observation: what it was shown.
        plan: what it answered; an allocator's is within the budget. Without pools if it listened.
        interventions: of the shield.
        took_s: how long it thought.
    """

    choice: Choice
    asked: Asked
    digest: str
    turn: int
    spec: ClusterSpec
    observation: ClusterObservation
    plan: Plan
    interventions: tuple[Intervention, ...]
    took_s: float

    @property
    def replicas(self) -> dict[str, int]:
        """By pool, what the plan sets at this level: quotas for an allocator, else replicas."""
        plan = self.plan
        chosen = plan.replicas if plan.quotas is None else plan.quotas
        if not chosen.size:
            return {}
        return {pool.name: int(n) for pool, n in zip(self.spec.pools, chosen, strict=True)}

    @property
    def flows(self) -> Flows | None:
        """Requests/s by class and pool; None keeps the weights there are."""
        if self.plan.flows is None:
            return None
        return {
            cls.name: {
                pool.name: round(float(rate), 6)
                for pool, rate in zip(self.spec.pools, row, strict=True)
                if rate > 0.0
            }
            for cls, row in zip(self.spec.slo_classes, self.plan.flows, strict=True)
        }

    @property
    def marginal(self) -> dict[str, float]:
        """Value of one more GPU in each pool, where serving all is worth 1; empty if unknown."""
        advice = self.plan.advice
        if advice is None:
            return {}
        values = zip(self.spec.pools, advice.marginal, strict=True)
        return {pool.name: float(f"{value:.4g}") for pool, value in values}

    def attainment(self, pool: str) -> float:
        """Share of a pool's requests within the tightest targets of the spec, as it measures it."""
        index = self.spec.pool_index(pool)
        seen, role = self.observation.pool(index), self.spec.pools[index].role
        if role == "prefill":
            return seen.ttft_attainment
        if role == "decode":
            return seen.itl_attainment
        return seen.ttft_attainment * seen.itl_attainment


@dataclass(frozen=True, slots=True)
class Followed:
    """What a planner saw and decided that nothing came of but memory.

    Attributes:
        group: it is about.
        decision: None if there was none.
        mode: `standby` while another one led, `failed` if the round came to no end.
    """

    group: str
    decision: Decision | None
    mode: str = "standby"


# The first window is half empty, and so is what a policy makes of it (`FluidPlanner` waits, too).
_YOUNG_WINDOWS = 2.0


class Decider:
    """A policy with its memory: made anew when the cluster or the choice of policy has changed."""

    def __init__(self) -> None:
        """See the class."""
        self._made_for: tuple[ClusterSpec, Choice] | None = None
        self._policy: Policy | None = None
        self._shield = Interventions()
        self._digest = ""
        self._turn = 0
        self._made_s = 0.0

    def decide(
        self, spec: ClusterSpec, choice: Choice, observation: ClusterObservation
    ) -> Decision:
        """Ask the policy; one that fails forgets everything.

        Raises:
            HrlPlannerError: if there is no such policy, or it cannot plan for this cluster.
        """

        def ask(policy: Policy) -> Plan:
            plan = policy.decide(observation)
            if choice.level == "scaler":
                return plan
            return within_budget(plan, observation, BudgetArrays.from_spec(spec))

        return self._asked("decide", spec, choice, observation, ask)

    def young(self, now_s: float) -> bool:
        """Say whether the policy is so new that it has not seen whole windows of metrics."""
        if self._made_for is None:
            return True
        window_s = self._made_for[0].intervals.window_s
        return now_s - self._made_s < _YOUNG_WINDOWS * window_s

    def listen(
        self, spec: ClusterSpec, choice: Choice, observation: ClusterObservation
    ) -> Decision | None:
        """Let the policy see an observation between its decisions; None if it does not want to.

        Raises:
            HrlPlannerError: as `decide`.
        """
        if not isinstance(self._for(spec, choice, observation.now_s), Listener):
            return None

        def ask(policy: Policy) -> Plan:
            assert isinstance(policy, Listener)
            heard = policy.listen(observation)
            if heard is None or not heard.replicas.size:
                return Plan.of_flows(None if heard is None else heard.flows)
            return within_budget(heard, observation, BudgetArrays.from_spec(spec))

        return self._asked("listen", spec, choice, observation, ask)

    def _asked(
        self,
        asked: Asked,
        spec: ClusterSpec,
        choice: Choice,
        observation: ClusterObservation,
        ask: Callable[[Policy], Plan],
    ) -> Decision:
        began_s = time.perf_counter()
        policy = self._for(spec, choice, observation.now_s)
        self._policy = None
        self._shield.latest = []
        plan = ask(policy)
        self._policy, turn = policy, self._turn
        self._turn += 1
        told = tuple(self._shield.latest)
        took_s = time.perf_counter() - began_s
        return Decision(choice, asked, self._digest, turn, spec, observation, plan, told, took_s)

    def _for(self, spec: ClusterSpec, choice: Choice, now_s: float) -> Policy:
        """Return the policy there is, or a new one where it is for something else."""
        if self._policy is None or self._made_for != (spec, choice):
            self._turn, self._made_s = 0, now_s
            self._shield = Interventions()
            self._policy = None
            policy = new_policy(choice, self._shield)
            policy.reset(PlanContext(spec))
            self._policy, self._made_for = policy, (spec, choice)
            self._digest = "" if choice.checkpoint is None else digest(find(choice.checkpoint))
        return self._policy


# Policies that decide each pool by its own row alone: what they saw of the others says nothing.
_POOL_BY_POOL = (QuotaPolicy, RulePolicy, HpaPolicy, QueueLengthPolicy)


@lru_cache(maxsize=64)
def decides_pool_by_pool(choice: Choice) -> bool:
    """Say whether a policy decides each pool by its own row alone.

    Raises:
        HrlPlannerError: there is no such policy.
    """
    return choice.checkpoint is None and isinstance(new_policy(choice), _POOL_BY_POOL)


def new_policy(choice: Choice, log: Interventions | None = None) -> Policy:
    """Return a policy that has not been told yet what it plans for.

    Args:
        choice: which.
        log: where a shield tells what it does.

    Raises:
        HrlPlannerError: there is none, or its checkpoint cannot be read or has no two levels.
    """
    log = Interventions() if log is None else log
    if choice.checkpoint is not None:
        checkpoint = load(find(choice.checkpoint))
        if checkpoint.manifest.head == "flat":
            raise PolicyError(
                f"checkpoint {choice.checkpoint}: head flat sets replicas without local planners, "
                "and planner pods have two levels; deploy one of another head"
            )
        make = allocator_of if choice.level == "allocator" else scaler_of
        return make(checkpoint, log)
    if choice.level == "scaler" and choice.policy == QUOTA:
        return QuotaPolicy()
    policy = make_policy(choice.policy)
    if choice.level == "scaler" and isinstance(policy, RulePolicy):
        policy.within_quota = True
    return policy
