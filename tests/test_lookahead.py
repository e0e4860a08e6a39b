"""The lookahead bound: copies of a run that go on alone, and the terms that turn out best."""

from __future__ import annotations

import numpy as np
import pytest

from agents.bounds.lookahead import ACTIONS, LookaheadPlanner
from envs.score import weighed_so_far
from envs.simulation import Simulation
from hrl_planner.capacity import CapacityModel
from hrl_planner.errors import PolicyError
from hrl_planner.planner import PlanContext, loop
from hrl_planner.planner.allocator import terms_of
from hrl_planner.planner.lp import FluidPlanner
from hrl_planner.planner.policy import Terms
from hrl_planner.spec import ClusterSpec
from hrl_planner.workload.events import ClusterEvent
from hrl_planner.workload.trace import Trace
from tests.test_bounds import ramp

SPEC = ClusterSpec.load("small")
KIND = SPEC.gpu_types[0]
EVENTS = (
    ClusterEvent(t_s=350.0, kind="inventory", gpu_type=KIND, value=SPEC.budget.gpus[KIND] - 2),
    ClusterEvent(t_s=500.0, kind="kill_worker", pool=SPEC.pools[1].name, value=1),
)


def begun(offered: Trace, until_s: float = 0.0) -> Simulation:
    simulation = Simulation(SPEC, offered, seed=3, events=EVENTS)
    simulation.advance_to(until_s)
    return simulation


def context(simulation: Simulation) -> PlanContext:
    return PlanContext(SPEC, 3, simulation.trace, simulation.class_id, events=EVENTS)


def steered(simulation: Simulation, terms: Terms) -> Simulation:
    """A run under the LP, on other terms from its first plan on."""
    planner = FluidPlanner()
    planner.reset(context(simulation))

    class Policy:
        name = "terms"
        interval_s = planner.interval_s
        reset = planner.reset
        decide = planner.listen

    planner.decide(simulation.branch().observe())
    planner.replan(terms)
    loop.run(simulation, Policy(), simulation.trace.duration_s)
    return simulation


def test_a_branch_goes_on_as_its_run_does_and_leaves_it_alone() -> None:
    run = begun(ramp(1), 400.0)
    branch = run.branch()
    branch.advance_to(700.0)
    assert run.now_s == 400.0
    never_branched = begun(ramp(1), 400.0)
    for simulation in (branch, run, never_branched):
        simulation.finish()
    for name in ("first_token_s", "finish_s", "decode_pool", "gpu_seconds", "failures"):
        expected = getattr(never_branched.result(), name)
        for simulation in (branch, run):
            np.testing.assert_array_equal(getattr(simulation.result(), name), expected)


def test_the_terms_that_stand_are_those_that_turn_out_best() -> None:
    offered = ramp(2)
    role = CapacityModel.from_spec(SPEC).role
    outcomes = [
        weighed_so_far(steered(begun(offered), terms_of(action, role))) for action in ACTIONS
    ]
    run = begun(offered)
    policy = LookaheadPlanner(hold_s=offered.duration_s, horizon_s=offered.duration_s)
    policy.reset(context(run))
    loop.run(run, policy, offered.duration_s)
    assert max(outcomes) > min(outcomes)
    assert weighed_so_far(run) == max(outcomes)


def test_it_needs_the_trace_and_a_horizon_to_judge_by() -> None:
    with pytest.raises(PolicyError, match="needs the trace"):
        LookaheadPlanner().reset(PlanContext(SPEC))
    with pytest.raises(PolicyError, match=r"hold_s 300.0 must be above 0 and at most horizon_s 60"):
        LookaheadPlanner(horizon_s=60.0)
    with pytest.raises(PolicyError, match="decide before reset"):
        LookaheadPlanner().decide(begun(ramp(1)).observe())
