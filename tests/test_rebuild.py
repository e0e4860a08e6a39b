"""Rebuilds: a mix that cannot be left is left once, seen through, and only where it is worth it."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from agents.bounds import tighten
from envs.score import value_share
from envs.simulation import Simulation
from hrl_planner.budget import BudgetArrays
from hrl_planner.errors import PolicyError
from hrl_planner.planner import loop
from hrl_planner.planner.policy import PlanContext, Replanner, Terms
from hrl_planner.planner.registry import make_policy
from hrl_planner.spec import ClusterSpec
from hrl_planner.workload.scenarios import find_scenario
from hrl_planner.workload.trace import Trace

# Four fifths of what a clairvoyant planner needs for this day: every GPU is in use from early on.
SMALL = ClusterSpec.load("small")
SCARCE = tighten(SMALL, 0.7828)
N_POOLS = len(SCARCE.pools)


@cache
def day() -> Trace:
    return find_scenario("diurnal-mix").build(SMALL, 100, 1800.0, 1.0).trace


def run(
    policy: str, spec: ClusterSpec = SCARCE, trace: Trace | None = None
) -> tuple[Simulation, list[loop.Step]]:
    trace = trace or day()
    simulation = Simulation(spec, trace, seed=100)
    made = make_policy(policy)
    made.reset(PlanContext(spec, 100))
    steps: list[loop.Step] = []
    loop.run(simulation, made, trace.duration_s, steps.append)
    simulation.finish(600.0)
    return simulation, steps


@cache
def rebuilt() -> tuple[Simulation, list[loop.Step]]:
    return run("lp:rebuild_s=900")


def begins(steps: list[loop.Step]) -> list[int]:
    rebuilding = [step.wanted.reason.endswith("; rebuild") for step in steps]
    return [i for i in range(1, len(steps)) if rebuilding[i] and not rebuilding[i - 1]]


def test_a_mix_that_cannot_be_left_is_left() -> None:
    plain, steps = run("lp")
    assert not begins(steps)
    simulation, steps = rebuilt()
    assert begins(steps)
    assert value_share(simulation.result()) > value_share(plain.result()) + 0.05


def test_what_is_begun_is_seen_through_within_the_budget() -> None:
    _, steps = rebuilt()
    arrays = BudgetArrays.from_spec(SCARCE)
    assert all(arrays.fits(step.applied.replicas) for step in steps)
    first = begins(steps)[0]
    target = steps[first].wanted.replicas
    for step in steps[first:]:
        if np.all(step.observation.pool_field("ready") >= target):
            break
        np.testing.assert_array_equal(step.wanted.replicas, target)
    else:
        pytest.fail("the new mix never came up")
    freed = steps[first].observation.pool_field("ready") > target
    assert freed.any(), "what serves makes room before its replacement is up"


@pytest.mark.parametrize("change", ["rebuild_gain=10", "rebuild_s=1"])
def test_what_is_not_worth_it_is_not_begun(change: str) -> None:
    _, steps = run(f"lp:rebuild_s=900,{change}" if "gain" in change else f"lp:{change}")
    assert not begins(steps)


def test_the_beginning_of_traffic_is_no_reason_to_rebuild() -> None:
    """It looks like a ramp, and with 1.3 times the GPUs it needs all is served without headroom."""
    reference = ClusterSpec.load("reference")
    trace = find_scenario("pd-ratio-shift").build(reference, 240, 1800.0, 1.0).trace
    _, steps = run("lp:rebuild_s=900", tighten(reference, 0.7411), trace)
    assert not begins(steps)


def test_terms_say_how_readily_and_the_moment_is_decided_once() -> None:
    _, steps = rebuilt()
    until = begins(steps)[0]
    policy = make_policy("lp:rebuild_s=900")
    policy.reset(PlanContext(SCARCE, 100))
    assert isinstance(policy, Replanner)
    for step in steps[: until + 1]:
        plan = policy.decide(step.observation)
    assert plan.reason.endswith("; rebuild")
    reluctant = Terms(np.ones(N_POOLS), np.ones(N_POOLS), np.ones(N_POOLS), rebuild=0.01)
    for terms, begun in ((reluctant, False), (Terms.unchanged(N_POOLS), True)):
        again = policy.replan(terms)
        assert again is not None and again.reason.endswith("; rebuild") == begun
    np.testing.assert_array_equal(again.replicas, plan.replicas)


@pytest.mark.parametrize("change", ["rebuild_s=-1", "rebuild_s=inf", "rebuild_gain=-0.1"])
def test_numbers_that_mean_nothing_are_refused(change: str) -> None:
    with pytest.raises(PolicyError, match=change.partition("=")[0]):
        make_policy(f"lp:{change}")
