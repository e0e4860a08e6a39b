"""Perfect foresight in the simulator itself: the LP on the terms that turn out best.

`lp-oracle` knows the rates to come, but plans with the LP's picture of a cluster. This bound knows
the cluster: beside the run goes a twin of it, and every `hold_s` copies of the twin are run ahead,
each under the LP on other terms, with the very requests, events and start-up luck to come. The
terms under which most value is attained for the price stand until the next choice. What it gains
over the LP is what choosing terms could gain if nothing of the future had to be guessed, and so a
ceiling for an allocator with head `terms` that chooses among these.
"""

from __future__ import annotations

from copy import deepcopy

import numpy as np

from envs.score import weighed_so_far
from envs.simulation import Simulation
from hrl_planner.budget import BudgetArrays
from hrl_planner.capacity import CapacityModel
from hrl_planner.errors import PolicyError
from hrl_planner.observation import ClusterObservation
from hrl_planner.planner.allocator import N_TERMS, terms_of
from hrl_planner.planner.loop import within_budget
from hrl_planner.planner.lp import FluidPlanner
from hrl_planner.planner.policy import FloatArray, Plan, PlanContext, Terms
from hrl_planner.routing import DECODE, PREFILL, ROLES

_CAPACITY, _STOP, _KEEP, _OUTLOOK = range(4)


def _action(prefill: dict[int, float], decode: dict[int, float]) -> FloatArray:
    action = np.zeros((len(ROLES), N_TERMS))
    for role, numbers in ((PREFILL, prefill), (DECODE, decode)):
        for column, number in numbers.items():
            action[role, column] = number
    return action


def _for_both(**numbers: float) -> FloatArray:
    columns = {"capacity": _CAPACITY, "stop": _STOP, "keep": _KEEP, "outlook": _OUTLOOK}
    same = {columns[name]: number for name, number in numbers.items()}
    return _action(same, same)


ACTIONS = (
    _for_both(),
    _for_both(capacity=-0.5),
    *(_action({_CAPACITY: number}, {}) for number in (-0.4, 0.4)),
    *(_action({}, {_CAPACITY: number}) for number in (-0.4, 0.4)),
    _for_both(stop=-1.0),
    _for_both(stop=1.0),
    _for_both(outlook=-1.0),
    _for_both(outlook=1.0),
    _for_both(stop=-1.0, keep=-0.5),
    _for_both(stop=-1.0, keep=-1.0),
)
"""What is chosen among, as `terms_of` reads it; the first are the LP's own terms."""


class LookaheadPlanner:
    """The LP under the terms that the simulator says will be best: a bound, not a policy.

    Args:
        hold_s: time between two choices.
        horizon_s: how far ahead their consequences count; beyond `hold_s` the LP is on its own.

    Raises:
        PolicyError: a horizon shorter than what it is to judge.
    """

    name = "lp-lookahead"

    def __init__(self, hold_s: float = 300.0, horizon_s: float = 600.0) -> None:
        """See the class."""
        if not 0.0 < hold_s <= horizon_s:
            raise PolicyError(
                f"policy lp-lookahead: hold_s {hold_s} must be above 0 and at most horizon_s "
                f"{horizon_s}"
            )
        self._hold_s, self._horizon_s = hold_s, horizon_s
        self._planner = FluidPlanner()
        self.interval_s = self._planner.interval_s
        self._twin: Simulation | None = None
        self._next_choice_s = -np.inf

    def reset(self, context: PlanContext) -> None:
        """Begin the twin with the trace and the luck of the run."""
        if context.trace is None:
            raise PolicyError("policy lp-lookahead: needs the trace it runs on; none was given")
        self._planner.reset(context)
        self.interval_s = self._planner.interval_s
        self._budget = BudgetArrays.from_spec(context.spec)
        self._role = CapacityModel.from_spec(context.spec).role
        self._next_choice_s = -np.inf
        self._twin = Simulation(
            context.spec,
            context.trace,
            seed=context.seed,
            events=context.events,
            class_id=context.class_id,
        )

    def decide(self, observation: ClusterObservation) -> Plan:
        """Plan on the terms chosen last, or choose anew."""
        twin = self._twin
        if twin is None:
            raise PolicyError("policy lp-lookahead: decide before reset")
        twin.advance_to(observation.now_s)
        if observation.now_s >= self._next_choice_s:
            self._next_choice_s = observation.now_s + self._hold_s
            terms = [terms_of(action, self._role) for action in ACTIONS]
            best = terms[int(np.argmax([self._outcome(twin, one) for one in terms]))]
            plan = _first_plan(self._planner, observation, best)
        else:
            plan = self._planner.listen(observation)
        twin.apply(within_budget(plan, observation, self._budget))
        return plan

    def _outcome(self, twin: Simulation, terms: Terms) -> float:
        """Return what comes of terms: value attained minus price, by the end of the horizon."""
        ahead, planner = twin.branch(), deepcopy(self._planner)
        end_s = min(twin.now_s + self._horizon_s, twin.trace.duration_s)
        free_s = twin.now_s + self._hold_s
        observation = ahead.observe()
        plan = _first_plan(planner, observation, terms)
        while True:
            ahead.apply(within_budget(plan, observation, self._budget))
            ahead.advance_to(min(ahead.now_s + self.interval_s, end_s))
            if ahead.now_s >= end_s:
                break
            observation = ahead.observe()
            own = ahead.now_s >= free_s
            plan = planner.decide(observation) if own else planner.listen(observation)
        return weighed_so_far(ahead)


def _first_plan(planner: FluidPlanner, observation: ClusterObservation, terms: Terms) -> Plan:
    plan = planner.decide(observation)
    return planner.replan(terms) or plan
