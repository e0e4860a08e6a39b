"""Trained networks as policies: the allocator corrects a planner's plan, the scaler follows it.

    observation -> prior (the fluid LP) -> vector -> network -> residual or moves -> replicas
                                                             -> terms -> prior -> replicas

The functions are those the environments train with: encoding, `residual`, `moves`, `scale_pools`,
budget projection. Neither torch nor gymnasium is imported. These policies trust what they see;
`shield` stands around them wherever a cluster depends on it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hrl_planner.budget import BudgetArrays, project
from hrl_planner.capacity import CapacityModel
from hrl_planner.encoding import N_CLASS_COLUMNS, N_POOL_COLUMNS, Layout, write_plan
from hrl_planner.errors import PolicyError
from hrl_planner.features import FeatureScales
from hrl_planner.observation import ClusterObservation
from hrl_planner.planner.allocator import by_role, residual, terms_of, unrounded
from hrl_planner.planner.loop import current_targets
from hrl_planner.planner.moves import Room, apply_moves, best_moves
from hrl_planner.planner.network import Network
from hrl_planner.planner.policy import (
    FloatArray,
    IntArray,
    Listener,
    Plan,
    PlanContext,
    Policy,
    Replanner,
)
from hrl_planner.planner.rule import RuleParameters, RulePools
from hrl_planner.planner.scaler import outputs_of, scale_pools, scaler_input

Vector = NDArray[np.float32]


class _Reader:
    """What both levels need to turn an observation into a network's input."""

    def __init__(self, context: PlanContext) -> None:
        spec = context.spec
        self.spec = spec
        self.layout = Layout.of(spec)
        self.scales = FeatureScales.from_spec(spec)
        self.budget = BudgetArrays.from_spec(spec)
        self.rule_pools = RulePools.from_spec(spec, context.blind_pools)
        self.global_s = spec.intervals.global_s
        self.role = CapacityModel.from_spec(spec).role

    def vector(
        self, observation: ClusterObservation, wish: NDArray[np.int64], since_s: float
    ) -> Vector:
        """Return the input vector with the rule's wish in the plan's place.

        Args:
            observation: what is seen.
            wish: replicas, shape (P,).
            since_s: time since global intervals began.
        """
        return scaler_input(
            observation.pools, observation.classes, wish, self.scales, since_s, 0.0, self.global_s
        )

    def rows(self, vector: Vector) -> tuple[Vector, Vector]:
        """Return a vector's rows of pools and of classes."""
        parts = self.layout.split(vector)
        return (
            parts["pools"].reshape(-1, N_POOL_COLUMNS),
            parts["classes"].reshape(-1, N_CLASS_COLUMNS),
        )


class LearnedAllocator:
    """A trained global allocator over the planner it corrects.

    Args:
        network: its weights.
        prior: makes the plan that actions are relative to.
        head: what the network answers: `residual`, `moves`, `terms`, or `flat`: residuals
            without local planners, every local interval on the latest plan.
        moves: most moves of a decision, of head `moves`.

    Raises:
        PolicyError: head `terms` over a prior that cannot plan again.
    """

    name = "learned"

    def __init__(
        self, network: Network, prior: Policy, head: str = "residual", moves: int = 0
    ) -> None:
        """See the class."""
        if head == "terms" and not isinstance(prior, Replanner):
            raise PolicyError(
                "policy learned: head terms needs a prior that can plan again, such as lp, not "
                f"{prior.name}"
            )
        self.network, self.prior = network, prior
        self._head, self._moves = head, moves
        self._plan: Plan | None = None
        self._action: FloatArray | None = None
        self._next_plan_s = -np.inf
        self.interval_s = 60.0
        self._reader: _Reader | None = None

    @property
    def reader(self) -> _Reader:
        """How observations of this cluster are read.

        Raises:
            PolicyError: before `reset`.
        """
        if self._reader is None:
            raise PolicyError("policy learned: decide before reset")
        return self._reader

    def reset(self, context: PlanContext) -> None:
        """Prepare for a cluster."""
        self.prior.reset(context)
        self._reader = _Reader(context)
        intervals = context.spec.intervals
        self.interval_s = intervals.local_s if self._head == "flat" else intervals.global_s
        self._plan, self._action, self._next_plan_s = None, None, -np.inf

    def planned(self, observation: ClusterObservation) -> Plan:
        """Return the prior's plan, a new one; head `flat` has one made every global interval."""
        due = self._head != "flat" or observation.now_s >= self._next_plan_s
        if self._plan is None or due:
            self._plan = self.prior.decide(observation)
            self._next_plan_s = observation.now_s + self.reader.global_s
        elif (heard := self._heard(observation)) is not None:
            self._plan = heard if heard.replicas.size else replace(self._plan, flows=heard.flows)
        else:
            self._plan = replace(self._plan, flows=None)
        self._action = None
        return self._plan

    def decide(self, observation: ClusterObservation) -> Plan:
        """Correct the prior's plan."""
        plan = self.planned(observation)
        return self.correct(observation, plan, self.vector(observation, plan))

    def listen(self, observation: ClusterObservation) -> Plan | None:
        """Let the prior plan for what happens between two decisions, under the last action."""
        heard = self._heard(observation)
        if heard is None or not heard.replicas.size:
            return heard
        return replace(heard, replicas=self._under_action(observation, heard))

    def _heard(self, observation: ClusterObservation) -> Plan | None:
        return self.prior.listen(observation) if isinstance(self.prior, Listener) else None

    def vector(self, observation: ClusterObservation, plan: Plan) -> Vector:
        """Return what the network is shown."""
        reader = self.reader
        # All but `flat` are trained to decide where a global interval begins: whenever they are
        # asked to, one does.
        since_s = observation.now_s if self._head == "flat" else 0.0
        vector = reader.vector(observation, plan.replicas, since_s)
        write_plan(vector, reader.layout, plan, reader.scales)
        return vector

    def _act(self, plan: Plan, vector: Vector) -> FloatArray:
        """Return the network's action, as the environments take them."""
        spec, (net, shape) = self.reader.spec, self.network
        out = outputs_of(net, shape, vector, len(spec.pools), len(spec.slo_classes))
        if not np.all(np.isfinite(out)):
            raise PolicyError("policy learned: the network's answer is not finite")
        if self._head == "terms":
            return by_role(out.astype(np.float64), self.reader.role)
        if self._head == "moves":
            moves = best_moves(self.network, out, self._room(plan), self._moves)
            return np.array(moves, np.float64)
        return out[:, 0].astype(np.float64)

    def _room(self, plan: Plan) -> Room:
        scales = self.reader.scales
        return Room.of(scales.limits, plan.replicas / scales.max_replicas)

    def correct(self, observation: ClusterObservation, plan: Plan, vector: Vector) -> Plan:
        """Return a plan with the network's action applied, within the budget."""
        action = self._act(plan, vector)
        corrected = plan
        if isinstance(self.prior, Replanner) and self._head == "terms":
            corrected = self.prior.replan(terms_of(action, self.reader.role)) or plan
        self._action = action
        replicas = self._under_action(observation, corrected)
        moved = int(np.abs(replicas - plan.replicas).sum())
        reason = f"learned: {moved} replicas off the plan; {plan.reason}"
        return replace(corrected, replicas=replicas, reason=reason)

    def _under_action(self, observation: ClusterObservation, plan: Plan) -> IntArray:
        """Return the replicas of a plan under the action that stands, within the budget."""
        if self._action is None:
            return plan.replicas
        if self._head == "terms":
            desired = plan.replicas.astype(np.float64)
        elif self._head == "moves":
            desired = apply_moves(self._room(plan), self._action.tolist(), plan.replicas.size)
        else:
            desired = residual(unrounded(plan), self._action)
        return project(desired, current_targets(observation), self.reader.budget)


class LearnedScaler:
    """A trained local planner for all pools, within the quotas it is shown.

    It takes the first observation it sees for the beginning of a global interval. In a planner pod
    that is when a new pool gets a quota; after a restart nobody knows when that was.

    Args:
        network: its weights.
    """

    name = "scaler"

    def __init__(self, network: Network) -> None:
        """See the class."""
        self.network = network
        # Inputs are clipped: as long as the weights are finite, so is every answer.
        self._sound = bool(np.all(np.isfinite(network.net)))
        self.interval_s = 10.0
        self._reader: _Reader | None = None
        self._parameters = RuleParameters().to_array()
        self._changed_s: FloatArray = np.zeros(0)
        self._began_s: float | None = None

    @property
    def reader(self) -> _Reader:
        """How observations of this cluster are read."""
        if self._reader is None:
            raise PolicyError("policy scaler: decide before reset")
        return self._reader

    def reset(self, context: PlanContext) -> None:
        """Prepare for a cluster."""
        self._reader = _Reader(context)
        self.interval_s = context.spec.intervals.local_s
        self._changed_s = np.full(len(context.spec.pools), -np.inf)
        self._began_s = None

    def see(self, observation: ClusterObservation) -> float:
        """Return the time since the first observation; also to be shown those it only sees."""
        if self._began_s is None:
            self._began_s = observation.now_s
        return observation.now_s - self._began_s

    def vector(self, observation: ClusterObservation, wish: NDArray[np.int64]) -> Vector:
        """Return what the network is shown, with the rule's wish."""
        return self.reader.vector(observation, wish, self.see(observation))

    def decide(self, observation: ClusterObservation) -> Plan:
        """Scale every pool within its quota.

        Raises:
            PolicyError: the network's weights are not finite.
        """
        if not self._sound:
            raise PolicyError("policy scaler: the network's weights are not finite")
        reader = self.reader
        targets = np.empty(len(reader.spec.pools), np.int64)
        net, shape = self.network
        scale_pools(
            observation.pools,
            observation.classes,
            reader.rule_pools,
            self._parameters,
            reader.scales,
            self.see(observation),
            0.0,
            reader.global_s,
            observation.pool_field("quota"),
            self._changed_s,
            net,
            shape,
            targets,
        )
        return Plan(targets, reason="learned scaler")
